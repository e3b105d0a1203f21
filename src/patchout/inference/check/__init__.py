"""What is wrong with a data set: its sounds, splits, labels and classes."""

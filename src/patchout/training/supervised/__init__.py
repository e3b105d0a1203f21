"""Training on labelled sounds."""

"""What a pre-training can predict, a file each."""

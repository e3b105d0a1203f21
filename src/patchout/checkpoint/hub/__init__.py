"""Models for the hub: the pushed folder, its card, and the code that transformers runs."""

"""Pre-training on unlabelled sounds (MaskSpec)."""

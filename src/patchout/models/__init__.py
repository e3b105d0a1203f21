"""PaSST, MaskSpec, a CNN and their parts: transformer, kernels, patches, masks; device and precision."""

"""PaSST, MaskSpec, and their parts: transformer, kernels, patches, masks; where and how exactly they compute."""

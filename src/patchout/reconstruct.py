"""What a pre-trained MaskSpec makes of the patches that it does not see: arrays for a picture."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Generator, Tensor

from patchout.masking import patch_scale, patchify, unpatchify
from patchout.maskspec import MaskSpec


class Reconstruction(NamedTuple):
    """One clip, whole patches of it, in units of a log-mel without statistics."""

    original: Float[np.ndarray, "mel frame"]
    hidden: Bool[np.ndarray, "mel frame"]
    filled: Float[np.ndarray, "mel frame"]  # the prediction where hidden, the original elsewhere


def reconstruct(
    model: MaskSpec, mel: Float[Tensor, "mel frame"], *, mask_ratio: float = 0.75, rng: Generator | None = None
) -> Reconstruction:
    """Hide patches of one log-mel and fill them with the model's prediction.

    With `normalize_patches` the model predicts no level: mean and deviation of a hidden patch come from the original.
    """
    config = model.config
    with torch.inference_mode():
        out = model(mel[None], mask_ratio, rng=rng)
        pixels = patchify(mel[None], config.patch)
        mean, deviation = patch_scale(pixels) if config.normalize_patches else (0.0, 1.0)
        hidden = (out.mask[..., None] > 0).expand_as(pixels)
        filled = torch.where(hidden, out.prediction * deviation + mean, pixels)
        original, filled, hidden = (unpatchify(values, config.rows)[0].cpu() for values in (pixels, filled, hidden))
        for values in (original, filled):
            values.mul_(torch.tensor(config.mel.std or (1.0,))[:, None])
            values.add_(torch.tensor(config.mel.mean or (0.0,))[:, None])
    return Reconstruction(original.numpy(), hidden.numpy(), filled.numpy())

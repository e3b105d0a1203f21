"""What a pre-trained MaskSpec makes of the patches that it does not see."""

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from patchout.inference.figures.reconstruction import Reconstructed
from patchout.models.masking import patch_scale, patchify, unpatchify
from patchout.models.maskspec import MaskSpec


def reconstruct(
    model: MaskSpec,
    mel: Float[Tensor, "mel frame"],
    *,
    mask_ratio: float = 0.75,
    rng: Generator | None = None,
) -> Reconstructed:
    """Hide patches of one log-mel and fill them with the model's prediction: whole patches, statistics undone.

    With `normalize_patches` the model predicts no level: mean and deviation of a hidden patch come from the original.
    """
    config, front = model.config, model.config.mel
    note = (
        "the level of a hidden patch is the original's: the model predicts none"
        if config.normalize_patches
        else ""
    )
    with torch.inference_mode():
        out = model(mel[None], mask_ratio, rng=rng)
        pixels = patchify(mel[None], config.patch)
        mean, deviation = patch_scale(pixels) if config.normalize_patches else (0.0, 1.0)
        hidden = (out.mask[..., None] > 0).expand_as(pixels)
        filled = torch.where(hidden, out.prediction * deviation + mean, pixels)
        original, filled, hidden = (
            unpatchify(values, config.rows)[0].cpu() for values in (pixels, filled, hidden)
        )
        for values in (original, filled):
            values.mul_(torch.tensor(front.std or (1.0,))[:, None])
            values.add_(torch.tensor(front.mean or (0.0,))[:, None])
    arrays = {"log_mel": original.numpy(), "hidden": hidden.numpy(), "filled": filled.numpy()}
    return Reconstructed(**arrays, band_hz=front.band_hz, frame_s=front.frame_s, note=note)

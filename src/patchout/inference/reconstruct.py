"""Reconstruction of masked patches by a pre-trained MaskSpec."""

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
    """Mask patches of one log-mel and fill them with the model's prediction, without normalisation.

    With `normalize_patches` the model predicts no level: a masked patch has the original's mean and
    deviation.
    """
    config, mel_config = model.config, model.config.mel
    with torch.inference_mode():
        out = model(mel[None], mask_ratio, rng=rng)
        pixels = patchify(mel[None], config.patch)
        mean, deviation = patch_scale(pixels) if config.normalize_patches else (0.0, 1.0)
        mask = (out.mask[..., None] > 0).expand_as(pixels)
        predicted = torch.where(mask, out.prediction * deviation + mean, pixels)
        original, filled, hidden = (
            unpatchify(values, config.rows)[0].cpu() for values in (pixels, predicted, mask)
        )
        for values in (original, filled):
            values.mul_(torch.tensor(mel_config.std or (1.0,))[:, None])
            values.add_(torch.tensor(mel_config.mean or (0.0,))[:, None])
    arrays = {"log_mel": original.numpy(), "hidden": hidden.numpy(), "filled": filled.numpy()}
    no_level = "the level of a hidden patch is the original's: the model predicts none"
    note = no_level if config.normalize_patches else ""
    return Reconstructed(**arrays, band_hz=mel_config.band_hz, frame_s=mel_config.frame_s, note=note)

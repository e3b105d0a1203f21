"""Masked spectrogram prediction: patches, positions, random mask, targets, loss (MaskSpec, section 2)."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

MASK_RATIOS = (0.05, 0.95)  # lowest and highest: at 0 nothing is predicted, at 1 nothing is visible
VARIANCE_FLOOR = 1e-6  # of a patch: a constant one has targets of zero


def patchify(mel: Float[Tensor, "batch mel frame"], patch: int) -> Float[Tensor, "batch token pixel"]:
    """Split into non-overlapping patches: frequency-major tokens of `patch` x `patch` pixels, row by row.

    Bands and frames that fill no further square are left out.
    """
    return mel.unfold(1, patch, patch).unfold(2, patch, patch).flatten(3).flatten(1, 2)


def unpatchify(pixels: Shaped[Tensor, "batch token pixel"], rows: int) -> Shaped[Tensor, "batch mel frame"]:
    """The inverse of `patchify` for a grid of `rows` rows."""
    patch = math.isqrt(pixels.shape[-1])
    grid = pixels.reshape(len(pixels), rows, -1, patch, patch)  # (B, rows, columns, patch, patch)
    return grid.transpose(2, 3).flatten(3).flatten(1, 2)


def sincos_positions(rows: int, columns: int, width: int) -> Float[Tensor, "position width"]:
    """Fixed sin-cos position embeddings: zeros for the class token, then one for every patch (section 2.1).

    The first half of the width encodes the time, the second the frequency; each half is sines, then cosines.
    """
    if width % 4:
        raise ValueError(f"sin-cos positions: width {width} is no multiple of 4: choose another")
    options: Any = {"dtype": torch.float64, "device": "cpu"}  # also where a model is built without memory
    frequency = 10_000.0 ** -(torch.arange(width // 4, **options) / (width / 4))
    index = torch.arange(rows * columns, **options)
    time, freq = (axis[:, None] * frequency for axis in (index % columns, index // columns))
    table = torch.cat([time.sin(), time.cos(), freq.sin(), freq.cos()], dim=1)
    return torch.cat([torch.zeros(1, width, device="cpu"), table.float()])


def num_kept(tokens: int, mask_ratio: float) -> int:
    """Number of visible patches: rounded down as in the published code, at least one.

    The paper (section 2.1) rounds the masked number down: the same at 0.75 of 496, one patch more at most
    other ratios. A ratio outside `MASK_RATIOS` is a ValueError.
    """
    low, high = MASK_RATIOS
    if not low <= mask_ratio <= high:
        hint = "0.75, as published, is a good choice"
        raise ValueError(f"a mask ratio must be from {low} to {high}, got {mask_ratio:g}: {hint}")
    return max(1, int(tokens * (1 - mask_ratio) + 1e-6))  # 240 x (1 - 0.9) is 23.999...: it means 24


class Mask(NamedTuple):
    """Visible and masked patches of every clip."""

    visible: Int[Tensor, "batch visible"]  # indices of the visible patches, in order of their noise
    masked: Float[Tensor, "batch token"]  # 1 where masked, 0 where visible


def random_mask(noise: Float[Tensor, "batch token"], mask_ratio: float) -> Mask:
    """Random mask of every clip: the patches with the smallest noise stay visible (section 2.1)."""
    visible = noise.argsort(dim=1)[:, : num_kept(noise.shape[1], mask_ratio)]
    return Mask(visible, torch.ones_like(noise).scatter(1, visible, 0.0))


def take(
    values: Float[Tensor, "batch token value"], index: Int[Tensor, "batch taken"]
) -> Float[Tensor, "batch taken value"]:
    """Gather the tokens of every clip at its `index`."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def patch_scale(
    pixels: Float[Tensor, "batch token pixel"],
) -> tuple[Float[Tensor, "batch token 1"], Float[Tensor, "batch token 1"]]:
    """Mean and deviation of the pixels of every patch (unbiased variance, plus a floor)."""
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
    return mean, (variance + VARIANCE_FLOOR).sqrt()


def masked_error(
    prediction: Float[Tensor, "batch token pixel"],
    target: Float[Tensor, "batch token pixel"],
    masked: Float[Tensor, "batch token"],
    weight: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error over the pixels of the masked patches of the whole batch, in float32 (section 2.3).

    `weight` of each clip multiplies its errors, not the count of patches, so that processes add up. The
    paper's equation 1 sums over the pixels; the public weights were trained with means.
    """
    error = (prediction.float() - target).square().mean(dim=-1)
    weighted = masked if weight is None else masked * weight[:, None]
    return (error * weighted).sum() / masked.sum()

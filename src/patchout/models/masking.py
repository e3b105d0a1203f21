"""The maths of masked spectrograms: patches in and out, the mask, the targets, the loss (MaskSpec, section 2)."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

MASK_RATIOS = (0.05, 0.95)  # lowest and highest: at 0 there is nothing to learn, at 1 nothing to learn from
VARIANCE_FLOOR = 1e-6  # of a patch: a constant one has targets of zero


def patchify(mel: Float[Tensor, "batch mel frame"], patch: int) -> Float[Tensor, "batch token pixel"]:
    """Cut into squares side by side: frequency-major tokens of `patch` x `patch` pixels, each row by row.

    Bands and frames that fill no further square are left out.
    """
    return mel.unfold(1, patch, patch).unfold(2, patch, patch).flatten(3).flatten(1, 2)


def unpatchify(pixels: Shaped[Tensor, "batch token pixel"], rows: int) -> Shaped[Tensor, "batch mel frame"]:
    """Put the squares back: the inverse of `patchify` for a grid of `rows` rows."""
    patch = math.isqrt(pixels.shape[-1])
    grid = pixels.reshape(len(pixels), rows, -1, patch, patch)  # (B, rows, columns, patch, patch)
    return grid.transpose(2, 3).flatten(3).flatten(1, 2)


def sincos_positions(rows: int, columns: int, width: int) -> Float[Tensor, "position width"]:
    """The fixed positions: zeros for the class token, then sine and cosine of column and row of every patch.

    The first half of the width tells the time, the second the frequency; each of sine and cosine is a quarter.
    """
    if width % 4:
        raise ValueError(
            f"sin-cos positions fill the width in quarters, {width} is no multiple of 4: choose another"
        )
    frequency = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    index = torch.arange(rows * columns, dtype=torch.float64)
    time, freq = (place[:, None] * frequency for place in (index % columns, index // columns))
    table = torch.cat([time.sin(), time.cos(), freq.sin(), freq.cos()], dim=1)
    return torch.cat([torch.zeros(1, width), table.float()])


def num_kept(tokens: int, mask_ratio: float) -> int:
    """How many of so many patches stay visible: rounded down as in the published code, at least one.

    The paper (section 2.1) rounds the masked number down instead: the same at 0.75 of 496, at most other ratios one
    patch fewer. A ratio outside `MASK_RATIOS` is a ValueError.
    """
    low, high = MASK_RATIOS
    if not low <= mask_ratio <= high:
        raise ValueError(
            f"a mask ratio must be from {low} to {high}, got {mask_ratio:g}: 0.75, as published, is a good choice"
        )
    return max(1, int(tokens * (1 - mask_ratio) + 1e-6))  # 240 x (1 - 0.9) is 23.999...: it means 24


class Mask(NamedTuple):
    """Which patches a model sees."""

    kept: Int[Tensor, "batch kept"]  # indices of the visible patches, in order of their noise
    removed: Float[Tensor, "batch token"]  # 1 where hidden, 0 where visible


def random_mask(noise: Float[Tensor, "batch token"], mask_ratio: float) -> Mask:
    """Keep the patches with the smallest noise, for every clip its own."""
    kept = noise.argsort(dim=1)[:, : num_kept(noise.shape[1], mask_ratio)]
    return Mask(kept, torch.ones_like(noise).scatter(1, kept, 0.0))


def take(
    values: Float[Tensor, "batch token value"], index: Int[Tensor, "batch taken"]
) -> Float[Tensor, "batch taken value"]:
    """The tokens at `index`, for every clip its own."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def patch_scale(
    pixels: Float[Tensor, "batch token pixel"],
) -> tuple[Float[Tensor, "batch token 1"], Float[Tensor, "batch token 1"]]:
    """Mean and deviation of every patch over its own pixels (unbiased variance, with a floor)."""
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
    return mean, (variance + VARIANCE_FLOOR).sqrt()


def masked_error(
    prediction: Float[Tensor, "batch token pixel"],
    target: Float[Tensor, "batch token pixel"],
    removed: Float[Tensor, "batch token"],
    weight: Float[Tensor, "batch"] | None = None,
) -> Float[Tensor, ""]:
    """Squared error, mean over the pixels of a patch, then over the hidden patches of the whole batch; in float32.

    `weight` is how much each clip counts; the mean stays one over all, so that processes add up to one. The paper's
    equation 1 sums over the pixels instead; the public weights were trained with means.
    """
    error = (prediction.float() - target).square().mean(dim=-1)
    counted = removed if weight is None else removed * weight[:, None]
    return (error * counted).sum() / removed.sum()

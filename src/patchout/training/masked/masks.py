"""The mask sampler: random patches, inverse blocks, whole columns or rows, blocks; for every clip its own."""

from typing import Literal

import torch
from jaxtyping import Int
from torch import Generator, Tensor

from patchout.models.masking import num_kept

Sampler = Literal["random", "inverse-blocks", "columns", "rows", "time-blocks", "cells"]

Masks = Literal["random", "inverse-blocks", "structured", "blocks"]
SAMPLERS: dict[Masks, tuple[Sampler, Sampler]] = {  # of a clip, and of the second view of one
    "random": ("random", "random"),
    "inverse-blocks": ("inverse-blocks", "inverse-blocks"),
    "structured": ("columns", "rows"),
    "blocks": ("time-blocks", "cells"),
}
BLOCK = 5  # patches on a side of an inverse block (EAT)
MARGIN = 0.07  # share of the patches that inverse blocks cover beyond what stays
PERIOD = 8  # blocks of time, and columns after which a pattern of cells repeats (AudioMosaic's code)


def sample(
    sampler: Sampler, rows: int, columns: int, ratio: float, *, clips: int, rng: Generator
) -> Int[Tensor, "clip kept"]:
    """Indices of the visible patches of a frequency-major grid; `ratio` of the patches is hidden.

    "time-blocks" and "cells" see whole eighths alone: of 31 columns the first 24. A grid too small for them,
    and a ratio that leaves nothing to see or nothing to predict, are ValueErrors.
    """
    if sampler in ("random", "inverse-blocks"):
        visible = num_kept(rows * columns, ratio)
        _check(visible, rows * columns, f"patches of a grid of {rows} x {columns}", ratio)
        chance = torch.rand(clips, rows * columns, generator=rng)
        if sampler == "inverse-blocks":
            chance -= _inverse_blocks(rows, columns, visible, clips=clips, rng=rng)
        return chance.argsort(dim=1)[:, :visible]
    if sampler in ("columns", "rows"):
        total = columns if sampler == "columns" else rows
        chosen = _choose(total, sampler, ratio, clips=clips, rng=rng)
        line = torch.arange(rows if sampler == "columns" else columns)
        pair = (line[:, None], chosen[:, None, :]) if sampler == "columns" else (chosen[..., None], line)
        return (pair[0] * columns + pair[1]).flatten(1)
    span = columns // PERIOD
    if not span:
        raise ValueError(
            f"masks of blocks cut a clip into {PERIOD} stretches, it has {columns} columns of patches: "
            "lengthen clip_s"
        )
    if sampler == "time-blocks":
        block = _choose(PERIOD, "blocks", ratio, clips=clips, rng=rng)
        column = (block[..., None] * span + torch.arange(span)).flatten(1)
        return (torch.arange(rows)[:, None] * columns + column[:, None, :]).flatten(1)
    cell = _choose(rows * PERIOD, "cells", ratio, clips=clips, rng=rng)
    first = cell // PERIOD * columns + cell % PERIOD
    return (first[..., None] + PERIOD * torch.arange(span)).flatten(1)


def _inverse_blocks(rows: int, columns: int, visible: int, *, clips: int, rng: Generator) -> Tensor:
    """1 in the blocks around random centres, (clips, rows * columns), which stay visible (EAT)."""
    centres = max(1, int((visible + MARGIN * rows * columns) / BLOCK**2))
    place = torch.randint(rows * columns, (clips, centres, 1), generator=rng)
    patch = torch.arange(rows * columns)
    up, along = patch // columns - place // columns, patch % columns - place % columns
    near = torch.maximum(up.abs(), along.abs()) <= BLOCK // 2  # (clips, centres, patches)
    return near.any(dim=1).float()


def _choose(total: int, unit: str, ratio: float, *, clips: int, rng: Generator) -> Int[Tensor, "clip kept"]:
    """A random subset of 0 ... total - 1 for each clip."""
    visible = int(total * (1 - ratio) + 1e-6)
    _check(visible, total, f"{unit} of the grid", ratio)
    return torch.rand(clips, total, generator=rng).argsort(dim=1)[:, :visible]


def _check(visible: int, total: int, unit: str, ratio: float) -> None:
    """Refuse masks that hide nothing or leave nothing."""
    if not 0 < visible < total:
        fault = "nothing is left to see" if visible <= 0 else "nothing is hidden"
        raise ValueError(
            f"a mask ratio of {ratio:g} keeps {max(0, visible)} of {total} {unit}, {fault}: change it, or "
            "lengthen clip_s"
        )

"""Mean and deviation of every mel band: AudioSet's as published, or computed (MaskSpec, section 2)."""

import csv
from collections.abc import Iterable
from importlib import resources
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class FrameStatistics(NamedTuple):
    """Mean and deviation of each mel band, or of all, as in `replace(config, **statistics._asdict())`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def audioset_statistics(*, floor: float = 0.0) -> FrameStatistics:
    """Statistics of 128 bands over 10,000 clips of AudioSet, as used by MaskSpec's public weights.

    Bands 120 to 127 have a deviation of 0.04: those clips end at 11 kHz. Full-band sound reads 60 deviations
    there, so give `low_pass_hz=11_000` for the public weights, or a `floor` when training anew.
    """
    text = (resources.files("patchout.audio") / "frame_stats.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    std = tuple(max(float(row["frame_std"]), floor) for row in rows)
    return FrameStatistics(tuple(float(row["frame_mean"]) for row in rows), std)


def frame_statistics(
    mels: Iterable[Float[Tensor, "mel _"]], *, floor: float = 0.3, per_band: bool = True
) -> FrameStatistics:
    """Mean and population deviation of every band over all frames of all clips; one pair if not `per_band`.

    `mels`: log-mels of a front end without statistics, read once. Deviations are at least `floor`: otherwise
    a band that is empty in these clips would be amplified in the first sound that fills it.
    """
    count, total, squares = 0, torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for mel in mels:
        values = mel.cpu().double()  # in this order: MPS has no float64
        values = values if per_band else values.reshape(1, -1)
        count += values.shape[1]
        total, squares = total + values.sum(dim=1), squares + values.square().sum(dim=1)
    if count == 0:
        raise ValueError("statistics of no frames at all: give at least one clip")
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0.0).sqrt().clamp(min=floor)
    return FrameStatistics(tuple(mean.tolist()), tuple(std.tolist()))

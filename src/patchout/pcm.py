"""Decoded samples of any layout -> mono float32."""

from typing import Literal, NamedTuple

import numpy as np

Channel = Literal["mean", "left", "right"]  # of all channels, the first, the second (of a mono sound: its only one)


class Block(NamedTuple):
    """A piece of a source: one of its channels, or their mean."""

    rate: int  # Hz, of the source
    start: int  # source sample at which the block begins
    samples: np.ndarray  # (samples,) float32


def mono(frames: np.ndarray, channel: Channel) -> np.ndarray:
    """Return one channel of `(samples, channels)` PCM, or their mean, as float32 with full scale 1."""
    if channel != "mean":
        place = min(("left", "right").index(channel), frames.shape[1] - 1)
        frames = frames[:, place : place + 1]
    with np.errstate(over="ignore", invalid="ignore"):  # infinite and NaN samples are for the caller to refuse
        if frames.dtype == np.float32:
            return frames.mean(axis=1) if frames.shape[1] > 1 else frames[:, 0]
        mean = frames.mean(axis=1, dtype=np.float64)
        if frames.dtype.kind == "f":
            return mean.astype(np.float32)
    full_scale = 2.0 ** (8 * frames.dtype.itemsize - 1)
    return ((mean - full_scale if frames.dtype.kind == "u" else mean) / full_scale).astype(np.float32)

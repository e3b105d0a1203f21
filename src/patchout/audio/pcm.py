"""PCM of any sample format and channel layout -> mono float32; checks of its level."""

from typing import Literal, NamedTuple

import numpy as np

Channel = Literal["mean", "left", "right"]  # of all channels, the first, the second (of mono: its only one)

MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
QUIET = 2.0**-10  # of full scale: below it the mean of channels may be all that they leave of each other
CANCELLED = 0.01  # of the loudest channel
LOUDEST_MIX = 8.0  # times full scale: floats may exceed 1, but no mix by 18 dB
STEP_16 = 2.0**-15  # between samples of 16 bits
CANCEL = "is silent because its channels cancel in their mean: give one alone (channel='left' in Python)"
INTEGERS = (15, 23, 31)  # bits beside the sign


class Block(NamedTuple):
    """Consecutive mono samples of a source: one of its channels, or their mean."""

    rate: int  # Hz, of the source
    start: int  # source sample at which the block begins
    samples: np.ndarray  # (samples,) float32
    flaw: str = ""  # what is wrong with this piece, or here if it holds no samples
    channel_peak: float = 0.0  # of the loudest channel, where their mean is quiet
    num_channels: int = 1  # of the source
    frames: np.ndarray | None = None  # (samples, channels) as decoded, where they were mixed to these samples


def block_of(rate: int, start: int, frames: np.ndarray, channel: Channel) -> Block:
    """The block of `(samples, channels)` PCM that begins at the source's sample `start`."""
    samples = mono(frames, channel)
    block = Block(rate, start, samples, num_channels=frames.shape[1], frames=frames)
    is_mixed = channel == "mean" and frames.shape[1] > 1 and len(samples)
    if not is_mixed or not -QUIET < samples[len(samples) // 2] < QUIET:
        return block
    sides: tuple[Channel, ...] = ("left", "right")  # of more channels too: two that differ are enough
    return block._replace(channel_peak=max(float(np.abs(mono(frames, side)).max()) for side in sides))


def mono(frames: np.ndarray, channel: Channel) -> np.ndarray:
    """Down-mix `(samples, channels)` PCM to one channel or the mean of all: float32, full scale 1."""
    if channel != "mean":
        index = min(("left", "right").index(channel), frames.shape[1] - 1)
        frames = frames[:, index : index + 1]
    with np.errstate(over="ignore", invalid="ignore"):  # the caller refuses infinite and NaN samples
        if frames.dtype == np.float32:
            return frames.mean(axis=1) if frames.shape[1] > 1 else frames[:, 0]
        mean = frames.mean(axis=1, dtype=np.float64)
        if frames.dtype.kind == "f":
            return mean.astype(np.float32)
    full_scale = 2.0 ** (8 * frames.dtype.itemsize - 1)
    return ((mean - full_scale if frames.dtype.kind == "u" else mean) / full_scale).astype(np.float32)


def too_loud(peak: float) -> str:
    """The warning for a peak far above full scale, which integers read as floats have; "" below it."""
    if peak <= LOUDEST_MIX:
        return ""
    bits = next((bits for bits in INTEGERS if peak <= 2.0**bits), INTEGERS[-1])
    scale = f"if its numbers are those of {bits + 1} bits, divide by {2**bits}"
    return f"peaks at {peak:.5g} times full scale: {scale}"


def silence(peak: float, channel_peak: float) -> str:
    """Why samples with this peak, mixed from channels with that one, are silent; "" if they are not."""
    if channel_peak and peak < CANCELLED * channel_peak:
        return CANCEL
    if 0.0 < peak <= STEP_16:
        return f"is silent (its peak is {peak:.0e} of full scale)"
    return "" if peak else "is silent (every sample is zero)"

"""A sound file -> samples as each protocol loads them, by resamplers that follow the published formulas."""

import math
from collections.abc import Generator
from contextlib import closing
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import soxr
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view

from patchout.audio.remarks import RemarkedStream
from patchout.audio.sources import Source
from patchout.data.items import Item
from patchout.judge.protocols import Loading

Wave = Float[np.ndarray, "_"]


class Sinc(NamedTuple):
    """A windowed sinc: zero crossings to each side, cut-off as a share of the lower Nyquist frequency."""

    zeros: int
    rolloff: float
    beta: float | None  # of a Kaiser window; None: Hann
    is_normalised: bool = False  # each phase sums to 1, and the ends of a sound are repeated


SINCS = {
    "hann": Sinc(6, 0.99, None),  # torchaudio's default
    "kaiser": Sinc(64, 0.9475937167399596, 14.769656459379492),  # torchaudio's "kaiser_best"
    "julius": Sinc(24, 0.945, None, is_normalised=True),
}


def resample(wave: Wave, rate: int, new_rate: int, *, method: str) -> Wave:
    """A waveform at another rate, float32, by a method of `SINCS` or `soxr` (HQ, as librosa calls it)."""
    if rate == new_rate:
        return wave
    if method == "soxr":
        length = math.ceil(len(wave) * new_rate / rate)
        fresh = soxr.resample(wave, rate, new_rate, quality="HQ")[:length]
        return np.pad(fresh, (0, length - len(fresh)))
    divisor = math.gcd(rate, new_rate)
    old, new = rate // divisor, new_rate // divisor
    sinc = SINCS[method]
    rounded = math.floor if sinc.is_normalised else math.ceil
    length = rounded(new * len(wave) / old)
    weights = _phases(sinc, old, new)  # (new, taps)
    reach = weights.shape[1] // 2
    padded = np.pad(wave, (reach, reach + old), mode="edge" if sinc.is_normalised else "constant")
    windows = sliding_window_view(padded, weights.shape[1])
    resampled = np.empty(length, np.float32)
    for phase, taps in enumerate(weights[:length]):
        count = -(-(length - phase) // new)
        first = phase * old // new
        resampled[phase::new] = windows[first : first + (count - 1) * old + 1 : old] @ taps
    return resampled


@lru_cache(maxsize=16)
def _phases(sinc: Sinc, old: int, new: int) -> Float[np.ndarray, "phase tap"]:
    """Weights of the samples around floor(phase * old / new), for each of `new` output samples in a period.

    At t crossings from the output sample: sinc(t), times cos^2(pi t / 2 zeros) (Hann) or
    I0(beta sqrt(1 - (t / zeros)^2)) / I0(beta) (Kaiser), times the cut-off over the old rate.
    """
    cutoff = min(old, new) * sinc.rolloff
    reach = math.ceil(sinc.zeros * old / cutoff) + 1
    place = np.arange(new) * old / new  # of the output samples among the old ones
    taps = np.arange(-reach, reach + 1) + np.floor(place)[:, None]
    t = (taps - place[:, None]) * cutoff / old
    inside = np.abs(t) < sinc.zeros
    ratio = np.where(inside, t / sinc.zeros, 0.0)
    if sinc.beta is None:
        window = np.cos(np.pi * ratio / 2) ** 2
    else:
        window = np.i0(sinc.beta * np.sqrt(1 - ratio**2)) / np.i0(sinc.beta)
    weights = np.where(inside, np.sinc(t) * window, 0.0)
    scale = 1 / weights.sum(axis=1, keepdims=True) if sinc.is_normalised else cutoff / old
    return (weights * scale).astype(np.float32)


def loaded(wave: Wave, rate: int, new_rate: int, loading: Loading) -> Wave:
    """A mono sound as a protocol loads it."""
    if loading.remove_mean:
        wave = wave - wave.mean(dtype=np.float64).astype(np.float32)
    wave = resample(wave, rate, new_rate, method=loading.resampler)
    if loading.peak_db is not None and (peak := np.abs(wave).max(initial=0.0)):
        wave = wave * np.float32(10 ** (loading.peak_db / 20) / peak)
    if loading.pcm16:
        wave = (np.clip(np.round(wave * 2**15), -(2**15), 2**15 - 1) / 2**15).astype(np.float32)
    return wave


class ProtocolStream(RemarkedStream):
    """One sound under several loadings: a single block (sample, loading), where a shorter one ends with NaN.

    `warning` is the text of a `Remark`.
    """

    def __init__(self, item: Item, rate: int, loadings: tuple[Loading, ...]) -> None:
        super().__init__(item.file, rate, start_s=item.start_s, end_s=item.end_s)
        self._loadings = loadings

    def _resampled(self, source: Source) -> Generator[np.ndarray, None, None]:
        with closing(self._sound(source)) as pieces:
            wave = np.concatenate([*pieces])
        waves = [loaded(wave, self.source_rate, self.rate, loading) for loading in self._loadings]
        block = np.full((max(map(len, waves)), len(waves)), np.nan, np.float32)
        for column, samples in enumerate(waves):
            block[: len(samples), column] = samples
        yield block

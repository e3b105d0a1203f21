"""What a recording lost before it was a file: clipping, offset, channels that cancel, an empty upper band."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Real
from scipy import fft

from patchout.audio.pcm import mono

FFT_SAMPLES = 2048
NEAR_FULL_SCALE = 0.98  # from here on a sample may be clipped
MANY = 1e-3  # share of samples near full scale: a codec overshoots in fewer
SHOULDER = 0.9  # sound that is not clipped has more samples from here to NEAR_FULL_SCALE than above
CORNER = 2.0**-12  # of full scale: a wave that is not clipped comes to its peak more smoothly
SILENT_PEAK = 1e-4  # three steps of 16 bits
USUAL_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000)
BANDS = 128  # from 0 Hz to the Nyquist frequency, in which an edge is looked for


class Levels(NamedTuple):
    """Measurements of one sound at its own rate."""

    peak: float = 0.0  # of full scale, of the loudest channel
    clipped: float = 0.0  # share of the samples
    offset: float = 0.0  # mean of the samples, of full scale, of the worst channel
    cancelled: float = 1.0  # power of the mean of the channels / mean power of the channels
    edge_hz: float = 0.0  # nothing is above it, and much right below it; 0: there is no such edge
    drop_db: float = 0.0  # at the edge


def odd_rates(rates: Int[np.ndarray, "clip"]) -> dict[int, str]:
    """Clips of an unusual rate (Hz), or of at most half the median rate of the set, with a remark."""
    usual = int(np.median(rates)) if len(rates) else 0
    places = np.flatnonzero(~np.isin(rates, USUAL_RATES) | (rates <= usual / 2))
    return {place: f"{rates[place]} Hz, most clips have {usual}" for place in places.tolist()}


class Meter:
    """Levels of a sound that comes in blocks of `(samples, channels)` in any format."""

    def __init__(self) -> None:
        self._count = self._runs = self._near = self._shoulder = 0
        self._peak = self._mean_power = 0.0
        self._sums, self._powers = np.zeros(1), np.zeros(1)
        self._rest, self._spectrum = np.zeros(0, np.float32), np.zeros(FFT_SAMPLES // 2 + 1)
        self._window = np.hanning(FFT_SAMPLES + 1)[:-1].astype(np.float32)  # periodic

    def add(self, frames: Real[np.ndarray, "sample channel"]) -> None:
        """Count a block; where the number of channels changes, offset and cancelling are counted anew."""
        if frames.dtype != np.float32:
            frames = np.stack([mono(channel[:, None], "left") for channel in frames.T], axis=1)
        if frames.shape[1] != len(self._sums):
            self._sums, self._powers = np.zeros((2, frames.shape[1]))
            self._count, self._mean_power = 0, 0.0
        mean, size = frames.mean(axis=1), np.abs(frames)
        self._count += len(frames)
        self._peak = max(self._peak, float(size.max(initial=0.0)))
        self._sums += frames.sum(axis=0, dtype=np.float64)
        self._powers += np.square(frames, dtype=np.float64).sum(axis=0)
        self._mean_power += float(np.square(mean, dtype=np.float64).sum())
        if self._peak >= SHOULDER:
            near = size >= NEAR_FULL_SCALE
            self._near += int(near.sum())
            self._shoulder += int((size >= SHOULDER).sum())
            if near.any():
                self._runs += sum(_flat_tops(channel) for channel in frames.T)
        wave = np.concatenate([self._rest, mean])
        whole = len(wave) // FFT_SAMPLES * FFT_SAMPLES
        windows = wave[:whole].reshape(-1, FFT_SAMPLES) * self._window
        self._spectrum += np.square(np.abs(fft.rfft(windows, axis=1)), dtype=np.float64).sum(axis=0)
        self._rest = wave[whole:]

    def levels(self, rate: int) -> Levels:
        """The levels of all blocks."""
        count = max(1, self._count)
        samples = count * len(self._sums)
        is_many = self._near > max(self._shoulder - self._near, MANY * samples)
        clipped = (max(self._runs, self._near) if is_many else self._runs) / samples
        power = float(self._powers.mean())
        cancelled = self._mean_power / power if power else 1.0
        edge, drop_db = _edge(self._spectrum)
        return Levels(
            self._peak, clipped, float(np.abs(self._sums).max()) / count, cancelled, edge * rate / 2, drop_db
        )


def _flat_tops(wave: Float[np.ndarray, "sample"]) -> int:
    """Samples in runs of at least three that are the same, near full scale, behind or before a corner."""
    edges = np.flatnonzero(np.diff(wave, prepend=np.nan, append=np.nan))
    firsts, lasts = edges[:-1], edges[1:] - 1
    is_flat = (lasts - firsts >= 2) & (np.abs(wave[firsts]) >= NEAR_FULL_SCALE)
    firsts, lasts = firsts[is_flat], lasts[is_flat]
    before = np.abs(wave[firsts] - wave[np.maximum(firsts - 1, 0)])
    after = np.abs(wave[np.minimum(lasts + 1, len(wave) - 1)] - wave[lasts])
    is_cut = np.maximum(before, after) >= CORNER
    return int((lasts - firsts + 1)[is_cut].sum())


def _edge(spectrum: Float[np.ndarray, "frequency"]) -> tuple[float, float]:
    """Where the upper band is empty, as a share of the Nyquist frequency, and the drop there in dB."""
    size = (len(spectrum) - 1) // BANDS
    bands = np.median(spectrum[1:].reshape(BANDS, size), axis=1)
    level = 10 * np.log10(bands + 1e-12)
    best, drop = 0.0, 0.0
    for edge in range(8, BANDS - 3):
        below = np.percentile(level[int(0.8 * edge) : max(edge - 1, int(0.97 * edge))], 25)
        above = level[edge + 2 :].max()
        if below - above > drop:
            best, drop = edge / BANDS, float(below - above)
    return best, drop

"""Any sound source -> mono float32 samples at a rate, streamed in bounded memory; windows over such a stream."""

import contextlib
import math
import warnings
from collections.abc import Generator, Iterable, Iterator
from typing import Any, get_args

import numpy as np
import soxr

from patchout.decode import AudioError, CutError, Source, decode, name_of
from patchout.pcm import Channel

__all__ = ["AudioError", "AudioWarning", "Channel", "Source", "Stream", "load", "name_of", "windows"]

MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz
BLOCK_S = 10.0
SOXR_SAMPLES = 16384  # at a time: more leaves the cache and takes twice as long
MAX_LEVEL = 1e12  # full scale is 1; filtering anything louder could leave float32


class AudioWarning(UserWarning):
    """Only a part of the source could be decoded, and that part is used."""


class Stream:
    """One source as float32 mono blocks `(samples,)` at `rate` Hz; iterate it once, memory stays bounded.

    `start_s` and `end_s` (seconds) cut a segment; a block holds about BLOCK_S seconds; `channel` is one of the
    channels or the mean of all. `source_rate` is 0 until the first block; `num_samples` (at `rate`), `duration_s` and
    `warning` (what a damaged or truncated source lacks, else None) are complete after the last one. Iterating raises
    AudioError, or OSError for a file that cannot be read.
    """

    def __init__(
        self,
        source: Source,
        rate: int = 32000,
        *,
        start_s: float = 0.0,
        end_s: float | None = None,
        channel: Channel = "mean",
    ) -> None:
        if not _is_rate(rate):
            raise ValueError(f"rate={rate!r} is not allowed: give a whole number of Hz, {MIN_RATE} to {MAX_RATE}")
        if not 0 <= start_s < math.inf:
            raise ValueError(f"start_s={start_s} is not allowed: give 0 or more seconds")
        if end_s is not None and not start_s < end_s < math.inf:
            raise ValueError(f"end_s={end_s} is not allowed: give more seconds than start_s={start_s}, or None")
        if channel not in get_args(Channel):
            raise ValueError(f"channel={channel!r} is not allowed: give {', '.join(get_args(Channel))}")
        self.name = name_of(source)
        self.rate = int(rate)
        self.source_rate = 0
        self.num_samples = 0
        self.duration_s = 0.0
        self.warning: str | None = None
        self._source: Source | None = source
        self._start_s, self._end_s = start_s, end_s
        self._channel = channel

    def __iter__(self) -> Iterator[np.ndarray]:
        if self._source is None:
            raise RuntimeError(f"{self.name}: this stream was read already; make a new Stream")
        source, self._source = self._source, None
        return self._gathered(source)

    def _gathered(self, source: Source) -> Generator[np.ndarray, None, None]:
        """Join pieces to blocks of at least BLOCK_S seconds, and count what is given out."""
        parts: list[np.ndarray] = []
        held = 0
        with contextlib.closing(self._resampled(source)) as pieces:
            for piece in pieces:
                parts.append(piece)
                held += len(piece)
                if held >= BLOCK_S * self.rate:
                    self.num_samples += held
                    yield np.concatenate(parts)
                    parts, held = [], 0
        if held:
            self.num_samples += held
            yield np.concatenate(parts)

    def _resampled(self, source: Source) -> Generator[np.ndarray, None, None]:
        """Small pieces at the new rate, some of them empty."""
        resampler: Any = None
        first, count = np.zeros(0, np.float32), 0
        with contextlib.closing(self._sound(source)) as pieces:
            for piece in pieces:
                if self.source_rate == self.rate:
                    yield piece
                    continue
                if resampler is None:
                    resampler = soxr.ResampleStream(self.source_rate, self.rate, 1, dtype="float32", quality="HQ")
                    first = piece[:1]
                for start in range(0, len(piece), SOXR_SAMPLES):
                    fresh = resampler.resample_chunk(piece[start : start + SOXR_SAMPLES])
                    count += len(fresh)
                    yield fresh
        if resampler is not None:
            rest = resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            yield rest if count + len(rest) else first  # less than one sample at the new rate is still a sound

    def _sound(self, source: Source) -> Generator[np.ndarray, None, None]:
        """The segment's pieces, without samples that are no sound."""
        with contextlib.closing(self._segment(source)) as pieces:
            for piece in pieces:
                if not -MAX_LEVEL < piece.min() <= piece.max() < MAX_LEVEL:  # NaN too
                    raise AudioError(
                        f"{self.name}: has samples that are NaN, infinite or beyond {MAX_LEVEL:g}, "
                        f"before {self._start_s + self.duration_s:.2f} s; export it again"
                    )
                yield piece

    def _segment(self, source: Source) -> Generator[np.ndarray, None, None]:
        """Cut the segment out of the decoded source, and note what is missing from it."""
        reason, position, used = "", 0, 0
        try:
            with contextlib.closing(decode(source, start_s=self._start_s, channel=self._channel)) as blocks:
                for rate, start, samples in blocks:
                    if not _is_rate(rate):
                        allowed = f"{MIN_RATE} to {MAX_RATE} are allowed"
                        raise AudioError(f"{self.name}: says that its rate is {rate!r} Hz, {allowed}; resample it")
                    self.source_rate = int(rate)
                    position = start + len(samples)
                    first = round(self._start_s * rate)
                    last = position if self._end_s is None else max(first + 1, round(self._end_s * rate))
                    piece = samples[max(0, first - start) : max(0, last - start)]
                    if len(piece):
                        used += len(piece)
                        self.duration_s = used / rate
                        yield piece
                    if position > last:
                        break
        except CutError as error:
            reason = str(error)
        if not position:
            raise AudioError(f"{self.name}: {reason or 'holds no samples'}; nothing in it can be decoded")
        if not used:
            end_s = position / self.source_rate
            raise AudioError(
                f"{self.name}: start_s={self._start_s} is not before its end at {end_s:.2f} s; start earlier"
            )
        if reason:
            self.warning = f"{self.name}: {reason}; the {self.duration_s:.2f} s that can be decoded are used"


def load(source: Source, rate: int = 32000, *, start_s: float = 0.0, end_s: float | None = None) -> np.ndarray:
    """Return the source, or its segment in seconds, as float32 `(samples,)` at `rate` Hz: the mean of all channels.

    Raises AudioError or OSError that name the source; warns with AudioWarning if a part of it cannot be decoded.
    """
    stream = Stream(source, rate, start_s=start_s, end_s=end_s)
    samples = np.concatenate(list(stream))
    if stream.warning:
        warnings.warn(stream.warning, AudioWarning, stacklevel=2)
    return samples


def windows(blocks: Iterable[np.ndarray], size: int, hop: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (start sample, window) over a stream of `(samples,)` blocks, in bounded memory and without padding.

    A stream of up to `size` samples is one window, as it is. A longer one gives full windows every `hop` samples
    and, if samples remain, one more that ends with the stream. `hop` is 1 to `size`, so that every sample is seen.
    """
    if not 1 <= hop <= size:
        raise ValueError(f"hop={hop} is not allowed: give 1 to size={size} samples")
    parts: list[np.ndarray] = []
    held_start, held, start = 0, 0, 0  # in samples: where the held ones begin, how many, where the next window begins
    for block in blocks:
        parts.append(block)
        held += len(block)
        if held_start + held < start + size:
            continue
        joined = np.concatenate(parts)
        while held_start + held >= start + size:
            yield start, joined[start - held_start : start - held_start + size]
            start += hop
        parts = [joined[start - hop - held_start :]]  # the last window stays: the final one may overlap it
        held_start, held = start - hop, len(parts[0])
    if start == 0 and held:
        yield 0, np.concatenate(parts)
    elif held > size:
        yield held_start + held - size, np.concatenate(parts)[-size:]


def _is_rate(rate: object) -> bool:
    return isinstance(rate, int | np.integer) and not isinstance(rate, bool) and bool(MIN_RATE <= rate <= MAX_RATE)

"""Any sound source -> mono float32 samples at a given rate, in bounded memory; windows over such a stream."""

import contextlib
import math
import warnings
from collections.abc import Generator, Iterable, Iterator
from typing import Any, get_args

import numpy as np
import soxr

from patchout.audio.decode import NOTHING, decode
from patchout.audio.levels import Meter
from patchout.audio.libav import IS_DAMAGED
from patchout.audio.pcm import CANCEL, MAX_RATE, MIN_RATE, Block, Channel, silence, too_loud
from patchout.audio.sources import Source, name_of
from patchout.errors import AudioError, CutError

__all__ = ["AudioError", "AudioWarning", "Channel", "Source", "Stream", "load", "name_of", "windows"]

BLOCK_S = 10.0
SOXR_SAMPLES = 16384  # at a time: more leaves the cache and takes twice as long
MAX_LEVEL = 1e12  # full scale is 1; filtering anything louder could leave float32


class AudioWarning(UserWarning):
    """The source is used, but a part could not be decoded, or it is silent or suspiciously loud."""


class Stream:
    """A source decoded, mixed to mono and resampled: float32 blocks `(samples,)` at `rate` Hz, iterated once.

    `start_s` and `end_s` (seconds) cut a segment; a block holds about `block_s` seconds; `channel` is one of
    the channels or the mean of all; the path "talk.mkv#a:1" names the second audio stream of talk.mkv.
    `source_rate` and `num_channels` (of the source) are 0 until the first block; `num_samples` (at `rate`),
    `duration_s`, `warning` (what is missing, silent or odd in the source, else None), `is_damaged` (sound is
    missing) and `silence` (why it is silent, else None) are complete after the last one. Iterating raises
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
        block_s: float | None = None,
    ) -> None:
        if not _is_rate(rate):
            raise ValueError(f"rate={rate!r} is not allowed: give whole Hz, {MIN_RATE} to {MAX_RATE}")
        if not 0 <= start_s < math.inf:
            raise ValueError(f"start_s={start_s} is not allowed: give 0 or more seconds")
        if end_s is not None and not start_s < end_s < math.inf:
            raise ValueError(f"end_s={end_s} is not allowed: give more than start_s={start_s}, or None")
        if channel not in get_args(Channel):
            raise ValueError(f"channel={channel!r} is not allowed: give {', '.join(get_args(Channel))}")
        self.name = name_of(source)
        self.rate = int(rate)
        self.source_rate = self.num_channels = self.num_samples = 0
        self.duration_s = self._channel_peak = 0.0
        self.is_damaged = False
        self.warning: str | None = None
        self.silence: str | None = None
        self.meter: Meter | None = None  # gets the channels as they are decoded, if it is set
        self._flaws: dict[str, list[tuple[float, float]]] = {}  # flaw -> where and how long, in seconds
        self._unread = [source]  # empty once it is read
        self._blocks: Iterator[np.ndarray] | None = None  # in the place of those decoded from the source
        self._start_s, self._end_s, self._channel = start_s, end_s, channel
        self._block_s = BLOCK_S if block_s is None else block_s

    def replace_blocks(self, blocks: Iterator[np.ndarray]) -> None:
        """Iterate over these blocks next, which somebody else reads from this stream."""
        self._blocks = blocks

    def __iter__(self) -> Iterator[np.ndarray]:
        if self._blocks is not None:
            blocks, self._blocks = self._blocks, None
            return blocks
        if not self._unread:
            raise RuntimeError(f"{self.name}: this stream was read already; make a new Stream")
        return self._gathered(self._unread.pop())

    def _gathered(self, source: Source) -> Generator[np.ndarray, None, None]:
        """Blocks of at least `block_s` seconds, counted."""
        parts: list[np.ndarray] = []
        size = 0
        with contextlib.closing(self._resampled(source)) as pieces:
            for piece in pieces:
                parts.append(piece)
                size += len(piece)
                if size >= self._block_s * self.rate:
                    self.num_samples += size
                    yield np.concatenate(parts)
                    parts, size = [], 0
        if size:
            self.num_samples += size
            yield np.concatenate(parts)

    def _resampled(self, source: Source) -> Generator[np.ndarray, None, None]:
        """The segment resampled to `rate`, in small pieces, some of them empty."""
        resampler: Any = None
        first, count = NOTHING, 0
        with contextlib.closing(self._sound(source)) as pieces:
            for piece in pieces:
                if self.source_rate == self.rate:
                    yield piece
                    continue
                if resampler is None:
                    resampler = soxr.ResampleStream(self.source_rate, self.rate, 1, "float32", quality="HQ")
                    first = piece[:1]
                for start in range(0, len(piece), SOXR_SAMPLES):
                    resampled = resampler.resample_chunk(piece[start : start + SOXR_SAMPLES])
                    count += len(resampled)
                    yield resampled
        if resampler is not None:
            tail = resampler.resample_chunk(NOTHING, last=True)
            yield tail if count + len(tail) else first  # less than a sample at the new rate is still a sound

    def _sound(self, source: Source) -> Generator[np.ndarray, None, None]:
        """The segment's samples, refused unless finite and in range; then `warning` and `silence`."""
        peak = 0.0
        with contextlib.closing(self._segment(source)) as pieces:
            for piece in pieces:
                low, high = piece.min(), piece.max()
                peak = max(peak, high, -low)
                if not -MAX_LEVEL < low <= high < MAX_LEVEL:  # NaN too
                    raise AudioError(
                        f"{self.name}: has samples that are NaN, infinite or beyond {MAX_LEVEL:g}, "
                        f"before {self._start_s + self.duration_s:.2f} s; export it again"
                    )
                yield piece
        if reason := silence(float(peak), self._channel_peak):
            self.silence = f"{self.name}: {reason}"
        if reason == CANCEL:  # something was there, and our mean has lost it
            self._flaws[reason] = []
        remarks = [_remark(text, places) for text, places in self._flaws.items()]
        self.is_damaged = self.is_damaged or any(IS_DAMAGED in flaw for flaw in self._flaws)
        if self.is_damaged:
            remarks.append(f"the {self.duration_s:.2f} s that can be decoded are used")
        if warning := "; ".join(filter(None, [*remarks, too_loud(float(peak))])):
            self.warning = f"{self.name}: {warning}"

    def _segment(self, source: Source) -> Generator[np.ndarray, None, None]:
        """The decoded samples from `start_s` to `end_s`; flaws within them are noted."""
        position = used = 0
        try:
            with contextlib.closing(decode(source, start_s=self._start_s, channel=self._channel)) as blocks:
                for block in blocks:
                    rate, start, samples = block[:3]
                    if not _is_rate(rate):
                        reason = f"says that its rate is {rate!r} Hz, {MIN_RATE} to {MAX_RATE} are allowed"
                        raise AudioError(f"{self.name}: {reason}; resample it")
                    self.source_rate = int(rate)
                    position = start + len(samples)
                    first = round(self._start_s * rate)
                    last = position if self._end_s is None else max(first + 1, round(self._end_s * rate))
                    piece = samples[max(0, first - start) : max(0, last - start)]
                    self._channel_peak = max(self._channel_peak, block.channel_peak)
                    self.num_channels = max(self.num_channels, block.num_channels)
                    is_inside = len(piece) or (not len(samples) and (start == 0 or first <= start <= last))
                    if block.flaw and is_inside:
                        self._note(block, len(piece))
                    if len(piece):
                        if self.meter and block.frames is not None and len(block.frames) == len(samples):
                            self.meter.add(block.frames[max(0, first - start) : max(0, last - start)])
                        used += len(piece)
                        self.duration_s = used / rate
                        yield piece
                    if position > last:
                        break
        except CutError as error:
            self._flaws.setdefault(str(error), [])
            self.is_damaged = True
        if not position:
            reason = "; ".join(self._flaws) or "holds no samples"
            raise AudioError(f"{self.name}: {reason}; nothing in it can be decoded")
        if not used:
            late = f"start_s={self._start_s} is not before its end at {position / self.source_rate:.2f} s"
            raise AudioError(f"{self.name}: {late}; start earlier")

    def _note(self, block: Block, num_samples: int) -> None:
        """Record the flaw of `num_samples` of a block, or of its position; one that goes on is one place."""
        places = self._flaws.setdefault(block.flaw, [])
        start_s, length_s = block.start / block.rate, num_samples / block.rate
        if places and num_samples and abs(sum(places[-1]) - start_s) < 1 / block.rate:
            places[-1] = (places[-1][0], places[-1][1] + length_s)
        elif block.start or num_samples:
            places.append((start_s, length_s))


def _remark(text: str, places: list[tuple[float, float]]) -> str:
    """A flaw with its total length and its places, for the warning."""
    if not places:
        return text
    length_s, first_s = sum(length_s for _, length_s in places), places[0][0]
    length = f"{length_s:.2f} s " if length_s else ""
    places_text = f"in {len(places)} places, the first " if len(places) > 1 else ""
    return f"{text} ({length}{places_text}at {first_s:.2f} s)"


def load(
    source: Source,
    rate: int = 32000,
    *,
    start_s: float = 0.0,
    end_s: float | None = None,
    channel: Channel = "mean",
) -> np.ndarray:
    """Decode a source, or its segment in seconds: float32 `(samples,)` at `rate` Hz, one channel or the mean.

    Raises AudioError or OSError that name the source; AudioWarning if a part of it cannot be decoded.
    """
    stream = Stream(source, rate, start_s=start_s, end_s=end_s, channel=channel)
    samples = np.concatenate(list(stream))
    if stream.warning:
        warnings.warn(stream.warning, AudioWarning, stacklevel=2)
    return samples


def windows(blocks: Iterable[np.ndarray], size: int, hop: int) -> Iterator[tuple[int, np.ndarray]]:
    """Sliding windows over a stream of `(samples,)` blocks: (start sample, window); bounded memory, unpadded.

    A stream of up to `size` samples is one window, as it is. A longer one gives full windows every `hop`
    samples and, if samples remain, one more that ends with the stream. `hop` is 1 to `size`.
    """
    if not 1 <= hop <= size:
        raise ValueError(f"hop={hop} is not allowed: give 1 to size={size} samples")
    parts: list[np.ndarray] = []
    first = end = start = 0  # in samples: where the buffered parts begin and end, and the next window begins
    for block in blocks:
        parts.append(block)
        end += len(block)
        if end < start + size:
            continue
        joined = np.concatenate(parts)
        while end >= start + size:
            yield start, joined[start - first : start - first + size]
            start += hop
        parts = [joined[start - hop - first :]]  # the last window stays: the final one may overlap it
        first = start - hop
    if start == 0 and end:
        yield 0, np.concatenate(parts)
    elif end - first > size:
        yield end - size, np.concatenate(parts)[-size:]


def _is_rate(rate: object) -> bool:
    is_range = isinstance(rate, int | np.integer) and MIN_RATE <= rate <= MAX_RATE
    return bool(is_range) and type(rate) is not bool

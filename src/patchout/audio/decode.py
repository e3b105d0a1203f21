"""Any sound source -> blocks of mono float32 samples at the source's own rate, in bounded memory.

libsndfile reads WAV, FLAC, Ogg, Opus, AIFF, CAF and the like, libav (PyAV) all other formats, and what
follows where libsndfile stops before the end. MP3 goes to libav: libsndfile guesses the length of an MP3
without a frame count from its first frames and stops there, and stops at the first damage in one that has a
count. The links of a chained Ogg are decoded one by one.
"""

import contextlib
from collections.abc import Generator, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import soundfile
import soxr

from patchout.audio.containers import Header, links, next_start, read_header
from patchout.audio.libav import IS_DAMAGED, UNKNOWN_RATE, decode_libav
from patchout.audio.live import LiveSource
from patchout.audio.pcm import MAX_RATE, MIN_RATE, Block, Channel, block_of
from patchout.audio.sources import Reader, Source, is_array, opened
from patchout.errors import AudioError, CutError

MAX_ARRAY_CHANNELS = 64  # a file may have more
READ_FRAMES = 8192  # small, because libsndfile drops the whole read in which an error lies
UNKNOWN_FRAMES = 2**62  # libsndfile says about 2**63 where the header does not, and then fails at the end
HOLE = "reports a hole"  # in libsndfile's log, for lost pages of an Ogg
NOTHING = np.zeros(0, np.float32)

T = TypeVar("T")
_Decoding = Generator[Block, None, T]  # blocks, then a result


def decode(source: Source, *, start_s: float = 0.0, channel: Channel = "mean") -> _Decoding[None]:
    """Decode a source into blocks in order; those before `start_s` (seconds) may be left out.

    All have the rate of the first; parts at another rate are resampled. Raises AudioError or OSError naming
    the source, and CutError after the last good block of a cut one.
    """
    if is_array(source):
        yield from _array_blocks(source, channel)
        return
    if isinstance(source, LiveSource):
        yield from _at_one_rate(source.blocks(channel))
        return
    with opened(source) as reader:
        try:
            with contextlib.closing(_link_blocks(reader, start_s, channel)) as blocks:
                yield from _at_one_rate(blocks)
        finally:
            if reader.error is not None:
                reason = f"{reader.title}: reading failed ({reader.error}); check the disk"
                raise OSError(reason) from reader.error


# ---- arrays


def _array_blocks(source: Any, channel: Channel) -> Iterator[Block]:
    """Blocks of (array, rate); the array: nested lists of numbers, a numpy array or a torch tensor."""
    if not isinstance(source, tuple) or len(source) != 2:
        raise AudioError("<array>: comes without its rate; give an array and its Hz as (array, rate)")
    if _is_number(source[0]) and not _is_number(source[1]):
        scipy = "of scipy's (samples, channels) array.T"
        raise AudioError(f"<array>: comes as (rate, array); give (array, rate), {scipy}")
    array, rate = _numpy(source[0]), _integer(source[1])
    is_long = array.dtype.kind in "iu" and array.dtype.itemsize > 4
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiu" or is_long:
        allowed = "floats (full scale 1) or integers of 8, 16 or 32 bits, (samples,) or (channels, samples)"
        raise AudioError(f"<array>: {array.dtype} {array.shape} is not sound; give {allowed}")
    if array.ndim == 2 and array.shape[0] > MAX_ARRAY_CHANNELS:
        channels = f"{array.shape[0]} channels, at most {MAX_ARRAY_CHANNELS} are allowed"
        raise AudioError(f"<array>: {channels}; give (channels, samples), perhaps array.T")
    span = int(array.max()) - int(array.min()) if array.dtype in (np.int32, np.uint32) and array.size else 0
    if 0 < span <= 2**16:  # a 65536th of what they can hold
        numbers = f"its {array.dtype} numbers span no more than {span}"
        raise AudioError(f"<array>: {numbers}; give those of 16 bits as int16")
    frames = np.atleast_2d(array).T if array.size else np.zeros((0, 1))
    for start in range(0, len(frames), READ_FRAMES):
        yield block_of(rate, start, frames[start : start + READ_FRAMES], channel)


def _numpy(array: Any) -> np.ndarray:
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "detach"):  # a torch tensor, on any device, with a gradient or without
        array = array.detach().cpu()
        array = array.float() if array.is_floating_point() else array
    try:
        return np.asarray(array)
    except ValueError as error:  # lists of different lengths
        raise AudioError(f"<array>: is no numpy array and cannot become one ({error}); give one") from error


def _is_number(value: Any) -> bool:
    return not isinstance(value, list | tuple | str) and getattr(value, "ndim", 0) == 0


def _integer(rate: Any) -> Any:
    """A whole number of Hz of any type as an int; anything else unchanged, to be refused."""
    try:
        return int(rate) if float(rate).is_integer() and not isinstance(rate, bool | str) else rate
    except (TypeError, ValueError, OverflowError):
        return rate


# ---- files


class _Stop(NamedTuple):
    """How far libsndfile decoded a file, and why it stopped there."""

    frames: int = 0
    rate: int = 1
    promised: int = 0  # frames, by the header
    reason: str = ""  # why it stopped before the end
    is_end: bool = False
    next_stream: int = 0  # byte at which another stream begins; 0: none


def _link_blocks(reader: Reader, start_s: float, channel: Channel) -> _Decoding[None]:
    """The blocks of all streams in a file, such as the links of a chained Ogg; each may have its own rate."""
    header = read_header(reader, reader.size)
    parts = links(reader, reader.size) if header.is_chained else [(0, reader.size)]
    is_chained = len(parts) > 1
    while parts:
        (start, end), *parts = parts
        if is_chained:
            reader.narrow(start, end)
            header, start_s = read_header(reader, reader.size), 0.0
        try:
            next_stream = yield from _file_blocks(reader, header, start_s, channel)
        except (CutError, AudioError) as error:
            if not parts:
                raise
            reason = str(error).removeprefix(f"{reader.title}: ")
            yield Block(UNKNOWN_RATE, 0, NOTHING, f"has a part that {reason}")
            continue
        if next_stream:
            parts, is_chained = [(start + next_stream, end), *parts], True


def _file_blocks(reader: Reader, header: Header, start_s: float, channel: Channel) -> _Decoding[int]:
    """The blocks of one stream: by libsndfile, then by libav where it stops; returns `_Stop.next_stream`."""
    stop = _Stop()
    reader.correct(header)
    if not (header.needs_libav or header.is_chained or reader.stream is not None):
        stop = yield from _sndfile_blocks(reader, header, start_s, channel)
    end_s = stop.frames / stop.rate
    if stop.reason:
        yield Block(stop.rate, stop.frames, NOTHING, stop.reason)
    if not stop.is_end:
        end_s = yield from _libav_blocks(reader, stop, header.promised_s, channel)
    if header.share > 1:
        raise CutError(f"is cut short, its header promises {header.share * end_s:.2f} s")
    if header.is_cut and not stop.next_stream:
        raise CutError("is cut short, its end is not there")
    return stop.next_stream


def _sndfile_blocks(reader: Reader, header: Header, start_s: float, channel: Channel) -> _Decoding[_Stop]:
    """What libsndfile decodes; no block of a file that it cannot read."""
    reader.seek(0)
    rate, position, promised, failure = 1, 0, 0, IS_DAMAGED
    try:
        with soundfile.SoundFile(reader, **dict(header.raw)) as sound:
            if sound.subtype.startswith("MPEG") or sound.frames >= UNKNOWN_FRAMES:
                return _Stop()
            rate, is_counted = sound.samplerate, sound.format in ("FLAC", "OGG")
            promised = sound.frames if is_counted else 0
            if sound.subtype == "OPUS":  # libsndfile 1.2.2 refuses packets of silence: libav is the judge
                failure = ""
            if start_s and sound.seekable():
                position = sound.seek(min(round(start_s * rate), sound.frames))
                yield Block(rate, position, NOTHING)  # the end of the sound if nothing follows
            sound.seekable = lambda: False  # else soundfile seeks after each read, a search in a FLAC
            while count := min(READ_FRAMES, max(0, sound.frames - position)):
                frames = sound.read(count, dtype="float32", always_2d=True)
                if not len(frames):
                    break
                if is_counted and HOLE in sound.extra_info:  # libsndfile goes on as if nothing were missing
                    return _Stop(position, rate, promised, IS_DAMAGED)
                yield block_of(rate, position, frames, channel)
                position += len(frames)
    except soundfile.SoundFileError:
        return _Stop(position, rate, promised, failure if position else "")
    if position < promised:
        return _Stop(position, rate, promised, IS_DAMAGED)
    next_stream = next_start(reader, reader.size) if is_counted else 0
    return _Stop(position, rate, is_end=True, next_stream=next_stream)


def _libav_blocks(reader: Reader, stop: _Stop, promised_s: float, channel: Channel) -> _Decoding[float]:
    """What libav decodes beyond the frame at which libsndfile stopped; returns the total seconds."""
    end_s, count = 0.0, 0
    promised_s = stop.promised / stop.rate or promised_s
    try:
        for block in decode_libav(reader, channel, promised_s=promised_s):
            if block.start < stop.frames and len(block.samples) and block.rate != stop.rate:
                break
            end_s = (block.start + len(block.samples)) / block.rate
            skip = max(0, stop.frames - block.start)
            if not skip or skip < len(block.samples):
                count += len(block.samples) - skip
                yield block._replace(start=block.start + skip, samples=block.samples[skip:])
    except AudioError:
        if not stop.frames:
            raise
    if stop.frames and not count:
        raise CutError(stop.reason or IS_DAMAGED)
    return max(end_s, stop.frames / stop.rate)


def _at_one_rate(blocks: Iterable[Block]) -> Iterator[Block]:
    """All blocks at the rate of the first one that holds samples; others are resampled."""
    rate = current = position = 0
    resampler: Any = None
    try:
        for block in blocks:
            samples, size = block.samples, len(block.samples)
            if not rate:
                position, rate = block.start, block.rate if size else 0
                current = rate
            if size and block.rate != current:
                yield from (tail := _flushed(resampler, rate, position))
                position += sum(len(part.samples) for part in tail)
                resampler = _resampler(block.rate, rate)
                current = block.rate
                yield Block(rate, position, NOTHING, f"changes to {current} Hz")
            if resampler is not None:
                samples = resampler.resample_chunk(samples)
            if samples is not block.samples or block.start != position or block.rate != rate:
                block = block._replace(rate=rate or block.rate, start=position, samples=samples)
            yield block
            position += len(samples)
    except CutError:
        yield from _flushed(resampler, rate, position)
        raise
    yield from _flushed(resampler, rate, position)


def _resampler(rate: int, to_rate: int) -> Any:
    """A resampler from a part's rate to the first part's; None if they are equal."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise CutError(f"changes to {rate} Hz, which cannot be")
    return None if rate == to_rate else soxr.ResampleStream(rate, to_rate, 1, dtype="float32", quality="HQ")


def _flushed(resampler: Any, rate: int, position: int) -> list[Block]:
    """The last samples of a resampler, delayed by its filter."""
    return [] if resampler is None else [Block(rate, position, resampler.resample_chunk(NOTHING, last=True))]

"""Any sound source -> blocks of mono float32 samples at the source's own rate, in bounded memory.

libsndfile reads WAV, FLAC, Ogg, Opus, AIFF, CAF and the like, libav (PyAV) all the rest. MP3 and chained Ogg go to
libav although libsndfile knows them: it guesses the length of an MP3 without a frame count from the first frames and
stops there, it stops at the first damage in one that has a count, and at the end of the first link of a chained Ogg.
"""

import contextlib
import io
import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, runtime_checkable

import numpy as np
import soundfile

from patchout.pcm import Block, Channel, mono

if TYPE_CHECKING:
    import av.container

MAX_ARRAY_CHANNELS = 64  # a file may have more
OGG_PAGE_BYTES = 65307  # at most
READ_FRAMES = 8192  # small, because libsndfile drops the whole read in which an error lies
JOINED_SAMPLES = 65536  # libav gives pieces of about 1000, and numpy costs nearly as much for one as for sixty
SHORTENED = re.compile(r"^ ?(?:data|SSND) : (\d+) \(should be ([1-9]\d*)\)", re.MULTILINE)
STREAMED_BYTES = 2**31 - 2**16  # or more: in a header that was written to a pipe, before the length was known
UNKNOWN_FRAMES = 2**62  # libsndfile says about 2**63 where the header does not, and then fails at the end
LENGTH_TOLERANCE_S = 0.2  # encoder delay and padding make headers this inexact
STATES_LENGTH = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "asf", "flac")  # libav estimates it for the others


@runtime_checkable
class BinaryFile(Protocol):
    """The part of `typing.BinaryIO` that decoding needs; `io.BytesIO` has no more than this."""

    def read(self, size: int, /) -> bytes: ...

    def seek(self, offset: int, whence: int = 0, /) -> object: ...

    def tell(self) -> int: ...


Source = str | os.PathLike[str] | bytes | BinaryFile | tuple[np.ndarray, int]


class AudioError(ValueError):
    """A source without usable sound; the message is `<name>: <reason>[; what to do]`."""


class CutError(Exception):
    """Decoding ended before the sound did; what came before is good."""


def name_of(source: Source) -> str:
    """What messages call a source: its path as given, the file object's name, `<bytes>`, `<file>` or `<array>`."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes):
        return "<bytes>"
    if isinstance(source, tuple | np.ndarray):
        return "<array>"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) and name else "<file>"


def decode(source: Source, *, start_s: float = 0.0, channel: Channel = "mean") -> Generator[Block, None, None]:
    """Yield the blocks of a source in order; those before `start_s` (seconds) may be left out.

    Raises AudioError or OSError naming the source, and CutError after the last good block of a damaged one.
    """
    if isinstance(source, tuple | np.ndarray):
        yield from _array_blocks(source, channel)
        return
    with _opened(source) as reader:
        try:
            if _needs_libav(reader) or not (yield from _sndfile_blocks(reader, start_s, channel)):
                yield from _libav_blocks(reader, _xing_samples(reader), channel)
        finally:
            if reader.error is not None:
                raise OSError(f"{reader.title}: reading failed ({reader.error}); check the disk") from reader.error


def _array_blocks(source: tuple[np.ndarray, int] | np.ndarray, channel: Channel) -> Iterator[Block]:
    if not isinstance(source, tuple) or len(source) != 2 or not isinstance(source[0], np.ndarray):
        raise AudioError("<array>: comes without its rate; give a numpy array and its Hz as (array, rate)")
    array, rate = source
    if array.ndim not in (1, 2) or array.dtype.kind not in "fiu":
        shapes = "(samples,) or (channels, samples)"
        raise AudioError(f"<array>: {array.dtype} {array.shape} is not sound; give floats or integers, {shapes}")
    if array.ndim == 2 and array.shape[0] > MAX_ARRAY_CHANNELS:
        channels = f"{array.shape[0]} channels, at most {MAX_ARRAY_CHANNELS} are allowed"
        raise AudioError(f"<array>: {channels}; give (channels, samples), perhaps array.T")
    frames = np.atleast_2d(array).T if array.size else np.zeros((0, 1))
    for start in range(0, len(frames), READ_FRAMES):
        yield Block(rate, start, mono(frames[start : start + READ_FRAMES], channel))


class _Reader:
    """A binary file as both decoders read it: no call raises, and no read returns more than was asked for.

    libsndfile cannot pass an exception on, so a failure is kept in `error` and looks like the end of the file.
    It has no `name`: libav would take that for a URL and guess the format from its ending.
    """

    def __init__(self, file: BinaryFile, title: str) -> None:
        self.title = title
        self.error: OSError | None = None
        self._file = file
        file.seek(0, os.SEEK_END)
        self.size = file.tell()
        file.seek(0)
        if not isinstance(file.read(0), bytes):
            raise TypeError("it is open as text")

    def read(self, size: int) -> bytes:
        try:
            return self._file.read(size)[:size]
        except OSError as error:
            self.error = error
            return b""

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_CUR: self.tell(), os.SEEK_END: self.size}.get(whence, 0)
        self._file.seek(min(max(origin + offset, 0), self.size))  # a damaged header asks for any place
        return self.tell()


@contextlib.contextmanager
def _opened(source: str | os.PathLike[str] | bytes | BinaryFile) -> Iterator[_Reader]:
    """Open a path, bytes or a file object from its start, and close what was opened here."""
    name = name_of(source)
    with contextlib.ExitStack() as stack:
        if isinstance(source, bytes):
            file: BinaryFile = io.BytesIO(source)
        elif isinstance(source, str | os.PathLike):
            file = stack.enter_context(_open_path(Path(source), name))
        else:
            file = source
        try:
            reader = _Reader(file, name)
        except (AttributeError, TypeError, ValueError, OSError) as error:
            what = f"a {type(source).__name__} that cannot be read ({error})"
            allowed = 'a path, bytes, a seekable file opened with "rb", or (array, rate)'
            raise AudioError(f"{name}: {what}; give {allowed}") from error
        if reader.size == 0:
            raise AudioError(f"{name}: is an empty file; check how it was made or copied")
        yield reader


def _open_path(path: Path, name: str) -> BinaryIO:
    try:
        if path.is_dir():  # Windows would call it a lack of permission
            raise IsADirectoryError
        if path.exists() and not path.is_file():
            raise AudioError(f"{name}: is not a regular file; copy what it gives into one")
        return path.open("rb")
    except OSError as error:
        reasons = {
            FileNotFoundError: "is not there; check the path",
            IsADirectoryError: "is a folder; name a sound file in it",
            PermissionError: "may not be read; change its permissions",
        }
        reason = reasons.get(type(error), f"cannot be opened ({error.strerror}); check the path")
        raise type(error)(f"{name}: {reason}") from error


def _peek(reader: _Reader, start: int, size: int) -> bytes:
    reader.seek(start)
    return reader.read(size)


def _needs_libav(reader: _Reader) -> bool:
    """Tell MPEG, and Ogg whose first and last page belong to different streams, by the bytes."""
    head = _peek(reader, 0, OGG_PAGE_BYTES)
    tail = _peek(reader, reader.size - OGG_PAGE_BYTES, OGG_PAGE_BYTES)
    last = tail.rfind(b"OggS")
    is_chained = head.startswith(b"OggS") and last >= 0 and head[14:18] != tail[last + 14 : last + 18]
    return is_chained or head.startswith(b"ID3") or head[:2] >= b"\xff\xe0"


def _xing_samples(reader: _Reader) -> int:
    """Return how many samples the first frame of an MP3 promises, 0 if it does not say."""
    tag = _peek(reader, 0, 10)
    tag_bytes = sum((byte & 127) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=False))
    frame = _peek(reader, 10 + tag_bytes if tag.startswith(b"ID3") else 0, 256)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if frame[:1] != b"\xff" or not 0 <= at <= len(frame) - 12 or not frame[at + 7] & 1:
        return 0
    return int.from_bytes(frame[at + 8 : at + 12], "big") * (1152 if frame[1] & 8 else 576)


def _sndfile_blocks(reader: _Reader, start_s: float, channel: Channel) -> Generator[Block, None, bool]:
    """Decode with libsndfile; return whether it could, else no sample came."""
    reader.seek(0)
    with contextlib.ExitStack() as stack:
        position = first = 0
        try:
            sound = stack.enter_context(soundfile.SoundFile(reader))
            rate = sound.samplerate
            if sound.subtype.startswith("MPEG") or sound.frames >= UNKNOWN_FRAMES:
                return False
            if start_s and sound.seekable():
                position = first = sound.seek(min(round(start_s * rate), sound.frames))
                yield Block(rate, first, np.zeros(0, np.float32))  # shows where the sound ends if nothing follows
            while len(frames := sound.read(READ_FRAMES, dtype="float32", always_2d=True)):
                yield Block(rate, position, mono(frames, channel))
                position += len(frames)
        except soundfile.SoundFileError as error:
            if position == first:
                return False
            raise CutError(f"is damaged at {position / rate:.2f} s ({error})") from error
        if first < position < (promised := _promised_frames(sound)):
            raise CutError(f"is cut short, its header promises {promised / rate:.2f} s")
        return position > 0


def _promised_frames(sound: soundfile.SoundFile) -> int:
    """Return how many frames the header promises: of a WAV or AIFF cut short libsndfile says so in its log alone."""
    cut = SHORTENED.search(sound.extra_info)
    promised, there = map(int, cut.groups()) if cut else (1, 1)
    return sound.frames * promised // there if promised < STREAMED_BYTES else sound.frames


def _libav_blocks(reader: _Reader, promised_samples: int, channel: Channel) -> Iterator[Block]:
    """Decode the main audio stream with libav, which may open nothing but this reader."""
    import av

    reader.seek(0)
    try:
        container = av.open(reader, "r", options={"protocol_whitelist": "none"}, metadata_errors="replace")
    except av.FFmpegError as error:
        hint = "give a sound file, or export it again as WAV or FLAC"
        raise AudioError(f"{reader.title}: is not audio, or is damaged ({error.strerror}); {hint}") from error
    with container:
        stream = container.streams.best("audio")
        if not isinstance(stream, av.AudioStream):
            raise AudioError(f"{reader.title}: has no audio stream; give a file with sound")
        rate, position = 0, 0
        for frame in _libav_frames(container, stream):
            rate = rate or frame.sample_rate
            if frame.sample_rate != rate:
                raise CutError(f"changes from {rate} to {frame.sample_rate} Hz at {position / rate:.2f} s")
            samples = frame.to_ndarray()
            samples = samples.T if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels)
            yield Block(rate, position, mono(samples, channel))
            position += len(samples)
        promised = promised_samples or _stated_s(container, stream) * rate
        if position and position < promised - LENGTH_TOLERANCE_S * rate:
            raise CutError(f"is cut short, its header promises {promised / rate:.2f} s")


def _libav_frames(container: "av.container.InputContainer", stream: "av.AudioStream") -> Iterator["av.AudioFrame"]:
    """Yield what decodes, in joined frames of one kind, without damaged packets; CutError at the end says so."""
    import av

    fifo, damaged, reason = av.AudioFifo(), 0, ""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            reason = f"is damaged ({error.strerror})"
            break
        if packet is None:
            break
        try:
            frames = packet.decode()
        except av.FFmpegError:
            damaged += 1
            continue
        for frame in frames:
            frame.pts = None  # time stamps of damaged files jump, and the queue would refuse them
            try:
                fifo.write(frame)
            except ValueError:  # another rate, format or number of channels
                yield from filter(None, [fifo.read()])
                fifo = av.AudioFifo()
                fifo.write(frame)
        if fifo.samples >= JOINED_SAMPLES:
            yield from filter(None, [fifo.read()])
    yield from filter(None, [fifo.read()])
    if reason or damaged:
        raise CutError(reason or f"is damaged, {damaged} of its packets cannot be decoded")


def _stated_s(container: "av.container.InputContainer", stream: "av.AudioStream") -> float:
    """Return the length that the file's header states in seconds, 0 if it states none."""
    if container.format.name not in STATES_LENGTH:
        return 0.0
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:  # else another stream may be the longer one
        return container.duration / 1e6  # libav counts in microseconds
    return 0.0

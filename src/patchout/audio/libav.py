"""Decoding with libav (PyAV) on a player's clock: gaps between time stamps are filled with silence."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from patchout.audio.containers import are_all
from patchout.audio.pcm import Block, Channel, block_of
from patchout.audio.sources import Reader
from patchout.errors import AudioError, CutError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

JOINED_SAMPLES = 65536  # libav's frames have about 1000: numpy costs nearly as much for one as for sixty
LENGTH_TOLERANCE_S = 0.2  # encoder delay and padding make headers this inexact
# formats whose header states the length: libav estimates it for the others
STATES_LENGTH = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "asf", "flac", "tta", "wv", "nistsphere")
GAP_S = (
    0.1  # libav's own resampler also fills gaps from here on: time stamps are rounded, or wall-clock times
)
EXACT_GAP_S = {"flac": 0.001, "ogg": 0.02}  # of formats that count samples
HAS_NO_CLOCK = ("mp3", "aac", "ac3", "eac3")  # libav counts their frames
UNKNOWN_RATE = 48000  # Hz, of a remark without samples
BEHIND_S = 1.0  # of sound whose time stamps lie behind the clock: they have restarted
MAX_SILENCE_S = 600.0  # in total beyond the end that the container states: damaged time stamps ask for years
IS_DAMAGED = "is damaged"
HAS_GAP = "has no sound where its time stamps leave a gap, which is silent here"


class _Silence(NamedTuple):
    """Samples of silence that fill a gap, with its flaw; without samples only the flaw."""

    flaw: str
    rate: int
    num_samples: int = 0

    def blocks(self, start: int) -> Iterator[Block]:
        """The silence from sample `start` on, in blocks."""
        for offset in range(0, max(1, self.num_samples), JOINED_SAMPLES):
            size = min(self.num_samples - offset, JOINED_SAMPLES)
            yield Block(self.rate, start + offset, np.zeros(size, np.float32), self.flaw)


def decode_libav(reader: Reader, channel: Channel, *, promised_s: float) -> Iterator[Block]:
    """Decode the reader's audio stream, else the main one, with libav, which may open no other file.

    Blocks may change their rate; `start` counts samples of whatever rate. Damaged parts have flaws in their
    blocks; CutError at the end: the sound ends before `promised_s` (0: unknown) or the header's own length.
    """
    import av

    reader.seek(0)
    try:
        container = av.open(reader, "r", options={"protocol_whitelist": "none"}, metadata_errors="replace")
    except av.FFmpegError as error:
        hint = "give a sound file, or export it again as WAV or FLAC"
        raise AudioError(f"{reader.title}: is not audio, or is damaged ({error.strerror}); {hint}") from error
    with container:
        stream, remark = _choose(container, reader)
        position, position_s, reason = 0, 0.0, ""
        if remark:
            yield Block(UNKNOWN_RATE, 0, np.zeros(0, np.float32), remark)
        try:
            for piece in _on_clock(reader, container, stream):
                if isinstance(piece, _Silence):
                    blocks = piece.blocks(position)
                else:
                    pcm, num_channels = piece.to_ndarray(), piece.layout.nb_channels
                    pcm = pcm.T if piece.format.is_planar else pcm.reshape(-1, num_channels)
                    blocks = iter([block_of(piece.sample_rate, position, pcm, channel)])
                for block in blocks:
                    yield block
                    position += len(block.samples)
                    position_s += len(block.samples) / block.rate
        except av.FFmpegError as error:
            reason = f"{IS_DAMAGED} ({error.strerror})"
        promised_s = promised_s or _stated_s(container, stream)
        if position and position_s < promised_s - LENGTH_TOLERANCE_S:
            raise CutError(f"is cut short, its header promises {promised_s:.2f} s")
        if reason:
            raise CutError(reason)


def _choose(container: "InputContainer", reader: Reader) -> tuple["av.AudioStream", str]:
    """The reader's audio stream or the main one, and a remark where there are several to choose from."""
    import av

    count, number = len(container.streams.audio), reader.stream
    if number is not None:
        if number >= count:
            present = ", ".join(f"a:{index}" for index in range(count)) or "none"
            raise AudioError(f"{reader.title}: has no audio stream a:{number}; it has {present}")
        return container.streams.audio[number], ""
    best = container.streams.best("audio")
    if not isinstance(best, av.AudioStream):
        raise AudioError(f"{reader.title}: has no audio stream; give a file with sound")
    index = container.streams.audio.index(best)
    hint = f'a:{index} is used, name another as in "talk.mkv#a:{int(index == 0)}"'
    return best, f"holds {count} audio streams: {hint}" if count > 1 else ""


class _Clock:
    """A player's clock: compares time stamps with the samples played so far, and finds gaps."""

    def __init__(self, container: "InputContainer", stream: "av.AudioStream") -> None:
        self._unit_s = float(stream.time_base or 0)
        self._tolerance_s = EXACT_GAP_S.get(container.format.name, GAP_S)
        begins_s = (container.start_time or 0) / 1e6  # libav counts in microseconds
        self._end_s = begins_s + (container.duration or 0) / 1e6 + 1.0
        kinds = [video.disposition for video in container.streams.video]
        has_video = not all(kind & type(kind).attached_pic for kind in kinds)  # a cover is none
        # a lone stream begins at once, whatever its first time stamp
        has_zero = has_video or len(container.streams.audio) > 1 or container.format.name in EXACT_GAP_S
        self._next_s: float | None = begins_s if has_zero else None
        self._is_first, self._behind_s, self._filled_s = True, 0.0, 0.0

    def gap(self, pts: int | None, num_samples: int, rate: int) -> _Silence | None:
        """The silence before a frame, None without a gap; the clock moves past the frame."""
        length_s = num_samples / rate
        at_s = pts * self._unit_s if pts is not None else self._next_s or 0.0
        expected_s = at_s if self._next_s is None else self._next_s
        gap_s, is_first = at_s - expected_s, self._is_first
        self._next_s, self._is_first = expected_s + length_s, False
        if gap_s < self._tolerance_s:
            self._behind_s = self._behind_s + length_s if gap_s < -self._tolerance_s else 0.0
            if self._behind_s > BEHIND_S or is_first:
                self._next_s, self._behind_s = at_s + length_s, 0.0
            return None
        self._next_s, self._behind_s = at_s + length_s, 0.0
        self._filled_s += gap_s
        if at_s > self._end_s and self._filled_s > MAX_SILENCE_S:
            self._filled_s -= gap_s
            jump = f"has time stamps that jump by {gap_s:.2f} s"
            return _Silence(f"{jump}, too far to be filled with silence", rate)
        return _Silence("" if is_first else HAS_GAP, rate, round(gap_s * rate))


def _on_clock(
    reader: Reader, container: "InputContainer", stream: "av.AudioStream"
) -> Iterator["av.AudioFrame | _Silence"]:
    """The decoded frames, joined while their format stays; silence in gaps, flaws of damaged packets."""
    import av

    fifo = av.AudioFifo()
    clock = None if container.format.name in HAS_NO_CLOCK else _Clock(container, stream)
    packets = container.demux(stream)
    pages: list[int] = []  # of an Ogg, since its last gap
    end: av.FFmpegError | None = None
    while end is None:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            end = error
            continue
        if packet is None:
            break
        try:
            frames = packet.decode()
        except av.FFmpegError:
            yield from _flushed(fifo)
            fifo = av.AudioFifo()
            yield _Silence(IS_DAMAGED, UNKNOWN_RATE)
            continue
        if container.format.name == "ogg" and packet.pos is not None and packet.pos not in pages[-1:]:
            pages.append(packet.pos)
        for frame in frames:
            silence = clock and clock.gap(frame.pts, frame.samples, frame.sample_rate)
            if silence and not (pages and are_all(reader, pages)):
                pages = pages[-1:]
                yield from _flushed(fifo)
                fifo = av.AudioFifo()
                yield silence
            frame.pts = None  # time stamps of damaged files jump, and the queue would refuse them
            try:
                fifo.write(frame)
            except ValueError:  # another rate, format or number of channels
                yield from _flushed(fifo)
                fifo = av.AudioFifo()
                fifo.write(frame)
        if fifo.samples >= JOINED_SAMPLES:
            yield from _flushed(fifo)
    yield from _flushed(fifo)
    if end is not None:
        raise end


def _flushed(fifo: "av.AudioFifo") -> list["av.AudioFrame"]:
    """All samples of a queue as one frame, none of an empty one."""
    frame = fifo.read()
    return [] if frame is None else [frame]


def _stated_s(container: "InputContainer", stream: "av.AudioStream") -> float:
    """Length in seconds that the file's header states, 0 if it states none."""
    if container.format.name not in STATES_LENGTH:
        return 0.0
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:  # of several, another may be longer
        return (container.duration - max(0, container.start_time or 0)) / 1e6
    return 0.0

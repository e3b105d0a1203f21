"""What libav (PyAV) decodes, on the clock of a player: silence where the time stamps leave a gap."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from patchout.audio.containers import BinaryFile, are_all
from patchout.audio.pcm import Block, Channel, block_of
from patchout.errors import AudioError, CutError

if TYPE_CHECKING:
    import av.container

JOINED_SAMPLES = (
    65536  # libav gives pieces of about 1000, and numpy costs nearly as much for one as for sixty
)
LENGTH_TOLERANCE_S = 0.2  # encoder delay and padding make headers this inexact
STATES_LENGTH = (  # libav estimates it for the others
    *("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "asf", "flac", "tta", "wv", "nistsphere"),
)
GAP_S = (
    0.1  # from here on libav's own resampler fills gaps, too: time stamps are rounded, or read off a clock
)
EXACT_GAP_S = {"flac": 0.001, "ogg": 0.02}  # of formats that count samples
HAS_NO_CLOCK = ("mp3", "aac", "ac3", "eac3")  # libav counts their frames
UNKNOWN_RATE = 48000  # Hz, of a remark without samples
BEHIND_S = 1.0  # of sound whose time stamps lie behind the clock: they have started anew
MAX_SILENCE_S = 600.0  # in all, beyond the end that the container states: damaged time stamps ask for years
IS_DAMAGED = "is damaged"
HAS_GAP = "has no sound where its time stamps leave a gap, which is silent here"


class _Silence(NamedTuple):
    """So many samples of silence, and why; none: only why."""

    why: str
    rate: int
    num_samples: int = 0

    def blocks(self, start: int) -> Iterator[Block]:
        """The silence from a sample on, in pieces."""
        for done in range(0, max(1, self.num_samples), JOINED_SAMPLES):
            size = min(self.num_samples - done, JOINED_SAMPLES)
            yield Block(self.rate, start + done, np.zeros(size, np.float32), self.why)


def decode_libav(
    file: BinaryFile, title: str, *, channel: Channel, stream: int | None = None, promised_s: float = 0.0
) -> Iterator[Block]:
    """Decode an audio stream, the main one by default, with libav, which may open nothing but this file.

    Blocks may change their rate on the way; `start` counts samples of whatever rate. What is wrong with damaged parts
    is in the blocks; CutError at the end says that the sound ends before `promised_s` or the header's own length.
    """
    import av

    file.seek(0)
    try:
        container = av.open(file, "r", options={"protocol_whitelist": "none"}, metadata_errors="replace")
    except av.FFmpegError as error:
        hint = "give a sound file, or export it again as WAV or FLAC"
        raise AudioError(f"{title}: is not audio, or is damaged ({error.strerror}); {hint}") from error
    with container:
        chosen, remark = _choose(container, stream, title)
        position, position_s, reason = 0, 0.0, ""
        if remark:
            yield Block(UNKNOWN_RATE, 0, np.zeros(0, np.float32), remark)
        try:
            for piece in _on_clock(file, container, chosen):
                if isinstance(piece, _Silence):
                    blocks = piece.blocks(position)
                else:
                    frames = piece.to_ndarray()
                    frames = (
                        frames.T if piece.format.is_planar else frames.reshape(-1, piece.layout.nb_channels)
                    )
                    blocks = iter([block_of(piece.sample_rate, position, frames, channel)])
                for block in blocks:
                    yield block
                    position += len(block.samples)
                    position_s += len(block.samples) / block.rate
        except av.FFmpegError as error:
            reason = f"{IS_DAMAGED} ({error.strerror})"
        promised_s = promised_s or _stated_s(container, chosen)
        if position and position_s < promised_s - LENGTH_TOLERANCE_S:
            raise CutError(f"is cut short, its header promises {promised_s:.2f} s")
        if reason:
            raise CutError(reason)


def _choose(
    container: "av.container.InputContainer", number: int | None, title: str
) -> tuple["av.AudioStream", str]:
    """An audio stream, and what to say where there are others."""
    import av

    count = len(container.streams.audio)
    if number is not None:
        if number >= count:
            have = f"it has {', '.join(f'a:{place}' for place in range(count)) or 'none'}"
            raise AudioError(f"{title}: has no audio stream a:{number}; {have}")
        return container.streams.audio[number], ""
    best = container.streams.best("audio")
    if not isinstance(best, av.AudioStream):
        raise AudioError(f"{title}: has no audio stream; give a file with sound")
    place = container.streams.audio.index(best)
    others = f'a:{place} is used, name another as in "talk.mkv#a:{int(place == 0)}"'
    return best, f"holds {count} audio streams: {others}" if count > 1 else ""


class _Clock:
    """Where a player's clock stands before the next frame."""

    def __init__(self, container: "av.container.InputContainer", stream: "av.AudioStream") -> None:
        self._unit_s = float(stream.time_base or 0)
        self._tolerance_s = EXACT_GAP_S.get(container.format.name, GAP_S)
        begins_s = (container.start_time or 0) / 1e6  # libav counts in microseconds
        self._end_s = begins_s + (container.duration or 0) / 1e6 + 1.0
        pictures = [every for every in container.streams.video if not _is_cover(every)]
        # with nothing beside it, a sound begins at once, wherever its clock stands
        has_zero = pictures or len(container.streams.audio) > 1 or container.format.name in EXACT_GAP_S
        self._next_s: float | None = begins_s if has_zero else None
        self._is_first, self._behind_s, self._filled_s = True, 0.0, 0.0

    def gap(self, pts: int | None, num_samples: int, rate: int) -> _Silence | None:
        """The silence before a frame, if there is some; the frame counts as played."""
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
            return _Silence(
                f"has time stamps that jump by {gap_s:.2f} s, too far to be filled with silence", rate
            )
        return _Silence("" if is_first else HAS_GAP, rate, round(gap_s * rate))


def _is_cover(stream: "av.VideoStream") -> bool:
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def _on_clock(
    file: BinaryFile, container: "av.container.InputContainer", stream: "av.AudioStream"
) -> Iterator["av.AudioFrame | _Silence"]:
    """Yield what decodes, in joined frames of one kind, with the silence between them and what is damaged."""
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
            yield from _rest(fifo)
            fifo = av.AudioFifo()
            yield _Silence(IS_DAMAGED, UNKNOWN_RATE)
            continue
        if container.format.name == "ogg" and packet.pos is not None and packet.pos not in pages[-1:]:
            pages.append(packet.pos)
        for frame in frames:
            silence = clock and clock.gap(frame.pts, frame.samples, frame.sample_rate)
            if silence and not (pages and are_all(file, pages)):
                pages = pages[-1:]
                yield from _rest(fifo)
                fifo = av.AudioFifo()
                yield silence
            frame.pts = None  # time stamps of damaged files jump, and the queue would refuse them
            try:
                fifo.write(frame)
            except ValueError:  # another rate, format or number of channels
                yield from _rest(fifo)
                fifo = av.AudioFifo()
                fifo.write(frame)
        if fifo.samples >= JOINED_SAMPLES:
            yield from _rest(fifo)
    yield from _rest(fifo)
    if end is not None:
        raise end


def _rest(fifo: "av.AudioFifo") -> Iterator["av.AudioFrame"]:
    """All samples of a queue."""
    frame = fifo.read()
    if frame is not None:
        yield frame


def _stated_s(container: "av.container.InputContainer", stream: "av.AudioStream") -> float:
    """Return the length that the file's header states in seconds, 0 if it states none."""
    if container.format.name not in STATES_LENGTH:
        return 0.0
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if (
        container.duration is not None and len(container.streams) == 1
    ):  # else another stream may be the longer one
        return (container.duration - max(0, container.start_time or 0)) / 1e6
    return 0.0

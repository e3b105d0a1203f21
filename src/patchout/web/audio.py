"""Sound and pictures for the browser: a decoded WAV of known length, in byte ranges; PNG of a log-mel."""

import io
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from patchout.audio.containers import read_header
from patchout.audio.sources import opened
from patchout.audio.stream import Stream
from patchout.errors import AudioError

NATIVE = {".wav", ".mp3", ".flac", ".ogg", ".oga", ".opus", ".m4a", ".webm", ".weba"}  # for a browser to try
RATE = 32_000  # Hz, of decoded sound: 18 hours fit into a WAV
HEADER_BYTES = 44
MAX_BYTES = 2**32 - 1
COLORMAP = "magma"


def length_s(path: Path) -> float:
    """The length of a sound by its header, for one that was not decoded yet; AudioError without one."""
    import av
    import soundfile

    with opened(path) as reader:
        header = read_header(reader, reader.size)
        reader.correct(header)
        with suppress(soundfile.SoundFileError), soundfile.SoundFile(reader, **dict(header.raw)) as sound:
            return sound.frames / sound.samplerate
    try:
        with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
            if container.duration:
                return container.duration / 1e6
    except av.FFmpegError as error:
        raise AudioError(f"{path.name}: is not audio, or is damaged ({error.strerror})") from None
    raise AudioError(f"{path.name}: says nothing of its length: wait until it is tagged")


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and end of a Range header, all of the file without one; None for one outside of it."""
    unit, _, text = header.partition("=")
    first, dash, last = text.partition("-")
    if not header or unit.strip() != "bytes" or not dash or "," in text:
        return 0, size
    if not (first.strip() or last.strip()) or not (first + last).replace(" ", "").isdigit():
        return None
    start = int(first) if first.strip() else max(0, size - int(last))
    end = min(size, int(last) + 1) if first.strip() and last.strip() else size
    return (start, end) if start < end else None


def wav_bytes(duration_s: float) -> int:
    """The size of a decoded sound."""
    return min(MAX_BYTES, HEADER_BYTES + 2 * round(duration_s * RATE))


def wav_range(path: Path, size: int, start: int, end: int) -> Iterator[bytes]:
    """Bytes of the WAV (16 bits, mono) that a file decodes to; silence where it is shorter than promised."""
    data = size - HEADER_BYTES
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    header = struct.pack("<4sI4s", b"RIFF", size - 8, b"WAVE") + form + struct.pack("<4sI", b"data", data)
    if start < HEADER_BYTES:
        yield header[start:end]
    first, missing = max(0, start - HEADER_BYTES), end - max(start, HEADER_BYTES)
    skip = first % 2
    if missing > 0:
        try:
            for block in Stream(str(path), RATE, start_s=(first - skip) / 2 / RATE):
                content = (np.clip(block, -1, 1 - 2**-15) * 2**15).astype("<i2").tobytes()[skip:][:missing]
                skip, missing = 0, missing - len(content)
                yield content
                if missing <= 0:
                    return
        except (AudioError, OSError):  # the end of a damaged file: the length is promised already
            pass
        while missing > 0:
            yield bytes(min(missing, 2**16))
            missing -= 2**16


def png(picture: np.ndarray) -> bytes:
    """A picture (mel, time) in 255 steps as PNG, low bands at the bottom."""
    from matplotlib.image import imsave

    file = io.BytesIO()
    imsave(file, picture, vmin=0, vmax=255, cmap=COLORMAP, origin="lower", format="png")
    return file.getvalue()

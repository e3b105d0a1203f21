"""The check of one sound: decoded to its end, tested for silence, and encoded anew where asked for."""

import hashlib
import io
from typing import Any, Literal, NamedTuple

import numpy as np
import soundfile
from jaxtyping import Float

from patchout.audio.decode import decode
from patchout.audio.levels import SILENT_PEAK
from patchout.audio.stream import AudioError, Channel, Stream, name_of
from patchout.errors import CutError

RATE = 32_000  # Hz, of transcoded sounds and of the check
KBPS = (128, 160, 192, 224, 256, 320)  # of mp3 at 32 kHz: less would cut what the models hear
MAX_BYTES = 2**31 - 2**26  # Arrow counts the bytes of a batch in 32 bits


class Encoding(NamedTuple):
    """The encoding of stored sounds."""

    name: Literal["original", "flac", "mp3"]
    kbps: int = 0  # of mp3

    def __str__(self) -> str:
        return f"{self.name} {self.kbps}k" if self.kbps else self.name


ORIGINAL = Encoding("original")


class Checked(NamedTuple):
    """A sound as it is stored, and the result of its check; without `audio` it is left out."""

    audio: bytes = b""
    problem: str = ""
    note: str = ""
    digest: int = 0  # of the decoded samples; 0 if silent
    rate: int = 0  # Hz, of the source
    audio_s: float = 0.0


def check(
    source: bytes | str, encoding: Encoding, *, start_s: float = 0.0, end_s: float | None = None
) -> Checked:
    """Decode a file or a segment to its end, and encode it anew if asked for; ORIGINAL takes bytes."""
    if len(source) > MAX_BYTES:
        return Checked(problem="broken", note="is larger than 2 GB: cut it into pieces")
    stream, prefix = Stream(source, RATE, start_s=start_s, end_s=end_s), f"{name_of(source)}: "
    digest, peak = hashlib.blake2b(digest_size=8), 0.0
    try:
        for block in stream:
            digest.update(block.data)
            peak = max(peak, float(np.abs(block).max()))
    except (AudioError, OSError) as error:
        problem = "zero-length" if _is_empty(source) else "broken"
        return Checked(problem=problem, note=str(error).removeprefix(prefix))
    data = source if isinstance(source, bytes) else b""
    checked = Checked(data, rate=stream.source_rate, audio_s=stream.duration_s)
    if stream.warning:
        problem = "damaged" if stream.is_damaged else "suspicious sound"
        checked = checked._replace(problem=problem, note=stream.warning.removeprefix(prefix))
    if stream.silence or peak < SILENT_PEAK:
        note = (stream.silence or f"its peak is {peak:.0e} of full scale").removeprefix(prefix)
        checked = checked._replace(problem="silent", note=note)
    else:
        checked = checked._replace(digest=int.from_bytes(digest.digest(), "big", signed=True))
    if encoding == ORIGINAL:
        return checked
    if stream.num_channels > 2:
        note = f"has {stream.num_channels} channels, only 1 or 2 are encoded: keep the original"
        return Checked(problem="broken", note=note)
    sides: tuple[Channel, ...] = ("left", "right") if stream.num_channels == 2 else ("mean",)
    streams = [Stream(source, RATE, start_s=start_s, end_s=end_s, channel=side) for side in sides]
    waves = np.stack([np.concatenate(list(stream)) for stream in streams], axis=1)
    return checked._replace(audio=_encoded(waves, encoding))


def _is_empty(source: bytes | str) -> bool:
    """Whether a sound file can be decoded and has no samples."""
    try:
        return not source or not any(len(block.samples) for block in decode(source))
    except (AudioError, CutError, OSError):
        return False


def _encoded(waves: Float[np.ndarray, "sample channel"], encoding: Encoding) -> bytes:
    """FLAC of 16 bits, where what is louder than full scale is clipped, or MP3 at a constant rate."""
    options: dict[str, Any] = {"format": "FLAC", "subtype": "PCM_16"}
    if encoding.name == "mp3":  # libsndfile's levels go from 320 (0) to 32 kbit/s (1)
        level = (320 - encoding.kbps) / 288
        options = {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": level}
    file = io.BytesIO()
    soundfile.write(file, waves, RATE, **options)
    return file.getvalue()

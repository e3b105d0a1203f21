"""Sound that is still arriving, from a pipe or a microphone -> blocks of PCM, decoded by libav."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from patchout.audio.pcm import Block, Channel, block_of
from patchout.errors import AudioError

DEVICES = {"linux": "alsa", "darwin": "avfoundation", "win32": "dshow"}  # libav's names of microphones
ALSA_CONFIG = Path("/usr/share/alsa/alsa.conf")  # PyAV's own ALSA looks where it was built
LOW_DELAY = {"probesize": "32768", "analyzeduration": "0"}
PIPE_HINT = "ffmpeg -i URL -f wav - | patchout listen --input -"


class LiveSource:
    """A pipe, FIFO or device that libav reads once, from now on; its time is the number of its samples."""

    def __init__(self, file: Any, name: str, *, format: str, options: Mapping[str, str], hint: str) -> None:
        self.name = name
        self._open = {"file": file, "format": format or None, "options": {**options}}
        self._hint = hint

    def blocks(self, channel: Channel) -> Iterator[Block]:
        """Blocks as they arrive, until the sender closes; a packet that is damaged is left out.

        Integers become float32 as libsndfile's do: a recorded WAV has the same samples.
        """
        import av

        try:
            container = av.open(mode="r", buffer_size=4096, metadata_errors="replace", **self._open)
        except (OSError, ValueError) as error:  # av.FFmpegError too
            reason = getattr(error, "strerror", None) or error
            raise AudioError(f"{self.name}: cannot be opened as sound ({reason}); {self._hint}") from error
        with container:
            stream = next(iter(container.streams.audio), None)
            if stream is None:
                raise AudioError(f"{self.name}: has no audio stream; {self._hint}")
            position = 0
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    continue
                for frame in frames:
                    pcm = frame.to_ndarray()
                    pcm = pcm.T if frame.format.is_planar else pcm.reshape(-1, frame.layout.nb_channels)
                    if pcm.dtype.kind == "i":
                        pcm = (pcm / 2.0 ** (8 * pcm.dtype.itemsize - 1)).astype(np.float32)
                    yield block_of(frame.sample_rate, position, pcm, channel)
                    position += len(pcm)


class _Pipe:
    """Bytes of a file descriptor as they come: a read returns what is there."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read(self, size: int) -> bytes:
        return os.read(self._descriptor, size)


def pipe(descriptor: int, name: str, *, encoding: str = "", rate: int = 0, channels: int = 1) -> LiveSource:
    """A pipe of raw PCM (`encoding` as ffmpeg names it, `rate` in Hz), else of a format with a header."""
    hint = "name --rate, --channels and --encoding of raw samples, or send WAV"
    options = {"sample_rate": str(rate), "ch_layout": f"{channels}c"} if encoding else {}
    return LiveSource(_Pipe(descriptor), name, format=encoding, options=LOW_DELAY | options, hint=hint)


def microphone(name: str = "", *, options: Mapping[str, str]) -> LiveSource:
    """A microphone by the name that `microphones` gives; "": the system's own choice."""
    kind = DEVICES.get(sys.platform, "")
    if kind == "alsa" and ALSA_CONFIG.exists():
        os.environ.setdefault("ALSA_CONFIG_PATH", str(ALSA_CONFIG))
    names = microphones()
    address = {
        "alsa": name or "default",
        "avfoundation": f":{name or 'default'}",
        "dshow": f"audio={name or (names or [''])[0]}",
    }.get(kind, name)
    choices = (
        f"microphones here: {', '.join(names)}; name one by --input" if names else "no microphone is here"
    )
    hint = f"{choices}, or let another program record: {PIPE_HINT}"
    title = f"microphone {name}" if name else "the microphone"
    return LiveSource(address, title, format=kind, options=options, hint=hint)


def microphones() -> list[str]:
    """Names of the microphones that libav sees."""
    import av

    try:
        devices = av.enumerate_input_devices(DEVICES.get(sys.platform, ""))
    except (AttributeError, OSError, ValueError):  # an older PyAV; av.FFmpegError too; no such devices
        return []
    return [device.name for device in devices if "audio" in device.media_types]

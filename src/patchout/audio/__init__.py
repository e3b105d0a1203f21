"""Any sound file -> samples -> log-mel."""

from patchout.audio.pcm import Channel
from patchout.audio.sources import Source, name_of
from patchout.audio.stream import AudioWarning, Stream, load, windows
from patchout.errors import AudioError

__all__ = ["AudioError", "AudioWarning", "Channel", "Source", "Stream", "load", "name_of", "windows"]

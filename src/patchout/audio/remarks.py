"""Remarks on decoded sounds: as text in a row of a bulk job, and on those sampled at a low rate."""

import hashlib
import json
import re
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import NamedTuple

import numpy as np

from patchout.audio.levels import Levels
from patchout.audio.sources import Source
from patchout.audio.stream import Stream

REMARK = re.compile(r"(\d+) Hz, (\w{16}), (silent|sound)(?:, (\[[^]]*\]))?(?:; (.*))?", re.DOTALL)
SHOWN = 3  # names in a remark on several sounds


class Remark(NamedTuple):
    """What is known of a file that was read."""

    rate: int  # Hz
    digest: str  # of its samples: the same sound in another file has the same
    is_silent: bool
    warning: str
    levels: Levels = Levels()  # zeros where they were not measured

    def __str__(self) -> str:
        levels = f", {json.dumps(self.levels)}" if self.levels != Levels() else ""
        warning = f"; {self.warning}" if self.warning else ""
        return f"{self.rate} Hz, {self.digest}, {'silent' if self.is_silent else 'sound'}{levels}{warning}"

    @classmethod
    def read(cls, text: str) -> "Remark":
        """Back from its text."""
        parts = REMARK.fullmatch(text)
        assert parts, text
        levels = Levels(*json.loads(parts[4] or "[]"))
        return cls(int(parts[1]), parts[2], parts[3] == "silent", parts[5] or "", levels)


class RemarkedStream(Stream):
    """A stream whose `warning` is, after its last block, the text of a `Remark`, with levels by `meter`."""

    def _sound(self, source: Source) -> Generator[np.ndarray, None, None]:
        digest = hashlib.sha256()
        with closing(super()._sound(source)) as pieces:
            for piece in pieces:
                digest.update(piece.tobytes())
                yield piece
        levels = self.meter.levels(self.source_rate) if self.meter else Levels()
        remark = (self.source_rate, digest.hexdigest()[:16], self.silence is not None, self.warning or "")
        self.warning = str(Remark(*remark, levels))


def low_rate(first: Sequence[str], count: int, rate: int) -> str:
    """A remark on `count` sounds, the `first` of them by name, that hold less than half of what a model of
    `rate` Hz hears.
    """
    names = ", ".join(first[:SHOWN]) + (f" and {count - SHOWN} more" if count > SHOWN else "")
    reason = f"sampled at less than half of the model's {rate} Hz"
    return f"{names}: {reason}; unless it was trained on such sounds, its results are often wrong"

"""Which clips of a downloaded data set are there: a look at names alone, before any work."""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from patchout.data.prepare.layouts import read_layout
from patchout.files import without_stream

MANY = 5  # missing files of a split that are named


class Presence(NamedTuple):
    """Clips of a split: those on the official list, those that are there, and some of the others."""

    listed: int
    present: int
    missing: tuple[str, ...]


def presence(name: str, source: Path) -> dict[str, Presence]:
    """The clips of each split or fold ("": of all) of a data set of `layouts.LAYOUTS` below `source`.

    Raises LayoutError for a source that is not laid out as the download.
    """
    listing = read_layout(name, source)
    listed, present = Counter[str](), Counter[str]()
    missing: dict[str, list[str]] = {}
    for clip in listing.clips:
        listed[clip.fold] += 1
        if clip.row >= 0 or (clip.file and os.path.exists(without_stream(clip.file)[0])):  # noqa: PTH110
            present[clip.fold] += 1
        elif len(files := missing.setdefault(clip.fold, [])) < MANY:
            files.append(clip.file or clip.id)
    for split, count in (listing.official or {}).items():
        listed[split] = count
    return {
        split: Presence(count, present[split], tuple(missing.get(split, ())))
        for split, count in listed.items()
    }

"""Background classes: negatives without an output of their own, on which every other class is silent."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from patchout.data.clips import ClipSet
from patchout.data.columns import folded
from patchout.errors import DataError

NAMES = ("background", "noise", "none", "_background")  # that "auto" looks for, in upper or lower case


def background_classes(clips: ClipSet, name: str) -> tuple[str, ...]:
    """The classes that are background: the one of this name, all called as in `NAMES` ("auto"), or none ("").

    DataError: no such class, or no other one.
    """
    if name == "auto":
        background = tuple(label for label in clips.classes if label.strip().casefold() in NAMES)
    else:
        background = tuple(label for label in clips.classes if name and folded(label) == folded(name))
        if name and not background:
            classes = ", ".join(clips.classes[:8]) + (" ..." if len(clips.classes) > 8 else "")
            raise DataError(f"{clips.root}: no class {name} to be the background: it has {classes}")
    if background and len(background) == len(clips.classes):
        todo = "add the sounds that are to be told from it, a class a folder"
        raise DataError(f"{clips.root}: background alone ({', '.join(background)}): {todo}")
    return background


def as_background(clips: ClipSet, background: Sequence[str]) -> ClipSet:
    """The clips with these classes taken from them: one that has no other class is a negative of all.

    The task becomes multi-label. A set without these classes stays as it is.
    """
    places = [place for place, label in enumerate(clips.classes) if label not in background]
    if len(places) == len(clips.classes):
        return clips
    names = tuple(label for label in clips.classes if label in background)
    index = np.full(len(clips.classes), -1, np.int32)
    index[places] = np.arange(len(places), dtype=np.int32)
    owners, classes = clips.positives()
    is_class = index[classes] >= 0
    counts = np.bincount(owners[is_class], minlength=len(clips))
    columns = {"labels": _lists(index[classes][is_class], counts)}
    for name, table in (("probabilities", clips.targets()), ("known", clips.knowns())):
        if name in clips.table.column_names:
            columns[name] = _lists(table[:, places].ravel(), np.full(len(clips), len(places)))
    table = clips.table
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    meant = tuple(f"the label {label!r} " for label in names)  # a note that it might mean a missing value
    return replace(
        clips,
        classes=tuple(clips.classes[place] for place in places),
        task="multi_label",
        table=table,
        background=names,
        notes=tuple(note for note in clips.notes if not note.startswith(meant)),
    )


def _lists(values: np.ndarray, counts: np.ndarray) -> pa.ListArray:
    """Lists of so many values each."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))

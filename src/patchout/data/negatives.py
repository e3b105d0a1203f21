"""Negative labels: `!dog` says that a clip is not of the class dog, and nothing of its other classes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchout.data.clips import ClipSet, class_indices
from patchout.errors import DataError

NEGATIVE = "!"  # before the name of a class


def is_negative(label: str) -> bool:
    """Whether a label says what a clip is not."""
    return label.startswith(NEGATIVE)


def contradiction(labels: Sequence[str]) -> str:
    """What of a clip's labels cannot both be true, "" where all can."""
    negatives = {label[len(NEGATIVE) :].strip() for label in labels if is_negative(label)}
    if name := next((label for label in labels if label in negatives), ""):
        return f"{name} and {NEGATIVE}{name} contradict each other: leave one of them"
    return ""


def signed_class_indices(clips: ClipSet) -> ClipSet:
    """Labels by name, some of them negative, -> class indices and, where any is negative, `known`.

    Of a clip with negative labels alone, those classes are known and absent, and all others unknown (a set
    with such clips is multi-label). Beside another label a negative one adds nothing. A clip that is only
    said not to be what no clip is is left out, which is a note. DataError: no clip has a class.
    """
    column = clips.table["labels"].combine_chunks()
    if not pc.any(pc.starts_with(column.values, NEGATIVE)).as_py():
        return class_indices(clips)
    rows = column.to_pylist()
    positives = [[name for name in row if not is_negative(name)] for row in rows]
    negatives = [{name[len(NEGATIVE) :].strip() for name in row if is_negative(name)} for row in rows]
    classes = {name for row in positives for name in row}
    if not classes:
        todo = "label sounds of the classes that are to be found"
        raise DataError(f"{clips.root}: says only what its clips are not: {todo}")
    used = [clip for clip in range(len(rows)) if positives[clip] or negatives[clip] & classes]
    labels = pa.array([positives[clip] for clip in used], pa.list_(pa.string()))
    table = clips.table.take(pa.array(used, pa.int64()))
    table = table.set_column(table.column_names.index("labels"), "labels", labels)
    indexed = class_indices(replace(clips, table=table))
    mask = np.ones((len(used), len(indexed.classes)), np.float32)
    for row in np.flatnonzero(indexed.is_negative()).tolist():
        mask[row] = [name in negatives[used[row]] for name in indexed.classes]
    table = indexed.table.append_column("known", pa.array(mask.tolist(), pa.list_(pa.float32())))
    return replace(indexed, table=table, notes=(*indexed.notes, *_notes(indexed, len(rows) - len(used))))


def _notes(clips: ClipSet, num_unused: int) -> list[str]:
    """What became of clips with negative labels alone."""
    notes, count = [], int(clips.is_negative().sum())
    if count:
        effect = "they teach it alone to be silent, so the task is multi-label"
        notes.append(f"{count} clips are only said not to be of a class ({NEGATIVE} before it): {effect}")
    if num_unused:
        notes.append(f"{num_unused} clips are left out: they are only said not to be what no other clip is")
    return notes

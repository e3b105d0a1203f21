"""What labels, splits and groups of a data set say before a sound is decoded."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from patchout.data.background import as_background, background_classes
from patchout.data.clips import ClipSet
from patchout.inference.check.findings import Finding
from patchout.inference.check.recordings import by_name

MIN_CLIPS = 10  # of a class
UNBALANCED = 10.0  # clips of the largest class for one of the smallest


def findings(clips: ClipSet, *, pattern: str = "", background: str = "auto") -> list[Finding]:
    """Rows that are left out, recordings in two splits; classes missing in one, small or unbalanced.

    `pattern` finds a recording in a name (`recordings.by_name`). A set without labels has no classes.
    """
    rows = [Finding("left out", "", problem) for problem in clips.problems]
    classes = as_background(clips, background_classes(clips, background))
    return [*rows, *_across_splits(clips, pattern), *_of_classes(classes)]


def label_texts(clips: ClipSet) -> np.ndarray:
    """The classes of every clip as one text, "" without any."""
    return np.array(["; ".join(clips.labels(clip)) for clip in range(len(clips))], dtype=str)


def recordings_of(clips: ClipSet, pattern: str) -> np.ndarray:
    """The recording of every clip by its name, else its group, which may be its file."""
    named = by_name(clips.table["id"].to_pylist(), label_texts(clips).tolist(), pattern)
    return np.where(named.keys == "", clips.groups(), named.keys) if named else clips.groups()


def _across_splits(clips: ClipSet, pattern: str) -> Iterator[Finding]:
    files, splits = np.array(clips.files(), dtype=str), clips.column("fold")
    if len({*splits.tolist()} - {""}) < 2:
        return
    keys = {"file": files, "group": clips.column("group")}
    if named := by_name(clips.table["id"].to_pylist(), label_texts(clips).tolist(), pattern):
        keys[named.kind] = named.keys
    reported = set[int]()
    for kind, values in keys.items():
        for key, members in _members(values):
            counts = Counter(splits[members].tolist())
            del counts[""]
            if len(counts) > 1 and not reported.issuperset(members.tolist()):
                reported.update(members.tolist())
                where = ", ".join(f"{split} ({count})" for split, count in sorted(counts.items()))
                clip = int(members[0])
                name = "the file" if kind == "file" else f"{kind} {key}"
                yield Finding("recording across splits", str(files[clip]), f"{name} is in {where}", clip=clip)


def _members(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Every value but "", and the clips that have it, where there are two or more."""
    _, numbers = np.unique(values, return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
        if len(members) > 1 and values[members[0]]:
            yield str(values[members[0]]), members


def _of_classes(clips: ClipSet) -> Iterator[Finding]:
    counts, splits = clips.class_counts(), clips.column("fold")
    if not counts.any():
        return
    owners, classes = clips.positives()
    names = sorted({*splits.tolist()} - {""})
    present = {split: set(classes[splits[owners] == split].tolist()) for split in names}
    groups = clips.groups()[owners]
    for index, (label, count) in enumerate(zip(clips.classes, counts.tolist(), strict=True)):
        absent = [split for split in names if index not in present[split]] if count else []
        if absent and len(names) > 1:
            yield Finding("missing in a split", "", f"{label} (none in {', '.join(absent)})")
        if count < MIN_CLIPS:
            yield Finding("small class", "", f"{label} ({count} clips)")
        elif len(np.unique(groups[classes == index])) == 1:
            yield Finding("small class", "", f"{label} ({count} clips of one recording)")
    smallest, largest = int(counts[counts > 0].min()), int(counts.max())
    if largest >= UNBALANCED * smallest:
        few, many = (clips.classes[int(np.flatnonzero(counts == count)[0])] for count in (smallest, largest))
        yield Finding("unbalanced", "", f"{many} has {largest} clips, {few} {smallest}")

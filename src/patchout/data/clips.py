"""Labelled sounds as one table, in files or packed into Arrow shards: two million of them if need be."""

import hashlib
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from patchout.audio import stream as audio
from patchout.data.columns import loss_weight
from patchout.data.folders import composed
from patchout.errors import DataError
from patchout.files import without_stream

__all__ = ["ClipSet", "DataError", "Packed", "Task", "by_name", "rows_of", "task_of"]

LONG_S = 600.0  # of one clip's sound that is held: 77 MB at 32 kHz
Task = Literal["multi_class", "multi_label"]

EMPTY_WORDS = ("nan", "null", "none", "n/a")  # as which programs write a missing label
SPAN = re.compile(r"#[\d.e+-]+-([\d.e+-]+|end)$")  # behind the file, in the id of a prepared segment


class _NamedBytes(io.BytesIO):
    """The bytes of a sound, by a name that people know."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


@dataclass(frozen=True)
class Packed:
    """Undecoded sounds in the Arrow files of `datasets`: mapped at their first use in a process, never sent to one."""

    files: tuple[str, ...]
    column: str = "audio"

    def __reduce__(self) -> tuple[type["Packed"], tuple[tuple[str, ...], str]]:
        return Packed, (self.files, self.column)

    @cached_property
    def _sounds(self) -> pa.ChunkedArray:
        return pa.chunked_array([chunk for file in self.files for chunk in _mapped(file)[self.column].chunks])

    def source(self, row: int, name: str) -> audio.Source:
        """The sound of a row; where the shard says no more than where it is, its path."""
        held = self._sounds[row].as_py()
        content = held["bytes"] or held["path"] if isinstance(held, dict) else held
        return content if isinstance(content, str) else _NamedBytes(content or b"", name)


def rows_of(files: Sequence[str]) -> pa.Table:
    """All rows of mapped Arrow files, numbered in the column `row`; DataError names a broken one."""
    table = pa.concat_tables([_mapped(file) for file in files])
    return table.append_column("row", pa.array(np.arange(len(table))))


def _mapped(file: str) -> pa.Table:
    """An Arrow file of which nothing is read before it is used."""
    options = pa.ipc.IpcReadOptions(
        use_threads=False
    )  # pyarrow's threads abort the process at exit, with torch loaded
    try:
        with pa.memory_map(file) as source, pa.ipc.open_stream(source, options=options) as stream:
            return stream.read_all()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{file}: a shard that cannot be read ({error}): prepare or download the set again"
        ) from None


@dataclass(frozen=True)
class ClipSet:
    """The clips of a data set in columns, its classes, and each unusable row with its reason.

    `table` has a row a clip: `id` (a file's path below `folder`), `labels` (list of class indices), and where they
    exist `fold` (the split, else the fold), `start_s`, `end_s`, `row` (in `packed`), `probabilities` and `known` (a
    number a class), and columns of text. `columns` says what was read from where, `notes` what was not used and might
    have been meant; `info` is the dataset.json of a prepared set.
    """

    root: Path
    classes: tuple[str, ...]
    task: Task
    table: pa.Table
    folder: Path = Path()
    packed: Packed | None = None
    channel: audio.Channel = "mean"
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.table)

    # -- one clip ------------------------------------------------------------------------------------------------------

    def name(self, clip: int) -> str:
        """What people know the clip by: its file, or its id."""
        return str(self.folder / self._cell("id", clip))

    def labels(self, clip: int) -> list[str]:
        """The clip's classes by name."""
        return [self.classes[index] for index in self._cell("labels", clip)]

    def stream(self, clip: int, rate: int) -> audio.Stream:
        """The clip's sound, to be read once, at `rate` Hz."""
        return self._stream(clip, rate, self._cell("start_s", clip) or 0.0, self._cell("end_s", clip))

    def wave(self, clip: int, rate: int, rng: Generator | None = None) -> Float[Tensor, "sample"]:
        """What `heard` gives, without what is to be said of it."""
        return self.heard(clip, rate, rng)[0]

    def heard(
        self, clip: int, rate: int, rng: Generator | None = None
    ) -> tuple[Float[Tensor, "sample"], str]:
        """The clip's sound at `rate` Hz, and what is missing or odd in it; DataError names one that cannot be read.

        Of one that lasts longer than LONG_S, whatever its header says, so much: its beginning, or with `rng` any part.
        """
        most, total = round(LONG_S * rate), 0
        blocks: list[np.ndarray] = []
        stream = self.stream(clip, rate)
        try:
            for block in stream:
                if total < most:
                    blocks.append(block)
                elif rng is None:
                    break
                total += len(block)
            if total > most and rng is not None:
                first = int(torch.randint(0, total - most + 1, (), generator=rng))
                start_s = (self._cell("start_s", clip) or 0.0) + first / rate
                blocks = list(self._stream(clip, rate, start_s, start_s + LONG_S))
            wave = torch.from_numpy(blocks[0] if len(blocks) == 1 else np.concatenate(blocks))[:most]
            return wave, stream.warning or ""
        except (audio.AudioError, OSError) as error:
            raise DataError(str(error)) from error

    def target(self, clip: int) -> Float[Tensor, "class"]:
        """1 at the clip's classes, or the probability of each."""
        if (probabilities := self._cell("probabilities", clip)) is not None:
            return torch.tensor(probabilities)
        target = torch.zeros(len(self.classes))
        target[self._cell("labels", clip)] = 1.0
        return target

    def known(self, clip: int) -> Float[Tensor, "class"]:
        """1 where it is known whether the clip belongs to the class."""
        known = self._cell("known", clip)
        return torch.ones(len(self.classes)) if known is None else torch.tensor(known)

    def weight(self, clip: int) -> float:
        """How much the clip counts in the loss (the column loss_weight); 1 where the set does not say."""
        try:
            return loss_weight(self._cell("loss_weight", clip))
        except ValueError as error:
            raise DataError(f"{self.name(clip)}: {error}") from None

    def _stream(self, clip: int, rate: int, start_s: float, end_s: float | None) -> audio.Stream:
        name = self.name(clip)
        source = self.packed.source(self._cell("row", clip), name) if self.packed else name
        return audio.Stream(source, rate, start_s=start_s, end_s=end_s, channel=self.channel)

    def _cell(self, column: str, clip: int) -> Any:
        return self.table[column][clip].as_py() if column in self.table.column_names else None

    # -- all clips -----------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The names of all clips."""
        return [str(self.folder / name) for name in self.table["id"].to_pylist()]

    def origin(self) -> str:
        """Which columns say what, and the first and the last class, for people."""
        columns = ", ".join(f"{meaning} from {column}" for meaning, column in self.columns.items())
        classes = (
            f"classes: {self.classes[0]} to {self.classes[-1]} ({len(self.classes)})" if self.classes else ""
        )
        return "; ".join(filter(None, (columns, classes)))

    def files(self) -> list[str]:
        """What each clip is cut out of: its file by one spelling; of a packed segment, what its id says of that."""
        files = (SPAN.sub("", name) if self.packed else os.path.normpath(name) for name in self.names())
        return [without_stream(file)[0] for file in files]

    def groups(self) -> np.ndarray:
        """Clips that are never parted: those of one group, of one file, and of groups that share a file."""
        files, group = np.array(self.files(), dtype=str), self.column("group")
        merged = np.where(group == "", files, group)
        while True:
            before = merged
            for key in (files, before):
                merged = _lowest(merged, by=key)
            if (merged == before).all():
                return merged

    def targets(self, classes: Sequence[str] | None = None) -> Float[np.ndarray, "clip class"]:
        """One row a clip as `target` gives it, in the order of `classes` (the set's own by default)."""
        targets = self._numbers("probabilities")
        if targets is None:
            targets = np.zeros((len(self), len(self.classes)), np.float32)
            targets[self.positives()] = 1.0
        return self._in_order(targets, classes, 0.0)

    def knowns(self, classes: Sequence[str] | None = None) -> Float[np.ndarray, "clip class"]:
        """One row a clip as `known` gives it, in the order of `classes` (the set's own by default)."""
        knowns = self._numbers("known")
        own = np.ones((len(self), len(self.classes)), np.float32) if knowns is None else knowns
        return self._in_order(own, classes, 1.0)

    def positives(self) -> tuple[Int[np.ndarray, "label"], Int[np.ndarray, "label"]]:
        """Clip and class index of every label in the set."""
        column = self.table["labels"].combine_chunks()
        counts = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        return np.repeat(np.arange(len(self)), counts), pc.list_flatten(column).to_numpy(zero_copy_only=False)

    def class_counts(self) -> Int[np.ndarray, "class"]:
        """How many clips each class has."""
        return np.bincount(self.positives()[1], minlength=len(self.classes))

    def column(self, name: str) -> np.ndarray:
        """A column as text, one entry a clip, "" where there is none; one of lists has none."""
        if name not in self.table.column_names or pa.types.is_nested(self.table.schema.field(name).type):
            return np.full(len(self), "")
        return np.array(pc.fill_null(self.table[name].cast(pa.string()), "").to_pylist(), dtype=str)

    def ids_sha256(self) -> str:
        """SHA-256 over the ids in their order, one a line; a segment's seconds belong to its id."""
        digest = hashlib.sha256()
        spans = [
            self.table[name] if name in self.table.column_names else None for name in ("start_s", "end_s")
        ]
        starts, ends = ([None] * len(self) if span is None else span.to_pylist() for span in spans)
        for name, start_s, end_s in zip(self.table["id"].to_pylist(), starts, ends, strict=True):
            span = f"#{start_s or 0:g}-{end_s or 'end'}" if start_s or end_s else ""
            digest.update(f"{name}{span}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _numbers(self, column: str) -> np.ndarray | None:
        """A column of lists as an array, None where it is not there."""
        if column not in self.table.column_names:
            return None
        flat = pc.list_flatten(self.table[column]).to_numpy()
        return flat.astype(np.float32).reshape(len(self), len(self.classes))

    def _in_order(self, own: np.ndarray, classes: Sequence[str] | None, absent: float) -> np.ndarray:
        """Columns of the set's classes -> columns of others; a label that is none of them is a DataError."""
        if classes is None or tuple(classes) == self.classes:
            return own
        place = {composed(name): index for index, name in enumerate(classes)}
        used = {self.classes[index] for index in np.unique(self.positives()[1])}
        if strange := sorted(used - place.keys()):
            known = f"{', '.join(sorted(place)[:8])}{' ...' if len(place) > 8 else ''} ({len(place)} classes)"
            raise DataError(f"{self.root}: labels {strange[:8]} are none of the model's: it knows {known}")
        ordered = np.full((len(self), len(place)), absent, np.float32)
        shared = [name for name in self.classes if name in place]
        ordered[:, [place[name] for name in shared]] = own[:, [self.classes.index(name) for name in shared]]
        return ordered

    # -- parts ---------------------------------------------------------------------------------------------------------

    def take(self, indices: Sequence[int] | range | np.ndarray) -> "ClipSet":
        """These clips, in this order; the classes stay."""
        return replace(self, table=self.table.take(pa.array(np.asarray(indices, np.int64))))

    def only(self, *folds: str) -> "ClipSet":
        """The clips of these folds; an unknown fold is a DataError that lists the known ones."""
        return self.take(np.flatnonzero(self._in(folds)))

    def without(self, *folds: str) -> "ClipSet":
        """The clips of all other folds."""
        return self.take(np.flatnonzero(~self._in(folds)))

    def _in(self, folds: Sequence[str]) -> np.ndarray:
        column = self.column("fold")
        known = sorted({*column.tolist()} - {""})
        if unknown := [fold for fold in folds if fold not in known]:
            none = 'its clips name none: add a CSV with a column split or fold, or give an empty one (--split "")'
            have = f"it has {', '.join(known)}" if known else none
            raise DataError(f"{self.root}: no split or fold {', '.join(unknown)}: {have}")
        return np.isin(column, folds)


def _lowest(values: np.ndarray, *, by: np.ndarray) -> np.ndarray:
    """For every entry, the first value in alphabetical order among those with its key."""
    _, members = np.unique(by, return_inverse=True)
    order = np.lexsort((values, members))
    firsts = np.flatnonzero(np.diff(members[order], prepend=-1))
    return values[order[firsts]][members]


def by_name(clips: ClipSet, classes: Sequence[str] = ()) -> ClipSet:
    """Labels that are names -> indices of the classes, by default all there are in alphabetical order.

    The task follows from the number of labels a clip. A class that is called like a missing value is a note.
    """
    names = clips.table["labels"].combine_chunks()
    ordered = pa.array(classes, pa.string()) if classes else pc.unique(names.values).sort()
    labels = pa.ListArray.from_arrays(names.offsets, pc.index_in(names.values, value_set=ordered))
    table = clips.table.set_column(clips.table.column_names.index("labels"), "labels", labels)
    clips = replace(clips, classes=tuple(ordered.to_pylist()), task=task_of(labels), table=table)
    odd = [name for name in clips.classes if name.casefold() in EMPTY_WORDS]
    counts = dict(zip(clips.classes, clips.class_counts().tolist(), strict=True)) if odd else {}
    told = (
        f"the label {name!r} ({counts[name]} clips) is a class: leave the cell empty if it means none"
        for name in odd
    )
    return replace(clips, notes=(*clips.notes, *told))


def task_of(labels: pa.ListArray) -> Task:
    """One class a clip, or any number."""
    return "multi_label" if pc.any(pc.not_equal(pc.list_value_length(labels), 1)).as_py() else "multi_class"

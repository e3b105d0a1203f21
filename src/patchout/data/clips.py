"""A labelled data set of sounds as one Arrow table of up to millions of rows; the sounds stay undecoded."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from patchout.audio import stream as audio
from patchout.data.columns import loss_weight
from patchout.data.folders import composed
from patchout.data.packed import Packed
from patchout.errors import DataError
from patchout.files import without_stream

__all__ = ["ClipSet", "DataError", "Task", "class_indices", "segment_suffix", "task_of"]

LONG_S = 600.0  # of a clip's sound that is decoded at most: 77 MB at 32 kHz
EMPTY_WORDS = ("nan", "null", "none", "n/a")  # as which programs write a missing label
SEGMENT = re.compile(r"#[\d.e+-]+-([\d.e+-]+|end)$")  # behind the file, in the id of a prepared segment
Task = Literal["multi_class", "multi_label"]


@dataclass(frozen=True)
class ClipSet:
    """The clips of a data set in columns, its classes, and the reasons why other rows cannot be used.

    `table` has a row a clip: `id` (a file's path below `folder`), `labels` (list of class indices), and where
    they exist `fold` (the split, else the fold), `start_s`, `end_s`, `row` (in `packed`), `probabilities` and
    `known` (a number a class), and columns of text. `columns` says what was read from where, `notes` what was
    not used and might have been meant; `info` is the dataset.json of a prepared set.
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
    background: tuple[str, ...] = ()  # former classes whose clips are negatives of all classes

    def __len__(self) -> int:
        return len(self.table)

    # -- one clip --------------------------------------------------------------------------------------------

    def name(self, clip: int) -> str:
        """The clip's file, or its id in a packed set."""
        return str(self.folder / self._cell("id", clip))

    def file_on_disk(self, clip: int) -> str:
        """The file that the clip is read from: of a packed set its shard."""
        return self.packed.file(self._cell("row", clip)) if self.packed else self.name(clip)

    def labels(self, clip: int) -> list[str]:
        """The clip's classes by name."""
        return [self.classes[index] for index in self._cell("labels", clip)]

    def stream(self, clip: int, rate: int) -> audio.Stream:
        """The clip's sound, to be read once, at `rate` Hz."""
        return self._stream(clip, rate, self._cell("start_s", clip) or 0.0, self._cell("end_s", clip))

    def wave(self, clip: int, rate: int, rng: Generator | None = None) -> Float[Tensor, "sample"]:
        """The clip's sound, as `decode` gives it."""
        return self.decode(clip, rate, rng)[0]

    def decode(
        self, clip: int, rate: int, rng: Generator | None = None
    ) -> tuple[Float[Tensor, "sample"], str]:
        """The clip's sound at `rate` Hz, at most LONG_S seconds, and a remark on what is missing in it.

        Of a longer one the beginning, or with `rng` any part. DataError if it cannot be read.
        """
        limit, total = round(LONG_S * rate), 0
        blocks: list[np.ndarray] = []
        stream = self.stream(clip, rate)
        try:
            for block in stream:
                if total < limit:
                    blocks.append(block)
                elif rng is None:
                    break
                total += len(block)
            if total > limit and rng is not None:
                first = int(torch.randint(0, total - limit + 1, (), generator=rng))
                start_s = (self._cell("start_s", clip) or 0.0) + first / rate
                blocks = list(self._stream(clip, rate, start_s, start_s + LONG_S))
            wave = torch.from_numpy(blocks[0] if len(blocks) == 1 else np.concatenate(blocks))[:limit]
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
        mask = self._cell("known", clip)
        return torch.ones(len(self.classes)) if mask is None else torch.tensor(mask)

    def weight(self, clip: int) -> float:
        """The clip's weight in the loss (the column loss_weight); 1 where the set does not say."""
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

    # -- all clips -------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The names of all clips."""
        return [str(self.folder / name) for name in self.table["id"].to_pylist()]

    def files_on_disk(self) -> list[str]:
        """`file_on_disk` of all clips."""
        return [*map(self.packed.file, self.table["row"].to_pylist())] if self.packed else self.names()

    def origin(self) -> str:
        """A summary for people: the source of each column, and the first and the last class."""
        texts = [", ".join(f"{meaning} from {column}" for meaning, column in self.columns.items())]
        if self.classes:
            texts.append(f"classes: {self.classes[0]} to {self.classes[-1]} ({len(self.classes)})")
        if self.background:
            is_silent = self.is_negative() & self.knowns().all(axis=1)
            clips = f"{int(is_silent.sum())} clips of {', '.join(self.background)}"
            texts.append(f"background: {clips} teach every class to be silent, so the task is multi-label")
        return "; ".join(filter(None, texts))

    def files(self) -> list[str]:
        """The recording that each clip was cut from: its file; of a packed segment, by its id."""
        files = (SEGMENT.sub("", name) if self.packed else os.path.normpath(name) for name in self.names())
        return [without_stream(file)[0] for file in files]

    def groups(self) -> np.ndarray:
        """Clips that splits keep together: of one group, of one file, of groups that share a file."""
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
        default = np.zeros((len(self), len(self.classes)), np.float32)
        default[self.positives()] = 1.0
        return self._by_class("probabilities", default, classes)

    def knowns(self, classes: Sequence[str] | None = None) -> Float[np.ndarray, "clip class"]:
        """One row a clip as `known` gives it, in the order of `classes` (the set's own by default).

        A class that the set does not have is known of the clips of which all others are.
        """
        default = np.ones((len(self), len(self.classes)), np.float32)
        return self._by_class("known", default, classes)

    def positives(self) -> tuple[Int[np.ndarray, "label"], Int[np.ndarray, "label"]]:
        """Clip and class index of every label in the set."""
        column = self.table["labels"].combine_chunks()
        counts = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        return np.repeat(np.arange(len(self)), counts), pc.list_flatten(column).to_numpy(zero_copy_only=False)

    def is_negative(self) -> Bool[np.ndarray, "clip"]:
        """Whether a clip has none of the classes."""
        return np.bincount(self.positives()[0], minlength=len(self)) == 0

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
        names, columns = ("id", "start_s", "end_s"), self.table.column_names
        cells = (self.table[name].to_pylist() if name in columns else [None] * len(self) for name in names)
        for name, start_s, end_s in zip(*cells, strict=True):
            digest.update(f"{name}{segment_suffix(start_s, end_s)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _by_class(self, column: str, default: np.ndarray, classes: Sequence[str] | None) -> np.ndarray:
        """A column of lists, or its default, by a model's classes; a label that is none is a DataError."""
        rows = default
        if column in self.table.column_names:
            flat = pc.list_flatten(self.table[column]).to_numpy()
            rows = flat.astype(np.float32).reshape(default.shape)
        if classes is None or tuple(classes) == self.classes:
            return rows
        place = {composed(name): index for index, name in enumerate(classes)}
        used = {self.classes[index] for index in np.unique(self.positives()[1])}
        if strange := sorted(used - place.keys()):
            names = f"{', '.join(sorted(place)[:8])}{' ...' if len(place) > 8 else ''} ({len(place)} classes)"
            raise DataError(f"{self.root}: labels {strange[:8]} are none of the model's: it knows {names}")
        absent = rows.min(axis=1, keepdims=True) if column == "known" else np.zeros_like(rows[:, :1])
        ordered = np.repeat(absent, len(place), axis=1)
        shared = [name for name in self.classes if name in place]
        ordered[:, [place[name] for name in shared]] = rows[:, [self.classes.index(name) for name in shared]]
        return ordered

    # -- parts -----------------------------------------------------------------------------------------------

    def take(self, indices: Sequence[int] | range | np.ndarray) -> "ClipSet":
        """These clips, in this order; the classes stay."""
        return replace(self, table=self.table.take(pa.array(np.asarray(indices, np.int64))))

    def only(self, *folds: str) -> "ClipSet":
        """The clips of these folds; an unknown fold is a DataError that lists those of the set."""
        return self.take(np.flatnonzero(self._in(folds)))

    def without(self, *folds: str) -> "ClipSet":
        """The clips of all other folds."""
        return self.take(np.flatnonzero(~self._in(folds)))

    def _in(self, folds: Sequence[str]) -> np.ndarray:
        column = self.column("fold")
        names, folds = sorted({*column.tolist()} - {""}), [fold for fold in folds if fold]
        if unknown := [fold for fold in folds if fold not in names]:
            todo = 'add a CSV with a column split or fold, or give an empty one (--split "", --exclude "")'
            allowed = f"it has {', '.join(names)}" if names else f"its clips name none: {todo}"
            raise DataError(f"{self.root}: no split or fold {', '.join(unknown)}: {allowed}")
        return np.isin(column, folds)


def _lowest(values: np.ndarray, *, by: np.ndarray) -> np.ndarray:
    """For every entry, the first value in alphabetical order among those with its key."""
    _, members = np.unique(by, return_inverse=True)
    order = np.lexsort((values, members))
    firsts = np.flatnonzero(np.diff(members[order], prepend=-1))
    return values[order[firsts]][members]


def class_indices(clips: ClipSet, classes: Sequence[str] = ()) -> ClipSet:
    """Labels by name -> by index into `classes`, by default all names in alphabetical order.

    The task follows from the number of labels a clip. Classes called like a missing value, like several
    classes, or like each other but for case, are notes.
    """
    names = clips.table["labels"].combine_chunks()
    ordered = pa.array(classes, pa.string()) if classes else pc.unique(names.values).sort()
    labels = pa.ListArray.from_arrays(names.offsets, pc.index_in(names.values, value_set=ordered))
    table = clips.table.set_column(clips.table.column_names.index("labels"), "labels", labels)
    clips = replace(clips, classes=tuple(ordered.to_pylist()), task=task_of(labels), table=table)
    todo = "leave the cell empty if the label is missing: such rows are left out"
    notes = [
        f"the label {name!r} ({count} clips) is a class: {todo}"
        for name, count in zip(clips.classes, clips.class_counts(), strict=True)
        if name.casefold() in EMPTY_WORDS
    ]
    if joint := [name for name in clips.classes if ";" in name]:
        todo = "call the column labels if they are several"
        notes.append(f"{len(joint)} names with a semicolon are a class each, e.g. {joint[0]!r}: {todo}")
    by_case = [[*names] for _, names in groupby(sorted(clips.classes, key=str.casefold), str.casefold)]
    problem = "differ in case alone: write one name if they are one"
    notes += (f"the classes {', '.join(names)} {problem}" for names in by_case if len(names) > 1)
    return replace(clips, notes=(*clips.notes, *notes))


def task_of(labels: pa.ListArray) -> Task:
    """One class a clip, or any number."""
    return "multi_label" if pc.any(pc.not_equal(pc.list_value_length(labels), 1)).as_py() else "multi_class"


def segment_suffix(start_s: float | None, end_s: float | None) -> str:
    """What the id of a segment adds to that of its file, as "#1.5-4.0"; "" for a whole file."""
    return f"#{start_s or 0:g}-{end_s or 'end'}" if start_s or end_s else ""

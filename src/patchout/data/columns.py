"""The columns of a list of sounds, and their cells -> segments, labels, weights of clips."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, islice, product
from typing import Any

import pyarrow as pa

from patchout.checkpoint.labels import LISTS, label_names
from patchout.data.folders import composed
from patchout.errors import DataError


def _timed(*words: str) -> tuple[str, ...]:
    """Names of a column of times: these words, also with a unit of seconds behind."""
    units = ("", "_s", "_sec", "_secs", "_seconds", "_time", "_time_s", "_time_sec", "_time_seconds")
    return tuple(word + unit for word, unit in product(words, units))


COLUMNS = {  # meaning of a column -> its names, case, blanks and signs folded; of several the first counts
    "file": ("filename", "file", "path", "file_name", "filepath", "file_path"),
    "label": ("category", "label", "labels"),
    "start": _timed("start", "begin", "onset"),
    "end": _timed("end", "stop"),
    "split": ("split",),
    "fold": ("fold",),
    "group": ("group",),
    "loss_weight": ("loss_weight",),
}
OFFSETS, DURATIONS = _timed("offset"), _timed("duration")  # ends beside an onset, and beside any start
CARRIED = ("group", "loss_weight")  # columns of a clip under these names
SEVERAL = "labels"  # the column whose text may name several classes
LIKE_ONES = re.compile(r"(^|_)(start|begin|onset|offset|end|stop|times?|timestamps?|weights?)(_|$)")
CLIP_COLUMNS = ("id", "labels", "fold", "row", "start_s", "end_s", "probabilities", "known")  # of a ClipSet
CHUNK_ROWS = 65_536  # rows that stand in Python objects at a time

Cells = dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read, by their meaning."""

    used: dict[str, str]  # meaning (a key of COLUMNS) -> column
    more: dict[str, str]  # name in the clip set -> column of text
    unused: tuple[str, ...]  # those that look like times or weights
    has_durations: bool = False  # the end is a duration

    def cell(self, cells: Mapping[str, Any], meaning: str) -> Any:
        """The cell of a row with this meaning, None where it has no such column."""
        return cells.get(self.used[meaning]) if meaning in self.used else None

    @property
    def notes(self) -> tuple[str, ...]:
        """Columns that look like times or weights and are not read."""
        names = ", ".join(self.unused)
        hint = "times are called start and end (in seconds), weights loss_weight"
        return (f"columns that are not used: {names}: {hint}",) if self.unused else ()


def columns_of(header: Sequence[str]) -> Columns:
    """The columns of a header by their meaning; a ValueError names one that stands there twice."""
    names: dict[str, list[str]] = {}
    for column in header:
        names.setdefault(folded(column), []).append(column)
    used, has_durations = {}, False
    for meaning, choices in COLUMNS.items():
        if choice := next(filter(names.__contains__, choices), ""):
            used[meaning] = names[choice][0]
    if "start" in used and "end" not in used:
        is_onset = folded(used["start"]).startswith("onset")
        ends = (*(OFFSETS if is_onset else ()), *DURATIONS)
        if choice := next(filter(names.__contains__, ends), ""):
            used["end"], has_durations = names[choice][0], choice in DURATIONS
    for column in used.values():
        if len(twins := names[folded(column)]) > 1:
            raise DataError(f"the columns {', '.join(twins)} say the same: leave one of them")
    meanings, more, unused = {column: meaning for meaning, column in used.items()}, {}, []
    for column in header:
        name = meanings.get(column, column.strip())
        if name and name not in CLIP_COLUMNS and (column not in meanings or name in CARRIED):
            more[name] = column
        if LIKE_ONES.search(folded(column)) and column not in meanings:
            unused.append(column)
    return Columns(used, more, tuple(unused), has_durations)


def folded(name: str) -> str:
    """A column's name in snake case: "startTime", "Start time" and "start-time" are start_time."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).casefold()
    return re.sub(r"[\W_]+", "_", words).strip("_")


def is_small(kind: pa.DataType) -> bool:
    """Whether a column holds text, numbers, or lists of those: no sounds, no structs."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_dictionary(kind):
        return is_small(kind.value_type)
    return pa.types.is_primitive(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def text_of(value: object) -> str:
    """A cell as text, "" for a missing one."""
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if is_missing else str(value).strip()


def span_of(cells: Mapping[str, Any], columns: Columns) -> tuple[float, float | None]:
    """Start and end in seconds; a ValueError for what is no number."""
    start_s = _seconds(columns, cells, "start") or 0.0
    end_s = _seconds(columns, cells, "end")
    end_s = start_s + end_s if end_s is not None and columns.has_durations else end_s
    return start_s, None if end_s == math.inf else end_s


def impossible(start_s: float, end_s: float | None) -> str:
    """Why there is no segment between these times, "" where there is one."""
    end_s = math.inf if end_s is None else end_s
    return "" if 0 <= start_s < end_s else f"cannot start at {start_s:g} s and end at {end_s:g} s"


def _seconds(columns: Columns, cells: Mapping[str, Any], meaning: str) -> float | None:
    value = columns.cell(cells, meaning)
    if not (text := "" if value is None else str(value).strip()):
        return None
    try:
        return float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
    except ValueError:
        todo = "write seconds, or leave the cell empty"
        raise ValueError(f"the {columns.used[meaning]} {text!r} is no number: {todo}") from None


def loss_weight(value: object) -> float:
    """A clip's weight in the loss, 1 for an empty cell; a ValueError for a negative or infinite one."""
    if value is None or not str(value).strip():
        return 1.0
    with suppress(ValueError, TypeError):
        if 0 <= (weight := float(value)) < math.inf:  # type: ignore[arg-type]
            return weight
    raise ValueError(f"loss_weight {value!r} is not a number from 0 upward")


@dataclass(frozen=True)
class LabelSplitter:
    """Cells of a label column -> class names.

    Text names one class, in a column called `labels` several with a semicolon between them, or with a comma
    where no cell of the column has a semicolon; a comma within the name of a class separates nothing.
    """

    separator: str = ""
    with_commas: Mapping[str, str] = field(default_factory=dict)  # names of classes that hold commas

    @classmethod
    def of(cls, column: str, texts: Iterable[str], classes: Iterable[str] = ()) -> "LabelSplitter":
        """The splitter for these cells; commas may stand in names of `classes` and of the published lists."""
        if folded(column) != SEVERAL:
            return cls()
        if any(";" in text for text in texts):
            return cls(";")
        names = (*chain.from_iterable(map(label_names, LISTS)), *classes)
        return cls(",", {_joined(name.split(",")): name for name in names if "," in name})

    def __call__(self, value: object) -> list[str]:
        """The classes of a cell, in their order."""
        names = [text_of(item) for item in value] if isinstance(value, list) else [text_of(value)]
        if self.separator and not isinstance(value, list):
            names = [*self._parted(names[0].split(self.separator))]
        return list(dict.fromkeys(composed(name) for name in names if name))

    def _parted(self, parts: Sequence[str]) -> Iterator[str]:
        """The parts of a cell, put together again where they are the name of one class."""
        first = 0
        while first < len(parts):
            ends = range(len(parts), first + 1, -1) if self.with_commas else ()
            end = next((end for end in ends if _joined(parts[first:end]) in self.with_commas), first + 1)
            yield self.with_commas.get(_joined(parts[first:end]), parts[first].strip())
            first = end


def _joined(parts: Sequence[str]) -> str:
    return ",".join(composed(part.strip()) for part in parts)


def clip_row(sound: str, cells: Cells, columns: Columns, split: LabelSplitter | None) -> Cells:
    """A row of a ClipSet without its `id`, the labels by name; a ValueError says why a row is no clip.

    Without a splitter a clip has no labels and needs none.
    """
    labels = split(columns.cell(cells, "label")) if split else []
    if split and not labels:
        raise ValueError(f"no label for {sound}")
    start_s, end_s = span_of(cells, columns)
    if reason := impossible(start_s, end_s):
        raise ValueError(f"{sound} {reason}")
    loss_weight(columns.cell(cells, "loss_weight"))
    folds = (text_of(columns.cell(cells, meaning)) for meaning in ("split", "fold"))
    return {
        **{name: text_of(cells.get(column)) for name, column in columns.more.items()},
        "labels": labels,
        "fold": next(filter(None, folds), ""),
        "start_s": start_s,
        "end_s": end_s,
    }


def in_columns(rows: Iterable[Cells]) -> pa.Table:
    """Rows as an Arrow table, converted a chunk at a time."""
    rows, chunks = iter(rows), []
    while chunk := list(islice(rows, CHUNK_ROWS)):
        chunks.append(pa.Table.from_pylist(chunk))
    return pa.concat_tables(chunks, promote_options="permissive").combine_chunks() if chunks else pa.table({})

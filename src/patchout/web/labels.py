"""Labels of segments in FOLDER/labels.csv: read where others may edit it, changed a row at a time."""

import csv
import os
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from patchout.data.columns import (
    Cells,
    Columns,
    LabelSplitter,
    columns_of,
    folded,
    impossible,
    span_of,
    text_of,
)
from patchout.data.folders import composed
from patchout.data.lists import open_list
from patchout.data.negatives import NEGATIVE, is_negative
from patchout.errors import InputError
from patchout.files import write_aside

NAME = "labels.csv"
HEADER = ("file", "start", "end", "labels", "by", "when")  # end "": of the sound
MAX_LABEL = 100  # characters

Key = tuple[str, float, float | None]


class LabelsError(InputError):
    """A labels.csv that cannot be read, and is therefore not written either."""


class ConflictError(InputError):
    """A row that somebody else has changed since it was shown."""


class Segment(NamedTuple):
    """A labelled segment of a file; of the whole file where `start_s` is 0 and `end_s` None.

    A label with NEGATIVE before it says that the segment is not of this class.
    """

    file: str
    start_s: float
    end_s: float | None
    labels: tuple[str, ...]
    by: str = ""
    when: str = ""

    @property
    def key(self) -> Key:
        """File and times, by which a row is known."""
        return self[:3]


def segment(file: str, start_s: float, end_s: float | None, labels: Sequence[str]) -> Segment:
    """A segment in whole milliseconds with labels that a list can hold; else an InputError."""
    start_s, end_s = round(start_s, 3), None if end_s is None else round(end_s, 3)
    if reason := impossible(start_s, end_s):
        raise InputError(f"{file}: a segment {reason}")
    names = tuple(dict.fromkeys(composed(label.strip()) for label in labels))
    for name in names or ("",):
        is_odd = ";" in name or any(unicodedata.category(sign)[0] == "C" for sign in name)
        if is_odd or not 0 < len(name) <= MAX_LABEL:
            raise InputError(f"label {name!r}: give 1 to {MAX_LABEL} characters without a semicolon")
        if is_negative(name) and name[len(NEGATIVE) :] in ("", *names):
            raise InputError(f"label {name!r}: {NEGATIVE} stands before a class that the sound is not")
    return Segment(file, start_s, end_s, names)


@dataclass
class Labels:
    """The labels of a folder. Every change is on the disk when `change` returns, or has not happened."""

    folder: Path
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _state: tuple[int, ...] | None = None  # of the file that was read
    _header: tuple[str, ...] = HEADER
    _rows: dict[Key, tuple[Segment, Cells]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The list."""
        return self.folder / NAME

    def segments(self) -> list[Segment]:
        """All labelled segments, as the file has them now; LabelsError names the line that is broken."""
        with self._lock:
            self._read()
            return [row for row, _ in self._rows.values()]

    def of(self, file: str) -> list[Segment]:
        """The labelled segments of a file in order of time."""
        return sorted((row for row in self.segments() if row.file == file), key=lambda row: row.start_s)

    def change(self, before: Segment | None, after: Segment | None, *, by: str) -> Segment | None:
        """Replace a row (None: add one) by another (None: delete it), and return the new one.

        ConflictError: `before` is not what the file has, or another row is at the times of `after`.
        """
        with self._lock, self._only_writer():
            self._read()
            for row in (before, after):
                current = self._rows.get(row.key, (None, {}))[0] if row else None
                expected = before.labels if before and row and row.key == before.key else None
                if row and (current and current.labels) != expected:
                    now = f"is {', '.join(current.labels)} by {current.by}" if current else "is gone"
                    raise ConflictError(f"{row.file}: changed in the meantime, this segment {now}")
            rows = dict(self._rows)
            cells = rows.pop(before.key)[1] if before else {}
            if after:
                when = datetime.now(timezone.utc).isoformat(timespec="seconds")
                after = after._replace(by=by, when=when)
                rows[after.key] = after, self._cells(after, cells)
            self._write(rows)
            return after

    def remove_halves(self) -> None:
        """Remove what killed processes have left half written beside the list."""
        with self._only_writer():
            for half in self.folder.glob(f".{self.path.stem}.*{self.path.suffix}"):
                half.unlink()

    @contextmanager
    def _only_writer(self) -> Iterator[None]:
        """Lock out other processes."""
        if not os.access(self.folder, os.W_OK):
            raise PermissionError(13, "no permission to write: labels cannot be kept here", str(self.folder))
        with FileLock(self.folder / f".{NAME}.lock"):
            yield

    def _read(self) -> None:
        """Read the file again if it has changed."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            self._state, self._header, self._rows = None, HEADER, {}
            return
        state = (status.st_mtime_ns, status.st_size, status.st_ino)
        if state == self._state:
            return
        try:
            header, rows = _parse(self.path)
        except (ValueError, OSError) as error:
            self._state = None
            todo = "repair it; until then nothing is written"
            raise LabelsError(f"{str(error).removeprefix(f'{self.path}: ')}: {todo}") from None
        self._state, self._header, self._rows = state, header, rows

    def _cells(self, row: Segment, cells: Cells) -> Cells:
        """The cells of a row but its labels; columns that others have added stay."""
        used = columns_of(self._header)
        end_s = row.end_s if row.end_s is None or not used.has_durations else row.end_s - row.start_s
        times = {"start": f"{row.start_s:.10g}", "end": "" if end_s is None else f"{end_s:.10g}"}
        meanings: dict[str, Any] = {"file": row.file, **times}
        columns = {used.used.get(meaning, meaning): value for meaning, value in meanings.items()}
        return {**cells, **columns, "by": row.by, "when": row.when}

    def _write(self, rows: dict[Key, tuple[Segment, Cells]]) -> None:
        column = columns_of(self._header).used["label"]
        rows = {key: (row, {**cells, column: _text(row, column)}) for key, (row, cells) in rows.items()}
        names = dict.fromkeys(self._header)
        for _, cells in rows.values():
            names |= dict.fromkeys(cells)
        with write_aside(self.path) as aside:
            with aside.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, [*names], lineterminator="\n")
                writer.writeheader()
                writer.writerows(cells for _, cells in rows.values())
            status = aside.stat()
        self._state = (status.st_mtime_ns, status.st_size, status.st_ino)
        self._header, self._rows = (*names,), rows


def _text(row: Segment, column: str) -> str:
    """The labels of a row, separated alike in all rows: one semicolon counts for the whole column."""
    if folded(column) == "labels":
        return ";".join(row.labels) + (";" if any("," in label for label in row.labels) else "")
    if len(row.labels) > 1:
        raise InputError(f"{NAME}: the column {column} holds one label: rename it to labels")
    return row.labels[0]


def _parse(path: Path) -> tuple[tuple[str, ...], dict[Key, tuple[Segment, Cells]]]:
    """Header and rows of a list of labels; a ValueError names the line that is none."""
    sounds = open_list(path)
    columns = sounds.columns()
    if not {"file", "label"} <= columns.used.keys():
        raise ValueError(f"{path}: needs the columns file and labels, its header is {sounds.header}")
    label = columns.used["label"]
    splitter = LabelSplitter.of(label, (text_of(row.cells.get(label)) for row in sounds))
    rows: dict[Key, tuple[Segment, Cells]] = {}
    for row in sounds:
        try:
            if row.reason:
                raise ValueError(row.reason)
            parsed = _segment(row.cells, columns, splitter)
            if parsed.key in rows:
                raise ValueError("a segment that was there before: give it one row, with all its labels")
        except ValueError as error:
            raise ValueError(f"{sounds.place(row)}: {error}") from None
        rows[parsed.key] = parsed, row.cells
    return sounds.header, rows


def _segment(cells: Cells, columns: Columns, splitter: LabelSplitter) -> Segment:
    names, file = splitter(columns.cell(cells, "label")), text_of(columns.cell(cells, "file"))
    if not names or not file:
        raise ValueError("a row needs a file and a label")
    start_s, end_s = span_of(cells, columns)
    row = segment(file, start_s, end_s, names)
    return row._replace(by=text_of(cells.get("by")), when=text_of(cells.get("when")))

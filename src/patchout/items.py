"""What a job works through: files, folders, patterns and lists -> segments of sound files."""

import csv
import glob
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from patchout.data import FILE_COLUMNS, is_sound
from patchout.errors import InputError

COLUMNS = (FILE_COLUMNS, ("start", "start_s"), ("end", "end_s"))  # of a list: other names of its file, start and end


class Item(NamedTuple):
    """A sound file, or its segment from `start_s` to `end_s` seconds."""

    file: str
    start_s: float = 0.0
    end_s: float | None = None


def items_hash(items: Iterable[Item]) -> str:
    """SHA-256 over names and segments in their order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(os.fsencode(item.file) + f"\0{item.start_s!r}\0{item.end_s!r}\n".encode())
    return digest.hexdigest()


def find_files(source: str) -> Iterator[str]:
    """A file as it is named, the sounds below a folder, or what a pattern matches; InputError where that is nothing."""
    path = Path(source).expanduser()
    found, empty = iter((str(path),)), ""
    if path.is_dir():
        found, empty = _walk(path), "a folder without sound files"
    elif not path.exists() and glob.has_magic(source):
        matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        found, empty = filter(os.path.isfile, matches), "no file matches"
    first = next(found, None)
    if first is None:
        raise InputError(f"{source}: {empty}: name sound files, folders with some, or patterns that match some")
    yield first
    yield from found


def _walk(folder: Path) -> Iterator[str]:
    """The sounds below a folder, one directory at a time."""
    for root, folders, files in os.walk(folder):
        folders.sort()
        yield from (os.path.join(root, name) for name in sorted(files) if is_sound(Path(name)))  # noqa: PTH118


def read_items(sources: Sequence[str]) -> list[Item]:
    """Sound files, folders (searched through), patterns, and lists (.csv, .parquet), in this order.

    A list has a column file, filename or path (relative to the list or to `audio/` beside it), and may have start and
    end in seconds. Rows are kept as they stand, twice if they stand twice; one that makes no sense fails later, with
    its reason. A source that leads to nothing is an InputError.
    """
    return [item for source in sources for file in find_files(source) for item in _of_file(Path(file))]


def _of_file(path: Path) -> Iterator[Item]:
    """A sound, or the rows of a list, at least one."""
    if path.suffix.lower() not in (".csv", ".parquet"):
        yield Item(str(path))
        return
    folder: Path | None = None
    for file, start, end in _rows(path):
        name = str(file or "").strip()
        if folder is None:  # the first row says where the files are, so that one missing file moves none
            beside = path.parent / "audio" / name
            folder = beside.parent if beside.is_file() and not (path.parent / name).exists() else path.parent
        end_s = None if end is None or not str(end).strip() else _number(end)
        yield Item(str(folder / name) if name else "", _number(start or 0.0), end_s)
    if folder is None:
        raise InputError(f"{path}: a list without rows: write the names of sound files into it")


def _number(value: object) -> float:
    """Seconds; NaN for what is no number, which is refused when the item is read."""
    try:
        return float(str(value))
    except ValueError:
        return math.nan


def _rows(path: Path) -> Iterator[list[Any]]:
    """File, start and end of every row of a list; None where it has no such column."""
    try:
        if path.suffix.lower() == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                columns = _columns(path, reader.fieldnames or ())
                yield from ([row.get(column) for column in columns] for row in reader)
        else:
            with pq.ParquetFile(path) as table:
                columns = _columns(path, table.schema_arrow.names)
                for batch in table.iter_batches(columns=[column for column in columns if column]):
                    yield from ([row.get(column) for column in columns] for row in batch.to_pylist())
    except (UnicodeDecodeError, csv.Error, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as a table ({error}): save it as CSV in UTF-8, or Parquet") from None


def _columns(path: Path, header: Sequence[str]) -> list[str | None]:
    """Names of the columns with file, start and end."""
    columns = [next((name for name in names if name in header), None) for names in COLUMNS]
    if not columns[0]:
        have = ", ".join(header) or "empty"
        raise InputError(f"{path}: a list needs a column {', '.join(FILE_COLUMNS)}; its header is {have}")
    return columns

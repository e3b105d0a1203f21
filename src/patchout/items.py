"""What a bulk job works through: files, folders, patterns and lists -> segments of sound files, compactly held."""

import csv
import glob
import hashlib
import math
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from patchout.data import FILE_COLUMNS, is_sound
from patchout.errors import InputError

LISTS = (".csv", ".parquet")
START_COLUMNS, END_COLUMNS = ("start", "start_s"), ("end", "end_s")
Row = tuple[object, object, object]  # file, start, end as a list has them


@dataclass(frozen=True)
class Item:
    """A sound file, or its segment from `start_s` to `end_s` seconds."""

    file: str
    start_s: float = 0.0
    end_s: float | None = None


class Items(Sequence[Item]):
    """Items in some 30 bytes more than their names: a million files fit into 150 MB."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._names = bytearray()
        self._name_ends = array("q", [0])
        self._spans = array("d")
        for item in items:
            self._names += os.fsencode(item.file)
            self._name_ends.append(len(self._names))
            self._spans.extend((item.start_s, math.inf if item.end_s is None else item.end_s))

    def __len__(self) -> int:
        return len(self._name_ends) - 1

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        places = range(len(self))[index]
        return self._at(places) if isinstance(places, int) else Items(self._at(place) for place in places)

    def _at(self, place: int) -> Item:
        start_s, end_s = self._spans[2 * place : 2 * place + 2]
        name = bytes(self._names[self._name_ends[place] : self._name_ends[place + 1]])
        return Item(os.fsdecode(name), start_s, None if end_s == math.inf else end_s)


def items_hash(items: Iterable[Item]) -> str:
    """SHA-256 over names and segments in their order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(os.fsencode(item.file) + f"\0{item.start_s!r}\0{item.end_s!r}\n".encode())
    return digest.hexdigest()


def read_items(sources: Sequence[str]) -> Items:
    """Sound files, folders (searched through, in order of name), patterns, and lists (.csv, .parquet), in this order.

    A list has a column file, filename or path (relative to the list or to `audio/` beside it), and may have start and
    end in seconds. Rows are kept as they stand, twice if they stand twice; one that makes no sense fails later, with
    its reason. A source that leads to nothing is an InputError.
    """
    return Items(item for source in sources for item in _expand(source))


def _expand(source: str) -> Iterator[Item]:
    """The items of one source, at least one."""
    path = Path(source).expanduser()
    if path.is_dir():
        found, empty = _walk(path), "a folder without sound files"
    elif not path.exists() and glob.has_magic(source):
        matches = sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())  # noqa: PTH207
        found, empty = (item for name in matches for item in _of_file(Path(name))), "no file matches"
    else:
        found, empty = _of_file(path), "a list without rows"
    first = next(found, None)
    if first is None:
        raise InputError(f"{source}: {empty}: name sound files, folders, patterns, or lists (.csv, .parquet)")
    yield first
    yield from found


def _walk(folder: Path) -> Iterator[Item]:
    """The sounds below a folder, one directory at a time."""
    for root, folders, files in os.walk(folder):
        folders.sort()
        yield from (Item(os.path.join(root, name)) for name in sorted(files) if is_sound(Path(name)))  # noqa: PTH118


def _of_file(path: Path) -> Iterator[Item]:
    """A sound, or the rows of a list."""
    if path.suffix.lower() not in LISTS:
        yield Item(str(path))
        return
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such list of files")
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _parquet_rows(path)
    folder: Path | None = None
    for file, start, end in rows:
        name = str(file or "").strip()
        if folder is None:  # the first row says where the files are, so that one missing file moves none
            beside = path.parent / "audio" / name
            folder = beside.parent if beside.is_file() and not (path.parent / name).exists() else path.parent
        end_s = None if end is None or not str(end).strip() else _number(end)
        yield Item(str(folder / name) if name else "", _number(start or 0.0), end_s)


def _number(value: object) -> float:
    """Seconds; NaN for what is no number, which is refused when the item is read."""
    try:
        return float(str(value))
    except ValueError:
        return math.nan


def _csv_rows(path: Path) -> Iterator[Row]:
    """File, start and end of every row of a CSV."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = _columns(path, reader.fieldnames or ())
            for row in reader:
                name, start, end = (row.get(column) if column else None for column in columns)
                yield name, start, end
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table ({error}): save it as CSV in UTF-8") from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    """File, start and end of every row of a Parquet file, read in pieces."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = _columns(path, file.schema_arrow.names)
            for batch in file.iter_batches(columns=[column for column in columns if column]):
                cells = [batch[column].to_pylist() if column else [None] * len(batch) for column in columns]
                yield from zip(*cells, strict=True)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: cannot be read as Parquet ({error})") from None


def _columns(path: Path, header: Sequence[str]) -> tuple[str | None, str | None, str | None]:
    """Names of the columns with file, start and end."""
    file, start, end = (
        next((name for name in names if name in header), None) for names in (FILE_COLUMNS, START_COLUMNS, END_COLUMNS)
    )
    if file is None:
        have = ", ".join(header) or "empty"
        raise InputError(f"{path}: a list needs a column {', '.join(FILE_COLUMNS)}; its header is {have}")
    return file, start, end

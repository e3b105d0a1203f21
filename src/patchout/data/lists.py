"""Lists of sounds as CSV, TSV, JSONL, Parquet or text in any dialect -> rows of cells."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from patchout.data.columns import COLUMNS, Cells, Columns, columns_of, folded, is_small
from patchout.data.folders import is_sound
from patchout.errors import DataError
from patchout.files import without_stream

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")
DELIMITERS = (",", ";", "\t")
BEFORE_HEADER = re.compile(r"(#.*|sep=.)?")  # comments and blank lines


class Row(NamedTuple):
    """A row of a list: its number, and its cells by column, or the reason why they cannot be read."""

    number: int
    cells: Cells
    reason: str = ""


Table: TypeAlias = tuple[tuple[str, ...], Callable[[], Iterator[Row]]]  # header, and a reader of the rows


@dataclass(frozen=True)
class SoundList:
    """A table in a file, with the names of its columns; each iteration reads the rows again."""

    path: Path
    header: tuple[str, ...]
    rows: Callable[[], Iterator[Row]]

    def __iter__(self) -> Iterator[Row]:
        with _readable(self.path):
            yield from self.rows()

    def columns(self) -> Columns:
        """The columns by their meaning; a DataError names the list and the column that stands there twice."""
        try:
            return columns_of(self.header)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from None

    def place(self, row: Row) -> str:
        """The file and line (or row) of a row, for error messages."""
        return f"{self.path.name} {'row' if self.path.suffix.lower() == '.parquet' else 'line'} {row.number}"


def open_list(path: Path) -> SoundList:
    """A list of any kind; DataError for a file that is no table.

    The separator of text is a comma, a semicolon or a tab, as the header has it; blank lines and comments (#)
    may stand before it. A text without a header names a file a line.
    """
    reader = {".jsonl": _json_lines, ".parquet": _parquet}.get(path.suffix.lower(), _separated)
    with _readable(path):
        return SoundList(path, *reader(path))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError, pa.ArrowException) as error:
        hint = "save it as CSV or JSONL in UTF-8, or Parquet"
        raise DataError(f"{path}: cannot be read as a table ({error}): {hint}") from None


def _separated(path: Path) -> Table:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = enumerate(file, 1)
        skipped, first = next(
            (line for line in lines if not BEFORE_HEADER.fullmatch(line[1].strip())), (0, "")
        )
    readers = {sign: csv.reader([first], delimiter=sign, skipinitialspace=True) for sign in DELIMITERS}
    headers = {sign: tuple(map(str.strip, next(reader, []))) for sign, reader in readers.items()}
    delimiter = max(headers, key=lambda sign: (_names_files(headers[sign]), len(headers[sign])))
    header = headers[delimiter]
    if path.suffix.lower() == ".txt" and not _names_files(header):
        return ("file",), lambda: _named_files(path)
    return header, lambda: _separated_rows(path, header, delimiter, skipped)


def _names_files(header: Sequence[str]) -> bool:
    return any(folded(name) in COLUMNS["file"] for name in header)


def _named_files(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not line.startswith("#"):
                yield Row(number, {"file": line.strip()})


def _separated_rows(path: Path, header: Sequence[str], delimiter: str, skipped: int) -> Iterator[Row]:
    """The rows after the first lines; a quote that is not closed, and swallows rows, is a DataError."""
    lines: list[str] = []  # of the present row

    def recorded(file: Iterable[str]) -> Iterator[str]:
        for line in chain(file, ["\n"]):  # a blank line that is no row of its own is inside a quote
            lines.append(line)
            yield line

    place = next((place for place, name in enumerate(header) if folded(name) in COLUMNS["file"]), len(header))

    def is_row(line: str) -> bool:
        cells = line.split(delimiter)
        return len(cells) > place and is_sound(Path(without_stream(cells[place].strip(' \r\n"'))[0]))

    with path.open(newline="", encoding="utf-8-sig") as file:
        for _ in range(skipped):
            next(file)
        reader, cells = csv.reader(recorded(file), delimiter=delimiter, skipinitialspace=True), list[str]()
        try:
            for cells in reader:
                number = skipped + reader.line_num - len(lines) + 1
                if any(map(is_row, lines[1:])):
                    raise csv.Error("a quote that swallows rows")
                lines.clear()
                if any(map(str.strip, cells[len(header) :])):
                    signs = f"quote what has a {delimiter!r} in it"
                    yield Row(number, {}, f"has {len(cells)} cells, the header has {len(header)}: {signs}")
                elif cells:
                    yield Row(number, dict(zip(header, cells, strict=False)))
        except csv.Error as error:
            if len(lines) < 2:
                raise
            cells, number = [str(error)], skipped + reader.line_num - len(lines) + 1
        if cells:
            todo = 'close it, or write "" for a quote inside a text'
            problem = "a quote is opened here and swallows the lines after it"
            raise DataError(f"{path} line {number}: {problem}: {todo}")


def _json_lines(path: Path) -> Table:
    """One object a line; its names may differ from line to line."""

    def rows() -> Iterator[Row]:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _json_row(number, line)

    header: dict[str, None] = {}
    for row in rows():
        header |= dict.fromkeys(row.cells)
    if not header:
        with path.open(encoding="utf-8-sig") as file:
            json.loads(next(filter(str.strip, file), "{}"))
    return tuple(header), rows


def _json_row(number: int, line: str) -> Row:
    try:
        cells = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        return Row(number, {}, str(error))
    is_row = isinstance(cells, dict)
    return Row(number, cells if is_row else {}, "" if is_row else "is not an object with names and values")


def _parquet(path: Path) -> Table:
    with pq.ParquetFile(path) as table:
        columns = [field.name for field in table.schema_arrow if is_small(field.type)]

    def rows() -> Iterator[Row]:
        with pq.ParquetFile(path) as table:
            batches = table.iter_batches(columns=columns, use_threads=False)
            for number, cells in enumerate(chain.from_iterable(map(pa.RecordBatch.to_pylist, batches)), 1):
                yield Row(number, cells)

    return tuple(columns), rows

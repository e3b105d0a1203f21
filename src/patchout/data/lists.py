"""Lists of sounds: CSV, TSV, JSONL, Parquet or text in any dialect -> rows with a file, a segment, labels, a split."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from patchout.data.columns import COLUMNS, Cells, folded, is_small
from patchout.data.folders import is_sound
from patchout.errors import DataError
from patchout.files import without_stream

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".txt")
DELIMITERS = (",", ";", "\t")
ASIDE = re.compile(r"(#.*|sep=.)?")  # lines before the header


class Row(NamedTuple):
    """A row of a list: its number, and its cells by column, or the reason why they cannot be read."""

    number: int
    cells: Cells
    reason: str = ""


@dataclass(frozen=True)
class SoundList:
    """A table in a file, with the names of its columns; iterating reads the rows, each time anew."""

    path: Path
    header: tuple[str, ...]
    rows: Callable[[], Iterator[Row]]

    def __iter__(self) -> Iterator[Row]:
        with _readable(self.path):
            yield from self.rows()

    def place(self, row: Row) -> str:
        """Where a row stands, for people."""
        return f"{self.path.name} {'row' if self.path.suffix.lower() == '.parquet' else 'line'} {row.number}"


def open_list(path: Path) -> SoundList:
    """A list of any kind; DataError for a file that is no table.

    The separator of text is a comma, a semicolon or a tab, as the header has it; blank lines and comments (#) may
    stand before it. A text without a header names a file a line.
    """
    suffix = path.suffix.lower()
    read = {".jsonl": _json_lines, ".parquet": _parquet}.get(suffix, _separated)
    with _readable(path):
        return SoundList(path, *read(path))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError, pa.ArrowException) as error:
        hint = "save it as CSV or JSONL in UTF-8, or Parquet"
        raise DataError(f"{path}: cannot be read as a table ({error}): {hint}") from None


# -- files -> rows -----------------------------------------------------------------------------------------------------


def _separated(path: Path) -> tuple[tuple[str, ...], Callable[[], Iterator[Row]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = enumerate(file, 1)
        skipped, first = next((line for line in lines if not ASIDE.fullmatch(line[1].strip())), (0, ""))
    headers = {sign: _header(first, sign) for sign in DELIMITERS}
    delimiter = max(headers, key=lambda sign: (_names_files(headers[sign]), len(headers[sign])))
    header = headers[delimiter]
    if path.suffix.lower() == ".txt" and not _names_files(header):
        return ("file",), lambda: _named_files(path)
    return header, lambda: _separated_rows(path, header, delimiter, skipped)


def _header(line: str, delimiter: str) -> tuple[str, ...]:
    cells = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    return tuple(cell.strip() for cell in cells)


def _names_files(header: Sequence[str]) -> bool:
    return any(folded(name) in COLUMNS["file"] for name in header)


def _named_files(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip() and not line.startswith("#"):
                yield Row(number, {"file": line.strip()})


def _separated_rows(path: Path, header: Sequence[str], delimiter: str, skipped: int) -> Iterator[Row]:
    """Rows after the first lines; a quote that is left open, and swallows rows, is a DataError with its line."""
    lines: list[str] = []  # of the row that is read

    def read(file: Iterable[str]) -> Iterator[str]:
        for line in chain(file, ["\n"]):  # a blank line that is no row of its own is inside a quote
            lines.append(line)
            yield line

    where = next((place for place, name in enumerate(header) if folded(name) in COLUMNS["file"]), len(header))

    def is_row(line: str) -> bool:
        cells = line.split(delimiter)
        return len(cells) > where and is_sound(Path(without_stream(cells[where].strip(' \r\n"'))[0]))

    with path.open(newline="", encoding="utf-8-sig") as file:
        for _ in range(skipped):
            next(file)
        reader, cells = csv.reader(read(file), delimiter=delimiter, skipinitialspace=True), list[str]()
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
            raise DataError(
                f"{path} line {number}: a quote is opened here and swallows the lines after it: {todo}"
            )


def _json_lines(path: Path) -> tuple[tuple[str, ...], Callable[[], Iterator[Row]]]:
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
    return (
        Row(number, cells)
        if isinstance(cells, dict)
        else Row(number, {}, "is not an object with names and values")
    )


def _parquet(path: Path) -> tuple[tuple[str, ...], Callable[[], Iterator[Row]]]:
    with pq.ParquetFile(path) as table:
        schema = table.schema_arrow
    wanted = [field.name for field in schema if is_small(field.type)]

    def rows() -> Iterator[Row]:
        number = 0
        with pq.ParquetFile(path) as table:
            for batch in table.iter_batches(columns=wanted, use_threads=False):
                for number, cells in enumerate(batch.to_pylist(), number + 1):  # noqa: B020
                    yield Row(number, cells)

    return tuple(wanted), rows

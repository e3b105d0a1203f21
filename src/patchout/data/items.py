"""The sounds of a job: files, folders, patterns and lists -> segments of sound files."""

import glob
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from patchout.data import lists
from patchout.data.columns import COLUMNS, impossible, span_of, text_of
from patchout.data.folders import Finder, at_home, refuse_url, walk
from patchout.errors import InputError
from patchout.files import without_stream


class Item(NamedTuple):
    """A sound file, or its segment from `start_s` to `end_s` seconds."""

    file: str
    start_s: float = 0.0
    end_s: float | None = None
    reason: str = ""  # why a row of a list is no segment


def items_hash(items: Iterable[Item]) -> str:
    """SHA-256 over names and segments in their order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(os.fsencode(item.file) + f"\0{item.start_s!r}\0{item.end_s!r}\n".encode())
    return digest.hexdigest()


def _refuse(problem: str) -> None:
    raise InputError(problem)


def find_files(source: str, on_problem: Callable[[str], None] = _refuse) -> Iterator[str]:
    """The file of this name, the sounds below a folder, or the matches of a pattern.

    `on_problem` gets folders that cannot be read. InputError where there is no file.
    """
    refuse_url(source)
    path = Path(source).expanduser()
    files, empty = iter((str(path),)), ""
    if path.is_dir():
        files, empty = walk(path, on_problem), "a folder without sound files"
    elif not path.exists() and glob.has_magic(source):
        pattern, stream = without_stream(str(path))
        matches = sorted(filter(os.path.isfile, glob.glob(pattern, recursive=True)))  # noqa: PTH207
        files, empty = (match + stream for match in matches), "no file matches"
    first = next(files, None)
    if first is None:
        todo = "name sound files, folders with some, or patterns that match some"
        raise InputError(f"{source}: {empty}: {todo}")
    yield first
    yield from files


def read_items(
    sources: Sequence[str],
    on_problem: Callable[[str], None] = _refuse,
    on_note: Callable[[str], None] = lambda note: None,
) -> list[Item]:
    """The sounds of files, folders (searched through), patterns and lists (`lists.SUFFIXES`), in this order.

    A list has the columns of `columns.COLUMNS`, of which file, start and end are read; its files lie beside
    it or in `audio/` there. Rows stay as they are, twice if they stand twice; one whose file or times make no
    sense fails later, with its reason. `on_problem` gets rows and folders that cannot be read, `on_note`
    columns that look as if they were read. A source without sounds is an InputError.
    """
    items = []
    for source in sources:
        for file in find_files(source, on_problem):
            suffix, is_named = Path(file).suffix.lower(), file == str(Path(source).expanduser())
            is_list = suffix in lists.SUFFIXES and (suffix != ".txt" or is_named)
            items += _listed(Path(file), on_problem, on_note) if is_list else [Item(file)]
    return items


def _listed(path: Path, on_problem: Callable[[str], None], on_note: Callable[[str], None]) -> list[Item]:
    """The rows of a list, at least one; a missing file is expected in the folder of the first that exists."""
    sounds, finder = lists.open_list(path), Finder(path.parent)
    columns = sounds.columns()
    if "file" not in columns.used:
        header = ", ".join(sounds.header) or "empty"
        needed = f"a list needs a column {', '.join(COLUMNS['file'])}"
        raise InputError(f"{path}: {needed}; its header is {header}")
    for note in columns.notes:
        on_note(f"{path.name}: {note}")
    rows: list[tuple[str, str, Item]] = []  # name, place, segment
    for row in sounds:
        name, place = text_of(columns.cell(row.cells, "file")), ""
        try:
            if row.reason:
                raise ValueError(row.reason)
            with suppress(OSError):  # a file that is missing or locked fails when it is read
                place = finder.find(name)
        except ValueError as error:
            on_problem(f"{sounds.place(row)}: {error}")
            continue
        try:
            start_s, end_s = span_of(row.cells, columns)
            reason = impossible(start_s, end_s) if name else "a row without the name of a file"
        except ValueError as error:
            start_s, end_s, reason = math.nan, None, str(error)
        rows.append((name, place, Item("", start_s, end_s, reason)))
    if not rows:
        raise InputError(f"{path}: a list without rows: write the names of sound files into it")
    first = next(((name, place) for name, place, _ in rows if place), ("", ""))
    folder = path.parent / "audio" if first[1] == f"audio/{first[0]}" else path.parent
    return [
        item._replace(file=str(path.parent / place if place else folder / at_home(name)) if name else "")
        for name, place, item in rows
    ]

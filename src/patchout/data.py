"""Every kind of data set -> its clips: class folders, lists, prepared sets, sets of the hub."""

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow as pa
import pyarrow.compute as pc

from patchout.audio import Channel
from patchout.clips import OWN_COLUMNS, ClipSet, DataError, Packed, by_name, rows_of
from patchout.hub import HUB, load

__all__ = ["FILE_COLUMNS", "ClipSet", "DataError", "is_sound", "scan", "scan_sounds"]

SUFFIXES = frozenset(
    (
        *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".caf", ".au"),
        *(".m4a", ".aac", ".mp4", ".webm", ".wma", ".mka", ".mkv", ".mov", ".3gp", ".amr", ".ac3"),
    )
)
FILE_COLUMNS = ("filename", "file", "path")
LABEL_COLUMNS = ("category", "label", "labels")
LISTS = (".csv", ".jsonl")
PREPARED = "dataset.json"
FORMAT = 1  # of prepared sets
CHUNK_ROWS = 65_536  # rows that stand in Python objects at a time

Row = dict[str, Any]


def scan(source: str | os.PathLike[str], *, channel: Channel = "mean") -> ClipSet:
    """Read a data set, whose sounds will be heard as the mean of their channels or one of them.

    `source` is a folder of class folders, a folder with one CSV or JSONL on top, that list itself, a folder made by
    `patchout prepare`, or "hf://owner/name[:split]". A list needs a column filename, file or path (beside it, or in
    `audio/`) and one of category, label (one name) or labels (several, separated by ; or ,); it may have split, fold,
    group, start and end (seconds) and further columns. Raises DataError.
    """
    path = Path(source)
    if os.fspath(source).startswith(HUB):
        clips = load(os.fspath(source))
    elif (path / PREPARED).is_file():
        clips = _prepared(path)
    elif path.is_file() and path.suffix.lower() in LISTS:
        clips = _listed(path, path)
    elif path.is_dir():
        clips = _folder(path)
    else:
        kinds = (
            "a folder of class folders, one with a CSV on top, a list (.csv, .jsonl), a prepared set, hf://owner/name"
        )
        raise DataError(f"{path}: {'is none of these' if path.exists() else 'no such folder'}: give {kinds}")
    return replace(clips, channel=channel)


def scan_sounds(source: str | os.PathLike[str]) -> ClipSet:
    """The sounds of a data set without their labels, which it need not have: a clip set of no class.

    `source` is a folder with sounds at any depth (lists in it do not count), a list, or what `scan` takes besides.
    Raises DataError.
    """
    path, problems = Path(source), list[str]()
    if path.is_dir() and not (path / PREPARED).is_file():
        found = (at for at in sorted(path.rglob("*")) if is_sound(at) and at.is_file())
        rows: Iterable[Row] = ({"id": str(at.relative_to(path))} for at in found)
        clips = ClipSet(path, (), "multi_class", _in_columns(rows), path)
    elif path.is_file() and path.suffix.lower() in LISTS:
        rows = _list_rows(path, problems, labelled=False)
        table = _in_columns(rows)  # fills the problems
        clips = ClipSet(path, (), "multi_class", table, path.parent, problems=tuple(problems))
    else:
        clips = scan(source)
    if not len(clips):
        raise DataError(f"{path}: {problems[0] if problems else 'no sounds in it'}")
    others = [name for name in clips.table.column_names if name not in ("labels", "probabilities", "known")]
    none = pa.array([[]] * len(clips), pa.list_(pa.int32()))
    table = clips.table.select(others).append_column("labels", none)
    return replace(clips, classes=(), task="multi_class", table=table)


def is_sound(path: Path) -> bool:
    """Whether a file's name says that it holds sound."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


# -- files ------------------------------------------------------------------------------------------------------------


def _folder(folder: Path) -> ClipSet:
    """The clips of the list on top, else every sub-folder is a class."""
    lists = sorted(path for path in folder.iterdir() if path.suffix.lower() in LISTS and not path.name.startswith("."))
    if len(lists) > 1:
        raise DataError(f"{folder}: {len(lists)} lists on top ({', '.join(t.name for t in lists)}): leave one")
    if lists:
        return _listed(lists[0], folder)
    problems: list[str] = []
    return _of_files(folder, folder, _in_columns(_folder_rows(folder, problems)), problems)


def _listed(table: Path, root: Path) -> ClipSet:
    problems: list[str] = []
    return _of_files(root, table.parent, _in_columns(_list_rows(table, problems)), problems)


def _in_columns(rows: Iterable[Row]) -> pa.Table:
    """A table of the rows, made a chunk at a time."""
    rows, chunks = iter(rows), []
    while chunk := list(islice(rows, CHUNK_ROWS)):
        chunks.append(pa.Table.from_pylist(chunk))
    return pa.concat_tables(chunks, promote_options="permissive").combine_chunks() if chunks else pa.table({})


def _of_files(root: Path, folder: Path, table: pa.Table, problems: Sequence[str]) -> ClipSet:
    if not len(table):
        raise DataError(f"{root}: no clips ({problems[0] if problems else 'no class folders with sounds, and no CSV'})")
    return by_name(ClipSet(root, (), "multi_class", table, folder, problems=tuple(problems)))


def _folder_rows(root: Path, problems: list[str]) -> Iterator[Row]:
    """Every sound below a sub-folder belongs to the class of that name, whatever the name is."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        sounds = [path for path in sorted(folder.rglob("*")) if is_sound(path) and path.is_file()]
        if not sounds:
            problems.append(f"{folder.name}: a class folder without sounds")
        yield from ({"id": str(path.relative_to(root)), "labels": [folder.name]} for path in sounds)


class _Columns(NamedTuple):
    """What the columns of a list are called."""

    file: str
    label: str
    more: tuple[str, ...]


def _list_rows(table: Path, problems: list[str], *, labelled: bool = True) -> Iterator[Row]:
    """Clips of a list, which without `labelled` needs no labels; unusable rows go to `problems` by line number."""
    seen: set[tuple[object, ...]] = set()
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            header, lines = _csv_lines(file) if table.suffix.lower() == ".csv" else _json_lines(file)
            columns = _columns(table, header, labelled=labelled)
            for number, line in lines:
                try:
                    row = _row(line, table.parent, columns)
                    key = row["id"], row.get("start_s"), row.get("end_s")
                    if key in seen:
                        raise ValueError(f"{row['id']} was there before: give each sound one row, with all its labels")
                except (ValueError, FileNotFoundError) as error:
                    problems.append(f"{table.name} line {number}: {error}")
                    continue
                seen.add(key)
                yield row
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise DataError(f"{table}: cannot be read as a table ({error}): save it as CSV or JSONL in UTF-8") from None


def _csv_lines(file: TextIO) -> tuple[Sequence[str], Iterator[tuple[int, Row]]]:
    reader = csv.reader(file)
    header = next(reader, [])
    return header, ((reader.line_num, dict(zip(header, cells, strict=False))) for cells in reader if cells)


def _json_lines(file: TextIO) -> tuple[Sequence[str], Iterator[tuple[int, str]]]:
    """The first object says which columns there are."""
    lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
    first = next(lines, (1, "{}"))
    held = json.loads(first[1])
    return list(held) if isinstance(held, dict) else [], chain([first], lines)


def _columns(table: Path, header: Sequence[str], *, labelled: bool) -> _Columns:
    """The columns of a list with this header, the further ones without those that have a meaning here."""
    file, label = (next((name for name in names if name in header), "") for names in (FILE_COLUMNS, LABEL_COLUMNS))
    if not file or (labelled and not label):
        needed = (FILE_COLUMNS, LABEL_COLUMNS) if labelled else (FILE_COLUMNS,)
        wanted = " and ".join(f"one of {', '.join(names)}" for names in needed)
        raise DataError(f"{table}: needs the columns {wanted}, its header is {', '.join(header) or 'empty'}")
    known = {file, label, "split", "start", "end", *OWN_COLUMNS, ""}
    return _Columns(file, label if labelled else "", tuple(name for name in header if name not in known))


def _row(line: Row | str, folder: Path, columns: _Columns) -> Row:
    """One row of a list."""
    row: Row = json.loads(line) if isinstance(line, str) else line
    if not isinstance(row, dict):
        raise ValueError("is not an object with names and values")
    name = _text(row.get(columns.file))
    found = next((place for place in (name, f"audio/{name}") if name and (folder / place).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"no file {name!r} beside it or in audio/")
    given = row.get(columns.label)
    labels = given if isinstance(given, list) else [given]
    if columns.label == "labels" and not isinstance(given, list):
        labels = _text(given).replace(";", ",").split(",")
    labels = [_text(label) for label in labels]
    if columns.label and not all(labels or [""]):
        raise ValueError(f"no label for {name}")
    start_s, end_s = float(row.get("start") or 0.0), float(row.get("end") or math.inf)
    if not 0 <= start_s < end_s:
        raise ValueError(f"{name} cannot start at {start_s:g} s and end at {end_s:g} s")
    return {
        **{name: _text(row.get(name)) for name in columns.more},
        "id": found,
        "labels": list(dict.fromkeys(labels)),
        "fold": _text(row.get("split")) or _text(row.get("fold")),
        "start_s": start_s,
        "end_s": end_s if end_s < math.inf else None,
    }


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


# -- Arrow ------------------------------------------------------------------------------------------------------------


def _prepared(folder: Path) -> ClipSet:
    """What `patchout prepare` made; `datasets.load_from_disk` opens the same folder, after 2 s of imports."""
    try:
        info = json.loads((folder / PREPARED).read_text("utf-8"))
        state = json.loads((folder / "state.json").read_text("utf-8"))
        files = [str(folder / file["filename"]) for file in state["_data_files"]]
        classes, task = tuple(info["classes"]), info["task"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: is not a whole prepared set ({error!r}): prepare it again") from None
    if info.get("format") != FORMAT:
        raise DataError(f"{folder}: is of format {info.get('format')}, this version reads {FORMAT}: update patchout")
    table = rows_of(files)
    kept = {"fold" if name == "split" else name: table[name] for name in table.column_names if name != "audio"}
    table = pa.table(kept).combine_chunks()
    largest = pc.max(pc.list_flatten(table["labels"])).as_py()
    if largest is not None and largest >= len(classes):
        raise DataError(f"{folder}: has label {largest}, {PREPARED} names {len(classes)} classes: prepare it again")
    return ClipSet(folder, classes, task, table, packed=Packed(tuple(files)), info=info)

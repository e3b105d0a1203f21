"""Every kind of data set -> its clips: class folders, lists, prepared sets, sets of the hub."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath

import pyarrow as pa
import pyarrow.compute as pc

from patchout.audio.stream import Channel
from patchout.data import lists
from patchout.data.clips import ClipSet, DataError, Packed, by_name, rows_of
from patchout.data.columns import (
    COLUMNS,
    Cells,
    Columns,
    LabelSplitter,
    clip_row,
    columns_of,
    in_columns,
    text_of,
)
from patchout.data.folders import Finder, Labelled, by_folders, is_sound, refuse_url, split_of, walk
from patchout.data.hub import HUB, folder_of, load, name_of
from patchout.data.lists import SoundList, open_list

__all__ = ["ClipSet", "DataError", "is_sound", "scan", "scan_sounds"]

PREPARED = "dataset.json"
FORMAT = 1  # of prepared sets
TABLES = (".csv", ".tsv", ".jsonl")  # that lie on top of a folder to say what it holds
METADATA = "metadata"  # the stem of a list that the hub lays among sounds, at any depth


def scan(
    source: str | os.PathLike[str], *, channel: Channel = "mean", classes: Sequence[str] = ()
) -> ClipSet:
    """Read a data set, whose sounds will be heard as the mean of their channels or one of them.

    `source` is a folder of class folders (below folders of splits or not), a folder with a list on top, a list
    (`lists.SUFFIXES`), a folder made by `patchout prepare`, or "hf://owner/name[:split]". `columns.COLUMNS` has the
    columns of a list: a file (beside it, or in `audio/`), a label, and perhaps more. Text that names several classes is
    not parted within the names of `classes`. Raises DataError.
    """
    path = Path(source).expanduser()
    if os.fspath(source).startswith(HUB):
        clips = _of_hub(os.fspath(source), classes)
    elif (path / PREPARED).is_file():
        clips = _prepared(path)
    elif path.is_file() and path.suffix.lower() in lists.SUFFIXES:
        clips = _listed([open_list(path)], path, classes)
    elif path.is_dir():
        clips = _folder(path, classes)
    else:
        refuse_url(os.fspath(source))
        endings = ", ".join(lists.SUFFIXES)
        kinds = f"a folder of class folders, one with a CSV on top, a list ({endings}), a prepared set, hf://owner/name"
        raise DataError(f"{path}: {'is none of these' if path.exists() else 'no such folder'}: give {kinds}")
    return replace(clips, channel=channel)


def scan_sounds(source: str | os.PathLike[str]) -> ClipSet:
    """The sounds of a data set without their labels, which it need not have: a clip set of no class.

    `source` is a folder with sounds at any depth (lists in it do not count), a list, or what `scan` takes besides.
    Raises DataError.
    """
    path, problems = Path(source).expanduser(), list[str]()
    if path.is_dir() and not (path / PREPARED).is_file():
        table = in_columns({"id": name, "fold": split_of(name)} for name in _walked(path, problems))
        clips = ClipSet(path, (), "multi_class", table, path, problems=tuple(problems))
    elif path.is_file() and path.suffix.lower() in lists.SUFFIXES:
        clips = _listed([open_list(path)], path, None)
    else:
        clips = scan(source)
    if not len(clips):
        raise DataError(f"{path}: {clips.problems[0] if clips.problems else 'no sounds in it'}")
    others = [name for name in clips.table.column_names if name not in ("labels", "probabilities", "known")]
    none = pa.array([[]] * len(clips), pa.list_(pa.int32()))
    table = clips.table.select(others).append_column("labels", none)
    return replace(clips, classes=(), task="multi_class", table=table)


# -- folders ----------------------------------------------------------------------------------------------------------


def _walked(folder: Path, problems: list[str]) -> list[str]:
    """The sounds below a folder by their paths in it, in alphabetical order of their folders."""
    paths = (os.path.relpath(path, folder) for path in walk(folder, problems.append))
    return sorted(paths, key=lambda path: PurePath(path).parts)


def _folder(folder: Path, classes: Sequence[str]) -> ClipSet:
    """The clips of the list on top, else of the lists of metadata below, else of folders that are classes."""
    on_top, reasons = _usable(path for path in folder.iterdir() if path.suffix.lower() in lists.SUFFIXES)
    if len(on_top) > 1:
        names = ", ".join(sounds.path.name for sounds in on_top)
        raise DataError(
            f"{folder}: {len(on_top)} lists on top ({names}): leave one, or give one of them as the data"
        )
    if on_top:
        return _listed(on_top, folder, classes)
    below, _ = _usable(
        path for path in folder.rglob(f"{METADATA}.*") if path.suffix.lower() in lists.SUFFIXES
    )
    if below:
        return _listed(below, folder, classes)
    problems: list[str] = []
    found = by_folders([path for path in _walked(folder, problems) if _is_in_class(path)])
    if reasons and len({sound.label for sound in found}) < 2:  # sounds in one folder are those of a list
        raise DataError(reasons[0])
    problems += (f"{reason}; the folders are the classes" for reason in reasons)
    tops = {PurePath(sound.path).parts[0] for sound in found}
    idle = (path.name for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in tops)
    problems += (f"{name}: a class folder without sounds" for name in idle if not name.startswith("."))
    table = in_columns(map(_folder_row, found))
    if not len(table):
        why = problems[0] if problems else "no class folders with sounds, and no CSV"
        raise DataError(f"{folder}: no clips ({why})")
    used = {"label": "the folders"} | ({"split": "the folders"} if found[0].split else {})
    return by_name(ClipSet(folder, (), "multi_class", table, folder, problems=tuple(problems), columns=used))


def _is_in_class(path: str) -> bool:
    """Whether a sound lies in a folder that is not hidden."""
    parts = PurePath(path).parts
    return len(parts) > 1 and not parts[0].startswith(".")


def _folder_row(sound: Labelled) -> Cells:
    fold = {"fold": sound.split} if sound.split else {}
    return {"id": sound.path, "labels": [sound.label], **fold}


# -- lists ------------------------------------------------------------------------------------------------------------


def _usable(paths: Iterable[Path]) -> tuple[list[SoundList], list[str]]:
    """The lists among files that have a file and a label, and why the other tables have not."""
    usable, reasons = list[SoundList](), list[str]()
    for path in sorted(path for path in paths if not path.name.startswith(".")):
        try:
            sounds = open_list(path)
            _columns(sounds, labelled=True)
        except (DataError, OSError) as error:
            reasons += [str(error)] if path.suffix.lower() in TABLES else []
        else:
            usable.append(sounds)
    return usable, reasons


def _columns(sounds: SoundList, *, labelled: bool) -> Columns:
    """The columns of a list; DataError where one that is needed is not there."""
    try:
        columns = columns_of(sounds.header)
    except DataError as error:
        raise DataError(f"{sounds.path}: {error}") from None
    needed = ("file", "label") if labelled else ("file",)
    if not columns.used.keys() >= {*needed}:
        wanted = " and ".join(f"one of {', '.join(COLUMNS[meaning])}" for meaning in needed)
        raise DataError(
            f"{sounds.path}: needs the columns {wanted}, its header is {', '.join(sounds.header) or 'empty'}"
        )
    return columns


def _listed(tables: Sequence[SoundList], root: Path, classes: Sequence[str] | None) -> ClipSet:
    """The clips of lists, by their paths below the folder; with None instead of classes they have no labels."""
    reader = _Reader(root if root.is_dir() else root.parent, classes)
    table = in_columns(row for sounds in tables for row in reader.rows(sounds))
    clips = ClipSet(root, (), "multi_class", table, reader.folder, columns=reader.columns)
    clips = replace(clips, problems=tuple(reader.problems), notes=tuple(reader.notes))
    if classes is None:
        return clips
    if not len(table):
        raise DataError(
            f"{root}: no clips ({reader.problems[0] if reader.problems else 'its list has no rows'})"
        )
    return by_name(clips)


class _Reader:
    """Lists -> rows of a ClipSet; unusable ones go to `problems` by their place."""

    def __init__(self, folder: Path, classes: Sequence[str] | None) -> None:
        self.folder = folder
        self.classes = classes
        self.columns: dict[str, str] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._seen: set[tuple[object, ...]] = set()

    def rows(self, sounds: SoundList) -> Iterator[Cells]:
        """The clips of a list."""
        columns, splitter = _columns(sounds, labelled=self.classes is not None), None
        if self.classes is not None:
            label = columns.used["label"]
            texts = (cell for row in sounds if isinstance(cell := row.cells.get(label), str))
            splitter = LabelSplitter.of(label, texts, self.classes)
        self.columns |= columns.used
        self.notes += (f"{sounds.path.name}: {note}" for note in columns.notes)
        finder, below = Finder(sounds.path.parent), PurePath(os.path.relpath(sounds.path.parent, self.folder))
        for row in sounds:
            name = text_of(columns.cell(row.cells, "file"))
            try:
                if row.reason:
                    raise ValueError(row.reason)
                clip = {"id": str(below / finder.find(name))} | clip_row(name, row.cells, columns, splitter)
                if (key := (clip["id"], clip["start_s"], clip["end_s"])) in self._seen:
                    raise ValueError(
                        f"{clip['id']} was there before: give each sound one row, with all its labels"
                    )
            except (ValueError, OSError) as error:
                reason = getattr(error, "strerror", None)
                self.problems.append(f"{sounds.place(row)}: {f'{name}: {reason}' if reason else error}")
                continue
            self._seen.add(key)
            if sounds.path.stem == METADATA:
                clip["fold"] = clip["fold"] or split_of(clip["id"])
            yield clip


# -- the hub, and Arrow -----------------------------------------------------------------------------------------------


def _of_hub(source: str, classes: Sequence[str]) -> ClipSet:
    """A set of the hub, or the folder of its sound files."""
    folder = folder_of(source)
    if folder is None:
        return load(source, classes)
    clips, (_, split) = _folder(folder, classes), name_of(source)
    return clips.only(split) if split else clips


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
        raise DataError(
            f"{folder}: is of format {info.get('format')}, this version reads {FORMAT}: update patchout"
        )
    table = rows_of(files)
    kept = {
        "fold" if name == "split" else name: table[name] for name in table.column_names if name != "audio"
    }
    table = pa.table(kept).combine_chunks()
    largest = pc.max(pc.list_flatten(table["labels"])).as_py()
    if largest is not None and largest >= len(classes):
        raise DataError(
            f"{folder}: has label {largest}, {PREPARED} names {len(classes)} classes: prepare it again"
        )
    notes = columns_of(table.column_names).notes
    return ClipSet(folder, classes, task, table, packed=Packed(tuple(files)), notes=notes, info=info)

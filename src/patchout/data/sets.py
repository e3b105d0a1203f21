"""Any kind of data set -> its clips: class folders, lists, prepared sets, sets of the hub."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

import pyarrow as pa
import pyarrow.compute as pc

from patchout.audio.stream import Channel
from patchout.data import lists
from patchout.data.clips import ClipSet, DataError, class_indices
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
from patchout.data.folders import Finder, by_folders, is_sound, refuse_url, split_of, walk
from patchout.data.hub import HUB, folder_of, load, name_of
from patchout.data.lists import SoundList, open_list
from patchout.data.negatives import contradiction, signed_class_indices
from patchout.data.packed import Packed, mapped_rows
from patchout.files import escaped

__all__ = ["ClipSet", "DataError", "is_sound", "scan", "scan_sounds"]

PREPARED = "dataset.json"
FORMAT = 1  # of prepared sets
TABLES = (".csv", ".tsv", ".jsonl")  # that lie on top of a folder to say what it holds
NOT_UTF8 = "its name is not UTF-8: rename it"
METADATA = "metadata"  # the stem of a list that the hub lays among sounds, at any depth


def scan(
    source: str | os.PathLike[str], *, channel: Channel = "mean", classes: Sequence[str] = ()
) -> ClipSet:
    """The clips of a labelled data set, to be decoded as the mean of their channels or as one of them.

    `source` is a folder of class folders (below folders of splits or not), a folder with a list on top, a
    list (`lists.SUFFIXES`), a folder made by `patchout prepare`, or "hf://owner/name[:split]".
    `columns.COLUMNS` has the columns of a list: a file (beside it, or in `audio/`), a label, and perhaps
    more. Text that names several classes is not split within the names of `classes`. Raises DataError.
    """
    path = Path(source).expanduser()
    if os.fspath(source).startswith(HUB):
        folder, (_, split) = folder_of(os.fspath(source)), name_of(os.fspath(source))
        clips = _folder(folder, classes) if folder else load(os.fspath(source), classes)
        clips = clips.only(split) if split and folder else clips
    elif (path / PREPARED).is_file():
        clips = _prepared(path)
    elif path.suffix.lower() in lists.SUFFIXES and path.is_file():
        clips = _listed([open_list(path)], path, classes)
    elif path.is_dir():
        clips = _folder(path, classes)
    else:
        refuse_url(os.fspath(source))
        kinds = f"a folder of class folders, one with a CSV on top, a list ({', '.join(lists.SUFFIXES)})"
        kinds += ", a prepared set, hf://owner/name"
        raise DataError(f"{path}: {'is none of these' if path.exists() else 'no such folder'}: give {kinds}")
    return replace(clips, channel=channel)


def scan_sounds(source: str | os.PathLike[str]) -> ClipSet:
    """The sounds of a data set, labelled or not, as a clip set without classes.

    `source` is a folder with sounds at any depth (lists in it are not read), a list, or what `scan` takes.
    """
    path, problems = Path(source).expanduser(), list[str]()
    if path.is_dir() and not (path / PREPARED).is_file():
        table = in_columns({"id": name, "fold": split_of(name)} for name in _walked(path, problems))
        clips = ClipSet(path, (), "multi_class", table, path, problems=tuple(map(escaped, problems)))
    elif path.suffix.lower() in lists.SUFFIXES and path.is_file():
        clips = _listed([open_list(path)], path, None)
    else:
        clips = scan(source)
    if not len(clips):
        raise DataError(f"{path}: {clips.problems[0] if clips.problems else 'no sounds in it'}")
    columns = [name for name in clips.table.column_names if name not in ("labels", "probabilities", "known")]
    no_labels = pa.array([[]] * len(clips), pa.list_(pa.int32()))
    table = clips.table.select(columns).append_column("labels", no_labels)
    return replace(clips, classes=(), task="multi_class", table=table)


def _walked(folder: Path, problems: list[str]) -> list[str]:
    """The sounds below a folder by their paths in it, in alphabetical order of their folders.

    A path that a table cannot hold goes to `problems`.
    """
    paths = sorted(
        (os.path.relpath(path, folder) for path in walk(folder, problems.append)),
        key=lambda path: PurePath(path).parts,
    )
    problems += (f"{path}: {NOT_UTF8}" for path in paths if escaped(path) != path)
    return [path for path in paths if escaped(path) == path]


def _folder(folder: Path, classes: Sequence[str]) -> ClipSet:
    """The clips of the list on top, else of the lists of metadata below, else of folders that are classes."""
    on_top, reasons = _usable(folder.iterdir())
    if len(on_top) > 1:
        names = f"{len(on_top)} lists on top ({', '.join(sounds.path.name for sounds in on_top)})"
        raise DataError(f"{folder}: {names}: leave one, or give one of them as the data")
    if tables := on_top or _usable(folder.rglob(f"{METADATA}.*"))[0]:
        return _listed(tables, folder, classes)
    problems: list[str] = []
    walked = [(path, PurePath(path).parts) for path in _walked(folder, problems)]
    sounds = by_folders([path for path, parts in walked if len(parts) > 1 and not parts[0].startswith(".")])
    beside = [path for path, parts in walked if len(parts) == 1]
    if reasons and len({sound.label for sound in sounds}) < 2:  # sounds in one folder are those of a list
        raise DataError(reasons[0])
    problems += (f"{reason}; the folders are the classes" for reason in reasons)
    tops = {PurePath(sound.path).parts[0] for sound in sounds}
    empty = (path.name for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in tops)
    empty = (name for name in empty if not name.startswith(".") and escaped(name) == name)
    problems += (f"{name}: a class folder without sounds" for name in empty)
    if not sounds:
        why = problems[0] if problems else "no class folders with sounds, and no CSV"
        raise DataError(f"{folder}: no clips ({why})")
    used = dict.fromkeys(("label", "split") if sounds[0].split else ("label",), "the folders")
    table = in_columns(
        {"id": sound.path, "labels": [sound.label]} | ({"fold": sound.split} if sound.split else {})
        for sound in sounds
    )
    lines = tuple(map(escaped, problems))
    clips = ClipSet(folder, (), "multi_class", table, folder, problems=lines, columns=used)
    return class_indices(replace(clips, notes=_of_no_class(folder, beside)))


def _of_no_class(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    """A note on the sounds beside folders that are classes."""
    if not names:
        return ()
    quoted = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
    todo = "they are left out: put them into the folder of a class"
    return (f"sounds in {folder} itself, in no folder of a class: {len(names)} ({quoted}): {todo}",)


def _usable(paths: Iterable[Path]) -> tuple[list[SoundList], list[str]]:
    """The lists among files that have a file and a label, and why the other tables are no such lists."""
    usable, reasons = list[SoundList](), list[str]()
    tables = (path for path in paths if path.suffix.lower() in lists.SUFFIXES)
    for path in sorted(path for path in tables if not path.name.startswith(".")):
        try:
            sounds = open_list(path)
            _columns(sounds, labelled=True)
        except (DataError, OSError) as error:
            reasons += [str(error)] if path.suffix.lower() in TABLES else []
        else:
            usable.append(sounds)
    return usable, reasons


def _columns(sounds: SoundList, *, labelled: bool) -> Columns:
    """The columns of a list; DataError where the file, or the label of a labelled one, is missing."""
    columns = sounds.columns()
    meanings = ("file", "label") if labelled else ("file",)
    if not columns.used.keys() >= {*meanings}:
        needed = " and ".join(f"one of {', '.join(COLUMNS[meaning])}" for meaning in meanings)
        header = ", ".join(sounds.header) or "empty"
        raise DataError(f"{sounds.path}: needs the columns {needed}, its header is {header}")
    return columns


def _listed(tables: Sequence[SoundList], root: Path, classes: Sequence[str] | None) -> ClipSet:
    """The clips of lists, by their paths below the folder; without labels if `classes` is None."""
    reader = _Reader(root if root.is_dir() else root.parent, classes)
    table = in_columns(row for sounds in tables for row in reader.rows(sounds))
    clips = ClipSet(root, (), "multi_class", table, reader.folder, columns=reader.columns)
    clips = replace(clips, problems=tuple(map(escaped, reader.problems)), notes=tuple(reader.notes))
    if classes is None:
        return clips
    if not len(table):
        why = reader.problems[0] if reader.problems else "its list has no rows"
        raise DataError(f"{root}: no clips ({why})")
    return signed_class_indices(clips)


@dataclass
class _Reader:
    """Lists -> rows of a ClipSet; unusable rows go to `problems` by their line."""

    folder: Path
    classes: Sequence[str] | None
    columns: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    segments: set[tuple[object, ...]] = field(default_factory=set)

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
                names = (*(cell for cell in clip.values() if isinstance(cell, str)), *clip["labels"])
                if strange := next((text for text in names if escaped(text) != text), ""):
                    raise ValueError(f"{strange}: {NOT_UTF8}")
                if problem := contradiction(clip["labels"]):
                    raise ValueError(f"{name}: {problem}")
                if (segment := (clip["id"], clip["start_s"], clip["end_s"])) in self.segments:
                    todo = "give each sound one row, with all its labels"
                    raise ValueError(f"{clip['id']} was there before: {todo}")
            except (ValueError, OSError) as error:
                reason = getattr(error, "strerror", None)
                self.problems.append(f"{sounds.place(row)}: {f'{name}: {reason}' if reason else error}")
                continue
            self.segments.add(segment)
            if sounds.path.stem == METADATA:
                clip["fold"] = clip["fold"] or split_of(clip["id"])
            yield clip


def _prepared(folder: Path) -> ClipSet:
    """What `patchout prepare` made; `datasets.load_from_disk` opens the same folder, after 2 s of imports."""
    try:
        info = json.loads((folder / PREPARED).read_text("utf-8"))
        state = json.loads((folder / "state.json").read_text("utf-8"))
        files = [str(folder / file["filename"]) for file in state["_data_files"]]
        classes, task, version = tuple(info["classes"]), info["task"], info.get("format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: is not a whole prepared set ({error!r}): prepare it again") from None
    if version != FORMAT:
        raise DataError(f"{folder}: is of format {version}, this version reads {FORMAT}: update patchout")
    table = mapped_rows(files).drop_columns(["audio"])
    table = table.rename_columns(["fold" if name == "split" else name for name in table.column_names])
    table = table.combine_chunks()
    largest = pc.max(pc.list_flatten(table["labels"])).as_py()
    if largest is not None and largest >= len(classes):
        names = f"{PREPARED} names {len(classes)} classes"
        raise DataError(f"{folder}: has label {largest}, {names}: prepare it again")
    notes = columns_of(table.column_names).notes
    return ClipSet(folder, classes, task, table, packed=Packed(tuple(files)), notes=notes, info=info)

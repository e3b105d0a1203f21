"""Sound files on disk: those below a folder, those of a list, and folders as classes and splits."""

import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import NamedTuple

from patchout.errors import DataError, InputError
from patchout.files import STREAM

SUFFIXES = frozenset(
    (
        *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".caf", ".au", ".snd"),
        *(".m4a", ".m4b", ".m4r", ".m4v", ".aac", ".mp4", ".webm", ".weba", ".wma", ".wmv", ".mka", ".mkv"),
        *(".mov", ".3gp", ".3g2", ".amr", ".awb", ".ac3", ".eac3", ".ec3", ".w64", ".rf64", ".bwf", ".wv"),
        *(".tta", ".ape", ".mpc", ".dsf", ".dff", ".voc", ".sph", ".mp1", ".mp2", ".mpa", ".spx", ".ogx"),
        *(".ogv", ".dts", ".ra", ".rm", ".asf", ".avi", ".mpg", ".mpeg", ".vob", ".flv", ".f4v", ".ts"),
        *(".mts", ".m2ts"),
    )
)
TRAINING = frozenset(("train", "training"))
VALIDATION = frozenset(("valid", "val", "validation", "dev"))
TEST = frozenset(("test", "testing", "eval", "evaluation"))
SPLITS = TRAINING | VALIDATION | TEST
URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
SYNC_BYTE = b"\x47"  # every packet of an MPEG transport stream begins with it


def is_sound(path: Path) -> bool:
    """Whether a file's name is that of a sound; a .ts that is no MPEG transport stream is TypeScript."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES or path.name.startswith("."):
        return False
    if suffix == ".ts":
        with suppress(OSError), path.open("rb") as file:  # whoever decodes it says why it cannot be read
            return file.read(1) == SYNC_BYTE
    return True


def composed(text: str) -> str:
    """Text in Unicode normal form C, in which names are compared."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def at_home(name: str) -> str:
    """A path with `~` expanded; a name that only begins with one, like ~a.wav, stays."""
    return os.path.expanduser(name)  # noqa: PTH111 (Path refuses it)


def refuse_url(name: str) -> None:
    """InputError for a URL, which is not fetched."""
    if URL.match(name):
        raise InputError(f"{name}: addresses are not fetched: download the file, and give its path")


def walk(folder: Path, on_problem: Callable[[str], None]) -> Iterator[str]:
    """The sound files below a folder; `on_problem` gets the directories that cannot be read.

    A linked directory is followed where it leads out of the folder, and no directory is walked twice.
    """
    top, visited = Path(os.path.realpath(folder)), set[Path]()

    def is_new(path: str) -> bool:
        real = Path(os.path.realpath(path))
        if real.is_relative_to(top):
            return not os.path.islink(path)  # noqa: PTH114
        if top.is_relative_to(real) or real in visited:
            return False
        visited.add(real)
        return True

    def report(error: OSError) -> None:
        on_problem(f"{error.filename}: cannot be read ({error.strerror}): the sounds in it are left out")

    for root, folders, files in os.walk(folder, followlinks=True, onerror=report):
        folders[:] = sorted(name for name in folders if is_new(os.path.join(root, name)))  # noqa: PTH118
        paths = (os.path.join(root, name) for name in sorted(files))  # noqa: PTH118
        yield from (path for path in paths if is_sound(Path(path)))


class Finder:
    """The files of a list: beside it or in `audio/` there, in either Unicode form of their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listings: dict[Path, dict[str, str]] = {}

    def find(self, name: str) -> str:
        """The path of a named file, below the folder unless the name is absolute.

        `~` is expanded; a backslash separates folders where no name has one; an audio stream may follow
        (#a:1). FileNotFoundError, InputError for a URL, OSError for what cannot be read.
        """
        refuse_url(name)
        with_stream = STREAM.fullmatch(name)
        for file, stream in ((name, ""), *([with_stream.groups()] if with_stream else [])):
            if path := self._find(at_home(file)):
                return path + stream
        raise FileNotFoundError(f"no file {name!r} in {self.folder} or its audio/")

    def _find(self, name: str) -> str:
        """The path of a file below the folder, "" where there is none."""
        spellings = dict.fromkeys((name, name.replace("\\", "/"))) if name else {}
        places = [place for spelling in spellings for place in (spelling, f"audio/{spelling}")]
        for look in (lambda place: place, self._on_disk):
            for place in places:
                path = look(place)
                if path and _is_file(self.folder / path):
                    return str(PurePath(path))
        return ""

    def _on_disk(self, place: str) -> str:
        """The path in the Unicode form of its directories on disk, "" for a name of ASCII alone."""
        if place.isascii():
            return ""
        parts: list[str] = []
        for part in PurePath(place).parts:
            folder = self.folder.joinpath(*parts)
            if folder not in self._listings:
                paths = folder.iterdir() if folder.is_dir() else ()
                self._listings[folder] = {composed(path.name): path.name for path in paths}
            parts.append(self._listings[folder].get(composed(part), part))
        return str(PurePath(*parts))


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


class ClassedFile(NamedTuple):
    """A sound file with its class and split, by the names of its folders."""

    path: str  # below the data set's folder
    label: str
    split: str = ""


def by_folders(paths: Sequence[str]) -> list[ClassedFile]:
    """Class and split of sounds at `CLASS/...`, `[FOLDER/]SPLIT/CLASS/...` or `CLASS/SPLIT/...`.

    Splits are folders called train, test, valid and the like that hold a folder a class. DataError for such
    folders that hold sounds themselves or stand beside others: they could be either.
    """
    folders = [PurePath(path).parts[:-1] for path in paths]
    label, split = 0, -1
    tops = {parts[0] for parts in folders}
    if _are_splits(folders, 0):
        label, split = 1, 0
    elif len(tops) == 1 and _are_splits(folders, 1):
        label, split = 2, 1
    elif all(len(parts) > 1 and is_split(parts[1]) for parts in folders):
        split = 1
    else:
        _refuse_unclear_splits(paths, folders)
    return [
        ClassedFile(path, composed(parts[label]), parts[split] if split >= 0 else "")
        for path, parts in zip(paths, folders, strict=True)
    ]


def _refuse_unclear_splits(paths: Sequence[str], folders: Sequence[tuple[str, ...]]) -> None:
    """DataError for sounds that are not all in a split, though folders are called like several."""
    todo = "sort the sounds into SPLIT/CLASS/, or write a list with the columns file, label and split"
    tops = {parts[0] for parts in folders}
    splits, is_deep = sorted(filter(is_split, tops)), any(len(parts) > 1 for parts in folders)
    if len(splits) > 1 or (is_deep and tops == {*splits}):
        beside = ", ".join(sorted(tops - {*splits})[:3])
        why = f"stand beside {beside}" if beside else "hold sounds that lie in no folder of a class"
        raise DataError(f"folders called like splits ({', '.join(splits)}) {why}: {todo}")
    inner = [next(filter(is_split, parts[1:2]), "") for parts in folders]
    if len(splits := sorted({*inner} - {""})) > 1:
        names = ", ".join(splits)
        raise DataError(f"{paths[inner.index('')]}: lies in no split, others do ({names}): {todo}")


def is_split(name: str) -> bool:
    """Whether a folder of this name is a split (train, valid, test ...)."""
    return name.casefold() in SPLITS


def split_of(path: str) -> str:
    """The first folder on a path that is called like a split, or ""."""
    return next(filter(is_split, PurePath(path).parts[:-1]), "")


def _are_splits(folders: Sequence[tuple[str, ...]], level: int) -> bool:
    """Whether every folder at this level is called like a split and holds folders."""
    return all(len(parts) > level + 1 and is_split(parts[level]) for parts in folders)

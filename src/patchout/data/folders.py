"""Sound files on disk: all below a folder, the file that a list means, and which folders are classes or splits."""

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
        *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".caf", ".au"),
        *(".m4a", ".aac", ".mp4", ".webm", ".wma", ".mka", ".mkv", ".mov", ".3gp", ".amr", ".ac3"),
        *(
            ".w64",
            ".rf64",
            ".bwf",
            ".wv",
            ".tta",
            ".ape",
            ".mpc",
            ".dsf",
            ".dff",
            ".aifc",
            ".snd",
            ".voc",
            ".sph",
        ),
        *(".mp1", ".mp2", ".mpa", ".m4b", ".m4r", ".m4v", ".3g2", ".spx", ".ogx", ".ogv", ".weba", ".awb"),
        *(".eac3", ".ec3", ".dts", ".ra", ".rm", ".asf", ".wmv", ".avi", ".mpg", ".mpeg", ".vob", ".flv"),
        *(".f4v", ".ts", ".mts", ".m2ts"),
    )
)
TRAINING = frozenset(("train", "training"))
VALIDATION = frozenset(("valid", "val", "validation", "dev"))
TEST = frozenset(("test", "testing", "eval", "evaluation"))
SPLITS = TRAINING | VALIDATION | TEST
URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
SYNC_BYTE = b"\x47"  # every packet of an MPEG transport stream begins with it


def is_sound(path: Path) -> bool:
    """Whether a file's name says that it holds sound; a .ts without a transport stream's first byte is TypeScript."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES or path.name.startswith("."):
        return False
    if suffix == ".ts":
        with suppress(OSError), path.open("rb") as file:  # whoever decodes it says why it cannot be read
            return file.read(1) == SYNC_BYTE
    return True


def composed(text: str) -> str:
    """Text with its accents composed (NFC), as which two spellings of a name are compared."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def at_home(name: str) -> str:
    """A name in which `~` is the home; one that is called so, like ~a.wav, stays."""
    return os.path.expanduser(name)  # noqa: PTH111 (Path refuses it)


def refuse_url(name: str) -> None:
    """InputError for an address, which is not fetched."""
    if URL.match(name):
        raise InputError(f"{name}: addresses are not fetched: download the file, and give its path")


def walk(folder: Path, on_problem: Callable[[str], None]) -> Iterator[str]:
    """The sounds below a folder, one directory at a time; `on_problem` hears of directories that cannot be read.

    A linked directory is followed where it leads out of the folder, and no directory is walked twice.
    """
    top, seen = Path(os.path.realpath(folder)), set[Path]()

    def is_new(path: str) -> bool:
        real = Path(os.path.realpath(path))
        if real.is_relative_to(top):
            return not os.path.islink(path)  # noqa: PTH114
        if top.is_relative_to(real) or real in seen:
            return False
        seen.add(real)
        return True

    def tell(error: OSError) -> None:
        on_problem(f"{error.filename}: cannot be read ({error.strerror}): the sounds in it are left out")

    for root, folders, files in os.walk(folder, followlinks=True, onerror=tell):
        folders[:] = sorted(name for name in folders if is_new(os.path.join(root, name)))  # noqa: PTH118
        paths = (os.path.join(root, name) for name in sorted(files))  # noqa: PTH118
        yield from (path for path in paths if is_sound(Path(path)))


# -- the files of a list -----------------------------------------------------------------------------------------------


class Finder:
    """The files that the rows of a list name: beside it or in `audio/` there, in any spelling of their accents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listings: dict[Path, dict[str, str]] = {}

    def find(self, name: str) -> str:
        """The path of a file, below the folder where the name is; FileNotFoundError says where it was looked for.

        `~` is a home, and where no file has a backslash in its name it parts folders; behind the file its audio stream
        may stand (#a:1). InputError for an address; OSError for what cannot be looked at.
        """
        refuse_url(name)
        chosen = STREAM.fullmatch(name)
        for file, stream in ((name, ""), *([chosen.groups()] if chosen else [])):
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
        """The path as its directories spell it, "" where they have none."""
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


# -- folders as labels -------------------------------------------------------------------------------------------------


class Labelled(NamedTuple):
    """A sound with the class and the split that its folders name."""

    path: str  # below the data set's folder
    label: str
    split: str = ""


def by_folders(paths: Sequence[str]) -> list[Labelled]:
    """Sounds at `CLASS/...`, `SPLIT/CLASS/...`, one folder around that, or `CLASS/SPLIT/...`.

    Splits are folders called train, test, valid and the like that hold a folder a class. DataError for such folders
    that hold sounds themselves or stand beside others: they could be either.
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
    elif len(looked := sorted(filter(is_split, tops))) > 1:
        others = sorted(tops - set(looked))
        why = (
            f"stand beside {', '.join(others[:3])}"
            if others
            else "hold sounds that lie in no folder of a class"
        )
        todo = "sort the sounds into SPLIT/CLASS/, or write a list with the columns file, label and split"
        raise DataError(f"the folders {', '.join(looked)} look like splits, but {why}: {todo}")
    return [
        Labelled(path, composed(parts[label]), parts[split] if split >= 0 else "")
        for path, parts in zip(paths, folders, strict=True)
    ]


def is_split(name: str) -> bool:
    """Whether a folder of this name is a part of a data set."""
    return name.casefold() in SPLITS


def split_of(path: str) -> str:
    """The first folder on a path that is called like a split, or nothing."""
    return next(filter(is_split, PurePath(path).parts[:-1]), "")


def _are_splits(folders: Sequence[tuple[str, ...]], level: int) -> bool:
    """Whether every folder at this level is called like a split and holds folders."""
    return all(len(parts) > level + 1 and is_split(parts[level]) for parts in folders)

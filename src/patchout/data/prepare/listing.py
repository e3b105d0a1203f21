"""The clips of a downloaded data set before they are read: labels, splits, and where their bytes are."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from patchout.data.lists import open_list
from patchout.errors import InputError


class LayoutError(InputError):
    """A folder that is not laid out like the official download."""


class Clip(NamedTuple):
    """One sound of a data set, or a segment of it; `file` is empty where it is missing.

    `row` is its place in an HDF5 file, or in row group `group` of a Parquet file.
    """

    id: str
    file: str
    labels: tuple[int, ...]
    fold: str = ""
    more: dict[str, Any] = {}  # noqa: RUF012 (never changed) columns that not every set has
    row: int = -1
    group: int = 0
    start_s: float = 0.0
    end_s: float | None = None


@dataclass(frozen=True)
class Listing:
    """A data set before its sounds are read; `clips` may be iterated any number of times, in one order."""

    classes: tuple[str, ...]
    task: Literal["multi_class", "multi_label"]
    clips: Iterable[Clip]
    fold: Literal["split", "fold", ""] = "split"  # what the column is called; "": there is none
    more: tuple[str, ...] = ()
    official: dict[str, int] | None = None  # clips in the published lists, where `clips` lacks some
    problems: tuple[str, ...] = ()  # rows of a user's own list that cannot be used
    notes: tuple[str, ...] = ()  # its columns that look as if they were read


class Places(dict[str, int]):
    """Class name -> index; a name that is none of the classes is a LayoutError."""

    def __init__(self, classes: Iterable[str]) -> None:
        super().__init__((name, index) for index, name in enumerate(classes))

    def __missing__(self, name: str) -> int:
        names = f"{len(self)} classes ({', '.join(list(self)[:8])} ...)"
        raise LayoutError(f"the label {name!r} is none of the {names}")


def read_rows(table: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a table that has these columns."""
    sounds = open_list(table)
    if missing := set(columns) - set(sounds.header):
        raise LayoutError(f"{table}: has no column {', '.join(sorted(missing))}: unpack the download again")
    return [row.cells for row in sounds]

"""What a layout gives: its clips, with their labels and splits, and where each one's bytes are."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from patchout.data.lists import open_list
from patchout.errors import InputError


class LayoutError(InputError):
    """A folder that is not what the official download looks like."""


class Clip(NamedTuple):
    """One listed sound, or its segment; `file` is empty if none was found.

    `row` is its place in an HDF5 file, or in row group `group` of a Parquet file.
    """

    id: str
    file: str
    labels: tuple[int, ...]
    fold: str = ""
    more: dict[str, Any] = {}  # noqa: RUF012 (never changed) the columns that not every data set has
    row: int = -1
    group: int = 0
    start_s: float = 0.0
    end_s: float | None = None


@dataclass(frozen=True)
class Listing:
    """A data set before anything is read. `clips` may be iterated any number of times, always in the same order."""

    classes: tuple[str, ...]
    task: Literal["multi_class", "multi_label"]
    clips: Iterable[Clip]
    fold: Literal["split", "fold", ""] = "split"  # what the column is called; "": there is none
    more: tuple[str, ...] = ()
    official: dict[str, int] | None = (
        None  # clips in the published lists, where `clips` is not the whole of them
    )
    problems: tuple[str, ...] = ()  # rows of a user's own list that cannot be used
    notes: tuple[str, ...] = ()  # columns of it that look as if they were


class Places(dict[str, int]):
    """Class name -> index; a name that is none of the classes is a LayoutError."""

    def __init__(self, classes: Iterable[str]) -> None:
        super().__init__((name, index) for index, name in enumerate(classes))

    def __missing__(self, name: str) -> int:
        raise LayoutError(
            f"the label {name!r} is none of the {len(self)} classes ({', '.join(list(self)[:8])} ...)"
        )


def rows_of(table: Path, columns: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a table that has these columns."""
    listed = open_list(table)
    if lacking := set(columns) - set(listed.header):
        raise LayoutError(f"{table}: has no column {', '.join(sorted(lacking))}: unpack the download again")
    return [row.cells for row in listed]

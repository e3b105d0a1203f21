"""Class names: the lists in the package, and those in a user's file."""

import csv
import os
from importlib import resources
from pathlib import Path

LISTS = ("audioset", "dcase_scenes", "esc50", "openmic2018", "speechcommands_v2")


def label_names(name: str) -> tuple[str, ...]:
    """The class names of a list in `LISTS`, in the order of the published models' outputs."""
    if name not in LISTS:
        raise ValueError(f"no list of class names {name!r}: there are {', '.join(LISTS)}")
    file = resources.files("patchout.checkpoint") / "label_lists" / f"{name}.csv"
    return tuple(row["display_name"] for row in csv.DictReader(file.read_text("utf-8").splitlines()))


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Read class names: one a line, a CSV with a `display_name` column, or FSD50K's `vocabulary.csv`.

    `vocabulary.csv` has no header: index, name, identifier. FileNotFoundError; ValueError if empty.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file of class names")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8 text: save the class names as UTF-8, one a line") from None
    rows = [row for row in csv.reader(text.splitlines()) if "".join(row).strip()]
    if rows and "display_name" in rows[0]:
        column = rows[0].index("display_name")
        names = [row[column] if column < len(row) else "" for row in rows[1:]]
    elif all(len(row) >= 2 and row[0].strip() == str(index) for index, row in enumerate(rows)):
        names = [row[1] for row in rows]
    else:
        names = [",".join(row) for row in rows]
    if not names:
        raise ValueError(f"{path}: holds no class names: write one a line")
    return tuple(name.strip() for name in names)

"""The public archive of HEAR tasks: addresses, sizes and licences, and how to unpack it."""

import csv
import shlex
from importlib import resources
from pathlib import Path
from typing import NamedTuple

ARCHIVE = "https://zenodo.org/record/5887964"  # all tasks, at 48 kHz alone
GB_AN_HOUR = 3600 * 48_000 * 2 / 1e9  # unpacked
SUFFIXES = (".tar.gz", ".tgz", ".tar")
METADATA, VOCABULARY = "task_metadata.json", "labelvocabulary.csv"


class Source(NamedTuple):
    """A task folder of the public archive."""

    folder: str
    clips: int
    hours: float
    licence: str  # of the original data set, as its page states it
    source: str  # that page

    @property
    def size_gb(self) -> float:
        """Size of the wavs at 48 kHz."""
        return self.hours * GB_AN_HOUR


def task_of(folder: str) -> tuple[str, str]:
    """Name and mode of a task folder."""
    return folder.partition("-")[0], folder.rpartition("-")[2]


def sources() -> list[Source]:
    """All task folders of the leaderboard."""
    rows = read_table("sources")
    return [Source(row.pop("folder"), int(row.pop("clips")), float(row.pop("hours")), **row) for row in rows]


def read_table(name: str) -> list[dict[str, str]]:
    """Rows of a CSV file that comes with this package."""
    text = (resources.files("patchout") / "hear" / f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def packed(tasks: Path) -> list[Path]:
    """Archives of tasks that are not unpacked beside them."""
    folders = [path.name for path in tasks.iterdir() if path.is_dir()]
    tars = sorted(path for path in tasks.iterdir() if path.name.endswith(SUFFIXES))
    return [path for path in tars if not any(f"-{folder}-" in f"-{path.name}-" for folder in folders)]


def advice(tasks: Path) -> str:
    """Where the task folders are if they do not lie directly in `tasks`, in words; empty if they do."""
    if (tasks / METADATA).exists():
        return f"is itself a task folder: give {tasks.resolve().parent}"
    if any(tasks.glob(f"*/{METADATA}")):
        return ""
    inner = next((path for depth in ("*/*", "*/*/*") for path in tasks.glob(f"{depth}/{METADATA}")), None)
    if inner:
        return f"the task folders lie deeper: give {inner.parent.parent}"
    if tars := packed(tasks):
        todo = f"{unpacking(tasks)}, and give {tasks / 'tasks'}"
        return f"holds archives ({len(tars)}) and no task folder: {todo}"
    return ""


def unpacking(tasks: Path) -> str:
    """The shell command that unpacks all archives of a folder; they hold `tasks/<task folder>`."""
    place = shlex.quote(str(tasks))
    kinds = [suffix for suffix in SUFFIXES if any(path.name.endswith(suffix) for path in packed(tasks))]
    archives = " ".join(f"{place}/*{suffix}" for suffix in kinds)
    return f'untar these with `for tar in {archives}; do tar -xf "$tar" -C {place}; done`'

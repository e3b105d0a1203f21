"""The tasks of HEAR before they are here: where they are, how large, under which licence, and archives to unpack."""

import csv
import shlex
from importlib import resources
from pathlib import Path
from typing import NamedTuple

ARCHIVE = "https://zenodo.org/record/5887964"  # all tasks, at 48 kHz alone
GB_AN_HOUR = 3600 * 48_000 * 2 / 1e9  # unpacked
SUFFIXES = (".tar.gz", ".tgz", ".tar")
METADATA = "task_metadata.json"


class Source(NamedTuple):
    """A task folder of the public archive."""

    folder: str
    clips: int
    hours: float
    licence: str  # of the set that it was made from, as its page states it
    source: str  # that page

    @property
    def task(self) -> tuple[str, str]:
        """Name and mode, whatever the version."""
        return task_of(self.folder)

    @property
    def size_gb(self) -> float:
        """Of its wavs at 48 kHz."""
        return self.hours * GB_AN_HOUR


def task_of(folder: str) -> tuple[str, str]:
    """Name and mode of a task folder."""
    return folder.partition("-")[0], folder.rpartition("-")[2]


def sources() -> list[Source]:
    """Every task folder that the leaderboard counts."""
    text = (resources.files("patchout") / "hear" / "sources.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return [Source(**row | {"clips": int(row["clips"]), "hours": float(row["hours"])}) for row in rows]  # type: ignore[arg-type]


def packed(tasks: Path) -> list[Path]:
    """Archives of tasks that have no folder beside them."""
    folders = [path.name for path in tasks.iterdir() if path.is_dir()]
    tars = sorted(path for path in tasks.iterdir() if path.name.endswith(SUFFIXES))
    return [path for path in tars if not any(f"-{folder}-" in f"-{path.name}-" for folder in folders)]


def advice(tasks: Path) -> str:
    """What to do with a folder that is none of task folders, or nothing: it is one, or nobody knows."""
    if (tasks / METADATA).exists():
        return f"is itself a task folder: give {tasks.resolve().parent}"
    if any(tasks.glob(f"*/{METADATA}")):
        return ""
    inner = next((path for depth in ("*/*", "*/*/*") for path in tasks.glob(f"{depth}/{METADATA}")), None)
    if inner:
        return f"the task folders lie deeper: give {inner.parent.parent}"
    if tars := packed(tasks):
        return (
            f"holds archives ({len(tars)}) and no task folder: {unpacking(tasks)}, and give {tasks / 'tasks'}"
        )
    return ""


def unpacking(tasks: Path) -> str:
    """The command for all archives of a folder; they hold `tasks/<task folder>`."""
    place = shlex.quote(str(tasks))
    kinds = [suffix for suffix in SUFFIXES if any(path.name.endswith(suffix) for path in packed(tasks))]
    archives = " ".join(f"{place}/*{suffix}" for suffix in kinds)
    return f'untar these with `for tar in {archives}; do tar -xf "$tar" -C {place}; done`'

"""Atomic writes: a temporary file is flushed to the disk, then renamed; file states; the cache; tables."""

import errno
import hashlib
import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

STREAM = re.compile(r"(.+)(#a:\d+)", re.DOTALL)  # "talk.mkv#a:1" is its second audio stream, as ffmpeg counts
MAX_STEM_BYTES = 200  # of the 255 of a file name: the rest is for an ending and a unique part


class FileState(NamedTuple):
    """Size and modification time of a file: if they differ it has changed."""

    size_bytes: int | None
    modified_s: float | None


def without_stream(name: str) -> tuple[str, str]:
    """Split a name into the file and the selector of an audio stream, "#a:1", or ""."""
    selected = STREAM.fullmatch(name)
    if selected is None or os.path.exists(name):  # noqa: PTH110 - Path refuses some names that exist
        return name, ""
    return selected[1], selected[2]


def file_state(file: str) -> FileState:
    """The present state of a file; its fields are None if it does not exist."""
    try:
        status = os.stat(without_stream(file)[0])  # noqa: PTH116  # two million times
    except (OSError, ValueError):
        return FileState(None, None)
    return FileState(status.st_size, status.st_mtime)


def states_sha256(files: Sequence[str]) -> str:
    """SHA-256 over the present states of files in their order: another one if any of them has changed."""
    states = {file: file_state(file) for file in dict.fromkeys(files)}  # segments share their file
    return hashlib.sha256(repr([(*states[file],) for file in files]).encode()).hexdigest()


def is_newer(file: str, written: str) -> bool:
    """Whether `file` was modified after `written`; times in the future do not count."""
    modified_s, written_s = file_state(file).modified_s, file_state(written).modified_s
    return modified_s is not None and written_s is not None and written_s < modified_s <= time.time()


def shortened(stem: str) -> str:
    """The first `MAX_STEM_BYTES` bytes of a name, without a broken character."""
    return stem.encode(errors="surrogateescape")[:MAX_STEM_BYTES].decode(errors="ignore")


def escaped(text: str) -> str:
    """A text with the bytes escaped that are no UTF-8: a file's name may have some, Arrow takes none."""
    return text.encode(errors="backslashreplace").decode()


def distinct(names: list[str]) -> list[str]:
    """Make names distinct by a number behind those that occur more than once, in upper or lower case."""
    times = Counter(name.casefold() for name in names)
    numbers = {name: count(1) for name in times}
    distinct = []
    for name in names:
        candidates = (f"{name}-{number}" for number in numbers[name.casefold()])
        is_only = times[name.casefold()] == 1
        distinct.append(name if is_only else next(new for new in candidates if new.casefold() not in times))
    return distinct


def cache_folder() -> Path:
    """The folder of downloads: `patchout` beside the hub's cache (HF_HOME, XDG_CACHE_HOME)."""
    xdg = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{xdg}/huggingface")
    return Path(os.path.expandvars(home)).expanduser() / "patchout"


@contextmanager
def write_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` to write to: flushed and renamed on success, removed on failure.

    A device, and a folder that is missing or cannot be written, is an OSError that names it.
    """
    target = Path(path)
    if target.is_char_device() or target.is_block_device():  # renaming a file to its name would remove it
        raise FileExistsError(errno.EEXIST, "is a device: name a file on a disk", str(target))
    aside = target.with_name(f".{shortened(target.stem)}.{os.getpid()}{target.suffix}")
    try:
        aside.touch()
        mode = aside.stat().st_mode  # what the user's umask gives; some writers make their files private
    except OSError as error:
        reason = f"cannot write into the folder ({error.strerror})"
        raise type(error)(error.errno, reason, str(target.parent)) from None
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.chmod(mode)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def finite(content: Any) -> Any:
    """The content with None for infinite numbers and NaN, which JSON has not."""
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as JSON, atomically."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown; a bar in a cell does not end it."""
    lines = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

"""Files that are whole or not there: written aside, flushed to the disk, renamed; and where the cache is."""

import json
import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

STREAM = re.compile(r"(.+)(#a:\d+)", re.DOTALL)  # "talk.mkv#a:1" is its second audio stream, as ffmpeg counts
MAX_STEM_BYTES = 200  # of the 255 that a name may have: an ending, and what makes it another, fit behind


class FileState(NamedTuple):
    """Two states of a file that differ in this are two files."""

    size_bytes: int | None
    modified_s: float | None


def without_stream(name: str) -> tuple[str, str]:
    """The file that a name means, and "#a:1" where the name goes on with one of its audio streams, else ""."""
    chosen = STREAM.fullmatch(name)
    if chosen is None or os.path.exists(name):  # noqa: PTH110 - Path refuses some names that exist
        return name, ""
    return chosen[1], chosen[2]


def file_state(file: str) -> FileState:
    """Of a file as it is now; None where there is none."""
    try:
        status = os.stat(without_stream(file)[0])  # noqa: PTH116  # two million times
    except (OSError, ValueError):
        return FileState(None, None)
    return FileState(status.st_size, status.st_mtime)


def is_newer(file: str, written: str) -> bool:
    """Whether a file was changed after another one was written; a time that is still to come says nothing."""
    modified_s, written_s = file_state(file).modified_s, file_state(written).modified_s
    return modified_s is not None and written_s is not None and written_s < modified_s <= time.time()


def shortened(stem: str) -> str:
    """The beginning of a name, short enough for any disk with something behind it."""
    return stem.encode(errors="surrogateescape")[:MAX_STEM_BYTES].decode(errors="ignore")


def cache_folder() -> Path:
    """Where downloads stay: `patchout` beside the hub's own cache (HF_HOME, XDG_CACHE_HOME), read at every call."""
    xdg = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{xdg}/huggingface")
    return Path(os.path.expandvars(home)).expanduser() / "patchout"


@contextmanager
def write_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; on success flush it and rename it, on failure remove it.

    A folder that is missing or cannot be written is an OSError that names it.
    """
    target = Path(path)
    aside = target.with_name(f".{shortened(target.stem)}.{os.getpid()}{target.suffix}")
    try:
        aside.touch()
        mode = aside.stat().st_mode  # what the user's umask gives; some writers make their files private
    except OSError as error:
        raise type(error)(
            error.errno, f"cannot write into the folder ({error.strerror})", str(target.parent)
        ) from None
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.chmod(mode)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def finite(content: Any) -> Any:
    """The same content with None where a number is infinite or undefined: JSON has no word for these."""
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as JSON, whole or not at all."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

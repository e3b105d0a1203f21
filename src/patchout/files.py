"""Files that are whole or not there: written aside, flushed to the disk, renamed."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def write_aside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; on success flush it and rename it, on failure remove it.

    A folder that is missing or cannot be written is an OSError that names it.
    """
    target = Path(path)
    aside = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        aside.touch()
        mode = aside.stat().st_mode  # what the user's umask gives; some writers make their files private
    except OSError as error:
        raise type(error)(error.errno, f"cannot write into the folder ({error.strerror})", str(target.parent)) from None
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

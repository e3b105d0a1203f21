"""Exit codes, messages and checks that the commands share; each command has a module of its own."""

import errno
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from patchout.cli import output
from patchout.errors import InputError

if TYPE_CHECKING:
    from patchout.models.tagger import Tagger

SYSTEM = ("/proc", "/sys")  # folders of Linux that are no disks
NO_FILES = "the system keeps no files there: name a place on a disk"
DONE, FAILED, WRONG_USAGE, STOPPED, TERMINATED = 0, 1, 2, 130, 143  # exit codes


def say(text: str) -> None:
    """Print one line on standard error."""
    output.line(f"patchout: {text}", sys.stderr)


def device_for(device: str, precision: str) -> str:
    """The device that `--device` and `--precision` mean: int8 is computed on a CPU."""
    return "cpu" if device == "auto" and precision == "int8" else device


def load_model(name: str, device: str, labels: Path | None = None) -> "Tagger":
    """Load a model by name, with a bar for the download; `labels` is a file of class names."""
    from patchout.checkpoint.labels import read_labels
    from patchout.checkpoint.zoo import load

    names = read_labels(labels) if labels else None
    with output.download_bar(sys.stderr) as progress:
        return load(name, device, labels=names, progress=progress)


def in_the_way(path: Path) -> str:
    """What stands where a folder should be, at a path or above it, and what to do; "" if nothing does."""
    place = next((place for place in (path, *path.parents) if place.exists()), path)
    if place.is_char_device() or place.is_block_device():
        return f"{place}: is a device: name a file or folder on a disk"
    if any(place.is_relative_to(root) for root in SYSTEM):
        return f"{path}: {NO_FILES}"
    return f"{place}: is a file: name a folder" if place.is_file() else ""


def check_batch_size(batch_size: int) -> None:
    """Refuse an empty batch before anything is loaded."""
    if batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}")


def check_parent(path: Path) -> None:
    """Refuse a file in a folder that takes none, and a device, before anything is loaded."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent}: no such folder to write into: make it first")
    if path.is_char_device() or path.is_block_device():
        raise FileExistsError(errno.EEXIST, "is a device: name a file on a disk", str(path))
    if any(path.parent.resolve().is_relative_to(root) for root in SYSTEM):
        raise InputError(f"{path}: {NO_FILES}")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, "cannot be written to: name another folder", str(path.parent))

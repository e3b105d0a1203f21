"""A job's folder, here or at any URL: is it this job's, and is this process its only writer?"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from patchout.errors import InputError
from patchout.files import write_aside

JOB = "job.json"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Key -> [old, new] of what `new` says otherwise than `old`; what only `old` says does not count."""
    return {key: [old.get(key), value] for key, value in new.items() if old.get(key) != value}


def claim(out: str, about: Mapping[str, Any]) -> set[str]:
    """Make the folder of a job that all this is true of, or make sure that it is that job's; returns its files.

    An InputError names what differs, or the folder that is no job's.
    """
    folder = Folder(out)
    names = folder.names()
    if JOB in names:
        with folder.reading(JOB) as file:
            check_same(out, file.read(), about)
    elif strange := sorted(name for name in names if not name.startswith(".")):
        raise InputError(
            f"{out}: holds {strange[0]!r} but no {JOB}, so it is no job's: give a new or empty folder"
        )
    else:
        with folder.writing(JOB) as file:
            file.write(json.dumps(about, indent=1).encode())
    return names


def check_same(out: str, written: bytes | str, about: Mapping[str, Any]) -> None:
    """Compare a job with the one that wrote `out`; an InputError names what differs."""
    try:
        old = json.loads(written)
    except ValueError:
        raise InputError(
            f"{out}: what it says of its job is damaged: give another folder, or delete it"
        ) from None
    compared = {key: value for key, value in about.items() if key not in ("model", "version")}
    if changes := differences(old, compared):
        texts = [f"{key} {before!r} there, {here!r} here" for key, (before, here) in changes.items()]
        raise InputError(
            f"{out}: belongs to another job ({'; '.join(texts)}): give another --out, or delete it"
        )


@contextmanager
def only_writer(folder: Path, *, halves: Iterable[str], busy: ValueError | None = None) -> Iterator[None]:
    """Keep a second process out of a folder, and remove the half files of a killed one, which match `halves`.

    Where another process is in it: `busy`, or an InputError.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        other = "another process is writing to it: wait for it, or stop it"
        raise busy or InputError(f"{folder}: {other}") from None
    try:
        for half in (file for pattern in halves for file in folder.glob(pattern)):
            half.unlink()
        yield
    finally:
        lock.release()


class Folder:
    """A folder here (`path`), or at any URL that fsspec knows (`path` is None)."""

    def __init__(self, out: str) -> None:
        self._files: Any = LocalFileSystem()
        self._root = str(Path(out).expanduser())
        try:
            if "://" in out:
                self._files, self._root = fsspec.core.url_to_fs(out)
        except (ImportError, ValueError) as error:  # no driver, or no such protocol
            raise ValueError(f"{out}: cannot be written to ({error})") from None
        self.path = Path(self._root) if isinstance(self._files, LocalFileSystem) else None

    def names(self) -> set[str]:
        """Files in it; none if it is not there yet."""
        if self._files.isfile(self._root):
            raise InputError(f"{self._root}: is a file: give a folder, or a name that ends in .parquet")
        if not self._files.exists(self._root):
            return set()
        return {name.rpartition("/")[2] for name in self._files.ls(self._root, detail=False, refresh=True)}

    def reading(self, name: str) -> Any:
        """A file to read."""
        return self._files.open(self._at(name), "rb")

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file that appears under its name when it is whole."""
        self._files.makedirs(self._root, exist_ok=True)
        if self.path:
            with write_aside(self.path / name) as path, path.open("wb") as file:
                yield file
            return
        aside = self._at(f".{uuid4().hex}.{name}")
        try:
            with self._files.open(aside, "wb") as file:
                yield file
            self._files.mv(aside, self._at(name))
        finally:
            if self._files.exists(aside):
                self._files.rm(aside)

    def remove(self, name: str) -> None:
        """Take a file away."""
        self._files.rm(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

"""Output folder of a job, local or at a URL: bound to its settings, with one writer at a time."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import fsspec
from fsspec.implementations.local import LocalFileSystem

from patchout.errors import InputError
from patchout.files import write_aside

JOB, HALF_JOB = "job.json", ".job.*.json"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Key -> [old, new] for every value of `new` that differs in `old`."""
    return {key: [old.get(key), value] for key, value in new.items() if old.get(key) != value}


def claim(out: str, settings: Mapping[str, Any]) -> set[str]:
    """Bind a new folder to the settings of a job, or check that it has the same ones; returns its files.

    An InputError names the settings that differ, or the folder without any.
    """
    folder = Folder(out)
    names = folder.names()
    if JOB in names:
        with folder.reading(JOB) as file:
            check_same(out, file.read(), settings)
    elif foreign := sorted(name for name in names if not name.startswith(".")):
        reason = f"holds {foreign[0]!r} but no {JOB}, so it is no job's"
        raise InputError(f"{out}: {reason}: give a new or empty folder")
    else:
        with folder.writing(JOB) as file:
            file.write(json.dumps(settings, indent=1).encode())
    return names


def check_same(out: str, stored: bytes | str, settings: Mapping[str, Any]) -> None:
    """Compare a job's settings with the stored ones (JSON) of `out`; an InputError names what differs."""
    old = None
    with suppress(ValueError):
        old = json.loads(stored)
    if not isinstance(old, dict):
        reason = "what it says of its job is damaged"
        raise InputError(f"{out}: {reason}: give another folder, or delete it")
    compared = {key: value for key, value in settings.items() if key not in ("model", "version")}
    if changes := differences(old, compared):
        texts = "; ".join(_in_words(key, *values) for key, values in changes.items())
        raise InputError(f"{out}: belongs to another job ({texts}): give another --out, or delete it")


def _in_words(key: str, before: Any, now: Any) -> str:
    """What differs, with its values; two hashes say nothing to people."""
    name = key.removesuffix("_sha256")
    return f"{key} {before!r} there, {now!r} here" if name == key else f"other {name}"


@contextmanager
def only_writer(folder: Path, *, halves: Iterable[str], busy: ValueError | None = None) -> Iterator[None]:
    """Lock a folder against other processes, and remove partial files of a killed one, which match `halves`.

    Raises `busy` (else an InputError) if another process holds the lock.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        reason = "another process is writing to it: wait for it, or stop it"
        raise busy or InputError(f"{folder}: {reason}") from None
    try:
        for pattern in (*halves, HALF_JOB):
            for file in folder.glob(pattern):
                file.unlink()
        yield
    finally:
        lock.release()


class Folder:
    """A folder on this machine (`path`), or at any URL that fsspec supports (`path` is None)."""

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
        """Names of its files; none if it does not exist yet."""
        if self._files.isfile(self._root):
            raise InputError(f"{self._root}: is a file: give a folder, or a name that ends in .parquet")
        if not self._files.exists(self._root):
            return set()
        return {name.rpartition("/")[2] for name in self._files.ls(self._root, detail=False, refresh=True)}

    def reading(self, name: str) -> Any:
        """Open a file to read."""
        return self._files.open(self._at(name), "rb")

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Open a file to write, which appears under its name when it is complete."""
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
        """Delete a file."""
        self._files.rm(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

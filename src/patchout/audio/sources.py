"""Sound sources: a path, bytes, a file object or an array; the first three open as a `Reader`."""

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from patchout.audio.containers import BinaryFile, Header
from patchout.audio.live import LiveSource
from patchout.errors import AudioError
from patchout.files import without_stream

File = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile
STANDARD_INPUT = "standard input is not read; copy what it gives into a file"
Source = File | tuple[Any, Any] | LiveSource  # (array, rate in Hz)


def name_of(source: Source) -> str:
    """The name of a source in messages: its path as given, the file object's name, `<bytes>` or `<array>`."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return "<bytes>"
    if is_array(source):
        return "<array>"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) and name else "<file>"


def is_array(source: object) -> bool:
    """Whether a source is an array of samples, with a rate or without, and no file."""
    return isinstance(source, tuple | list) or (hasattr(source, "ndim") and type(source) is not memoryview)


class Reader:
    """A byte range of a binary file, for libsndfile and libav: no read raises or returns too many bytes.

    libsndfile cannot pass an exception on, so a failure is kept in `error` and looks like the end of the
    file. It has no `name`: libav would take that for a URL and guess the format from its ending.
    """

    def __init__(self, file: BinaryFile, title: str) -> None:
        self.title = title
        self.error: OSError | None = None
        self._is_plain, self._patches = True, list[tuple[int, bytes]]()
        self.stream: int | None = None  # of the audio streams; None: the main one
        self._file, self._start = file, 0
        file.seek(0, os.SEEK_END)
        self.size = file.tell()
        file.seek(0)
        if not isinstance(file.read(0), bytes):
            raise TypeError("it is open as text")

    def narrow(self, start: int, end: int) -> None:
        """Restrict to the bytes from `start` to `end` of the whole file, unpatched."""
        self._start, self.size, self._is_plain = start, end - start, False
        self._patches.clear()
        self.seek(0)

    def patch(self, patches: Iterable[tuple[int, bytes]]) -> None:
        """Replace bytes of the file at some offsets in what is read from now on."""
        self._patches += patches
        self._is_plain = self._is_plain and not self._patches

    def correct(self, header: Header) -> None:
        """Give from now on, from the start, what `containers.read_header` corrects."""
        self.patch(header.patches)
        self.seek(0)
        if header.raw:
            self.narrow(header.raw_start, self.size)

    def read(self, size: int) -> bytes:
        try:
            if self._is_plain:
                return self._file.read(size)[:size]
            start = self.tell()
            content = self._file.read(min(size, max(0, self.size - start)))[:size]
        except OSError as error:
            self.error = error
            return b""
        for place, new in self._patches:
            if start < place + len(new) and place < start + len(content):
                mended = bytearray(content)
                part = new[max(0, start - place) : start + len(content) - place]
                mended[max(0, place - start) : max(0, place - start) + len(part)] = part
                content = bytes(mended)
        return content

    def tell(self) -> int:
        return self._file.tell() - self._start

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_CUR: self.tell(), os.SEEK_END: self.size}.get(whence, 0)
        offset = min(max(origin + offset, 0), self.size)  # a damaged header asks for any place
        self._file.seek(self._start + offset)
        return self.tell()


@contextlib.contextmanager
def opened(source: Source) -> Iterator[Reader]:
    """Open a path, bytes or a file object from its start, and close what was opened here."""
    name = name_of(source)
    stream: int | None = None
    with contextlib.ExitStack() as stack:
        if isinstance(source, bytes | bytearray | memoryview):
            file: Any = io.BytesIO(source)
        elif isinstance(source, str | os.PathLike):
            path, chosen = without_stream(name)
            stream = int(chosen[3:]) if chosen else None
            file = stack.enter_context(_open_path(Path(path), name))
        else:
            file = source
        try:
            reader = Reader(file, name)
        except (AttributeError, TypeError, ValueError, OSError) as error:
            reason = f"a {type(source).__name__} that cannot be read ({error})"
            allowed = 'a path, bytes, a seekable file opened with "rb", or (array, rate)'
            raise AudioError(f"{name}: {reason}; give {allowed}") from error
        if reader.size == 0:
            raise AudioError(f"{name}: is an empty file; check how it was made or copied")
        reader.stream = stream
        yield reader


def _open_path(path: Path, name: str) -> BinaryIO:
    try:
        if path.is_dir():  # Windows would call it a lack of permission
            raise IsADirectoryError
        if path.exists() and not path.is_file():
            raise AudioError(f"{name}: is not a regular file; copy what it gives into one")
        return path.open("rb")
    except OSError as error:
        reasons = {
            FileNotFoundError: STANDARD_INPUT if name == "-" else "is not there; check the path",
            IsADirectoryError: "is a folder; name a sound file in it",
            PermissionError: "may not be read; change its permissions",
        }
        reason = reasons.get(type(error), f"cannot be opened ({error.strerror}); check the path")
        raise type(error)(f"{name}: {reason}") from error

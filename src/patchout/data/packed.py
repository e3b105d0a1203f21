"""Undecoded sounds in memory-mapped Arrow files: the shards of prepared sets and of the hub's cache."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from patchout.audio.stream import Source
from patchout.errors import DataError


class _NamedBytes(io.BytesIO):
    """The bytes of a sound file, with the name that errors give it."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


@dataclass(frozen=True)
class Packed:
    """The column of sounds in Arrow files: mapped at their first use in a process, never sent to one."""

    files: tuple[str, ...]
    column: str = "audio"

    def __reduce__(self) -> tuple[type["Packed"], tuple[tuple[str, ...], str]]:
        return Packed, (self.files, self.column)

    @cached_property
    def _sounds(self) -> pa.ChunkedArray:
        return pa.chunked_array([chunk for file in self.files for chunk in _mapped(file)[self.column].chunks])

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(_mapped(file)) for file in self.files])

    def file(self, row: int) -> str:
        """The file that holds a row."""
        return self.files[np.searchsorted(self._ends, row, side="right")]

    def source(self, row: int, name: str) -> Source:
        """The sound of a row: its bytes, or its path where the shard holds no more than that."""
        cell = self._sounds[row].as_py()
        content = cell["bytes"] or cell["path"] if isinstance(cell, dict) else cell
        return content if isinstance(content, str) else _NamedBytes(content or b"", name)


def mapped_rows(files: Sequence[str]) -> pa.Table:
    """All rows of Arrow files, memory-mapped, numbered in the column `row`; DataError names a broken file."""
    table = pa.concat_tables([_mapped(file) for file in files])
    return table.append_column("row", pa.array(np.arange(len(table))))


def _mapped(file: str) -> pa.Table:
    options = pa.ipc.IpcReadOptions(use_threads=False)  # threads abort the process at exit, with torch loaded
    try:
        with pa.memory_map(file) as source, pa.ipc.open_stream(source, options=options) as stream:
            return stream.read_all()
    except (OSError, pa.ArrowException) as error:
        todo = "prepare or download the set again"
        raise DataError(f"{file}: a shard that cannot be read ({error}): {todo}") from None

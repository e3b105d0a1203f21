"""A bulk job on disk: what it computes, the folder it fills shard by shard, and what makes two jobs the same."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal
from uuid import uuid4

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from jaxtyping import Float

import patchout
from patchout.device import Precision
from patchout.download import file_sha256
from patchout.embedding import EmbedConfig
from patchout.errors import InputError
from patchout.files import write_aside
from patchout.items import Item, items_hash
from patchout.zoo import locate

JOB = "job.json"
LEAST_ROWS, MOST_ROWS = 8, 256  # of a shard
SHARDS = 16  # of a job, or more
Kind = Literal["scene", "timestamp"]


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """What is computed of every item: by which model (as `patchout.load` takes it), and how.

    `shard_rows` counts the items of a shard; 0: by their number, a killed job loses a sixteenth (or eight) at most.
    """

    model: str
    kind: Kind = "scene"
    config: EmbedConfig = field(default_factory=EmbedConfig)
    precision: Precision = "fp32"
    shard_rows: int = 0

    def __post_init__(self) -> None:
        """Refuse what would make a folder of mixed values."""
        if self.kind not in ("scene", "timestamp"):
            raise ValueError(f"kind is scene or timestamp, got {self.kind!r}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"a job's precision is fp32 or bf16, the same on every machine, got {self.precision!r}")
        if self.shard_rows < 0:
            raise ValueError(f"shard_rows must be at least 1, or 0 for a choice, got {self.shard_rows}")

    def sized(self, items: int) -> "EmbedJob":
        """The job with shards that suit so many items."""
        return self if self.shard_rows else replace(self, shard_rows=min(max(LEAST_ROWS, items // SHARDS), MOST_ROWS))

    def num_shards(self, items: int) -> int:
        """Shards of so many items, of a job that is sized."""
        return -(-items // self.shard_rows)

    @cached_property
    def model_sha256(self) -> str:
        """Of the model's file; computed once, and carried along when the job is sent to another machine."""
        return file_sha256(locate(self.model))

    @cached_property
    def hash(self) -> str:
        """Sixteen digits that change with everything that changes values."""
        about = {key: value for key, value in self.about().items() if key not in ("model", "shard_rows", "version")}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    def about(self, items: Sequence[Item] = ()) -> dict[str, Any]:
        """Everything by name, as JSON holds it; with the items, what makes two jobs the same."""
        fields = asdict(self)
        more: dict[str, Any] = {"model_sha256": self.model_sha256, "version": patchout.__version__}
        more |= {"items": len(items), "items_sha256": items_hash(items)} if items else {}
        return json.loads(json.dumps(fields.pop("config") | fields | more))

    def schema(self, size: int) -> pa.Schema:
        """Columns of the shards, embeddings of `size` values, and what stands in the header of every Parquet file."""
        columns = {
            "file": pa.string(),
            "start_s": pa.float64(),
            "duration_s": pa.float64(),
            "time_ms": pa.float64(),
            "embedding": pa.list_(pa.float32(), size),
            "error": pa.string(),
        }
        if self.kind == "scene":
            del columns["time_ms"]
        about = {
            "patchout.model": self.model,
            "patchout.config_hash": self.hash,
            "patchout.version": patchout.__version__,
            "patchout.job": json.dumps(self.about()),
        }
        return pa.schema(columns, metadata=about)


def shard_name(index: int) -> str:
    """File of a shard."""
    return f"part-{index:06d}.parquet"


@contextmanager
def table_writer(out: str, name: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Write a Parquet file, table by table, under another name, and rename it when it is whole."""
    with (
        Folder(out).writing(name) as file,
        # embeddings do not compress; names and reasons repeat
        pq.ParquetWriter(file, schema, compression="none", use_dictionary=["file", "error"]) as writer,
    ):
        yield writer


def read_tables(out: str, names: Iterable[str], *, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows of Parquet files in a folder, a row group at a time.

    By this thread alone: a reading thread that lets go of a Python file while the interpreter ends aborts the process.
    """
    folder = Folder(out)
    for name in names:
        with folder.reading(name) as opened, pq.ParquetFile(opened, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns, use_threads=False)


def embeddings(table: pa.Table) -> Float[np.ndarray, "row value"]:
    """The column of that name, NaN where there is none."""
    column = table["embedding"].combine_chunks()
    values = np.full((len(column), column.type.list_size), np.nan, np.float32)
    values[column.is_valid().to_numpy(zero_copy_only=False)] = column.flatten().to_numpy().reshape(-1, values.shape[1])
    return values


def open_job(out: str, job: EmbedJob, items: Sequence[Item]) -> set[int]:
    """Make the folder of a job, or make sure that it is this job's, and return its finished shards."""
    names = bind(out, job.about(items))
    return {int(number[1]) for name in names if (number := re.fullmatch(r"part-(\d{6,})\.parquet", name))}


def bind(out: str, about: dict[str, Any]) -> set[str]:
    """Make the folder of a job that all this is true of, or make sure that it is that job's, and return its files.

    An InputError names what differs, or the folder that is no job's.
    """
    folder = Folder(out)
    names = folder.names()
    if JOB in names:
        with folder.reading(JOB) as file:
            check_same(out, file.read(), about)
    elif strange := sorted(name for name in names if not name.startswith(".")):
        raise InputError(f"{out}: holds {strange[0]!r} but no {JOB}, so it is no job's: give a new or empty folder")
    else:
        with folder.writing(JOB) as file:
            file.write(json.dumps(about, indent=1).encode())
    return names


def check_same(out: str, written: bytes | str, about: dict[str, Any]) -> None:
    """Compare a job with the one that wrote `out`; an InputError names what differs."""
    try:
        old = json.loads(written)
    except ValueError:
        raise InputError(f"{out}: what it says of its job is damaged: give another folder, or delete it") from None
    differing = [
        f"{key} {old.get(key)!r} there, {value!r} here"
        for key, value in about.items()
        if key not in ("model", "version") and old.get(key) != value
    ]
    if differing:
        raise InputError(f"{out}: belongs to another job ({'; '.join(differing)}): give another --out, or delete it")


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

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

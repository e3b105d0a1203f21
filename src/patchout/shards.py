"""A bulk job on disk: what it computes, the folder it fills shard by shard, and what makes two jobs the same."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

import patchout
from patchout.device import Precision
from patchout.download import file_sha256
from patchout.embedding import EmbedConfig
from patchout.errors import InputError
from patchout.files import write_aside
from patchout.zoo import locate

JOB = "job.json"
Kind = Literal["scene", "timestamp"]


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """What is computed of every item: by which model (as `patchout.load` takes it), and how.

    `shard_rows` counts the items of a shard.
    """

    model: str
    kind: Kind = "scene"
    config: EmbedConfig = field(default_factory=EmbedConfig)
    precision: Precision = "fp32"
    shard_rows: int = 256

    def __post_init__(self) -> None:
        """Refuse what would make a folder of mixed values."""
        if self.kind not in ("scene", "timestamp"):
            raise ValueError(f"kind is scene or timestamp, got {self.kind!r}")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(
                f"the precision of a job is fp32 or bf16, the same on every machine, got {self.precision!r}"
            )
        if self.shard_rows < 1:
            raise ValueError(f"shard_rows must be at least 1, got {self.shard_rows}")

    @cached_property
    def model_sha256(self) -> str:
        """Of the model's file; computed once, and carried along when the job is sent to another machine."""
        return file_sha256(locate(self.model))

    @cached_property
    def hash(self) -> str:
        """Sixteen digits that change with everything that changes values."""
        about = {key: value for key, value in self.about().items() if key not in ("model", "shard_rows", "version")}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    def about(self) -> dict[str, Any]:
        """Everything by name, as JSON holds it."""
        about = {
            "model": self.model,
            "model_sha256": self.model_sha256,
            "kind": self.kind,
            **asdict(self.config),
            "precision": self.precision,
            "shard_rows": self.shard_rows,
            "version": patchout.__version__,
        }
        return json.loads(json.dumps(about))

    @property
    def metadata(self) -> dict[str, str]:
        """What stands in the header of every Parquet file."""
        return {
            "patchout.model": self.model,
            "patchout.config_hash": self.hash,
            "patchout.version": patchout.__version__,
            "patchout.job": json.dumps(self.about()),
        }


def shard_name(index: int) -> str:
    """File of a shard."""
    return f"part-{index:06d}.parquet"


def write_shard(tables: Iterable[pa.Table], out: str, index: int, job: EmbedJob) -> None:
    """Write one shard, table by table, under another name, and rename it when it is whole."""
    reader = iter(tables)
    first = next(reader)
    schema = first.schema.with_metadata(job.metadata)
    with Folder(out).writing(shard_name(index)) as file, parquet_writer(file, schema) as writer:
        writer.write_table(first.cast(schema))
        for table in reader:
            writer.write_table(table.cast(schema))


def read_tables(out: str, names: Iterable[str], *, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows of Parquet files in a folder, a row group at a time.

    By this thread alone: a reading thread that lets go of a Python file while the interpreter ends aborts the process.
    """
    folder = Folder(out)
    for name in names:
        with folder.opened(name) as opened, pq.ParquetFile(opened, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns, use_threads=False)


def embeddings(table: pa.Table) -> Float[np.ndarray, "row value"]:
    """The column of that name, NaN where there is none."""
    column = table["embedding"].combine_chunks()
    values = np.full((len(column), column.type.list_size), np.nan, np.float32)
    values[column.is_valid().to_numpy(zero_copy_only=False)] = column.flatten().to_numpy().reshape(-1, values.shape[1])
    return values


def parquet_writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """Embeddings do not compress; names and reasons repeat."""
    return pq.ParquetWriter(file, schema, compression="none", use_dictionary=["file", "error"])


def open_job(out: str, job: EmbedJob, items_hash: str, count: int) -> set[int]:
    """Make the folder of a job, or make sure that it is this job's, and return its finished shards.

    An InputError names what differs, or the folder that is no job's.
    """
    folder = Folder(out)
    about = {**job.about(), "items": count, "items_sha256": items_hash}
    names = folder.names()
    if JOB in names:
        check_same(out, folder.read(JOB), about)
    elif strange := sorted(name for name in names if not name.startswith(".")):
        raise InputError(f"{out}: holds {strange[0]!r} but no {JOB}, so it is no job's: give a new or empty folder")
    else:
        with folder.writing(JOB) as file:
            file.write(json.dumps(about, indent=1).encode())
    numbers = (re.fullmatch(r"part-(\d{6,})\.parquet", name) for name in names)
    return {int(number[1]) for number in numbers if number}


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
    """A local folder, or a folder at any URL that fsspec knows."""

    def __init__(self, out: str) -> None:
        self.out = out
        self._files: Any = None
        if "://" in out:
            import fsspec

            try:
                self._files, self._root = fsspec.core.url_to_fs(out)
            except (ImportError, ValueError) as error:  # no driver, or no such protocol
                raise ValueError(f"{out}: cannot be written to ({error})") from None

    def names(self) -> set[str]:
        """Files in it; none if it is not there yet."""
        if self._files is None:
            path = Path(self.out)
            if path.exists() and not path.is_dir():
                raise InputError(f"{path}: is a file: give a folder, or a name that ends in .parquet")
            return {file.name for file in path.iterdir()} if path.exists() else set()
        if not self._files.exists(self._root):
            return set()
        return {name.rpartition("/")[2] for name in self._files.ls(self._root, detail=False, refresh=True)}

    def read(self, name: str) -> bytes:
        """A small file."""
        return (Path(self.out) / name).read_bytes() if self._files is None else self._files.cat_file(self._at(name))

    @contextmanager
    def opened(self, name: str) -> Iterator[pa.NativeFile | BinaryIO]:
        """A file to read."""
        local = self._files is None
        with pa.OSFile(str(Path(self.out) / name)) if local else self._files.open(self._at(name), "rb") as file:
            yield file

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """A file that appears under its name when it is whole."""
        if self._files is None:
            Path(self.out).mkdir(parents=True, exist_ok=True)
            with write_aside(Path(self.out) / name) as path, path.open("wb") as file:
                yield file
            return
        self._files.makedirs(self._root, exist_ok=True)
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

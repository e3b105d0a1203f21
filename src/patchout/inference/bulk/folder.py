"""A bulk job on disk: what it computes, the shards that it fills, and what makes two jobs the same."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int

import patchout
from patchout.checkpoint.download import file_sha256
from patchout.checkpoint.zoo import locate
from patchout.data.items import Item, items_hash
from patchout.inference.embedding import EmbedConfig
from patchout.job_folder import Folder, claim
from patchout.models.device import Precision

LEAST_ROWS, MOST_ROWS = 8, 256  # of a shard
SHARDS = 16  # of a job, or more
HALVES = ".*part-*.parquet"  # what a killed process leaves
STATES = [
    "file",
    "start_s",
    "duration_s",
    "time_ms",
    "error",
    "size_bytes",
    "modified_s",
]  # columns that are not values
REPEATED = ["file", "error", "size_bytes", "modified_s"]
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
            raise ValueError(
                f"a job's precision is fp32 or bf16, the same on every machine, got {self.precision!r}"
            )
        if self.shard_rows < 0:
            raise ValueError(f"shard_rows must be at least 1, or 0 for a choice, got {self.shard_rows}")

    def sized(self, items: int) -> "EmbedJob":
        """The job with shards that suit so many items."""
        return (
            self
            if self.shard_rows
            else replace(self, shard_rows=min(max(LEAST_ROWS, items // SHARDS), MOST_ROWS))
        )

    def num_shards(self, items: int) -> int:
        """Shards of so many items, of a job that is sized."""
        return -(-items // self.shard_rows)

    def items_of(self, items: Sequence[Item], shard: int) -> Sequence[Item]:
        """The items of a shard, of a job that is sized."""
        return items[shard * self.shard_rows : (shard + 1) * self.shard_rows]

    @cached_property
    def model_sha256(self) -> str:
        """Of the model's file; computed once, and carried along when the job is sent to another machine."""
        return file_sha256(locate(self.model))

    @cached_property
    def hash(self) -> str:
        """Sixteen digits that change with everything that changes values."""
        about = {
            key: value for key, value in self.about().items() if key not in ("model", "shard_rows", "version")
        }
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
            "size_bytes": pa.int64(),  # of the file that was read; earlier versions did not keep it
            "modified_s": pa.float64(),
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
        # embeddings do not compress; the others repeat from row to row
        pq.ParquetWriter(file, schema, compression="none", use_dictionary=REPEATED) as writer,
    ):
        yield writer


def read_tables(out: str, names: Iterable[str], *, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows of Parquet files in a folder, a row group at a time; of the `columns` those that are there.

    By this thread alone: a reading thread that lets go of a Python file while the interpreter ends aborts the process.
    """
    folder = Folder(out)
    for name in names:
        with folder.reading(name) as opened, pq.ParquetFile(opened, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns=columns, use_threads=False)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema, null where the table has none of that name."""
    columns = [
        table[field.name] if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def gathered(tables: Iterable[pa.Table], num_bytes: int) -> Iterator[pa.Table]:
    """The same rows in tables of about so many bytes."""
    parts: list[pa.Table] = []
    total = 0
    for table in tables:
        parts.append(table)
        total += table.nbytes
        if total >= num_bytes:
            yield pa.concat_tables(parts)
            parts, total = [], 0
    if parts:
        yield pa.concat_tables(parts)


def storable(text: str | None) -> str | None:
    """A text that Arrow can hold: bytes of a file name that are no UTF-8 are escaped."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def embeddings(table: pa.Table) -> Float[np.ndarray, "row value"]:
    """The column of that name, NaN where there is none."""
    column = table["embedding"].combine_chunks()
    values = np.full((len(column), column.type.list_size), np.nan, np.float32)
    values[column.is_valid().to_numpy(zero_copy_only=False)] = (
        column.flatten().to_numpy().reshape(-1, values.shape[1])
    )
    return values


def open_job(out: str, job: EmbedJob, items: Sequence[Item]) -> set[int]:
    """Make the folder of a job, or make sure that it is this job's, and return its finished shards."""
    names = claim(out, job.about(items))
    return {int(number[1]) for name in names if (number := re.fullmatch(r"part-(\d{6,})\.parquet", name))}


# -- rows and items ---------------------------------------------------------------------------------------------------


def numbered(tables: Iterable[pa.Table]) -> Iterator[tuple[Int[np.ndarray, "row"], pa.Table]]:
    """Consecutive tables of a job, each with the number of every row's item, counted from 0."""
    count, last = -1, None
    for table in filter(len, tables):
        keys = table.select([name for name in STATES if name in table.column_names])
        rows = keys if last is None else pa.concat_tables([last, keys], promote_options="default")
        begins = _begins(rows)[len(rows) - len(table) :]
        numbers = count + np.cumsum(begins)
        yield numbers, table
        count, last = int(numbers[-1]), keys.slice(len(keys) - 1)


def _begins(rows: pa.Table) -> Bool[np.ndarray, "row"]:
    """Whether a row is the first of its item; of scenes every one is.

    Times rise within an item. One that breaks on the way ends with a reason in a row that has its file's state.
    """
    begins = np.ones(len(rows), bool)
    if "time_ms" not in rows.column_names:
        return begins
    files, starts_s = rows["file"].combine_chunks(), rows["start_s"].to_numpy()
    is_same = pc.equal(files[1:], files[:-1]).to_numpy(zero_copy_only=False) & (starts_s[1:] == starts_s[:-1])
    times_ms = rows["time_ms"].to_numpy()
    is_failed = np.isnan(times_ms)
    is_read = ~rows["size_bytes"].is_null().to_numpy() if "size_bytes" in rows.column_names else ~is_failed
    goes_on = (times_ms[1:] > times_ms[:-1]) | (is_failed[1:] & is_read[1:] & ~is_failed[:-1])
    begins[1:] = ~(is_same & goes_on)
    return begins


def by_items(tables: Iterable[pa.Table], count: int = 1) -> Iterator[tuple[int, pa.Table]]:
    """The rows of every `count` items with their number; those that stand in two tables come twice."""
    for numbers, table in numbered(tables):
        groups = numbers // count
        edges = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(table)]
        for first, end in pairwise(edges):
            yield int(groups[first]), table.slice(first, end - first)

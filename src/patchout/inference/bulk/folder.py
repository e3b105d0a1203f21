"""A bulk job and its folder: settings, Parquet shards, and which rows belong to which item."""

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
from patchout.audio.stream import Stream
from patchout.checkpoint.download import file_sha256
from patchout.checkpoint.zoo import load, locate
from patchout.data.items import Item, items_hash
from patchout.data.job_folder import Folder, claim
from patchout.inference.bulk.ahead import open_stream
from patchout.inference.embedding import EmbedConfig, Embedder
from patchout.models.device import InferencePrecision
from patchout.models.tagger import TaggerConfig

MIN_ITEMS, MAX_ITEMS = 8, 256  # of a shard
SHARDS = 16  # of a job, or more
HALVES = ".*part-*.parquet"  # of a killed process
STATES = [
    "file",
    "start_s",
    "duration_s",
    "time_ms",
    "error",
    "size_bytes",
    "modified_s",
]  # all but the values
REPEATED = ["file", "error", "size_bytes", "modified_s"]
Kind = Literal["scene", "timestamp"]


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """The settings of a bulk job: the model (as `patchout.load` takes it), the embedding, the precision.

    `shard_rows` counts the items of a shard; 0: a sixteenth of all, but 8 to 256.
    """

    model: str
    kind: Kind = "scene"
    config: EmbedConfig = field(default_factory=EmbedConfig)
    precision: InferencePrecision = "fp32"
    shard_rows: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that would mix values in one folder."""
        if self.kind not in ("scene", "timestamp"):
            raise ValueError(f"kind is scene or timestamp, got {self.kind!r}")
        if self.precision not in ("fp32", "bf16", "int8"):
            allowed = "fp32, bf16 or int8, the same on every machine"
            raise ValueError(f"a job's precision is {allowed}, got {self.precision!r}")
        if self.shard_rows < 0:
            raise ValueError(f"shard_rows must be at least 1, or 0 for a choice, got {self.shard_rows}")

    def sized(self, items: int) -> "EmbedJob":
        """The job with a number of items a shard that suits so many items."""
        size = min(max(MIN_ITEMS, items // SHARDS), MAX_ITEMS)
        return self if self.shard_rows else replace(self, shard_rows=size)

    def num_shards(self, items: int) -> int:
        """Shards of so many items, of a job that is sized."""
        return -(-items // self.shard_rows)

    def items_of(self, items: Sequence[Item], shard: int) -> Sequence[Item]:
        """The items of a shard, of a job that is sized."""
        return items[shard * self.shard_rows : (shard + 1) * self.shard_rows]

    def embedder(self, device: str = "auto") -> Embedder:
        """The job's model on a device, with its config."""
        return Embedder(load(self.model, device), self.config, precision=self.precision)

    def open(self, item: Item, config: TaggerConfig) -> Stream:
        """The sound of an item, as a model of this config hears it."""
        return open_stream(item, config.mel.sample_rate, channel=config.channel)

    @cached_property
    def model_sha256(self) -> str:
        """SHA-256 of the model's file, computed once, also for other machines that the job is sent to."""
        return file_sha256(locate(self.model))

    @cached_property
    def hash(self) -> str:
        """Sixteen digits that change with every setting that changes values."""
        settings = self.about()
        for name in ("model", "shard_rows", "version"):
            del settings[name]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def about(self, items: Sequence[Item] = ()) -> dict[str, Any]:
        """All settings by name, as JSON holds them; with the items, what makes two jobs the same."""
        settings = asdict(self)
        more: dict[str, Any] = {"model_sha256": self.model_sha256, "version": patchout.__version__}
        more |= {"items": len(items), "items_sha256": items_hash(items)} if items else {}
        return json.loads(json.dumps(settings.pop("config") | settings | more))

    def schema(self, size: int) -> pa.Schema:
        """The columns of shards of embeddings of `size` values, and the settings in every Parquet header."""
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
        metadata = {
            "patchout.model": self.model,
            "patchout.config_hash": self.hash,
            "patchout.version": patchout.__version__,
            "patchout.job": json.dumps(self.about()),
        }
        return pa.schema(columns, metadata=metadata)


def shard_name(index: int) -> str:
    """File of a shard."""
    return f"part-{index:06d}.parquet"


@contextmanager
def table_writer(out: str, name: str, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Write a Parquet file, table by table, aside, and rename it when it is whole."""
    with (
        Folder(out).writing(name) as file,
        # embeddings do not compress; the others repeat from row to row
        pq.ParquetWriter(file, schema, compression="none", use_dictionary=REPEATED) as writer,
    ):
        yield writer


def read_tables(out: str, names: Iterable[str], *, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The rows of Parquet files in a folder, a row group at a time; of the `columns` those that are there.

    In this thread alone: a reading thread that ends with the interpreter aborts the process.
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
    """The same rows in larger tables of about so many bytes."""
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
    """A text with the bytes escaped that are no UTF-8, as Arrow needs it."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def embeddings(table: pa.Table) -> Float[np.ndarray, "row value"]:
    """The column `embedding` as an array, NaN where it is null."""
    column = table["embedding"].combine_chunks()
    size, is_valid = column.type.list_size, column.is_valid().to_numpy(zero_copy_only=False)
    values = np.full((len(column), size), np.nan, np.float32)
    values[is_valid] = column.flatten().to_numpy().reshape(-1, size)
    return values


def open_job(out: str, job: EmbedJob, items: Sequence[Item]) -> set[int]:
    """Make the folder of a job, or check that it is this job's, and return its finished shards."""
    names = claim(out, job.about(items))
    return {int(number[1]) for name in names if (number := re.fullmatch(r"part-(\d{6,})\.parquet", name))}


def numbered(tables: Iterable[pa.Table]) -> Iterator[tuple[Int[np.ndarray, "row"], pa.Table]]:
    """Consecutive tables of a job, each with the item number of every row, from 0."""
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

    Times rise within an item. One that fails on the way ends with a reason in a row with its file's state.
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
    """(number, rows) of every `count` items; a group that lies in two tables comes twice."""
    for numbers, table in numbered(tables):
        groups = numbers // count
        edges = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(table)]
        for first, end in pairwise(edges):
            yield int(groups[first]), table.slice(first, end - first)

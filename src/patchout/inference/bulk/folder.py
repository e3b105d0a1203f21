"""The folder of a bulk job: Parquet shards, and which rows belong to which item."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int

from patchout.data.job_folder import Folder
from patchout.files import escaped

HALVES = ".*part-*.parquet"  # of a killed process
STATES = [
    "file",
    "start_s",
    "duration_s",
    "time_ms",
    "error",
    "size_bytes",
    "modified_s",
    "sample_rate",
]  # all but the values
REPEATED = ["file", "error", "size_bytes", "modified_s", "sample_rate"]


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
    return None if text is None else escaped(text)


def embeddings(table: pa.Table) -> Float[np.ndarray, "row value"]:
    """The column `embedding` as an array, NaN where it is null."""
    column = table["embedding"].combine_chunks()
    size, is_valid = column.type.list_size, column.is_valid().to_numpy(zero_copy_only=False)
    values = np.full((len(column), size), np.nan, np.float32)
    values[is_valid] = column.flatten().to_numpy().reshape(-1, size)
    return values


def finished_shards(names: Iterable[str]) -> set[int]:
    """Numbers of the shards among the names of files."""
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

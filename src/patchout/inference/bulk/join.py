"""Shards <-> one Parquet file, a .npy with a table beside it, or an HDF5 file, in bounded memory."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.csv import ConvertOptions, CSVWriter, ParseOptions, WriteOptions, open_csv

from patchout.data.items import Item
from patchout.data.job_folder import JOB, claim, only_writer
from patchout.errors import InputError
from patchout.files import write_aside
from patchout.inference.bulk import folder
from patchout.inference.bulk.folder import HALVES, STATES
from patchout.inference.bulk.job import BulkJob
from patchout.inference.bulk.stale import Stale, find_stale

Format = Literal["parquet", "npy", "hdf5"]
GROUP_BYTES = 2**26  # of a row group in a joined file
ARRAY, TABLE = "embeddings.npy", "rows.csv"
TEXTS = ("file", "error")  # columns that are no numbers


def join(parts: Path, shards: int, out: Path, *, format: Format = "parquet", failed: int = 0) -> None:
    """Write the shards of a finished job, of whose items `failed` failed, as one result, and remove them.

    `npy` makes a folder with `embeddings.npy` (row, value), NaN where an item failed, and the other columns
    in `rows.csv`; `hdf5` a file with the same as data sets. Both have the job's settings in JSON.
    """
    files = [parts / folder.shard_name(index) for index in range(shards)]
    job = json.dumps(json.loads((parts / JOB).read_text()) | {"failed": failed})
    {"parquet": _write_parquet, "npy": _write_npy, "hdf5": _write_hdf5}[format](files, out, job)
    remove_parts(parts, shards)


def remove_parts(parts: Path, shards: int) -> None:
    """Remove the shards of a job that are joined."""
    for name in (*map(folder.shard_name, range(shards)), JOB, ".lock"):
        (parts / name).unlink(missing_ok=True)
    with suppress(OSError):  # not there, or something of the user's lies in it
        parts.rmdir()


def job_of(out: Path, format: Format) -> str | None:
    """The job of a joined result, as JSON; None if there is none. An InputError if it is no such result."""
    with suppress(OSError, pa.ArrowException, KeyError):
        if format == "npy" and out.is_dir():
            is_half = {path.name for path in out.iterdir()} <= {ARRAY, TABLE}  # empty, or of a killed call
            return None if is_half else (out / JOB).read_text()
        if not out.exists():
            return None
        if format == "parquet":
            return (pq.read_schema(out).metadata or {})[b"patchout.job"].decode()
        if format == "hdf5":
            import h5py

            with h5py.File(out, "r") as file:
                return str(file.attrs["patchout.job"])
    todo = "give another name, or remove it"
    raise InputError(f"{out}: is there already and holds no result of patchout: {todo}")


def reopen(out: Path, parts: Path, items: Sequence[Item], job: BulkJob, *, format: Format) -> Stale | None:
    """The state of a result whose rows still hold; else None, and its rows are in shards again, to go on.

    Of a result whose rows do not fit the items nothing is used.
    """
    shards = range(job.num_shards(len(items)))
    if all((parts / folder.shard_name(shard)).exists() for shard in shards):
        return None  # a killed call was changing it
    states = _shards_of(_read(out, format, STATES), job.shard_rows)
    stale = find_stale((shard, job.items_of(items, shard), tables) for shard, tables in states)
    is_whole = not stale.damaged and stale.counts.total() - stale.counts["retried"] == len(items)
    if is_whole and not stale.places:
        remove_parts(parts, len(shards))  # what a killed call left
        return stale
    with only_writer(parts, halves=[HALVES]):
        claim(str(parts), job.about(items))
        if is_whole:
            tables = _read(out, format, None if format == "parquet" else [*STATES, "embedding"])
            first = next(tables)
            schema = job.schema_of(first.schema)
            for shard, rows in _shards_of(chain([first], tables), job.shard_rows):
                with folder.table_writer(str(parts), folder.shard_name(shard), schema) as writer:
                    conforming = (folder.conform(table, schema) for table in rows)
                    for table in folder.gathered(conforming, GROUP_BYTES):
                        writer.write_table(table)
    return None


def _shards_of(tables: Iterable[pa.Table], shard_rows: int) -> Iterator[tuple[int, Iterator[pa.Table]]]:
    """(number, tables) of each shard of `shard_rows` items; its tables are read before the next shard."""
    for shard, group in groupby(folder.by_items(tables, shard_rows), key=itemgetter(0)):
        yield shard, (table for _, table in group)


def _read(out: Path, format: Format, columns: list[str] | None) -> Iterator[pa.Table]:
    """The rows of a result, in order, with those of the columns that it has; None: all, of Parquet."""
    if format == "parquet" or columns is None:
        return folder.read_tables(str(out.parent), [out.name], columns=columns)
    return (_read_npy if format == "npy" else _read_hdf5)(out, columns)


def _read_npy(out: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    array = np.load(out / ARRAY, mmap_mode="r")
    types = dict.fromkeys(columns, pa.float64()) | dict.fromkeys(TEXTS, pa.string())
    types |= dict.fromkeys(("size_bytes", "sample_rate"), pa.int64())
    conversion = ConvertOptions(column_types=types, strings_can_be_null=True, null_values=["", "nan"])
    parsing, place = ParseOptions(newlines_in_values=True), 0
    with open_csv(out / TABLE, parse_options=parsing, convert_options=conversion) as batches:
        for batch in batches:
            rows = pa.table(batch)
            yield _with_embeddings(rows, array[place : place + len(rows)], columns)
            place += len(rows)


def _read_hdf5(out: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    import h5py

    with h5py.File(out, "r") as file:
        step = max(1, GROUP_BYTES // (4 * file["embedding"].shape[1]))
        for first in range(0, len(file["embedding"]), step):
            rows = slice(first, first + step)
            cells: dict[str, pa.Array] = {}
            for name in (name for name in columns if name in file and name != "embedding"):
                if name in TEXTS:
                    cells[name] = pa.array([text or None for text in file[name].asstr()[rows]], pa.string())
                else:
                    cells[name] = pa.array(file[name][rows], from_pandas=True)
            values = file["embedding"][rows] if "embedding" in columns else np.zeros((0, 1))
            yield _with_embeddings(pa.table(cells), values, columns)


def _with_embeddings(rows: pa.Table, values: np.ndarray, columns: Sequence[str]) -> pa.Table:
    """The rows as in their shards: an empty file name for null, no embedding of a failed item."""
    rows = rows.set_column(rows.column_names.index("file"), "file", pc.fill_null(rows["file"], ""))
    if "embedding" not in columns:
        return rows
    failed = rows["duration_s"].combine_chunks().is_null()
    flat, kind = np.ascontiguousarray(values, np.float32).reshape(-1), pa.list_(pa.float32(), values.shape[1])
    return rows.append_column("embedding", pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=failed))


def _groups(files: list[Path]) -> Iterator[pa.Table]:
    """The rows of the shards, in order, in tables of about GROUP_BYTES."""
    schema = _schema(files)
    tables = folder.read_tables(str(files[0].parent), (path.name for path in files))
    return folder.gathered((folder.conform(table, schema) for table in tables), GROUP_BYTES)


def _schema(files: list[Path]) -> pa.Schema:
    """The columns of all shards: those of earlier versions have fewer."""
    return pa.unify_schemas([pq.read_schema(path) for path in files])


def _shape(files: list[Path]) -> tuple[int, int]:
    """(rows, values) of all shards."""
    rows = sum(pq.read_metadata(path).num_rows for path in files)
    return rows, pq.read_schema(files[0]).field("embedding").type.list_size


def _write_parquet(files: list[Path], out: Path, job: str) -> None:
    schema = _schema(files)
    schema = schema.with_metadata(schema.metadata | {b"patchout.job": job.encode()})
    with folder.table_writer(str(out.parent), out.name, schema) as writer:
        for table in _groups(files):
            writer.write_table(table.cast(schema))


def _write_npy(files: list[Path], out: Path, job: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    columns = pa.schema([field for field in _schema(files) if field.name != "embedding"])
    with (
        write_aside(out / ARRAY) as array_path,
        write_aside(out / TABLE) as table_path,
        CSVWriter(str(table_path), columns, write_options=WriteOptions(quoting_style="needed")) as rows,
    ):
        array = np.lib.format.open_memmap(array_path, mode="w+", dtype=np.float32, shape=_shape(files))
        place = 0
        for table in _groups(files):
            array[place : place + len(table)] = folder.embeddings(table)
            rows.write_table(table.select(columns.names).replace_schema_metadata())
            place += len(table)
        array.flush()
        del array  # some systems rename no mapped file
    with write_aside(out / JOB) as path:
        path.write_text(job)


def _write_hdf5(files: list[Path], out: Path, job: str) -> None:
    import h5py

    num_rows, _ = _shape(files)
    with write_aside(out) as aside, h5py.File(aside, "w") as file:
        file.attrs["patchout.job"] = job
        place = 0
        for table in _groups(files):
            for name in table.column_names:
                cells = folder.embeddings(table) if name == "embedding" else _cells(table[name])
                if name not in file:
                    kind = h5py.string_dtype() if cells.dtype == object else cells.dtype
                    file.create_dataset(name, (num_rows, *cells.shape[1:]), kind)
                file[name][place : place + len(table)] = cells
            place += len(table)


def _cells(column: Any) -> np.ndarray:
    """A column as an array: NaN or "" where it is null."""
    if pa.types.is_string(column.type):
        return np.array([cell or "" for cell in column.to_pylist()], object)
    return column.cast(pa.float64()).to_numpy()

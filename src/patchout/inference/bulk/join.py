"""Shards <-> one Parquet file, a .npy with a table beside it, or an HDF5 file, in bounded memory."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.csv import ConvertOptions, CSVWriter, ParseOptions, WriteOptions, open_csv

from patchout.data.items import Item
from patchout.errors import InputError
from patchout.files import write_aside
from patchout.inference.bulk.folder import (
    HALVES,
    STATES,
    EmbedJob,
    by_items,
    conform,
    embeddings,
    gathered,
    read_tables,
    shard_name,
    table_writer,
)
from patchout.inference.bulk.stale import Stale, find
from patchout.job_folder import JOB, claim, only_writer

Format = Literal["parquet", "npy", "hdf5"]
GROUP_BYTES = 2**26  # of a row group in a joined file
ARRAY, TABLE = "embeddings.npy", "rows.csv"
TEXTS = ("file", "error")  # columns that are no numbers


def join(parts: Path, shards: int, out: Path, *, format: Format = "parquet", failed: int = 0) -> None:
    """Write the shards of a finished job, of whose items `failed` failed, as one result, and remove them.

    `npy` makes a folder with `embeddings.npy` (row, value), NaN where an item failed, and the other columns in
    `rows.csv`; `hdf5` a file with the same as data sets. Both say in JSON which job they hold.
    """
    files = [parts / shard_name(index) for index in range(shards)]
    about = json.dumps(json.loads((parts / JOB).read_text()) | {"failed": failed})
    write = {"parquet": _write_parquet, "npy": _write_npy, "hdf5": _write_hdf5}[format]
    write(files, out, about)
    remove_parts(parts, shards)


def remove_parts(parts: Path, shards: int) -> None:
    """Remove the shards of a job that are joined."""
    for path in (*(parts / shard_name(index) for index in range(shards)), parts / JOB, parts / ".lock"):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # not there, or something of the user's lies in it
        parts.rmdir()


def job_of(out: Path, format: Format) -> str | None:
    """What a joined result says of its job; None if there is none. An InputError if it is no such result."""
    with suppress(OSError, pa.ArrowException, KeyError):
        if format == "npy" and out.is_dir():
            names = {path.name for path in out.iterdir()}
            return (
                None if names <= {ARRAY, TABLE} else (out / JOB).read_text()
            )  # empty, or a killed call was here
        if not out.exists():
            return None
        if format == "parquet":
            return (pq.read_schema(out).metadata or {})[b"patchout.job"].decode()
        if format == "hdf5":
            import h5py

            with h5py.File(out, "r") as file:
                return str(file.attrs["patchout.job"])
    raise InputError(
        f"{out}: is there already and holds no embeddings of patchout: give another name, or remove it"
    )


# -- and back ---------------------------------------------------------------------------------------------------------


def reopen(out: Path, parts: Path, items: Sequence[Item], job: EmbedJob, *, format: Format) -> Stale | None:
    """What there is to tell of a result that still holds; else None, and its rows are in shards again, to go on.

    Of a result whose rows do not fit the items nothing is used.
    """
    shards = range(job.num_shards(len(items)))
    if all((parts / shard_name(shard)).exists() for shard in shards):
        return None  # a killed call was changing it
    rows = _shards_of(_read(out, format, STATES), job.shard_rows)
    stale = find((shard, job.items_of(items, shard), tables) for shard, tables in rows)
    is_whole = not stale.damaged and stale.counts.total() - stale.counts["retried"] == len(items)
    if is_whole and not stale.places:
        remove_parts(parts, len(shards))  # what a killed call left
        return stale
    with only_writer(parts, halves=[HALVES]):
        claim(str(parts), job.about(items))
        if is_whole:
            schema = job.schema(_width(out, format))
            for shard, tables in _shards_of(_read(out, format, schema.names), job.shard_rows):
                with table_writer(str(parts), shard_name(shard), schema) as writer:
                    for table in gathered((conform(table, schema) for table in tables), GROUP_BYTES):
                        writer.write_table(table)
    return None


def _shards_of(tables: Iterable[pa.Table], shard_rows: int) -> Iterator[tuple[int, Iterator[pa.Table]]]:
    """The rows of each shard of `shard_rows` items, to be read before the next one."""
    for shard, group in groupby(by_items(tables, shard_rows), key=itemgetter(0)):
        yield shard, (table for _, table in group)


def _read(out: Path, format: Format, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The rows of a result, in order, in those of the columns that it has."""
    if format == "parquet":
        return read_tables(str(out.parent), [out.name], columns=[*columns])
    return (_read_npy if format == "npy" else _read_hdf5)(out, columns)


def _width(out: Path, format: Format) -> int:
    """Values of an embedding."""
    if format == "parquet":
        return int(pq.read_schema(out).field("embedding").type.list_size)
    if format == "npy":
        return int(np.load(out / ARRAY, mmap_mode="r").shape[1])
    import h5py

    with h5py.File(out, "r") as file:
        return int(file["embedding"].shape[1])


def _read_npy(out: Path, columns: Sequence[str]) -> Iterator[pa.Table]:
    array = np.load(out / ARRAY, mmap_mode="r")
    kinds = (
        dict.fromkeys(columns, pa.float64()) | dict.fromkeys(TEXTS, pa.string()) | {"size_bytes": pa.int64()}
    )
    options = ConvertOptions(column_types=kinds, strings_can_be_null=True, null_values=["", "nan"])
    place = 0
    parsing = ParseOptions(newlines_in_values=True)
    with open_csv(out / TABLE, parse_options=parsing, convert_options=options) as batches:
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
    """The rows as their shards had them: a file has a name, a failed item no embedding."""
    rows = rows.set_column(rows.column_names.index("file"), "file", pc.fill_null(rows["file"], ""))
    if "embedding" not in columns:
        return rows
    failed = rows["duration_s"].combine_chunks().is_null()
    flat, kind = np.ascontiguousarray(values, np.float32).reshape(-1), pa.list_(pa.float32(), values.shape[1])
    return rows.append_column("embedding", pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=failed))


# -- formats ----------------------------------------------------------------------------------------------------------


def _groups(files: list[Path]) -> Iterator[pa.Table]:
    """The rows of the shards, in order, in tables of about GROUP_BYTES."""
    schema = _schema(files)
    tables = read_tables(str(files[0].parent), (path.name for path in files))
    return gathered((conform(table, schema) for table in tables), GROUP_BYTES)


def _schema(files: list[Path]) -> pa.Schema:
    """Of all shards: those of earlier versions have fewer columns."""
    return pa.unify_schemas([pq.read_schema(path) for path in files])


def _shape(files: list[Path]) -> tuple[int, int]:
    """(rows, values) of all shards."""
    rows = sum(pq.read_metadata(path).num_rows for path in files)
    return rows, pq.read_schema(files[0]).field("embedding").type.list_size


def _write_parquet(files: list[Path], out: Path, about: str) -> None:
    schema = _schema(files)
    schema = schema.with_metadata(schema.metadata | {b"patchout.job": about.encode()})
    with table_writer(str(out.parent), out.name, schema) as writer:
        for table in _groups(files):
            writer.write_table(table.cast(schema))


def _write_npy(files: list[Path], out: Path, about: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    others = pa.schema([field for field in _schema(files) if field.name != "embedding"])
    with (
        write_aside(out / ARRAY) as array_path,
        write_aside(out / TABLE) as table_path,
        CSVWriter(str(table_path), others, write_options=WriteOptions(quoting_style="needed")) as rows,
    ):
        array = np.lib.format.open_memmap(array_path, mode="w+", dtype=np.float32, shape=_shape(files))
        place = 0
        for table in _groups(files):
            array[place : place + len(table)] = embeddings(table)
            rows.write_table(table.select(others.names).replace_schema_metadata())
            place += len(table)
        array.flush()
        del array  # some systems rename no mapped file
    with write_aside(out / JOB) as path:
        path.write_text(about)


def _write_hdf5(files: list[Path], out: Path, about: str) -> None:
    import h5py

    num_rows, _ = _shape(files)
    with write_aside(out) as aside, h5py.File(aside, "w") as file:
        file.attrs["patchout.job"] = about
        place = 0
        for table in _groups(files):
            for name in table.column_names:
                cells = embeddings(table) if name == "embedding" else _cells(table[name])
                if name not in file:
                    kind = h5py.string_dtype() if cells.dtype == object else cells.dtype
                    file.create_dataset(name, (num_rows, *cells.shape[1:]), kind)
                file[name][place : place + len(table)] = cells
            place += len(table)


def _cells(column: Any) -> np.ndarray:
    """Numbers with NaN, or strings that are empty, where there is none."""
    if pa.types.is_string(column.type):
        return np.array([cell or "" for cell in column.to_pylist()], object)
    return column.cast(pa.float64()).to_numpy()

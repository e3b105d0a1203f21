"""Finished shards -> one Parquet file, a .npy with a table beside it, or an HDF5 file, in bounded memory."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.csv import CSVWriter, WriteOptions

from patchout.errors import InputError
from patchout.files import write_aside
from patchout.shards import JOB, embeddings, read_tables, shard_name, table_writer

Format = Literal["parquet", "npy", "hdf5"]
GROUP_BYTES = 2**26  # of a row group in a joined file
ARRAY, TABLE = "embeddings.npy", "rows.csv"


def join(parts: Path, shards: int, out: Path, *, format: Format = "parquet", failed: int = 0) -> None:
    """Write the shards of a finished job, of whose items `failed` failed, as one result, and remove them.

    `npy` makes a folder with `embeddings.npy` (row, value), NaN where an item failed, and the other columns in
    `rows.csv`; `hdf5` a file with the same as data sets. Both say in JSON which job they hold.
    """
    files = [parts / shard_name(index) for index in range(shards)]
    about = json.dumps(json.loads((parts / JOB).read_text()) | {"failed": failed})
    write = {"parquet": _write_parquet, "npy": _write_npy, "hdf5": _write_hdf5}[format]
    write(files, out, about)
    for path in (*files, parts / JOB, parts / ".lock"):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # something of the user's lies in it
        parts.rmdir()


def job_of(out: Path, format: Format) -> str | None:
    """What a joined result says of its job; None if there is none. An InputError if it is no such result."""
    with suppress(OSError, pa.ArrowException, KeyError):
        if format == "npy" and out.is_dir():
            names = {path.name for path in out.iterdir()}
            return None if names <= {ARRAY, TABLE} else (out / JOB).read_text()  # empty, or a killed call was here
        if not out.exists():
            return None
        if format == "parquet":
            return (pq.read_schema(out).metadata or {})[b"patchout.job"].decode()
        if format == "hdf5":
            import h5py

            with h5py.File(out, "r") as file:
                return str(file.attrs["patchout.job"])
    raise InputError(f"{out}: is there already and holds no embeddings of patchout: give another name, or remove it")


def _groups(files: list[Path]) -> Iterator[pa.Table]:
    """The rows of the shards, in order, in tables of about GROUP_BYTES."""
    tables: list[pa.Table] = []
    held = 0
    for table in read_tables(str(files[0].parent), (path.name for path in files)):
        tables.append(table)
        held += table.nbytes
        if held >= GROUP_BYTES:
            yield pa.concat_tables(tables)
            tables, held = [], 0
    if tables:
        yield pa.concat_tables(tables)


def _shape(files: list[Path]) -> tuple[int, int]:
    """(rows, values) of all shards."""
    rows = sum(pq.read_metadata(path).num_rows for path in files)
    return rows, pq.read_schema(files[0]).field("embedding").type.list_size


def _write_parquet(files: list[Path], out: Path, about: str) -> None:
    schema = pq.read_schema(files[0])
    schema = schema.with_metadata(schema.metadata | {b"patchout.job": about.encode()})
    with table_writer(str(out.parent), out.name, schema) as writer:
        for table in _groups(files):
            writer.write_table(table.cast(schema))


def _write_npy(files: list[Path], out: Path, about: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    others = pa.schema([field for field in pq.read_schema(files[0]) if field.name != "embedding"])
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
    return column.to_numpy()

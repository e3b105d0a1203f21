"""Finished shards as one result."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchout.data.job_folder import JOB
from patchout.errors import InputError
from patchout.inference.bulk import join as module
from patchout.inference.bulk.folder import shard_name
from patchout.inference.bulk.join import Format, job_of, join

SIZE = 3


def rows(first: int, count: int) -> pa.Table:
    """Embeddings that say their row; row 3 failed."""
    number = np.arange(first, first + count)
    failed = number == 3
    flat = pa.array(np.repeat(number, SIZE).astype(np.float32))
    return pa.table(
        {
            "file": [f"ü, {index}.wav" for index in number],
            "duration_s": pa.array(number / 2, mask=failed),
            "embedding": pa.FixedSizeListArray.from_arrays(
                flat, type=pa.list_(pa.float32(), SIZE), mask=pa.array(failed)
            ),
            "error": pa.array(["broken" if bad else None for bad in failed], pa.string()),
        }
    )


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Three shards of two rows, as a finished job leaves them."""
    folder = tmp_path / "out.parts"
    folder.mkdir()
    for index in range(3):
        table = rows(2 * index, 2).replace_schema_metadata({"patchout.model": "tiny", "patchout.job": "{}"})
        pq.write_table(table, folder / shard_name(index))
    (folder / JOB).write_text(json.dumps({"model": "tiny"}))
    (folder / ".lock").touch()
    return folder


EXPECTED = np.array([[index] * SIZE if index != 3 else [np.nan] * SIZE for index in range(6)], np.float32)


@pytest.mark.parametrize("group_bytes", [1, 2**26])
def test_one_parquet_file_holds_all_rows(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_bytes: int
) -> None:
    monkeypatch.setattr(module, "GROUP_BYTES", group_bytes)
    join(parts, 3, tmp_path / "out.parquet", failed=1)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.replace_schema_metadata() == rows(0, 6)
    assert table.schema.metadata[b"patchout.model"] == b"tiny"
    assert pq.read_metadata(tmp_path / "out.parquet").num_row_groups == (3 if group_bytes == 1 else 1)


def test_npy_holds_the_values_and_a_csv_the_rest(parts: Path, tmp_path: Path) -> None:
    join(parts, 3, tmp_path / "out", format="npy", failed=1)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "embeddings.npy"), EXPECTED)
    with (tmp_path / "out" / "rows.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["file"] for row in table] == [f"ü, {index}.wav" for index in range(6)]
    assert (table[3]["error"], table[3]["duration_s"], float(table[4]["duration_s"])) == ("broken", "", 2.0)


def test_hdf5_holds_all(parts: Path, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="the extra hdf5")
    join(parts, 3, tmp_path / "out.h5", format="hdf5", failed=1)
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["embedding"][:], EXPECTED)
        assert [name.decode() for name in file["file"][:]] == [f"ü, {index}.wav" for index in range(6)]
        assert [error.decode() for error in file["error"][:]] == ["", "", "", "broken", "", ""]
        assert file["duration_s"][4] == 2.0


@pytest.mark.parametrize(("format", "name"), [("parquet", "out.parquet"), ("npy", "out"), ("hdf5", "out.h5")])
def test_a_result_says_its_job_and_the_parts_are_gone(
    parts: Path, tmp_path: Path, format: Format, name: str
) -> None:
    assert job_of(tmp_path / name, format) is None
    join(parts, 3, tmp_path / name, format=format, failed=1)
    assert json.loads(job_of(tmp_path / name, format) or "") == {"model": "tiny", "failed": 1}
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("format", "name"), [("parquet", "out.parquet"), ("npy", "out"), ("hdf5", "out.h5")])
def test_what_is_no_result_is_refused(tmp_path: Path, format: Format, name: str) -> None:
    (tmp_path / name).write_text("a diary")
    with pytest.raises(InputError, match="is there already and holds no result"):
        job_of(tmp_path / name, format)


def test_a_parquet_file_of_others_is_refused(tmp_path: Path) -> None:
    pq.write_table(rows(0, 1), tmp_path / "mine.parquet")
    with pytest.raises(InputError, match=r"mine\.parquet: is there already"):
        job_of(tmp_path / "mine.parquet", "parquet")


def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds no result"):
        job_of(tmp_path, "npy")


def test_arrays_of_a_killed_call_are_written_again(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "embeddings.npy").touch()
    assert job_of(tmp_path / "out", "npy") is None
    join(parts, 3, tmp_path / "out", format="npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "embeddings.npy"), EXPECTED)


def test_what_a_user_put_beside_the_parts_stays(parts: Path, tmp_path: Path) -> None:
    (parts / "notes.txt").touch()
    join(parts, 3, tmp_path / "out.parquet")
    assert [path.name for path in parts.iterdir()] == ["notes.txt"]

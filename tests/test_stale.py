"""The same job again: what had failed, what has changed, what an earlier version wrote,
and kills in the middle.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import noise, write_wav

from patchout.checkpoint.own import save
from patchout.data.items import Item
from patchout.inference.bulk import folder
from patchout.inference.bulk import run as bulk
from patchout.inference.bulk.embed import EmbedJob
from patchout.inference.bulk.folder import numbered, shard_name
from patchout.inference.bulk.join import Format, job_of, join, reopen
from patchout.inference.bulk.run import Summary, run
from patchout.inference.embedding import EmbedConfig
from patchout.models.passt import Passt

STATES = ("size_bytes", "modified_s", "sample_rate")  # columns that earlier versions did not write


@pytest.fixture
def job(tiny: Passt, tmp_path: Path) -> EmbedJob:
    """Two items a shard, few timestamps."""
    save(tiny, tmp_path / "tiny.safetensors")
    return EmbedJob(model=str(tmp_path / "tiny.safetensors"), config=EmbedConfig(hop_ms=100.0), shard_rows=2)


def write(path: Path, seed: int, *, modified_s: float = 0.0) -> str:
    """A tenth of a second of noise."""
    write_wav(path, noise(0.1, seed))
    if modified_s:
        os.utime(path, (modified_s, modified_s))
    return str(path)


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Six items in three shards: 1 is empty, 4 is not there, 2 and 3 are segments of one file."""
    files = [write(tmp_path / "in" / f"{index}.wav", index, modified_s=1e9 + index) for index in (0, 2, 5)]
    (tmp_path / "in" / "1.wav").touch()
    segments = [Item(files[1], 0.0, 0.05), Item(files[1], 0.0)]
    lost = [Item(str(tmp_path / "in" / name)) for name in ("1.wav", "4.wav")]
    return [Item(files[0]), lost[0], *segments, lost[1], Item(files[2])]


def do(items: Sequence[Item], job: EmbedJob, out: Path, **options: Any) -> Summary:
    return run(items, job, str(out), device="cpu", **options)


def shards_of(out: Path) -> list[Path]:
    return sorted(out.glob("part-*.parquet"))


def rows_of(out: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in shards_of(out)])


def times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in shards_of(out)}


def changed(before: dict[str, int], after: dict[str, int]) -> list[int]:
    return [int(name[5:11]) for name in before if before[name] != after[name]]


def assert_same(one: pa.Table, other: pa.Table) -> None:
    """Values within rounding: batches of other sizes compute them."""
    assert one.drop_columns("embedding").equals(other.drop_columns("embedding"))
    first, second = (np.array(table["embedding"].drop_null().to_pylist()) for table in (one, other))
    np.testing.assert_allclose(first, second, atol=1e-5)


# -- again ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scene", "timestamp"])
def test_what_can_be_read_now_and_what_has_changed_is_embedded_anew(
    job: EmbedJob, items: list[Item], tmp_path: Path, kind: Any
) -> None:
    job = EmbedJob(model=job.model, kind=kind, config=job.config, shard_rows=2)
    do(items, job, tmp_path / "out")
    before = times(tmp_path / "out")
    write(Path(items[1].file), 11)
    write(Path(items[5].file), 15)
    steps: list[int] = []
    summary = do(items, job, tmp_path / "out", on_progress=lambda count, _: steps.append(count))
    assert (summary.num_failed, steps[0], sum(steps)) == (1, 4, 6)
    assert summary.notes[:2] == (
        "files that have changed since they were read, now read anew: 1",
        "files that had failed and can be read now: 1",
    )
    assert changed(before, times(tmp_path / "out")) == [0, 2]
    do(items, job, tmp_path / "whole")
    assert_same(rows_of(tmp_path / "out"), rows_of(tmp_path / "whole"))


def test_what_fails_as_before_is_left_alone_and_another_reason_is_not(
    job: EmbedJob, items: list[Item], tmp_path: Path
) -> None:
    do(items, job, tmp_path / "out")
    before = times(tmp_path / "out")
    assert do(items, job, tmp_path / "out").num_failed == 2
    assert changed(before, times(tmp_path / "out")) == []
    Path(items[4].file).touch()
    assert any("4.wav: is an empty file" in reason for reason in do(items, job, tmp_path / "out").failed)
    assert changed(before, times(tmp_path / "out")) == [2]


@pytest.mark.parametrize("state", ["size", "time"])
def test_another_size_or_another_time_is_a_change(job: EmbedJob, tmp_path: Path, state: str) -> None:
    path = tmp_path / "a.wav"
    item = Item(write(path, 0, modified_s=1e9))
    do([item], job, tmp_path / "out")
    write_wav(path, noise(0.1 if state == "time" else 0.2, 1))
    os.utime(path, (1e9, 1e9) if state == "size" else (9e8, 9e8))  # an older file may have been moved here
    assert do([item], job, tmp_path / "out").audio_s > 0


def test_embeddings_of_files_that_are_gone_are_kept(job: EmbedJob, items: list[Item], tmp_path: Path) -> None:
    do(items, job, tmp_path / "out")
    Path(items[0].file).unlink()
    summary = do(items, job, tmp_path / "out")
    assert "files that are not there any more, whose rows are kept: 1" in summary.notes
    assert summary.num_failed == 2


def as_before(path: Path) -> None:
    """A shard as an earlier version wrote it."""
    table = pq.read_table(path)
    pq.write_table(table.drop_columns([*STATES]), path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scene", "timestamp"])
def test_a_folder_of_an_earlier_version_goes_on(
    job: EmbedJob, items: list[Item], tmp_path: Path, kind: Any
) -> None:
    job = EmbedJob(model=job.model, kind=kind, config=job.config, shard_rows=2)
    do(items, job, tmp_path / "out")
    for path in shards_of(tmp_path / "out"):
        as_before(path)
    before = times(tmp_path / "out")
    write(Path(items[1].file), 11)
    summary = do(items, job, tmp_path / "out")
    assert summary.num_failed == 1
    assert any("read by an earlier version" in note and note.endswith(": 4") for note in summary.notes)
    assert changed(before, times(tmp_path / "out")) == [0]
    do(items, job, tmp_path / "whole")
    names = [*STATES]
    old, whole = ([pq.read_table(path) for path in shards_of(tmp_path / name)] for name in ("out", "whole"))
    assert_same(old[0].drop_columns(names), whole[0].drop_columns(names))
    assert old[0]["size_bytes"].null_count < len(old[0]) == len(old[0]["size_bytes"])


def no_shard(path: Path) -> None:
    path.write_bytes(b"PAR1, and then nothing of use")


def no_footer(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-8 - int.from_bytes(content[-8:-4], "little")] = 0xFF  # its first byte: pyarrow says OSError
    path.write_bytes(content)


def no_files(path: Path) -> None:
    pq.write_table(pq.read_table(path).drop_columns(["file", "duration_s"]), path)


@pytest.mark.parametrize("damage", [no_shard, no_footer, no_files])
def test_a_shard_that_cannot_be_read_is_made_anew(
    job: EmbedJob, items: list[Item], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    do(items, job, tmp_path / "out")
    whole = rows_of(tmp_path / "out")
    damage(tmp_path / "out" / shard_name(1))
    do(items, job, tmp_path / "out")
    assert_same(rows_of(tmp_path / "out"), whole)


def test_a_shard_that_the_disk_does_not_give_is_no_damage(
    job: EmbedJob, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    do(items, job, tmp_path / "out")
    before = times(tmp_path / "out")

    def fail(*_: Any, **__: Any) -> Iterator[pa.Table]:
        raise OSError(5, "Input/output error")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(folder, "read_tables", fail)
        with pytest.raises(OSError, match="Input/output"):
            do(items, job, tmp_path / "out")
    assert times(tmp_path / "out") == before


def test_what_a_killed_process_left_is_removed(job: EmbedJob, items: list[Item], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    halves = [tmp_path / "out" / name for name in (".job.123.json", ".part-000000.123.parquet")]
    for half in halves:
        half.touch()
    do(items, job, tmp_path / "out")
    assert not any(half.exists() for half in halves)


def test_a_retry_at_a_url(job: EmbedJob, items: list[Item], tmp_path: Path) -> None:
    import fsspec

    out = f"memory://{tmp_path.name}/again"
    run(items, job, out, device="cpu")
    write(Path(items[1].file), 11)
    assert run(items, job, out, device="cpu").num_failed == 1
    names = fsspec.filesystem("memory").ls(f"/{tmp_path.name}/again", detail=False)
    assert sorted(Path(name).name for name in names) == ["job.json", *map(shard_name, range(3))]


# -- stopped in the middle -----------------------------------------------------------------------------------


def stop(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("place", ["merge", "rename"])
def test_a_retry_that_is_stopped_leaves_the_old_rows(
    job: EmbedJob, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    do(items, job, tmp_path / "out")
    whole, before = rows_of(tmp_path / "out"), times(tmp_path / "out")
    write(Path(items[1].file), 11)
    with monkeypatch.context() as patch:
        patch.setattr(*((bulk, "merge") if place == "merge" else (folder, "gathered")), stop)
        with pytest.raises(KeyboardInterrupt):
            do(items, job, tmp_path / "out")
    assert times(tmp_path / "out") == before
    assert rows_of(tmp_path / "out") == whole
    assert do(items, job, tmp_path / "out").num_failed == 1
    assert not [
        path for path in (tmp_path / "out").iterdir() if path.name.startswith(".") and path.name != ".lock"
    ]


# -- joined results ------------------------------------------------------------------------------------------

RESULTS: list[tuple[Format, str]] = [("parquet", "x.parquet"), ("npy", "x"), ("hdf5", "x.h5")]


def finish(items: list[Item], job: EmbedJob, out: Path, format: Format) -> None:
    """As the command does it."""
    parts = Path(f"{out}.parts")
    summary = do(items, job, parts)
    join(parts, job.num_shards(len(items)), out, format=format, failed=summary.num_failed)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scene", "timestamp"])
@pytest.mark.parametrize(("format", "name"), RESULTS)
def test_a_result_is_changed_where_files_have(
    job: EmbedJob, items: list[Item], tmp_path: Path, kind: Any, format: Format, name: str
) -> None:
    if format == "hdf5":
        pytest.importorskip("h5py", reason="the extra hdf5")
    job = EmbedJob(model=job.model, kind=kind, config=job.config, shard_rows=2)
    out, parts = tmp_path / name, tmp_path / f"{name}.parts"
    finish(items, job, out, format)
    assert reopen(out, parts, items, job, format=format)
    assert not parts.exists()
    do(items, job, tmp_path / "before")
    write(Path(items[1].file), 11)
    assert reopen(out, parts, items, job, format=format) is None
    assert_same(rows_of(parts), rows_of(tmp_path / "before"))
    parts_before = times(parts)
    assert reopen(out, parts, items, job, format=format) is None  # killed here, it goes on
    finish_again = do(items, job, parts)
    assert (finish_again.num_failed, changed(parts_before, times(parts))) == (1, [0])
    join(parts, 3, out, format=format, failed=1)
    assert '"failed": 1' in (job_of(out, format) or "")
    assert reopen(out, parts, items, job, format=format)


def test_parts_that_a_kill_cut_short_are_made_from_the_result_again(
    job: EmbedJob, items: list[Item], tmp_path: Path
) -> None:
    out, parts = tmp_path / "x.parquet", tmp_path / "x.parquet.parts"
    finish(items, job, out, "parquet")
    write(Path(items[1].file), 11)
    reopen(out, parts, items, job, format="parquet")
    (parts / shard_name(1)).unlink()
    assert reopen(out, parts, items, job, format="parquet") is None
    assert len(shards_of(parts)) == 3


def test_what_a_kill_left_beside_a_result_that_holds_is_removed(
    job: EmbedJob, items: list[Item], tmp_path: Path
) -> None:
    out, parts = tmp_path / "x.parquet", tmp_path / "x.parquet.parts"
    finish(items, job, out, "parquet")
    parts.mkdir()
    (parts / shard_name(2)).touch()
    assert reopen(out, parts, items, job, format="parquet")
    assert not parts.exists()


# -- rows and items ------------------------------------------------------------------------------------------


def test_rows_belong_to_items_also_where_one_stands_twice_or_breaks_on_the_way() -> None:
    """a, a, a that breaks after a row, b that failed twice; tables may end anywhere."""
    table = pa.table(
        {
            "file": [*"aaaaaabb"],
            "start_s": [0.0] * 8,
            "time_ms": [0.0, 50.0, 0.0, 50.0, 0.0, None, None, None],
            "size_bytes": [9] * 6 + [None] * 2,
        }
    )
    for size in (1, 3, 8):
        pieces: Iterator[pa.Table] = (table.slice(first, size) for first in range(0, 8, size))
        numbers = np.concatenate([numbers for numbers, _ in numbered(pieces)])
        assert numbers.tolist() == [0, 0, 1, 1, 2, 2, 3, 4]

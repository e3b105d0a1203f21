"""The bulk job: equal to single calls, resumable, bounded, every item answered."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from conftest import RATE, noise, tiny_config, tone, write_wav

from patchout import embed
from patchout.checkpoint.own import save
from patchout.data.items import Item
from patchout.errors import InputError
from patchout.inference.bulk import ahead
from patchout.inference.bulk import run as bulk
from patchout.inference.bulk.ahead import Opener, Sound, decode, decode_ahead, open_stream
from patchout.inference.bulk.embed import EmbedJob, EmbedRows
from patchout.inference.bulk.run import Summary, Todo, open_threads, run, write_shards
from patchout.inference.embedding import EmbedConfig, Embedder
from patchout.models.passt import Passt

CONFIG = EmbedConfig(scene_window_ms=1000.0, scene_hop_ms=500.0)
OPENER = partial(open_stream, rate=RATE, channel="mean")


@pytest.fixture
def model_file(tiny: Passt, tmp_path: Path) -> str:
    save(tiny, tmp_path / "tiny.safetensors")
    return str(tmp_path / "tiny.safetensors")


@pytest.fixture
def sounds(tmp_path: Path) -> list[Item]:
    """Lengths alternate, and one is longer than the model takes."""
    seconds = [0.5, 0.7, 0.5, 1.8, 0.7, 0.5]
    return [
        Item(str(write_wav(tmp_path / "in" / f"{index}.wav", noise(length, index))))
        for index, length in enumerate(seconds)
    ]


MakeJob = Callable[..., EmbedJob]


@pytest.fixture
def make_job(model_file: str) -> MakeJob:
    def make(**changes: Any) -> EmbedJob:
        values: dict[str, Any] = {"model": model_file, "config": CONFIG, "shard_rows": 2} | changes
        return EmbedJob(**values)

    return make


def rows_of(out: Path) -> pa.Table:
    """All shards, in order."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("part-*.parquet"))])


def values_of(table: pa.Table) -> np.ndarray:
    return np.array(table["embedding"].to_pylist(), np.float32)


def do(items: Sequence[Item], job: EmbedJob, out: Path, **options: Any) -> Summary:
    return run(items, job, str(out), device="cpu", **options)


# -- values --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_scenes_equal_those_of_single_calls(
    tiny: Passt, sounds: list[Item], make_job: MakeJob, tmp_path: Path
) -> None:
    do(sounds, make_job(), tmp_path / "out")
    table = rows_of(tmp_path / "out")
    single = [embed(tiny, item.file, config=CONFIG).scene for item in sounds]
    assert table["file"].to_pylist() == [item.file for item in sounds]
    np.testing.assert_allclose(values_of(table), single, atol=1e-5)
    np.testing.assert_allclose(table["duration_s"].to_numpy(), [0.5, 0.7, 0.5, 1.8, 0.7, 0.5], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("held_s", [60.0, 0.6], ids=["held", "streamed"])
def test_timestamps_equal_those_of_single_calls(
    tiny: Passt,
    sounds: list[Item],
    make_job: MakeJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    held_s: float,
) -> None:
    monkeypatch.setattr(ahead, "HELD_S", held_s)
    do(sounds, make_job(kind="timestamp"), tmp_path / "out")
    table = rows_of(tmp_path / "out")
    single = [embed(tiny, item.file, config=CONFIG) for item in sounds]
    np.testing.assert_allclose(
        values_of(table), np.concatenate([one.timestamps for one in single]), atol=1e-5
    )
    assert table["time_ms"].to_pylist() == np.concatenate([one.times_ms for one in single]).tolist()
    files = [item.file for item, one in zip(sounds, single, strict=True) for _ in one.times_ms]
    assert table["file"].to_pylist() == files


@pytest.mark.slow
def test_long_scenes_are_streamed_to_the_same_values(
    tiny: Passt, sounds: list[Item], make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "HELD_S", 0.6)
    do(sounds, make_job(), tmp_path / "out")
    single = [embed(tiny, item.file, config=CONFIG).scene for item in sounds]
    np.testing.assert_allclose(values_of(rows_of(tmp_path / "out")), single, atol=1e-5)


def test_small_chunks_change_nothing(
    sounds: list[Item], make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(kind="timestamp", shard_rows=100)
    do(sounds, job, tmp_path / "one")
    monkeypatch.setattr(bulk, "CHUNK_BYTES", 1)
    do(sounds, job, tmp_path / "many")
    one, many = rows_of(tmp_path / "one"), rows_of(tmp_path / "many")
    assert one.drop_columns(["embedding"]) == many.drop_columns(["embedding"])
    np.testing.assert_allclose(values_of(one), values_of(many), atol=1e-5)
    assert pq.read_metadata(tmp_path / "many" / "part-000000.parquet").num_row_groups == len(sounds)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
def test_chunks_side_by_side_stay_in_order(
    tiny: Passt,
    sounds: list[Item],
    make_job: MakeJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
) -> None:
    """One chunk a sound, a long one among them; the process has its threads back afterwards."""
    before = torch.get_num_threads()
    monkeypatch.setattr(ahead, "HELD_S", 0.6)
    monkeypatch.setattr(bulk, "CHUNK_BYTES", threads)
    torch.set_num_threads(threads)
    try:
        do(sounds, make_job(shard_rows=100), tmp_path / "out")
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    table = rows_of(tmp_path / "out")
    assert table["file"].to_pylist() == [item.file for item in sounds]
    single = [embed(tiny, item.file, config=CONFIG).scene for item in sounds]
    np.testing.assert_allclose(values_of(table), single, atol=1e-5)


def test_a_segment_is_embedded_alone(tiny: Passt, make_job: MakeJob, tmp_path: Path) -> None:
    wave = noise(2.0)
    soundfile.write(tmp_path / "long.wav", wave, RATE, subtype="FLOAT")
    do([Item(str(tmp_path / "long.wav"), 0.5, 1.25)], make_job(), tmp_path / "out")
    table = rows_of(tmp_path / "out")
    whole = embed(tiny, (wave[RATE // 2 : RATE * 5 // 4], RATE), config=CONFIG)
    np.testing.assert_allclose(values_of(table)[0], whole.scene, atol=1e-5)
    assert (table["start_s"].to_pylist(), table["duration_s"].to_pylist()) == ([0.5], [0.75])


def test_duplicates_are_rows_as_given(sounds: list[Item], make_job: MakeJob, tmp_path: Path) -> None:
    do([sounds[0], sounds[1], sounds[0]], make_job(), tmp_path / "out")
    first, other, again = values_of(rows_of(tmp_path / "out"))
    np.testing.assert_allclose(first, again, atol=1e-5)
    assert not np.allclose(first, other, atol=1e-5)


@pytest.mark.parametrize("kind", ["scene", "timestamp"])
@pytest.mark.parametrize("wave", [np.zeros(RATE), np.full(1, 0.5)], ids=["silence", "one sample"])
def test_silence_and_one_sample_have_embeddings(
    make_job: MakeJob, tmp_path: Path, wave: np.ndarray, kind: str
) -> None:
    item = Item(str(write_wav(tmp_path / "a.wav", wave)))
    summary = do([item], make_job(kind=kind), tmp_path / "out")
    assert summary.num_failed == 0
    reason = "is silent (every sample is zero), so its embedding says nothing"
    assert summary.warnings == (() if wave.any() else (f"{item.file}: {reason}",))
    assert np.isfinite(values_of(rows_of(tmp_path / "out"))).all()


# -- columns -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scene", "timestamp"])
def test_columns_and_metadata(sounds: list[Item], make_job: MakeJob, tmp_path: Path, kind: str) -> None:
    job = make_job(kind=kind)
    do(sounds[:1], job, tmp_path / "out")
    schema = pq.read_schema(tmp_path / "out" / "part-000000.parquet")
    names = ["file", "start_s", "duration_s", "time_ms", "embedding", "error"]
    names += ["size_bytes", "modified_s", "sample_rate"]
    assert schema.names == [name for name in names if name != "time_ms" or kind == "timestamp"]
    assert schema.field("embedding").type == pa.list_(pa.float32(), 35)  # 3 logits, width 32
    assert schema.metadata[b"patchout.model"].decode() == job.model
    assert schema.metadata[b"patchout.config_hash"].decode() == job.hash
    assert schema.metadata[b"patchout.version"]


@pytest.mark.parametrize("change", [{"kind": "timestamp"}, {"precision": "bf16"}, {"config": EmbedConfig()}])
def test_the_hash_changes_with_what_changes_values(make_job: MakeJob, change: dict[str, Any]) -> None:
    assert make_job().hash == make_job(shard_rows=7).hash
    assert make_job().hash != make_job(**change).hash


def test_the_hash_follows_the_model_file_not_its_name(
    make_job: MakeJob, model_file: str, tmp_path: Path
) -> None:
    copy, other = tmp_path / "copy.safetensors", tmp_path / "other.safetensors"
    copy.write_bytes(Path(model_file).read_bytes())
    save(Passt(tiny_config(depth=1)), other)
    assert make_job(model=str(copy)).hash == make_job().hash != make_job(model=str(other)).hash


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"precision": "auto"}, "fp32, bf16 or int8"),
        ({"shard_rows": -1}, "at least 1, or 0 for a choice"),
    ],
)
def test_a_job_refuses_nonsense(make_job: MakeJob, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_job(**change)


# -- what fails ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scene", "timestamp"])
def test_a_broken_file_in_the_middle_is_an_error_row(
    sounds: list[Item], make_job: MakeJob, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF, and then nothing of use")
    bad = [
        Item(str(tmp_path / "broken.wav")),
        Item(str(tmp_path / "gone.wav")),
        Item(""),
        Item(sounds[0].file, 9.0),
    ]
    bad += [Item(sounds[0].file, float("nan")), Item(str(tmp_path))]
    summary = do([sounds[0], *bad, sounds[1]], make_job(kind=kind), tmp_path / "out")
    table = rows_of(tmp_path / "out")
    failed = table.filter(pa.compute.is_valid(table["error"]))
    assert failed["file"].to_pylist() == [item.file for item in bad]
    assert failed["embedding"].null_count == failed["duration_s"].null_count == len(bad)
    assert table["embedding"].null_count == len(bad)
    assert all(item.file in error for item, error in zip(bad, failed["error"].to_pylist(), strict=True))
    assert summary.num_failed == len(bad)
    assert list(summary.failed) == failed["error"].to_pylist()


def test_a_truncated_file_is_embedded_and_says_so(make_job: MakeJob, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.flac", noise(2.0), RATE)
    data = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(data[: len(data) // 2])
    summary = do([Item(str(tmp_path / "cut.flac"))], make_job(), tmp_path / "out")
    assert (summary.num_failed, len(summary.warnings)) == (0, 1)
    assert rows_of(tmp_path / "out")["embedding"].null_count == 0


def test_a_long_file_that_breaks_while_it_is_read_again_ends_with_its_reason(
    tiny: Passt, make_job: MakeJob, tmp_path: Path
) -> None:
    lost = Sound(Item("gone.wav"), duration_s=99.0)
    rows = EmbedRows(Embedder(tiny, CONFIG), make_job())
    todo = Todo((), rows.job, str(tmp_path / "out"), [], "cpu")
    with open_threads(tiny) as threads:
        assert len(list(write_shards(rows, [(0, [lost])], todo, threads))) == 1
    table = rows_of(tmp_path / "out")
    assert table["embedding"].null_count == 1
    assert "gone.wav" in table["error"][0].as_py()


def test_no_items_are_refused(make_job: MakeJob, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no items"):
        do([], make_job(), tmp_path / "out")


# -- the folder ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "timestamp"}, "kind 'scene' there, 'timestamp' here"),
        ({"config": EmbedConfig()}, "scene_window_ms 1000.0 there"),
        ({"shard_rows": 3}, "shard_rows 2 there, 3 here"),
    ],
)
def test_the_folder_of_another_job_is_refused_by_name(
    sounds: list[Item], make_job: MakeJob, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    do(sounds, make_job(), tmp_path / "out")
    with pytest.raises(InputError, match=reason):
        do(sounds, make_job(**change), tmp_path / "out")


def test_other_items_are_another_job(sounds: list[Item], make_job: MakeJob, tmp_path: Path) -> None:
    do(sounds, make_job(), tmp_path / "out")
    with pytest.raises(InputError, match=r"another job \(other items\)"):
        do(sounds[::-1], make_job(), tmp_path / "out")
    with pytest.raises(
        InputError, match=rf"\(items {len(sounds)} there, {len(sounds) - 1} here; other items\)"
    ):
        do(sounds[1:], make_job(), tmp_path / "out")


def test_a_foreign_folder_is_refused_by_name(sounds: list[Item], make_job: MakeJob, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"in: holds '0\.wav' but no job\.json"):
        do(sounds, make_job(), tmp_path / "in")
    assert not (tmp_path / "in" / "job.json").exists()


def test_a_file_in_place_of_the_folder_is_refused(sounds: list[Item], make_job: MakeJob) -> None:
    with pytest.raises(InputError, match="is a file"):
        do(sounds, make_job(), Path(sounds[0].file))


@pytest.mark.parametrize("text", ["{", "[]", "3", "null"])
def test_a_damaged_job_file_is_refused(
    sounds: list[Item], make_job: MakeJob, tmp_path: Path, text: str
) -> None:
    do(sounds, make_job(), tmp_path / "out")
    (tmp_path / "out" / "job.json").write_text(text)
    with pytest.raises(InputError, match="is damaged"):
        do(sounds, make_job(), tmp_path / "out")


def test_a_folder_that_is_being_written_is_refused(
    sounds: list[Item], make_job: MakeJob, tmp_path: Path
) -> None:
    def again(*_: float) -> None:
        with pytest.raises(InputError, match="another process"):
            do(sounds, make_job(), tmp_path / "out")

    do(sounds, make_job(), tmp_path / "out", on_progress=again)


def test_shards_go_to_any_url(sounds: list[Item], make_job: MakeJob, tmp_path: Path) -> None:
    import fsspec

    job = make_job()
    for _ in range(2):  # the second finds all done
        summary = run(sounds, job, f"memory://{tmp_path.name}/out", device="cpu")
    do(sounds, job, tmp_path / "out")
    files = fsspec.filesystem("memory")
    names = sorted(name.rpartition("/")[2] for name in files.ls(f"/{tmp_path.name}/out", detail=False))
    assert names == ["job.json", *(f"part-00000{index}.parquet" for index in range(3))]
    with files.open(f"/{tmp_path.name}/out/part-000001.parquet") as file:
        assert pq.read_table(file) == pq.read_table(tmp_path / "out" / "part-000001.parquet")
    assert (summary.rows, summary.audio_s) == (6, 0.0)


def test_an_unknown_kind_of_url_is_refused(sounds: list[Item], make_job: MakeJob) -> None:
    with pytest.raises(ValueError, match="nowhere://x: cannot be written to"):
        run(sounds, make_job(), "nowhere://x", device="cpu")


# -- going on ------------------------------------------------------------------------------------------------


def test_finished_shards_are_kept(sounds: list[Item], make_job: MakeJob, tmp_path: Path) -> None:
    out = tmp_path / "out"
    do(sounds, make_job(), out)
    before = rows_of(out)
    (out / "part-000001.parquet").unlink()
    kept = (out / "part-000000.parquet").stat().st_mtime_ns
    steps: list[tuple[int, float]] = []
    summary = do(sounds, make_job(), out, on_progress=lambda *step: steps.append(step))
    assert rows_of(out) == before
    assert (out / "part-000000.parquet").stat().st_mtime_ns == kept
    assert steps[0] == (4, 0.0)
    assert sum(items for items, _ in steps) == 6
    assert summary.audio_s == pytest.approx(0.5 + 1.8, abs=1e-3)


def test_failures_of_an_earlier_call_are_counted(make_job: MakeJob, tmp_path: Path) -> None:
    for _ in range(2):
        summary = do([Item(str(tmp_path / "gone.wav"))], make_job(), tmp_path / "out")
        assert summary.num_failed == len(summary.failed) == 1


def test_a_call_that_is_stopped_leaves_no_half_shard(
    sounds: list[Item], make_job: MakeJob, tmp_path: Path
) -> None:
    def stop(items: int, _: float) -> None:
        if items:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        do(sounds, make_job(), tmp_path / "out", on_progress=stop)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"job.json", ".lock"}


KILLED = """
import json, sys, time
from patchout.inference.bulk.run import run
from patchout.inference.embedding import EmbedConfig
from patchout.data.items import read_items
from patchout.inference.bulk.embed import EmbedJob, EmbedRows
folder, model, out = sys.argv[1:]
job = EmbedJob(model=model, config=EmbedConfig(scene_window_ms=1000.0, scene_hop_ms=500.0), shard_rows=2)
run(read_items([folder]), job, out, device="cpu", on_progress=lambda *_: time.sleep(0.05))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_a_job_killed_at_70_percent_goes_on_at_70_percent(make_job: MakeJob, tmp_path: Path) -> None:
    items = [
        Item(str(write_wav(tmp_path / "in" / f"{n:02}.wav", noise(0.5 + n % 3 / 10, n)))) for n in range(40)
    ]
    job, out = make_job(), tmp_path / "out"
    killed = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "in"), job.model, str(out)])
    limit = time.monotonic() + 300
    while (
        len(finished := list(out.glob("part-*.parquet"))) < 14
        and killed.poll() is None
        and time.monotonic() < limit
    ):
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    (out / ".part-000019.99.parquet").write_bytes(b"half a shard of a killed call")
    kept = {path: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}
    assert 14 <= len(finished) <= len(kept) < 20
    steps: list[int] = []
    do(items, job, out, on_progress=lambda count, _: steps.append(count))
    assert steps[0] == 2 * len(kept)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    do(items, job, tmp_path / "never killed")
    resumed, whole = rows_of(out), rows_of(tmp_path / "never killed")
    assert resumed.drop_columns(["embedding"]) == whole.drop_columns(["embedding"])
    np.testing.assert_allclose(values_of(resumed), values_of(whole), atol=1e-5)
    assert not list(out.glob(".part*"))


@pytest.mark.slow
def test_the_process_ends_well_after_reading_shards(
    sounds: list[Item], make_job: MakeJob, tmp_path: Path
) -> None:
    """Threads of pyarrow that hold a Python file while the interpreter ends would abort it."""
    do([item for item in sounds if item.file.endswith("0.wav")], make_job(), tmp_path / "out")
    for path in sounds[1:]:
        Path(path.file).unlink()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "in"), make_job().model, str(tmp_path / "out")]
    assert subprocess.run(command, check=False).returncode == 0


# -- bounds --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_decoding_keeps_order_and_runs_only_so_far_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [write_wav(tmp_path / f"{index}.wav", tone(0.1 + index % 2 / 10)) for index in range(40)]
    started: list[str] = []
    real = ahead.decode

    def noting(item: Item, opener: Opener, is_over: threading.Event | None) -> Sound:
        started.append(item.file)
        return real(item, opener, is_over)

    monkeypatch.setattr(ahead, "decode", noting)
    with ThreadPoolExecutor(4) as pool:
        sounds = decode_ahead([Item(str(file)) for file in files], OPENER, pool, 8)
        taken = [next(sounds).item.file for _ in range(3)]
        time.sleep(0.3)  # time enough to decode all
        assert len(started) <= 3 + 8
        taken += [sound.item.file for sound in sounds]
    assert taken == [str(file) for file in files]


def test_a_reader_that_leaves_stops_the_decoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Item] = []

    def slow(item: Item, opener: Opener, is_over: threading.Event | None) -> Sound:
        started.append(item)
        time.sleep(0.05)
        return Sound(item)

    monkeypatch.setattr(ahead, "decode", slow)
    with ThreadPoolExecutor(1) as pool:
        sounds = decode_ahead([Item("a.wav")] * 100, OPENER, pool, 50)
        next(sounds)
        sounds.close()
    assert len(started) < 5


def test_a_decoding_ends_when_all_is_over(tmp_path: Path) -> None:
    over = threading.Event()
    item = Item(str(write_wav(tmp_path / "a.wav", tone(0.1))))
    assert decode(item, OPENER, over).wave is not None
    over.set()
    sound = decode(item, OPENER, over)
    assert (sound.wave, sound.error) == (None, f"{item.file}: was not read to its end")


@pytest.mark.parametrize(("items", "shard_rows"), [(1, 8), (100, 8), (200, 12), (10_000, 256)])
def test_a_killed_job_loses_a_sixteenth_or_eight_items(
    make_job: MakeJob, items: int, shard_rows: int
) -> None:
    assert make_job(shard_rows=0).sized(items).shard_rows == shard_rows
    assert make_job(shard_rows=7).sized(items).shard_rows == 7


def test_long_sounds_are_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "HELD_S", 1.0)
    path = str(write_wav(tmp_path / "long.wav", tone(3.0)))
    sound = decode(Item(path), OPENER)
    assert (sound.wave, sound.is_long, sound.duration_s) == (None, True, 3.0)
    assert decode(Item(path, 0.0, 1.0), OPENER).num_bytes == 4 * RATE


def test_job_file_says_what_was_computed(sounds: list[Item], make_job: MakeJob, tmp_path: Path) -> None:
    do(sounds, make_job(), tmp_path / "out")
    about = json.loads((tmp_path / "out" / "job.json").read_text())
    assert (about["items"], about["kind"], about["levels"]) == (6, "scene", ["high", "mid"])


@pytest.mark.skipif(sys.platform == "win32", reason="names are bytes elsewhere")
def test_names_that_are_no_utf8_are_written_escaped(make_job: MakeJob, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.wav")
    write_wav(tmp_path / "a.wav", tone(0.5)).rename(path)
    assert do([Item(str(path))], make_job(), tmp_path / "out").num_failed == 0
    assert rows_of(tmp_path / "out")["file"][0].as_py().endswith("\\udcff.wav")

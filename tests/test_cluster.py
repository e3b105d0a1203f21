"""The bulk job on Ray: on a real local cluster, the rows of the local engine, whatever dies on the way."""

import gc
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import noise, tone, write_wav

from patchout.checkpoint.own import save
from patchout.data.items import Item
from patchout.errors import InputError
from patchout.inference.bulk import cluster as bulk_cluster
from patchout.inference.bulk import run as bulk
from patchout.inference.bulk.ahead import open_stream
from patchout.inference.bulk.cluster import (
    Actors,
    Model,
    check_address,
    decode_shard,
    plan_actors,
    ray_engine,
)
from patchout.inference.bulk.embed import EmbedJob
from patchout.inference.bulk.run import Summary, Todo
from patchout.inference.embedding import EmbedConfig
from patchout.models.passt import Passt

needs_ray = pytest.mark.skipif(
    find_spec("ray") is None,
    reason="needs Ray, which has no wheel for this machine: pip install 'patchout[ray]'",
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning"),  # ray.data warns of its own defaults
    pytest.mark.filterwarnings(
        "ignore:subprocess .* is still running:ResourceWarning"
    ),  # Ray ends them by itself
]

LENGTHS_S = (1.0, 2.5, 0.05, 1.0, 3.0)


@dataclass
class Work:
    """Something to embed, and where the results go."""

    items: list[Item]
    job: EmbedJob
    out: Path

    def on_ray(self, *, out: str = "", device: str = "cpu", **more: Any) -> Summary:
        return bulk.run(
            self.items, self.job, out or str(self.out), device=device, engine=ray_engine(), **more
        )


@pytest.fixture
def work(tiny: Passt, tmp_path: Path) -> Work:
    """Five good files of several lengths, one segment, one that is no sound, one that is not there; four
    shards.

    The first has two channels, of which the model hears the left one.
    """
    tiny.config = replace(tiny.config, channel="left")
    save(tiny, tmp_path / "tiny.safetensors")
    files = [write_wav(tmp_path / f"{n}.wav", noise(seconds, n)) for n, seconds in enumerate(LENGTHS_S)]
    write_wav(files[0], np.stack([noise(1.0, 0), noise(1.0, 9)], axis=1))
    (tmp_path / "text.wav").write_text("no sound")
    items = [Item(str(file)) for file in files]
    items += [
        Item(str(files[1]), 0.5, 1.5),
        Item(str(tmp_path / "text.wav")),
        Item(str(tmp_path / "gone.wav")),
    ]
    job = EmbedJob(model=str(tmp_path / "tiny.safetensors"), shard_rows=2)
    return Work(items, job, tmp_path / "out")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local cluster of three cores, and of a GPU that is not there."""
    import ray

    changes = {
        "RAY_raylet_start_wait_time_s": "120",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
    }
    resources = {"num_cpus": 3, "num_gpus": 1, "object_store_memory": 2**28}
    with mock.patch.dict(os.environ, changes):
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # that hides real GPUs from the tests
        ray.init(address="local", **resources, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()
    gc.collect()  # here, where the warning about Ray's processes is expected


def rows(out: Path) -> pa.Table:
    """All rows of a job, in order."""
    return pa.concat_tables([pq.read_table(file) for file in sorted(out.glob("part-*.parquet"))])


def values(table: pa.Table) -> np.ndarray:
    return table["embedding"].combine_chunks().drop_null().flatten().to_numpy()


def assert_same(one: Path, other: Path) -> None:
    """The same rows: names, times and reasons exactly, values within 1e-5."""
    first, second = rows(one), rows(other)
    assert first.schema.equals(second.schema, check_metadata=True)
    assert first.drop_columns("embedding").equals(second.drop_columns("embedding"))
    assert first["embedding"].is_null().equals(second["embedding"].is_null())
    np.testing.assert_allclose(values(first), values(second), rtol=0, atol=1e-5)


def model_processes() -> list[psutil.Process]:
    """The actors of this test's own cluster."""
    named = [(process, process.cmdline()) for process in psutil.Process().children(recursive=True)]
    return [
        process for process, command in named if command and "Model" in command[0] and "ray::" in command[0]
    ]


# -- without a cluster ---------------------------------------------------------------------------------------


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^a job on a cluster needs Ray: pip install 'patchout\[ray\]'$"):
        ray_engine()


@pytest.mark.parametrize(
    ("cores", "planned"),
    [
        ([1], Actors(1, cores=0, gpus=0)),
        ([2], Actors(1, cores=1, gpus=0)),
        ([4], Actors(1, cores=3, gpus=0)),
        ([16], Actors(4, cores=3, gpus=0)),
        ([2, 2, 2], Actors(3, cores=1, gpus=0)),  # three cores on one machine are not to be had
        ([0, 16, 2], Actors(4, cores=3, gpus=0)),  # a head without cores
    ],
)
def test_models_leave_cores_to_decode(cores: list[int], planned: Actors) -> None:
    assert plan_actors(cores, 0) == planned


def test_every_gpu_gets_a_model() -> None:
    assert plan_actors([64, 64], 16) == Actors(16, cores=0, gpus=1)


def test_gpus_can_be_left_alone_but_not_made_up() -> None:
    assert plan_actors([8], 4, device="cpu") == plan_actors([8], 0)
    with pytest.raises(ValueError, match="no device 'cuda' on this cluster: here are auto, cpu"):
        plan_actors([8], 0, device="cuda")
    with pytest.raises(ValueError, match="no device 'mps' on this cluster: here are auto, cuda, cpu"):
        plan_actors([8], 1, device="mps")


@pytest.mark.slow
def test_a_task_decodes_only_what_a_block_holds(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_cluster, "BLOCK_BYTES", 4 * 32_000 * 2)
    table = pa.table({"shard": [7], "content": [pickle.dumps(work.items[:5])]})
    done = decode_shard(table, opener=partial(open_stream, rate=32_000, channel="mean"), folder="")
    sounds, left = pickle.loads(done["content"][0].as_py())
    assert [sound.item for sound in sounds] + left == work.items[:5]
    assert [sound.duration_s for sound in sounds] == [1.0, 2.5]
    written = Model(Todo((), work.job, str(work.out), [], "cpu"), Actors(1, 1, 0), "")(done)
    assert written.to_pylist() == [{"shard": 7, "audio_s": pytest.approx(sum(LENGTHS_S)), "problem": None}]
    assert len(pq.read_table(work.out / "part-000007.parquet")) == 5


def test_a_worker_refuses_another_model_of_that_name(work: Work) -> None:
    work.job.__dict__["model_sha256"] = "0" * 64  # as it was on the machine that asked
    table = pa.table({"shard": [0], "content": [pickle.dumps(([], work.items))]})
    (row,) = Model(Todo((), work.job, str(work.out), [], "cpu"), Actors(1, 1, 0), "")(table).to_pylist()
    assert "tiny.safetensors: is another model than on the machine that asked" in row["problem"]


def test_a_worker_that_cannot_write_says_so(work: Work) -> None:
    (work.out / "part-000001.parquet").mkdir(parents=True)
    table = pa.table({"shard": [1], "content": [pickle.dumps(([], work.items))]})
    (row,) = Model(Todo((), work.job, str(work.out), [], "cpu"), Actors(1, 1, 0), "")(table).to_pylist()
    assert re.match(r"part-000001.parquet: .*directory", row["problem"])


@pytest.mark.slow
@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "127.0.0.1:99999"])
def test_a_wrong_address_fails_at_once(work: Work, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", address.format(port))
    monkeypatch.setattr("ray.init", lambda *_, **__: pytest.fail("Ray would try for minutes"))
    with pytest.raises(
        OSError, match=r"^no Ray cluster answers at RAY_ADDRESS=\S*127.0.0.1:\d+ \(.*unset it"
    ):
        work.on_ray()


@pytest.mark.parametrize("address", ["", "auto", "local", "127.0.0.1:{}"])
def test_other_addresses_are_left_to_ray(address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check_address(address.format(server.getsockname()[1]))


# -- on a cluster --------------------------------------------------------------------------------------------


@needs_ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_same_rows_as_the_local_engine(work: Work, tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []
    summary = work.on_ray(on_progress=lambda *step: told.append(step))
    local = bulk.run(work.items, work.job, str(tmp_path / "local"), device="cpu")
    assert replace(summary, audio_s=0.0) == replace(local, audio_s=0.0)
    assert summary.audio_s == pytest.approx(sum(LENGTHS_S) + 1.0)
    assert summary.num_failed == 2
    assert [count for count, _ in told] == [0, 2, 2, 2, 2]
    assert_same(work.out, tmp_path / "local")


@needs_ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_job_goes_on_where_the_other_engine_stopped(work: Work, tmp_path: Path) -> None:
    """Timestamps, to a URL."""
    work.job = replace(work.job, kind="timestamp")
    bulk.run(work.items, work.job, str(work.out), device="cpu")
    shutil.copytree(work.out, tmp_path / "whole")
    (work.out / "part-000002.parquet").unlink()
    stamps = {file: file.stat().st_mtime_ns for file in work.out.glob("part-*.parquet")}
    told: list[int] = []
    summary = work.on_ray(out=work.out.as_uri(), on_progress=lambda count, _: told.append(count))
    assert told == [6, 2]
    assert summary.audio_s == pytest.approx(LENGTHS_S[4] + 1.0)
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    assert_same(work.out, tmp_path / "whole")
    assert work.on_ray(on_progress=lambda count, _: told.append(count)).audio_s == 0.0
    assert told == [6, 2, 8]
    work.items = work.items[:3]
    with pytest.raises(InputError, match="belongs to another job"):
        work.on_ray()


@needs_ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_what_can_be_read_now_and_what_has_changed_is_embedded_anew(work: Work, tmp_path: Path) -> None:
    work.on_ray()
    for item in (work.items[0], work.items[7]):
        write_wav(Path(item.file), noise(0.3, 9))
    summary = work.on_ray()
    assert summary.num_failed == 1
    assert summary.audio_s == pytest.approx(0.6)
    bulk.run(work.items, work.job, str(tmp_path / "local"), device="cpu")
    assert_same(work.out, tmp_path / "local")
    assert not list(work.out.glob(".*part*"))


@needs_ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_killed_workers_lose_nothing(work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three models die while they work: only the ones started again can finish."""
    files = [write_wav(tmp_path / "more" / f"{n}.wav", tone(3.0, 200 + 50 * n)) for n in range(12)]
    work.items = [Item(str(file)) for file in files]
    work.job = replace(work.job, kind="timestamp", config=EmbedConfig(hop_ms=5.0), shard_rows=1)
    monkeypatch.setattr(bulk_cluster, "CORES", 1)
    killed: dict[int, int] = {}  # process -> shards that were finished when it died
    killer = threading.Thread(target=kill_models, args=(work.out, killed))
    killer.start()
    summary = work.on_ray()
    killer.join()
    assert len(killed) == 3
    assert max(killed.values()) < 11
    assert (summary.items, summary.num_failed) == (12, 0)
    bulk.run(work.items, work.job, str(tmp_path / "local"), device="cpu")
    assert_same(work.out, tmp_path / "local")
    assert {file.name for file in work.out.iterdir()} == {
        file.name for file in (tmp_path / "local").iterdir()
    }


def kill_models(out: Path, killed: dict[int, int]) -> None:
    """Kill the actors as soon as a shard stands in `out`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not any(out.glob("part-*.parquet")):
        time.sleep(0.01)
    for process in model_processes():
        process.kill()
        killed[process.pid] = len(list(out.glob("part-*.parquet")))


@needs_ray
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.skipif(torch.cuda.is_available(), reason="has the GPU that the cluster only claims to have")
def test_a_model_is_sent_to_the_gpu_and_its_problem_stops_the_job(work: Work) -> None:
    with pytest.raises(OSError, match=r"^part-00000\d.parquet: no device 'cuda' on this machine"):
        work.on_ray(device="auto")


@needs_ray
@pytest.mark.slow
def test_a_job_starts_its_own_cluster_and_is_quiet(work: Work, tmp_path: Path) -> None:
    """In a process of its own, with relative names, as a user runs it."""
    code = """
        from patchout.inference.bulk.run import run
        from patchout.inference.bulk.cluster import ray_engine
        from patchout.data.items import Item
        from patchout.inference.bulk.embed import EmbedJob
        import ray
        job = EmbedJob(model="tiny.safetensors")
        summary = run([Item("0.wav"), Item("1.wav")], job, "out", engine=ray_engine())
        print(summary.rows, summary.num_failed, ray.is_initialized())
    """
    script = tmp_path / "job.py"
    script.write_text("\n".join(line.strip() for line in code.splitlines()))
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env |= {"RAY_raylet_start_wait_time_s": "120"}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout == "2 0 False\n", done.stderr
    assert [line for line in done.stderr.splitlines() if "Set ray log level" not in line] == []
    assert rows(work.out)["file"].to_pylist() == ["0.wav", "1.wav"]

"""What version 0.1.0 wrote (`golden/stored/make.py`) is opened by today's code:
nothing on a user's disk is lost.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import tone

import patchout
from patchout.checkpoint.zoo import load_pretrained
from patchout.cli.main import run_command

STORED = Path(__file__).parent / "golden" / "stored"
STEPS = ["--device", "cpu", "--precision", "fp32", "--batch", "6", "--clip-s", "0.25"]
EMBED = ["embed", "sounds", "--model", "passt.safetensors", "--device", "cpu", "--precision", "fp32", "--out"]


@pytest.fixture(autouse=True)
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the stored files, which is also the working directory,
    as they were written in theirs; one thread.
    """
    folder = tmp_path / "stored"
    shutil.copytree(STORED, folder)
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)


def lines(path: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_a_tagger_tags() -> None:
    model = patchout.load("passt.safetensors", "cpu")
    tags = patchout.tag(model, (tone(1.0), 32_000))
    assert set(tags.labels) == {"bell", "dog", "rain"}


def test_a_pre_trained_model_has_its_decoder_and_is_an_encoder() -> None:
    assert load_pretrained("maskspec.safetensors", "cpu").config.decoder_width == 16
    embedding = patchout.embed(patchout.load("maskspec.safetensors", "cpu"), (tone(1.0), 32_000))
    assert embedding.scene.shape == (16,)


@pytest.mark.slow
def test_a_stopped_run_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    before = lines("run/metrics.jsonl")
    words = ["train", "folder", "--data", "sounds", "--init", "passt.safetensors", "--epochs", "6", *STEPS]
    assert run_command([*words, "--roll-s", "0", "--out", "run"]) == 0, capfd.readouterr().err
    after = lines("run/metrics.jsonl")
    assert after[: len(before)] == before
    assert after[-1]["epoch"] == 6
    assert patchout.load("run", "cpu").config.labels == ("bell", "dog", "rain")


@pytest.mark.slow
def test_a_stopped_pre_training_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    before = lines("pretraining/metrics.jsonl")
    words = [
        "pretrain",
        "own",
        "--data",
        "unlabelled",
        "--init",
        "maskspec.safetensors",
        *STEPS,
        "--epochs",
        "3",
    ]
    words += ["--horizon-epochs", "3", "--warm-up-epochs", "1", "--out", "pretraining"]
    assert run_command(words) == 0, capfd.readouterr().err
    after = lines("pretraining/metrics.jsonl")
    assert after[: len(before)] == before
    assert after[-1]["epoch"] == 3


def test_a_prepared_set_is_scored(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["evaluate", "passt.safetensors", "--data", "prepared", "--device", "cpu"]) == 0
    assert "accuracy" in capfd.readouterr().out


def test_an_embedding_job_computes_the_shard_that_is_missing(capfd: pytest.CaptureFixture[str]) -> None:
    first = Path("job/part-000000.parquet").read_bytes()
    assert run_command([*EMBED, "job"]) == 0, capfd.readouterr().err
    assert Path("job/part-000000.parquet").read_bytes() == first
    assert pq.read_table("job/part-000001.parquet").num_rows == 4


def test_an_embedding_file_is_known_again(capfd: pytest.CaptureFixture[str]) -> None:
    modified = Path("joined.parquet").stat().st_mtime_ns
    assert run_command([*EMBED, "joined.parquet"]) == 0, capfd.readouterr().err
    assert Path("joined.parquet").stat().st_mtime_ns == modified
    assert np.isfinite(np.stack(pq.read_table("joined.parquet")["embedding"].to_pylist())).all()


@pytest.mark.slow
def test_hear_results_are_reported_and_not_computed_again(capfd: pytest.CaptureFixture[str]) -> None:
    scores = Path("hear/passt/toy-v1-full/test.predicted-scores.json")
    modified = scores.stat().st_mtime_ns
    words = [
        "hear",
        "run",
        "passt.safetensors",
        "--tasks",
        "tasks",
        "--out",
        "hear",
        "--grid",
        "two",
        "--device",
        "cpu",
    ]
    assert run_command(words) == 0, capfd.readouterr().err
    assert scores.stat().st_mtime_ns == modified
    assert run_command(["hear", "report", "hear", "--out", "report"]) == 0
    assert "passt" in Path("report/report.md").read_text(encoding="utf-8")

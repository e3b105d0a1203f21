"""The model that ships: small, with its history inside, and as good as it says."""

from pathlib import Path

import numpy as np
import pytest
from conftest import DATA, needs_data, noise, write_wav

import patchout
from patchout.audio.stream import Stream
from patchout.checkpoint import zoo
from patchout.cli.main import run_command
from patchout.data.sets import scan
from patchout.inference.evaluate import judge, predict
from patchout.inference.window_scores import score
from patchout.models.passt import Passt


@pytest.fixture
def built_in() -> Passt:
    model = patchout.load("esc10-tiny", device="cpu")
    assert isinstance(model, Passt)
    return model


def test_it_is_small_and_says_where_it_comes_from(built_in: Passt) -> None:
    assert zoo.fetch("esc10-tiny").stat().st_size < 12e6
    assert "CC BY 3.0" in built_in.config.licence
    assert {
        "command",
        "commit",
        "seed",
        "test_fold",
        "accuracy",
        "accuracy_interval",
    } <= built_in.config.provenance.keys()
    assert built_in.config.provenance["accuracy"] >= 0.8
    assert len(built_in.config.labels) == 10


@pytest.mark.slow
def test_tag_uses_it_and_says_how_to_get_more(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["tag", str(write_wav(tmp_path / "a.wav", noise(1.0))), "--format", "csv"]) == 0
    ran = capfd.readouterr()
    assert "527" in ran.err
    assert "--model passt-s" in ran.err
    assert "527" not in ran.out


@needs_data
@pytest.mark.slow
def test_its_accuracy_is_the_one_it_states(built_in: Passt) -> None:
    assert DATA is not None
    held = scan(DATA / "esc10").only(built_in.config.provenance["test_fold"])
    predictions = predict(built_in, held, precision="fp32", batch_size=16)
    found = judge(predictions, held, labels=built_in.config.labels, task="multi_class")
    assert found.clips == 80
    assert found.scores["accuracy"] == pytest.approx(
        built_in.config.provenance["accuracy"], abs=1.01 / 80
    )  # other kernels


@needs_data
@pytest.mark.slow
def test_bf16_agrees_on_the_top_class_of_all_clips_but_one(built_in: Passt) -> None:
    assert DATA is not None
    files = scan(DATA / "esc10").only("5").names()
    tops = []
    for precision in ("fp32", "bf16"):
        scored = score(built_in, (Stream(file, 32_000) for file in files), precision=precision)
        tops.append([int(np.argmax(one.scores)) for one in scored if one.scores is not None])
    assert len(tops[0]) == len(tops[1]) == 80
    assert sum(one != other for one, other in zip(*tops, strict=True)) <= 1

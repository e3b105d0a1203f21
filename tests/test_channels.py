"""A channel's model hears its channel through every door, and three of them are an ensemble."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import LABELS, RATE, noise, tone, write_wav

import patchout
from patchout.checkpoint import own as checkpoint
from patchout.cli.main import run_command
from patchout.data.clips import ClipSet
from patchout.data.items import Item
from patchout.data.sets import scan
from patchout.inference.bulk import ahead
from patchout.inference.bulk import run as bulk
from patchout.inference.bulk.embed import EmbedJob, Kind
from patchout.inference.bulk.folder import embeddings, read_tables
from patchout.inference.embedding import EmbedConfig
from patchout.inference.evaluate import predict
from patchout.inference.events import EventRule
from patchout.inference.tagging import overview
from patchout.models.maskspec_classifier import MaskSpecClassifier, MaskSpecClassifierConfig
from patchout.models.passt import Passt
from patchout.models.tagger import Tagger

LEFT, RIGHT = tone(1.5), noise(1.5)
SHORT = EmbedConfig(fields_ms=(160.0,), scene_window_ms=1000.0, scene_hop_ms=500.0)


@pytest.fixture
def left(tiny: Passt, tmp_path: Path) -> Passt:
    """A model of the left channel, and beside it both.wav, left.wav and right.wav."""
    for name, wave in {"both": np.stack([LEFT, RIGHT], axis=1), "left": LEFT, "right": RIGHT}.items():
        write_wav(tmp_path / f"{name}.wav", wave)
    tiny.config = replace(tiny.config, channel="left")
    checkpoint.save(tiny, tmp_path / "model.safetensors")
    loaded = checkpoint.load(tmp_path / "model.safetensors")
    assert isinstance(loaded, Passt)
    return loaded


def tagged(model: Tagger, file: Path) -> np.ndarray:
    return np.array(patchout.tag(model, file, top=3).scores)


def tagged_among_many(model: Tagger, file: Path) -> np.ndarray:
    return np.array([tags.scores for tags in patchout.tag_many(model, [file, file], top=3)])


def events(model: Tagger, file: Path) -> np.ndarray:
    rule = EventRule(on=0.01, off=0.01)
    return np.array([event.score for event in patchout.tag(model, file, events=rule).events])


def drawn(model: Tagger, file: Path) -> np.ndarray:
    return overview(file, model.config, duration_s=1.5)[0]


def scene(model: Tagger, file: Path) -> np.ndarray:
    return patchout.embed(model, file, config=SHORT).scene


def timestamps(model: Tagger, file: Path) -> np.ndarray:
    return patchout.embed(model, file, config=SHORT).timestamps


def scored(model: Tagger, file: Path) -> np.ndarray:
    (file.parent / "one.csv").write_text(f"filename,category\n{file.name},bell\n")
    return predict(model, scan(file.parent / "one.csv"), precision="fp32", batch_size=2).scores


def in_bulk(kind: Kind) -> Callable[[Tagger, Path], np.ndarray]:
    def embedded(model: Tagger, file: Path) -> np.ndarray:
        out = str(file.with_suffix(f".{kind}"))
        bulk.run(
            [Item(str(file))],
            EmbedJob(model=str(file.parent / "model.safetensors"), kind=kind, config=SHORT),
            out,
        )
        return np.concatenate([embeddings(table) for table in read_tables(out, ["part-000000.parquet"])])

    return embedded


DOORS = [
    tagged,
    tagged_among_many,
    events,
    drawn,
    scene,
    timestamps,
    scored,
    in_bulk("scene"),
    in_bulk("timestamp"),
]
LONG = [(in_bulk("scene"), 0.5), (in_bulk("timestamp"), 0.5)]  # that a job opens twice


@pytest.mark.slow
@pytest.mark.parametrize(("door", "held_s"), [*((door, ahead.HELD_S) for door in DOORS), *LONG])
def test_the_left_model_hears_of_both_channels_the_left(
    door: Callable[[Tagger, Path], np.ndarray],
    held_s: float,
    left: Passt,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ahead, "HELD_S", held_s)
    both, one, other = (door(left, tmp_path / f"{name}.wav") for name in ("both", "left", "right"))
    assert len(both)
    assert np.array_equal(both, one)
    assert not np.array_equal(both, other)


@pytest.mark.slow
def test_the_command_hears_it_too(left: Passt, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / f"{name}.wav") for name in ("both", "left", "right")]
    assert (
        run_command(["tag", *files, "--model", str(tmp_path / "model.safetensors"), "--format", "json"]) == 0
    )
    both, one, other = (found["tags"] for found in json.loads(capfd.readouterr().out))
    assert both == one != other


def test_the_channel_of_a_maskspec_is_kept(tmp_path: Path) -> None:
    config = MaskSpecClassifierConfig(labels=LABELS, width=32, depth=1, heads=2, columns=6, channel="right")
    checkpoint.save(MaskSpecClassifier(config), tmp_path / "model.safetensors")
    assert patchout.load(tmp_path / "model.safetensors", "cpu").config == config


def test_a_model_without_a_channel_hears_that_of_the_set(left: Passt, tmp_path: Path) -> None:
    left.config = replace(left.config, channel="mean")

    def of(clips: ClipSet) -> np.ndarray:
        return predict(left, clips, precision="fp32", batch_size=2).scores

    (tmp_path / "one.csv").write_text("filename,category\nboth.wav,bell\n")
    (tmp_path / "two.csv").write_text("filename,category\nright.wav,bell\n")
    assert np.array_equal(of(scan(tmp_path / "one.csv", channel="right")), of(scan(tmp_path / "two.csv")))


@pytest.mark.slow
def test_evaluating_the_three_models_gives_the_ensemble_of_the_training(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = ["filename,category,fold"]
    for index in range(12):
        soundfile.write(
            tmp_path / f"{index}.wav",
            np.stack([tone(0.6, 200 + 300 * (index % 3)), noise(0.6, index)], 1),
            RATE,
        )
        rows.append(f"{index}.wav,{'abc'[index % 3]},{index // 6 + 1}")
    (tmp_path / "meta.csv").write_text("\n".join(rows))
    run = tmp_path / "run"
    sizes = (
        "--size tiny --depth 1 --clip-s 0.5 --patchout-freq 1 --patchout-patches 0 --init  --layer-decay 1"
    )
    line = f"train maskspec-dcase2019 --data {tmp_path} --out {run} {sizes} --split 2 --epochs 1 --batch 6"
    assert run_command([*line.split(" "), "--device", "cpu", "--warm-up-epochs", "0"]) == 0
    told = json.loads((run / "scores.json").read_text())
    assert {f"accuracy/{channel}" for channel in ("left", "right", "mean")} <= told.keys()
    assert f"| mAP | {told['mAP']:.4f} |" in (run / "report" / "report.md").read_text()
    models = [str(run / channel) for channel in ("left", "right", "mean")]
    assert [patchout.load(model, "cpu").config.channel for model in models] == ["left", "right", "mean"]
    capfd.readouterr()
    assert (
        run_command(["evaluate", *models, "--data", str(tmp_path), "--split", "2", "--format", "json"]) == 0
    )
    assert json.loads(capfd.readouterr().out)["mAP"] == pytest.approx(told["mAP"], abs=1e-6)

"""Which model a run trains, for both families; a MaskSpec that is fine-tuned."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LABELS, tiny_config

import patchout
from patchout.audio.mel import MelConfig
from patchout.checkpoint import own as checkpoint
from patchout.data import augment
from patchout.data.sets import scan
from patchout.models.decision import Decision, OperatingPoint
from patchout.models.masking import sincos_positions
from patchout.models.maskspec import MaskSpec, MaskSpecConfig
from patchout.models.maskspec_classifier import MaskSpecClassifierConfig
from patchout.models.passt import Passt
from patchout.training.optim import parameter_groups
from patchout.training.supervised import run as train
from patchout.training.supervised.config import TrainConfig
from patchout.training.supervised.initial_weights import find, start
from patchout.training.supervised.model_config import model_config

CPU = torch.device("cpu")
MEL = MelConfig(mean=(0.5,), std=(2.0,))


def config(data: Path | str = "data", out: Path | str = "run", **changes: Any) -> TrainConfig:
    sizes: dict[str, Any] = {
        "size": "tiny",
        "depth": 1,
        "clip_s": 0.5,
        "model": "maskspec",
        "mask_fill": "mean",
    }
    draws = {"patchout_freq": 0, "patchout_time": 0, "patchout_patches": 5, "mask_freq": 8, "mask_time": 8}
    steps = {"epochs": 2, "batch": 6, "warm_up_epochs": 0.5, "layer_decay": 0.75, "drop_path": 0.1}
    machine = {"device": "cpu", "precision": "fp32", "data": str(data), "out": Path(out)}
    return TrainConfig(**({"recipe": "test", **sizes, **draws, **steps, **machine} | changes))


def pretrained(folder: Path) -> MaskSpec:
    """A pre-trained model of one thin block, as a run folder."""
    shape = MaskSpecConfig(mel=MEL, width=32, heads=2, depth=1, decoder_width=16, decoder_depth=1, columns=6)
    model = MaskSpec(replace(shape, decoder_heads=1), rng=augment.keyed("pre-trained"))
    folder.mkdir()
    checkpoint.save(model, folder / "model.safetensors")
    return model


def begun(folder: Path) -> dict[str, Any]:
    """What a config needs to start from there."""
    return {"init": str(folder), "size": None, "depth": None, "model": None}


# -- the model -----------------------------------------------------------------------------------------------


def test_from_random_weights_it_fits_the_clips(class_folder: Path) -> None:
    shape = model_config(config(clip_s=5.0, pooling="token"), scan(class_folder), None)
    assert isinstance(shape, MaskSpecClassifierConfig)
    assert (shape.labels, shape.task, shape.columns, shape.pooling) == (LABELS, "multi_class", 31, "token")
    assert shape.pad_s == 5.0  # what scoring gives to a short clip is what training gives it
    assert shape.mel.std is not None
    assert min(shape.mel.std) == 0.3  # of the bands that AudioSet leaves empty


def test_the_start_weights_say_the_family(class_folder: Path, tmp_path: Path) -> None:
    pretrained(tmp_path / "pre")
    source = find(str(tmp_path / "pre")).model
    assert source is not None
    shape = model_config(config(**begun(tmp_path / "pre")), scan(class_folder), source.config)
    assert isinstance(shape, MaskSpecClassifierConfig)
    assert (shape.mel, shape.width, shape.columns, shape.labels) == (MEL, 32, 6, LABELS)


def test_thresholds_of_the_start_are_not_those_of_other_classes(class_folder: Path) -> None:
    point = OperatingPoint(
        threshold=0.7, precision=1.0, precision_interval=(0.5, 1.0), recall=1.0, recall_interval=(0.5, 1.0)
    )
    decision = Decision(slope=2.0, points=(point,) * 2, background=("noise",))
    source = replace(tiny_config(), labels=("cat", "cow"), decision=decision)
    shape = model_config(
        config(model="passt", drop_path=0.0, mask_fill="published"), scan(class_folder), source
    )
    assert (shape.labels, shape.decision) == (LABELS, Decision())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stride": (10, 10)}, "maskspec has no stride: leave it out"),
        ({"table_s": 9.0, "positions": "grid"}, "maskspec has no positions, table_s: leave them out"),
        ({"model": "passt", "pooling": "token"}, "passt has no drop_path, pooling"),
    ],
)
def test_what_the_family_has_not_is_refused(wrong: dict[str, Any], message: str, class_folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        model_config(config(**wrong), scan(class_folder), None)


def test_clips_longer_than_the_start_has_heard_are_refused(class_folder: Path, tmp_path: Path) -> None:
    source = MaskSpecClassifierConfig(labels=LABELS, columns=6)
    with pytest.raises(ValueError, match=r"clip_s 5 is longer than the start's 1\.11 s"):
        model_config(config(clip_s=5.0), scan(class_folder), source)


def test_a_pre_trained_encoder_takes_longer_clips_than_it_heard(class_folder: Path, tmp_path: Path) -> None:
    """Its fixed positions are a formula, from which learnt ones start."""
    pretrained(tmp_path / "pre")
    found = find(str(tmp_path / "pre"))
    assert found.model
    settings = config(clip_s=5.0, **begun(tmp_path / "pre"))
    shape = model_config(settings, scan(class_folder), found.model.config)
    model = start(shape, found, rng=augment.keyed("weights"), device=CPU)
    assert model.config.columns == 31
    torch.testing.assert_close(model.state_dict()["embed.position"], sincos_positions(8, 31, 32))
    torch.testing.assert_close(
        model.state_dict()["blocks.0.attn.qkv.weight"], found.model.state_dict()["blocks.0.attn.qkv.weight"]
    )


# -- the start -----------------------------------------------------------------------------------------------


def test_the_encoder_is_kept_and_the_head_is_new(tmp_path: Path) -> None:
    before = pretrained(tmp_path / "pre")
    found = find(str(tmp_path / "pre"))
    assert found.model is not None
    assert isinstance(found.model.config, MaskSpecClassifierConfig)
    model = start(replace(found.model.config, labels=LABELS), found, rng=augment.keyed("head"), device=CPU)
    own = model.state_dict()
    assert torch.equal(
        own["blocks.0.attn.qkv.weight"], before.state_dict()["encoder.blocks.0.attn.qkv.weight"]
    )
    assert own["head.weight"].shape == (3, 32)
    assert own["head.weight"].std() < 1e-4


def test_the_other_family_is_no_start(tmp_path: Path, tiny: Passt) -> None:
    pretrained(tmp_path / "pre")
    checkpoint.save(tiny, tmp_path / "passt.safetensors")
    maskspec = MaskSpecClassifierConfig(labels=LABELS)
    with pytest.raises(
        ValueError, match=r"passt\.safetensors is no MaskSpec: give the run of `patchout pretrain`"
    ):
        start(maskspec, find(str(tmp_path / "passt.safetensors")), rng=None, device=CPU)
    with pytest.raises(ValueError, match="is a MaskSpec, a PaSST was asked for"):
        start(tiny_config(), find(str(tmp_path / "pre")), rng=None, device=CPU)
    with pytest.raises(ValueError, match=r"width 32 \(asked for: 768\)"):
        start(maskspec, find(str(tmp_path / "pre")), rng=None, device=CPU)


def test_the_public_weights_are_no_weights_for_images(tmp_path: Path) -> None:
    from patchout.checkpoint.maskspec import export_maskspec

    shape = MaskSpecConfig(width=64, heads=1, depth=1, decoder_width=512, decoder_depth=1, columns=6)
    torch.save({"model": export_maskspec(MaskSpec(shape))}, tmp_path / "checkpoint-75.pth")
    found = find(str(tmp_path / "checkpoint-75.pth"))
    assert found.model is not None
    assert found.model.config.mel.low_pass_hz == 11_000  # as the public weights heard


@pytest.mark.parametrize("family", ["passt", "maskspec"])
def test_clips_without_a_class_are_refused(family: str, class_folder: Path) -> None:
    unlabelled = replace(scan(class_folder), classes=())
    with pytest.raises(ValueError, match="data: its clips have no labels to train on"):
        model_config(config(model=family), unlabelled, None)


# -- runs ----------------------------------------------------------------------------------------------------


def test_layers_learn_at_their_own_rates(class_folder: Path) -> None:
    shape = model_config(config(depth=2), scan(class_folder), None)
    groups = parameter_groups(start(shape, find(""), rng=None, device=CPU), 0.05, layer_decay=0.5)
    scale = {group["scale"]: {len(weight) for weight in group["params"]} for group in groups}
    assert set(scale) == {0.125, 0.25, 0.5, 1.0}  # embedding, two blocks, head


@pytest.mark.slow
def test_a_pre_trained_model_is_fine_tuned_and_tags(class_folder: Path, tmp_path: Path) -> None:
    pretrained(tmp_path / "pre")
    train.run(config(class_folder, tmp_path / "run", **begun(tmp_path / "pre")))
    model = patchout.load(str(tmp_path / "run"), "cpu")
    assert model.config.labels == LABELS
    assert set(patchout.tag(model, class_folder / "dog" / "0.wav", top=3).labels) == set(LABELS)
    assert model.config.provenance["init"] == str(tmp_path / "pre")

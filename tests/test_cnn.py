"""A third family: what a module and an entry in the registry give it, from training to embeddings."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from conftest import LABELS, noise, tone

import patchout
from patchout.checkpoint import own as checkpoint
from patchout.cli.main import run_command
from patchout.inference.window_scores import score
from patchout.models.cnn import Cnn, CnnConfig
from patchout.models.tagger import FAMILIES, check_labels, family_of, hear
from patchout.training.supervised.config import TrainConfig

STEPS = ["--device", "cpu", "--precision", "fp32", "--batch", "6", "--clip-s", "0.5", "--epochs", "2"]


def cnn(**changes: object) -> Cnn:
    config = CnnConfig(**({"labels": LABELS, "task": "multi_class", "columns": 6} | changes))  # type: ignore[arg-type]
    return Cnn(config, rng=torch.Generator().manual_seed(0)).eval()


def test_the_flag_takes_every_family() -> None:
    (choices, _) = get_args(TrainConfig.__annotations__["model"])
    assert get_args(choices) == tuple(FAMILIES)


@pytest.mark.slow
def test_it_is_trained_scored_and_loaded(
    class_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["--data", str(class_folder), "--out", str(run), *STEPS, "--hold-out", "0.25"]
    assert run_command(["train", "folder-cnn", *words]) == 0, capfd.readouterr().err
    assert run_command(["evaluate", str(run), "--data", str(class_folder), "--device", "cpu"]) == 0
    model = patchout.load(run, "cpu")
    assert (family_of(model.config), model.config.labels) == ("cnn", LABELS)
    assert set(patchout.tag(model, (tone(1.3), 32_000)).labels) == {*LABELS}
    embedding = patchout.embed(model, (noise(1.0), 32_000))
    assert (embedding.scene.shape, embedding.timestamps.shape) == ((3 + 256,), (21, 3 + 256))


@pytest.mark.slow
def test_it_starts_from_another_of_its_kind_with_a_new_head(class_folder: Path, tmp_path: Path) -> None:
    before = cnn(labels=("a", "b"))
    checkpoint.save(before, tmp_path / "before.safetensors")
    words = ["--data", str(class_folder), "--init", str(tmp_path / "before.safetensors"), *STEPS]
    words += ["--freeze", "encoder", "--hold-out", "0.25", "--roll-s", "0", "--result", "last"]
    assert run_command(["train", "folder-cnn", *words, "--out", str(tmp_path / "run")]) == 0
    after = patchout.load(tmp_path / "run", "cpu").state_dict()
    assert torch.equal(after["layers.0.weight"], before.state_dict()["layers.0.weight"])
    assert after["head.weight"].shape == (3, 256)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--init", "sounds-tiny"], "sounds-tiny is a MaskSpec, a CNN was asked for: leave --model out"),
        (["--size", "tiny", "--depth", "2"], "cnn has no depth, size: leave them out"),
        (["--patchout-freq", "1"], "cnn has no patchout: leave it out"),
        (["--layer-decay", "0.7"], "needs a model with blocks"),
    ],
)
def test_what_it_has_not_is_refused(
    words: list[str], message: str, class_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*STEPS, "--data", str(class_folder), "--out", str(tmp_path / "run"), *words]
    assert run_command(["train", "folder-cnn", *words]) == 2
    assert message in capfd.readouterr().err


def test_its_encoder_has_no_classes_and_says_so() -> None:
    with pytest.raises(ValueError, match=r"no classes yet: fine-tune it \(patchout train folder-cnn"):
        check_labels(cnn(labels=()).config)


@pytest.mark.slow
def test_a_score_does_not_depend_on_what_shares_the_batch() -> None:
    """Frames that fill no further cell are left out, and norms see one clip."""
    model = cnn()
    sounds = [(noise(seconds, seed), 32_000) for seed, seconds in enumerate((1.0, 1.001, 0.98))]
    together = [one.scores for one in score(model, [hear(model.config, sound) for sound in sounds])]
    for sound, scores in zip(sounds, together, strict=True):
        (alone,) = score(model, [hear(model.config, sound)])
        torch.testing.assert_close(torch.as_tensor(alone.scores), torch.as_tensor(scores))


def test_cells_are_those_of_the_geometry_and_every_weight_has_a_gradient() -> None:
    model = cnn()
    out = model(torch.randn(2, 128, 96, generator=torch.Generator().manual_seed(0)))
    assert out.tokens.shape == (2, model.config.rows * 6, 256)
    out.logits.square().sum().backward()
    assert [
        name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()
    ] == []

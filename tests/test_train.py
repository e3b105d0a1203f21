"""Supervised training: the config, the model it asks for, the loss of a step, whole runs."""

import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import LABELS, RATE, noise, tiny_config, tone, write_wav
from ranks import Ranks
from safetensors.torch import load_file
from torch import Tensor, nn

import patchout
from patchout.checkpoint import own as checkpoint
from patchout.data import augment
from patchout.data.batches import Batch
from patchout.data.sets import scan
from patchout.files import finite
from patchout.inference.embedding import Embedder
from patchout.models.passt import Passt, PasstConfig
from patchout.models.tagger import Tagger
from patchout.training import loop
from patchout.training import run as training
from patchout.training.plan import Plan
from patchout.training.signals import Stopped
from patchout.training.step import NonFiniteLossError, Place
from patchout.training.supervised import run as train
from patchout.training.supervised.loss import HEAVIEST, StepLoss, class_weights
from patchout.training.supervised.model_config import model_config
from patchout.training.supervised.run import Listener, TrainConfig

Weights = dict[str, Tensor]


@pytest.fixture
def folds(class_folder: Path) -> Path:
    """The sounds of `class_folder` with a table: takes 0 and 1 are fold 1, 2 fold 2,
    3 fold 3; devices a and b.
    """
    rows = ["filename,category,fold,device"]
    for path in sorted(class_folder.rglob("*.wav")):
        fold = max(1, int(path.stem))
        rows.append(f"{path.relative_to(class_folder)},{path.parent.name},{fold},{'a' if fold < 3 else 'b'}")
    (class_folder / "meta.csv").write_text("\n".join(rows))
    return class_folder


def config(data: Path | str = "data", out: Path | str = "run", **changes: Any) -> TrainConfig:
    """Two steps an epoch on the twelve sounds of `class_folder`: one block, 8 x 6 patches."""
    sizes: dict[str, Any] = {"size": "tiny", "depth": 1, "stride": (16, 16), "clip_s": 1.0}
    draws = {"patchout_freq": 2, "patchout_time": 1, "roll_s": 0.2, "mask_freq": 8, "mask_time": 8}
    steps = {"epochs": 2, "batch": 6, "warm_up_epochs": 0.5}
    machine = {"device": "cpu", "precision": "fp32", "data": str(data), "out": Path(out)}
    return TrainConfig(**({"recipe": "test", **sizes, **draws, **steps, **machine} | changes))


def weights(out: Path) -> Weights:
    return load_file(out / "model.safetensors")


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


# -- the config ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": -1}, "batch must be at least 0 and below inf, got -1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"speed": 1.0}, "speed must be at least 0 and below 1, got 1.0"),
        ({"ema": 1.0}, "ema must be"),
        ({"label_smoothing": -0.1}, "label_smoothing must be"),
        ({"wave_mix": 1.5}, "wave_mix must be"),
        ({"mixup": -1.0}, "mixup must be"),
        ({"lr": float("nan")}, "lr must be at least 0 and below inf, got nan"),
        ({"seed": -1}, "seed must be"),
        ({"gain_db": (6, -7)}, "gain_db goes from the lower to the higher end"),
        ({"stride": (10, 0)}, "stride counts pixels"),
        ({"batch": 6, "parts": 4}, "a batch of 6 cannot be cut into 4 equal parts"),
        ({"result": "average"}, "result average needs an average: set ema or swa_start"),
        ({"ema": 0.9, "swa_start": 2}, "two averages"),
        ({"ramp_epochs": 0}, "ramp_epochs must be at least 1"),
        ({"swa_every": 0}, "swa_every must be at least 1"),
        ({"folds": ("1", "2"), "split": "3"}, "split 3 and folds 1, 2 both hold clips out"),
        ({"result": "best"}, "result best needs clips to choose by"),
        ({"result": "best", "folds": ("1",)}, "would choose by the fold that is scored"),
        ({"freeze": "encoder"}, "freeze encoder needs start weights"),
        ({"precision_at": 1.1, "thresholds": True}, "precision_at must be at least 0"),
        ({"precision_at": 0.9}, "precision_at 0.9 needs thresholds: set thresholds"),
        ({"precision_at": 0.9, "silent_at": 1.0}, "precision_at 0.9 and silent_at 1 needs thresholds"),
    ],
)
def test_values_that_train_nothing_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**wrong)


def test_a_run_needs_data_and_a_folder() -> None:
    with pytest.raises(ValueError, match="a run needs data and out"):
        train.run(config(""))


# -- the model -----------------------------------------------------------------------------------------------


def test_the_model_fits_the_clips(class_folder: Path) -> None:
    passt = model_config(config(clip_s=5.0), scan(class_folder), None)
    assert (passt.labels, passt.task) == (LABELS, "multi_class")
    assert (passt.rows, passt.columns) == (8, 31)  # 500 frames: (500 - 16) // 16 + 1
    assert passt.max_samples >= 160_000


def test_without_sizes_it_is_the_published_base_model(class_folder: Path) -> None:
    passt = model_config(TrainConfig(recipe="test"), scan(class_folder), None)
    assert passt == PasstConfig(labels=LABELS, task="multi_class", pad_s=10.0)


def test_sizes_that_are_not_given_come_from_the_start_weights(class_folder: Path) -> None:
    source = tiny_config(width=64, columns=40, positions="grid", labels=("x", "y"), licence="a licence")
    passt = model_config(TrainConfig(recipe="test", clip_s=1.0, patchout_time=2), scan(class_folder), source)
    assert passt == replace(source, labels=LABELS, licence="", pad_s=1.0)


def test_a_table_longer_than_the_clip(class_folder: Path) -> None:
    assert model_config(config(table_s=5.0), scan(class_folder), None).columns == 31
    with pytest.raises(ValueError, match=r"clip_s 1 is longer than table_s 0\.5"):
        model_config(config(table_s=0.5), scan(class_folder), None)


def test_clips_too_short_for_a_patch_are_refused(class_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"clip_s 0\.1 gives 10 frames, a patch needs 16"):
        model_config(config(clip_s=0.1), scan(class_folder), None)


# -- every field does something ------------------------------------------------------------------------------

Probe = dict[str, Any]
CHANGES: dict[str, tuple[Any, str]] = {  # field: another value, where it must show
    "recipe": ("other", "provenance"),
    "split": ("2", "held"),
    "test": ("2", "clips"),
    "exclude": (("3",), "clips"),
    "hold_out": (0.25, "held"),
    "background": ("rain", "model"),
    "head_bias": ("prior", "loss"),
    "by": ("device", "groups"),
    "channel": ("left", "channel"),
    "draws": (6, "steps"),
    "balance": ("loss", "class weight"),
    "init": ("<model>", "weights"),
    "model": ("maskspec", "model"),
    "pooling": ("token", "model"),
    "freeze": ("encoder", "frozen"),
    "embed_cache": ("<folder>", "files"),
    "size": ("small", "model"),
    "depth": (2, "model"),
    "stride": ((16, 12), "model"),
    "hop_length": (160, "model"),
    "positions": ("grid", "model"),
    "table_s": (2.0, "model"),
    "clip_s": (0.9, "waves"),
    "patchout_freq": (1, "loss"),
    "patchout_time": (0, "loss"),
    "patchout_patches": (5, "loss"),
    "patchout_per_clip": (True, "loss"),
    "gain_db": ((-3, -3), "waves"),
    "roll_s": (0.0, "waves"),
    "speed": (0.2, "waves"),
    "wave_mix": (1.0, "waves"),
    "wave_mix_alpha": (50.0, "waves"),
    "mel_jitter": (False, "loss"),
    "mask_freq": (0, "loss"),
    "mask_time": (0, "loss"),
    "mask_shared": (True, "loss"),
    "mask_fill": ("mean", "loss"),
    "mixup": (0.0, "loss"),
    "label_smoothing": (0.1, "loss"),
    "epochs": (3, "steps"),
    "batch": (4, "steps"),
    "parts": (2, "parts"),
    "lr": (1e-4, "lr"),
    "weight_decay": (0.0, "decay"),
    "distill": (("<teacher>",), "loss"),
    "distill_weight": (0.5, "loss"),
    "distill_cache": ("<folder>", "loss"),
    "layer_decay": (0.75, "lr"),
    "drop_path": (0.9, "loss"),
    "decay_all": (True, "decay"),
    "schedule": ("exp_ramp", "rate"),
    "warm_up_epochs": (1.0, "rate"),
    "plateau_epochs": (0, "rate"),
    "ramp_epochs": (1, "rate"),
    "floor": (0.5, "rate"),
    "clip_norm": (0.0, "clip_norm"),
    "ema": (0.5, "ema"),
    "swa_start": (1, "swa"),
    "swa_every": (2, "swa"),
    "result": ("best", "result"),
    "evaluate_every": (1, "evaluate_every"),
    "seed": (1, "weights"),
    "workers": (1, "workers"),
    "device": ("auto", "device"),
    "precision": ("bf16", "loss"),
    "compile": (True, "compile"),
    "trackers": (("tensorboard",), "trackers"),
}
ELSEWHERE = {  # what is trained on, where, and by how many: test_repeat.py, test_split.py, test_processes.py
    *("data", "out", "seeds", "folds", "batch_per_process"),
    *("thresholds", "precision_at", "silent_at"),  # what comes after the last step: test_thresholds.py
}
BEFORE: dict[str, dict[str, Any]] = {  # what a field needs beside it, in both runs
    "by": {"split": "2"},
    "head_bias": {"background": "rain"},  # several classes a clip
    "balance": {"exclude": ("bell-3",)},
    "freeze": {"init": "<model>"},
    "embed_cache": {"init": "<model>", "freeze": "encoder"},
    "wave_mix_alpha": {"wave_mix": 1.0},
    "plateau_epochs": {"schedule": "exp_ramp", "ramp_epochs": 2, "epochs": 4, "warm_up_epochs": 1.0},
    "ramp_epochs": {"schedule": "exp_ramp", "plateau_epochs": 0, "epochs": 4, "warm_up_epochs": 1.0},
    "floor": {
        "schedule": "exp_ramp",
        "plateau_epochs": 0,
        "ramp_epochs": 1,
        "epochs": 4,
        "warm_up_epochs": 1.0,
    },
    "swa_every": {"swa_start": 1},
    "result": {"split": "2", "evaluate_every": 1},
    "distill_weight": {"distill": ("<teacher>",)},
    "distill_cache": {"distill": ("<teacher>",)},
    "model": {"stride": None},
    "pooling": {"stride": None, "model": "maskspec"},
    "drop_path": {"stride": None, "model": "maskspec", "depth": 2},
}


def probe(settings: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> Probe:
    """Everything a run is made of, without running it."""
    caught: Probe = {}

    def stop(job: loop.Job, accelerator: Accelerator, **options: object) -> dict[str, float]:
        (scores,) = job.validate([job.model])
        job.save_model(job.model, settings.out / "model.safetensors", scores)
        assert isinstance(job.model, Tagger)
        assert isinstance(job.loss, StepLoss)
        loader: Any = job.batches(0)
        batch = loader.collate_fn([loader.dataset[key] for key in next(iter(loader.batch_sampler))])
        caught.update(
            workers=loader.num_workers,
            channel=loader.dataset.clips.channel,
            model=replace(job.model.config, provenance={}),
            weights=job.model.state_dict()["embed.proj.weight"].tolist(),
            frozen=[name for name, p in job.model.named_parameters() if not p.requires_grad],
            held=scores.keys(),
            groups=scores.keys(),
            clips=job.clips,
            waves=batch.wave.tolist(),
            files=sorted(path.name for path in settings.out.parent.glob("new/*")),
            loss=job.loss(job.model, batch, Place(1, 0, 0, len(batch.wave), lambda tensor: tensor)).item(),
            rate=[job.rate(step) for step in range(job.steps)],
            lr=[group["peak_lr"] for group in job.optimizer.param_groups],
            decay=[group["weight_decay"] for group in job.optimizer.param_groups],
            **{"class weight": job.loss.class_weight.tolist()},
            **{
                name: getattr(job, name)
                for name in ("steps", "parts", "compile", "clip_norm", "ema", "swa", "result")
            },
            evaluate_every=job.evaluate_every,
        )
        return {}

    def device(name: str) -> torch.device:
        caught["device"] = name
        return torch.device("cpu")

    def engine(device: torch.device, out: Path, *, trackers: tuple[str, ...]) -> Accelerator:
        caught["trackers"] = trackers
        return Accelerator(cpu=True)

    monkeypatch.setattr(loop, "run", stop)
    monkeypatch.setattr(loop, "engine", engine)
    monkeypatch.setattr(training, "pick_device", device)
    train.run(settings)
    caught["provenance"] = patchout.load(settings.out / "model.safetensors", "cpu").config.provenance[
        "recipe"
    ]
    return caught


@pytest.fixture(scope="module")
def unchanged() -> dict[str, Probe]:
    """Runs that several fields start from, looked into once."""
    return {}


@pytest.mark.slow
def test_the_same_field_in_another_folder_changes_nothing(
    folds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = shutil.copytree(folds, tmp_path / "moved")
    one, other = (probe(config(data, data / "run"), monkeypatch) for data in (folds, moved))
    assert one == other


def test_every_field_is_tested() -> None:
    assert {field.name for field in fields(TrainConfig)} == CHANGES.keys() | ELSEWHERE


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CHANGES))
def test_every_field_changes_what_it_says(
    name: str,
    unchanged: dict[str, Probe],
    folds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = Passt(tiny_config(width=192, heads=3, stride=(16, 16), columns=6), rng=augment.keyed("start"))
    checkpoint.save(start, tmp_path / "start.safetensors")
    if name == "balance":  # only where classes differ in size
        (folds / "meta.csv").write_text((folds / "meta.csv").read_text().replace("bell,3", "bell,bell-3"))
    value, place = CHANGES[name]
    both = {"depth": 2} if name in ("freeze", "embed_cache", "init") else {}
    checkpoint.save(Passt(tiny_config(), rng=augment.keyed("teacher")), tmp_path / "teacher.safetensors")
    places: dict[Any, Any] = {
        "<model>": str(tmp_path / "start.safetensors"),
        "<folder>": str(tmp_path / "new"),
    }
    places["<teacher>",] = (str(tmp_path / "teacher.safetensors"),)
    settings = {**both, **BEFORE.get(name, {})}
    named = {key: places.get(set_, set_) for key, set_ in settings.items()}
    value = places.get(value, value)
    if (key := repr(sorted(settings.items()))) not in unchanged:
        unchanged[key] = probe(config(folds, tmp_path / "plain", **named), monkeypatch)
    before = unchanged[key]
    after = probe(config(folds, tmp_path / "changed", **(named | {name: value})), monkeypatch)
    assert after[place] != before[place]


# -- the loss ------------------------------------------------------------------------------------------------


def batch_of(clips: int = 4) -> Batch:
    wave = torch.from_numpy(np.stack([noise(0.5, index) for index in range(clips)]))
    target = torch.eye(3)[torch.arange(clips) % 3]
    return Batch(wave, target, torch.ones_like(target), torch.arange(clips), ())


def _cut(batch: Batch, clips: slice) -> Batch:
    return Batch(batch.wave[clips], batch.target[clips], batch.weight[clips], batch.clip[clips], ())


def place_of(step: int, total: int = 4) -> Place:
    return Place(step, 0, 0, total, lambda tensor: tensor)


def step_loss(model: Passt, **changes: Any) -> StepLoss:
    return StepLoss(config(clip_s=0.5, **changes), model.config, torch.ones(3))


QUIET: dict[str, Any] = {
    "mixup": 0.0,
    "mask_freq": 0,
    "mask_time": 0,
    "patchout_freq": 0,
    "patchout_time": 0,
    "mel_jitter": False,
}


def quiet(model: Passt, **changes: Any) -> StepLoss:
    """Nothing random in a step but the place in the table of positions."""
    loss = step_loss(model, **QUIET, **changes)
    loss.spare_columns = 0
    return loss


def plain_logits(model: Passt) -> Tensor:
    return model(patchout.log_mel(batch_of().wave, model.config.mel)).logits


def test_every_parameter_gets_a_gradient() -> None:
    model = Passt(
        tiny_config(columns=4), rng=augment.keyed("weights", 0)
    )  # 0.5 s: no column without a gradient
    loss = step_loss(model, patchout_freq=0, patchout_time=0, patchout_patches=5)(
        model, batch_of(), place_of(0)
    )
    torch.autograd.backward(loss)
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_a_step_draws_from_its_number_and_part_alone(tiny: Passt) -> None:
    loss = step_loss(tiny)
    one, two, again = (loss(tiny, batch_of(), place_of(step)).item() for step in (1, 2, 1))
    other_part = loss(tiny, batch_of(), place_of(1)._replace(part=1)).item()
    assert one == again != two
    assert other_part not in (one, two)


def test_two_processes_have_the_mean_loss_of_one(tiny: Passt) -> None:
    loss, whole = step_loss(tiny), batch_of()
    halves = [_cut(whole, half) for half in (slice(0, 2), slice(2, 4))]

    alone = loss(tiny, whole, place_of(3)).item()
    seen: dict[int, list[Tensor]] = {0: [], 1: []}
    for rank, half in enumerate(halves):  # first what each process sends

        def send(tensor: Tensor, rank: int = rank) -> Tensor:
            seen[rank].append(tensor)
            return torch.cat([tensor, tensor])

        loss(tiny, half, Place(3, 0, 2 * rank, 4, send))
    both = [torch.cat(pair) for pair in zip(seen[0], seen[1], strict=True)]
    parts = []
    for rank, half in enumerate(halves):

        def receive(tensor: Tensor, answers: Iterator[Tensor] = iter(both)) -> Tensor:  # noqa: B008  # anew for each
            return next(answers)

        parts.append(loss(tiny, half, Place(3, 0, 2 * rank, 4, receive)).item())
    assert sum(parts) / 2 == pytest.approx(alone, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_class_a_clip_is_cross_entropy(smoothing: float, tiny: Passt) -> None:
    expected = nn.functional.cross_entropy(
        plain_logits(tiny), torch.tensor([0, 1, 2, 0]), label_smoothing=smoothing
    )
    loss = quiet(tiny, label_smoothing=smoothing)(tiny, batch_of(), place_of(0))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(("smoothing", "high", "low"), [(0.0, 1.0, 0.0), (0.2, 0.9, 0.1)])
def test_several_classes_a_clip_are_binary_cross_entropy(smoothing: float, high: float, low: float) -> None:
    model = Passt(tiny_config(task="multi_label"), rng=augment.keyed("weights", 0))
    expected = nn.functional.binary_cross_entropy_with_logits(
        plain_logits(model), low + (high - low) * batch_of()[1]
    )
    loss = quiet(model, label_smoothing=smoothing)(model, batch_of(), place_of(0))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("task", ["multi_class", "multi_label"])
def test_what_is_not_known_has_no_loss_but_counts_in_the_mean(task: str) -> None:
    model = Passt(tiny_config(task=task), rng=augment.keyed("weights", 0))
    whole = batch_of()
    half = quiet(model)(model, _cut(whole, slice(2)), place_of(0, 2))
    unknown = whole._replace(weight=torch.tensor([1.0, 1.0, 0.0, 0.0])[:, None].expand(4, 3))
    assert quiet(model)(model, unknown, place_of(0)).item() == pytest.approx(half.item() / 2, abs=1e-6)


def test_a_mix_has_the_targets_that_either_clip_knows(tiny: Passt) -> None:
    """Two clips that know different labels: the mixed loss is the shares' sum of both losses."""
    model = Passt(tiny_config(task="multi_label"), rng=augment.keyed("weights", 0))
    loss = StepLoss(config(**{**QUIET, "mixup": 0.3}), model.config, torch.ones(3))
    loss.spare_columns = 0
    batch = batch_of(2)._replace(weight=torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]))
    step = next(s for s in range(99) if torch.randperm(2, generator=_after_band(s)).tolist() == [1, 0])
    rng = _after_band(step)
    mel = patchout.log_mel(batch.wave, model.config.mel)
    mixed, shares = augment.mixup(
        mel, torch.eye(2), 0.3, rng, share=augment.Share(0, 2, lambda tensor: tensor)
    )
    each = nn.functional.binary_cross_entropy_with_logits(
        model(mixed).logits[:, None].expand(2, 2, 3), batch.target[None].expand(2, 2, 3), reduction="none"
    )
    expected = (shares[:, :, None] * batch.weight[None] * each).sum(1).mean()
    assert loss(model, batch, place_of(step, 2)).item() == pytest.approx(expected.item(), abs=1e-6)


def _after_band(step: int) -> torch.Generator:
    """The generator of a step without mel jitter and masks, as mixup finds it."""
    rng = augment.keyed("step", 0, step, 0)
    augment.mask_span(128, 0, 2, rng)
    augment.mask_span(49, 0, 2, rng)
    return rng


def test_rare_classes_weigh_more_but_not_without_end(tmp_path: Path) -> None:
    count = {"bell": 20, "dog": 10, "rain": 1}
    for label, takes in count.items():
        for take in range(takes):
            write_wav(tmp_path / label / f"{take}.wav", noise(0.01))
    weight = class_weights(scan(tmp_path))
    assert (weight / weight[0]).tolist() == pytest.approx([1.0, 2.0, HEAVIEST])
    assert (weight * torch.tensor([20.0, 10.0, 1.0])).sum().item() == pytest.approx(31.0)


def test_bf16_stays_near_fp32_and_the_loss_is_float32(tiny: Passt) -> None:
    exact, coarse = (
        step_loss(tiny, precision=name)(tiny, batch_of(), place_of(0)) for name in ("fp32", "bf16")
    )
    assert coarse.dtype == torch.float32
    assert coarse.item() == pytest.approx(exact.item(), abs=0.02)


# -- whole runs ----------------------------------------------------------------------------------------------


@pytest.fixture
def untouched(class_folder: Path, tmp_path: Path) -> Path:
    """The run folder of the config that the tests below vary, trained without interruption."""
    train.run(config(class_folder, tmp_path / "untouched", ema=0.5, result="average"))
    return tmp_path / "untouched"


def test_training_lowers_the_loss_and_tells_the_sounds_apart(folds: Path, tmp_path: Path) -> None:
    scores = train.run(
        config(folds, tmp_path / "run", split="3", epochs=15, batch=9, **(QUIET | {"roll_s": 0.0}))
    )
    losses = [line["loss"] for line in log(tmp_path / "run")]
    assert losses[-1] < 0.3 * losses[0]
    assert scores["accuracy"] == 1.0
    assert scores["d_prime"] == math.inf  # of a perfect score
    for name in ("scores.json", "metrics.jsonl"):
        text = (tmp_path / "run" / name).read_text()
        assert '"d_prime": null' in text  # JSON has no word for it
        assert "Infinity" not in text


@pytest.mark.slow
def test_the_result_is_a_model_that_loads_with_all_it_needs(folds: Path, tmp_path: Path) -> None:
    scores = train.run(config(folds, tmp_path / "run", split="3"))
    model = patchout.load(tmp_path / "run" / "model.safetensors", "cpu")
    assert (model.config.labels, model.config.task) == (LABELS, "multi_class")
    about = {
        "recipe": "test",
        "seed": 0,
        "version": patchout.__version__,
        "init": "",
        "clips": 9,
        "scores": finite(scores),
        "command": "patchout train test --data sounds --out run",
        "data": {"name": "sounds", "clips": 9},
        "scored": "3 clips, validation split of sounds",
    }
    provenance = dict(model.config.provenance)
    low, high = provenance.pop("intervals")["accuracy"]
    assert low <= scores["accuracy"] <= high
    seconds = sum(line["seconds"] for line in log(tmp_path / "run"))
    assert provenance.pop("cost")["seconds"] == pytest.approx(seconds, abs=0.1)
    assert provenance == about
    assert {"accuracy", "mAP"} <= set(scores)
    assert len(patchout.tag(model, (tone(1.0), RATE), top=3).labels) == 3


@pytest.mark.slow
@pytest.mark.slow
def test_too_little_shared_memory_for_the_workers_is_told(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(training, "shared_memory_note", lambda size, workers: f"{workers} times {size} bytes")
    monkeypatch.setattr(loop, "run", lambda *_, **__: {})
    monkeypatch.setattr(train._Supervised, "conclude", lambda *_: {})
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    train.run(config(class_folder, tmp_path / "run", workers=3, parts=2), Listener(on_problem=told.append))
    assert f"6 times {3 * 4 * 32_000} bytes" in told


def test_the_run_folder_says_what_was_done(folds: Path, tmp_path: Path) -> None:
    settings = config(folds, tmp_path / "run", split="3")
    scores = train.run(settings)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["config"] == json.loads(json.dumps(asdict(settings) | {"data": "", "out": ""}))
    assert written["data"]["clips"] == 9
    assert written["versions"]["torch"] == torch.__version__
    valid = {
        name: score if math.isfinite(score) else None for name, score in scores.items()
    }  # JSON knows no infinity
    assert json.loads((tmp_path / "run" / "scores.json").read_text()) == {
        "clips": "validation",
        "scores": valid,
        "validation": valid,
    }
    assert "accuracy" in (tmp_path / "run" / "report" / "report.md").read_text()


@pytest.mark.slow
def test_tensorboard_gets_the_log_where_it_is_installed(class_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train.run(config(class_folder, tmp_path / "run"))
    (events,) = (tmp_path / "run" / "tensorboard").rglob("events.out.tfevents.*")
    assert b"loss" in events.read_bytes()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(
    class_folder: Path, untouched: Path, tmp_path: Path
) -> None:
    for seed in (0, 1):
        train.run(config(class_folder, tmp_path / f"seed{seed}", ema=0.5, result="average", seed=seed))
    assert same(weights(untouched), weights(tmp_path / "seed0"))
    assert not same(weights(untouched), weights(tmp_path / "seed1"))


@pytest.mark.parametrize("stop_after", [1, 3])
def test_an_interrupted_run_ends_with_the_bits_of_a_whole_one(
    stop_after: int, class_folder: Path, untouched: Path, tmp_path: Path
) -> None:
    def interrupt(progress: loop.Progress) -> None:
        if progress.step == stop_after:
            raise KeyboardInterrupt

    settings = config(class_folder, tmp_path / "run", ema=0.5, result="average")
    with pytest.raises(KeyboardInterrupt):
        train.run(settings, Listener(on_progress=interrupt))
    assert not (tmp_path / "run" / "model.safetensors").exists()
    train.run(settings)
    assert same(weights(tmp_path / "run"), weights(untouched))
    assert (
        [line["step"] for line in log(tmp_path / "run")]
        == [line["step"] for line in log(untouched)]
        == [2, 4]
    )


@pytest.mark.slow
def test_accumulated_parts_take_other_draws_but_the_same_clips(class_folder: Path, tmp_path: Path) -> None:
    settings = {**QUIET, "roll_s": 0.0, "gain_db": (0, 0)}
    train.run(config(class_folder, tmp_path / "whole", **settings))
    train.run(config(class_folder, tmp_path / "parts", parts=2, **settings))
    whole, parts = log(tmp_path / "whole"), log(tmp_path / "parts")
    assert [line["loss"] for line in parts] == pytest.approx([line["loss"] for line in whole], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", ["bf16", "auto"])
def test_a_run_keeps_the_precision_that_auto_had_when_it_began(
    stopped: str, class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of before, whose folder says auto."""
    faster = ["bf16"]
    monkeypatch.setattr(training, "pick_precision", lambda name, device: faster[0])
    settings = config(class_folder, tmp_path / "run", precision="auto", epochs=1)
    train.run(settings)
    path = tmp_path / "run" / "config.json"
    stored = json.loads(path.read_text())
    assert stored["config"]["precision"] == "bf16"
    stored["config"]["precision"] = stopped
    path.write_text(json.dumps(stored))
    faster[0] = "fp32"
    train.run(settings)
    assert json.loads(path.read_text()) == stored


@pytest.mark.slow
def test_averaging_changes_the_result(class_folder: Path, untouched: Path, tmp_path: Path) -> None:
    train.run(config(class_folder, tmp_path / "last"))
    assert not same(weights(tmp_path / "last"), weights(untouched))


@pytest.mark.slow
def test_a_frozen_encoder_keeps_its_weights_and_the_head_learns(folds: Path, tmp_path: Path) -> None:
    start = Passt(tiny_config(labels=("x", "y")), rng=augment.keyed("start"))
    checkpoint.save(start, tmp_path / "start.safetensors")
    small = {"size": None, "depth": None, "stride": None, "init": str(tmp_path / "start.safetensors")}
    train.run(config(folds, tmp_path / "run", freeze="encoder", **small))
    before, after = start.state_dict(), weights(tmp_path / "run")
    moved = {name for name in before if name in after and not torch.equal(before[name].cpu(), after[name])}
    assert moved
    assert {name.partition(".")[0] for name in moved} == {"head"}


@pytest.mark.slow
def test_a_frozen_encoder_hears_each_clip_once_and_the_next_run_none(
    folds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(
        Passt(tiny_config(labels=("x", "y")), rng=augment.keyed("start")), tmp_path / "start.safetensors"
    )
    heard, embed = list[int](), Embedder.scenes_of_each

    def counted(self: Embedder, waves: list[np.ndarray]) -> list[np.ndarray]:
        heard.append(len(waves))
        return embed(self, waves)

    monkeypatch.setattr(Embedder, "scenes_of_each", counted)
    start = {"size": None, "depth": None, "stride": None, "init": str(tmp_path / "start.safetensors")}
    frozen = {"freeze": "encoder", "embed_cache": str(tmp_path / "cache"), "split": "3", "epochs": 3, **start}
    train.run(config(folds, tmp_path / "run", **frozen))
    first = sum(heard)
    train.run(config(folds, tmp_path / "again", **frozen, seed=1))
    assert first == len(scan(folds)) - len(scan(folds).only("3"))
    assert sum(heard) == first


@pytest.mark.slow
def test_a_finished_run_is_called_again_without_loss(folds: Path, tmp_path: Path) -> None:
    settings = config(folds, tmp_path / "run", split="3")
    scores = train.run(settings)
    before = weights(tmp_path / "run")
    plans: list[Plan] = []
    assert train.run(settings, Listener(on_plan=plans.append)) == scores
    assert plans[0].describe().startswith("the run is finished, all 3 steps are done")
    assert same(weights(tmp_path / "run"), before)


@pytest.mark.slow
def test_every_fold_is_held_out_once(folds: Path, tmp_path: Path) -> None:
    scores = train.run(config(folds, tmp_path / "run", folds=("1", "2", "3"), epochs=1))
    single = json.loads((tmp_path / "run" / "scores.json").read_text())["runs"]
    assert set(single) == {"fold-1", "fold-2", "fold-3"}
    assert scores["accuracy"] == pytest.approx(np.mean([one["accuracy"] for one in single.values()]))
    assert (tmp_path / "run" / "fold-2" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_test_split_is_scored_by_the_best_of_the_validation(folds: Path, tmp_path: Path) -> None:
    settings = config(folds, tmp_path / "run", split="2", test="3", result="best", evaluate_every=1, epochs=3)
    scores = train.run(settings)
    told = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert told["clips"] == "test"
    assert told["validation"]["accuracy"] == max(line["accuracy"] for line in log(tmp_path / "run"))
    assert checkpoint.load(tmp_path / "run" / "model.safetensors").config.provenance["scores"] == finite(
        scores
    )


@pytest.mark.slow
def test_scores_are_told_by_device(folds: Path, tmp_path: Path) -> None:
    scores = train.run(config(folds, tmp_path / "run", split="2", by="device", epochs=1))
    assert "accuracy/device=a" in scores


@pytest.mark.slow
def test_another_config_in_the_same_folder_is_refused_by_field(class_folder: Path, untouched: Path) -> None:
    with pytest.raises(ValueError, match=r"untouched holds .* \(lr 0.001 -> 0.01\)"):
        train.run(config(class_folder, untouched, ema=0.5, result="average", lr=0.01))


@pytest.mark.slow
def test_a_batch_that_was_found_is_kept(class_folder: Path, tmp_path: Path) -> None:
    train.run(config(class_folder, tmp_path / "run", batch=0))
    plans: list[Plan] = []
    train.run(config(class_folder, tmp_path / "run", batch=0), Listener(on_plan=plans.append))
    assert plans[0].batch == 2  # the largest power of two within a quarter of twelve clips
    assert (plans[0].training_tokens, plans[0].tokens) == (2 + 6 * 5, 2 + 8 * 6)


@pytest.mark.slow
def test_a_changed_data_set_in_the_same_folder_is_refused(class_folder: Path, untouched: Path) -> None:
    write_wav(class_folder / "cat" / "0.wav", tone(1.0))
    with pytest.raises(ValueError, match="untouched holds a run on other data"):
        train.run(config(class_folder, untouched, ema=0.5, result="average"))


@pytest.mark.slow
def test_nan_samples_stop_the_run_before_the_weights(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "gain", lambda wave, range_db, rng: wave * float("nan"))
    with pytest.raises(
        NonFiniteLossError, match=r"loss is not finite at step 0: .*look at .*\w+.wav, .*.wav"
    ):
        train.run(config(class_folder, tmp_path / "run"))
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "state.pt").exists()


@pytest.mark.slow
def test_several_labels_a_clip_make_a_multi_label_model(class_folder: Path, tmp_path: Path) -> None:
    rows = [f'{label}/{index}.wav,"{label};loud"' for label in LABELS for index in range(4)]
    (class_folder / "meta.csv").write_text("\n".join(["filename,labels", *rows]), encoding="utf-8")
    train.run(config(class_folder, tmp_path / "run"))
    model = checkpoint.load(tmp_path / "run" / "model.safetensors")
    assert isinstance(model, Passt)
    assert (model.config.task, model.config.labels) == ("multi_label", ("bell", "dog", "loud", "rain"))


@pytest.mark.slow
def test_a_clip_counts_by_the_weight_of_its_row(folds: Path, tmp_path: Path) -> None:
    table = (folds / "meta.csv").read_text().splitlines()
    halves = [f"{row},{'loss_weight' if index == 0 else 0.5}" for index, row in enumerate(table)]
    settings = {**QUIET, "roll_s": 0.0, "gain_db": (0, 0), "epochs": 1, "batch": 12}
    train.run(config(folds, tmp_path / "whole", **settings))
    (folds / "meta.csv").write_text("\n".join(halves))
    train.run(config(folds, tmp_path / "half", **settings))
    assert log(tmp_path / "half")[0]["loss"] == pytest.approx(
        log(tmp_path / "whole")[0]["loss"] / 2, rel=1e-4
    )


@pytest.mark.slow
def test_unusable_rows_are_reported_and_the_rest_is_trained_on(folds: Path, tmp_path: Path) -> None:
    (folds / "dog" / "2.wav").unlink()
    problems: list[str] = []
    train.run(config(folds, tmp_path / "run"), Listener(on_problem=problems.append))
    assert [problem.partition(":")[0] for problem in problems[:2]] == ["meta.csv line 8", "small class"]
    assert checkpoint.load(tmp_path / "run" / "model.safetensors").config.provenance["clips"] == 11


@pytest.mark.slow
def test_a_broken_clip_of_the_held_out_fold_is_named_once(folds: Path, tmp_path: Path) -> None:
    (folds / "dog" / "3.wav").write_text("this is no sound")
    problems: list[str] = []
    train.run(
        config(folds, tmp_path / "run", split="3", evaluate_every=1), Listener(on_problem=problems.append)
    )
    broken, missing = (problem for problem in problems if "3.wav" in problem or "validation" in problem)
    assert "3.wav: is not audio" in broken
    assert missing == "validation clips: no clip of 1 classes, which count in no mean over classes: dog"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 13}, "a batch of 13 is larger than the 12 clips to train on: lower --batch"),
        ({"split": "9"}, "no split or fold 9: it has 1, 2, 3"),
        ({"exclude": ("9",)}, "no split or fold 9: it has 1, 2, 3"),
        ({"patchout_freq": 8}, "cannot drop 8 of 8 rows"),
        (
            {"patchout_time": 40},
            "cannot drop 40 of 6 columns: lower time of the Patchout or lengthen the clip",
        ),
        ({"device": "tpu"}, "no device 'tpu'"),
        ({"trackers": ("mlflow",)}, "no tracker mlflow here: pip install one of tensorboard"),
        ({"precision": "fp16"}, "fp16"),
        ({"draws": 99, "balance": "sampling"}, "99 draws an epoch"),
        ({"balance": "sampling"}, "draws no clip twice: set draws"),
        ({"draws": 2, "epochs": 1}, "1 epochs of 2 clips are less than one batch of 6"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run_folder_is_bound(
    wrong: dict[str, Any], message: str, folds: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train.run(config(folds, tmp_path / "run", **wrong))
    assert not (tmp_path / "run" / "config.json").exists()


MIXED = {"split": "3", "batch": 4, "epochs": 2, "mixup": 0.3, "wave_mix": 0.5}


def rank_trains(data: str, out: str) -> None:
    train.run(config(Path(data), Path(out), **MIXED))


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(ranks: Ranks, folds: Path, tmp_path: Path) -> None:
    train.run(config(folds, tmp_path / "one", **MIXED))
    ranks.run(rank_trains, folds, tmp_path / "two")
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert [line["step"] for line in two] == [line["step"] for line in one]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=2e-5)


@pytest.mark.slow
def test_sigterm_before_the_first_step_stops_quietly(class_folder: Path, tmp_path: Path) -> None:
    def terminate(plan: Plan) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped):
        train.run(config(class_folder, tmp_path / "run"), Listener(on_plan=terminate))
    assert signal.getsignal(signal.SIGTERM) is before

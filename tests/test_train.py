"""The training loop, supervised training and evaluation: loop.py, train.py, evaluate.py."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import LABELS, RATE, noise, tiny_config, tone, write_wav
from safetensors.torch import load_file
from torch import Tensor, nn

import patchout
from patchout import augment, checkpoint, evaluate, loop, train
from patchout.audio import Stream
from patchout.data import Batch, DataError, scan
from patchout.errors import InputError
from patchout.inference import Scored
from patchout.passt import Passt
from patchout.train import StepLoss, TrainConfig, model_config

Weights = dict[str, Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small spend their time on waiting for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(**changes: Any) -> TrainConfig:
    """Two steps an epoch on the twelve sounds of `class_folder`: one block, 8 x 6 patches."""
    sizes: dict[str, Any] = {"size": "tiny", "depth": 1, "stride": (16, 16), "clip_s": 1.0}
    draws = {"patchout_freq": 2, "patchout_time": 1, "roll_s": 0.2, "mask_freq": 8, "mask_time": 8}
    steps = {"epochs": 2, "batch": 6, "warm_up_epochs": 0.5}
    machine = {"device": "cpu", "precision": "fp32"}
    return TrainConfig(**({"recipe": "test", **sizes, **draws, **steps, **machine} | changes))


def weights(out: Path) -> Weights:
    return load_file(out / "model.safetensors")


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def folds(class_folder: Path) -> Path:
    """The class folder with a CSV: clips 0 and 1 of each class in fold 1, 2 in fold 2, 3 in fold 3."""
    with (class_folder / "meta.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["filename", "category", "fold"])
        for label in LABELS:
            for index, fold in enumerate("1123"):
                table.writerow([f"{label}/{index}.wav", label, fold])
    return class_folder


# -- the loop ---------------------------------------------------------------------------------------------------------

SAMPLE = torch.ones(2, 1), torch.ones(2, 1), torch.tensor([1, 3])


class Line:
    """A job on one weight: the loss of step s is `slopes[s]` times the weight, so its gradient is that number."""

    def __init__(self, out: Path, slopes: Iterable[float], **changes: Any) -> None:
        self.slopes = list(slopes)
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.validated: list[float] = []
        self.saved = float("nan")
        self.history: list[loop.Progress] = []
        numbers: dict[str, Any] = {
            "ema": 0.0,
            "clip_norm": 0.0,
            "evaluate_every": 0,
            "batch": 2,
            "clip_names": ["a", "b", "c", "d"],
        }
        self.job = loop.Job(
            model=self.model,
            optimizer=torch.optim.SGD([{"params": self.model.parameters(), "peak_lr": 1.0}], lr=1.0, fused=True),
            loss=lambda model, batch, step: self.slopes[step] * model(batch[0]).mean(),
            rate=lambda step: 1.0,
            batches=lambda first: [SAMPLE] * (len(self.slopes) - first),
            steps=len(self.slopes),
            validate=self.validate,
            save_model=self.save,
            out=out,
            **(numbers | changes),
        )

    def validate(self, model: nn.Module) -> dict[str, float]:
        self.validated.append(weight_of(model))
        return {"weight": weight_of(model)}

    def save(self, model: nn.Module, path: Path) -> None:
        self.saved = weight_of(model)

    def run(self, stop_after: int | None = None) -> dict[str, float]:
        return loop.run(self.job, Accelerator(cpu=True, mixed_precision="no"), on_progress=self.watch(stop_after))

    def watch(self, stop_after: int | None) -> Callable[[loop.Progress], None]:
        def progress(now: loop.Progress) -> None:
            self.history.append(now)
            if now.step == stop_after:
                raise InterruptedError

        return progress


def weight_of(model: nn.Module) -> float:
    assert isinstance(model, nn.Linear)
    return model.weight.item()


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state after every step."""
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)


def test_every_step_moves_the_weight_by_rate_times_gradient(tmp_path: Path) -> None:
    line = Line(tmp_path, [1, 1, 1])
    line.job.rate = lambda step: [1.0, 0.5, 0.25][step]
    line.run()
    assert line.saved == -1.75


def test_progress_tells_the_step_and_at_the_end_of_an_epoch_the_mean_loss(tmp_path: Path) -> None:
    """The weight is 0, -1, -2, -3 before the steps: losses 0, -1 and -2, -3."""
    line = Line(tmp_path, [1, 1, 1, 1])
    line.run()
    assert [(now.step, now.steps, now.loss) for now in line.history] == [
        (1, 4, None),
        (2, 4, -0.5),
        (3, 4, None),
        (4, 4, -2.5),
    ]
    assert all(now.clips_per_s > 0 for now in line.history)
    assert line.history[-1].scores == {"weight": -4.0}


def test_the_log_has_a_line_an_epoch(tmp_path: Path) -> None:
    Line(tmp_path, [1, 1, 1, 1, 1]).run()
    lines = log(tmp_path)
    assert [(line["step"], line["epoch"], line["loss"]) for line in lines] == [(2, 1, -0.5), (4, 2, -2.5), (5, 2.5, -4)]
    assert "weight" not in lines[0]
    assert lines[-1]["weight"] == -5.0


@pytest.mark.parametrize(("every", "validated"), [(0, [-8.0]), (1, [-2.0, -4.0, -6.0, -8.0]), (2, [-4.0, -8.0])])
def test_validation_comes_every_so_many_epochs_and_at_the_end(
    every: int, validated: list[float], tmp_path: Path
) -> None:
    line = Line(tmp_path, [1] * 8, evaluate_every=every)
    assert line.run() == {"weight": -8.0}
    assert line.validated == validated


def test_the_gradient_is_cut_to_the_longest_allowed(tmp_path: Path) -> None:
    line = Line(tmp_path, [8, 0.25], clip_norm=0.5)
    line.run()
    assert line.saved == pytest.approx(-0.75, abs=1e-5)


def test_the_averaged_weights_are_the_result(tmp_path: Path) -> None:
    """-1; .5 * -1 + .5 * -2 = -1.5; .5 * -1.5 + .5 * -3 = -2.25."""
    line = Line(tmp_path, [1, 1, 1], ema=0.5)
    assert line.run() == {"weight": -2.25}
    assert line.saved == -2.25


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [0, 2, 3])
def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_clips(step: int, bad: float, tmp_path: Path) -> None:
    line = Line(tmp_path, [1.0] * 4)
    line.slopes[step] = bad
    with pytest.raises(loop.NonFiniteLossError, match=rf"step {step}: lower the learning rate, or look at b, d$"):
        line.run()
    assert weight_of(line.model) in (-step, -step - 1)  # the step after it may be done, the bad one is not
    assert np.isnan(line.saved)


@pytest.mark.usefixtures("save_always")
def test_no_state_hides_a_bad_step_from_the_next_call(tmp_path: Path) -> None:
    for _ in range(2):
        line = Line(tmp_path, [1.0, 1.0, float("nan"), 1.0])
        with pytest.raises(loop.NonFiniteLossError, match="step 2"):
            line.run()
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 2


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path: Path) -> None:
    """The square root of zero is a finite loss with an infinite slope."""
    line = Line(tmp_path, [1.0, 1.0])
    line.job.loss = lambda model, batch, step: model(batch[0]).abs().sqrt().mean()
    with pytest.raises(loop.NonFiniteLossError, match="step 0"):
        line.run()
    assert weight_of(line.model) == 0.0


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_stopped_run_goes_on_where_it_stood(ema: float, tmp_path: Path) -> None:
    slopes = [1, 2, 3, 4, 5, 6]
    whole, first, second = (Line(tmp_path / name, slopes, ema=ema) for name in ("whole", "parts", "parts"))
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole.run()
    with pytest.raises(InterruptedError):
        first.run(stop_after=3)
    second.run()
    assert [now.step for now in second.history] == [4, 5, 6]
    assert second.saved == whole.saved
    assert [line["step"] for line in log(tmp_path / "parts")] == [2, 4, 6]


def test_steps_after_the_last_state_are_done_and_logged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)
    with pytest.raises(InterruptedError):
        Line(tmp_path, [1] * 6).run(stop_after=3)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", 1e9)
    with pytest.raises(InterruptedError):
        Line(tmp_path, [1] * 6).run(stop_after=5)
    assert [line["step"] for line in log(tmp_path)] == [2, 4]
    last = Line(tmp_path, [1] * 6)
    last.run()
    assert [now.step for now in last.history] == [4, 5, 6]
    assert [line["step"] for line in log(tmp_path)] == [2, 4, 6]


def test_a_run_without_a_state_begins_its_log_anew(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        Line(tmp_path, [1] * 4).run(stop_after=3)
    Line(tmp_path, [1] * 4).run()
    assert [line["step"] for line in log(tmp_path)] == [2, 4]


def test_a_finished_run_keeps_its_result_and_scores(tmp_path: Path) -> None:
    Line(tmp_path, [1] * 4).run()
    again = Line(tmp_path, [1] * 4)
    assert again.run() == {"weight": -4.0}
    assert again.saved == -4.0
    assert again.history == []


# -- the config -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 0}, "batch must be at least 1 and below inf, got 0"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"speed": 1.0}, "speed must be at least 0 and below 1, got 1.0"),
        ({"ema": 1.0}, "ema must be"),
        ({"label_smoothing": -0.1}, "label_smoothing must be"),
        ({"mixup": -1.0}, "mixup must be"),
        ({"lr": float("nan")}, "lr must be at least 0 and below inf, got nan"),
        ({"seed": -1}, "seed must be"),
        ({"gain_db": (6, -7)}, "gain_db goes from the lower to the higher end"),
        ({"stride": (10, 0)}, "stride counts pixels"),
    ],
)
def test_values_that_train_nothing_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**wrong)


def test_the_limits_name_fields() -> None:
    assert set(train.LIMITS) <= {field.name for field in fields(TrainConfig)}


def test_the_model_fits_the_clips(class_folder: Path) -> None:
    passt = model_config(config(clip_s=5.0), scan(class_folder))
    assert (passt.labels, passt.task) == (LABELS, "multi_class")
    assert (passt.rows, passt.columns) == (8, 31)  # 500 frames: (500 - 16) // 16 + 1
    assert passt.max_samples >= 160_000


def test_clips_too_short_for_a_patch_are_refused(class_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"clip_s 0\.1 gives 10 frames, a patch needs 16"):
        model_config(config(clip_s=0.1), scan(class_folder))


Probe = dict[str, Any]
CHANGES: dict[str, tuple[Any, str]] = {  # field: another value, where it must show
    "recipe": ("other", "provenance"),
    "split": ("2", "held"),
    "exclude": (("3",), "clips"),
    "size": ("small", "model"),
    "depth": (2, "model"),
    "stride": ((16, 12), "model"),
    "hop_length": (160, "model"),
    "clip_s": (0.9, "waves"),
    "patchout_freq": (1, "loss"),
    "patchout_time": (0, "loss"),
    "patchout_patches": (5, "loss"),
    "patchout_per_clip": (True, "loss"),
    "gain_db": ((-3, -3), "waves"),
    "roll_s": (0.0, "waves"),
    "speed": (0.2, "waves"),
    "mel_jitter": (False, "loss"),
    "mask_freq": (0, "loss"),
    "mask_time": (0, "loss"),
    "mixup": (0.0, "loss"),
    "label_smoothing": (0.1, "loss"),
    "epochs": (3, "steps"),
    "batch": (4, "steps"),
    "lr": (1e-4, "lr"),
    "weight_decay": (0.0, "decay"),
    "warm_up_epochs": (1.0, "rate"),
    "clip_norm": (0.0, "clip_norm"),
    "ema": (0.5, "ema"),
    "evaluate_every": (1, "evaluate_every"),
    "seed": (1, "weights"),
    "workers": (2, "workers"),
    "device": ("auto", "device"),
    "precision": ("bf16", "loss"),
}


def probe(settings: TrainConfig, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Probe:
    """Everything a run is made of, without running it."""
    caught: Probe = {}

    def stop(job: loop.Job, accelerator: Accelerator, **options: object) -> dict[str, float]:
        scores = job.validate(job.model)
        job.save_model(job.model, out / "model.safetensors")
        assert isinstance(job.model, Passt)
        loader: Any = job.batches(0)
        batch = loader.collate_fn([loader.dataset[key] for key in next(iter(loader.batch_sampler))])
        caught.update(
            workers=loader.num_workers,
            model=replace(job.model.config, provenance={}),
            weights=job.model.state_dict()["embed.proj.weight"].tolist(),
            held=scores.keys(),
            clips=len(job.clip_names),
            waves=batch[0].tolist(),
            loss=job.loss(job.model, batch, 1).item(),
            steps=job.steps,
            rate=[job.rate(step) for step in range(job.steps)],
            lr=[group["peak_lr"] for group in job.optimizer.param_groups],
            decay=[group["weight_decay"] for group in job.optimizer.param_groups],
            **{name: getattr(job, name) for name in ("clip_norm", "ema", "evaluate_every")},
        )
        return {}

    def device(name: str) -> torch.device:
        caught["device"] = name
        return torch.device("cpu")

    monkeypatch.setattr(loop, "run", stop)
    monkeypatch.setattr(train, "pick_device", device)
    train.run(settings, data, out)
    caught["provenance"] = patchout.load(out / "model.safetensors", "cpu").config.provenance["recipe"]
    return caught


@pytest.mark.parametrize("name", [field.name for field in fields(TrainConfig)])
def test_every_field_changes_what_it_says(
    name: str, folds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, place = CHANGES[name]
    before = probe(config(), folds, tmp_path / "plain", monkeypatch)
    after = probe(config(**{name: value}), folds, tmp_path / "changed", monkeypatch)
    assert after[place] != before[place]


# -- the loss ---------------------------------------------------------------------------------------------------------


def batch_of(clips: int = 4) -> Batch:
    wave = torch.from_numpy(np.stack([noise(0.5, index) for index in range(clips)]))
    return wave, torch.eye(3)[torch.arange(clips) % 3], torch.arange(clips)


def test_every_parameter_gets_a_gradient() -> None:
    model = Passt(tiny_config(), rng=augment.keyed("weights", 0))
    wave = torch.from_numpy(np.stack([noise(1.0, index)[:28_800] for index in range(4)]))
    loss = StepLoss(config(patchout_freq=0, patchout_time=0, patchout_patches=5), model.config)
    scalar = loss(model, (wave, torch.eye(3)[torch.tensor([0, 1, 2, 0])], torch.arange(4)), 0)
    torch.autograd.backward(scalar)
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def test_a_step_draws_from_its_number_alone(tiny: Passt) -> None:
    loss = StepLoss(config(), tiny.config)
    one, two, again = (loss(tiny, batch_of(), step).item() for step in (1, 2, 1))
    assert one == again != two


def quiet(**changes: Any) -> TrainConfig:
    """Nothing random in a step."""
    return config(mixup=0.0, mask_freq=0, mask_time=0, patchout_freq=0, patchout_time=0, mel_jitter=False, **changes)


def plain_logits(model: Passt) -> Tensor:
    return model(patchout.log_mel(batch_of()[0], model.config.mel)).logits


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_class_a_clip_is_cross_entropy(smoothing: float, tiny: Passt) -> None:
    expected = nn.functional.cross_entropy(plain_logits(tiny), torch.tensor([0, 1, 2, 0]), label_smoothing=smoothing)
    loss = StepLoss(quiet(label_smoothing=smoothing), tiny.config)(tiny, batch_of(), 0)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize(("smoothing", "high", "low"), [(0.0, 1.0, 0.0), (0.2, 0.9, 0.1)])
def test_several_classes_a_clip_are_binary_cross_entropy(smoothing: float, high: float, low: float) -> None:
    model = Passt(tiny_config(task="multi_label"), rng=augment.keyed("weights", 0))
    expected = nn.functional.binary_cross_entropy_with_logits(plain_logits(model), low + (high - low) * batch_of()[1])
    loss = StepLoss(quiet(label_smoothing=smoothing), model.config)(model, batch_of(), 0)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_bf16_stays_near_fp32_and_the_loss_is_float32(tiny: Passt) -> None:
    exact, coarse = (StepLoss(config(precision=name), tiny.config)(tiny, batch_of(), 0) for name in ("fp32", "bf16"))
    assert coarse.dtype == torch.float32
    assert coarse.item() == pytest.approx(exact.item(), abs=0.02)


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def untouched(class_folder: Path, tmp_path: Path) -> Path:
    """The run folder of the config that the tests below vary, trained without interruption."""
    train.run(config(ema=0.5), class_folder, tmp_path / "untouched")
    return tmp_path / "untouched"


def test_training_lowers_the_loss_and_tells_the_sounds_apart(folds: Path, tmp_path: Path) -> None:
    scores = train.run(quiet(split="3", epochs=15, batch=9, roll_s=0.0), folds, tmp_path / "run")
    losses = [line["loss"] for line in log(tmp_path / "run")]
    assert losses[-1] < 0.3 * losses[0]
    assert scores["accuracy"] == 1.0


def test_the_result_is_a_model_that_loads_with_all_it_needs(folds: Path, tmp_path: Path) -> None:
    scores = train.run(config(split="3"), folds, tmp_path / "run")
    model = patchout.load(tmp_path / "run" / "model.safetensors", "cpu")
    assert (model.config.labels, model.config.task) == (LABELS, "multi_class")
    about = {"recipe": "test", "seed": 0, "version": patchout.__version__, "clips": 9, "scores": scores}
    assert model.config.provenance == about
    assert set(scores) == {"accuracy", "mAP"}
    assert len(patchout.tag(model, (tone(1.0), RATE), top=3).labels) == 3


def test_the_run_folder_says_what_was_done(class_folder: Path, tmp_path: Path) -> None:
    train.run(config(), class_folder, tmp_path / "run")
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["config"] == json.loads(json.dumps(asdict(config()))) | {"data": str(class_folder)}
    assert written["versions"]["torch"] == torch.__version__


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(
    class_folder: Path, untouched: Path, tmp_path: Path
) -> None:
    for seed in (0, 1):
        train.run(config(ema=0.5, seed=seed), class_folder, tmp_path / f"seed{seed}")
    assert same(weights(untouched), weights(tmp_path / "seed0"))
    assert not same(weights(untouched), weights(tmp_path / "seed1"))


@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_an_interrupted_run_ends_with_the_bits_of_a_whole_one(
    stop_after: int, class_folder: Path, untouched: Path, tmp_path: Path
) -> None:
    def interrupt(progress: loop.Progress) -> None:
        if progress.step == stop_after:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train.run(config(ema=0.5), class_folder, tmp_path / "run", on_progress=interrupt)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    train.run(config(ema=0.5), class_folder, tmp_path / "run")
    assert same(weights(tmp_path / "run"), weights(untouched))
    assert [line["step"] for line in log(tmp_path / "run")] == [line["step"] for line in log(untouched)] == [2, 4]


def test_averaging_changes_the_result(class_folder: Path, untouched: Path, tmp_path: Path) -> None:
    train.run(config(), class_folder, tmp_path / "last")
    assert not same(weights(tmp_path / "last"), weights(untouched))


def test_a_finished_run_is_called_again_without_loss(folds: Path, tmp_path: Path) -> None:
    scores = train.run(config(split="3"), folds, tmp_path / "run")
    before = weights(tmp_path / "run")
    assert train.run(config(split="3"), folds, tmp_path / "run") == scores
    assert same(weights(tmp_path / "run"), before)
    assert checkpoint.load(tmp_path / "run" / "model.safetensors").config.provenance["scores"] == scores


def test_another_config_in_the_same_folder_is_refused_by_field(class_folder: Path, untouched: Path) -> None:
    with pytest.raises(ValueError, match=r"untouched holds .* \(lr 0.001 -> 0.01\): choose another --out"):
        train.run(config(ema=0.5, lr=0.01), class_folder, untouched)


def test_other_data_in_the_same_folder_is_refused(class_folder: Path, untouched: Path) -> None:
    moved = class_folder.rename(class_folder.with_name("moved"))
    with pytest.raises(ValueError, match=r"\(data '.*sounds' -> '.*moved'\)"):
        train.run(config(ema=0.5), moved, untouched)


def test_nan_samples_stop_the_run_before_the_weights(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "gain", lambda wave, range_db, rng: wave * float("nan"))
    with pytest.raises(loop.NonFiniteLossError, match=r"loss is not finite at step 0: .*look at \w+.wav, .*.wav"):
        train.run(config(), class_folder, tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "state.pt").exists()


def test_several_labels_a_clip_make_a_multi_label_model(class_folder: Path, tmp_path: Path) -> None:
    rows = [f'{label}/{index}.wav,"{label};loud"' for label in LABELS for index in range(4)]
    (class_folder / "meta.csv").write_text("\n".join(["filename,labels", *rows]), encoding="utf-8")
    train.run(config(), class_folder, tmp_path / "run")
    model = checkpoint.load(tmp_path / "run" / "model.safetensors")
    assert (model.config.task, model.config.labels) == ("multi_label", ("bell", "dog", "loud", "rain"))


def test_unusable_rows_are_reported_and_the_rest_is_trained_on(folds: Path, tmp_path: Path) -> None:
    (folds / "dog" / "2.wav").unlink()
    problems: list[str] = []
    train.run(config(), folds, tmp_path / "run", on_problem=problems.append)
    assert [problem.partition(":")[0] for problem in problems] == ["meta.csv line 8"]
    assert checkpoint.load(tmp_path / "run" / "model.safetensors").config.provenance["clips"] == 11


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 13}, "a batch of 13 is larger than the 12 clips to train on: lower --batch"),
        ({"split": "9"}, "no split or fold 9: it has 1, 2, 3"),
        ({"exclude": ("9",)}, "no split or fold 9: it has 1, 2, 3"),
        ({"patchout_freq": 8}, "cannot drop 8 of 8 rows"),
        ({"patchout_time": 40}, "cannot drop 40 of 6 columns: lower time of the Patchout or lengthen the clip"),
        ({"device": "tpu"}, "no device 'tpu'"),
    ],
)
def test_what_cannot_work_is_refused_before_the_run_folder_is_bound(
    wrong: dict[str, Any], message: str, folds: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train.run(config(**wrong), folds, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_class_is_nothing_to_learn(tmp_path: Path) -> None:
    write_wav(tmp_path / "data" / "dog" / "a.wav", tone(1.0))
    with pytest.raises(DataError, match=r"one class only \(dog\)"):
        train.run(config(batch=1), tmp_path / "data", tmp_path / "run")


# -- evaluation -------------------------------------------------------------------------------------------------------


def answers(monkeypatch: pytest.MonkeyPatch, *given: list[float] | None) -> None:
    """Let the scores of the clips be these; None: cannot be read."""

    def score(model: Passt, streams: Iterable[Stream], **options: object) -> Iterator[Scored]:
        for stream, scores in zip(streams, given, strict=True):
            if scores is None:
                yield Scored(stream.name, error=f"{stream.name}: is broken")
            else:
                yield Scored(stream.name, 1.0, np.array(scores, np.float64))

    monkeypatch.setattr(evaluate, "score", score)


BELL, DOG, RAIN = [0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.2, 0.2, 0.6]


def test_scores_by_hand(tiny: Passt, folds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of bell, bell, dog, dog, rain, rain one dog is taken for rain."""
    answers(monkeypatch, BELL, BELL, DOG, RAIN, RAIN, RAIN)
    result = evaluate.evaluate(tiny, scan(folds).only("2", "3"))
    assert (result.clips, result.failed) == (6, ())
    assert result.scores["accuracy"] == pytest.approx(5 / 6)
    assert result.accuracy_interval == pytest.approx((0.4365, 0.9699), abs=5e-5)
    # bell 1; dog: one found first, the other among four at half the recall: (1 + 2/4) / 2; rain: two of three
    assert result.scores["mAP"] == pytest.approx((1 + 3 / 4 + 2 / 3) / 3)


def test_a_broken_clip_is_named_and_left_out(tiny: Passt, class_folder: Path) -> None:
    (class_folder / "dog" / "1.wav").write_bytes(b"no sound")
    seen: list[None] = []
    result = evaluate.evaluate(tiny, scan(class_folder), on_clip=lambda: seen.append(None))
    assert result.clips == 11
    assert len(result.failed) == 1
    assert "1.wav" in result.failed[0]
    assert len(seen) == 12


def test_the_targets_of_broken_clips_are_left_out_too(
    tiny: Passt, folds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, None, DOG, RAIN)
    result = evaluate.evaluate(tiny, scan(folds).only("2"))
    assert (result.scores["accuracy"], result.clips) == (1.0, 2)
    assert result.failed[0].endswith("2.wav: is broken")


def test_nothing_to_read_is_refused(tiny: Passt, folds: Path) -> None:
    for path in folds.rglob("*.wav"):
        path.write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"none of 12 clips could be read \(.*0\.wav"):
        evaluate.evaluate(tiny, scan(folds))


def test_labels_the_model_does_not_know_are_named(tiny: Passt, class_folder: Path) -> None:
    (class_folder / "dog").rename(class_folder / "wolf")
    with pytest.raises(DataError, match=r"labels \['wolf'\] are none of the model's"):
        evaluate.evaluate(tiny, scan(class_folder))


def test_a_part_of_the_models_classes_is_enough(tiny: Passt, class_folder: Path) -> None:
    for path in (class_folder / "bell").iterdir():
        path.unlink()
    assert evaluate.evaluate(tiny, scan(class_folder)).clips == 8


def test_the_order_of_the_models_classes_counts_not_the_datas(folds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Passt(tiny_config(labels=("rain", "owl", "dog", "bell")), rng=augment.keyed("weights", 0))
    answers(monkeypatch, [0, 0, 0, 1], [0, 0, 1, 0], [1, 0, 0, 0])
    assert evaluate.evaluate(model, scan(folds).only("2")).scores["accuracy"] == 1.0


@pytest.mark.parametrize("task", ["multi_label", "multi_class"])
def test_accuracy_is_for_one_class_a_clip(task: str, folds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folds / "meta.csv").write_text("file,labels\nbell/0.wav,bell;dog\nrain/0.wav,rain\n", encoding="utf-8")
    answers(monkeypatch, BELL, RAIN)
    model = Passt(tiny_config(task=task), rng=augment.keyed("weights", 0))
    result = evaluate.evaluate(model, scan(folds))
    assert set(result.scores) == {"mAP"}
    assert result.accuracy_interval is None


def test_the_segment_of_a_row_is_what_is_scored(tiny: Passt, folds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []

    def score(model: Passt, streams: Iterable[Stream], **options: object) -> Iterator[Scored]:
        for stream in streams:
            heard.append(sum(map(len, stream)))
            yield Scored(stream.name, 1.0, np.array(DOG))

    monkeypatch.setattr(evaluate, "score", score)
    (folds / "meta.csv").write_text("file,label,start,end\ndog/0.wav,dog,0.25,0.75\ndog/1.wav,dog,0.9,\n")
    evaluate.evaluate(tiny, scan(folds))
    assert heard == [16_000, 3_200]


def test_a_segment_beyond_the_end_is_a_broken_clip(tiny: Passt, class_folder: Path) -> None:
    rows = "file,label,start\nbell/0.wav,bell,0\nbell/1.wav,bell,5\n"
    (class_folder / "meta.csv").write_text(rows, encoding="utf-8")
    result = evaluate.evaluate(tiny, scan(class_folder))
    assert result.clips == 1
    assert "1.wav" in result.failed[0]


def test_a_changed_data_set_in_the_same_folder_is_refused(class_folder: Path, untouched: Path) -> None:
    write_wav(class_folder / "cat" / "0.wav", tone(1.0))
    with pytest.raises(ValueError, match=r"untouched holds a run on other clips or classes than .*sounds has now"):
        train.run(config(ema=0.5), class_folder, untouched)


def test_a_broken_clip_of_the_held_out_fold_is_named(folds: Path, tmp_path: Path) -> None:
    (folds / "dog" / "3.wav").write_text("this is no sound")
    problems: list[str] = []
    train.run(config(split="3"), folds, tmp_path / "run", on_problem=problems.append)
    assert len(problems) == 1
    assert "3.wav: is not audio" in problems[0]


def test_a_recording_on_both_sides_is_reported(class_folder: Path, tmp_path: Path) -> None:
    rows = ["file,label,fold,group"]
    for path in sorted(class_folder.rglob("*.wav")):
        rows.append(f"{path.relative_to(class_folder)},{path.parent.name},{path.stem},take {path.parent.name}")
    (class_folder / "clips.csv").write_text("\n".join(rows))
    problems: list[str] = []
    train.choose_clips(config(split="3"), class_folder, problems.append)
    assert problems == [
        "3 groups are trained on and held out (take bell, take dog, take rain): the scores will be too good"
    ]


def test_a_damaged_state_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"PK broken")
    with pytest.raises(InputError, match=r"state.pt: damaged \(\w+\): delete it"):
        Line(tmp_path, [1.0]).run()

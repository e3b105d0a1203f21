"""The training loop: loop.py, step.py, stop.py, on a model of one weight and made-up batches."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import accelerate
import pytest
import small_run
import torch
from ranks import Ranks
from safetensors.torch import load_file
from small_run import train_small
from torch import Tensor, nn

from patchout.data.batches import Batch, ignore_signals
from patchout.training import loop, step
from patchout.training.run_folder import RunFolder
from patchout.training.signals import Stopped
from patchout.training.step import NonFiniteLossError, Place

NAN, INF = float("nan"), float("inf")
CPU = torch.device("cpu")


def batch_of(*clips: int, problems: tuple[str, ...] = (), remarks: tuple[str, ...] = ()) -> Batch:
    ones = torch.ones(len(clips), 1)
    return Batch(ones, ones, ones, torch.tensor(clips), problems, remarks)


class Line:
    """A job on one weight: the loss of step s is `slopes[s]` times the weight, so its gradient is that
    number.

    Two clips a step, four an epoch; every part of a step has clips 1 and 3.
    """

    def __init__(self, out: Path, slopes: Iterable[float], **changes: Any) -> None:
        self.slopes = list(slopes)
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.model.weight)
        self.validated: list[float] = []
        self.saved: dict[str, tuple[float, dict[str, float]]] = {}
        self.history: list[loop.Progress] = []
        self.problems: list[str] = []
        self.accelerator = loop.engine(CPU, out)
        out.mkdir(exist_ok=True)
        parts = changes.get("parts", 1)
        values: dict[str, Any] = {
            "model": self.model,
            "optimizer": torch.optim.SGD(
                [{"params": self.model.parameters(), "peak_lr": 1.0}], lr=1.0, fused=True
            ),
            "loss": lambda model, batch, place: self.slopes[place.step] * model(batch.wave).mean(),
            "rate": lambda step: 1.0,
            "batches": lambda first: [batch_of(1, 3)] * ((len(self.slopes) - first) * parts),
            "steps": len(self.slopes),
            "batch": 2,
            "epoch": 4,
            "clips": 4,
            "clip_name": "abcd".__getitem__,
            "save_model": self.save,
            "folder": RunFolder(out),
            "validate": lambda models: [self.validate(model) for model in models],
        }
        self.job = loop.Job(**(values | changes))

    def validate(self, model: nn.Module) -> dict[str, float]:
        assert not model.training
        self.validated.append(weight_of(model))
        return {"weight": weight_of(model), "depth": -weight_of(model)}

    def save(self, model: nn.Module, path: Path, scores: dict[str, float]) -> None:
        self.saved[path.name] = (weight_of(model), scores)
        path.write_text(str(weight_of(model)))

    @property
    def result(self) -> float:
        return self.saved["model.safetensors"][0]

    def run(self, stop_after: int | None = None) -> dict[str, float]:
        watch = self.watch(lambda now: raise_interrupted() if now.step == stop_after else None)
        return loop.run(self.job, self.accelerator, on_progress=watch, on_problem=self.problems.append)

    def watch(self, then: Callable[[loop.Progress], None]) -> Callable[[loop.Progress], None]:
        def progress(now: loop.Progress) -> None:
            self.history.append(now)
            then(now)

        return progress


def raise_interrupted() -> None:
    """What no part of the loop expects: as good as a kill."""
    raise InterruptedError


def weight_of(model: nn.Module) -> float:
    assert isinstance(model, nn.Linear)
    return model.weight.item()


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def state(out: Path) -> dict[str, Any]:
    return torch.load(out / "state.pt", weights_only=True)


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state after every step."""
    monkeypatch.setattr(loop, "FIRST_SAVE_S", -1.0)
    monkeypatch.setattr(loop, "SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(loop, "SAVING_SHARE", 0)


# -- steps ---------------------------------------------------------------------------------------------------


def test_every_step_moves_the_weight_by_rate_times_gradient(tmp_path: Path) -> None:
    line = Line(tmp_path, [1, 1, 1], rate=[1.0, 0.5, 0.25].__getitem__)
    line.run()
    assert line.result == -1.75


def test_a_group_has_its_own_peak_rate(tmp_path: Path) -> None:
    line = Line(tmp_path, [1, 1])
    line.job.optimizer.param_groups[0]["peak_lr"] = 0.25
    line.run()
    assert line.result == -0.5


def test_the_gradient_is_cut_to_the_longest_allowed(tmp_path: Path) -> None:
    line = Line(tmp_path, [8, 0.25], clip_norm=0.5)
    line.run()
    assert line.result == pytest.approx(-0.75, abs=1e-5)


def test_a_step_in_parts_is_the_mean_of_its_parts(tmp_path: Path) -> None:
    """Slopes 1 and 3 in the two parts of each step: -2 a step."""

    def loss(model: nn.Module, batch: Batch, place: Place) -> Tensor:
        return (1.0 + 2.0 * place.part) * model(batch.wave).mean()

    line = Line(tmp_path, [0, 0, 0], parts=2, batch=4, loss=loss)
    line.run()
    assert line.result == -6.0
    assert [entry["loss"] for entry in log(tmp_path)] == [0.0, -4.0, -8.0]


def test_a_loss_is_told_its_place(tmp_path: Path) -> None:
    places: list[Place] = []

    def loss(model: nn.Module, batch: Batch, place: Place) -> Tensor:
        places.append(place)
        return model(batch.wave).mean()

    Line(tmp_path, [0, 0], parts=2, batch=4, loss=loss).run()
    assert [tuple(place[:4]) for place in places] == [(0, 0, 0, 2), (0, 1, 0, 2), (1, 0, 0, 2), (1, 1, 0, 2)]
    assert places[0].gather(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]


def test_a_compiled_model_gives_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []

    def compile_model(call: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled.append(call.__self__)  # type: ignore[attr-defined]
        return original(call, backend="eager")

    original = torch.compile
    monkeypatch.setattr(torch, "compile", compile_model)
    line = Line(tmp_path, [1, 2, 3], compile=True)
    line.run()
    assert compiled == [line.model]
    assert line.result == -6.0


# -- progress and the log ------------------------------------------------------------------------------------


def test_progress_tells_the_step_and_at_the_end_of_an_epoch_the_mean_loss(tmp_path: Path) -> None:
    """The weight is 0, -1, -2, -3 before the steps: losses 0, -1 and -2, -3."""
    line = Line(tmp_path, [1, 1, 1, 1])
    line.run()
    told = [(now.step, now.steps, now.loss) for now in line.history]
    assert told == [(1, 4, None), (2, 4, -0.5), (3, 4, None), (4, 4, -2.5)]
    assert all(now.clips_per_s > 0 for now in line.history)
    assert line.history[-1].scores["weight"] == -4.0
    assert line.history[-2].scores == {}


def test_the_log_has_a_line_an_epoch(tmp_path: Path) -> None:
    Line(tmp_path, [1, 1, 1, 1, 1]).run()
    lines = log(tmp_path)
    assert [(line["step"], line["epoch"], line["loss"]) for line in lines] == [
        (2, 1, -0.5),
        (4, 2, -2.5),
        (5, 2.5, -4),
    ]
    assert "weight" not in lines[0]
    assert lines[-1]["weight"] == -5.0


@pytest.mark.parametrize(
    ("every", "validated"), [(0, [-8.0]), (1, [-2.0, -4.0, -6.0, -8.0]), (2, [-4.0, -8.0])]
)
def test_validation_comes_every_so_many_epochs_and_at_the_end(
    every: int, validated: list[float], tmp_path: Path
) -> None:
    line = Line(tmp_path, [1] * 8, evaluate_every=every)
    assert line.run()["weight"] == -8.0
    assert line.validated == validated


class Tracker(accelerate.tracking.GeneralTracker):  # type: ignore[misc]
    """Remembers what it is told."""

    name = "memory"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int | None, dict[str, float]]] = []
        self.finished = False

    tracker = None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        raise NotImplementedError

    def log(self, values: dict[str, float], step: int | None = None, **more: Any) -> None:
        self.told.append((step, values))

    def finish(self) -> None:
        self.finished = True


def test_trackers_are_told_what_the_log_says(tmp_path: Path) -> None:
    tracker, line = Tracker(), Line(tmp_path, [1, 1])
    line.accelerator.log_with = [tracker]
    line.run()
    assert [{"step": number, **told} for number, told in tracker.told] == log(tmp_path)
    assert tracker.finished


def test_a_tracker_that_is_not_installed_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "get_available_trackers", list)
    with pytest.raises(
        ValueError, match="no tracker wandb here: pip install one of tensorboard, trackio, wandb"
    ):
        loop.engine(CPU, tmp_path, trackers=("wandb",))


# -- averages, best, last ------------------------------------------------------------------------------------


def test_ema_is_a_running_mean_with_decay(tmp_path: Path) -> None:
    """-1; .5 * -1 + .5 * -2 = -1.5; .5 * -1.5 + .5 * -3 = -2.25."""
    line = Line(tmp_path, [1, 1, 1], ema=0.5, result="average")
    assert line.run() == {"weight": -2.25, "depth": 2.25}
    assert line.result == -2.25


def test_ema_begins_as_an_equal_mean(tmp_path: Path) -> None:
    """Of -1, -2 and -3, which a decay of .9 would leave at -1.29."""
    assert Line(tmp_path, [1, 1, 1], ema=0.9, result="average").run()["weight"] == pytest.approx(-2.0)


def test_swa_is_the_equal_mean_of_the_weights_before_its_steps(tmp_path: Path) -> None:
    """The weight is -1, -2 and -4 before steps 1, 2 and 4; a snapshot of step 6 would come after the run."""
    line = Line(tmp_path, [1] * 6, swa=frozenset({1, 2, 4, 6}), result="average")
    assert line.run()["weight"] == pytest.approx(-7 / 3)


def test_every_kind_of_weights_is_kept_with_its_own_scores(tmp_path: Path) -> None:
    """Slopes -1, -1, 1, 1: weight 1, 2, 1, 0; the best is 2 after the first epoch,
    the mean of 1 and 1 is 1.
    """
    options: dict[str, Any] = {"evaluate_every": 1, "metric": "weight", "swa": frozenset({1, 3})}
    line = Line(tmp_path, [-1, -1, 1, 1], **options, result="best")
    assert line.run() == {"weight": 2.0, "depth": -2.0}
    kept = {name: scores["weight"] for name, (_, scores) in line.saved.items()}
    assert kept == {"best.safetensors": 2.0, "last.safetensors": 0.0, "average.safetensors": 1.0}
    assert {name: weight for name, (weight, _) in line.saved.items()} == kept
    assert (tmp_path / "model.safetensors").read_text() == "2.0"
    assert log(tmp_path)[-1]["average_weight"] == 1.0


def test_the_last_weights_are_the_result_and_the_best_are_kept(tmp_path: Path) -> None:
    line = Line(tmp_path, [-1, -1, 1, 1], evaluate_every=1, metric="weight")
    assert line.run() == {"weight": 0.0, "depth": 0.0}
    assert {name: weight for name, (weight, _) in line.saved.items()} == {
        "best.safetensors": 2,
        "model.safetensors": 0,
    }


def test_the_best_can_be_chosen_among_averaged_weights(tmp_path: Path) -> None:
    """Averages 1.5 and .625 after the epochs: 1; 1, 2 -> 1.5; 1.5, 1 -> 1.25; 1.25, 0 -> .625."""
    line = Line(tmp_path, [-1, -1, 1, 1], evaluate_every=1, metric="average_weight", ema=0.5, result="best")
    assert line.run() == {"weight": 1.5, "depth": -1.5}
    assert (tmp_path / "model.safetensors").read_text() == "1.5"


def test_nothing_averaged_is_the_best_before_the_first_snapshot(tmp_path: Path) -> None:
    """The only snapshot is the weight 2 before step 2."""
    options: dict[str, Any] = {"metric": "average_weight", "swa": frozenset({2}), "result": "best"}
    line = Line(tmp_path, [-1, -1, 1, 1], evaluate_every=1, **options)
    assert line.run() == {"weight": 2.0, "depth": -2.0}
    assert ["average_weight" in entry for entry in log(tmp_path)] == [False, True]


def test_the_best_by_a_score_that_is_undefined_is_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = {"metric": "mAP", "validate": lambda models: [{"mAP": math.nan}]}
    with pytest.raises(ValueError, match="mAP is undefined, no class has a clip held out"):
        Line(tmp_path, [1], result="best", **options).run()
    assert math.isnan(Line(tmp_path, [1], **options).run()["mAP"])
    assert log(tmp_path)[-1]["mAP"] is None


def test_an_unknown_metric_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no score 'mAP' to choose the best by: there are weight, depth"):
        Line(tmp_path, [1], metric="mAP").run()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"result": "average"}, "no weights are averaged within 2 steps"),
        ({"result": "average", "swa": frozenset({2})}, "no weights are averaged within 2 steps"),
        ({"result": "best", "metric": "average_mAP"}, "no weights are averaged within 2 steps"),
        ({"result": "best"}, "needs a metric"),
        ({"precision": "fp16"}, "fp16 needs the loss scaling"),
    ],
)
def test_what_contradicts_itself_is_refused(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Line(tmp_path, [1, 1], **wrong).run()


# -- not finite, not readable --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [NAN, INF])
@pytest.mark.parametrize("at", [0, 2, 3])
def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_clips(
    at: int, bad: float, tmp_path: Path
) -> None:
    line = Line(tmp_path, [1.0] * 4)
    line.slopes[at] = bad
    with pytest.raises(NonFiniteLossError, match=rf"step {at}: lower the learning rate, or look at b, d$"):
        line.run()
    assert weight_of(line.model) in (-at, -at - 1)  # the step after it may be done, the bad one is not
    assert line.saved == {}


def test_only_the_clips_of_the_bad_part_are_named(tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: Batch, place: Place) -> Tensor:
        return model(batch.wave).mean() * (NAN if place.part else 1.0)

    line = Line(tmp_path, [1.0], parts=2, batch=4, loss=loss)
    line.job.batches = lambda first: [batch_of(0, 1), batch_of(2, 3)]
    with pytest.raises(NonFiniteLossError, match=r"look at c, d$"):
        line.run()


@pytest.mark.usefixtures("save_always")
def test_no_state_hides_a_bad_step_from_the_next_call(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(NonFiniteLossError, match="step 2"):
            Line(tmp_path, [1.0, 1.0, NAN, 1.0]).run()
    assert state(tmp_path)["step"] == 2


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path: Path) -> None:
    """The square root of zero is a finite loss with an infinite slope."""
    line = Line(tmp_path, [1.0, 1.0], loss=lambda model, batch, place: model(batch.wave).abs().sqrt().mean())
    with pytest.raises(NonFiniteLossError, match="step 0"):
        line.run()
    assert weight_of(line.model) == 0.0


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss scaling of fp16, without fp16: powers of two change no bit."""
    monkeypatch.setattr(step, "pick_precision", lambda name, device: "fp16")


@pytest.mark.usefixtures("scaled")
def test_loss_scaling_changes_nothing_but_skips_what_overflows(tmp_path: Path) -> None:
    """2 to the 120 is finite, times a scale of 2 to the 16 it is not."""
    line = Line(tmp_path, [1, 2.0**120, 2, 3])
    line.run()
    assert line.result == -6.0
    assert state(tmp_path)["scaler"]["scale"] == 2.0**15


@pytest.mark.usefixtures("scaled")
def test_gradients_that_overflow_at_any_scale_stop_the_run(tmp_path: Path) -> None:
    line = Line(tmp_path, [1.0] * 40, loss=lambda model, batch, place: model(batch.wave).abs().sqrt().mean())
    with pytest.raises(NonFiniteLossError, match="step 24"):
        line.run()


def test_an_unreadable_clip_is_told_once(tmp_path: Path) -> None:
    line = Line(tmp_path, [1] * 4, clips=100)
    line.job.batches = lambda first: [batch_of(0, 1, problems=("dog.wav: broken",))] * 4
    line.run()
    assert line.problems == ["dog.wav: broken"]


def test_what_is_missing_in_clips_is_told_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "MAX_REMARKS", 2)
    line = Line(tmp_path, [1] * 4, clips=4)
    line.job.batches = lambda first: [
        batch_of(0, 1, remarks=("0: cut", f"{number}: cut")) for number in range(4)
    ]
    line.run()
    assert line.problems == ["0: cut", "1: cut", "more such clips: `patchout prepare` names them all"]


@pytest.mark.parametrize(("clips", "allowed"), [(4, 1), (9, 2), (199, 10), (1200, 12)])
def test_too_many_unreadable_clips_stop_the_run(clips: int, allowed: int, tmp_path: Path) -> None:
    line = Line(tmp_path, [1] * 20, clips=clips)
    broken = [f"{number:02}.wav: broken" for number in range(20)]
    line.job.batches = lambda first: [batch_of(0, 1, problems=(text,)) for text in broken]
    message = (
        rf"{allowed + 1} of {clips} clips cannot be read, more than 1% or a few: "
        r"repair them, .* \(00.wav: broken"
    )
    with pytest.raises(step.UnreadableClipsError, match=message):
        line.run()
    assert line.problems == broken[: allowed + 1]


# -- stop and resume -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("save_always")
@pytest.mark.parametrize("stop_after", [1, 3, 4])
@pytest.mark.parametrize("average", [{}, {"ema": 0.5}, {"swa": frozenset({1, 3, 4})}])
def test_a_killed_run_goes_on_where_it_stood(
    average: dict[str, Any], stop_after: int, tmp_path: Path
) -> None:
    slopes = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    whole, first, second = (Line(tmp_path / name, slopes, **average) for name in ("whole", "parts", "parts"))
    whole.run()
    with pytest.raises(InterruptedError):
        first.run(stop_after=stop_after)
    second.run()
    assert [now.step for now in second.history] == list(range(stop_after + 1, 7))
    assert second.saved == whole.saved
    losses = [[(line["step"], line["loss"]) for line in log(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


def test_steps_after_the_last_state_are_done_and_logged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FIRST_SAVE_S", -1.0)
    with pytest.raises(InterruptedError):
        Line(tmp_path, [1] * 6).run(stop_after=5)
    assert state(tmp_path)["step"] == 1
    assert [line["step"] for line in log(tmp_path)] == [2, 4]
    last = Line(tmp_path, [1] * 6)
    last.run()
    assert [now.step for now in last.history] == [2, 3, 4, 5, 6]
    assert [line["step"] for line in log(tmp_path)] == [2, 4, 6]


def test_a_run_without_a_state_begins_its_log_anew(tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        Line(tmp_path, [1] * 4).run(stop_after=3)
    Line(tmp_path, [1] * 4).run()
    assert [line["step"] for line in log(tmp_path)] == [2, 4]


def test_a_finished_run_keeps_its_result_and_scores(tmp_path: Path) -> None:
    Line(tmp_path, [1] * 4).run()
    again = Line(tmp_path, [1] * 4)
    assert again.run()["weight"] == -4.0
    assert (again.result, again.history, again.validated) == (-4.0, [], [])


def test_a_run_that_stops_in_a_validation_does_it_again(tmp_path: Path) -> None:
    """SIGTERM does not wait for a long validation; the line of that epoch comes from the next call."""

    def validate(models: Sequence[nn.Module]) -> list[dict[str, float]]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("not reached")

    first = Line(tmp_path, [1] * 4, evaluate_every=1, validate=validate)
    with pytest.raises(Stopped):
        first.run()
    assert state(tmp_path)["step"] == 2
    assert not (tmp_path / "metrics.jsonl").exists()
    with pytest.raises(Stopped):  # again, in the validation of the last step
        Line(
            tmp_path,
            [1] * 4,
            evaluate_every=1,
            validate=lambda models: [{"weight": -2.0}] if weight_of(models[0]) > -4 else validate(models),
        ).run()
    for _ in range(2):
        last = Line(tmp_path, [1] * 4, evaluate_every=1)
        assert last.run()["weight"] == -4.0
    assert last.validated == []
    assert [(line["step"], line["loss"], line["weight"]) for line in log(tmp_path)] == [
        (2, -0.5, -2),
        (4, -2.5, -4),
    ]


@pytest.mark.parametrize(
    ("number", "raised"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_in_a_step_saves_after_it(number: int, raised: type[BaseException], tmp_path: Path) -> None:
    def loss(model: nn.Module, batch: Batch, place: Place) -> Tensor:
        if place.step == 1:
            os.kill(os.getpid(), number)
        return model(batch.wave).mean()

    before = signal.getsignal(number)
    with pytest.raises(raised):
        Line(tmp_path, [1] * 4, loss=loss).run()
    assert state(tmp_path)["step"] == 2
    assert state(tmp_path)["model"]["weight"].item() == -2.0
    assert signal.getsignal(number) is before


def test_a_signal_does_not_wait_for_the_next_batch(tmp_path: Path) -> None:
    def batches(first: int) -> Iterator[Batch]:
        yield batch_of(1, 3)
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("not reached")

    with pytest.raises(Stopped):
        Line(tmp_path, [1] * 4, batches=batches).run()
    assert state(tmp_path)["step"] == 1


def test_a_loaders_worker_leaves_signals_to_its_parent() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ignore_signals(0)
        for number in before:
            os.kill(os.getpid(), number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_first_state_comes_after_seconds_then_one_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    saved: list[float] = []
    monkeypatch.setattr("patchout.training.loop.time.monotonic", lambda: now[0])
    monkeypatch.setattr(RunFolder, "save_state", lambda folder, state: saved.append(now[0]))

    def loss(model: nn.Module, batch: Batch, place: Place) -> Tensor:
        now[0] += 3.0
        return model(batch.wave).mean()

    Line(tmp_path, [1] * 60, loss=loss).run()
    assert saved == [6.0, 69.0, 132.0, 180.0]


def test_weights_that_do_not_fit_say_what_to_do(tmp_path: Path) -> None:
    Line(tmp_path, [1]).run()
    other = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="do not fit this config: undo the change or --restart"):
        Line(tmp_path, [1], model=other).run()


def test_a_full_disk_stops_the_run_and_keeps_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FIRST_SAVE_S", -1.0)
    with pytest.raises(InterruptedError):
        Line(tmp_path, [1] * 4).run(stop_after=1)

    def no_room(state: object, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", no_room)
        with pytest.raises(OSError, match=r"No space left on device.*make room"):
            Line(tmp_path, [1] * 4).run()
    assert {path.name for path in tmp_path.iterdir()} - {"tensorboard"} == {"metrics.jsonl", "state.pt"}
    assert state(tmp_path)["step"] == 1
    last = Line(tmp_path, [1] * 4)
    last.run()
    assert last.result == -4.0


# -- processes -----------------------------------------------------------------------------------------------


def torchrun(out: Path, **options: str) -> "subprocess.Popen[str]":
    """The small run in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [small_run.__file__, str(out), *(f"{name}={value}" for name, value in options.items())]
    env = os.environ | {"ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(path: Path) -> None:
    for _ in range(1200):
        if path.exists():
            return
        time.sleep(0.05)
    raise TimeoutError(path)


@pytest.mark.slow
def test_two_processes_train_as_one(ranks: Ranks, tmp_path: Path) -> None:
    for world in (1, 2):
        ranks.run(train_small, tmp_path / f"world{world}", "parts=2", world=world)
    one, two = (log(tmp_path / f"world{world}") for world in (1, 2))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=1e-6)
    texts = [(tmp_path / f"world2.{rank}").read_text().splitlines() for rank in (0, 1)]
    keys = [tuple(key) for lines in texts for line in lines for key in json.loads(line)]
    assert sorted(keys) == [(epoch, clip) for epoch in range(12) for clip in range(10)]  # each once an epoch


@pytest.mark.slow
def test_a_killed_process_continues_to_the_bits_of_a_whole_run(ranks: Ranks, tmp_path: Path) -> None:
    options = ("parts=2", "ema=0.9", "result=average")
    ranks.run(train_small, tmp_path / "whole", *options, world=1)
    ranks.start(train_small, tmp_path / "killed", *options, "pause_s=0.05", world=1)
    wait_for(tmp_path / "killed" / "state.pt")
    time.sleep(0.5)
    ranks.signal(signal.SIGKILL)
    assert ranks.end() == [-signal.SIGKILL]
    assert 0 < state(tmp_path / "killed")["step"] < 30
    ranks.run(train_small, tmp_path / "killed", *options, world=1)
    whole, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    losses = [[line["loss"] for line in log(tmp_path / name)] for name in ("whole", "killed")]
    assert losses[0] == losses[1]


def steps_saved(run: Path) -> int:
    """Steps of the saved state; nothing that was trained on is lost."""
    stopped: int = state(run)["step"]
    taken = {len(path.read_text().splitlines()) for path in run.parent.glob("run.[01]")}
    assert taken <= {stopped, stopped + 1}
    return stopped


@pytest.mark.slow
def test_sigterm_saves_and_exits_within_seconds(ranks: Ranks, tmp_path: Path) -> None:
    ranks.start(train_small, tmp_path / "run", "pause_s=0.1", world=1)
    wait_for(tmp_path / "run" / "state.pt")
    ranks.signal(signal.SIGTERM)
    assert ranks.end() == [0]
    assert 0 < steps_saved(tmp_path / "run") < 30


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_the_processes_go_on(ranks: Ranks, tmp_path: Path) -> None:
    process = torchrun(tmp_path / "run", pause_s="0.1")
    wait_for(tmp_path / "run" / "state.pt")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)  # torchrun has an exit code of its own for it
    assert 0 < steps_saved(tmp_path / "run") < 30
    ranks.run(train_small, tmp_path / "run")
    assert log(tmp_path / "run")[-1]["step"] == 30

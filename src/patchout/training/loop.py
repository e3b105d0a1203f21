"""The training loop: steps, log, validation, saved state, averaged weights; on one process or several."""

import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

from patchout.data.batches import Batch
from patchout.files import write_aside
from patchout.training import optim
from patchout.training.run_folder import RunFolder
from patchout.training.signals import Signals, Stopped, stop_by
from patchout.training.step import Stepper, Work

Result = TypeVar("Result")
SAVE_EVERY_S = 60.0
FIRST_SAVE_S = 5.0  # a run that is stopped in its first minute has something to go on from
SAVING_SHARE = 20  # a slow disk gets no more than one part in so many of the time
AVERAGE = "average_"  # begins the names of the averaged weights' scores


class Progress(NamedTuple):
    """Progress of a run, after a step."""

    step: int  # steps done
    steps: int
    clips_per_s: float
    loss: float | None  # mean over the epoch that this step ended, None within an epoch
    scores: dict[str, float]  # of the validation after this step


@dataclass(kw_only=True)
class Job(Work):
    """One training job; its randomness is keyed by step: a step depends on nothing but its number."""

    batches: Callable[[int], Iterable[Batch]]  # first step -> this process's batches from it on, a part each
    steps: int
    epoch: int  # clips an epoch
    folder: RunFolder
    save_model: Callable[[nn.Module, Path, dict[str, float]], None]  # with the scores of these weights
    validate: Callable[[Sequence[nn.Module]], list[dict[str, float]]]  # on all processes, the main's counts
    evaluate_every: int = 0  # epochs between validations; 0: after the last step alone
    metric: str = ""  # the highest chooses best.safetensors; average_NAME: of the averaged weights
    result: Literal["last", "best", "average"] = "last"  # what model.safetensors holds
    ema: float = 0.0  # decay a step of averaged weights; 0: none
    swa: set[int] | frozenset[int] = frozenset()  # steps before which the weights enter an equal average
    teacher: optim.Teacher | None = None  # averaged weights that the loss asks; then no ema and swa
    tokens: int = 0  # that a clip has in a step, for the log

    def __post_init__(self) -> None:
        """Refuse what shows only once clips and steps are counted."""
        averaged = self.result == "average" or self.metric.startswith(AVERAGE)
        if averaged and not self.ema and min(self.swa, default=self.steps) >= self.steps:
            raise ValueError(f"no weights are averaged within {self.steps} steps: set ema or swa")
        if self.result == "best" and not self.metric:
            raise ValueError("result best needs a metric to choose by")


def engine(device: torch.device, out: Path, *, trackers: Sequence[str] = ()) -> Accelerator:
    """Accelerate for one process on `device`, or for those that torchrun started, with experiment trackers.

    TensorBoard is one of them wherever it is installed; one that is not installed is a ValueError.
    """
    installed = {tracker.value for tracker in get_available_trackers()}
    if missing := [name for name in trackers if name not in installed]:
        todo = "pip install one of tensorboard, trackio, wandb, or leave it out"
        raise ValueError(f"no tracker {missing[0]} here: {todo}")
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",  # the loss casts: log-mels stay float32
        log_with=sorted({*trackers, *installed & {"tensorboard"}}) or None,
        project_dir=out / "tensorboard",
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=timedelta(hours=2)),  # the others may wait for a long validation
        ],
    )


def agreed(action: Callable[[], Result]) -> Result:
    """The result of `action` on this process; a ValueError or OSError of any process is raised on all.

    Without it, the others would wait for the one that failed. Of several errors the first process's counts.
    """
    result = error = None
    try:
        result = action()
    except (ValueError, OSError) as failure:
        error = failure
    if first := next(filter(None, gather_object([error])), None):
        raise first
    return cast(Result, result)


def run(
    job: Job,
    accelerator: Accelerator,
    *,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_problem: Callable[[str], None] = lambda problem: None,
) -> dict[str, float]:
    """Train from the state in the run folder to the last step; returns the scores of model.safetensors.

    Writes metrics.jsonl (a line an epoch), state.pt (about once a minute), best.safetensors and, at the end,
    model.safetensors; each clip that cannot be read goes to `on_problem` once. SIGTERM raises Stopped and
    Ctrl-C KeyboardInterrupt, both after saving. Raises NonFiniteLossError naming step and clips,
    UnreadableClipsError, and OSError where the disk is full.
    """
    with Signals() as signals:
        trainer = _Trainer(job, accelerator, signals, on_problem)
        trainer.resume()
        accelerator.init_trackers("patchout", init_kwargs={"tensorboard": {"purge_step": trainer.logged + 1}})
        try:
            trainer.train(on_progress if accelerator.is_main_process else lambda progress: None)
            return trainer.finish()
        except (Stopped, KeyboardInterrupt):
            if signals.safe:
                signals.safe = False
                trainer.save()
            raise
        except RuntimeError:  # of a step that waited for a process that is gone
            if signals.caught and accelerator.num_processes > 1:
                raise stop_by(signals.caught) from None
            raise
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()


class _Trainer:
    """The training state: model, optimizer, averaged weights, scores."""

    def __init__(self, job: Job, world: Accelerator, signals: Signals, tell: Callable[[str], None]) -> None:
        self.job, self.accelerator, self.signals = job, world, signals
        self.average = job.teacher or (optim.Average(job.model, job.ema) if job.ema or job.swa else None)
        self.stepper = Stepper(job, world, tell)
        self.logged = 0  # step of the last line of the log
        self.scores: dict[str, float] = {}  # of the last validation
        self.best: dict[str, Any] = {}  # score, and all scores of the same weights
        self.line_at, self.line_step = time.monotonic(), 0
        self.save_at = time.monotonic() + FIRST_SAVE_S

    def train(self, on_progress: Callable[[Progress], None]) -> None:
        """Take the remaining steps; save now and then, and when asked to stop."""
        job, signals, stepper = self.job, self.signals, self.stepper
        alone = self.accelerator.num_processes == 1
        if self._end_epoch() is not None:  # the call before was stopped in a validation
            self.save()
        started, first, batches = time.monotonic(), stepper.step, iter(job.batches(stepper.step))
        while stepper.step < job.steps:
            signals.safe = alone  # of several, all stop after the same step
            parts = list(islice(batches, job.parts))
            signals.safe = False
            if self.average and stepper.step in job.swa:
                self.average.update(job.model)
            stepper.train(parts, self._request())
            if self.average and (job.ema or job.teacher):
                self.average.update(job.model)
            loss = self._end_epoch()
            request = self._request() if alone else stepper.request
            if request > 1:
                signals.safe = True
                raise stop_by(request)
            if request or stepper.step == job.steps:
                self.save()
            rate = (stepper.step - first) * job.batch / (time.monotonic() - started)
            on_progress(Progress(stepper.step, job.steps, rate, loss, {} if loss is None else self.scores))
        signals.safe = True

    def _request(self) -> int:
        """What this process asks of all: to stop (the signal's number), to save (1), nothing (0)."""
        return self.signals.caught or (self.accelerator.is_main_process and time.monotonic() > self.save_at)

    def _end_epoch(self) -> float | None:
        """The mean loss of an epoch that has just ended, logged, after a validation if one is due."""
        job, step = self.job, self.stepper.step
        epoch, before = (steps * job.batch // job.epoch for steps in (step, step - 1))
        last = step == job.steps
        if step == self.logged or not (last or epoch > before):
            return None
        self.stepper.check()
        loss = sum(self.stepper.losses) / len(self.stepper.losses)
        due = last or (job.evaluate_every and epoch % job.evaluate_every == 0)
        self.scores = self._validate() if due else {}
        self._log(loss)
        return loss

    def _validate(self) -> dict[str, float]:
        """Validation scores of the weights and of the averaged ones; the best weights so far are saved."""
        job, self.signals.safe = self.job, True
        average = [self.average.model.eval()] if self.average and self.average.count else []
        with torch.compiler.set_stance("force_eager") if job.compile else nullcontext():  # shapes vary
            trained, *averaged = job.validate([job.model.eval(), *average])
        scores = trained | {AVERAGE + name: score for part in averaged for name, score in part.items()}
        job.model.train()
        self.signals.safe = False
        scores = broadcast_object_list([scores])[0]
        by_average = job.metric.startswith(AVERAGE)
        if not job.metric or (by_average and self.average and not average):
            return scores
        if job.metric not in scores:
            names = ", ".join(scores) or "none"
            raise ValueError(f"no score {job.metric!r} to choose the best by: there are {names}")
        score = scores[job.metric]
        if job.result == "best" and math.isnan(score):
            todo = "hold out others, or report last"
            raise ValueError(f"{job.metric} is undefined, no class has a clip held out: {todo}")
        if score > self.best.get("score", -math.inf):
            self.best = {"score": score, "scores": self._save_model("best", scores, averaged=by_average)}
            self.save_at = 0.0  # its file is there already
        return scores

    def _log(self, loss: float) -> None:
        """Append a line to metrics.jsonl, and to the trackers."""
        job, step, now = self.job, self.stepper.step, time.monotonic()
        rate = (step - self.line_step) * job.batch / (now - self.line_at)
        line = {
            "epoch": round(step * job.batch / job.epoch, 3),
            "seconds": round(now - self.line_at, 3),
            "clips_per_s": round(rate, 2),
            "tokens_per_s": round(rate * job.tokens),
            "loss": loss,
            "lr": max(group["lr"] for group in job.optimizer.param_groups),
            **self.scores,
        }
        if self.accelerator.is_main_process:
            job.folder.log({"step": step, **line})
        self.accelerator.log(line, step=step)
        self.line_at, self.line_step, self.logged = now, step, step
        self.stepper.losses.clear()

    def _save_model(self, name: str, scores: dict[str, float], *, averaged: bool) -> dict[str, float]:
        """Write the weights or the averaged ones as NAME.safetensors; returns their part of the scores."""
        names = [name for name in scores if name.startswith(AVERAGE) == averaged]
        model_scores = {name.removeprefix(AVERAGE): scores[name] for name in names}
        if self.accelerator.is_main_process:
            model = self.average.model if averaged and self.average else self.job.model
            self.job.save_model(model, self.job.folder.path / f"{name}.safetensors", model_scores)
        return model_scores

    def finish(self) -> dict[str, float]:
        """Write the last and the averaged model, the one that the run reports as model.safetensors."""
        job, scores = self.job, {"best": self.best.get("scores", {})}
        for kind in ("last", "average") if self.average and self.average.count else ("last",):
            name = "model" if kind == job.result else kind
            scores[kind] = self._save_model(name, self.scores, averaged=kind == "average")
        if job.result == "best" and self.accelerator.is_main_process:
            with write_aside(job.folder.path / "model.safetensors") as aside:
                shutil.copyfile(job.folder.path / "best.safetensors", aside)
        return scores[job.result]

    def save(self) -> None:
        """Write the training state, one file of plain tensors and numbers."""
        job, stepper, started = self.job, self.stepper, time.monotonic()
        stepper.check()  # a state saved past a bad step would hide it from the next call
        stepper.request = 0
        if not self.accelerator.is_main_process:
            return
        state = {name: getattr(self, name) for name in ("logged", "scores", "best")}
        state |= {"step": stepper.step, "losses": stepper.losses, "scaler": stepper.scaler.state_dict()}
        state |= {"model": job.model.state_dict(), "optimizer": optim.named_state(job.model, job.optimizer)}
        if self.average:
            state["average"] = {"count": self.average.count, "model": self.average.model.state_dict()}
        job.folder.save_state(state)
        self.save_at = time.monotonic() + max(SAVE_EVERY_S, SAVING_SHARE * (time.monotonic() - started))

    def resume(self) -> None:
        """Resume from state.pt where there is one; log lines of steps that are done again are dropped."""
        job, stepper = self.job, self.stepper
        self.accelerator.wait_for_everyone()  # the main process may have moved an old run aside
        job.model.train()
        if state := job.folder.load_state(stepper.device):
            self.logged, self.scores, self.best = (state[name] for name in ("logged", "scores", "best"))
            stepper.step, stepper.losses = state["step"], state["losses"]
            try:
                job.model.load_state_dict(state["model"])
            except RuntimeError:
                todo = "undo the change or --restart"
                raise ValueError(f"{job.folder.path}: its weights do not fit this config: {todo}") from None
            optim.load_named_state(job.model, job.optimizer, state["optimizer"])
            if stepper.scaler.is_enabled() and state["scaler"]:
                stepper.scaler.load_state_dict(state["scaler"])
            if self.average and "average" in state:
                self.average.count = state["average"]["count"]
                self.average.model.load_state_dict(state["average"]["model"])
        self.line_step = stepper.step
        if self.accelerator.is_main_process:
            job.folder.drop_lines_after(self.logged)

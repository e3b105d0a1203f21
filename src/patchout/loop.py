"""THE training loop: accelerate, log, evaluate, save, resume, average."""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from patchout.checkpoint import UNREADABLE
from patchout.data import Batch
from patchout.errors import InputError
from patchout.files import write_aside

SAVE_EVERY_S = 60.0


class NonFiniteLossError(InputError):
    """A loss that is NaN or infinite; it never reached the weights."""


class Progress(NamedTuple):
    """Where a run is, after a step."""

    step: int  # steps done
    steps: int
    clips_per_s: float
    loss: float | None  # mean over the epoch that this step ended, None within an epoch
    scores: dict[str, float]  # of the validation after this step


@dataclass(kw_only=True)
class Job:
    """Everything one run needs; its randomness is keyed by step: a step depends on nothing but its number."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[nn.Module, Batch, int], Tensor]  # model, batch on its device, step -> scalar
    rate: Callable[[int], float]  # step -> factor of the peak learning rate
    batches: Callable[[int], Iterable[Batch]]  # first step -> the batches from there on
    steps: int
    clip_names: Sequence[str]  # of one epoch, by clip number
    batch: int
    ema: float  # decay of the averaged weights a step; 0: none, the last weights count
    clip_norm: float  # longest gradient; 0: any
    validate: Callable[[nn.Module], dict[str, float]]
    evaluate_every: int  # epochs between validations; 0: after the last step alone
    save_model: Callable[[nn.Module, Path], None]
    out: Path


def run(
    job: Job, accelerator: Accelerator, *, on_progress: Callable[[Progress], None] | None = None
) -> dict[str, float]:
    """Train from where `job.out` stands to the last step; returns the last scores.

    Writes `metrics.jsonl` (a line an epoch), `state.pt` (about once a minute) and, at the end, `model.safetensors`.
    Raises NonFiniteLossError naming the step and its clips.
    """
    trainer = _Trainer(job, accelerator)
    trainer.resume()
    started, first, losses = time.monotonic(), trainer.step, []
    saved = started
    scores = trainer.validate(last=True) if trainer.step == job.steps else {}
    for batch in job.batches(trainer.step):
        losses.append(trainer.train_step(batch))
        epoch_ends = trainer.step * job.batch // len(job.clip_names) > (trainer.step - 1) * job.batch // len(
            job.clip_names
        )
        last = trainer.step == job.steps
        loss = None
        if epoch_ends or last:
            trainer.check()
            loss = float(torch.stack(losses).mean())
            scores = trainer.validate(last=last)
            trainer.log(loss, scores)
            losses = []
        if last or time.monotonic() - saved > SAVE_EVERY_S:
            trainer.save()
            saved = time.monotonic()
        if on_progress:
            rate = (trainer.step - first) * job.batch / (time.monotonic() - started)
            on_progress(Progress(trainer.step, job.steps, rate, loss, scores))
    job.save_model(trainer.result, job.out / "model.safetensors")
    return scores


class _Trainer:
    """The state of a run: step, model, optimizer, average."""

    def __init__(self, job: Job, accelerator: Accelerator) -> None:
        self.job = job
        self.accelerator = accelerator
        self.step = 0
        self.model = accelerator.prepare_model(job.model)
        ema = get_ema_multi_avg_fn(job.ema)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(job.model, multi_avg_fn=ema) if job.ema else None
        self._logged_at, self._logged_step = time.monotonic(), 0
        self._pending: tuple[int, Tensor, Tensor] | None = None  # the last step, whether its loss was finite, its clips

    @property
    def result(self) -> nn.Module:
        """The weights that count: averaged where there is an average."""
        return self.average.module if self.average else self.accelerator.unwrap_model(self.model)

    def train_step(self, batch: Batch) -> Tensor:
        """One step; a loss or gradient that is not finite skips the update on the device, reported one step later."""
        job, optimizer = self.job, self.job.optimizer
        wave, target, clip = batch
        device = self.accelerator.device
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * job.rate(self.step)
        self.model.train()
        loss = job.loss(
            self.model, (wave.to(device, non_blocking=True), target.to(device, non_blocking=True), clip), self.step
        )
        self.accelerator.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), job.clip_norm or math.inf)
        finite = torch.isfinite(loss.detach()) & torch.isfinite(norm)
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # the fused step's own guard
        optimizer.step()
        optimizer.zero_grad()
        if self.average:
            self.average.update_parameters(self.accelerator.unwrap_model(self.model))
        self.check()
        self._pending = (self.step, finite, clip)
        self.step += 1
        return loss.detach().float()

    def check(self) -> None:
        """Stop if the step before had no finite loss; asking one step late keeps the device busy."""
        if self._pending is not None and not bool(self._pending[1]):
            step, _, clips = self._pending
            names = ", ".join(self.job.clip_names[clip] for clip in clips.tolist())
            raise NonFiniteLossError(f"loss is not finite at step {step}: lower the learning rate, or look at {names}")

    def validate(self, *, last: bool) -> dict[str, float]:
        """Scores of the weights that count, when it is time for them."""
        epoch = self.step * self.job.batch // len(self.job.clip_names)
        if last or (self.job.evaluate_every and epoch % self.job.evaluate_every == 0):
            return self.job.validate(self.result.eval())
        return {}

    def log(self, loss: float, scores: dict[str, float]) -> None:
        """One line of metrics.jsonl: what happened since the line before."""
        now = time.monotonic()
        line = {
            "step": self.step,
            "epoch": round(self.step * self.job.batch / len(self.job.clip_names), 3),
            "seconds": round(now - self._logged_at, 3),
            "clips_per_s": round((self.step - self._logged_step) * self.job.batch / (now - self._logged_at), 2),
            "loss": loss,
            **scores,
        }
        self._logged_at, self._logged_step = now, self.step
        if self.accelerator.is_main_process:
            with (self.job.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Write everything that a later call needs to go on: one file of plain tensors and numbers."""
        self.check()  # a state saved past a bad step would hide it from the next call
        state: dict[str, Any] = {
            "step": self.step,
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            "optimizer": self.job.optimizer.state_dict(),
        }
        if self.average:
            state["average"] = self.average.state_dict()
        if self.accelerator.is_main_process:
            with write_aside(self.job.out / "state.pt") as aside:
                torch.save(state, aside)

    def resume(self) -> None:
        """Continue from `state.pt` where there is one; log lines of steps that are done again are dropped."""
        path, log = self.job.out / "state.pt", self.job.out / "metrics.jsonl"
        if not path.exists():
            log.unlink(missing_ok=True)
            return
        try:
            state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
        except UNREADABLE as error:
            raise InputError(f"{path}: damaged ({type(error).__name__}): delete it to begin the run anew") from None
        self.step = self._logged_step = state["step"]
        self.accelerator.unwrap_model(self.model).load_state_dict(state["model"])
        self.job.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        if log.exists():
            lines = log.read_text(encoding="utf-8").splitlines()
            with write_aside(log) as aside:
                kept = (f"{line}\n" for line in lines if json.loads(line)["step"] <= self.step)
                aside.write_text("".join(kept), encoding="utf-8")

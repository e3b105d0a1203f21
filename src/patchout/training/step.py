"""One training step: forward, backward, update; what it left on the device is read one step late."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from patchout.data.batches import Batch, share
from patchout.errors import InputError
from patchout.models.device import HostCopy, Precision, Upload, pick_precision
from patchout.models.transformer import compile_transformer

MAX_UNREADABLE = 0.01  # share of the clips, of a small set up to FEW_UNREADABLE or a quarter
FEW_UNREADABLE = 10
MAX_REMARKS = 100  # on clips that can be read: of a set of films each has one
MAX_SKIPPED = 24  # steps in a row that fp16 may skip while it finds its loss scale: from 2^16 down to 2^-8


class NonFiniteLossError(InputError):
    """A loss that is NaN or infinite; it never reached the weights."""


class UnreadableClipsError(InputError):
    """More clips cannot be read than a run tolerates."""


class Place(NamedTuple):
    """Step, part and share of the clips that a process computes: the key of everything random in the loss."""

    step: int
    part: int  # of gradient accumulation
    first: int  # place of this process's first clip within the part
    total: int  # clips of the part, over all processes
    gather: Callable[[Tensor], Tensor]  # the processes' rows, one a clip, one after the other


@dataclass(kw_only=True)
class Work:
    """Model, loss and optimizer of a training step."""

    model: nn.Module  # on the device it is trained on
    optimizer: torch.optim.Optimizer  # fused; every group has its `peak_lr`
    loss: Callable[[nn.Module, Batch, Place], Tensor]  # model, batch on its device -> mean over the batch
    rate: Callable[[int], float]  # step -> factor of the peak learning rate
    batch: int  # clips a step, over all parts and processes
    clips: int  # in the data set
    clip_name: Callable[[int], str]  # by clip number
    parts: int = 1  # gradient accumulation: parts of a step's batch, one after the other
    precision: Precision = "fp32"  # in which `loss` runs the model; fp16 has its gradients scaled
    compile: bool = False
    clip_norm: float = 0.0  # longest gradient; 0: any


class _Pending(NamedTuple):
    """Results of a step that are still on the device, and what a message about them needs."""

    step: int
    results: HostCopy  # (process, a loss a part + gradient norm + new messages + request)
    clips: list[Tensor]  # of each part
    messages: list[tuple[str, bool]]  # new ones on clips, and whether these could not be read


class Stepper:
    """Optimizer steps with gradient accumulation and loss scaling, alike on one process and on many."""

    def __init__(self, work: Work, accelerator: Accelerator, on_problem: Callable[[str], None]) -> None:
        self.work, self.accelerator, self.on_problem = work, accelerator, on_problem
        self.device = next(work.model.parameters()).device
        self._upload = Upload(self.device)
        if work.compile:
            compile_transformer(work.model)
        self._model = accelerator.prepare_model(work.model, device_placement=False)
        is_fp16 = pick_precision(work.precision, self.device) == "fp16"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=is_fp16)
        self.step = 0  # steps done
        self.losses: list[float] = []  # of the steps that were read, for whoever empties it
        self.request = 0  # the greatest of any process at the last step that was read
        self._skipped = 0  # steps in a row without a finite gradient
        self._messages: dict[str, bool] = {}  # so far -> whether the clip could not be read
        self._remarks = 0  # messages on clips that could be read
        self._pending: _Pending | None = None

    def train(self, parts: list[Batch], request: int) -> None:
        """One step; a loss or gradient that is not finite skips the update, and raises in the next step.

        `request` is a small number of this process; the greatest one reaches all.
        """
        work, optimizer = self.work, self.work.optimizer
        assert len(parts) == work.parts, "the loader ended before the run"
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * work.rate(self.step)
        losses = [self._backward(batch, part) for part, batch in enumerate(parts)]
        self.scaler.unscale_(optimizer)
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm([p.grad for p in trained])
        if work.clip_norm:
            clip_grads_with_norm_(trained, work.clip_norm, norm)
        remarks = dict.fromkeys((text for batch in parts for text in batch.remarks), False)
        remarks |= dict.fromkeys((text for batch in parts for text in batch.problems), True)
        messages = [(text, is_lost) for text, is_lost in remarks.items() if text not in self._messages]
        counts = [norm.new_full((), float(number)) for number in (len(messages), request)]
        results = self.accelerator.gather(torch.stack([*losses, norm, *counts])).view(-1, work.parts + 3)
        copy = HostCopy(results)  # queued before the next step, so that reading it does not wait for that one
        if not self.scaler.is_enabled():  # the fused step's guard
            optimizer.found_inf = (~results.isfinite().all()).float()  # type: ignore[attr-defined]
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad()
        self.check()
        self._pending = _Pending(self.step, copy, [batch.clip for batch in parts], messages)
        self.step += 1

    def _backward(self, batch: Batch, part: int) -> Tensor:
        """The loss of a part of the step, its gradient added; the last part averages over the processes."""
        work, world = self.work, self.accelerator
        wave, target, weight = self._upload(batch.wave, batch.target, batch.weight)
        batch = batch._replace(wave=wave, target=target, weight=weight)
        total = work.batch // work.parts
        mine = share(total, world.process_index, world.num_processes)
        place = Place(self.step, part, mine.start, total, partial(self._gather, total))
        weight = len(mine) * world.num_processes / total  # the means over processes are plain ones
        with nullcontext() if part == work.parts - 1 else world.no_sync(self._model):
            loss = weight * work.loss(self._model, batch, place)
            world.backward(self.scaler.scale(loss / work.parts))
        return loss.detach().float()

    def _gather(self, total: int, rows: Tensor) -> Tensor:
        """The rows of all processes for `total` clips; a smaller share travels with zeros behind it."""
        world = self.accelerator
        sizes = [len(share(total, rank, world.num_processes)) for rank in range(world.num_processes)]
        if min(sizes) == max(sizes):
            return world.gather(rows)
        missing = rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])
        shares = world.gather(torch.cat([rows, missing])).unflatten(0, (len(sizes), max(sizes)))
        return torch.cat([part[:size] for part, size in zip(shares, sizes, strict=True)])

    def check(self) -> None:
        """Read the results of the step before, while the device works on the next one."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        *losses, norms, news, requests = pending.results.read().T.tolist()
        flat = [loss for part in losses for loss in part]
        self._skipped = 0 if all(map(math.isfinite, norms)) else self._skipped + 1
        max_skipped = MAX_SKIPPED if self.scaler.is_enabled() else 0
        if not all(map(math.isfinite, flat)) or self._skipped > max_skipped:
            mine = [part[self.accelerator.process_index] for part in losses]
            raise NonFiniteLossError(self._not_finite(pending, mine))
        self.losses.append(sum(flat) / len(flat))
        self.request = int(max(requests))
        if any(news):
            self._report(pending.messages)

    def _not_finite(self, pending: _Pending, losses: list[float]) -> str:
        """Names the clips of the parts whose loss is not finite, or all where only the gradient is not."""
        suspects = [part for part, loss in zip(pending.clips, losses, strict=True) if not math.isfinite(loss)]
        clips = gather_object([clip for part in suspects for clip in part.tolist()])
        clips = clips or gather_object([clip for part in pending.clips for clip in part.tolist()])
        names = ", ".join(map(self.work.clip_name, clips[:20])) + (" ..." if len(clips) > 20 else "")
        return f"loss is not finite at step {pending.step}: lower the learning rate, or look at {names}"

    def _report(self, messages: list[tuple[str, bool]]) -> None:
        """Pass on what no process has said of clips yet; raise where too many cannot be read."""
        for text, is_lost in gather_object(messages):
            if text in self._messages:
                continue
            self._messages[text] = is_lost
            self._remarks += not is_lost
            if self.accelerator.is_main_process and (is_lost or self._remarks <= MAX_REMARKS + 1):
                is_one_of_many = not is_lost and self._remarks > MAX_REMARKS
                many = "more such clips: `patchout prepare` names them all"
                self.on_problem(many if is_one_of_many else text)
        lost, clips = sorted(text for text, is_lost in self._messages.items() if is_lost), self.work.clips
        if len(lost) > max(MAX_UNREADABLE * clips, min(FEW_UNREADABLE, clips / 4)):
            count = f"{len(lost)} of {clips} clips cannot be read, more than {MAX_UNREADABLE:.0%} or a few"
            todo = "repair them, or let `patchout prepare` name them all and leave them out"
            raise UnreadableClipsError(f"{count}: {todo} ({'; '.join(lost[:3])})")

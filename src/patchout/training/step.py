"""One training step: forward, backward, update; what it left on the device is read one step late."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from patchout.data.batches import Batch, share
from patchout.errors import InputError
from patchout.models.device import Precision, pick_precision

MAX_UNREADABLE = 0.01  # share of the clips, of a small set up to FEW_UNREADABLE or a quarter
FEW_UNREADABLE = 10
MOST_REMARKS = 100  # on clips that can be read: of a set of films each has one
MAX_SKIPPED = 24  # steps in a row that fp16 may skip while it finds its loss scale: from 2^16 down to 2^-8


class NonFiniteLossError(InputError):
    """A loss that is NaN or infinite; it never reached the weights."""


class UnreadableClipsError(InputError):
    """More clips than a run puts up with cannot be read."""


class Place(NamedTuple):
    """Which clips of which step a process computes; the key of everything random in the loss."""

    step: int
    part: int  # of gradient accumulation
    first: int  # place of this process's first clip within the part
    total: int  # clips of the part, over all processes
    gather: Callable[[Tensor], Tensor]  # the processes' rows, one a clip, one after the other


@dataclass(kw_only=True)
class Work:
    """What a step computes."""

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
    """What a step left on the device, and what a message about it needs."""

    step: int
    seen: Tensor  # (process, a loss a part + norm + new problems + wish)
    clips: list[Tensor]  # of each part
    news: list[tuple[str, bool]]  # what to say of clips, and whether they could not be read


class Stepper:
    """Takes steps, on one process or on many in the same way."""

    def __init__(self, work: Work, accelerator: Accelerator, on_problem: Callable[[str], None]) -> None:
        self.work, self.accelerator, self.on_problem = work, accelerator, on_problem
        self.device = next(work.model.parameters()).device
        self._wrapped = accelerator.prepare_model(work.model, device_placement=False)
        self._model = cast(nn.Module, torch.compile(self._wrapped)) if work.compile else self._wrapped
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=pick_precision(work.precision, self.device) == "fp16"
        )
        self.step = 0  # steps done
        self.losses: list[float] = []  # of the steps that were read, for whoever empties it
        self.wish = 0  # the greatest of any process at the last step that was read
        self._skipped = 0  # steps in a row without a finite gradient
        self._told: dict[str, bool] = {}  # what was said of clips -> whether they could not be read
        self._remarks = 0  # on those that could
        self._pending: _Pending | None = None

    def train(self, parts: list[Batch], wish: int) -> None:
        """One step; a loss or gradient that is not finite skips the update on the device, and the next step
        raises.

        `wish` is a small number for all processes to hear of.
        """
        work, optimizer = self.work, self.work.optimizer
        assert len(parts) == work.parts, "the loader ended before the run"
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * work.rate(self.step)
        losses = [self._backward(batch, part) for part, batch in enumerate(parts)]
        self.scaler.unscale_(optimizer)
        learning = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm([p.grad for p in learning])
        if work.clip_norm:
            clip_grads_with_norm_(learning, work.clip_norm, norm)
        lost = dict.fromkeys((text for batch in parts for text in batch.problems), True)
        every = dict.fromkeys((text for batch in parts for text in batch.remarks), False) | lost
        news = [(text, is_lost) for text, is_lost in every.items() if text not in self._told]
        told = [norm.new_full((), float(number)) for number in (len(news), wish)]
        seen = self.accelerator.gather(torch.stack([*losses, norm, *told])).view(-1, work.parts + 3)
        if not self.scaler.is_enabled():
            optimizer.found_inf = (~seen.isfinite().all()).float()  # type: ignore[attr-defined]  # the fused step's guard
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad()
        self.check()
        self._pending = _Pending(self.step, seen, [batch.clip for batch in parts], news)
        self.step += 1

    def _backward(self, batch: Batch, part: int) -> Tensor:
        """The loss of a part of the step, its gradient added; the processes' gradients meet in the last
        part."""
        work, world = self.work, self.accelerator
        moved = {
            name: getattr(batch, name).to(self.device, non_blocking=True)
            for name in ("wave", "target", "weight")
        }
        total = work.batch // work.parts
        mine = share(total, world.process_index, world.num_processes)
        place = Place(self.step, part, mine.start, total, partial(self._gather, total))
        weight = (
            len(mine) * world.num_processes / total
        )  # gradients and losses meet as plain means over processes
        with nullcontext() if part == work.parts - 1 else world.no_sync(self._wrapped):
            loss = weight * work.loss(self._model, batch._replace(**moved), place)
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
        """Read what the step before left on the device: by now the device has the next step to work on."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        *losses, norms, news, wishes = pending.seen.T.tolist()
        flat = [loss for part in losses for loss in part]
        self._skipped = 0 if all(map(math.isfinite, norms)) else self._skipped + 1
        if not all(map(math.isfinite, flat)) or self._skipped > (
            MAX_SKIPPED if self.scaler.is_enabled() else 0
        ):
            mine = [part[self.accelerator.process_index] for part in losses]
            raise NonFiniteLossError(self._not_finite(pending, mine))
        self.losses.append(sum(flat) / len(flat))
        self.wish = int(max(wishes))
        if any(news):
            self._report(pending.news)

    def _not_finite(self, pending: _Pending, losses: list[float]) -> str:
        """Name the clips of the parts whose loss is not finite, or all of them where only the gradient is
        not."""
        suspects = [part for part, loss in zip(pending.clips, losses, strict=True) if not math.isfinite(loss)]
        clips = gather_object([clip for part in suspects for clip in part.tolist()])
        clips = clips or gather_object([clip for part in pending.clips for clip in part.tolist()])
        names = ", ".join(self.work.clip_name(clip) for clip in clips[:20]) + (
            " ..." if len(clips) > 20 else ""
        )
        return f"loss is not finite at step {pending.step}: lower the learning rate, or look at {names}"

    def _report(self, news: list[tuple[str, bool]]) -> None:
        """Tell of clips that no process has told of yet; stop where too many cannot be read."""
        for text, is_lost in gather_object(news):
            if text in self._told:
                continue
            self._told[text] = is_lost
            self._remarks += not is_lost
            if self.accelerator.is_main_process and (is_lost or self._remarks <= MOST_REMARKS + 1):
                is_one_of_many = not is_lost and self._remarks > MOST_REMARKS
                self.on_problem(
                    "more such clips: `patchout prepare` names them all" if is_one_of_many else text
                )
        lost = sorted(text for text, is_lost in self._told.items() if is_lost)
        clips = self.work.clips
        if len(lost) > max(MAX_UNREADABLE * clips, min(FEW_UNREADABLE, clips / 4)):
            share = f"{len(lost)} of {clips} clips cannot be read, more than {MAX_UNREADABLE:.0%} or a few"
            some = "; ".join(lost[:3])
            todo = "repair them, or let `patchout prepare` name them all and leave them out"
            raise UnreadableClipsError(f"{share}: {todo} ({some})")

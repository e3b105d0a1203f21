"""Parameter groups, AdamW, learning-rate schedules (functions of the step alone), averaged weights."""

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn


class StateBytes(NamedTuple):
    """Bytes of memory that training takes for a model, activations apart."""

    weights: int
    gradients: int
    optimizer: int
    average: int


def parameter_groups(
    model: nn.Module, weight_decay: float, *, decay_all: bool = False, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Parameter groups: matrices with weight decay; biases, norms, tokens and positions without, or all with.

    A group's `scale` of the peak rate is `layer_decay` to the power of its distance from the head (MaskSpec's
    fine-tuning): what is registered before the first of `blocks` is layer 0, block i layer i + 1, what comes
    after the last block counts 1. `decay_all` is PaSST's code.
    """
    decayed = {id(part.weight) for part in model.modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    blocks = {name: re.search(r"(?:^|\.)blocks\.(\d+)\.", name) for name, _ in model.named_parameters()}
    depth = max((int(block[1]) + 1 for block in blocks.values() if block), default=0)
    if layer_decay != 1.0 and not depth:
        raise ValueError(f"layer_decay {layer_decay:g} needs a model with blocks: leave it at 1")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    other_layer = 0  # of what is no block
    for name, parameter in model.named_parameters():
        block = blocks[name]
        other_layer = depth + 1 if block else other_layer
        scale = layer_decay ** (depth + 1 - (int(block[1]) + 1 if block else other_layer))
        decay = weight_decay if decay_all or id(parameter) in decayed else 0.0
        groups.setdefault((decay, scale), []).append(parameter)
    return [{"params": group, "weight_decay": key[0], "scale": key[1]} for key, group in groups.items()]


def adamw(
    groups: Sequence[Mapping[str, Any]], lr: float, *, betas: tuple[float, float] = (0.9, 0.999)
) -> AdamW:
    """AdamW, fused; each group remembers its peak rate: `lr` times its scale."""
    scaled = [{**group, "peak_lr": lr * group["scale"]} for group in groups]
    return AdamW(scaled, lr=lr, betas=betas, fused=True)


def named_state(model: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """The optimizer's state by parameter name: groups may change before a run is resumed."""
    return {name: optimizer.state[w] for name, w in model.named_parameters() if w in optimizer.state}


def load_named_state(model: nn.Module, optimizer: Optimizer, state: Mapping[str, dict[str, Any]]) -> None:
    """Give a fused optimizer the state of `named_state`, on its device; groups keep their settings."""
    optimizer.state.update({w: state[name] for name, w in model.named_parameters() if name in state})


def state_bytes(model: nn.Module, *, average: bool) -> StateBytes:
    """Memory of AdamW: a float32 parameter 4 bytes, one that learns 12 more, an average (EMA, SWA) 4."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    learning = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return StateBytes(weights, learning, 2 * learning, weights if average else 0)


def cosine(step: int, *, steps: int, warm_up: int) -> float:
    """Cosine schedule, as factor of the peak rate: linear warm-up, then half a cosine to zero at `steps`."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def exp_ramp(
    step: int, *, steps_per_epoch: int | Fraction, warm_up: int, plateau_end: int, ramp: int, floor: float
) -> float:
    """The schedule of the public PaSST code, as a factor of the peak rate, constant within an epoch.

    An exponential warm-up, the peak up to and with epoch `plateau_end`, a line of `ramp` epochs to `floor`.
    """
    epoch = step // steps_per_epoch
    rise = math.exp(-5 * (1 - max(epoch, 0.5) / warm_up) ** 2) if epoch < warm_up else 1.0
    fall = floor + (1 - floor) * (plateau_end + ramp - epoch) / ramp
    return rise * min(1.0, max(floor, fall))


def swa_steps(steps_per_epoch: int | Fraction, epochs: int, *, start: int, every: int) -> frozenset[int]:
    """Steps before which SWA averages: the first of epoch number `start` (from 1), then `every` so many."""
    return frozenset(math.ceil(epoch * steps_per_epoch) for epoch in range(start - 1, epochs, every))


class Average:
    """Averaged weights: an equal average, or an exponential one (EMA) of decay `ema` once enough are in.

    Until then it is equal too: else a short run would report mostly the weights that it began with.
    """

    def __init__(self, model: nn.Module, ema: float) -> None:
        self.model = copy.deepcopy(model)
        self.count = 0
        self._ema = ema

    def decay(self) -> float:
        """Weight of the average in the next update."""
        equal = self.count / (self.count + 1)
        return min(self._ema, equal) if self._ema else equal

    def update(self, model: nn.Module) -> None:
        """Take in the weights; unlike AveragedModel without a device sync."""
        if self.count:
            fold = get_ema_multi_avg_fn(self.decay())  # type: ignore[no-untyped-call]
            fold(list(self.model.parameters()), list(model.parameters()), self.count)
        else:
            self.model.load_state_dict(model.state_dict())
        self.count += 1


class Teacher(Average):
    """Averaged weights that training asks for targets, with a decay of their own for every update."""

    def __init__(self, model: nn.Module, schedule: Callable[[int], float]) -> None:
        """`schedule`: updates so far -> decay."""
        super().__init__(model, 0.0)
        self.schedule = schedule

    def decay(self) -> float:
        """That of the schedule."""
        return self.schedule(self.count)

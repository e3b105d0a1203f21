"""Shallow probes of which several are trained on the same rows at once: one batched product a layer for all.

A probe is Linear, BatchNorm, Dropout, ReLU for each hidden layer, then Linear, as in the HEAR kit. Those of a
group share only the rows and the dropout generator, so each learns what it would learn alone.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from patchout.models.kernels import linear

Initialization = Literal["xavier_uniform_", "xavier_normal_"]
DRAW = {"xavier_uniform_": nn.init.xavier_uniform_, "xavier_normal_": nn.init.xavier_normal_}
ROWS_AT_ONCE = 8192  # of a prediction


class Point(NamedTuple):
    """One point of the grid; names as in the kit, sorted."""

    batch_size: int
    check_val_every_n_epoch: int
    dropout: float
    hidden_dim: int
    hidden_layers: int
    initialization: Initialization
    lr: float
    max_epochs: int
    patience: int  # checks without a better score

    @property
    def schedule(self) -> tuple[float | int, ...]:
        """The values that all points of a group must share."""
        return self.batch_size, self.check_val_every_n_epoch, self.dropout, self.hidden_dim, self.max_epochs


class Data(NamedTuple):
    """Training rows, on one device."""

    values: Float[Tensor, "row value"]
    target: Float[Tensor, "row class"]
    one_label: bool  # softmax over the classes, not a sigmoid for each


class Check(NamedTuple):
    """The result of one validation of a probe."""

    score: float  # the higher the better; NaN or infinite ends the training
    detail: Any = None  # kept with the best score


Judge = Callable[[Tensor], Check]  # of logits (row, class)


class Probe:
    """The network of one point of the grid, and its best state so far."""

    def __init__(self, point: Point, data: Data, rng: Generator) -> None:
        """Draw Xavier weights (gain 1, after a ReLU sqrt 2), biases within 1 / sqrt(inputs), as the kit."""
        self.point = point
        hidden = [point.hidden_dim] * point.hidden_layers
        device = data.values.device
        self.weights, self.biases = [], []
        widths = [data.values.shape[1], *hidden, data.target.shape[1]]
        for layer, (num_in, num_out) in enumerate(pairwise(widths)):
            gain, bound = math.sqrt(2) if layer else 1.0, 1 / math.sqrt(num_in)
            weight = DRAW[point.initialization](torch.empty(num_out, num_in), gain, generator=rng)
            bias = torch.empty(num_out).uniform_(-bound, bound, generator=rng)
            self.weights.append(weight.to(device).requires_grad_())
            self.biases.append(bias.to(device).requires_grad_())
        self.gains = [torch.ones(width, device=device, requires_grad=True) for width in hidden]
        self.shifts = [torch.zeros(width, device=device, requires_grad=True) for width in hidden]
        running = torch.tensor([[0.0], [1.0]], device=device)  # mean and variance
        self.running = [running.repeat(1, width) for width in hidden]
        self.best = Check(-math.inf)
        self.best_epoch = -1
        self._best_state: list[Tensor] = []
        self._waited = 0

    def parameters(self) -> list[Tensor]:
        """Trained parameters."""
        return [*self.weights, *self.biases, *self.gains, *self.shifts]

    def consider(self, check: Check, epoch: int) -> bool:
        """Keep the state if it is the best so far; returns whether to go on training."""
        state = [*self.parameters(), *self.running]
        if check.score > self.best.score or self.best_epoch < 0:
            self.best = check if not math.isnan(check.score) else check._replace(score=-math.inf)
            self.best_epoch, self._waited = epoch, 0
            self._best_state = [value.detach().clone() for value in state]
        else:
            self._waited += 1
        return math.isfinite(check.score) and self._waited < self.point.patience

    def restore(self) -> None:
        """Go back to the best state."""
        for value, best in zip([*self.parameters(), *self.running], self._best_state, strict=True):
            value.detach().copy_(best)


def train_group(
    probes: Sequence[Probe], data: Data, validation: Tensor, judge: Judge, rng: Generator
) -> None:
    """Train probes of one schedule with early stopping, and restore the best state of each.

    Rows are not shuffled, as in the kit. `validation` is (row, value); `rng` draws the dropout on its device.
    """
    by_rate: dict[float, list[Tensor]] = defaultdict(list)
    for probe in probes:
        by_rate[probe.point.lr] += probe.parameters()
    optimizer = torch.optim.Adam([{"params": values, "lr": lr} for lr, values in by_rate.items()], fused=True)
    live = sorted(probes, key=lambda probe: -probe.point.hidden_layers)
    group, max_epochs = _Group(live), probes[0].point.max_epochs
    every = min(probes[0].point.check_val_every_n_epoch, max_epochs)  # validate once at least
    for epoch in range(every - 1, max_epochs, every):
        _train_epochs(group, data, every, optimizer, rng)
        outputs = zip(live, group.predict(validation), strict=True)
        live = [probe for probe, logits in outputs if probe.consider(judge(logits), epoch)]
        if not live:
            break
        if len(live) < len(group.probes):
            optimizer.zero_grad()
            group = _Group(live)
    for probe in probes:
        probe.restore()


def predict(probe: Probe, values: Float[Tensor, "row value"]) -> Float[Tensor, "row class"]:
    """Logits of a probe, on the CPU."""
    (logits,) = _Group([probe]).predict(values)
    return logits


def loss(logits: Float[Tensor, "*row class"], target: Float[Tensor, "*row class"], one_label: bool) -> Tensor:
    """Mean cross-entropy over the rows, or mean binary cross-entropy over rows and classes."""
    if one_label:
        return F.cross_entropy(logits.flatten(0, -2), target.argmax(-1).flatten())
    return F.binary_cross_entropy_with_logits(logits, target)


def _train_epochs(
    group: "_Group", data: Data, epochs: int, optimizer: torch.optim.Adam, rng: Generator
) -> None:
    """Train for some epochs; a last batch of one row, which has no variance, joins the one before."""
    count = len(group.probes)
    edges = [*range(0, len(data.values), group.probes[0].point.batch_size), len(data.values)]
    if len(edges) > 2 and edges[-1] - edges[-2] == 1:
        del edges[-2]
    for _ in range(epochs):
        for first, last in pairwise(edges):
            logits = group.logits(data.values[first:last], rng)
            target = data.target[first:last, None].expand_as(logits)
            optimizer.zero_grad(set_to_none=count == 1)  # gradients that are views stay
            total = count * loss(logits, target, data.one_label)  # the sum over probes of their means
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


class _Group:
    """Probes, deepest first, whose parameters and statistics are views of one tensor for each layer."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        """Take the probes' values and those of their gradients' places."""
        self.probes, depth = probes, probes[0].point.hidden_layers
        members = [[probe for probe in probes if probe.point.hidden_layers > layer] for layer in range(depth)]
        layers = [*enumerate(members), (-1, probes)]
        self.weights = [_stacked([probe.weights[layer] for probe in some]) for layer, some in layers]
        self.biases = [_stacked([probe.biases[layer] for probe in some]) for layer, some in layers]
        self.gains = [_stacked([probe.gains[layer] for probe in some]) for layer, some in layers[:-1]]
        self.shifts = [_stacked([probe.shifts[layer] for probe in some]) for layer, some in layers[:-1]]
        self.running = []  # (2, probe, width) of each hidden layer: means and variances
        for layer, some in layers[:-1]:
            self.running.append(torch.stack([probe.running[layer] for probe in some], dim=1))
            for index, probe in enumerate(some):
                probe.running[layer] = self.running[-1][:, index]

    @torch.no_grad()
    def predict(self, values: Float[Tensor, "row value"]) -> list[Float[Tensor, "row class"]]:
        """Logits of each probe, on the CPU."""
        parts = [self.logits(rows, None).cpu() for rows in torch.split(values, ROWS_AT_ONCE)]
        return [logits.contiguous() for logits in torch.cat(parts).unbind(1)]

    def logits(
        self, rows: Float[Tensor, "row value"], rng: Generator | None
    ) -> Float[Tensor, "row probe class"]:
        """Forward pass of all probes; in training mode if `rng` is given."""
        hidden, dropout = rows[:, None].expand(-1, len(self.probes), -1), self.probes[0].point.dropout
        for layer, (mean, variance) in enumerate(self.running):
            new = self._linear(hidden[:, : len(mean)], layer)
            norm = self.gains[layer].flatten(), self.shifts[layer].flatten()
            statistics = mean.view(-1), variance.view(-1)  # updated in place
            new = F.batch_norm(new.flatten(1), *statistics, *norm, training=rng is not None).view_as(new)
            if rng is not None and dropout:
                new = new * torch.empty_like(new).bernoulli_(1 - dropout, generator=rng).div_(1 - dropout)
            new = new.relu()
            hidden = new if len(mean) == len(self.probes) else torch.cat([new, hidden[:, len(mean) :]], dim=1)
        return self._linear(hidden, -1)

    def _linear(self, hidden: Float[Tensor, "row probe value"], layer: int) -> Float[Tensor, "row probe out"]:
        """Linear layer of each probe, as one batched product."""
        weight, bias = self.weights[layer], self.biases[layer]
        if hidden.shape[1] == 1:
            return linear(hidden[:, 0], weight, bias)[:, None]
        product = torch.baddbmm(bias[:, None], hidden.transpose(0, 1), weight.transpose(1, 2))
        return product.transpose(0, 1)


def _stacked(parts: list[Tensor]) -> Tensor:
    """One tensor of parameters, which become views of it, as do their gradients; one stays as it is."""
    if len(parts) == 1:
        return parts[0]
    stack = torch.stack([part.detach() for part in parts]).requires_grad_()
    stack.grad = torch.zeros_like(stack)
    for part, value, gradient in zip(parts, stack.detach(), stack.grad, strict=True):
        part.data, part.grad = value, gradient
    return stack

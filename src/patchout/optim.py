"""Parameter groups and learning-rate schedules; a schedule is a function of the step alone."""

import math
from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay; biases, norms, tokens and positions without."""
    decayed = {id(part.weight) for part in model.modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    groups: dict[float, list[nn.Parameter]] = {weight_decay: [], 0.0: []}
    for parameter in model.parameters():
        groups[weight_decay if id(parameter) in decayed else 0.0].append(parameter)
    return [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]


def cosine(step: int, *, steps: int, warm_up: int) -> float:
    """Factor of the peak rate at `step`: straight up over `warm_up` steps, then half a cosine to zero at `steps`."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))

"""From scores to decisions: calibration of the scores, and for every class a threshold."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy import special

DEFAULT_THRESHOLD = 0.5

Task = Literal["multi_class", "multi_label"]


@dataclass(frozen=True, kw_only=True)
class OperatingPoint:
    """Decision threshold of a class, and its precision and recall on validation clips with 95 % intervals."""

    threshold: float
    precision: float
    precision_interval: tuple[float, float]
    recall: float
    recall_interval: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Calibration and thresholds of a tagger's scores; by default scores stay as they are.

    The logits are calibrated as slope * logit + bias: Platt scaling of sigmoid scores; of softmax scores the
    slope is the inverse of a temperature, and the bias has no effect.
    """

    slope: float = 1.0
    bias: float = 0.0
    points: tuple[OperatingPoint | None, ...] = ()  # one a label; None: too few clips to choose one by
    background: tuple[str, ...] = ()  # classes of the training set on whose clips every label is silent

    def __post_init__(self) -> None:
        """Refuse a calibration that is not finite or turns the order of the scores round."""
        if not (0 < self.slope < math.inf and math.isfinite(self.bias)):
            raise ValueError(f"a slope above 0 and a finite bias calibrate, got {self.slope} and {self.bias}")

    @property
    def thresholds(self) -> Float[np.ndarray, "class"] | None:
        """The thresholds of the labels, `DEFAULT_THRESHOLD` where none was chosen; None: for no label."""
        if not self.points:
            return None
        return np.array([point.threshold if point else DEFAULT_THRESHOLD for point in self.points])

    def limits(self, num_classes: int) -> Float[np.ndarray, "class"]:
        """The thresholds, `DEFAULT_THRESHOLD` for all where none was chosen."""
        return np.full(num_classes, DEFAULT_THRESHOLD) if self.thresholds is None else self.thresholds

    @property
    def calibrates(self) -> bool:
        """Whether calibration changes the scores."""
        return (self.slope, self.bias) != (1.0, 0.0)

    def calibrated(
        self, scores: Float[np.ndarray, "*any class"], task: Task
    ) -> Float[np.ndarray, "*any class"]:
        """Calibrated scores, of the same type; zeros of silence stay, and all where nothing calibrates."""
        if not self.calibrates:
            return scores
        calibrated = probabilities(self.scaled(logits_of(scores, task)), task).astype(scores.dtype)
        return calibrated * scores.any(axis=-1, keepdims=True)

    def scaled(self, logits: Float[np.ndarray, "*any class"]) -> Float[np.ndarray, "*any class"]:
        """Calibrated logits."""
        return self.slope * logits + self.bias


NO_DECISION = Decision()


def decision_from(values: Mapping[str, Any]) -> Decision:
    """A decision from the dictionary that a checkpoint holds; TypeError for unknown names."""
    points = [point and OperatingPoint(**tuples(point)) for point in values.get("points", ())]
    return Decision(**{**tuples(values), "points": tuple(points)})


def tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as tuples: JSON has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def logits_of(scores: Float[np.ndarray, "*any class"], task: Task) -> Float[np.ndarray, "*any class"]:
    """Logits of float32 scores in float64: a sigmoid's at most 17, log-probabilities of a softmax."""
    lowest, highest = np.finfo(np.float32).tiny, 1.0 if task == "multi_class" else 1 - 2**-25
    clipped = np.clip(scores.astype(np.float64), lowest, highest)  # float32 scores reach 0 and 1
    return np.log(clipped) if task == "multi_class" else special.logit(clipped)


def probabilities(logits: Float[np.ndarray, "*any class"], task: Task) -> Float[np.ndarray, "*any class"]:
    """Class probabilities in float64: softmax for one class a clip, else sigmoid."""
    wide = logits.astype(np.float64)
    return special.softmax(wide, axis=-1) if task == "multi_class" else special.expit(wide)

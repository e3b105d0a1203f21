"""Scores of predictions: arrays -> floats."""

import math

import numpy as np
from jaxtyping import Float


def accuracy(scores: Float[np.ndarray, "clip class"], targets: Float[np.ndarray, "clip class"]) -> float:
    """Share of clips whose highest score is on their class."""
    return float((scores.argmax(1) == targets.argmax(1)).mean())


def mean_average_precision(scores: Float[np.ndarray, "clip class"], targets: Float[np.ndarray, "clip class"]) -> float:
    """Average precision per class, mean over the classes that occur; NaN when none does."""
    from sklearn.metrics import average_precision_score

    present = targets.any(axis=0)
    if not present.any():
        return math.nan
    return float(np.mean([average_precision_score(targets[:, c], scores[:, c]) for c in np.flatnonzero(present)]))


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share observed on `count` independent clips (Wilson, 1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)

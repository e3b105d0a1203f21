"""Scores of predictions: arrays -> floats."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array
from scipy.special import ndtri

CHUNK = 64  # draws of a bootstrap that are weighed at once
Table = Float[np.ndarray, "clip class"]
Column = Float[np.ndarray, "clip"]  # of one class
Draws = Float[np.ndarray, "clip draw"]
Interval = tuple[float, float]


class Ranking(NamedTuple):
    """How far scores put a class's clips before all others; NaN where it has none, or (AUC) there are no others."""

    precision: Float[np.ndarray, "class draw"]  # average precision
    auc: Float[np.ndarray, "class draw"]  # area under the ROC curve


def accuracy(scores: Table, targets: Table) -> float:
    """Share of clips whose highest score is on their class."""
    return float((scores.argmax(1) == targets.argmax(1)).mean())


def ranking(
    scores: Table, targets: Table, *, known: Table | None = None, counts: Draws | None = None
) -> Ranking:
    """Average precision and ROC AUC of every class, as scikit-learn defines them: equal scores are one threshold.

    `known` weighs the clips of each class: 0 leaves out those whose label nobody gave (OpenMIC). `counts` says how
    often each draw of a bootstrap holds a clip; without it there is one draw that holds every clip once.
    """
    counts = np.ones((len(scores), 1), np.float32) if counts is None else counts
    weights = np.ones_like(targets) if known is None else known
    found = [
        _rank(scores[:, c], targets[:, c] * weights[:, c], weights[:, c], counts)
        for c in range(scores.shape[1])
    ]
    return Ranking(*(np.stack(values) for values in zip(*found, strict=True)))


def _rank(scores: Column, hits: Column, weights: Column, counts: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and AUC of one class, from sums between the runs of equal scores that hold a hit."""
    order = np.argsort(-scores, kind="stable")
    levels = np.unique(-scores[hits > 0])
    edges = [np.searchsorted(-scores[order], levels, side) for side in ("left", "right")]
    rows = np.concatenate([[0], np.stack(edges, axis=1).ravel(), [len(order)]])
    parts = (
        csr_array((values[order].astype(counts.dtype), order, rows), shape=(len(rows) - 1, len(order)))
        @ counts
        for values in (weights, hits)
    )  # sums before each run, up to its end, ..., and of all: (2 runs + 1, draw)
    everything, positive = (np.cumsum(sums, axis=0, dtype=np.float64) for sums in parts)
    negative = everything - positive
    step = positive[1::2] - positive[:-1:2]  # hits in each run
    with np.errstate(invalid="ignore"):  # 0 / 0: NaN is the answer
        share = positive[1::2] / np.where(step > 0, everything[1::2], 1.0)
        after = negative[-1] - (negative[1::2] + negative[:-1:2]) / 2  # a clip of equal score counts half
        precision = (step * share).sum(axis=0) / positive[-1]
        return precision, (step * after).sum(axis=0) / (positive[-1] * negative[-1])


def class_means(found: Ranking) -> dict[str, Float[np.ndarray, "draw"]]:
    """The scores mAP and AUC: means over classes that have a value (NaN: none has); d_prime is that of the mean AUC."""
    means = {}
    for name, values in (("mAP", found.precision), ("AUC", found.auc)):
        counted = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            means[name] = np.where(counted, values, 0.0).sum(axis=0) / counted.sum(axis=0)
    return {**means, "d_prime": d_prime(means["AUC"])}


def score_text(value: float, digits: int = 4) -> str:
    """A score for people: so many digits, or in a word that it is infinite or undefined."""
    if math.isnan(value):
        return "undefined"
    return f"{value:.{digits}f}" if math.isfinite(value) else "infinite" if value > 0 else "minus infinite"


def d_prime(auc: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """How far apart two normal distributions of width 1 are whose AUC this is: sqrt(2) times its normal quantile."""
    return math.sqrt(2) * ndtri(auc)


def bootstrap(
    scores: Table, targets: Table, *, known: Table | None, draws: int, rng: np.random.Generator
) -> dict[str, Interval]:
    """95 % intervals of `class_means` from clips drawn with replacement: their spread, set around the score itself.

    Plain percentiles would lie too high for the mAP of rare classes: a set that holds a clip twice ranks it twice.
    """
    points, chance = class_means(ranking(scores, targets, known=known)), np.full(len(scores), 1 / len(scores))
    drawn = []
    for size in np.diff([*range(0, draws, CHUNK), draws]):
        counts = rng.multinomial(len(scores), chance, size=size).T.astype(np.float32, order="C")
        drawn.append(class_means(ranking(scores, targets, known=known, counts=counts)))
    found: dict[str, np.ndarray] = {}
    for name in ("mAP", "AUC"):
        values = np.concatenate([means[name] for means in drawn])
        values = values[np.isfinite(values)]  # a draw without a class to score says nothing
        spread = np.percentile(values, (2.5, 97.5)) - values.mean() if len(values) else np.full(2, math.nan)
        found[name] = np.clip(points[name] + spread, 0.0, 1.0)
    found["d_prime"] = d_prime(found["AUC"])
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def wilson_interval(share: float, count: int) -> Interval:
    """95 % confidence interval of a share observed on `count` independent clips (Wilson, 1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)

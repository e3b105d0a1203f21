"""Classification metrics: accuracy, average precision, ROC AUC, d-prime, and their intervals."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import csr_array
from scipy.special import ndtri

CHUNK = 64  # draws of a bootstrap that are weighed at once
Table = Float[np.ndarray, "clip class"]
Column = Float[np.ndarray, "clip"]  # of one class
Draws = Float[np.ndarray, "clip draw"]
Interval = tuple[float, float]


class Ranking(NamedTuple):
    """Ranking metrics of every class; NaN for one without clips, the AUC also for one of all clips."""

    precision: Float[np.ndarray, "class draw"]  # average precision
    auc: Float[np.ndarray, "class draw"]  # area under the ROC curve


def accuracy(scores: Table, targets: Table) -> float:
    """Share of clips whose class has the highest score."""
    return float((scores.argmax(1) == targets.argmax(1)).mean())


def ranking(
    scores: Table, targets: Table, *, known: Table | None = None, counts: Draws | None = None
) -> Ranking:
    """Average precision and ROC AUC of every class as in scikit-learn: equal scores are one threshold.

    `known` weighs the clips of each class: 0 leaves out those without a label (OpenMIC). `counts` says how
    often each draw of a bootstrap has a clip; by default one draw has every clip once.
    """
    weights = np.ones_like(targets) if known is None else known
    hits = targets * weights
    once = counts is None and all(((table == 0) | (table == 1)).all() for table in (targets, weights))
    counts = np.ones((len(scores), 1), np.float32) if counts is None else counts
    classes = Ranking(*(np.full((scores.shape[1], counts.shape[1]), math.nan) for _ in Ranking._fields))
    for index in np.flatnonzero(hits.any(axis=0)):
        columns = scores[:, index], hits[:, index], weights[:, index]
        values = _rank_once(-columns[0], columns[1] > 0, columns[2] > 0) if once else _rank(*columns, counts)
        classes.precision[index], classes.auc[index] = values
    return classes


def _rank_once(
    falling: Column, is_hit: Bool[np.ndarray, "clip"], is_known: Bool[np.ndarray, "clip"]
) -> tuple[np.ndarray, np.ndarray]:
    """`_rank` of one draw of all clips, from their negative scores: two sorted lists, no order of clips."""
    clips, hits = np.sort(falling[is_known]), np.sort(falling[is_hit])
    before, up_to = (np.searchsorted(clips, hits, side) for side in ("left", "right"))
    hits_before, hits_up_to = (np.searchsorted(hits, hits, side) for side in ("left", "right"))
    negative = np.float64(len(clips) - len(hits))
    after = negative - (up_to - hits_up_to + before - hits_before) / 2  # equal scores count half
    with np.errstate(invalid="ignore"):  # 0 / 0: NaN is the answer
        precision = (hits_up_to / up_to).sum() / np.float64(len(hits))
        return np.array([precision]), np.array([after.sum() / (len(hits) * negative)])


def _rank(scores: Column, hits: Column, weights: Column, counts: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and AUC of one class, from sums over its levels of equal score that hold a hit."""
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


def class_means(classes: Ranking) -> dict[str, Float[np.ndarray, "draw"]]:
    """Means over the classes that have a value (NaN: none has): mAP, AUC, and the d_prime of this AUC."""
    means = {}
    for name, values in (("mAP", classes.precision), ("AUC", classes.auc)):
        counted = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            means[name] = np.where(counted, values, 0.0).sum(axis=0) / counted.sum(axis=0)
    return {**means, "d_prime": d_prime(means["AUC"])}


def score_text(value: float, digits: int = 4) -> str:
    """A score as text: so many digits, or a word for one that is infinite or undefined."""
    if math.isnan(value):
        return "undefined"
    return f"{value:.{digits}f}" if math.isfinite(value) else "infinite" if value > 0 else "minus infinite"


def d_prime(auc: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """Sensitivity index: the distance of two unit normals with this AUC, sqrt(2) times its quantile."""
    return math.sqrt(2) * ndtri(auc)


def bootstrap(
    scores: Table, targets: Table, *, known: Table | None, draws: int, rng: np.random.Generator
) -> dict[str, Interval]:
    """Bootstrap 95 % intervals of `class_means`: the spread over resampled clips, around the score itself.

    Plain percentiles lie too high for the mAP of rare classes: a clip drawn twice is ranked twice.
    """
    points, chance = class_means(ranking(scores, targets, known=known)), np.full(len(scores), 1 / len(scores))
    drawn = []
    for size in np.diff([*range(0, draws, CHUNK), draws]):
        counts = rng.multinomial(len(scores), chance, size=size).T.astype(np.float32, order="C")
        drawn.append(class_means(ranking(scores, targets, known=known, counts=counts)))
    intervals: dict[str, np.ndarray] = {}
    for name in ("mAP", "AUC"):
        values = np.concatenate([means[name] for means in drawn])
        values = values[np.isfinite(values)]  # a draw without a class to score says nothing
        spread = np.percentile(values, (2.5, 97.5)) - values.mean() if len(values) else np.full(2, math.nan)
        intervals[name] = np.clip(points[name] + spread, 0.0, 1.0)
    intervals["d_prime"] = d_prime(intervals["AUC"])
    return {name: (float(low), float(high)) for name, (low, high) in intervals.items()}


def wilson_interval(share: float, count: int) -> Interval:
    """Wilson's 95 % confidence interval of a share observed on `count` independent clips (1927)."""
    z = 1.959964
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, centre - half), min(1.0, centre + half)

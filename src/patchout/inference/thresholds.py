"""Calibration and decision thresholds of a tagger's scores, fitted on labelled validation clips."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import optimize, special

from patchout.data.clips import ClipSet
from patchout.inference.evaluate import Predictions
from patchout.inference.metrics import Interval, wilson_interval
from patchout.models.decision import Decision, OperatingPoint, Task, probabilities
from patchout.models.tagger import TaggerConfig

MIN_CLIPS = 5  # with a class, and without it, that a threshold is chosen by
SLOPES = (0.05, 20.0)
BINS = 10  # of a reliability diagram

Table = Float[np.ndarray, "clip class"]
Mask = Bool[np.ndarray, "clip class"]
Column = Float[np.ndarray, "clip"]


class Chosen(NamedTuple):
    """Operating point of a class, and what the user has to know of it."""

    point: OperatingPoint | None
    remark: str = ""


class Fitted(NamedTuple):
    """Decision of a tagger, how it was fitted, and a remark on each class; "": nothing to say."""

    decision: Decision
    precision_at: float  # 0: the highest F1
    silent_at: float  # of the background clips; 0: as they come
    clips: int
    remarks: tuple[str, ...]

    def summary(self, labels: Sequence[str]) -> str:
        """The remarks in one line, of ten classes at most."""
        texts = [f"{label} ({remark})" for label, remark in zip(labels, self.remarks, strict=True) if remark]
        more = f" and {len(texts) - 10} more" if len(texts) > 10 else ""
        todo = "hold out more clips, or add some"
        return f"thresholds not chosen as asked: {', '.join(texts[:10])}{more}: {todo}" if texts else ""


class Reliability(NamedTuple):
    """Reliability diagram: scores in bins of equal width, and in each the share of clips with the class."""

    score: Float[np.ndarray, "bin"]  # mean; NaN: an empty bin
    share: Float[np.ndarray, "bin"]
    labels: Int[np.ndarray, "bin"]  # number of scores
    error: float  # expected calibration error: mean distance of score and share


def decide(
    predictions: Predictions,
    clips: ClipSet,
    config: TaggerConfig,
    *,
    precision_at: float,
    silent_at: float = 0.0,
) -> Fitted:
    """Calibration and thresholds fitted on a model's predictions for labelled clips, as it is without them.

    `precision_at` as in `choose`, `silent_at` as in `silenced`. Without a class that has enough clips there
    are no thresholds.
    """
    has, is_known = targets_of(predictions, clips, config.labels)
    slope, bias = fit_calibration(predictions.scores, has, is_known, task=config.task)
    calibrated = replace(config.decision, slope=slope, bias=bias, points=())
    scores = probabilities(calibrated.scaled(predictions.scores), config.task)
    chosen = choose(scores, has, is_known, precision_at=precision_at)
    points = tuple(choice.point for choice in chosen)
    decision = replace(calibrated, points=points if any(points) else ())
    if silent_at:
        decision = replace(decision, points=silenced(decision, scores, has, is_known, silent_at=silent_at))
    return Fitted(decision, precision_at, silent_at, len(has), tuple(choice.remark for choice in chosen))


def silenced(
    decision: Decision, scores: Table, has: Mask, is_known: Mask, *, silent_at: float
) -> tuple[OperatingPoint | None, ...]:
    """Thresholds raised until so many of the background clips are silent, at the cost of few labels.

    In steps: each raises the class, and as far, that loses the fewest labels for each background clip it no
    longer names. A class of too few clips for a threshold of its own begins at the default.
    """
    points, labelled = list(decision.points or (None,) * scores.shape[1]), has & is_known
    thresholds, background = decision.limits(scores.shape[1]), scores[is_background(has, is_known)]
    if not len(background):
        return decision.points
    while (~(named := background >= thresholds).any(axis=1)).mean() < silent_at:
        steps = []
        for c in named.any(axis=0).nonzero()[0].tolist():
            wrong, hits = np.sort(background[named[:, c], c]), np.sort(scores[labelled[:, c], c])
            lost = np.searchsorted(hits, wrong, "right") - np.searchsorted(hits, thresholds[c])
            costs = (1 + lost) / np.arange(1, len(wrong) + 1)
            steps.append((costs.min(), c, wrong[costs.argmin()]))
        _, c, score = min(steps)
        thresholds[c] = _above(score, scores[:, c])
        mask = is_known[:, c]
        points[c] = operating_point(scores[mask, c], has[mask, c], float(thresholds[c]))
    return tuple(points)


def _above(score: np.floating, scores: Column) -> float:
    """A threshold between this score and the next higher one, or 1; above 1 where the score reaches it."""
    middle = (float(score) + float(scores[scores > score].min(initial=1.0))) / 2
    return max(middle, float(np.nextafter(float(score), 2)))


def is_background(has: Mask, is_known: Mask) -> Bool[np.ndarray, "clip"]:
    """Which clips are known to have no label at all."""
    return ~(has & is_known).any(axis=1) & is_known.all(axis=1)


def targets_of(predictions: Predictions, clips: ClipSet, labels: Sequence[str]) -> tuple[Mask, Mask]:
    """Which of the predicted clips has each label, and where that is known."""
    scored = clips.take(predictions.index)
    return scored.targets(labels) > 0.5, scored.knowns(labels) > 0


def fit_calibration(logits: Table, has: Mask, is_known: Mask, *, task: Task) -> tuple[float, float]:
    """Slope and bias of calibrated logits by maximum likelihood; (1, 0) for fewer than `MIN_CLIPS` hits.

    Platt scaling over all labels (1999), whose targets are no sharper than the number of clips allows; for
    one class a clip, temperature scaling (Guo et al. 2017) with the same kind of targets.
    """
    hits, misses = int((has & is_known).sum()), int((~has & is_known).sum())
    if min(hits, misses) < MIN_CLIPS:
        return 1.0, 0.0
    wide = logits.astype(np.float64)
    if task == "multi_class":
        target = (has * len(wide) + 1) / (len(wide) + has.shape[1])

        def loss(parameters: Float[np.ndarray, "2"]) -> float:
            return float(-(target * special.log_softmax(parameters[0] * wide, axis=1)).sum() / len(wide))

    else:
        values, target = wide[is_known], np.where(has, (hits + 1) / (hits + 2), 1 / (misses + 2))[is_known]

        def loss(parameters: Float[np.ndarray, "2"]) -> float:
            calibrated = parameters[0] * values + parameters[1]
            return float((np.logaddexp(0, calibrated) - target * calibrated).mean())

    fitted = optimize.minimize(loss, np.array([1.0, 0.0]), method="L-BFGS-B", bounds=(SLOPES, (-20, 20)))
    return float(fitted.x[0]), float(fitted.x[1])


def choose(scores: Table, has: Mask, is_known: Mask, *, precision_at: float) -> list[Chosen]:
    """Thresholds of all classes: of the highest recall at this precision; 0: of the highest F1.

    A class that does not reach the precision at any threshold is silent on all of these clips.
    """
    columns = zip(scores.T, has.T, is_known.T, strict=True)
    return [_choose(column[mask], hit[mask], precision_at) for column, hit, mask in columns]


def _choose(scores: Column, has: Bool[np.ndarray, "clip"], precision_at: float) -> Chosen:
    hits, misses = int(has.sum()), int((~has).sum())
    if hits < MIN_CLIPS:
        return Chosen(None, f"none: {hits} validation clips with the class, {MIN_CLIPS} are needed")
    if misses < MIN_CLIPS:
        return Chosen(None, f"none: {misses} validation clips without the class, {MIN_CLIPS} are needed")
    from sklearn.metrics import precision_recall_curve  # a second, which other commands need not wait

    precision, recall, levels = precision_recall_curve(has, scores, drop_intermediate=False)
    precision, recall, remark = precision[:-1], recall[:-1], ""  # the last stands for no clip at all
    if precision_at:
        if (best := precision[recall > 0].max()) < precision_at:  # rather silent than wrong
            remark = f"{precision_at:g} is not reached, at best {best:.2f}: silent on these clips"
            return Chosen(operating_point(scores, has, _above(scores.max(), scores)), remark)
        value = np.where(precision >= precision_at, recall, -1.0)
    else:
        value = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    place = len(value) - 1 - int(value[::-1].argmax())  # of equal ones the most precise
    below = levels[place - 1] if place else 0.0
    return Chosen(operating_point(scores, has, (float(levels[place]) + float(below)) / 2), remark)


def operating_point(scores: Column, has: Bool[np.ndarray, "clip"], threshold: float) -> OperatingPoint:
    """Precision and recall of a threshold on these clips, with Wilson's intervals; NaN: of no clip."""
    passed = scores >= threshold
    hits = int((passed & has).sum())
    precision, precision_interval = _share(hits, int(passed.sum()))
    recall, recall_interval = _share(hits, int(has.sum()))
    return OperatingPoint(
        threshold=threshold,
        precision=precision,
        precision_interval=precision_interval,
        recall=recall,
        recall_interval=recall_interval,
    )


def _share(part: int, total: int) -> tuple[float, Interval]:
    if not total:
        return float("nan"), (0.0, 1.0)
    return part / total, wilson_interval(part / total, total)


def silent_thresholds(scores: Table, shares: Sequence[float]) -> Float[np.ndarray, "share"]:
    """The lowest thresholds, one for all classes, above which these shares of clips have no score."""
    highest = np.sort(scores.max(axis=1))
    places = np.ceil(np.asarray(shares) * len(highest)).astype(int) - 1
    return np.nextafter(highest[np.maximum(places, 0)], 1.0)


def reliability(scores: Table, has: Mask, is_known: Mask) -> Reliability:
    """Reliability diagram of all known labels together."""
    values, hits = scores[is_known].astype(np.float64), has[is_known].astype(np.float64)
    place = np.minimum((values * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    size = np.where(count > 0, count, np.nan)
    score, share = (np.bincount(place, part, BINS) / size for part in (values, hits))
    error = float(np.nansum(np.abs(score - share) * count) / max(1, len(values)))
    return Reliability(score, share, count, error)

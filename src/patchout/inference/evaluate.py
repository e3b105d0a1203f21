"""Evaluation on labelled clips: predictions, ensembles, and their scores with intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain, islice

import numpy as np
from jaxtyping import Bool, Float, Int

from patchout.audio.read_ahead import read_ahead
from patchout.data.sets import ClipSet, DataError
from patchout.inference import metrics
from patchout.inference.window_scores import Scored, score_each
from patchout.models.decision import Task, logits_of, probabilities
from patchout.models.device import InferencePrecision
from patchout.models.tagger import Tagger, TaggerConfig, check_labels

MAX_GROUPS = 50  # values of a column that are scored by themselves
MAX_DRAWS, MIN_DRAWS = 1000, 100  # of a bootstrap
MAX_WORK = 2_000_000_000  # clips x classes x draws: 10 s on one core

Table = Float[np.ndarray, "clip class"]
Mask = Bool[np.ndarray, "clip"]


@dataclass(frozen=True)
class Predictions:
    """A model's logits of the clips that could be read."""

    scores: Table  # logits
    index: Int[np.ndarray, "clip"]  # places of these clips in the set, rising
    failed: tuple[str, ...]  # the other clips, each with its reason
    warnings: tuple[str, ...] = ()  # what is missing or odd in those that could


@dataclass(frozen=True)
class Evaluation:
    """The scores of predictions, the main one first, with their intervals and the clips behind them."""

    scores: dict[str, float]
    intervals: dict[str, metrics.Interval]  # 95 %
    clips: int
    failed: tuple[str, ...]  # clips that could not be read, each with its reason
    ids_sha256: str  # of the clips that were scored
    absent: tuple[str, ...]  # classes that none of these clips has
    draws: int  # of the bootstrap behind all intervals but that of the accuracy

    @property
    def unscored(self) -> str:
        """A note on the classes that the means over classes leave out; "": none."""
        names = ", ".join(self.absent[:10]) + (", ..." if len(self.absent) > 10 else "")
        count = f"no clip of {len(self.absent)} classes, which count in no mean over classes"
        return f"{count}: {names}" if names else ""


def predict(
    model: Tagger,
    clips: ClipSet,
    *,
    precision: InferencePrecision,
    batch_size: int,
    on_clip: Callable[[], None] | None = None,
) -> Predictions:
    """`predict_each` of one model."""
    return predict_each([model], clips, precision=precision, batch_size=batch_size, on_clip=on_clip)[0]


def predict_each(
    models: Sequence[Tagger],
    clips: ClipSet,
    *,
    precision: InferencePrecision,
    batch_size: int,
    on_clip: Callable[[], None] | None = None,
) -> list[Predictions]:
    """Logits of every clip that give the scores of `patchout.tag`, by models of one front end and labels.

    Every clip is decoded once for all of them. A model of one channel hears that channel.

    A clip within one window has the model's logits (read back from float32 scores: a sigmoid's to 2e-3 up to
    10, at most 17), a longer one those of the mean over the scores of its windows.
    """
    config = models[0].config
    clips = clips if config.channel == "mean" else replace(clips, channel=config.channel)
    streams = read_ahead(clips.stream(clip, config.mel.sample_rate) for clip in range(len(clips)))
    results: list[list[Scored]] = [[] for _ in models]
    for scored in score_each(models, streams, precision=precision, batch_size=batch_size):
        for of_model, result in zip(results, scored, strict=True):
            of_model.append(result)
        if on_clip:
            on_clip()
    return [_logits(of_model, config) for of_model in results]


def _logits(results: Sequence[Scored], config: TaggerConfig) -> Predictions:
    """The logits behind a model's scores of all clips."""
    rows, failed, warnings = {}, list[str](), list[str]()
    for clip, scored in enumerate(results):
        warnings += [scored.warning] if scored.warning else []
        if scored.scores is not None and np.isfinite(scored.scores).all():
            rows[clip] = scored.scores
        else:
            failed.append(scored.error or f"{scored.name}: the model's scores are not finite")
    scores = np.array([*rows.values()], np.float64).reshape(len(rows), len(config.labels))
    logits = logits_of(scores, config.task).astype(np.float32)
    return Predictions(logits, np.array([*rows], np.int64), tuple(failed), tuple(warnings))


def interleave(parts: Sequence[Predictions]) -> Predictions:
    """Join the predictions of each process for `clips.take(range(rank, len(clips), len(parts)))`."""
    index = np.concatenate([part.index * len(parts) + rank for rank, part in enumerate(parts)])
    order = np.argsort(index)
    return Predictions(np.concatenate([part.scores for part in parts])[order], index[order], *_remarks(parts))


def label_orders(configs: Sequence[TaggerConfig]) -> list[Int[np.ndarray, "class"]]:
    """The places of the first model's labels in each model of an ensemble; ValueError where they differ."""
    first = configs[0]
    check_labels(first)
    for number, config in enumerate(configs, 1):
        if strange := sorted(set(config.labels) ^ set(first.labels)):
            lacking = f"not both of models 1 and {number} know {strange[:5]}"
            raise ValueError(f"an ensemble needs the same labels: {lacking}")
        if config.task != first.task:
            tasks = f"model 1 is {first.task}, model {number} {config.task}"
            raise ValueError(f"an ensemble needs one task: {tasks}")
    return [np.array([config.labels.index(label) for label in first.labels]) for config in configs]


def ensemble(parts: Sequence[Predictions], orders: Sequence[Int[np.ndarray, "class"]]) -> Predictions:
    """Mean logits of several models for the clips that all could read, in the label order of the first."""
    index = reduce(np.intersect1d, [part.index for part in parts])
    pairs = zip(parts, orders, strict=True)
    logits = [part.scores[np.isin(part.index, index)][:, order] for part, order in pairs]
    return Predictions(np.mean(logits, axis=0), index, *_remarks(parts))


def _remarks(parts: Sequence[Predictions]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The failures and the warnings of all parts, each once."""
    failed = dict.fromkeys(chain.from_iterable(part.failed for part in parts))
    return tuple(failed), tuple(dict.fromkeys(chain.from_iterable(part.warnings for part in parts)))


def judge(
    predictions: Predictions,
    clips: ClipSet,
    *,
    labels: Sequence[str],
    task: Task,
    groups: Mapping[str, Mask] | None = None,
    draws: int = 0,
) -> Evaluation:
    """The scores of predictions: accuracy where each clip has one class; mAP, AUC and d_prime always.

    `groups` of the clips (`group_by`) have the first score too, as "accuracy/device=a". A bootstrap of
    `draws` (0: none) gives the intervals, that of the accuracy is Wilson's; the same clips give the same
    ones. A label that the model does not know and no clip to score are DataErrors.
    """
    index, failed = predictions.index, predictions.failed
    if not len(index):
        why = failed[0] if failed else "no clips"
        raise DataError(f"{clips.root}: none of {len(failed)} clips could be read ({why})")
    scored = clips.take(index)
    table = probabilities(predictions.scores, task)
    targets, known = (scored.targets(labels) > 0.5).astype(np.float32), scored.knowns(labels)
    scores: dict[str, float] = {}
    intervals: dict[str, metrics.Interval] = {}
    for suffix, members in {"": np.ones(len(clips), bool), **(groups or {})}.items():
        chosen = members[index]
        if not chosen.any():
            continue
        part, mask = (table[chosen], targets[chosen]), known[chosen]
        means = metrics.class_means(metrics.ranking(*part, known=mask))
        values = {name: float(mean[0]) for name, mean in means.items()}
        spread: dict[str, metrics.Interval] = {}
        if draws:
            spread = metrics.bootstrap(*part, known=mask, draws=draws, rng=np.random.default_rng(0))
        if task == clips.task == "multi_class":
            values = {"accuracy": metrics.accuracy(*part), **values}
            spread["accuracy"] = metrics.wilson_interval(values["accuracy"], len(mask))
        for name in islice(values, 1 if suffix else None):
            scores[name + suffix] = values[name]
            if name in spread:
                intervals[name + suffix] = spread[name]
    absent = tuple(labels[c] for c in np.flatnonzero((targets * known).sum(axis=0) == 0).tolist())
    return Evaluation(scores, intervals, len(table), failed, scored.ids_sha256(), absent, draws)


def group_by(clips: ClipSet, column: str, training: ClipSet | None = None) -> dict[str, Mask]:
    """Masks of the clips with each value of a column, as "/device=a"; a column without values is a DataError.

    With the clips trained on, also "/seen" and "/unseen" (values of training), where there are both.
    """
    if not column:
        return {}
    cells = clips.column(column)
    values = sorted({*cells.tolist()} - {""})
    if not 1 <= len(values) <= MAX_GROUPS:
        allowed = f"scores are told for 1 to {MAX_GROUPS}: choose another"
        raise DataError(f"{clips.root}: column {column!r} has {len(values)} values, {allowed}")
    groups = {f"/{column}={value}": cells == value for value in values}
    is_seen = np.isin(cells, training.column(column) if training is not None else [])
    seen, unseen = is_seen & (cells != ""), ~is_seen & (cells != "")
    return groups | ({"/seen": seen, "/unseen": unseen} if is_seen.any() and unseen.any() else {})


def draws_for(clips: int, classes: int) -> int:
    """The number of bootstrap draws that take about ten seconds, within limits."""
    return int(np.clip(MAX_WORK // (clips * classes), MIN_DRAWS, MAX_DRAWS))

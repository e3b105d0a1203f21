"""Models against labelled clips: what they say, the mean of an ensemble, and how good it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import chain
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

from patchout.data.sets import ClipSet, DataError
from patchout.inference import metrics
from patchout.inference.tagging import score
from patchout.models.device import Precision
from patchout.models.tagger import Tagger, TaggerConfig, check_labels

MAX_GROUPS = 50  # values of a column that are scored by themselves
MAX_DRAWS, MIN_DRAWS = 1000, 100  # of a bootstrap
MAX_WORK = 2_000_000_000  # clips x classes x draws: 10 s on one core

Task = Literal["multi_class", "multi_label"]
Table = Float[np.ndarray, "clip class"]
Mask = Bool[np.ndarray, "clip"]


@dataclass(frozen=True)
class Predictions:
    """What a model says of the clips that could be read."""

    scores: Table  # logits
    index: Int[np.ndarray, "clip"]  # places of these clips in the set, rising
    failed: tuple[str, ...]  # the other clips, each with its reason
    warnings: tuple[str, ...] = ()  # what is missing or odd in those that could


@dataclass(frozen=True)
class Evaluation:
    """Scores, the one that counts first, and what stands behind them."""

    scores: dict[str, float]
    intervals: dict[str, metrics.Interval]  # 95 %
    clips: int
    failed: tuple[str, ...]  # clips that could not be read, each with its reason
    ids_sha256: str  # of the clips that were scored
    absent: tuple[str, ...]  # classes that none of these clips has
    draws: int  # of the bootstrap behind all intervals but that of the accuracy

    @property
    def unscored(self) -> str:
        """Which classes the means over classes leave out, in words; "": none."""
        few = ", ".join(self.absent[:10]) + (", ..." if len(self.absent) > 10 else "")
        return (
            f"no clip of {len(self.absent)} classes, which count in no mean over classes: {few}"
            if few
            else ""
        )


def predict(
    model: Tagger,
    clips: ClipSet,
    *,
    precision: Precision,
    batch_size: int,
    on_clip: Callable[[], None] | None = None,
) -> Predictions:
    """Logits of every clip that lead to the scores of `patchout.tag`; a channel's model hears its channel.

    A clip within one window has the model's own (read back from float32 scores: a sigmoid's to 2e-3 up to 10, at most
    17). Of a longer one `patchout.tag` averages the scores of its windows: it has the logits of that mean.
    """
    own = model.config.channel
    clips = clips if own == "mean" else replace(clips, channel=own)
    streams = (clips.stream(clip, model.config.mel.sample_rate) for clip in range(len(clips)))
    scored, failed, warnings = {}, list[str](), list[str]()
    for clip, one in enumerate(score(model, streams, precision=precision, batch_size=batch_size)):
        warnings += [one.warning] if one.warning else []
        if one.scores is not None and np.isfinite(one.scores).all():
            scored[clip] = one.scores
        else:
            failed.append(one.error or f"{one.name}: the model's scores are not finite")
        if on_clip:
            on_clip()
    table = np.array([*scored.values()], np.float64).reshape(len(scored), len(model.config.labels))
    one_class = model.config.task == "multi_class"
    inside = np.clip(
        table, np.finfo(np.float32).tiny, 1.0 if one_class else 1 - 2**-25
    )  # float32 scores reach 0 and 1
    logits = (np.log(inside) if one_class else special.logit(inside)).astype(np.float32)
    return Predictions(logits, np.array([*scored], np.int64), tuple(failed), tuple(warnings))


def probabilities(logits: Table, task: Task) -> Table:
    """Softmax over the classes where a clip has one, else sigmoid; in float64."""
    wide = logits.astype(np.float64)
    return special.softmax(wide, axis=1) if task == "multi_class" else special.expit(wide)


def interleave(parts: Sequence[Predictions]) -> Predictions:
    """Join what each rank of several processes predicted for `clips.take(range(rank, len(clips), len(parts)))`."""
    index = np.concatenate([part.index * len(parts) + rank for rank, part in enumerate(parts)])
    order = np.argsort(index)
    return Predictions(np.concatenate([part.scores for part in parts])[order], index[order], *_said(parts))


def label_orders(configs: Sequence[TaggerConfig]) -> list[Int[np.ndarray, "class"]]:
    """For each model of an ensemble, where it has the labels of the first; a ValueError names what differs."""
    first = configs[0]
    check_labels(first)
    for number, config in enumerate(configs, 1):
        if strange := sorted(set(config.labels) ^ set(first.labels)):
            raise ValueError(
                f"an ensemble needs the same labels: not both of models 1 and {number} know {strange[:5]}"
            )
        if config.task != first.task:
            raise ValueError(
                f"an ensemble needs one task: model 1 is {first.task}, model {number} {config.task}"
            )
    return [np.array([config.labels.index(label) for label in first.labels]) for config in configs]


def ensemble(parts: Sequence[Predictions], orders: Sequence[Int[np.ndarray, "class"]]) -> Predictions:
    """The mean of the models' logits for the clips that all of them could read, in the first one's order of labels."""
    index = reduce(np.intersect1d, [part.index for part in parts])
    rows = [
        part.scores[np.isin(part.index, index)][:, order] for part, order in zip(parts, orders, strict=True)
    ]
    return Predictions(np.mean(rows, axis=0), index, *_said(parts))


def _said(parts: Sequence[Predictions]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What failed in any part, and all warnings, each once."""
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
    """Scores of a model with these labels: accuracy where each clip has one class; mAP, AUC and d_prime always.

    For `groups` of the clips (`group_by`) the first score is told too, as "accuracy/device=a". A bootstrap of `draws`
    (0: none) gives the intervals, that of the accuracy is Wilson's; the same clips give the same ones. A label that the
    model does not know and no clip to score are DataErrors.
    """
    if not len(predictions.index):
        why = predictions.failed[0] if predictions.failed else "no clips"
        raise DataError(f"{clips.root}: none of {len(predictions.failed)} clips could be read ({why})")
    read = clips.take(predictions.index)
    table = probabilities(predictions.scores, task)
    targets, known = (read.targets(labels) > 0.5).astype(np.float32), read.knowns(labels)
    scores: dict[str, float] = {}
    intervals: dict[str, metrics.Interval] = {}
    for suffix, members in {"": np.ones(len(clips), bool), **(groups or {})}.items():
        chosen = members[predictions.index]
        if not chosen.any():
            continue
        part = (table[chosen], targets[chosen])
        means = metrics.class_means(metrics.ranking(*part, known=known[chosen]))
        found = {name: float(values[0]) for name, values in means.items()}
        sure = (
            metrics.bootstrap(*part, known=known[chosen], draws=draws, rng=np.random.default_rng(0))
            if draws
            else {}
        )
        if task == clips.task == "multi_class":
            found = {"accuracy": metrics.accuracy(*part), **found}
            sure["accuracy"] = metrics.wilson_interval(found["accuracy"], len(part[0]))
        told = [*found][:1] if suffix else [*found]
        scores |= {name + suffix: found[name] for name in told}
        intervals |= {name + suffix: sure[name] for name in told if name in sure}
    absent = tuple(labels[c] for c in np.flatnonzero((targets * known).sum(axis=0) == 0).tolist())
    return Evaluation(scores, intervals, len(table), predictions.failed, read.ids_sha256(), absent, draws)


def group_by(clips: ClipSet, column: str, training: ClipSet | None = None) -> dict[str, Mask]:
    """The clips of each value of a column, as "/device=a"; none without a column. Unknown columns are DataErrors.

    With the clips trained on, also "/seen" and "/unseen", by whether training has the value, where there are both.
    """
    if not column:
        return {}
    own = clips.column(column)
    values = sorted({*own.tolist()} - {""})
    if not 1 <= len(values) <= MAX_GROUPS:
        allowed = f"scores are told for 1 to {MAX_GROUPS}: choose another"
        raise DataError(f"{clips.root}: column {column!r} has {len(values)} values, {allowed}")
    found = {f"/{column}={value}": own == value for value in values}
    is_seen = np.isin(own, training.column(column) if training is not None else [])
    both = is_seen.any() and (~is_seen & (own != "")).any()
    return found | ({"/seen": is_seen & (own != ""), "/unseen": ~is_seen & (own != "")} if both else {})


def draws_for(clips: int, classes: int) -> int:
    """Draws of a bootstrap that a set of this size can afford."""
    return int(np.clip(MAX_WORK // (clips * classes), MIN_DRAWS, MAX_DRAWS))

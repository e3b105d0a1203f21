"""Report of a run, RUN/report/report.md: scores of the classes, confusions, worst clips, learning curves."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from patchout.data.sets import ClipSet
from patchout.files import markdown_table, write_aside
from patchout.inference import metrics
from patchout.inference.evaluate import Evaluation, Predictions, draws_for, judge
from patchout.models.decision import probabilities
from patchout.models.tagger import TaggerConfig
from patchout.training.supervised import figures
from patchout.training.supervised.decision_report import DecisionReport

MAX_ROWS = 20  # of the tables of pairs and of clips

Table = Float[np.ndarray, "clip class"]
Mask = Bool[np.ndarray, "clip class"]


class Mistakes(NamedTuple):
    """Confusion counts; and for each clip its rival, the highest class that it does not have."""

    counts: Int[np.ndarray, "class taken"]  # clips by each class and the rival that beats it, else itself
    rival: Int[np.ndarray, "clip"]
    lead: Float[np.ndarray, "clip"]  # the rival's score less the lowest of the clip's classes; above 0: wrong


def mistakes(scores: Table, has: Mask, lacks: Mask) -> Mistakes:
    """Mistakes of scores on clips that have and lack these classes; unknown labels (neither) do not count."""
    rivals = np.where(lacks, scores, -1.0)
    rival = rivals.argmax(axis=1)
    clip, label = np.nonzero(has)
    gap = rivals[clip, rival[clip]] - scores[clip, label]
    is_beaten = (gap > 0) | (
        (gap == 0) & (rival[clip] < label)
    )  # of equal ones the first, as in the accuracy
    counts = np.zeros((scores.shape[1], scores.shape[1]), np.int64)
    np.add.at(counts, (label, np.where(is_beaten, rival[clip], label)), 1)
    lowest = np.where(has, scores, 2.0).min(axis=1)
    return Mistakes(counts, rival, rivals.max(axis=1) - np.where(lowest <= 1, lowest, 0.0))


def write_report(
    run: Path,
    predictions: Predictions,
    clips: ClipSet,
    *,
    config: TaggerConfig,
    weights: str,
    decided: DecisionReport | None = None,
) -> Evaluation:
    """Write `run`/report/report.md and its figures for predictions on these clips; returns their scores.

    `weights` says in words which weights of the run predicted, `decided` what their thresholds are worth. The
    curves come from `run`/metrics.jsonl where there is one. DataError: no clip could be read, or one has a
    label that the model does not know.
    """
    labels, task = config.labels, config.task
    draws = draws_for(len(clips), len(labels))
    evaluation = judge(predictions, clips, labels=labels, task=task, draws=draws)
    scored, scores = clips.take(predictions.index), probabilities(predictions.scores, task)
    has, is_known = scored.targets(labels) > 0.5, scored.knowns(labels) > 0
    wrong = mistakes(scores, has & is_known, ~has & is_known)
    ranks = metrics.ranking(scores, has.astype(np.float32), known=is_known.astype(np.float32))
    log, folder = run / "metrics.jsonl", run / "report"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    folder.mkdir(parents=True, exist_ok=True)
    classes, confusions = "![scores of the classes](classes.png)", "![what is taken for what](confusions.png)"
    parts = [
        f"# Report of {run.resolve().name}\n\n{_summary(evaluation, clips, weights, len(labels))}",
        f"## Classes\n\n{classes}\n\n{_classes(folder, evaluation, wrong, ranks, labels)}",
        f"## Confusions\n\n{confusions}\n\n{_confusions(folder, evaluation, wrong, labels)}",
        f"## Worst clips\n\n{_worst_clips(wrong, scores, scored, labels)}",
    ]
    if decided:
        parts[0] += f"\n{decided.verdict}\n"
        parts.insert(2, f"## Thresholds\n\n{decided.text}")
    if lines:
        figures.training(folder / "training.png", [json.loads(line) for line in lines])
        curves = "![loss, scores, learning rate and speed over the epochs](training.png)"
        parts.append(f"## Training\n\n{curves}\n")
    if evaluation.failed:
        problems = "".join(f"- {problem}\n" for problem in evaluation.failed)
        parts.append(f"## Clips that could not be read\n\n{problems}")
    with write_aside(folder / "report.md") as aside:
        aside.write_text("\n".join(parts), encoding="utf-8", errors="replace")  # a file name may be any bytes
    return evaluation


def _summary(evaluation: Evaluation, clips: ClipSet, weights: str, num_classes: int) -> str:
    """Scores with their intervals; clips, weights and draws that they stand on."""
    rows = []
    for name, value in evaluation.scores.items():
        interval = " and ".join(metrics.score_text(end, 3) for end in evaluation.intervals[name])
        rows.append((name, metrics.score_text(value), interval))
    ids = f"SHA-256 of their ids: {evaluation.ids_sha256}"
    facts = [
        f"{evaluation.clips} clips of `{clips.root}` ({ids}), {num_classes} classes",
        f"weights: {weights}",
        f"intervals: Wilson's for accuracy, bootstrap of {evaluation.draws} draws for other scores",
    ]
    facts += [evaluation.unscored] if evaluation.absent else []
    facts += [
        f"official list, {split}: {count['present']} of {count['listed']} clips are here"
        for split, count in clips.info.get("official", {}).items()
        if count["listed"]
    ]
    return (
        markdown_table(("score", "value", "95 % within"), rows)
        + "\n"
        + "".join(f"- {fact}\n" for fact in facts)
    )


def _classes(
    folder: Path, evaluation: Evaluation, wrong: Mistakes, ranks: metrics.Ranking, labels: Sequence[str]
) -> str:
    """Table of the classes with their scores, the best first; draws the first score."""
    counts = wrong.counts.sum(axis=1)
    columns = {"average precision": ranks.precision[:, 0], "AUC": ranks.auc[:, 0]}
    if "accuracy" in evaluation.scores:
        recall = np.diag(wrong.counts) / np.where(counts > 0, counts, np.nan)
        columns = {"share of clips found": recall, **columns}
    name, first = next(iter(columns.items()))
    figures.class_scores(folder / "classes.png", labels, first, counts, score_name=name)
    rows = (
        (labels[c], counts[c], *(metrics.score_text(values[c], 3) for values in columns.values()))
        for c in np.argsort(-first, kind="stable").tolist()
    )
    return markdown_table(("class", "clips", *columns), rows)


def _confusions(folder: Path, evaluation: Evaluation, wrong: Mistakes, labels: Sequence[str]) -> str:
    """Table of the most frequent confusions; draws them, as a matrix where each clip has one class."""
    is_matrix = "accuracy" in evaluation.scores and len(labels) <= figures.MAX_MATRIX
    draw = figures.confusion_matrix if is_matrix else figures.confused_pairs
    draw(folder / "confusions.png", labels, wrong.counts)
    pairs = figures.pairs(wrong.counts)[:MAX_ROWS]
    rows = ((labels[true], labels[rival], wrong.counts[true, rival]) for true, rival in pairs)
    return markdown_table(("class", "taken for", "clips"), rows)


def _worst_clips(wrong: Mistakes, scores: Table, clips: ClipSet, labels: Sequence[str]) -> str:
    """Table of the clips whose rival leads by most."""
    targets = clips.targets(labels) > 0.5

    def named(clip: int, classes: Int[np.ndarray, "some"]) -> str:
        return ", ".join(f"{labels[c]} ({scores[clip, c]:.2f})" for c in classes.tolist()) or "none"

    rows = [
        (clips.name(clip), named(clip, np.flatnonzero(targets[clip])), named(clip, wrong.rival[[clip]]))
        for clip in np.argsort(-wrong.lead, kind="stable")[:MAX_ROWS].tolist()
        if wrong.lead[clip] > 0
    ]
    table = markdown_table(("file", "class (score)", "highest wrong class"), rows)
    return table if rows else "None: no wrong class leads.\n"

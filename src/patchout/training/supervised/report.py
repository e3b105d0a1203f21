"""RUN/report/: where a model is right and where it is wrong, as Markdown and pictures."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from patchout.data.sets import ClipSet
from patchout.files import write_aside
from patchout.inference import metrics
from patchout.inference.evaluate import Evaluation, Predictions, Task, draws_for, judge, probabilities
from patchout.training.supervised import figures as plots_report

MAX_ROWS = 20  # of the tables of pairs and of clips

Table = Float[np.ndarray, "clip class"]
Mask = Bool[np.ndarray, "clip class"]


class Mistakes(NamedTuple):
    """Of each clip, the highest class that it does not have (its rival), and where that beats the classes it
    has."""

    counts: Int[
        np.ndarray, "class taken"
    ]  # clips by each of their classes and the rival that beats it, else itself
    rival: Int[np.ndarray, "clip"]
    lead: Float[
        np.ndarray, "clip"
    ]  # the rival's score less the lowest of the clip's own classes; above 0: wrong


def mistakes(scores: Table, has: Mask, lacks: Mask) -> Mistakes:
    """Mistakes of scores on clips that have and lack these classes; what is neither is not known and does not
    count."""
    others = np.where(lacks, scores, -1.0)
    rival = others.argmax(axis=1)
    clip, own = np.nonzero(has)
    gap = others[clip, rival[clip]] - scores[clip, own]
    is_beaten = (gap > 0) | (
        (gap == 0) & (rival[clip] < own)
    )  # of equal scores the first counts, as in the accuracy
    counts = np.zeros((scores.shape[1], scores.shape[1]), np.int64)
    np.add.at(counts, (own, np.where(is_beaten, rival[clip], own)), 1)
    lowest = np.where(has, scores, 2.0).min(axis=1)
    return Mistakes(counts, rival, others.max(axis=1) - np.where(lowest <= 1, lowest, 0.0))


def write_report(
    run: Path, predictions: Predictions, clips: ClipSet, *, labels: Sequence[str], task: Task, weights: str
) -> Path:
    """Write `run`/report/report.md and its pictures on predictions for these clips; returns the path of
    report.md.

    `weights` says in words which weights of the run predicted. The curves come from `run`/metrics.jsonl where
    there is one. DataError: no clip could be read, or one has a label that the model does not know.
    """
    found = judge(predictions, clips, labels=labels, task=task, draws=draws_for(len(clips), len(labels)))
    read, scores = clips.take(predictions.index), probabilities(predictions.scores, task)
    targets, known = (read.targets(labels) > 0.5).astype(np.float32), read.knowns(labels) > 0
    wrong = mistakes(scores, (targets > 0) & known, (targets == 0) & known)
    ranks = metrics.ranking(scores, targets, known=known.astype(np.float32))
    log, folder = run / "metrics.jsonl", run / "report"
    lines = (
        [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    )
    folder.mkdir(parents=True, exist_ok=True)
    parts = [
        f"# Report of {run.resolve().name}\n\n{_summary(found, clips, weights, len(labels))}",
        f"## Classes\n\n![scores of the classes](classes.png)\n\n{_classes(folder, found, wrong, ranks, labels)}",
        f"## Confusions\n\n![what is taken for what](confusions.png)\n\n{_confusions(folder, found, wrong, labels)}",
        f"## Worst clips\n\n{_worst_clips(wrong, scores, read, labels)}",
    ]
    if lines:
        plots_report.training(folder / "training.png", lines)
        parts.append(
            "## Training\n\n![loss, scores, learning rate and speed over the epochs](training.png)\n"
        )
    if found.failed:
        parts.append(
            "## Clips that could not be read\n\n" + "".join(f"- {problem}\n" for problem in found.failed)
        )
    with write_aside(folder / "report.md") as aside:
        aside.write_text("\n".join(parts), encoding="utf-8", errors="replace")  # a file name may be any bytes
    return folder / "report.md"


def _summary(found: Evaluation, clips: ClipSet, weights: str, num_classes: int) -> str:
    """Scores, and on what they stand."""
    rows = [
        (
            name,
            metrics.score_text(value),
            " and ".join(metrics.score_text(end, 3) for end in found.intervals[name]),
        )
        for name, value in found.scores.items()
    ]
    facts = [
        f"{found.clips} clips of `{clips.root}` (SHA-256 of their ids: {found.ids_sha256}), {num_classes} classes",
        f"weights: {weights}",
        f"intervals: Wilson's for accuracy, bootstrap of {found.draws} draws for other scores",
    ]
    facts += [found.unscored] if found.absent else []
    facts += [
        f"official list, {split}: {count['present']} of {count['listed']} clips are here"
        for split, count in clips.info.get("official", {}).items()
        if count["listed"]
    ]
    return _table(("score", "value", "95 % within"), rows) + "\n" + "".join(f"- {fact}\n" for fact in facts)


def _classes(
    folder: Path, found: Evaluation, wrong: Mistakes, ranks: metrics.Ranking, labels: Sequence[str]
) -> str:
    """Every class with its scores, the best first; draws the first score."""
    counts = wrong.counts.sum(axis=1)
    columns = {"average precision": ranks.precision[:, 0], "AUC": ranks.auc[:, 0]}
    if "accuracy" in found.scores:
        share = np.diag(wrong.counts) / np.where(counts > 0, counts, np.nan)
        columns = {"share of clips found": share, **columns}
    what, first = next(iter(columns.items()))
    plots_report.class_scores(folder / "classes.png", labels, first, counts, what=what)
    order = np.argsort(-first, kind="stable").tolist()
    rows = (
        (labels[c], counts[c], *(metrics.score_text(values[c], 3) for values in columns.values()))
        for c in order
    )
    return _table(("class", "clips", *columns), rows)


def _confusions(folder: Path, found: Evaluation, wrong: Mistakes, labels: Sequence[str]) -> str:
    """The most frequent confusions; draws them, as a matrix where each clip has one class."""
    is_matrix = "accuracy" in found.scores and len(labels) <= plots_report.MAX_MATRIX
    draw = plots_report.confusion_matrix if is_matrix else plots_report.confused_pairs
    draw(folder / "confusions.png", labels, wrong.counts)
    pairs = plots_report.pairs(wrong.counts)[:MAX_ROWS]
    return _table(
        ("class", "taken for", "clips"), ((labels[a], labels[b], wrong.counts[a, b]) for a, b in pairs)
    )


def _worst_clips(wrong: Mistakes, scores: Table, read: ClipSet, labels: Sequence[str]) -> str:
    """The clips whose highest wrong class leads by most."""
    targets = read.targets(labels) > 0.5

    def named(clip: int, classes: Int[np.ndarray, "some"]) -> str:
        return ", ".join(f"{labels[c]} ({scores[clip, c]:.2f})" for c in classes.tolist())

    order = [
        clip for clip in np.argsort(-wrong.lead, kind="stable")[:MAX_ROWS].tolist() if wrong.lead[clip] > 0
    ]
    rows = [
        (read.name(clip), named(clip, np.flatnonzero(targets[clip])), named(clip, wrong.rival[[clip]]))
        for clip in order
    ]
    return (
        _table(("file", "class (score)", "highest wrong class"), rows)
        if rows
        else "None: no wrong class leads.\n"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; a bar in a name does not end its cell."""
    lines = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head), *rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)

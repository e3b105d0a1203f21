"""Report on decisions: thresholds of the classes, silence on background, reliability of the scores."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from patchout.data.clips import ClipSet
from patchout.files import markdown_table
from patchout.inference.evaluate import Predictions
from patchout.inference.metrics import score_text, wilson_interval
from patchout.inference.thresholds import (
    Fitted,
    is_background,
    operating_point,
    reliability,
    silent_thresholds,
    targets_of,
)
from patchout.models.decision import DEFAULT_THRESHOLD, OperatingPoint, probabilities
from patchout.models.tagger import TaggerConfig
from patchout.training.supervised import figures

SILENT_SHARES = (0.9, 0.95, 1.0)

Table = Float[np.ndarray, "clip class"]
Mask = Bool[np.ndarray, "clip class"]
Named = Bool[np.ndarray, "negative class"]  # which labels a background clip is given


class DecisionReport(NamedTuple):
    """Markdown on a model's decisions, its verdict in one line, and scores."""

    verdict: str
    text: str
    scores: dict[str, float]  # background_silent, the share of background clips without a label; if any


def decision_report(
    folder: Path,
    predictions: Predictions,
    clips: ClipSet,
    *,
    config: TaggerConfig,
    fitted: Fitted,
    is_validation: bool,
) -> DecisionReport:
    """Report on the decisions of `fitted` on these clips; `predictions` are logits before calibration.

    Draws the reliability diagram into `folder`. `is_validation`: they are the clips of the fit.
    """
    decision, labels, task = fitted.decision, config.labels, config.task
    has, is_known = targets_of(predictions, clips, labels)
    raw = probabilities(predictions.scores, task)
    scores = probabilities(decision.scaled(predictions.scores), task)
    background = is_background(has, is_known)
    named = (scores >= decision.limits(len(labels)))[background]
    before, after = (reliability(values, has, is_known) for values in (raw, scores))
    folder.mkdir(parents=True, exist_ok=True)
    figures.reliability_diagram(folder / "reliability.png", before, after)
    parts = [
        _aim(fitted, is_validation),
        markdown_table(*_classes(labels, fitted, () if is_validation else (scores, has, is_known))),
        _background(scores, background, has & is_known, named=named),
        "![share of clips that have the class, by score](reliability.png)\n",
        f"Expected calibration error {before.error:.3f} before calibration, {after.error:.3f} after it "
        f"(logits times {decision.slope:.3f} plus {decision.bias:.3f}).\n",
    ]
    silent = {"background_silent": float((~named.any(axis=1)).mean())} if len(named) else {}
    rule = "" if decision.points else f", at {DEFAULT_THRESHOLD:g} as no threshold was chosen"
    return DecisionReport(_verdict(named, labels, rule), "\n".join(filter(None, parts)), silent)


def _aim(fitted: Fitted, is_validation: bool) -> str:
    """What the thresholds were chosen for, and what that means for the numbers of the table."""
    aim = f"a precision of {fitted.precision_at:g}" if fitted.precision_at else "the highest F1"
    if fitted.silent_at:
        aim += f", then raised until {fitted.silent_at:.0%} of the background clips are silent,"
    share = (
        "Precision holds where a class is as frequent as among these clips; where it is rarer, it is lower."
    )
    same = " They are the clips scored here, so all numbers below are a little too good."
    return f"Chosen for {aim} on {fitted.clips} validation clips.{same * is_validation} {share}\n"


def _verdict(named: Named, labels: Sequence[str], rule: str) -> str:
    """Whether the model stays silent on background clips; `rule` says by which thresholds, if not its own."""
    if not len(named):
        todo = "add a class `background` with other sounds of your recordings"
        return f"No clip without a class is scored: nothing says what the model names on background: {todo}."
    wrong = int(named.any(axis=1).sum())
    low, high = (f"{100 * end:.0f} %" for end in wilson_interval(wrong / len(named), len(named)))
    if not wrong:
        return f"All {len(named)} background clips stay silent{rule} (95 %: at most {high} are named)."
    counts = named.sum(axis=0)
    worst = [c for c in np.argsort(-counts, kind="stable")[:5].tolist() if counts[c]]
    names = ", ".join(f"{labels[c]} {counts[c]}" for c in worst)
    todo = "add such sounds to the background, train longer, or raise the thresholds (--silent-at 0.9)"
    share = (
        f"{wrong} of {len(named)} background clips are given a class{rule} ({names}; 95 %: {low} to {high})"
    )
    return f"**This model is not good yet: {share}**: {todo}."


def _classes(
    labels: Sequence[str], fitted: Fitted, test: tuple[Table, Mask, Mask] | tuple[()]
) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of thresholds, also with precision and recall on the test clips."""
    points = fitted.decision.points or (None,) * len(labels)
    head = ["class", "threshold", "precision", "95 % within", "recall", "95 % within"]
    rows = [[label, *_shares(point)] for label, point in zip(labels, points, strict=True)]
    if test:
        head += ["precision on test clips", "95 % within", "recall on test clips", "95 % within"]
        scores, has, is_known = test
        limits = fitted.decision.limits(len(labels))
        for c, row in enumerate(rows):
            mask = is_known[:, c]
            row += _shares(operating_point(scores[mask, c], has[mask, c], float(limits[c])))[1:]
    if any(fitted.remarks):
        head.append("remark")
        rows = [[*row, remark] for row, remark in zip(rows, fitted.remarks, strict=True)]
    return head, rows


def _shares(point: OperatingPoint | None) -> list[str]:
    """Cells of an operating point: threshold, precision, recall, each share with its interval."""
    if point is None:
        return [f"({DEFAULT_THRESHOLD:g})", "", "", "", ""]
    shares = (point.precision, point.precision_interval), (point.recall, point.recall_interval)
    texts = ((score_text(share, 2), f"{low:.2f} and {high:.2f}") for share, (low, high) in shares)
    return [f"{point.threshold:.3f}", *chain.from_iterable(texts)]


def _background(scores: Table, background: Bool[np.ndarray, "clip"], has: Mask, *, named: Named) -> str:
    """From which threshold on, one for all classes, background clips are silent, and what it still finds."""
    if not len(named):
        return ""
    limits = silent_thresholds(scores[background], SILENT_SHARES)
    recalls = [(scores[has] >= limit).mean() if has.any() else float("nan") for limit in limits]
    rows = [
        (f"{100 * share:g} %", f"{limit:.3f}", score_text(float(recall), 2))
        for share, limit, recall in zip(SILENT_SHARES, limits, recalls, strict=True)
    ]
    silent = int((~named.any(axis=1)).sum())
    text = f"{silent} of {len(named)} background clips are silent at these thresholds."
    return f"{text} With one for all classes:\n\n" + markdown_table(
        ("silent background clips", "threshold", "labels that it still finds"), rows
    )

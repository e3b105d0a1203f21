"""Figures of a report: class scores, confusion matrix or pairs, reliability diagram, learning curves."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from patchout.figures import fonts, picture, plain
from patchout.inference.thresholds import Reliability

MAX_BARS = 60  # classes in one picture
MAX_PAIRS = 30
MAX_MATRIX = 60  # classes of a confusion matrix: the numbers of more cannot be read
NAME = 28  # letters of a class

_BAR, _PALE, _LINE, _HEAT = "#2b6c99", "#e8eef3", "#9a9a9a", "Blues"
_PANELS = {"loss": "loss", "lr": "learning rate", "clips_per_s": "clips/s"}  # key of a log: what it is
_NO_CURVE = ("step", "epoch", "seconds")

Path_ = str | os.PathLike[str]
Scores = Float[np.ndarray, "class"]
Counts = Int[np.ndarray, "class"]
Confusions = Int[np.ndarray, "class taken"]  # clips by class and predicted class


def class_scores(
    path: Path_, names: Sequence[str], scores: Scores, counts: Counts, *, score_name: str
) -> None:
    """Bar chart of the class scores (0 to 1) and numbers of clips, the best on top.

    Classes without a score are left out; of more than `MAX_BARS` the lowest are drawn.
    """
    order = np.argsort(-scores, kind="stable")[: int(np.isfinite(scores).sum())]
    shown = order[-MAX_BARS:]
    texts = [f"{scores[c]:.2f}   {counts[c]} clip{'s' * bool(counts[c] != 1)}" for c in shown]
    some = f", lowest {len(shown)} of {len(order)} classes" if len(shown) < len(order) else " by class"
    rows = [plain(names[c], NAME) for c in shown]
    _bars(path, rows, scores[shown], texts, title=score_name + some, full=1.0)


def confused_pairs(path: Path_, names: Sequence[str], counts: Confusions) -> None:
    """Bar chart of the `MAX_PAIRS` most frequent confusions."""
    confused = pairs(counts)[:MAX_PAIRS]
    rows = [f"{plain(names[a], NAME)} \N{RIGHTWARDS ARROW} {plain(names[b], NAME)}" for a, b in confused]
    values = np.array([counts[pair] for pair in confused], np.float64)
    title = "clips taken for another class" if confused else "no clip is taken for another class"
    _bars(path, rows, values, [f"{value:.0f}" for value in values], title=title, full=0.0)


def confusion_matrix(path: Path_, names: Sequence[str], counts: Confusions) -> None:
    """Confusion matrix: clips by class (rows) and predicted class (columns), coloured by share of the row.

    Readable up to `MAX_MATRIX` classes.
    """
    size = len(names)
    cell = 0.62 if size <= 12 else 0.42 if size <= 25 else 0.27  # inches
    with picture(path, (3.2 + cell * size, 2.6 + cell * size)) as figure:
        _draw_matrix(figure.subplots(), names, counts, cell=cell)


def _draw_matrix(axes: Axes, names: Sequence[str], counts: Confusions, *, cell: float) -> None:
    """Draw the numbers of clips in cells of this width in inches."""
    size = len(names)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap=_HEAT, vmin=0, vmax=1)
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": min(10.0, 24 * cell)}
    for row, column in np.argwhere(counts):
        colour = "white" if share[row, column] > 0.55 else "black"
        axes.text(column, row, str(counts[row, column]), color=colour, **style)
    ticks = [plain(name, NAME) for name in names]
    style = {"fontfamily": fonts(), "parse_math": False, "fontsize": min(10.0, 32 * cell)}
    axes.set_xticks(range(size), ticks, rotation=90, **style)
    axes.set_yticks(range(size), ticks, **style)
    axes.set_xticks(np.arange(size - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(size - 1) + 0.5, minor=True)
    axes.grid(which="minor", color=_PALE, linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")


def pairs(counts: Confusions) -> list[tuple[int, int]]:
    """Pairs of a class and another one predicted for its clips, the most frequent first."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    return [(int(place) // len(counts), int(place) % len(counts)) for place in order]


def training(path: Path_, lines: Sequence[Mapping[str, Any]]) -> None:
    """Learning curves: loss, scores, learning rate and speed over the epochs, of the lines of a log.

    Scores of groups and scores beyond 1 are left out.
    """
    names = dict.fromkeys(
        name for line in lines for name in line if "/" not in name and name not in _NO_CURVE
    )
    curves = {}
    for name in names:
        curve = [(line["epoch"], line[name]) for line in lines if isinstance(line.get(name), float | int)]
        if curve and (name in _PANELS or max(value for _, value in curve) <= 1):
            curves[name] = curve
    shown = {panel: [name] for name, panel in _PANELS.items() if name in curves}
    if scores := [name for name in curves if name not in _PANELS]:
        shown["score"] = scores
    with picture(path, (9, 0.8 + 2.2 * len(shown))) as figure:
        grid = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (panel, panel_names) in zip(grid, shown.items(), strict=True):
            for name in panel_names:
                marker = "." if len(curves[name]) < 60 else ""
                axes.plot(*zip(*curves[name], strict=True), marker=marker, label=name)
            axes.set_ylabel(panel)
            axes.grid(color=_PALE)
            if panel == "score":
                axes.legend(loc="lower right", frameon=False, fontsize="small")
        grid[-1].set_xlabel("epoch")
        grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True))


def reliability_diagram(path: Path_, before: Reliability, after: Reliability) -> None:
    """Reliability diagram before and after calibration, and below it the number of scores in each bin."""
    with picture(path, (6, 6.4)) as figure:
        axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        axes.plot([0, 1], [0, 1], color=_LINE, linestyle="--", linewidth=1)
        edges = np.linspace(0, 1, len(after.labels) + 1)
        width = edges[1] - edges[0]
        for bins, colour, marker, name in ((before, _LINE, "s", "before"), (after, _BAR, "o", "after")):
            filled = bins.labels > 0
            label = f"{name} calibration, error {bins.error:.3f}"
            axes.plot(bins.score[filled], bins.share[filled], color=colour, marker=marker, label=label)
        counts.bar(edges[:-1] + width / 2, after.labels, width=0.9 * width, color=_BAR)
        counts.set_yscale("symlog", linthresh=1)
        counts.set_ylim(bottom=0)
        counts.set_ylabel("labels")
        counts.set_xlabel("score")
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of clips with the class")
        axes.legend(loc="upper left", frameon=False, fontsize="small")
        axes.set_title("reliability of the scores", loc="left", fontsize=11)


def _bars(
    path: Path_, rows: Sequence[str], values: Scores, texts: Sequence[str], *, title: str, full: float
) -> None:
    """Draw a horizontal bar chart, the first row on top, bars on pale ones of length `full`, then texts."""
    with picture(path, (9, 0.9 + 0.24 * max(len(rows), 2))) as figure:
        axes = figure.subplots()
        end = max(full, float(values.max(initial=0.0)))
        axes.barh(range(len(rows)), full, color=_PALE)
        axes.barh(range(len(rows)), values, color=_BAR)
        for row, text in enumerate(texts):
            axes.text(end * 1.01, row, text, va="center", fontsize=9)
        axes.set_yticks(range(len(rows)), rows, fontfamily=fonts(), parse_math=False, fontsize=9)
        axes.set_xlim(0, max(end, 1e-9))
        axes.set_ylim(max(len(rows), 2) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=full == 0))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_title(title, loc="left", fontsize=11)

"""Pictures of a report: scores of the classes, what is taken for what, and the course of a training run."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from patchout.figures import fonts, picture, plain

MAX_BARS = 60  # classes in one picture
MAX_PAIRS = 30
MAX_MATRIX = 60  # classes of a confusion matrix: the numbers of more cannot be read
NAME = 28  # letters of a class

_BAR, _PALE, _HEAT = "#2b6c99", "#e8eef3", "Blues"
_PANELS = {"loss": "loss", "lr": "learning rate", "clips_per_s": "clips/s"}  # key of a log: what it is
_NO_CURVE = ("step", "epoch", "seconds")

Path_ = str | os.PathLike[str]


def class_scores(
    path: Path_,
    names: Sequence[str],
    scores: Float[np.ndarray, "class"],
    counts: Int[np.ndarray, "class"],
    *,
    what: str,
) -> None:
    """Draw a bar from 0 to 1 for every class that has a score, the best on top, with its number of clips.

    Of more than `MAX_BARS` the lowest are drawn. `what` names the score. `path` is treated as by
    `figures.picture`.
    """
    order = np.argsort(-scores, kind="stable")[: int(np.isfinite(scores).sum())]
    shown = order[-MAX_BARS:]
    texts = [f"{scores[c]:.2f}   {counts[c]} clip{'s' * bool(counts[c] != 1)}" for c in shown]
    title = (
        f"{what}, lowest {len(shown)} of {len(order)} classes"
        if len(shown) < len(order)
        else f"{what} by class"
    )
    _bars(path, [plain(names[c], NAME) for c in shown], scores[shown], texts, title=title, full=1.0)


def confused_pairs(path: Path_, names: Sequence[str], counts: Int[np.ndarray, "class taken"]) -> None:
    """Draw the `MAX_PAIRS` most frequent pairs of a class and what its clips are taken for.

    `counts` is clips by both. `path` is treated as by `figures.picture`.
    """
    found = pairs(counts)[:MAX_PAIRS]
    rows = [f"{plain(names[a], NAME)} \N{RIGHTWARDS ARROW} {plain(names[b], NAME)}" for a, b in found]
    values = np.array([counts[pair] for pair in found], np.float64)
    title = "clips taken for another class" if found else "no clip is taken for another class"
    _bars(path, rows, values, [f"{value:.0f}" for value in values], title=title, full=0.0)


def confusion_matrix(path: Path_, names: Sequence[str], counts: Int[np.ndarray, "class taken"]) -> None:
    """Draw what each class (rows) is taken for (columns): numbers of clips, coloured by their share of the
    row.

    Readable up to `MAX_MATRIX` classes. `path` is treated as by `figures.picture`.
    """
    size = len(names)
    cell = 0.62 if size <= 12 else 0.42 if size <= 25 else 0.27  # inches
    with picture(path, (3.2 + cell * size, 2.6 + cell * size)) as figure:
        _draw_matrix(figure.subplots(), names, counts, cell=cell)


def _draw_matrix(
    axes: Axes, names: Sequence[str], counts: Int[np.ndarray, "class taken"], *, cell: float
) -> None:
    """Numbers of clips in cells of a width in inches."""
    size = len(names)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap=_HEAT, vmin=0, vmax=1)
    letters = min(10.0, 24 * cell)
    for row, column in np.argwhere(counts):
        colour = "white" if share[row, column] > 0.55 else "black"
        axes.text(
            column, row, str(counts[row, column]), ha="center", va="center", color=colour, fontsize=letters
        )
    ticks = [plain(name, NAME) for name in names]
    style: dict[str, Any] = {"fontfamily": fonts(), "parse_math": False, "fontsize": min(10.0, 32 * cell)}
    axes.set_xticks(range(size), ticks, rotation=90, **style)
    axes.set_yticks(range(size), ticks, **style)
    axes.set_xticks(np.arange(size - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(size - 1) + 0.5, minor=True)
    axes.grid(which="minor", color=_PALE, linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")


def pairs(counts: Int[np.ndarray, "class taken"]) -> list[tuple[int, int]]:
    """Class and the class that it is taken for, wherever that happens, the most frequent first."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    return [(int(place) // len(counts), int(place) % len(counts)) for place in order]


def training(path: Path_, lines: Sequence[Mapping[str, Any]]) -> None:
    """Draw loss, scores, learning rate and speed over the epochs from the lines of a `metrics.jsonl`.

    Scores of groups and scores beyond 1 are left out. `path` is treated as by `figures.picture`.
    """
    curves = {
        name: [(line["epoch"], line[name]) for line in lines if line.get(name) is not None]
        for name in _names(lines)
    }
    scores = [name for name in curves if name not in _PANELS]
    shown = {panel: [name] for name, panel in _PANELS.items() if name in curves}
    shown |= {"score": scores} if scores else {}
    with picture(path, (9, 0.8 + 2.2 * len(shown))) as figure:
        grid = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (panel, names) in zip(grid, shown.items(), strict=True):
            for name in names:
                marker = "." if len(curves[name]) < 60 else ""
                axes.plot(*zip(*curves[name], strict=True), marker=marker, label=name)
            axes.set_ylabel(panel)
            axes.grid(color=_PALE)
            if panel == "score":
                axes.legend(loc="lower right", frameon=False, fontsize="small")
        grid[-1].set_xlabel("epoch")
        grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True))


def _names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a log holds curves of: loss, learning rate, speed, and scores of all clips within 0 ... 1."""
    names = dict.fromkeys(
        name for line in lines for name in line if "/" not in name and name not in _NO_CURVE
    )
    numbers = {
        name: [line[name] for line in lines if isinstance(line.get(name), float | int)] for name in names
    }
    return [name for name, values in numbers.items() if values and (name in _PANELS or max(values) <= 1)]


def _bars(
    path: Path_,
    rows: Sequence[str],
    values: Float[np.ndarray, "bar"],
    texts: Sequence[str],
    *,
    title: str,
    full: float,
) -> None:
    """Draw horizontal bars, the first on top, on a pale one of length `full`, with a text behind each."""
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

"""Figures of a HEAR report: score distributions of many models, and two models compared task by task.

After Figures 4 to 10 of "Learning General Audio Representations with Large-Scale Training of Patchout Audio
Transformers". Cited models are grey and hatched, measured ones blue.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cbook import boxplot_stats
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from patchout.figures import fonts, picture, plain

NAME = 56  # characters of a model's name
ROW, HEAD = 0.27, 1.5  # inches: a row, and the space above and below all rows

_MEASURED: dict[str, Any] = {"facecolor": "#56b4e9", "edgecolor": "#0072b2"}
_CITED: dict[str, Any] = {"facecolor": "#eeeeee", "edgecolor": "#8a8a8a", "hatch": "////"}
_STYLE = {False: _MEASURED, True: _CITED}
_WORD = {False: "measured here", True: "cited: official submission"}
_INK = {False: "black", True: "#5f5f5f"}
_MEDIAN = "#d55e00"
_MARKERS = "osD^vP*X"  # of the cited models beside a pair
_FIRST = "#bfe0f5"  # the paler of a pair

Path_ = str | os.PathLike[str]


class Line(NamedTuple):
    """A row of a figure: a model and its scores."""

    name: str
    values: Mapping[str, float]  # task -> score
    is_cited: bool = False


def rows(
    path: Path_, lines: Sequence[Line], panels: Mapping[str, Sequence[str]], *, title: str, score: str
) -> None:
    """Draw box plots of scores: a row a model, a panel a group of tasks (`panels`: name -> tasks).

    Every task is a dot; the number of tasks stands beside the box. Quartiles are interpolated linearly, the
    whiskers reach to the last dot within 1.5 interquartile ranges. A panel of one task has bars and scores.
    """
    kinds = sorted({line.is_cited for line in lines}, reverse=True)
    handles: list[Any] = [Patch(label=_WORD[is_cited], **_STYLE[is_cited]) for is_cited in kinds]
    size = 4.6 + 2.7 * max(len(panels), 2), HEAD + ROW * max(len(lines), 2)
    with picture(path, size, title=title) as figure:
        grid = figure.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
        _rows(grid[0], [plain(line.name, NAME) for line in lines])
        for tick, line in zip(grid[0].get_yticklabels(), lines, strict=True):
            tick.set_color(_INK[line.is_cited])
        for axes, (panel, tasks) in zip(grid, panels.items(), strict=True):
            axes.set_title(panel, loc="left", fontsize=10, parse_math=False)
            for row, line in enumerate(lines):
                values = [line.values[task] for task in tasks if task in line.values]
                if len(tasks) == 1:
                    axes.barh([row] * len(values), values, height=0.66, **_STYLE[line.is_cited])
                    text = f"{values[0]:.3f}" if values else "-"
                else:
                    text = f"{len(values)}"
                    if values:
                        _box(axes, row, values, _STYLE[line.is_cited])
                _beside(axes, row, text, _INK[line.is_cited])
            if len(tasks) > 1:
                _beside(axes, -0.95, "tasks")
                handles[len(kinds) :] = [Line2D([], [], color=_MEDIAN, linewidth=2, label="median")]
        _finish(figure, score, handles)


def pair(
    path: Path_, two: Sequence[Line], cited: Sequence[Line], tasks: Sequence[str], *, title: str, score: str
) -> None:
    """Draw the scores of two measured models as bars, a row a task, and those of cited ones as markers."""
    with picture(path, (9.5, HEAD + 0.9 + 2 * ROW * max(len(tasks), 2)), title=title) as figure:
        axes = figure.subplots()
        for offset, colour, line in zip((-0.19, 0.19), (_FIRST, _MEASURED["facecolor"]), two, strict=True):
            style = _MEASURED | {"facecolor": colour, "label": _label(line)}
            scores, rows = _scores(line, tasks)
            axes.barh([row + offset for row in rows], scores, height=0.36, **style)
            for row, task in enumerate(tasks):
                _beside(axes, row + offset, f"{line.values[task]:.3f}" if task in line.values else "-")
        style = {"markerfacecolor": "none", "markeredgecolor": "#404040", "clip_on": False, "markersize": 6}
        for marker, line in zip(_MARKERS, cited, strict=False):
            axes.plot(*_scores(line, tasks), marker, label=_label(line), **style)
        _rows(axes, tasks)
        _finish(figure, score, axes.get_legend_handles_labels()[0])


def _scores(line: Line, tasks: Sequence[str]) -> tuple[list[float], list[int]]:
    """Scores of a model, and the rows of their tasks."""
    rows = [row for row, task in enumerate(tasks) if task in line.values]
    return [line.values[tasks[row]] for row in rows], rows


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows, the first one on top."""
    axes.set_yticks(range(len(names)), names, fontfamily=fonts(), parse_math=False, fontsize=9)
    axes.set_ylim(max(len(names), 2) - 0.5, -0.5)


def _box(axes: Axes, row: int, values: Sequence[float], style: dict[str, Any]) -> None:
    """Draw a horizontal box plot with all values as dots."""
    box = boxplot_stats(np.asarray(values))[0]
    ink = style["edgecolor"]
    axes.hlines([row, row], [box["whislo"], box["q3"]], [box["q1"], box["whishi"]], color=ink, linewidth=1)
    axes.barh(row, box["q3"] - box["q1"], left=box["q1"], height=0.66, **style)
    axes.vlines(box["med"], row - 0.36, row + 0.36, color=_MEDIAN, linewidth=2)
    axes.plot(values, [row] * len(values), ".", color="#303030", markersize=3)


def _beside(axes: Axes, row: float | int, text: str, colour: str = "black") -> None:
    """Write a word to the right of the axes."""
    place = axes.get_yaxis_transform()
    axes.text(1.01, row, text, transform=place, va="center", ha="left", fontsize=7.5, color=colour)


def _label(line: Line) -> str:
    return f"{plain(line.name, NAME)} ({'cited' if line.is_cited else 'measured'})".replace("$", r"\$")


def _finish(figure: Figure, score: str, handles: Sequence[Any]) -> None:
    """Set up the axes of the score, and the legend."""
    right = 1.02 * max(1.0, *(axes.dataLim.x1 for axes in figure.axes))
    for axes in figure.axes:
        axes.set_xlabel(score, fontsize=9)
        axes.set_xlim(left=0.0, right=right)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#e4e4e4")
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
    columns, font = 3 if len(handles) < 4 else 2, {"family": fonts(), "size": "small"}
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, prop=font)

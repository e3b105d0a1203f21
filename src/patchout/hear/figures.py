"""Pictures of a HEAR report: scores of many models by category, by task, and of two models task by task.

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

NAME = 56  # letters of a model
ROW, HEAD = 0.27, 1.5  # inches of a row, and of what stands above and below all rows

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
    """A model in a picture."""

    name: str
    values: Mapping[str, float]  # task -> score
    is_cited: bool = False


def rows(
    path: Path_, lines: Sequence[Line], panels: Mapping[str, Sequence[str]], *, title: str, score: str
) -> None:
    """Draw a box a model (row) over its tasks in every panel, each task as a dot, and how many tasks there are.

    Quartiles by linear interpolation, whiskers to the last dot within 1.5 of their distance; a task that a model lacks
    is left out. A panel of one task has bars and their numbers. `panels` is name -> tasks. `path` is treated as by
    `figures.picture`.
    """
    kinds = sorted({line.is_cited for line in lines}, reverse=True)
    handles: list[Any] = [Patch(label=_WORD[is_cited], **_STYLE[is_cited]) for is_cited in kinds]
    with picture(
        path, (4.6 + 2.7 * max(len(panels), 2), HEAD + ROW * max(len(lines), 2)), title=title
    ) as figure:
        for axes, tasks in zip(_grid(figure, lines, list(panels)), panels.values(), strict=True):
            for row, line in enumerate(lines):
                values = [line.values[task] for task in tasks if task in line.values]
                if len(tasks) == 1:
                    axes.barh([row] * len(values), values, height=0.66, **_STYLE[line.is_cited])
                    text = f"{values[0]:.3f}" if values else "-"
                else:
                    _box(axes, row, values, _STYLE[line.is_cited])
                    text = f"{len(values)}"
                _beside(axes, row, text, _INK[line.is_cited])
            if len(tasks) > 1:
                _beside(axes, -0.95, "tasks")
                handles[len(kinds) :] = [Line2D([], [], color=_MEDIAN, linewidth=2, label="median")]
        _finish(figure, score, handles)


def pair(
    path: Path_, two: Sequence[Line], cited: Sequence[Line], tasks: Sequence[str], *, title: str, score: str
) -> None:
    """Draw two measured models as bars for every task (row), and cited ones as marks on them.

    `path` is treated as by `figures.picture`.
    """
    with picture(path, (9.5, HEAD + 0.9 + 2 * ROW * max(len(tasks), 2)), title=title) as figure:
        axes = figure.subplots()
        for offset, colour, line in zip((-0.19, 0.19), (_FIRST, _MEASURED["facecolor"]), two, strict=True):
            values = {
                row + offset: line.values[task] for row, task in enumerate(tasks) if task in line.values
            }
            style = _MEASURED | {"facecolor": colour, "label": _label(line)}
            axes.barh(list(values), list(values.values()), height=0.36, **style)
            for row, task in enumerate(tasks):
                _beside(axes, row + offset, f"{line.values[task]:.3f}" if task in line.values else "-")
        for marker, line in zip(_MARKERS, cited, strict=False):
            values = {row: line.values[task] for row, task in enumerate(tasks) if task in line.values}
            style = {
                "markerfacecolor": "none",
                "markeredgecolor": "#404040",
                "clip_on": False,
                "label": _label(line),
            }
            axes.plot(list(values.values()), list(values), marker, markersize=6, **style)
        _rows(axes, tasks)
        _finish(figure, score, axes.get_legend_handles_labels()[0])


# -- parts ------------------------------------------------------------------------------------------------------------


def _grid(figure: Figure, lines: Sequence[Line], panels: Sequence[str]) -> list[Axes]:
    """Panels side by side whose rows are models; the names stand left of the first."""
    grid = figure.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
    _rows(grid[0], [plain(line.name, NAME) for line in lines])
    for tick, line in zip(grid[0].get_yticklabels(), lines, strict=True):
        tick.set_color(_INK[line.is_cited])
    for axes, panel in zip(grid, panels, strict=True):
        axes.set_title(panel, loc="left", fontsize=10, parse_math=False)
    return list(grid)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """The first on top."""
    axes.set_yticks(range(len(names)), names, fontfamily=fonts(), parse_math=False, fontsize=9)
    axes.set_ylim(max(len(names), 2) - 0.5, -0.5)


def _box(axes: Axes, row: int, values: Sequence[float], style: dict[str, Any]) -> None:
    if not values:
        return
    box = boxplot_stats(np.asarray(values))[0]
    ink = style["edgecolor"]
    axes.hlines([row, row], [box["whislo"], box["q3"]], [box["q1"], box["whishi"]], color=ink, linewidth=1)
    axes.barh(row, box["q3"] - box["q1"], left=box["q1"], height=0.66, **style)
    axes.vlines(box["med"], row - 0.36, row + 0.36, color=_MEDIAN, linewidth=2)
    axes.plot(values, [row] * len(values), ".", color="#303030", markersize=3)


def _beside(axes: Axes, row: float | int, text: str, colour: str = "black") -> None:
    """A word right of the data."""
    place = axes.get_yaxis_transform()
    axes.text(1.01, row, text, transform=place, va="center", ha="left", fontsize=7.5, color=colour)


def _label(line: Line) -> str:
    return f"{plain(line.name, NAME)} ({'cited' if line.is_cited else 'measured'})".replace("$", r"\$")


def _finish(figure: Figure, score: str, handles: Sequence[Any]) -> None:
    """Axes with the name of the score, and the legend."""
    right = 1.02 * max(1.0, *(axes.dataLim.x1 for axes in figure.axes))
    for axes in figure.axes:
        axes.set_xlabel(score, fontsize=9)
        axes.set_xlim(left=0.0, right=right)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="#e4e4e4")
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
    font = {"family": fonts(), "size": "small"}
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=3 if len(handles) < 4 else 2,
        frameon=False,
        prop=font,
    )

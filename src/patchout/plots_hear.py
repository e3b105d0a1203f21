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

from patchout.files import write_aside
from patchout.plots import fonts, picture_format, plain, save

NAME = 44  # letters of a model
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


class Words(NamedTuple):
    """What stands around a picture."""

    title: str
    score: str  # of the axis


def boxes(path: Path_, lines: Sequence[Line], panels: Mapping[str, Sequence[str]], words: Words) -> None:
    """Draw a box a model (row) over its tasks in every panel, each task as a dot, and how many tasks there are.

    Quartiles by linear interpolation, whiskers to the last dot within 1.5 of their distance; a task that a model lacks
    is left out. `panels` is name -> tasks. `path` is treated as by `plots.tags_over_time`.
    """
    kind = picture_format(path)
    figure, grid = _grid(lines, len(panels))
    for axes, (panel, tasks) in zip(grid, panels.items(), strict=True):
        for row, line in enumerate(lines):
            values = [line.values[task] for task in tasks if task in line.values]
            _box(axes, row, values, _STYLE[line.is_cited])
            _beside(axes, row, f"{len(values)}", line)
        _head(axes, panel, words.score)
        _beside(axes, -0.95, "tasks", None)
    _legend(figure, lines, [Line2D([], [], color=_MEDIAN, linewidth=2, label="median")])
    _finish(figure, path, kind, words.title)


def bars(path: Path_, lines: Sequence[Line], tasks: Sequence[str], words: Words) -> None:
    """Draw a bar a model (row) for every task (panel), with its number; a task that a model lacks has a dash.

    `path` is treated as by `plots.tags_over_time`.
    """
    kind = picture_format(path)
    figure, grid = _grid(lines, len(tasks))
    for axes, task in zip(grid, tasks, strict=True):
        for row, line in enumerate(lines):
            value = line.values.get(task)
            axes.barh(row, value or 0.0, height=0.66, **_STYLE[line.is_cited])
            _beside(axes, row, "-" if value is None else f"{value:.3f}", line)
        _head(axes, task, words.score)
    _legend(figure, lines, [])
    _finish(figure, path, kind, words.title)


def pair(path: Path_, two: tuple[Line, Line], cited: Sequence[Line], tasks: Sequence[str], words: Words) -> None:
    """Draw two measured models as bars for every task (row), and cited ones as marks on them.

    `path` is treated as by `plots.tags_over_time`.
    """
    kind = picture_format(path)
    figure = Figure(figsize=(9.5, HEAD + 0.9 + 2 * ROW * max(len(tasks), 2)), dpi=150, layout="constrained")
    axes = figure.subplots()
    handles: list[Any] = []
    for offset, colour, line in zip((-0.19, 0.19), (_FIRST, _MEASURED["facecolor"]), two, strict=True):
        rows = [row for row, task in enumerate(tasks) if task in line.values]
        values = [line.values[tasks[row]] for row in rows]
        places = [row + offset for row in rows]
        axes.barh(places, values, height=0.36, facecolor=colour, edgecolor=_MEASURED["edgecolor"])
        for place, value in zip(places, values, strict=True):
            _beside(axes, place, f"{value:.2f}", None)
        handles.append(Patch(facecolor=colour, edgecolor=_MEASURED["edgecolor"], label=_label(line)))
    for marker, line in zip(_MARKERS, cited, strict=False):
        points = [(line.values[task], row) for row, task in enumerate(tasks) if task in line.values]
        style: dict[str, Any] = {
            "marker": marker,
            "linestyle": "none",
            "color": "none",
            "markeredgecolor": "#404040",
            "clip_on": False,
        }
        axes.plot([x for x, _ in points], [y for _, y in points], markersize=6, **style)
        handles.append(Line2D([], [], markersize=6, label=_label(line), **style))
    _rows(axes, tasks)
    _head(axes, "", words.score)
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2, frameon=False, prop={"family": fonts(), "size": "small"}
    )
    _finish(figure, path, kind, words.title)


# -- parts ------------------------------------------------------------------------------------------------------------


def _grid(lines: Sequence[Line], num_panels: int) -> tuple[Figure, Sequence[Axes]]:
    """Panels side by side whose rows are models; the names stand left of the first."""
    height = HEAD + ROW * max(len(lines), 2)
    figure = Figure(figsize=(4.6 + 2.7 * max(num_panels, 2), height), dpi=150, layout="constrained")
    grid = figure.subplots(1, num_panels, sharey=True, sharex=True, squeeze=False)[0]
    _rows(grid[0], [plain(line.name, NAME) for line in lines])
    for tick, line in zip(grid[0].get_yticklabels(), lines, strict=True):
        tick.set_color(_INK[line.is_cited])
    return figure, list(grid)


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """The first on top."""
    axes.set_yticks(range(len(names)), names, fontfamily=fonts(), parse_math=False, fontsize=9)
    axes.set_ylim(max(len(names), 2) - 0.5, -0.5)


def _head(axes: Axes, title: str, score: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)
    axes.set_xlabel(score, fontsize=9)
    axes.set_xlim(left=0.0, right=max(1.0, axes.dataLim.x1) * 1.02)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e4e4e4")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _box(axes: Axes, row: int, values: Sequence[float], style: dict[str, Any]) -> None:
    if not values:
        return
    box = boxplot_stats(np.asarray(values))[0]
    ink = style["edgecolor"]
    axes.hlines([row, row], [box["whislo"], box["q3"]], [box["q1"], box["whishi"]], color=ink, linewidth=1)
    axes.barh(row, box["q3"] - box["q1"], left=box["q1"], height=0.66, **style)
    axes.vlines(box["med"], row - 0.36, row + 0.36, color=_MEDIAN, linewidth=2)
    axes.plot(values, [row] * len(values), ".", color="#303030", markersize=3)


def _beside(axes: Axes, row: float | int, text: str, line: Line | None) -> None:
    """A word right of the data."""
    colour = _INK[line is not None and line.is_cited]
    place = axes.get_yaxis_transform()
    axes.text(1.01, row, text, transform=place, va="center", ha="left", fontsize=7.5, color=colour)


def _legend(figure: Figure, lines: Sequence[Line], more: list[Any]) -> None:
    kinds = sorted({line.is_cited for line in lines}, reverse=True)
    handles = [*(Patch(label=_WORD[is_cited], **_STYLE[is_cited]) for is_cited in kinds), *more]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize="small")


def _label(line: Line) -> str:
    return f"{plain(line.name, NAME)} ({'cited' if line.is_cited else 'measured'})".replace("$", r"\$")


def _finish(figure: Figure, path: Path_, kind: str, title: str) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, parse_math=False)
    with write_aside(path) as aside:
        save(figure, aside, kind)

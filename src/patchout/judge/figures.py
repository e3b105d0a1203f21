"""Pictures of a judgement: a pair of sounds with the classes that differ, and protocols side by side."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from patchout.figures import Spectrogram, draw_spectrogram, fonts, label_time, picture, plain
from patchout.judge.metrics import Estimate

NAME = 40  # letters of a class
_GENERATED, _REFERENCE = "#2b6c99", "#d55e00"  # apart for every kind of colour vision

Path_ = str | os.PathLike[str]


def pair(
    path: Path_, sounds: Mapping[str, Spectrogram], classes: Sequence[tuple[str, float, float]], *, title: str
) -> None:
    """Draw two spectrograms, and below them the probabilities of the classes that differ most, in both.

    `path` is treated as by `figures.picture`.
    """
    heights = [2.2, 2.2, 0.5 + 0.4 * len(classes)]
    with picture(path, (9, sum(heights) + 1), title=plain(title, 90)) as figure:
        grid = figure.add_gridspec(3, 2, height_ratios=heights, width_ratios=[60, 1])
        longest_s = max(sound.duration_s for sound in sounds.values())
        for row, (name, sound) in enumerate(sounds.items()):
            axes = figure.add_subplot(grid[row, 0])
            draw_spectrogram(axes, figure.add_subplot(grid[row, 1]), sound)
            label_time(axes, longest_s)
            axes.set_title(plain(name, 90), loc="left", fontsize=10, fontfamily=fonts(), parse_math=False)
        axes = figure.add_subplot(grid[2, 0])
        places = np.arange(len(classes))
        for side, (name, colour) in enumerate((("generated", _GENERATED), ("reference", _REFERENCE)), 1):
            values = [float(row[side]) for row in classes]
            axes.barh(places + 0.4 * side - 0.6, values, 0.36, color=colour, label=name)
        axes.set_yticks(
            places, [plain(name, NAME) for name, _, _ in classes], fontfamily=fonts(), parse_math=False
        )
        axes.set_ylim(len(classes) - 0.5, -0.5)
        axes.set_xlabel("probability (softmax)")
        axes.legend(frameon=False, loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)


def compared(path: Path_, values: Mapping[str, Mapping[str, Estimate]], *, title: str) -> None:
    """Draw, for each metric, the number of every protocol with its interval and its ratio to the first.

    `values` is metric -> protocol -> estimate. `path` is treated as by `figures.picture`.
    """
    heights = [0.55 + 0.38 * len(rows) for rows in values.values()]
    with picture(path, (8.5, sum(heights) + 0.9), title=plain(title, 90)) as figure:
        panels = figure.subplots(len(values), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
        for axes, (metric, rows) in zip(panels, values.items(), strict=True):
            first = next(iter(rows.values())).value
            for place, estimate in enumerate(rows.values()):
                axes.plot((estimate.low, estimate.high), (place, place), color=_GENERATED, linewidth=2)
                axes.plot(estimate.value, place, "o", color=_GENERATED)
                ratio = f"   {estimate.value / first:.3f} x" if place and first else ""
                axes.annotate(
                    f"{estimate.value:.4g}{ratio}",
                    (1.01, place),
                    xycoords=("axes fraction", "data"),
                    va="center",
                )
            axes.set_yticks(range(len(rows)), list(rows))
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set_title(metric.upper(), loc="left", fontsize=10)
            axes.grid(axis="x", color="#e8eef3")
            axes.spines[["top", "right"]].set_visible(False)

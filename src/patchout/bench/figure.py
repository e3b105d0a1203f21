"""Speed against score, as the PaSST paper's Figure 1 shows it."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.ticker import LogLocator, NullFormatter

from patchout.figures import picture

LARGEST_POINTS = 72.0  # diameter of the largest circle
GAP_POINTS = 3.0  # between a circle and its name


class Circle(NamedTuple):
    """A model in the figure."""

    name: str
    clips_per_s: float
    score: float
    memory_gb: float


def speed_and_score(path: str | os.PathLike[str], circles: Sequence[Circle], *, title: str) -> None:
    """Draw training speed (x axis, log) against cited mAP (y axis); a circle's radius is its memory."""
    if not circles:
        raise ValueError("nothing to draw: no row has both a measured speed and a cited score")
    largest = max(circle.memory_gb for circle in circles)
    with picture(path, (8, 5), title=title) as figure:
        axes = figure.add_subplot()
        for circle in sorted(circles, key=lambda circle: -circle.memory_gb):  # small ones on top
            diameter = LARGEST_POINTS * circle.memory_gb / largest
            place, offset = (circle.clips_per_s, circle.score), (0, diameter / 2 + GAP_POINTS)
            axes.plot(*place, "o", markersize=diameter, color="#0072b2", alpha=0.35)
            text = f"{circle.name}  {circle.memory_gb:.2g} GB" if circle.name else ""
            style: dict[str, Any] = {"ha": "center", "fontsize": "small", "parse_math": False}
            axes.annotate(text, place, offset, textcoords="offset points", **style)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(0.2)
        axes.set_xlabel("training speed here, 10 s clips/s")
        axes.set_ylabel("AudioSet mAP, cited")
        axes.grid(alpha=0.3)
        axes.set_title("radius: activation memory of a clip", loc="right", fontsize="small")

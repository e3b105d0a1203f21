"""Speed against score, as the PaSST paper's Figure 1 shows it."""

import os
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from patchout.files import write_aside
from patchout.plots import picture_format, save

LARGEST_POINTS = 46.0  # diameter of the largest circle


class Circle(NamedTuple):
    """A model."""

    name: str
    clips_per_s: float
    score: float
    memory_gb: float


def speed_and_score(path: str | os.PathLike[str], circles: Sequence[Circle], *, title: str) -> None:
    """Draw training speed (log, to the right) against cited mAP (upwards); a circle's area is its memory.

    The suffix of `path` is the format. ValueError: another suffix, or no circle. OSError: the folder is missing.
    """
    kind = picture_format(path)
    if not circles:
        raise ValueError("nothing to draw: no row has both a measured speed and a cited score")
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    largest = max(circle.memory_gb for circle in circles)
    for circle in sorted(circles, key=lambda circle: -circle.memory_gb):  # small ones on top
        diameter = LARGEST_POINTS * (circle.memory_gb / largest) ** 0.5
        axes.plot(circle.clips_per_s, circle.score, "o", markersize=diameter, color="#0072b2", alpha=0.35)
        axes.text(circle.clips_per_s, circle.score, circle.name, ha="center", va="center", parse_math=False)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(0.15)
    axes.set_xlabel("training speed here, 10 s clips/s")
    axes.set_ylabel("AudioSet mAP, cited")
    axes.grid(alpha=0.3)
    axes.set_title(f"area: activation memory of a clip, largest {largest:.2g} GB", loc="right", fontsize="small")
    figure.suptitle(title, x=0.01, ha="left", parse_math=False)
    with write_aside(path) as aside:
        save(figure, aside, kind)

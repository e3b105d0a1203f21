"""Figures of tags: a spectrogram, and below it scores and events over time."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.colorbar import Colorbar
from matplotlib.patches import Rectangle

from patchout import figures
from patchout.figures import Floats, Spectrogram, draw_spectrogram, fonts, label_time, picture, plain
from patchout.inference.events import Event

MAX_ROWS = 10

_SCORE_MAP = "Blues"  # rises evenly in lightness, so every kind of colour vision reads it
_EVENT_COLOUR = "#d55e00"  # vermilion, apart from blue for every kind of colour vision


@dataclass(frozen=True, eq=False)
class TagTrack(Spectrogram):
    """A sound and its scores over time."""

    times_s: Floats  # (windows,) centre of each scored window, rising
    scores: Floats  # (windows, labels) within 0..1
    labels: Sequence[str]
    events: Sequence[Event] = ()

    def __post_init__(self) -> None:
        """Refuse arrays whose shapes do not belong together."""
        super().__post_init__()
        windows, labels = len(self.times_s), len(self.labels)
        if self.scores.shape != (windows, labels):
            raise ValueError(f"scores must be ({windows} times, {labels} labels), got {self.scores.shape}")


def tags_over_time(path: str | os.PathLike[str], track: TagTrack, *, title: str = "") -> None:
    """Draw the spectrogram, and the `MAX_ROWS` highest labels over time; `path` as in `picture`."""
    rows = top_rows(track)
    heights = [2.9, 0.36 * max(len(rows), 2)] if rows else [2.9]
    with picture(path, (10, sum(heights) + 0.9), title=plain(title, 64)) as figure:
        grid = figure.add_gridspec(len(heights), 2, height_ratios=heights, width_ratios=[60, 1])
        axes = [figure.add_subplot(grid[0, 0])]
        draw_spectrogram(axes[0], figure.add_subplot(grid[0, 1]), track)
        if rows:
            axes.append(figure.add_subplot(grid[1, 0], sharex=axes[0]))
            _draw_scores(axes[1], figure.add_subplot(grid[1, 1]), track, rows)
            axes[0].tick_params(labelbottom=False)
        label_time(axes[-1], track.duration_s)


def top_rows(track: TagTrack) -> list[int]:
    """Columns of `track.scores` to show, at most `MAX_ROWS`: those with events first, by highest score."""
    if track.scores.size == 0:
        return []
    with_events = {event.label for event in track.events}
    peaks = track.scores.max(axis=0)
    order = sorted(range(len(peaks)), key=lambda row: (track.labels[row] not in with_events, -peaks[row]))
    return order[:MAX_ROWS]


def _draw_scores(axes: Axes, bar: Axes, track: TagTrack, rows: list[int]) -> None:
    scores = figures.pool_columns(track.scores.T[rows], figures.MAX_COLUMNS)
    run = -(-len(track.times_s) // scores.shape[1])
    between_s = (track.times_s[1:] + track.times_s[:-1]) / 2
    end_s = max(track.duration_s, track.times_s[-1])
    edges_s = np.concatenate([[0.0], between_s[run - 1 :: run][: scores.shape[1] - 1], [end_s]])
    row_edges = np.arange(len(rows) + 1) - 0.5
    drawn = axes.pcolormesh(edges_s, row_edges, scores, cmap=_SCORE_MAP, vmin=0, vmax=1, rasterized=True)
    axes.hlines(row_edges[1:-1], 0, end_s, color="white", linewidth=2)
    _outline_events(axes, track, rows)
    names = [plain(track.labels[row], 32) for row in rows]
    axes.set_yticks(range(len(rows)), names, fontfamily=fonts(), parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()  # the highest on top
    Colorbar(bar, drawn, label="score", ticks=[0, 0.5, 1])


def _outline_events(axes: Axes, track: TagTrack, rows: list[int]) -> None:
    places = {track.labels[row]: place for place, row in enumerate(rows)}
    drawn = [event for event in track.events if event.label in places]
    corners = [(event.start_s, places[event.label] - 0.4) for event in drawn]
    boxes = [
        Rectangle(corner, event.end_s - event.start_s, 0.8)
        for corner, event in zip(corners, drawn, strict=True)
    ]
    axes.add_collection(PatchCollection(boxes, facecolor="none", edgecolor=_EVENT_COLOUR, linewidth=1.8))
    if boxes:
        axes.set_title("outlined: events", loc="right", fontsize="small", color=_EVENT_COLOUR)

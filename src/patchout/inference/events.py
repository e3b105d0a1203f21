"""Sound event detection: scores over time -> events with a start, an end and a score."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from patchout.models.decision import DEFAULT_THRESHOLD, NO_DECISION, Decision

OFF_SHARE = 0.6  # of the threshold, below which an event ends

Run = Int[np.ndarray, "run"]


@dataclass(frozen=True)
class Event:
    """One sound event: a stretch of time in which a class is active, with its highest score."""

    label: str
    start_s: float
    end_s: float
    score: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {
            "label": self.label,
            "start_s": round(self.start_s, 3),
            "end_s": round(self.end_s, 3),
            "score": round(self.score, 4),
        }


@dataclass(frozen=True, kw_only=True)
class EventRule:
    """The detection rule: windows of `window_s` every `hop_s`, a median filter, two thresholds.

    An event begins where the score reaches `on` and lasts while it stays at `off` or above (hysteresis).
    None: `on` is the threshold that the model has for the class, else 0.5; `off` is 0.6 of `on`.
    """

    window_s: float = 1.0
    hop_s: float = 0.25
    median: int = 3
    on: float | None = None
    off: float | None = None

    def __post_init__(self) -> None:
        """Refuse rules that find nothing or everything."""
        if not 0 < self.hop_s <= self.window_s:
            windows = f"event windows of {self.window_s} s every {self.hop_s} s"
            raise ValueError(f"{windows}: the hop must be within 0 and the window")
        if self.median < 1 or self.median % 2 == 0:
            raise ValueError(f"median counts windows and must be odd, got {self.median}")
        on = DEFAULT_THRESHOLD if self.on is None else self.on
        off = OFF_SHARE * on if self.off is None else self.off
        if not 0 < off <= on < 1:
            raise ValueError(f"thresholds must be 0 < off <= on < 1, got off {off:g} and on {on:g}")

    def thresholds(
        self, decision: Decision, num_classes: int
    ) -> tuple[Float[np.ndarray, "class"], Float[np.ndarray, "class"]]:
        """`on` and `off` of every class."""
        on = decision.limits(num_classes) if self.on is None else np.full(num_classes, self.on)
        return on, OFF_SHARE * on if self.off is None else np.minimum(self.off, on)


def find_events(
    track: Float[np.ndarray, "time class"],
    times_s: Float[np.ndarray, "time"],
    labels: Sequence[str],
    *,
    rule: EventRule,
    duration_s: float,
    decision: Decision = NO_DECISION,
) -> tuple[Event, ...]:
    """Events of every class, in order of start time.

    A window covers the time half-way to its neighbours; the first and the last reach the ends of the sound.
    `decision` is the model's.
    """
    if not len(times_s):
        return ()
    edges = np.concatenate([[0.0], (times_s[1:] + times_s[:-1]) / 2, [duration_s]])
    events, thresholds = [], rule.thresholds(decision, len(labels))
    ons, offs = (values.astype(track.dtype) for values in thresholds)
    for index in np.flatnonzero((track >= ons).any(axis=0)).tolist():
        smooth = median(track[:, index], rule.median)
        _, starts, ends = runs(smooth[:, None] >= offs[index])
        for first, last in zip(starts, ends, strict=True):
            on = np.flatnonzero(smooth[first:last] >= ons[index])
            if len(on):
                start, peak = edges[first + on[0]], smooth[first:last].max()
                events.append(Event(labels[index], float(start), float(edges[last]), float(peak)))
    return tuple(sorted(events, key=lambda event: (event.start_s, event.label)))


class Change(NamedTuple):
    """A class becomes active (`event` is None), or its event is over."""

    label: str
    start_s: float
    score: float  # the highest so far
    event: Event | None = None


class EventTracker:
    """`find_events` online: the same events, each told once as it begins and as it ends.

    Memory holds `rule.median` rows of scores; a change is known half as many windows after its own.
    """

    def __init__(self, labels: Sequence[str], rule: EventRule, decision: Decision) -> None:
        self._labels, self._half = labels, rule.median // 2
        self._on, self._off = (values.astype(np.float32) for values in rule.thresholds(decision, len(labels)))
        self._rows: deque[Float[np.ndarray, "class"]] = deque(maxlen=rule.median)
        self._times_s: deque[np.float32] = deque()  # of windows that wait for their median
        self._before_s: np.float32 | None = None  # time of the window before them
        self._peaks = np.full(len(labels), -1.0, np.float32)
        self._starts_s: dict[int, float] = {}  # of the active classes

    def push(self, time_s: np.float32, scores: Float[np.ndarray, "class"]) -> list[Change]:
        """The changes that are known by the scores of the next window, float32 as all `find_events` takes."""
        if not self._rows:
            self._rows.extend([scores] * self._half)
        self._rows.append(scores)
        self._times_s.append(time_s)
        return self._step() if len(self._rows) == self._rows.maxlen else []

    def finish(self, duration_s: float) -> list[Change]:
        """The changes at the end of the sound, where all events are over."""
        changes: list[Change] = []
        while self._times_s:
            self._rows.append(self._rows[-1])
            changes += self._step() if len(self._rows) == self._rows.maxlen else []
        return changes + [self._end(index, duration_s) for index in [*self._starts_s]]

    def _step(self) -> list[Change]:
        time_s = self._times_s.popleft()
        edge_s = 0.0 if self._before_s is None else float((time_s + self._before_s) / np.float32(2))
        self._before_s = time_s
        smooth = np.median(np.stack(self._rows), axis=0)
        goes_on = smooth >= self._off
        changes = [self._end(index, edge_s) for index in [*self._starts_s] if not goes_on[index]]
        self._peaks = np.where(goes_on, np.maximum(self._peaks, smooth), np.float32(-1))
        for index in np.flatnonzero(goes_on & (smooth >= self._on)).tolist():
            if index not in self._starts_s:
                self._starts_s[index] = edge_s
                changes.append(Change(self._labels[index], edge_s, float(self._peaks[index])))
        return changes

    def _end(self, index: int, end_s: float) -> Change:
        label, start_s, peak = self._labels[index], self._starts_s.pop(index), float(self._peaks[index])
        return Change(label, start_s, peak, Event(label, start_s, end_s, peak))


def median(values: Float[np.ndarray, "time"], size: int) -> Float[np.ndarray, "time"]:
    """Median filter over `size` neighbours, the ends repeated."""
    padded = np.pad(values, size // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, size), axis=1)


def runs(on: Bool[np.ndarray, "time class"]) -> tuple[Run, Run, Run]:
    """Runs of True: class, first time and one past the last of each; class by class."""
    edges = np.diff(np.pad(on, ((1, 1), (0, 0))).astype(np.int8), axis=0).T
    label, first = np.nonzero(edges == 1)
    return label, first, np.nonzero(edges == -1)[1]

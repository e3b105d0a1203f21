"""Scores of the HEAR evaluation kit under its names, and the conversion of frames to events and back.

Events are dicts of a label and its start and end in ms. Matching rules: Mesaros, Heittola and Virtanen,
"Metrics for Polyphonic Sound Event Detection" (2016), with the optimal matching that the kit uses.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypedDict

import numpy as np
from jaxtyping import Float
from scipy.ndimage import correlate1d
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from patchout.inference.events import runs
from patchout.inference.metrics import accuracy, d_prime, ranking


class EventRow(TypedDict):
    """A sound event; start and end in ms."""

    label: str
    start: float
    end: float


Events = Mapping[str, Sequence[EventRow]]  # file -> its events

THRESHOLD = 0.5  # of a frame's probability, strict
FRAME_SLACK_MS = 0.0001  # an event holds the frames of [start, end + this)
SEARCH_SLACK_S = 1e-3  # far above the rounding of search keys; the rule itself is checked exactly
MINIMIZED = frozenset({"segment_1s_er"})


SCENE_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {  # of predictions and targets
    "top1_acc": accuracy,
    "pitch_acc": accuracy,
    "chroma_acc": lambda scores, target: float((scores.argmax(1) % 12 == target.argmax(1) % 12).mean()),
    "mAP": lambda scores, target: float(np.nan_to_num(ranking(scores, target).precision).mean()),
    "aucroc": lambda scores, target: float(ranking(scores, target).auc[:, 0].mean()),
    "d_prime": lambda scores, target: float(d_prime(ranking(scores, target).auc[:, 0]).mean()),
}


def scene_scores(target: np.ndarray, prediction: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Scores of clips by the kit's names, from multi-hot targets and probabilities, both (clip, class).

    A class without a positive clip has average precision 0, and makes aucroc and d_prime NaN, as in the kit.
    """
    _check_names(names, list(SCENE_SCORES))
    if target.ndim != 2 or target.shape != prediction.shape or 0 in target.shape:
        shapes = f"targets {target.shape} and predictions {prediction.shape}"
        raise ValueError(f"{shapes} must both be (clip, class)")
    if not np.isfinite(prediction).all():
        raise ValueError("predictions have NaN or infinite values: there is nothing to rank")
    hot, values = target.astype(np.float64), prediction.astype(np.float64)
    with np.errstate(invalid="ignore"):  # d_prime may be infinite in both directions
        return {name: SCENE_SCORES[name](values, hot) for name in names}


class _Columns(NamedTuple):
    """Events of many files as arrays (event,)."""

    file: np.ndarray
    label: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray


def _event_columns(events: Events, files: Sequence[str], labels: dict[str, int]) -> _Columns:
    """Convert events to arrays; `labels` maps labels to numbers, and gets those that are new."""
    rows = [
        (index, labels.setdefault(str(event["label"]), len(labels)), event["start"], event["end"])
        for index, file in enumerate(files)
        for event in events[file]
    ]
    file, label, start_ms, end_ms = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    return _Columns(file.astype(np.int64), label.astype(np.int64), start_ms / 1e3, end_ms / 1e3)


def _concatenated_ranges(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate integer ranges first ... last - 1; returns the range of each number, and the numbers."""
    counts = np.maximum(last - first, 0)
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(counts.sum()) - (np.cumsum(counts) - counts)[owner] + first[owner]


def _hits(target: _Columns, predicted: _Columns, collar_s: float, share: float | None) -> int:
    """Size of a maximum matching of events: same file and label, close onsets and (with `share`) offsets."""
    if not len(target.file) or not len(predicted.file):
        return 0
    num_labels = 1 + max(target.label.max(), predicted.label.max())
    span_s = 1 + max(target.start_s.max(), predicted.start_s.max())
    group, predicted_group = (events.file * num_labels + events.label for events in (target, predicted))
    key, predicted_key = group * span_s + target.start_s, predicted_group * span_s + predicted.start_s
    order = np.argsort(predicted_key)
    reach = collar_s + SEARCH_SLACK_S
    first, last = (np.searchsorted(predicted_key[order], key + side) for side in (-reach, reach))
    row, place = _concatenated_ranges(first, last)
    column = order[place]
    agree = np.abs(target.start_s[row] - predicted.start_s[column]) <= collar_s
    agree &= group[row] == predicted_group[column]
    if share is not None:
        allowed = np.maximum(collar_s, share * (target.end_s - target.start_s))
        agree &= np.abs(target.end_s[row] - predicted.end_s[column]) <= allowed[row]
    row, column = row[agree], column[agree]
    pairs = csr_matrix((np.ones(len(row), bool), (row, column)), shape=(len(group), len(predicted_group)))
    return int((maximum_bipartite_matching(pairs, perm_type="column") >= 0).sum())


def _f_scores(
    target: _Columns, predicted: _Columns, collar_s: float, share: float | None
) -> dict[str, float]:
    """Event-based precision, recall and F over all files and labels; NaN where nothing was predicted."""
    hits = _hits(target, predicted, collar_s, share)
    precision = hits / len(predicted.file) if len(predicted.file) else math.nan
    recall = hits / len(target.file) if len(target.file) else math.nan
    f_measure = 2 * precision * recall / (precision + recall) if precision + recall != 0 else 0.0
    return {"": f_measure, "_f_measure": f_measure, "_precision": precision, "_recall": recall}


def _error_rate(target: _Columns, predicted: _Columns) -> dict[str, float]:
    """Segment-based error rate: substitutions, deletions, insertions in segments of 1 s, over the targets."""
    num_labels = 1 + max(int(events.label.max(initial=0)) for events in (target, predicted))
    num_segments = 1 + max(math.ceil(events.end_s.max(initial=0)) for events in (target, predicted))
    codes = []  # of (file, segment, label), each once
    for events in (target, predicted):
        owner, segment = _concatenated_ranges(
            np.floor(events.start_s).astype(int), np.ceil(events.end_s).astype(int)
        )
        segment += events.file[owner] * num_segments
        codes.append(np.unique(segment * num_labels + events.label[owner]))
    segments, inverse = np.unique(np.concatenate(codes) // num_labels, return_inverse=True)
    num_target = len(codes[0])
    parts = (inverse[:num_target], inverse[num_target:])
    larger = np.maximum(*(np.bincount(part, minlength=len(segments)) for part in parts))  # labels a segment
    rate = float((larger.sum() - np.isin(codes[0], codes[1]).sum()) / (num_target + np.spacing(1)))
    return {"": rate, "_error_rate": rate}


EVENT_SCORES: dict[str, Callable[[_Columns, _Columns], dict[str, float]]] = {  # of targets and predictions
    "event_onset_200ms_fms": partial(_f_scores, collar_s=0.2, share=None),
    "event_onset_50ms_fms": partial(_f_scores, collar_s=0.05, share=None),
    "event_onset_offset_50ms_20perc_fms": partial(_f_scores, collar_s=0.05, share=0.2),
    "segment_1s_er": _error_rate,
}


def event_scores(target_events: Events, predicted_events: Events, names: Sequence[str]) -> dict[str, float]:
    """Scores of events by the kit's names and keys: `<name>`, and parts such as `<name>_f_measure`.

    As in the kit, the files of the predictions are scored; one without a target is a ValueError.
    """
    _check_names(names, list(EVENT_SCORES))
    files = list(predicted_events)
    if unknown := [file for file in files if file not in target_events]:
        todo = "give the split they were made from"
        raise ValueError(f"predicted events of {unknown[0]}, which has no target: {todo}")
    labels: dict[str, int] = {}
    columns = [_event_columns(events, files, labels) for events in (target_events, predicted_events)]
    return {name + part: value for name in names for part, value in EVENT_SCORES[name](*columns).items()}


def _check_names(names: Sequence[str], allowed: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in allowed]:
        raise ValueError(f"unknown score {unknown[0]!r}: scores of this kind are {', '.join(allowed)}")


def frames_from_events(
    events: Sequence[EventRow], timestamps_ms: Float[np.ndarray, "time"], labels: Sequence[str]
) -> Float[np.ndarray, "time class"]:
    """Multi-hot targets of one file's frames, whose times must increase."""
    index = {label: number for number, label in enumerate(labels)}
    target = np.zeros((len(timestamps_ms), len(labels)), np.float32)
    for event in events:
        first, last = np.searchsorted(timestamps_ms, [event["start"], event["end"] + FRAME_SLACK_MS])
        target[first:last, index[str(event["label"])]] = 1
    return target


def events_from_frames(
    prediction: np.ndarray,
    timestamps_ms: np.ndarray,
    labels: Sequence[str],
    median_filter_ms: float | int,
    min_duration_ms: float | int,
) -> list[EventRow]:
    """Events of one file by start, from (time, class) probabilities: median-filtered, above 0.5, long enough.

    An event ends with the time of its last frame, as in the kit.
    """
    if prediction.shape != (shape := (len(timestamps_ms), len(labels))):
        raise ValueError(f"predictions have the shape {prediction.shape}, times and labels ask for {shape}")
    order = np.argsort(timestamps_ms, kind="stable")
    times = np.asarray(timestamps_ms, np.float64)[order]
    size = round(median_filter_ms / float(np.diff(times).mean())) if len(times) > 1 else 0
    active = prediction[order] > THRESHOLD
    if (
        size > 1
    ):  # the median of zeros and ones is a majority; of an even size the upper of the two middle values
        counts = correlate1d(active.astype(np.int32), np.ones(size), axis=0, mode="reflect")
        active = counts >= size - size // 2
    label, first, end = runs(active)
    spans = zip(times[first].tolist(), times[end - 1].tolist(), label.tolist(), strict=True)
    rows = [EventRow(label=labels[k], start=a, end=b) for a, b, k in spans if b - a >= min_duration_ms]
    return sorted(rows, key=lambda row: row["start"])

"""The scores of the HEAR evaluation kit under its names, and the way from frames to events and back.

Events are dicts of a label and its start and end in ms. Matching rules: Mesaros, Heittola and Virtanen, "Metrics for
Polyphonic Sound Event Detection" (2016), with the optimal matching that the kit uses.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from patchout.inference.events import runs
from patchout.inference.metrics import accuracy, d_prime, ranking


class EventRow(TypedDict):
    """One event; start and end in ms."""

    label: str
    start: float
    end: float


Events = Mapping[str, Sequence[EventRow]]  # file -> its events

THRESHOLD = 0.5  # of a frame's probability, strict
FRAME_SLACK_MS = 0.0001  # an event holds the frames of [start, end + this)
SEARCH_SLACK_S = 1e-3  # far above the rounding of search keys; the rule itself is checked exactly
MINIMIZED = frozenset({"segment_1s_er"})


# -- clips ------------------------------------------------------------------------------------------------------------


def _chroma(target: np.ndarray, prediction: np.ndarray) -> float:
    return float((target.argmax(1) % 12 == prediction.argmax(1) % 12).mean())


def _auc(target: np.ndarray, prediction: np.ndarray) -> Float[np.ndarray, "class"]:
    return ranking(prediction, target).auc[:, 0]


SCENE_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "top1_acc": lambda target, prediction: accuracy(prediction, target),
    "pitch_acc": lambda target, prediction: accuracy(prediction, target),
    "chroma_acc": _chroma,
    "mAP": lambda target, prediction: float(np.nan_to_num(ranking(prediction, target).precision).mean()),
    "aucroc": lambda target, prediction: float(_auc(target, prediction).mean()),
    "d_prime": lambda target, prediction: float(d_prime(_auc(target, prediction)).mean()),
}


def scene_scores(target: np.ndarray, prediction: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """Scores by the kit's names: multi-hot targets and probabilities, both (clip, class).

    A class without a positive clip has average precision 0, and makes aucroc and d_prime NaN, as in the kit.
    """
    _check_names(names, list(SCENE_SCORES))
    if target.ndim != 2 or target.shape != prediction.shape or 0 in target.shape:
        raise ValueError(
            f"targets {target.shape} and predictions {prediction.shape} must both be (clip, class)"
        )
    if not np.isfinite(prediction).all():
        raise ValueError("predictions have NaN or infinite values: there is nothing to rank")
    hot, values = target.astype(np.float64), prediction.astype(np.float64)
    with np.errstate(invalid="ignore"):  # d_prime may be infinite in both directions
        return {name: SCENE_SCORES[name](hot, values) for name in names}


# -- events -----------------------------------------------------------------------------------------------------------


class _Columns(NamedTuple):
    """Events of many files as arrays (event,)."""

    file: np.ndarray
    label: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray


def _event_columns(events: Events, files: Sequence[str], labels: dict[str, int]) -> _Columns:
    """`labels` numbers the labels and grows."""
    rows = [
        (index, labels.setdefault(str(event["label"]), len(labels)), event["start"], event["end"])
        for index, file in enumerate(files)
        for event in events[file]
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 4)
    return _Columns(
        table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2] / 1e3, table[:, 3] / 1e3
    )


def _spread(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every whole number of the ranges first ... last - 1 with the index of its range."""
    counts = np.maximum(last - first, 0)
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(counts.sum()) - (np.cumsum(counts) - counts)[owner] + first[owner]


def _hits(target: _Columns, found: _Columns, collar_s: float, share: float | None) -> int:
    """Size of a largest matching of events of one file and label whose onsets, and with `share` offsets, agree."""
    if not len(target.file) or not len(found.file):
        return 0
    num_labels = 1 + max(target.label.max(), found.label.max())
    group, found_group = (events.file * num_labels + events.label for events in (target, found))
    span_s = 1 + max(target.start_s.max(), found.start_s.max())
    key, found_key = group * span_s + target.start_s, found_group * span_s + found.start_s
    order = np.argsort(found_key)
    reach = collar_s + SEARCH_SLACK_S
    first, last = (np.searchsorted(found_key[order], key + side) for side in (-reach, reach))
    row, place = _spread(first, last)
    column = order[place]
    agree = (group[row] == found_group[column]) & (
        np.abs(target.start_s[row] - found.start_s[column]) <= collar_s
    )
    if share is not None:
        allowed = np.maximum(collar_s, share * (target.end_s - target.start_s))
        agree &= np.abs(target.end_s[row] - found.end_s[column]) <= allowed[row]
    row, column = row[agree], column[agree]
    pairs = csr_matrix((np.ones(len(row), bool), (row, column)), shape=(len(group), len(found_group)))
    return int((maximum_bipartite_matching(pairs, perm_type="column") >= 0).sum())


def _f_scores(target: _Columns, found: _Columns, collar_s: float, share: float | None) -> dict[str, float]:
    """Over all files and labels; precision and F are NaN where nothing was found."""
    hits = _hits(target, found, collar_s, share)
    precision = hits / len(found.file) if len(found.file) else math.nan
    recall = hits / len(target.file) if len(target.file) else math.nan
    f_measure = 2 * precision * recall / (precision + recall) if precision + recall != 0 else 0.0
    return {"": f_measure, "_f_measure": f_measure, "_precision": precision, "_recall": recall}


def _error_rate(target: _Columns, found: _Columns) -> dict[str, float]:
    """Substitutions, deletions and insertions of labels in segments of 1 s, over the labels that are there."""
    both = [np.concatenate(pair) for pair in zip(target, found, strict=True)]
    num_labels, num_segments = (1 + int(np.max(column, initial=0)) for column in (both[1], np.ceil(both[3])))
    codes = []  # of (file, segment, label), each once
    for events in (target, found):
        owner, segment = _spread(np.floor(events.start_s).astype(int), np.ceil(events.end_s).astype(int))
        codes.append(
            np.unique((events.file[owner] * num_segments + segment) * num_labels + events.label[owner])
        )
    there, said = codes
    segments, inverse = np.unique(np.concatenate([there, said]) // num_labels, return_inverse=True)
    num_there = np.bincount(inverse[: len(there)], minlength=len(segments))
    num_said = np.bincount(inverse[len(there) :], minlength=len(segments))
    right = np.isin(there, said).sum()
    errors = (
        np.maximum(num_there, num_said).sum() - right
    )  # min - right are replaced, the rest too few or many
    rate = float(errors / (len(there) + np.spacing(1)))
    return {"": rate, "_error_rate": rate}


EVENT_SCORES: dict[str, Callable[[_Columns, _Columns], dict[str, float]]] = {
    "event_onset_200ms_fms": lambda target, found: _f_scores(target, found, 0.2, None),
    "event_onset_50ms_fms": lambda target, found: _f_scores(target, found, 0.05, None),
    "event_onset_offset_50ms_20perc_fms": lambda target, found: _f_scores(target, found, 0.05, 0.2),
    "segment_1s_er": _error_rate,
}


def event_scores(target_events: Events, predicted_events: Events, names: Sequence[str]) -> dict[str, float]:
    """Scores by the kit's names and keys: `<name>` and its parts, such as `<name>_f_measure` or `<name>_error_rate`.

    As in the kit, the files of the predictions are scored; one without a target is a ValueError.
    """
    _check_names(names, list(EVENT_SCORES))
    files = list(predicted_events)
    if unknown := [file for file in files if file not in target_events]:
        raise ValueError(
            f"predicted events of {unknown[0]}, which has no target: give the split they were made from"
        )
    labels: dict[str, int] = {}
    target, found = (_event_columns(events, files, labels) for events in (target_events, predicted_events))
    return {name + part: value for name in names for part, value in EVENT_SCORES[name](target, found).items()}


def _check_names(names: Sequence[str], known: Sequence[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown score {unknown[0]!r}: scores of this kind are {', '.join(known)}")


# -- frames -----------------------------------------------------------------------------------------------------------


def frames_from_events(
    events: Sequence[EventRow], timestamps_ms: Float[np.ndarray, "time"], labels: Sequence[str]
) -> Float[np.ndarray, "time class"]:
    """Multi-hot targets of one file's frames, whose times increase."""
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
    """Events of one file, by start: (time, class) probabilities, median-filtered, above 0.5, and long enough.

    An event ends with the time of its last frame, as in the kit.
    """
    if prediction.shape != (len(timestamps_ms), len(labels)):
        shape = (len(timestamps_ms), len(labels))
        raise ValueError(f"predictions have the shape {prediction.shape}, times and labels ask for {shape}")
    order = np.argsort(timestamps_ms, kind="stable")
    times = np.asarray(timestamps_ms, np.float64)[order]
    size = round(median_filter_ms / float(np.diff(times).mean())) if len(times) > 1 else 0
    label, first, end = runs(_majority(prediction[order] > THRESHOLD, size))
    spans = zip(label.tolist(), times[first].tolist(), times[end - 1].tolist(), strict=True)
    rows = [
        EventRow(label=labels[index], start=start, end=last)
        for index, start, last in spans
        if last - start >= min_duration_ms
    ]
    return sorted(rows, key=lambda row: row["start"])


def _majority(active: Bool[np.ndarray, "time class"], size: int) -> Bool[np.ndarray, "time class"]:
    """What a median over `size` values, mirrored at the ends, leaves above the threshold (the upper of two middles)."""
    if size < 2:
        return active
    padded = np.pad(active, ((size // 2, (size - 1) // 2), (0, 0)), mode="symmetric")
    sums = np.cumsum(np.pad(padded, ((1, 0), (0, 0))), axis=0)
    return sums[size:] - sums[:-size] >= size - size // 2

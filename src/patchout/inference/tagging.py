"""Any length of audio -> tags and events."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from patchout.audio import stream as audio
from patchout.audio.mel import log_mel
from patchout.audio.read_ahead import read_ahead
from patchout.inference.events import Event, EventRule, find_events
from patchout.inference.window_scores import Scored, score
from patchout.models.device import InferencePrecision
from patchout.models.tagger import Tagger, TaggerConfig, hear


@dataclass(frozen=True)
class Tags:
    """The best labels of one sound with their scores, and its events in order of time."""

    file: str
    duration_s: float
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    events: tuple[Event, ...] = ()
    warning: str | None = None
    error: str | None = None
    segment_s: tuple[float, float] | None = None  # where in the file, if it is not the whole of it
    thresholds: tuple[float, ...] = ()  # of the labels; none: the model has none, and nobody gave one

    @property
    def passed(self) -> tuple[bool, ...]:
        """Whether each label's score reaches its threshold; empty without thresholds."""
        pairs = zip(self.scores, self.thresholds, strict=False)
        return tuple(score >= threshold for score, threshold in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, as `patchout tag --format json` prints them."""
        edges = zip(("start_s", "end_s"), self.segment_s or (), strict=False)
        names, scores = ("label", "score", "threshold", "passed"), (round(score, 4) for score in self.scores)
        thresholds = [round(threshold, 4) for threshold in self.thresholds]
        rows = zip(self.labels, scores, thresholds or repeat(None), self.passed or repeat(None), strict=False)
        return {
            "file": self.file,
            **{name: round(edge, 3) for name, edge in edges},
            "duration_s": round(self.duration_s, 3),
            "tags": [dict(zip(names, row, strict=True)) for row in rows],
            "events": [event.to_dict() for event in self.events],
            "warning": self.warning,
            "error": self.error,
        }


def tag(
    model: Tagger,
    source: audio.Source,
    *,
    top: int = 5,
    events: EventRule | None = None,
    precision: InferencePrecision = "fp32",
    batch_size: int = 16,
) -> Tags:
    """The `top` labels of one sound of any length and, with a rule, its events.

    Up to `model.config.max_samples` in one pass; a longer sound in windows that overlap by half, scores
    averaged. One shorter than the clips that the model was trained on gets silence after it
    (`model.config.pad_s`). In digital silence nothing is heard, unless silence is a class: scores of 0, no
    event. Of several channels the model hears the one it was trained on (`model.config.channel`), by default
    their mean. Where the model or the rule has thresholds, labels that reach them come first. Raises
    AudioError (a ValueError) or OSError.
    """
    _check_top(top)
    streams = read_ahead([hear(model.config, source)], threads=1)
    scored = score(model, streams, events=events, precision=precision, batch_size=batch_size, strict=True)
    rule, is_wanted = events or EventRule(), events is not None
    return to_tags(next(scored), model.config, top=top, rule=rule, events=is_wanted)


def tag_many(
    model: Tagger,
    sources: Iterable[audio.Source],
    *,
    top: int = 5,
    events: EventRule | None = None,
    precision: InferencePrecision = "fp32",
    batch_size: int = 16,
) -> Iterator[Tags]:
    """`tag` for many sounds, in order, batched together; one that fails has `.error` and no labels.

    Sources in a list or tuple are decoded ahead by threads; others are asked for one after the other.
    """
    _check_top(top)
    rule, is_wanted = events or EventRule(), events is not None
    streams: Iterable[audio.Stream] = (hear(model.config, source) for source in sources)
    streams = read_ahead(streams) if isinstance(sources, list | tuple) else streams
    for scored in score(model, streams, events=events, precision=precision, batch_size=batch_size):
        yield to_tags(scored, model.config, top=top, rule=rule, events=is_wanted)


def to_tags(scored: Scored, config: TaggerConfig, *, top: int, rule: EventRule, events: bool) -> Tags:
    """The `top` labels of a scored sound by the thresholds of a rule or the model; and perhaps its events."""
    name, duration_s, scores = scored.name, scored.duration_s, scored.scores
    if scores is None:
        return Tags(name, duration_s, (), (), (), scored.warning, scored.error)
    if scored.is_silent and not config.knows_silence:
        scores = np.zeros_like(scores)  # what a model says of zeros would pass for a sound
    thresholds, _ = rule.thresholds(config.decision, len(scores))
    is_open = rule.on is None and not config.decision.points  # nobody has decided from which score on
    passed = np.zeros(len(scores), bool) if is_open else scores >= thresholds
    best = np.lexsort((-scores, ~passed))[:top]
    detected: tuple[Event, ...] = ()
    if events:
        decision, track = config.decision, (scored.track, scored.times_s, config.labels)
        detected = find_events(*track, rule=rule, duration_s=duration_s, decision=decision)
    labels = tuple(config.labels[index] for index in best)
    chosen = () if is_open else tuple(thresholds[best].tolist())
    values = tuple(scores[best].tolist())
    return Tags(name, duration_s, labels, values, detected, scored.warning, thresholds=chosen)


def in_file(tags: Tags, start_s: float) -> Tags:
    """Tags of a segment that begins at `start_s`, with the events at their times in the file."""
    spans = ((event, start_s + event.start_s, start_s + event.end_s) for event in tags.events)
    events = tuple(replace(event, start_s=start, end_s=end) for event, start, end in spans)
    return replace(tags, events=events, segment_s=(start_s, start_s + tags.duration_s))


def _check_top(top: int) -> None:
    if top < 1:
        raise ValueError(f"top counts labels and must be at least 1, got {top}")


def overview(
    source: audio.Source, config: TaggerConfig, *, duration_s: float, limit: int = 2000
) -> tuple[Float[np.ndarray, "mel column"], float]:
    """A whole sound's log-mel for a picture, max-pooled to about `limit` columns, and their seconds.

    Reads the source in pieces of ten seconds.
    """
    mel = replace(config.mel, mean=None, std=None)  # a picture shows levels
    pool = max(1, math.ceil(duration_s / mel.frame_s / limit))
    size = pool * max(1, round(10 / mel.frame_s / pool)) * mel.hop_length  # whole columns
    pieces = []
    for start, wave in audio.windows(hear(config, source), size, size):
        fresh = wave[-((len(wave) - 1) % size + 1) :] if start % size == 0 else wave[size - start % size :]
        fresh = np.pad(fresh, (0, max(0, mel.min_samples - len(fresh))))
        piece = log_mel(torch.from_numpy(fresh)[None], mel)[0].numpy()
        pieces.append(np.maximum.reduceat(piece, np.arange(0, piece.shape[1], pool), axis=1))
    return np.concatenate(pieces, axis=1), pool * mel.frame_s

"""Any length of audio -> tags and events: windows of many files run in one batch."""

import heapq
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchout.audio import stream as audio
from patchout.audio.mel import log_mel
from patchout.inference.events import Event, EventRule, find_events
from patchout.models.device import Precision, autocast
from patchout.models.tagger import Tagger, TaggerConfig, check_labels, hear

WAIT_BATCHES = 4  # a window runs at the latest when so many full batches were queued after it
OVERLAP = 2  # every moment of a long clip lies in this many windows
Scores = Float[np.ndarray, "class"]


@dataclass(frozen=True)
class Scored:
    """What the model says of one source: class scores of the whole and of every moment, or the reason why not."""

    name: str
    duration_s: float = 0.0
    scores: Scores | None = None  # mean over windows; None: failed
    times_s: Float[np.ndarray, "time"] = field(
        default_factory=lambda: np.zeros(0, np.float32)
    )  # window centres
    track: Float[np.ndarray, "time class"] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    warning: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Tags:
    """Labels of one source with their scores, best first, and events in order of time."""

    file: str
    duration_s: float
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    events: tuple[Event, ...] = ()
    warning: str | None = None
    error: str | None = None
    segment_s: tuple[float, float] | None = None  # where in the file, if it is not the whole of it

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, as `patchout tag --format json` prints them."""
        return {
            "file": self.file,
            **{
                name: round(edge, 3)
                for name, edge in zip(("start_s", "end_s"), self.segment_s or (), strict=False)
            },
            "duration_s": round(self.duration_s, 3),
            "tags": [
                {"label": name, "score": round(score, 4)}
                for name, score in zip(self.labels, self.scores, strict=True)
            ],
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
    precision: Precision = "fp32",
    batch_size: int = 16,
) -> Tags:
    """The `top` labels of one sound of any length and, with a rule, its events.

    Up to `model.config.max_samples` in one pass; a longer sound in windows that overlap by half, scores averaged. One
    shorter than the clips that the model was trained on gets silence after it (`model.config.pad_s`). Of several
    channels the model hears the one it was trained on (`model.config.channel`), by default their mean.
    Raises AudioError (a ValueError) or OSError that name the source.
    """
    _check_top(top)
    stream = hear(model.config, source)
    scored = next(
        score(model, [stream], events=events, precision=precision, batch_size=batch_size, strict=True)
    )
    return to_tags(scored, model.config, top=top, events=events)


def tag_many(
    model: Tagger,
    sources: Iterable[audio.Source],
    *,
    top: int = 5,
    events: EventRule | None = None,
    precision: Precision = "fp32",
    batch_size: int = 16,
) -> Iterator[Tags]:
    """`tag` for many sources, in order, windows batched together; a source that fails has `.error` and no labels."""
    _check_top(top)
    streams = (hear(model.config, source) for source in sources)
    for scored in score(model, streams, events=events, precision=precision, batch_size=batch_size):
        yield to_tags(scored, model.config, top=top, events=events)


def to_tags(scored: Scored, config: TaggerConfig, *, top: int, events: EventRule | None) -> Tags:
    """The best labels of a scored source, and its events by `events`."""
    if scored.scores is None:
        return Tags(scored.name, scored.duration_s, (), (), (), scored.warning, scored.error)
    best = np.argsort(-scored.scores, kind="stable")[:top]
    found: tuple[Event, ...] = ()
    if events is not None:
        found = find_events(
            scored.track, scored.times_s, config.labels, rule=events, duration_s=scored.duration_s
        )
    labels = tuple(config.labels[index] for index in best)
    values = tuple(float(scored.scores[index]) for index in best)
    return Tags(scored.name, scored.duration_s, labels, values, found, scored.warning, None)


def _check_top(top: int) -> None:
    if top < 1:
        raise ValueError(f"top counts labels and must be at least 1, got {top}")


def overview(
    source: audio.Source, config: TaggerConfig, *, duration_s: float, limit: int = 2000
) -> tuple[Float[np.ndarray, "mel column"], float]:
    """A whole sound's log-mel for a picture, at most about `limit` columns, and the seconds of a column.

    Reads the source in pieces of ten seconds; a column is the maximum of its frames.
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


# -- the engine -------------------------------------------------------------------------------------------------------


def score(
    model: Tagger,
    streams: Iterable[audio.Stream],
    *,
    events: EventRule | None = None,
    precision: Precision = "fp32",
    batch_size: int = 16,
    strict: bool = False,
) -> Iterator[Scored]:
    """Score every stream (at the model's rate), in order; with `strict` a stream that fails raises instead."""
    check_labels(model.config)
    batcher = _Batcher(model, batch_size=batch_size, precision=precision)
    open_files: deque[_File] = deque()
    for stream in streams:
        file = _File(stream, events)
        open_files.append(file)
        try:
            for is_clip, start, wave in file.windows(model.config):
                batcher.add(file, is_clip, start, wave)
                yield from _finished(open_files, model.config)  # a long file holds back none before it
        except (audio.AudioError, OSError) as error:
            if strict:
                raise
            file.error = str(error)
        file.complete = True
        yield from _finished(open_files, model.config)
    batcher.flush()
    yield from _finished(open_files, model.config)


def _finished(open_files: "deque[_File]", config: TaggerConfig) -> Iterator[Scored]:
    """Take the files off the front that are done."""
    while open_files and open_files[0].is_done:
        yield open_files.popleft().scored(config)


class _File:
    """One source on its way: its windows out, their scores back in."""

    def __init__(self, stream: audio.Stream, events: EventRule | None) -> None:
        self.stream = stream
        self.rule = events
        self.complete = False  # all windows are cut
        self.pending = 0  # windows whose scores are not back
        self.error: str | None = None
        self.clip_windows = 0
        self.clip_sum: Any = 0.0
        self.moments: list[tuple[float, Scores]] = []  # centre in samples, scores

    @property
    def is_done(self) -> bool:
        return self.complete and self.pending == 0

    def windows(self, config: TaggerConfig) -> Iterator[tuple[bool, int, Float[np.ndarray, "sample"]]]:
        """(for the whole clip?, start sample, wave): clip and event windows of one decoding, in order of their ends."""
        size, rate = config.max_samples, config.mel.sample_rate
        if self.rule is None:
            return ((True, *window) for window in audio.windows(self.stream, size, size // OVERLAP))
        for_clip, for_events = _two_readers(iter(self.stream))
        short, hop = min(size, round(self.rule.window_s * rate)), round(self.rule.hop_s * rate)
        clip = ((True, *window) for window in audio.windows(for_clip, size, size // OVERLAP))
        moments = ((False, *window) for window in audio.windows(for_events, short, min(short, hop)))
        return heapq.merge(clip, moments, key=lambda window: window[1] + len(window[2]))

    def receive(self, is_clip: bool, centre: float, scores: Scores) -> None:
        """Take the scores of one window."""
        self.pending -= 1
        if is_clip:
            self.clip_windows += 1
            self.clip_sum = self.clip_sum + scores.astype(np.float64)
        else:
            self.moments.append(
                (centre, scores.astype(np.float16))
            )  # ten hours of 527 classes fit into 150 MB

    def scored(self, config: TaggerConfig) -> Scored:
        """Everything about the file."""
        name, duration_s = self.stream.name, self.stream.duration_s
        if self.error is not None:
            return Scored(name, duration_s, error=self.error)
        warning = self.stream.warning
        if warning is None and self.stream.silence:
            warning = f"{self.stream.silence}, so its scores say nothing"
        moments = sorted(self.moments, key=lambda moment: moment[0])
        times_s = np.array([centre / config.mel.sample_rate for centre, _ in moments], np.float32)
        track = np.array([scores for _, scores in moments], np.float32).reshape(
            len(moments), len(config.labels)
        )
        return Scored(name, duration_s, self.clip_sum / self.clip_windows, times_s, track, warning)


def _two_readers(blocks: Iterator[np.ndarray]) -> tuple[Iterator[np.ndarray], Iterator[np.ndarray]]:
    """Both read all blocks; only what one is ahead is kept (itertools.tee keeps 57 blocks: ten minutes of sound)."""
    ahead: tuple[deque[np.ndarray], deque[np.ndarray]] = (deque(), deque())

    def read(mine: deque[np.ndarray]) -> Iterator[np.ndarray]:
        while True:
            if not mine:
                block = next(blocks, None)
                if block is None:
                    return
                for queue in ahead:
                    queue.append(block)
            yield mine.popleft()

    return read(ahead[0]), read(ahead[1])


class _Batcher:
    """Runs windows of any length in batches of equal patch columns, and hands the scores to their files."""

    def __init__(self, model: Tagger, *, batch_size: int, precision: Precision) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model = model
        self.batch_size = batch_size
        self.precision = precision
        self.device = next(model.parameters()).device
        self.waiting: dict[
            int, list[tuple[_File, bool, float, Tensor]]
        ] = {}  # by patch columns, oldest first
        self.added = 0  # windows so far
        self.since: dict[int, int] = {}  # by patch columns: windows that came before the first that waits

    def add(self, file: _File, is_clip: bool, start: int, wave: Float[np.ndarray, "sample"]) -> None:
        """Queue one window; a full batch runs, and so does what has waited long: no result is held back to the end."""
        config = self.model.config
        missing = round(config.pad_s * config.mel.sample_rate) - len(wave) if is_clip else 0
        mel = window_mel(np.pad(wave, (0, max(0, missing))), config, self.device)
        columns = config.num_columns(mel.shape[-1])
        file.pending += 1
        self.waiting.setdefault(columns, []).append((file, is_clip, start + len(wave) / 2, mel))
        self.since.setdefault(columns, self.added)
        self.added += 1
        if len(self.waiting[columns]) == self.batch_size:
            self._run(columns)
        oldest = next(iter(self.waiting), None)
        if oldest is not None and self.added - self.since[oldest] >= WAIT_BATCHES * self.batch_size:
            self._run(oldest)

    def flush(self) -> None:
        """Run what still waits."""
        while self.waiting:
            self._run(next(iter(self.waiting)))

    def _run(self, columns: int) -> None:
        windows, _ = self.waiting.pop(columns), self.since.pop(columns)
        with torch.inference_mode(), autocast(self.device, self.precision):
            logits = self.model(torch.stack([mel for *_, mel in windows])).logits
        scores = logits.softmax(1) if self.model.config.task == "multi_class" else logits.sigmoid()
        for (file, is_clip, centre, _), row in zip(windows, scores.cpu().numpy(), strict=True):
            file.receive(is_clip, centre, row)


def window_mel(
    wave: Float[np.ndarray, "sample"], config: TaggerConfig, device: torch.device
) -> Float[Tensor, "mel frame"]:
    """Log-mel of one window, cut to whole patches; too short for one patch, it gets zeros after it, up to one patch."""
    padded = np.pad(wave, (0, max(0, config.min_samples - len(wave))))
    mel = log_mel(torch.from_numpy(padded)[None].to(device), config.mel)[0]
    return mel[:, : config.num_frames(config.num_columns(mel.shape[-1]))]

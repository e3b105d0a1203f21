"""Class scores of sounds of any length: overlapping windows, of many files in one batch."""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchout.audio import stream as audio
from patchout.audio.mel import log_mel
from patchout.inference.events import EventRule
from patchout.models.device import InferencePrecision, autocast
from patchout.models.int8 import at_precision
from patchout.models.tagger import Tagger, TaggerConfig, check_labels

WAIT_BATCHES = 4  # a window runs at the latest when so many full batches were queued after it
OVERLAP = 2  # every moment of a long clip lies in this many windows
Scores = Float[np.ndarray, "class"]
Wave = Float[np.ndarray, "sample"]


@dataclass(frozen=True)
class Scored:
    """Class scores of one sound, over all and over time, or the reason why there are none."""

    name: str
    duration_s: float = 0.0
    scores: Scores | None = None  # mean over windows; None: failed
    times_s: Float[np.ndarray, "time"] = field(
        default_factory=lambda: np.zeros(0, np.float32)
    )  # window centres
    track: Float[np.ndarray, "time class"] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    warning: str | None = None
    error: str | None = None


def score(
    model: Tagger,
    streams: Iterable[audio.Stream],
    *,
    events: EventRule | None = None,
    precision: InferencePrecision = "fp32",
    batch_size: int = 16,
    strict: bool = False,
) -> Iterator[Scored]:
    """Class scores of every stream (at the model's rate), in order; `strict`: one that fails raises."""
    check_labels(model.config)
    batcher = _Batcher(model, batch_size=batch_size, precision=precision)
    open_files: deque[_File] = deque()
    for stream in streams:
        file = _File(stream, events)
        open_files.append(file)
        try:
            for is_clip, start, wave in file.windows(model.config):
                batcher.add(file, is_clip, start, wave)
                yield from _finished(open_files, model.config)  # a long file delays none before it
        except (audio.AudioError, OSError) as error:
            if strict:
                raise
            file.error = str(error)
        file.is_cut = True
        yield from _finished(open_files, model.config)
    batcher.flush()
    yield from _finished(open_files, model.config)


def _finished(open_files: "deque[_File]", config: TaggerConfig) -> Iterator[Scored]:
    """Take the scored files off the front of the queue."""
    while open_files and open_files[0].is_cut and open_files[0].pending == 0:
        yield open_files.popleft().scored(config)


class _File:
    """One sound under way: its windows, and the scores of those that have run."""

    def __init__(self, stream: audio.Stream, events: EventRule | None) -> None:
        self.stream = stream
        self.rule = events
        self.is_cut = False  # into all its windows
        self.pending = 0  # windows without scores
        self.error: str | None = None
        self.clip_windows = 0
        self.clip_sum: Any = 0.0
        self.moments: list[tuple[float, Scores]] = []  # centre in samples, scores

    def windows(self, config: TaggerConfig) -> Iterator[tuple[bool, int, Wave]]:
        """(is it of the clip or of events?, start, wave): windows of one decoding, ordered by their ends."""
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
            self.moments.append((centre, scores.astype(np.float16)))  # ten hours of 527 classes: 150 MB

    def scored(self, config: TaggerConfig) -> Scored:
        """The scores of the whole file and over time."""
        name, duration_s, warning = self.stream.name, self.stream.duration_s, self.stream.warning
        if self.error is not None:
            return Scored(name, duration_s, error=self.error)
        if warning is None and self.stream.silence:
            warning = f"{self.stream.silence}, so its scores say nothing"
        self.moments.sort(key=lambda moment: moment[0])
        times_s = np.array([centre / config.mel.sample_rate for centre, _ in self.moments], np.float32)
        track = np.array([scores for _, scores in self.moments], np.float32)
        track = track.reshape(len(times_s), len(config.labels))
        return Scored(name, duration_s, self.clip_sum / self.clip_windows, times_s, track, warning)


def _two_readers(blocks: Iterator[np.ndarray]) -> tuple[Iterator[np.ndarray], Iterator[np.ndarray]]:
    """Two iterators over all blocks; itertools.tee would keep 57 of them, ten minutes of sound."""
    queues: tuple[deque[np.ndarray], deque[np.ndarray]] = (deque(), deque())

    def read(queue: deque[np.ndarray]) -> Iterator[np.ndarray]:
        while True:
            if not queue:
                block = next(blocks, None)
                if block is None:
                    return
                for each in queues:
                    each.append(block)
            yield queue.popleft()

    return read(queues[0]), read(queues[1])


class _Window(NamedTuple):
    """A window that waits for its batch."""

    file: _File
    is_clip: bool
    centre: float  # samples
    mel: Tensor
    number: int  # of windows before it


class _Batcher:
    """Runs windows of any length in batches of equal patch columns, and hands the scores to their files."""

    def __init__(self, model: Tagger, *, batch_size: int, precision: InferencePrecision) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model, self.precision = at_precision(model, precision)
        self.batch_size = batch_size
        self.device = next(model.parameters()).device
        self.waiting: dict[int, list[_Window]] = {}  # by patch columns, oldest first
        self.count = 0  # windows so far

    def add(self, file: _File, is_clip: bool, start: int, wave: Wave) -> None:
        """Queue one window; run a batch that is full, or has waited long: no result is delayed to the end."""
        config = self.model.config
        missing = round(config.pad_s * config.mel.sample_rate) - len(wave) if is_clip else 0
        mel = window_mel(np.pad(wave, (0, max(0, missing))), config, self.device)
        columns = config.num_columns(mel.shape[-1])
        batch = self.waiting.setdefault(columns, [])
        batch.append(_Window(file, is_clip, start + len(wave) / 2, mel, self.count))
        file.pending += 1
        self.count += 1
        if len(batch) == self.batch_size:
            self._run(columns)
        oldest = next(iter(self.waiting), None)
        if oldest and self.count - self.waiting[oldest][0].number >= WAIT_BATCHES * self.batch_size:
            self._run(oldest)

    def flush(self) -> None:
        """Run the windows that still wait."""
        while self.waiting:
            self._run(next(iter(self.waiting)))

    def _run(self, columns: int) -> None:
        windows = self.waiting.pop(columns)
        with torch.inference_mode(), autocast(self.device, self.precision):
            logits = self.model(torch.stack([window.mel for window in windows])).logits
        scores = logits.softmax(1) if self.model.config.task == "multi_class" else logits.sigmoid()
        for window, row in zip(windows, scores.cpu().numpy(), strict=True):
            window.file.receive(window.is_clip, window.centre, row)


def window_mel(wave: Wave, config: TaggerConfig, device: torch.device) -> Float[Tensor, "mel frame"]:
    """Log-mel of one window, cut to whole patches; one too short for a patch gets zeros after it."""
    padded = np.pad(wave, (0, max(0, config.min_samples - len(wave))))
    mel = log_mel(torch.from_numpy(padded)[None].to(device), config.mel)[0]
    return mel[:, : config.num_frames(config.num_columns(mel.shape[-1]))]

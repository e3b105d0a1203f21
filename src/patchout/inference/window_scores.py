"""Class scores of sounds of any length: overlapping windows, of many files in one batch."""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchout.audio import stream as audio
from patchout.audio.mel import log_mel
from patchout.inference.events import EventRule
from patchout.inference.token_budget import tokens_per_batch
from patchout.models.device import HostCopy, InferencePrecision, Precision, autocast, to_device
from patchout.models.int8 import at_precision
from patchout.models.tagger import Tagger, TaggerConfig, check_labels

WAIT_BATCHES = 4  # a window runs at the latest when so many full batches were queued after it
OVERLAP = 2  # every moment of a long clip lies in this many windows
SAYS_NOTHING = "so its scores say nothing"
Scores = Float[np.ndarray, "class"]
ModelScores = Float[np.ndarray, "model class"]
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
    batch_size: int | None = 16,
    strict: bool = False,
) -> Iterator[Scored]:
    """Class scores of every stream (at the model's rate), in order; `strict`: one that fails raises.

    `batch_size` counts windows of a forward pass; None: as many as suit the device (`token_budget`).
    """
    options = {"events": events, "precision": precision, "batch_size": batch_size, "strict": strict}
    return (scored for (scored,) in score_each([model], streams, **options))  # type: ignore[arg-type]


def score_each(
    models: Sequence[Tagger],
    streams: Iterable[audio.Stream],
    *,
    events: EventRule | None = None,
    precision: InferencePrecision = "fp32",
    batch_size: int | None = 16,
    strict: bool = False,
) -> Iterator[list[Scored]]:
    """`score` by several models of one front end and labels at once: a sound is decoded for all of them."""
    configs = [model.config for model in models]
    config = configs[0]
    check_labels(config)
    batcher = _Batcher(models, batch_size=batch_size, precision=precision)
    open_files: deque[_File] = deque()
    for stream in streams:
        file = _File(stream, events, len(models))
        open_files.append(file)
        try:
            for is_clip, start, wave in file.windows(config):
                batcher.add(file, is_clip, start, wave)
                yield from _finished(open_files, configs)  # a long file delays none before it
        except (audio.AudioError, OSError) as error:
            if strict:
                raise
            file.error = str(error)
        file.is_cut = True
        yield from _finished(open_files, configs)
    batcher.flush()
    yield from _finished(open_files, configs)


def _finished(open_files: "deque[_File]", configs: Sequence[TaggerConfig]) -> Iterator[list[Scored]]:
    """Take the scored files off the front of the queue, their scores calibrated as each model says."""
    while open_files and open_files[0].is_cut and open_files[0].pending == 0:
        results = open_files.popleft().scored(configs[0])
        yield [_calibrated(scored, config) for scored, config in zip(results, configs, strict=True)]


def _calibrated(scored: Scored, config: TaggerConfig) -> Scored:
    if scored.scores is None or not config.decision.calibrates:
        return scored
    scores, track = (config.decision.calibrated(part, config.task) for part in (scored.scores, scored.track))
    return replace(scored, scores=scores, track=track)


class _File:
    """One sound under way: its windows, and the scores of those that have run."""

    def __init__(self, stream: audio.Stream, events: EventRule | None, num_models: int) -> None:
        self.stream = stream
        self.rule = events
        self.num_models = num_models
        self.is_cut = False  # into all its windows
        self.pending = 0  # windows without scores
        self.error: str | None = None
        self.clip_windows = 0
        self.clip_sum: Any = 0.0
        self.moments: list[tuple[float, ModelScores]] = []  # centre in samples, scores

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

    def receive(self, is_clip: bool, centre: float, scores: ModelScores) -> None:
        """Take the scores of one window by each model."""
        self.pending -= 1
        if is_clip:
            self.clip_windows += 1
            self.clip_sum = self.clip_sum + scores.astype(np.float64)
        else:
            self.moments.append((centre, scores.astype(np.float16)))  # ten hours of 527 classes: 150 MB

    def scored(self, config: TaggerConfig) -> list[Scored]:
        """The scores of the whole file and over time, by each model."""
        name, duration_s, warning = self.stream.name, self.stream.duration_s, self.stream.warning
        if self.error is not None:
            return [Scored(name, duration_s, error=self.error)] * self.num_models
        if warning is None and self.stream.silence:
            warning = f"{self.stream.silence}, {SAYS_NOTHING}"
        self.moments.sort(key=lambda moment: moment[0])
        times_s = np.array([centre / config.mel.sample_rate for centre, _ in self.moments], np.float32)
        track = np.array([scores for _, scores in self.moments], np.float32)
        tracks = track.reshape(len(times_s), self.num_models, len(config.labels)).swapaxes(0, 1)
        means = self.clip_sum / self.clip_windows
        return [
            Scored(name, duration_s, scores, times_s, track, warning)
            for scores, track in zip(means, tracks, strict=True)
        ]


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
    wave: Tensor  # (samples,) with zeros after one that is too short
    number: int  # of windows before it


class _Batcher:
    """Runs windows of any length in batches of equal patch columns, and hands the scores to their files."""

    def __init__(
        self, models: Sequence[Tagger], *, batch_size: int | None, precision: InferencePrecision
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        taggers, precisions = zip(*(at_precision(model, precision) for model in models), strict=True)
        self.models: tuple[Tagger, ...] = taggers
        self.precision: Precision = precisions[0]
        self.config = models[0].config
        self.batch_size = batch_size
        self.device = next(models[0].parameters()).device
        self.tokens = 0 if batch_size else tokens_per_batch(self.device)
        self.waiting: dict[int, list[_Window]] = {}  # by patch columns, oldest first
        self.count = 0  # windows so far
        self.running: tuple[list[_Window], HostCopy] | None = None  # a batch whose scores are on a GPU

    def add(self, file: _File, is_clip: bool, start: int, wave: Wave) -> None:
        """Queue one window; run a batch that is full, or has waited long: no result is delayed to the end."""
        config = self.config
        shortest = max(config.min_samples, round(config.pad_s * config.mel.sample_rate) if is_clip else 0)
        padded = torch.from_numpy(np.pad(wave, (0, max(0, shortest - len(wave)))))
        columns = config.num_columns(config.mel.num_frames(len(padded)))
        batch = self.waiting.setdefault(columns, [])
        batch.append(_Window(file, is_clip, start + len(wave) / 2, padded, self.count))
        file.pending += 1
        self.count += 1
        if len(batch) >= self._most(columns):
            self._run(columns)
        oldest = next(iter(self.waiting), None)
        if oldest and self.count - self.waiting[oldest][0].number >= WAIT_BATCHES * self._most(oldest):
            self._run(oldest)

    def _most(self, columns: int) -> int:
        """Windows of so many patch columns in a batch."""
        return self.batch_size or max(1, self.tokens // (self.config.rows * columns + 2))

    def flush(self) -> None:
        """Run the windows that still wait."""
        while self.waiting:
            self._run(next(iter(self.waiting)))
        self._deliver()

    def _run(self, columns: int) -> None:
        """Queue a batch on the device, and hand out the scores of the one before; on a CPU its own."""
        windows = self.waiting.pop(columns)
        with torch.inference_mode():
            mels = window_mels([window.wave for window in windows], self.config, self.device)
            with autocast(self.device, self.precision):
                logits = torch.stack([model.predict(mels).logits for model in self.models], dim=1)
            scores = logits.softmax(2) if self.config.task == "multi_class" else logits.sigmoid()
            copy = HostCopy(scores)
        self._deliver()
        self.running = windows, copy
        if self.device.type == "cpu":
            self._deliver()

    def _deliver(self) -> None:
        """Hand out the scores of the batch that runs."""
        if self.running is None:
            return
        (windows, copy), self.running = self.running, None
        for window, rows in zip(windows, copy.read().numpy(), strict=True):
            window.file.receive(window.is_clip, window.centre, rows)


def window_mels(
    waves: Sequence[Float[Tensor, "_"]], config: TaggerConfig, device: torch.device
) -> Float[Tensor, "window mel frame"]:
    """Log-mels of windows of equal patch columns, cut to whole patches.

    On a CPU one after the other, which stay in its caches; on a GPU those of one length together.
    """
    mels: dict[int, Tensor] = {}
    lengths = [len(wave) if device.type != "cpu" else (len(wave), place) for place, wave in enumerate(waves)]
    for length in dict.fromkeys(lengths):
        places = [place for place, other in enumerate(lengths) if other == length]
        batch = to_device(torch.stack([waves[place] for place in places]), device)
        mels |= zip(places, log_mel(batch, config.mel), strict=True)
    frames = config.num_frames(config.num_columns(mels[0].shape[-1]))
    return torch.stack([mels[place][:, :frames] for place in range(len(waves))])

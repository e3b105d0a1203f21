"""Class scores of sounds of any length: overlapping windows, of many files in one batch."""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from patchout.audio import stream as audio
from patchout.inference.events import EventRule
from patchout.inference.window_batches import Batcher, ModelScores, Receiver, Wave
from patchout.models.device import InferencePrecision
from patchout.models.tagger import Tagger, TaggerConfig, check_labels

OVERLAP = 2  # every moment of a long clip lies in this many windows
SAYS_NOTHING = "so its scores say nothing"
Scores = Float[np.ndarray, "class"]
Times = Float[np.ndarray, "time"]


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
    is_silent: bool = False  # nothing can be heard in it, as `Stream.silence` says
    source_rate: int = 0  # Hz of the file; 0: it could not be read


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
    batcher = Batcher(models, batch_size=batch_size, precision=precision)
    open_files: deque[_File] = deque()
    for stream in streams:
        file = _File(stream, events, Moments(config, len(models)))
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
        results = open_files.popleft().scored()
        yield [_calibrated(scored, config) for scored, config in zip(results, configs, strict=True)]


def _calibrated(scored: Scored, config: TaggerConfig) -> Scored:
    if scored.scores is None or not config.decision.calibrates:
        return scored
    scores, track = (config.decision.calibrated(part, config.task) for part in (scored.scores, scored.track))
    return replace(scored, scores=scores, track=track)


class Moments:
    """Scores over time of a sound by each model: those of the windows that have run."""

    def __init__(self, config: TaggerConfig, num_models: int = 1) -> None:
        self._config, self.num_models = config, num_models
        self._scores: list[tuple[float, ModelScores]] = []  # centre in samples, scores

    def add(self, centre: float, scores: ModelScores) -> None:
        """Take the scores of one window."""
        self._scores.append((centre, scores.astype(np.float16)))  # ten hours of 527 classes: 150 MB

    def take(self) -> tuple[Times, Float[np.ndarray, "model time class"]]:
        """Times in seconds and scores of the windows since the last call, in order of time."""
        self._scores.sort(key=lambda moment: moment[0])
        rate = self._config.mel.sample_rate
        times_s = np.array([centre / rate for centre, _ in self._scores], np.float32)
        track = np.array([scores for _, scores in self._scores], np.float32)
        self._scores.clear()
        shape = (len(times_s), self.num_models, len(self._config.labels))
        return times_s, track.reshape(shape).swapaxes(0, 1)


class _File(Receiver):
    """One sound under way: its windows, and the scores of those that have run."""

    def __init__(self, stream: audio.Stream, events: EventRule | None, moments: Moments) -> None:
        self.stream = stream
        self.moments = moments
        self.rule = events
        self.is_cut = False  # into all its windows
        self.error: str | None = None
        self.clip_windows = 0
        self.clip_sum: Any = 0.0

    def windows(self, config: TaggerConfig) -> Iterator[tuple[bool, int, Wave]]:
        """(is it of the clip or of events?, start, wave): windows of one decoding, ordered by their ends."""
        size = config.max_samples
        if self.rule is None:
            return ((True, *window) for window in audio.windows(self.stream, size, size // OVERLAP))
        for_clip, for_events = _two_readers(iter(self.stream))
        clip = ((True, *window) for window in audio.windows(for_clip, size, size // OVERLAP))
        moments = ((False, *window) for window in moment_windows(for_events, self.rule, config))
        return heapq.merge(clip, moments, key=lambda window: window[1] + len(window[2]))

    def receive(self, is_clip: bool, centre: float, scores: ModelScores) -> None:
        """Take the scores of one window by each model."""
        self.pending -= 1
        if is_clip:
            self.clip_windows += 1
            self.clip_sum = self.clip_sum + scores.astype(np.float64)
        else:
            self.moments.add(centre, scores)

    def scored(self) -> list[Scored]:
        """The scores of the whole file and over time, by each model."""
        name, duration_s, warning = self.stream.name, self.stream.duration_s, self.stream.warning
        is_silent, source_rate = bool(self.stream.silence), self.stream.source_rate
        if self.error is not None:
            return [Scored(name, duration_s, error=self.error)] * self.moments.num_models
        if warning is None and self.stream.silence:
            warning = f"{self.stream.silence}, {SAYS_NOTHING}"
        times_s, tracks = self.moments.take()
        means = self.clip_sum / self.clip_windows
        return [
            Scored(name, duration_s, scores, times_s, track, warning, None, is_silent, source_rate)
            for scores, track in zip(means, tracks, strict=True)
        ]


def moment_windows(
    blocks: Iterable[np.ndarray], rule: EventRule, config: TaggerConfig
) -> Iterator[tuple[int, Wave]]:
    """(start, wave) of the windows that events are found in."""
    rate = config.mel.sample_rate
    short = min(config.max_samples, round(rule.window_s * rate))
    return audio.windows(blocks, short, min(short, round(rule.hop_s * rate)))


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

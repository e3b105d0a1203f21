"""One decoding of a sound -> tags, scores over time, events, embeddings, peaks and a picture."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from patchout.audio.mel import MelConfig, log_mel
from patchout.audio.stream import Stream, load
from patchout.inference.embedding import Embedder, mid_level
from patchout.inference.events import EventRule
from patchout.inference.tagging import to_tags
from patchout.inference.window_scores import Scored, score
from patchout.models.tagger import Tagger, TaggerConfig, hear
from patchout.web.sound_index import Analysis, Span, Summary

LONG_S = 60.0  # a longer sound keeps a picture of all of it, a shorter one is drawn when it is shown
PEAKS_PER_S = 100
MAX_COLUMNS = 8192  # of peaks or of a picture; two become one beyond it
MAX_CLASSES = 16  # over time
TOP = 10
BATCH = 32  # windows that are embedded at a time
LOW, HIGH = -1.4, 1.8  # of a log-mel: silence, and as loud as sounds become

Wave = Float[np.ndarray, "sample"]


class Pooled:
    """Columns of unknown number, pooled by their maximum so that at most MAX_COLUMNS are left."""

    def __init__(self) -> None:
        self.columns: list[np.ndarray] = []
        self.count, self.pool = 0, 1
        self._open: list[np.ndarray] = []  # fewer than `pool` columns

    def add(self, columns: np.ndarray) -> None:
        """Add columns (value, time)."""
        joined = np.concatenate([*self._open, columns], axis=1)
        end = joined.shape[1] // self.pool * self.pool
        if end:
            self.columns.append(joined[:, :end].reshape(len(joined), -1, self.pool).max(axis=2))
            self.count += end // self.pool
        self._open = [joined[:, end:]]
        if self.count > MAX_COLUMNS:
            everything = np.concatenate(self.columns, axis=1)
            even = everything.shape[1] // 2 * 2
            self.columns = [everything[:, :even].reshape(len(everything), -1, 2).max(axis=2)]
            self._open = [everything[:, even:], *self._open]  # counts less than it might: a single column
            self.count, self.pool = even // 2, 2 * self.pool

    def result(self) -> np.ndarray:
        """All columns (value, time)."""
        return np.concatenate([*self.columns, *(part for part in self._open if part.shape[1])], axis=1)


class Recorder:
    """What is kept of a sound's blocks while a model tags them: embeddings of windows, peaks, a picture."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder, self.config = embedder, embedder.model.config
        self.rate, self.size = self.config.mel.sample_rate, embedder.scene_window
        self.spans: list[Span] = []
        self.peaks, self.picture = Pooled(), Pooled()
        self._early: list[Wave] = []  # blocks of a sound that may be short
        self._before = self._rest = np.zeros(0, np.float32)  # the last whole window, and samples since then
        self._windows: list[tuple[float, Wave]] = []
        self._samples = 0

    def add(self, block: Wave) -> None:
        """Record the next samples."""
        is_long = self._samples + len(block) > LONG_S * self.rate
        self._samples += len(block)
        self._early.append(block)
        if is_long:
            for early in self._early:
                self.picture.add(picture_of(early, self.config.mel))
            self._early.clear()
        self.peaks.add(_peaks(block, self.rate // PEAKS_PER_S))
        wave = np.concatenate([self._rest, block])
        start = self._samples - len(wave)
        while len(wave) > self.size:  # the last window stays
            self._before = wave[: self.size]
            self._windows.append((start / self.rate, self._before))
            wave, start = wave[self.size :], start + self.size
        self._rest = wave
        if len(self._windows) >= BATCH:
            self.flush()

    def finish(self) -> None:
        """Embed the end of the sound, with as much before it as fills a window."""
        shortest = max(self.config.min_samples, round(self.config.pad_s * self.rate))
        if len(self._rest):
            wave = np.concatenate([self._before, self._rest])[-self.size :]
            padded = np.pad(wave, (0, max(0, min(shortest, self.size) - len(wave))))
            self._windows.append(((self._samples - len(wave)) / self.rate, padded))
        self.flush()

    def flush(self) -> None:
        """Embed the windows that wait."""
        waves = [wave for _, wave in self._windows]
        scenes = self.embedder.scenes_of_each(waves) if waves else []
        for (start_s, wave), scene in zip(self._windows, scenes, strict=True):
            self.spans.append(Span(start_s, start_s + len(wave) / self.rate, scene.astype(np.float32)))
        self._windows.clear()


def _peaks(block: Wave, size: int) -> np.ndarray:
    """Highest level of every `size` samples in 255ths of full scale, (1, time)."""
    padded = np.pad(np.abs(block), (0, -len(block) % size)).reshape(-1, size).max(axis=1)
    return np.clip(255 * padded, 0, 255).astype(np.uint8)[None]


def picture_of(wave: Wave, config: MelConfig, *, pool: int = 10) -> np.ndarray:
    """Log-mel of a waveform, `pool` frames a column by their maximum, (mel, column) in 255 steps."""
    plain = replace(config, mean=None, std=None, scale="ln")
    padded = np.pad(wave, (0, max(0, plain.min_samples - len(wave))))
    mel = log_mel(torch.from_numpy(padded)[None], plain)[0].numpy()
    pooled = np.maximum.reduceat(mel, np.arange(0, mel.shape[1], pool), axis=1)
    return np.clip(255 * (pooled - LOW) / (HIGH - LOW), 0, 255).astype(np.uint8)


def picture_between(path: str, config: TaggerConfig, start_s: float, end_s: float) -> np.ndarray:
    """The picture of a part of a file, decoded again, of at most about a thousand columns."""
    mel = config.mel
    pool = max(1, round((end_s - start_s) / mel.frame_s / 1000))
    return picture_of(load(path, mel.sample_rate, start_s=start_s, end_s=end_s), mel, pool=pool)


def analyse(model: Tagger, paths: Iterable[str], on_block: Callable[[float], None]) -> Iterator[Analysis]:
    """The analyses of sounds in order; `on_block` gets the seconds of each block that was read.

    A path is taken when the sound before it was read. Tags and events are those of `patchout tag --events`.
    One that cannot be read has an error.
    """
    embedder, rule = Embedder(model, mid_level(model.config)), EventRule()
    recorders: deque[Recorder] = deque()

    def recorded(stream: Stream) -> Stream:
        blocks, recorder = iter(stream), Recorder(embedder)
        recorders.append(recorder)

        def passed() -> Iterator[np.ndarray]:
            for block in blocks:
                recorder.add(block)
                on_block(len(block) / stream.rate)
                yield block
            recorder.finish()

        stream.replace_blocks(passed())
        return stream

    for scored in score(model, (recorded(hear(model.config, path)) for path in paths), events=rule):
        yield _analysis(scored, recorders.popleft(), model.config, rule)


def _analysis(scored: Scored, recorder: Recorder, config: TaggerConfig, rule: EventRule) -> Analysis:
    tags = to_tags(scored, config, top=TOP, rule=rule, events=True)
    if scored.scores is None:
        nothing, error = np.zeros((0, 0), np.uint8), scored.error or "cannot be read"
        times_s, track = np.zeros(0, np.float32), np.zeros((0, 0), np.float16)
        return Analysis(Summary(error=error), {}, times_s, track, nothing.ravel(), nothing)
    shown = np.argsort(-scored.track.max(axis=0, initial=0.0), kind="stable")[:MAX_CLASSES]
    picture = recorder.picture.result() if recorder.picture.columns else np.zeros((0, 0), np.uint8)
    details = {
        "tags": tags.to_dict()["tags"],
        "events": [event.to_dict() for event in tags.events],
        "warning": scored.warning,
        "track": [config.labels[place] for place in shown],
        "mels": len(picture),
    }
    summary = Summary(
        duration_s=round(scored.duration_s, 3),
        label=tags.labels[0],
        score=round(tags.scores[0], 4),
        margin=round(margin(scored.scores, config), 5),
        events=len(tags.events),
        is_passed=bool(tags.passed and tags.passed[0]),
    )
    track = scored.track[:, shown].astype(np.float16)
    peaks = recorder.peaks.result()[0] if recorder.peaks.count else np.zeros(0, np.uint8)
    return Analysis(summary, details, scored.times_s, track, peaks, picture, recorder.spans)


def margin(scores: Float[np.ndarray, "class"], config: TaggerConfig) -> float:
    """Distance of a sound from another decision: between its two highest classes, or to a threshold."""
    if config.task == "multi_class" and len(scores) > 1:
        second, first = np.sort(scores)[-2:]
        return float(first - second)
    thresholds, _ = EventRule().thresholds(config.decision, len(scores))
    return float(np.abs(scores - thresholds).min())

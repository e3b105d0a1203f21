"""Sets of sounds -> logits and features of each protocol, by the engine of the bulk job, on one decoding."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from patchout.audio.remarks import Remark
from patchout.audio.stream import Stream
from patchout.checkpoint.zoo import load
from patchout.data.items import Item
from patchout.inference.bulk.embed import EmbedJob
from patchout.inference.bulk.folder import embeddings, numbered
from patchout.inference.embedding import EmbedConfig, Embedder, Level
from patchout.judge.loading import ProtocolStream
from patchout.judge.protocols import Clip, Loading, Protocol, View
from patchout.models.tagger import Tagger, TaggerConfig

VIEW_MS = 1e9  # in the times of a job, from the windows of one view to those of the next


class Key(NamedTuple):
    """What a table of rows holds: a view, and how the windows of a clip are joined."""

    view: View
    average: Literal["mean", "max", "none"]
    half_precision: bool


def key_of(protocol: Protocol, metric: str) -> Key:
    """The table that a metric of a protocol needs."""
    return Key(protocol.view(metric), protocol.average, protocol.half_precision)


class Rows(NamedTuple):
    """What the model says of a set, a row a clip (or a window): logits of so many classes, then features."""

    values: Float[np.ndarray, "row value"]
    num_classes: int
    clips: Int[np.ndarray, "row"]  # the clip of each row, rising

    @property
    def logits(self) -> Float[np.ndarray, "row class"] | None:
        """None: there are none."""
        return self.values[:, : self.num_classes] if self.num_classes else None

    @property
    def features(self) -> Float[np.ndarray, "row value"] | None:
        """None: there are none."""
        return self.values[:, self.num_classes :] if self.num_classes < self.values.shape[1] else None


@dataclass(frozen=True, kw_only=True)
class JudgeJob(EmbedJob):
    """A bulk job whose rows are the windows of several views: their times begin VIEW_MS apart."""

    views: tuple[View, ...]
    num_classes: int

    @property
    def loadings(self) -> tuple[Loading, ...]:
        """Those of the views, each once."""
        return tuple(dict.fromkeys(view.loading for view in self.views))

    def embedder(self, device: str = "auto") -> Embedder:
        """The model, which takes what `open` gives."""
        return WindowEmbedder(load(self.model, device), self)

    def open(self, item: Item, config: TaggerConfig) -> Stream:
        """The sound under every loading."""
        return ProtocolStream(item, config.mel.sample_rate, self.loadings)


def job_of(model: str, config: TaggerConfig, keys: Iterable[Key]) -> JudgeJob:
    """The job of a model that answers some keys."""
    views = tuple(dict.fromkeys(key.view for key in keys))
    window_ms = 1000 * max(view.clip.window_s for view in views)
    order: tuple[Level, ...] = ("high", "mid")
    levels = EmbedConfig(levels=order, scene_levels=order, hop_ms=1000.0, scene_window_ms=window_ms)
    return JudgeJob(model=model, kind="timestamp", config=levels, views=views, num_classes=len(config.labels))


def job_from(settings: Mapping[str, Any]) -> JudgeJob:
    """The job that wrote shards, from what they say of it."""
    views = (
        View(loading=Loading(**view["loading"]), clip=Clip(**view["clip"])) for view in settings["views"]
    )
    return JudgeJob(model=settings["model"], views=tuple(views), num_classes=settings["num_classes"])


def longest_s(config: TaggerConfig) -> float:
    """Seconds that one forward pass takes, in whole tenths."""
    return int(10 * config.max_samples / config.mel.sample_rate) / 10


class WindowEmbedder(Embedder):
    """Sounds under several loadings (sample, loading) -> logits and features of the windows of every view."""

    def __init__(self, model: Tagger, job: JudgeJob) -> None:
        super().__init__(model, job.config, precision=job.precision)
        self._views = [(job.loadings.index(view.loading), view.clip) for view in job.views]

    def timestamps_of_each(
        self, waves: Sequence[Float[np.ndarray, "_ _"]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """(values (window, value), times in ms) of every sound; a view without windows has a row of NaN."""
        windows = [[*self._windows(wave)] for wave in waves]
        heard = iter(self.scenes_of_each([window for _, window in chain(*windows) if len(window)]))
        nothing = np.full(self.config.scene_size(self.model.config), np.nan, np.float32)
        return [
            (
                np.stack([next(heard) if len(window) else nothing for _, window in every]),
                np.array([time_ms for time_ms, _ in every]),
            )
            for every in windows
        ]

    def timestamps_of(self, blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Those of one long sound."""
        for values, times_ms in self.timestamps_of_each([np.concatenate([*blocks])]):
            yield times_ms, values

    def _windows(self, wave: Float[np.ndarray, "_ _"]) -> Iterator[tuple[float, Float[np.ndarray, "_"]]]:
        rate = self.model.config.mel.sample_rate
        for number, (column, clip) in enumerate(self._views):
            samples = wave[: np.isfinite(wave[:, column]).sum(), column]
            windows = [*clip.cut(samples, rate)] or [(0.0, samples[:0])]
            yield from ((number * VIEW_MS + time_ms, window) for time_ms, window in windows)


class Reading(NamedTuple):
    """The rows of a finished job."""

    tables: Mapping[Key | None, Rows]
    remarks: dict[int, Remark]  # by item; those that failed have none
    durations_s: dict[int, float]
    failed: dict[int, str]
    files: tuple[str, ...]


def read(tables: Iterable[pa.Table], job: JudgeJob, keys: Sequence[Key]) -> Reading:
    """Join the windows of every clip; tables of rows go to the disk, so that memory is bounded."""
    remarks, durations_s, failed = dict[int, Remark](), dict[int, float](), dict[int, str]()
    names: list[str] = []
    with ExitStack() as stack:
        files = {key: stack.enter_context(tempfile.TemporaryFile()) for key in keys}
        owners: dict[Key, list[Int[np.ndarray, _]]] = {key: [] for key in keys}
        width = 0
        for numbers, table in numbered(tables):
            times_ms = table["time_ms"].to_numpy()
            values, width = embeddings(table), table["embedding"].type.list_size
            firsts = np.flatnonzero(np.diff(numbers, prepend=-1))
            states = table.select(["file", "duration_s", "error"]).take(pa.array(firsts)).to_pylist()
            for number, state in zip(numbers[firsts].tolist(), states, strict=True):
                names.append(state["file"])
                if state["duration_s"] is None:
                    failed[number] = state["error"]
                else:
                    remarks[number] = Remark.read(state["error"])
                    durations_s[number] = state["duration_s"]
            for key, file in files.items():
                is_of_view = times_ms // VIEW_MS == job.views.index(key.view)
                chosen = is_of_view & np.isfinite(values).all(axis=1)
                rows, owner = _joined(values[chosen], numbers[chosen], key)
                file.write(rows.tobytes())
                owners[key].append(owner)
        rows_by_key: dict[Key | None, Rows] = {
            key: _rows(files[key], np.concatenate([*owners[key], np.zeros(0, int)]), width, job.num_classes)
            for key in keys
        }
    return Reading(rows_by_key, remarks, durations_s, failed, tuple(names))


def _joined(
    values: Float[np.ndarray, "window value"], numbers: Int[np.ndarray, "window"], key: Key
) -> tuple[Float[np.ndarray, "row value"], Int[np.ndarray, "row"]]:
    """The windows of each clip as one row, and the clip of each row."""
    if key.average != "none" and len(values):
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        if key.average == "mean":
            counts = np.diff(starts, append=len(values))[:, None]
            values = (np.add.reduceat(values, starts, dtype=np.float64) / counts).astype(np.float32)
        else:
            values = np.maximum.reduceat(values, starts)
        numbers = numbers[starts]
    return (values.astype(np.float16).astype(np.float32) if key.half_precision else values), numbers


def _rows(file: IO[bytes], clips: Int[np.ndarray, "_"], width: int, num_classes: int) -> Rows:
    """A table of rows, mapped from its file."""
    file.flush()
    shape = (len(clips), width)
    values = np.asarray(
        np.memmap(file, np.float32, "r", shape=shape) if len(clips) else np.zeros(shape, "f4")
    )
    return Rows(values, num_classes, clips)

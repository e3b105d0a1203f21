"""Embeddings of many files: decoded ahead of the model, batched across files, written shard by shard, resumable."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from patchout.ahead import Sound, decode, decode_ahead, open_stream
from patchout.audio import AudioError
from patchout.embedding import Embedder
from patchout.errors import InputError
from patchout.items import Item, Items, items_hash, read_items
from patchout.shards import EmbedJob, Folder, Kind, open_job, read_tables, shard_name, write_shard
from patchout.zoo import load

__all__ = [
    "EmbedJob",
    "Item",
    "Items",
    "Kind",
    "Sound",
    "Summary",
    "decode",
    "decode_ahead",
    "embed_shard",
    "items_hash",
    "load_embedder",
    "num_shards",
    "only_writer",
    "open_job",
    "read_items",
    "run",
    "shard_name",
    "summarize",
    "write_shard",
]

CHUNK_BYTES = 2**25  # sounds and results that are computed together
MAX_REASONS = 100  # that a summary quotes; the shards hold all

Progress = Callable[[int, float], None]  # items done and seconds of sound since the last call


@dataclass(frozen=True)
class Summary:
    """What a job's folder holds."""

    items: int
    rows: int
    num_failed: int  # items
    failed: tuple[str, ...]  # the first reasons
    warnings: tuple[str, ...]  # the first items of which only a part could be decoded
    audio_s: float  # embedded by this call


def run(
    items: Sequence[Item], job: EmbedJob, out: str, *, device: str = "auto", on_progress: Progress = lambda *_: None
) -> Summary:
    """Embed all items into shards in the folder `out` (a path or an fsspec URL), or go on where a killed call stopped.

    Memory holds a few minutes of sound, however many or long the items are. Raises InputError if the folder belongs to
    another job; an item that fails becomes a row with its reason.
    """
    if not items:
        raise ValueError("no items to embed: name sound files, folders, patterns or lists")
    audio_s = 0.0
    with only_writer(out):
        finished = open_job(out, job, items_hash(items), len(items))
        shards = [
            range(start, min(start + job.shard_rows, len(items))) for start in range(0, len(items), job.shard_rows)
        ]
        pending = [index for index in range(len(shards)) if index not in finished]
        on_progress(len(items) - sum(len(shards[index]) for index in pending), 0.0)
        if pending:
            embedder = load_embedder(job, device)
            wanted = (items[place] for index in pending for place in shards[index])
            with closing(decode_ahead(wanted, embedder.model.config.mel.sample_rate)) as sounds:
                for index in pending:
                    taken: list[float] = []
                    tables = embed_shard(embedder, _noted(islice(sounds, len(shards[index])), taken), job)
                    write_shard(_reported(tables, taken, on_progress), out, index, job)
                    audio_s += sum(taken)
        return summarize(out, len(items), num_shards(len(items), job), audio_s=audio_s)


def num_shards(count: int, job: EmbedJob) -> int:
    """Shards of so many items."""
    return -(-count // job.shard_rows)


def load_embedder(job: EmbedJob, device: str = "auto") -> Embedder:
    """The job's model on a device, with its config."""
    return Embedder(load(job.model, device), job.config, precision=job.precision)


def _noted(sounds: Iterable[Sound], taken: list[float]) -> Iterator[Sound]:
    """Note the durations of the sounds that were taken."""
    for sound in sounds:
        taken.append(sound.duration_s)
        yield sound


def _reported(tables: Iterable[pa.Table], taken: list[float], on_progress: Progress) -> Iterator[pa.Table]:
    """Report what was taken since the last table, once it has been written."""
    told = 0
    for table in tables:
        reached = len(taken)
        yield table
        on_progress(reached - told, sum(taken[told:reached]))
        told = reached


@contextmanager
def only_writer(out: str) -> Iterator[None]:
    """Keep a second process out of a local folder, and remove what a killed one left."""
    if "://" in out:
        yield
        return
    from filelock import FileLock, Timeout

    folder = Path(out)
    Folder(out).names()  # refuses a file
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{out}: another process is writing to it: wait for it, or stop it") from None
    try:
        for aside in folder.glob(".part-*.parquet"):
            aside.unlink()
        yield
    finally:
        lock.release()


def summarize(out: str, items: int, shards: int, *, audio_s: float = 0.0) -> Summary:
    """Count rows and reasons in the shards of a finished job."""
    rows, num_failed = 0, 0
    failed: list[str] = []
    warnings: dict[str, None] = {}
    for table in read_tables(out, map(shard_name, range(shards)), columns=["duration_s", "error"]):
        rows += len(table)
        reasons = table.filter(pc.is_valid(table["error"]))
        lost = reasons.filter(pc.is_null(reasons["duration_s"]))["error"]
        num_failed += len(lost)
        failed += lost.slice(0, MAX_REASONS - len(failed)).to_pylist()
        if len(warnings) < MAX_REASONS:
            damaged = reasons.filter(pc.is_valid(reasons["duration_s"]))["error"].unique()
            warnings |= dict.fromkeys(damaged.to_pylist()[: MAX_REASONS - len(warnings)])
    return Summary(items, rows, num_failed, tuple(failed), tuple(warnings), audio_s)


# -- one shard --------------------------------------------------------------------------------------------------------


def embed_shard(embedder: Embedder, sounds: Iterable[Sound], job: EmbedJob) -> Iterator[pa.Table]:
    """Rows of the sounds, in their order, in tables of bounded size: `embedding` is null where `error` says why.

    Columns file, start_s, duration_s, time_ms (of timestamp jobs: from the segment's start), embedding, error.
    """
    rows = _Rows(embedder, job.kind)
    chunk: list[Sound] = []
    held = 0.0
    for sound in sounds:
        if chunk and (sound.is_long or held >= CHUNK_BYTES):
            yield rows.of_chunk(chunk)
            chunk, held = [], 0.0
        if sound.is_long:
            yield from rows.of_long(sound)
        else:
            chunk.append(sound)
            held += sound.num_bytes + rows.bytes_per_s * sound.duration_s
    if chunk:
        yield rows.of_chunk(chunk)


class _Rows:
    """Sounds -> tables of one kind of job."""

    def __init__(self, embedder: Embedder, kind: Kind) -> None:
        self.embedder = embedder
        self.kind = kind
        self.rate = embedder.model.config.mel.sample_rate
        self.size = _size(embedder, kind)
        self.bytes_per_s = 4 * self.size * self.rate / embedder.hop if kind == "timestamp" else 0.0

    def of_chunk(self, sounds: list[Sound]) -> pa.Table:
        """Sounds of equal length run together."""
        values = [np.zeros((1, self.size), np.float32)] * len(sounds)
        times_ms = [np.zeros(1, np.float32)] * len(sounds)
        by_length: dict[int, list[tuple[int, np.ndarray]]] = {}
        for place, sound in enumerate(sounds):
            if sound.wave is not None:
                by_length.setdefault(len(sound.wave), []).append((place, sound.wave))
        for group in by_length.values():
            waves = torch.from_numpy(np.stack([wave for _, wave in group]))
            if self.kind == "scene":
                results = self.embedder.scenes(waves)[:, None].numpy()
                times = np.zeros((len(group), 1), np.float32)
            else:
                results, times = (tensor.numpy() for tensor in self.embedder.timestamps(waves))
            for (place, _), result, time in zip(group, results, times, strict=True):
                values[place], times_ms[place] = result, time
        return self._table(sounds, values, times_ms)

    def of_long(self, sound: Sound) -> Iterator[pa.Table]:
        """A sound that is not held; if it cannot be read a second time, an error row ends it."""
        stream = open_stream(sound.item, self.rate)
        try:
            if self.kind == "scene":
                yield self._table([sound], [self.embedder.scene_of(stream)[None]], [np.zeros(1, np.float32)])
            else:
                for times_ms, values in self.embedder.timestamps_of(stream):
                    yield self._table([sound], [values], [times_ms])
        except (AudioError, OSError) as error:
            nothing = np.zeros((1, self.size), np.float32)
            yield self._table([replace(sound, error=str(error))], [nothing], [np.zeros(1, np.float32)])

    def _table(self, sounds: list[Sound], values: list[np.ndarray], times_ms: list[np.ndarray]) -> pa.Table:
        """Every sound with as many rows as it has values."""
        rows = np.repeat(np.arange(len(sounds)), [len(value) for value in values])
        failed = np.array([sound.error is not None for sound in sounds])[rows]
        flat = pa.array(np.concatenate(values).reshape(-1))
        kind = pa.list_(pa.float32(), self.size)
        columns = {
            "file": pa.array([_text(sound.item.file) for sound in sounds], pa.string()).take(pa.array(rows)),
            "start_s": pa.array(np.array([sound.item.start_s for sound in sounds], np.float64)[rows]),
            "duration_s": pa.array(np.array([sound.duration_s for sound in sounds], np.float64)[rows], mask=failed),
            "time_ms": pa.array(np.concatenate(times_ms).astype(np.float64), mask=failed),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(failed)),
            "error": pa.array([_text(sound.error or sound.warning) for sound in sounds], pa.string()).take(
                pa.array(rows)
            ),
        }
        if self.kind == "scene":
            del columns["time_ms"]
        return pa.table(columns)


def _size(embedder: Embedder, kind: Kind) -> int:
    """Values of one embedding."""
    config = embedder.model.config
    return embedder.config.scene_size(config) if kind == "scene" else embedder.config.timestamp_size(config)


def _text(name: str | None) -> str | None:
    """A name that Arrow can hold: bytes of a file name that are no UTF-8 are escaped."""
    return None if name is None else name.encode("utf-8", "backslashreplace").decode()

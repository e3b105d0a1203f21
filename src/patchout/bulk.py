"""Embeddings of many files: decoded ahead of the model, batched across files, written shard by shard, resumable."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from patchout.ahead import Sound, decode_ahead, open_stream
from patchout.audio import AudioError
from patchout.embedding import Embedder
from patchout.errors import InputError
from patchout.items import Item
from patchout.shards import EmbedJob, Folder, open_job, read_tables, shard_name, table_writer
from patchout.zoo import load

CHUNK_BYTES = 2**24  # sounds and results that are computed at a time, by all cores together: more leave their caches
AHEAD_ITEMS = 32  # decoded sounds that wait for their chunk
MAX_REASONS = 100  # that a summary quotes; the shards hold all


@dataclass(frozen=True)
class Summary:
    """What a job's folder holds."""

    items: int
    rows: int
    num_failed: int  # items
    failed: tuple[str, ...]  # the first reasons
    warnings: tuple[str, ...]  # the first items of which only a part could be decoded
    audio_s: float  # embedded by this call


class Todo(NamedTuple):
    """What an engine gets: the shards of a job that are not there yet."""

    items: Sequence[Item]
    job: EmbedJob
    out: str
    shards: list[int]
    device: str

    def items_of(self, shard: int) -> Sequence[Item]:
        """The items of a shard."""
        return self.items[shard * self.job.shard_rows : (shard + 1) * self.job.shard_rows]


Steps = Generator[tuple[int, float], None, None]  # items done and seconds of sound, as they are written
Engine = Callable[[Todo], Steps]


def run_here(todo: Todo) -> Steps:
    """The engine of one machine."""
    embedder = load_embedder(todo.job, todo.device)
    wanted = (item for shard in todo.shards for item in todo.items_of(shard))
    with open_threads(embedder) as threads, closing(threads.decoded(wanted, embedder)) as sounds:
        shards = ((shard, islice(sounds, len(todo.items_of(shard)))) for shard in todo.shards)
        yield from embed_shards(embedder, shards, todo.job, todo.out, threads)


def run(
    items: Sequence[Item],
    job: EmbedJob,
    out: str,
    *,
    device: str = "auto",
    on_progress: Callable[[int, float], None] = lambda *_: None,
    engine: Engine = run_here,
) -> Summary:
    """Embed all items into shards in the folder `out` (a path or an fsspec URL), or go on where a killed call stopped.

    `on_progress` gets the items done and the seconds of sound since its last call. Memory holds AHEAD_ITEMS sounds and
    a chunk a core (250 MB where every sound lasts a minute), however many or long the items are. Raises InputError if
    the folder belongs to another job; an item that fails becomes a row with its reason.
    """
    if not items:
        raise ValueError("no items to embed: name sound files, folders, patterns or lists")
    job = job.sized(len(items))
    audio_s, count = 0.0, job.num_shards(len(items))
    with only_writer(out):
        finished = open_job(out, job, items)
        todo = Todo(items, job, out, [shard for shard in range(count) if shard not in finished], device)
        on_progress(len(items) - sum(len(todo.items_of(shard)) for shard in todo.shards), 0.0)
        if todo.shards:
            with closing(engine(todo)) as steps:
                for done, seconds in steps:
                    audio_s += seconds
                    on_progress(done, seconds)
        return summarize(out, len(items), count, audio_s=audio_s)


@contextmanager
def only_writer(out: str) -> Iterator[None]:
    """Keep a second process out of a local folder, and remove what a killed one left."""
    folder = Folder(out).path
    if folder is None:
        yield
        return
    from filelock import FileLock, Timeout

    Folder(out).names()  # refuses a file
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            for aside in folder.glob(".part-*.parquet"):
                aside.unlink()
            yield
    except Timeout:
        raise InputError(f"{out}: another process is writing to it: wait for it, or stop it") from None


def summarize(out: str, items: int, shards: int, *, audio_s: float = 0.0) -> Summary:
    """Count rows and reasons in the shards of a finished job."""
    rows, num_failed = 0, 0
    failed: dict[str, None] = {}
    warnings: dict[str, None] = {}
    for table in read_tables(out, map(shard_name, range(shards)), columns=["duration_s", "error"]):
        rows += len(table)
        reasons = table.filter(pc.is_valid(table["error"]))
        lost = pc.is_null(reasons["duration_s"])
        num_failed += pc.sum(lost, min_count=0).as_py()
        for texts, chosen in ((failed, lost), (warnings, pc.invert(lost))):
            if len(texts) < MAX_REASONS:
                texts.update(dict.fromkeys(reasons.filter(chosen)["error"].to_pylist()))
    first_failed, first_warnings = (tuple(islice(texts, MAX_REASONS)) for texts in (failed, warnings))
    return Summary(items, rows, num_failed, first_failed, first_warnings, audio_s)


# -- shards -----------------------------------------------------------------------------------------------------------


def load_embedder(job: EmbedJob, device: str = "auto") -> Embedder:
    """The job's model on a device, with its config."""
    return Embedder(load(job.model, device), job.config, precision=job.precision)


class Threads(NamedTuple):
    """What computes chunks, how many at a time, and what decodes: on a CPU the same threads, one a core.

    Threads that share a chunk wait for each other, and more threads than cores wait for the interpreter.
    """

    compute: ThreadPoolExecutor
    width: int
    decode: ThreadPoolExecutor
    is_over: threading.Event  # ends a decoding

    def decoded(self, items: Iterable[Item], embedder: Embedder) -> Generator[Sound, None, None]:
        """The items' sounds in order, a few ahead of the reader."""
        rate, channel = embedder.model.config.mel.sample_rate, embedder.model.config.channel
        return decode_ahead(items, rate, self.decode, AHEAD_ITEMS, self.is_over, channel=channel)


@contextmanager
def open_threads(embedder: Embedder) -> Iterator[Threads]:
    """Threads for the embedder's device, each with its part of torch's own; all end after the block they are at."""
    cores, total = os.cpu_count() or 1, torch.get_num_threads()
    is_cpu = next(embedder.model.parameters()).device.type == "cpu"
    width = total if is_cpu else 1
    compute = ThreadPoolExecutor(width, "embed", torch.set_num_threads, (total // width,))
    decode = compute if is_cpu else ThreadPoolExecutor(max(2, min(8, cores)), "decode")
    threads = Threads(compute, width, decode, threading.Event())
    try:
        yield threads
    finally:
        threads.is_over.set()
        for pool in (decode, compute):
            pool.shutdown(cancel_futures=True)
        torch.set_num_threads(total)


def embed_shards(
    embedder: Embedder, shards: Iterable[tuple[int, Iterable[Sound]]], job: EmbedJob, out: str, threads: Threads
) -> Steps:
    """Write each shard: the rows of its sounds, in their order, in tables of bounded size.

    Columns file, start_s, duration_s, time_ms (of timestamp jobs: from the segment's start), embedding (null where
    `error` says why), error.
    """
    rows, most = _Rows(embedder, job), CHUNK_BYTES // threads.width
    chunks = ((shard, chunk) for shard, sounds in shards for chunk in _chunks(sounds, rows.bytes_per_s, most))
    for shard, group in groupby(_tables(rows, chunks, threads), key=itemgetter(0)):
        with table_writer(out, shard_name(shard), rows.schema) as writer:
            for _, chunk, tables in group:
                for table in tables:
                    writer.write_table(table)
                yield len(chunk), sum(sound.duration_s for sound in chunk)


def _tables(
    rows: "_Rows", chunks: Iterable[tuple[int, list[Sound]]], threads: Threads
) -> Iterator[tuple[int, list[Sound], Iterable[pa.Table]]]:
    """Each chunk with its shard and tables, in order: short sounds side by side, a long one alone on all cores."""
    queue: deque[tuple[int, list[Sound], Future[pa.Table]]] = deque()
    for shard, chunk in chunks:
        is_long = chunk[0].is_long
        while len(queue) > (0 if is_long else threads.width):
            first, before, table = queue.popleft()
            yield first, before, [table.result()]
        if is_long:
            yield shard, chunk, rows.of_long(chunk[0])
        else:
            queue.append((shard, chunk, threads.compute.submit(rows.of_chunk, chunk)))
    for shard, chunk, table in queue:
        yield shard, chunk, [table.result()]


def _chunks(sounds: Iterable[Sound], bytes_per_s: float, most: int) -> Iterator[list[Sound]]:
    """Sounds of about `most` bytes, results included; one that is not held stands alone."""
    chunk: list[Sound] = []
    held = 0.0
    for sound in sounds:
        if chunk and (sound.is_long or chunk[-1].is_long or held >= most):
            yield chunk
            chunk, held = [], 0.0
        chunk.append(sound)
        held += sound.num_bytes + bytes_per_s * sound.duration_s
    if chunk:
        yield chunk


class _Rows:
    """Sounds -> tables of one job."""

    def __init__(self, embedder: Embedder, job: EmbedJob) -> None:
        self.embedder = embedder
        self.is_scene = job.kind == "scene"
        self.rate = embedder.model.config.mel.sample_rate
        size = (embedder.config.scene_size if self.is_scene else embedder.config.timestamp_size)(embedder.model.config)
        self.schema = job.schema(size)
        self.bytes_per_s = 0.0 if self.is_scene else 4 * size * self.rate / embedder.hop
        self.nothing = np.zeros((1, size), np.float32), np.zeros(1, np.float32)

    def of_chunk(self, sounds: list[Sound]) -> pa.Table:
        """Sounds that are held."""
        waves = {place: sound.wave for place, sound in enumerate(sounds) if sound.wave is not None}
        if self.is_scene:
            scenes = self.embedder.scenes_of_each([*waves.values()])
            found = [(scene[None], np.zeros(1, np.float32)) for scene in scenes]
        else:
            found = self.embedder.timestamps_of_each([*waves.values()])
        of = dict(zip(waves, found, strict=True))
        return self._table(sounds, [of.get(place, self.nothing) for place in range(len(sounds))])

    def of_long(self, sound: Sound) -> Iterator[pa.Table]:
        """A sound that is not held; if it cannot be read a second time, an error row ends it."""
        stream = open_stream(sound.item, self.rate, channel=self.embedder.model.config.channel)
        try:
            if self.is_scene:
                yield self._table([sound], [(self.embedder.scene_of(stream)[None], np.zeros(1, np.float32))])
            else:
                for times_ms, values in self.embedder.timestamps_of(stream):
                    yield self._table([sound], [(values, times_ms)])
        except (AudioError, OSError) as error:
            yield self._table([sound._replace(error=str(error))], [self.nothing])

    def _table(self, sounds: list[Sound], results: list[tuple[np.ndarray, np.ndarray]]) -> pa.Table:
        """Every sound with as many rows as it has values (row, value) and times (row,)."""
        values, times_ms = (np.concatenate(every) for every in zip(*results, strict=True))
        sound_of = np.repeat(np.arange(len(sounds)), [len(times) for _, times in results])
        failed = np.array([sound.error is not None for sound in sounds])[sound_of]
        embedding = self.schema.field("embedding").type
        columns = {
            "file": pa.array([_text(sound.item.file) for sound in sounds], pa.string()).take(sound_of),
            "start_s": np.array([sound.item.start_s for sound in sounds], np.float64)[sound_of],
            "duration_s": pa.array(np.array([sound.duration_s for sound in sounds], np.float64)[sound_of], mask=failed),
            "time_ms": pa.array(times_ms.astype(np.float64), mask=failed),
            "embedding": pa.FixedSizeListArray.from_arrays(values.reshape(-1), type=embedding, mask=pa.array(failed)),
            "error": pa.array([_text(sound.error or sound.warning) for sound in sounds], pa.string()).take(sound_of),
        }
        return pa.table([columns[name] for name in self.schema.names], schema=self.schema)


def _text(name: str | None) -> str | None:
    """A name that Arrow can hold: bytes of a file name that are no UTF-8 are escaped."""
    return None if name is None else name.encode("utf-8", "backslashreplace").decode()

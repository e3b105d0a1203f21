"""Embeddings of many files: decoded ahead of the model, batched across files, written shard by shard, resumable."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby, islice
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from patchout.audio.stream import AudioError
from patchout.checkpoint.zoo import load
from patchout.data.items import Item
from patchout.inference.bulk.ahead import Sound, decode_ahead, open_stream
from patchout.inference.bulk.collapse import alarms
from patchout.inference.bulk.folder import (
    HALVES,
    STATES,
    EmbedJob,
    open_job,
    read_tables,
    shard_name,
    storable,
    table_writer,
)
from patchout.inference.bulk.stale import again_name, find, merge
from patchout.inference.embedding import Embedder
from patchout.job_folder import Folder, only_writer

CHUNK_BYTES = (
    2**24
)  # sounds and results that are computed at a time, by all cores together: more leave their caches
AHEAD_ITEMS = 32  # decoded sounds that wait for their chunk
MAX_REASONS = 100  # that a summary quotes; the shards hold all
NO_PLACES: Mapping[int, Sequence[int]] = {}


@dataclass(frozen=True)
class Summary:
    """What a job's folder holds."""

    items: int
    rows: int
    num_failed: int  # items
    failed: tuple[str, ...]  # the first reasons
    warnings: tuple[str, ...]  # the first items of which only a part could be decoded
    audio_s: float  # embedded by this call
    notes: tuple[str, ...] = ()  # what was embedded again and why, and what looks wrong with the embeddings


class Todo(NamedTuple):
    """What an engine gets: the shards of a job that are not there yet, or hold items to embed again."""

    items: Sequence[Item]
    job: EmbedJob
    out: str
    shards: list[int]
    device: str
    places: Mapping[int, Sequence[int]] = NO_PLACES  # shard that is there -> its items to embed again

    def items_of(self, shard: int) -> Sequence[Item]:
        """The items of a shard that are to be embedded."""
        items = self.job.items_of(self.items, shard)
        return [items[place] for place in self.places[shard]] if shard in self.places else items


Steps = Generator[tuple[int, float], None, None]  # items done and seconds of sound, as they are written
Engine = Callable[[Todo], Steps]


def run_here(todo: Todo) -> Steps:
    """The engine of one machine."""
    embedder = load_embedder(todo.job, todo.device)
    wanted = (item for shard in todo.shards for item in todo.items_of(shard))
    with open_threads(embedder) as threads, closing(threads.decoded(wanted, embedder)) as sounds:
        shards = ((shard, islice(sounds, len(todo.items_of(shard)))) for shard in todo.shards)
        yield from embed_shards(embedder, shards, todo.job, todo.out, threads, places=todo.places)


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

    Items of finished shards are embedded again if they had failed and can be read now, or if their file has
    changed. `on_progress` gets the items done and the seconds of sound since its last call. Memory holds
    AHEAD_ITEMS sounds and a chunk a core (250 MB where every sound lasts a minute), however many or long the items
    are. Raises InputError if the folder belongs to another job; an item that fails becomes a row with its reason.
    """
    if not items:
        raise ValueError("no items to embed: name sound files, folders, patterns or lists")
    job = job.sized(len(items))
    audio_s, count = 0.0, job.num_shards(len(items))
    path = Folder(out).path
    Folder(out).names()  # refuses a file
    with only_writer(path, halves=[HALVES]) if path else nullcontext():
        finished = open_job(out, job, items)
        todo = Todo(items, job, out, [], device)
        rows = ((shard, read_tables(out, [shard_name(shard)], columns=STATES)) for shard in sorted(finished))
        stale = find((shard, todo.items_of(shard), tables) for shard, tables in rows)
        whole = finished - stale.damaged - stale.places.keys()
        shards = [shard for shard in range(count) if shard not in whole]
        todo = todo._replace(shards=shards, places=stale.places)
        on_progress(len(items) - sum(len(todo.items_of(shard)) for shard in todo.shards), 0.0)
        notes = stale.notes
        if todo.shards:
            with closing(engine(todo)) as steps:
                for done, seconds in steps:
                    audio_s += seconds
                    on_progress(done, seconds)
            notes += alarms(read_tables(out, map(shard_name, range(count))), items)
        return replace(summarize(out, len(items), count, audio_s=audio_s), notes=tuple(notes))


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
    embedder: Embedder,
    shards: Iterable[tuple[int, Iterable[Sound]]],
    job: EmbedJob,
    out: str,
    threads: Threads,
    *,
    places: Mapping[int, Sequence[int]] = NO_PLACES,
) -> Steps:
    """Write each shard: the rows of its sounds, in their order, in tables of bounded size.

    The sounds of a shard in `places` are those of its items there, and replace their rows. Columns file, start_s,
    duration_s, time_ms (of timestamp jobs: from the segment's start), embedding (null where `error` says why),
    error, size_bytes and modified_s (of the file that was read).
    """
    rows, most = _Rows(embedder, job), CHUNK_BYTES // threads.width
    chunks = ((shard, chunk) for shard, sounds in shards for chunk in _chunks(sounds, rows.bytes_per_s, most))
    for shard, group in groupby(_tables(rows, chunks, threads), key=itemgetter(0)):
        name = again_name(shard) if shard in places else shard_name(shard)
        with table_writer(out, name, rows.schema) as writer:
            for _, chunk, tables in group:
                for table in tables:
                    writer.write_table(table)
                yield len(chunk), sum(sound.duration_s for sound in chunk)
        if shard in places:
            merge(out, shard, places[shard], rows.schema)


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
        size = (embedder.config.scene_size if self.is_scene else embedder.config.timestamp_size)(
            embedder.model.config
        )
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
        reasons = [storable(sound.error or sound.warning) for sound in sounds]
        columns = {
            "file": pa.array([storable(sound.item.file) for sound in sounds], pa.string()).take(sound_of),
            "start_s": np.array([sound.item.start_s for sound in sounds], np.float64)[sound_of],
            "duration_s": pa.array(
                np.array([sound.duration_s for sound in sounds], np.float64)[sound_of], mask=failed
            ),
            "time_ms": pa.array(times_ms.astype(np.float64), mask=failed),
            "embedding": pa.FixedSizeListArray.from_arrays(
                values.reshape(-1), type=embedding, mask=pa.array(failed)
            ),
            "error": pa.array(reasons, pa.string()).take(sound_of),
            "size_bytes": pa.array([sound.size_bytes for sound in sounds], pa.int64()).take(sound_of),
            "modified_s": pa.array([sound.modified_s for sound in sounds], pa.float64()).take(sound_of),
        }
        return pa.table([columns[name] for name in self.schema.names], schema=self.schema)

"""Embeddings of many files: decoded ahead, batched across files, written in shards, resumable."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from patchout.audio.stream import AudioError
from patchout.data.items import Item
from patchout.data.job_folder import Folder, only_writer
from patchout.inference.bulk import folder
from patchout.inference.bulk.ahead import Opener, Sound, decode_ahead
from patchout.inference.bulk.collapse import collapse_warnings
from patchout.inference.bulk.folder import HALVES, STATES, EmbedJob
from patchout.inference.bulk.stale import find_stale, merge, update_name
from patchout.inference.embedding import Embedder
from patchout.inference.token_budget import TOKENS_PER_BATCH, tokens_per_batch

CHUNK_BYTES = 2**24  # sounds and results that all cores compute at a time: more leave their caches
GPU_WIDTH = 2  # chunks at a time on a GPU: one is prepared while the other runs
AHEAD_ITEMS = 32  # decoded sounds that wait for their chunk
MAX_REASONS = 100  # that a summary quotes; the shards hold all
NO_PLACES: Mapping[int, Sequence[int]] = {}


@dataclass(frozen=True)
class Summary:
    """The outcome of a job: counts, failures, warnings."""

    items: int
    rows: int
    num_failed: int  # items
    failed: tuple[str, ...]  # the first reasons
    warnings: tuple[str, ...]  # the first items of which only a part could be decoded
    audio_s: float  # embedded by this call
    notes: tuple[str, ...] = ()  # on files that have changed, and on collapsed embeddings


class Todo(NamedTuple):
    """The work of an engine: the shards of a job that are missing, or have items to embed again."""

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
    """Embed on this machine alone."""
    embedder = todo.job.embedder(todo.device)
    opener = partial(todo.job.open, config=embedder.model.config)
    items = (item for shard in todo.shards for item in todo.items_of(shard))
    with open_threads(embedder) as threads, closing(threads.decoded(items, opener)) as sounds:
        shards = ((shard, islice(sounds, len(todo.items_of(shard)))) for shard in todo.shards)
        yield from embed_shards(embedder, shards, todo, threads)


def run(
    items: Sequence[Item],
    job: EmbedJob,
    out: str,
    *,
    device: str = "auto",
    on_progress: Callable[[int, float], None] = lambda *_: None,
    engine: Engine = run_here,
) -> Summary:
    """Embed all items into shards in the folder `out` (a path or an fsspec URL), or go on with them.

    Items of finished shards are embedded again if they had failed and can be read now, or if their file has
    changed. `on_progress` gets the items done and the seconds of sound since its last call. Memory holds
    AHEAD_ITEMS sounds and a chunk a core (250 MB where every sound lasts a minute). Raises InputError if the
    folder belongs to another job; an item that fails becomes a row with its reason.
    """
    if not items:
        raise ValueError("no items to embed: name sound files, folders, patterns or lists")
    job, audio_s, path = job.sized(len(items)), 0.0, Folder(out).path
    every = range(job.num_shards(len(items)))
    Folder(out).names()  # refuses a file
    with only_writer(path, halves=[HALVES]) if path else nullcontext():
        finished = folder.open_job(out, job, items)
        rows = (
            (shard, folder.read_tables(out, [folder.shard_name(shard)], columns=STATES))
            for shard in sorted(finished)
        )
        stale = find_stale((shard, job.items_of(items, shard), tables) for shard, tables in rows)
        current = finished - stale.damaged - stale.places.keys()
        shards = [shard for shard in every if shard not in current]
        todo = Todo(items, job, out, shards, device, stale.places)
        on_progress(len(items) - sum(len(todo.items_of(shard)) for shard in todo.shards), 0.0)
        notes = stale.notes
        if todo.shards:
            with closing(engine(todo)) as steps:
                for count, seconds in steps:
                    audio_s += seconds
                    on_progress(count, seconds)
            notes += collapse_warnings(folder.read_tables(out, map(folder.shard_name, every)), items)
        return replace(summarize(out, len(items), len(every), audio_s=audio_s), notes=tuple(notes))


def summarize(out: str, items: int, shards: int, *, audio_s: float = 0.0) -> Summary:
    """Count the rows, failures and warnings in the shards of a finished job."""
    rows, num_failed, failed, warnings = 0, 0, dict[str, None](), dict[str, None]()
    for table in folder.read_tables(
        out, map(folder.shard_name, range(shards)), columns=["duration_s", "error"]
    ):
        rows += len(table)
        reasons = table.filter(pc.is_valid(table["error"]))
        lost = pc.is_null(reasons["duration_s"])
        num_failed += pc.sum(lost, min_count=0).as_py()
        for texts, chosen in ((failed, lost), (warnings, pc.invert(lost))):
            if len(texts) < MAX_REASONS:
                texts |= dict.fromkeys(reasons.filter(chosen)["error"].to_pylist())
    first_failed, first_warnings = (tuple(islice(texts, MAX_REASONS)) for texts in (failed, warnings))
    return Summary(items, rows, num_failed, first_failed, first_warnings, audio_s)


class Threads(NamedTuple):
    """Threads that compute chunks, `width` at a time, and those that decode: on a CPU the same, one a core.

    A chunk has about `chunk_bytes`, as many more on a GPU as it takes more tokens at a time.
    Threads that share a chunk wait for each other, and more threads than cores wait for the interpreter.
    """

    compute: ThreadPoolExecutor
    width: int
    chunk_bytes: int
    decode: ThreadPoolExecutor
    is_over: threading.Event  # ends decoding

    def decoded(self, items: Iterable[Item], opener: Opener) -> Generator[Sound, None, None]:
        """The items' sounds in order, decoded a few ahead of the reader."""
        return decode_ahead(items, opener, self.decode, AHEAD_ITEMS, self.is_over)


@contextmanager
def open_threads(embedder: Embedder) -> Iterator[Threads]:
    """Threads for the embedder's device, among which torch's own are divided; they end with their block."""
    cores, total = os.cpu_count() or 1, torch.get_num_threads()
    device = next(embedder.model.parameters()).device
    is_cpu = device.type == "cpu"
    width = total if is_cpu else GPU_WIDTH
    num_bytes = CHUNK_BYTES // width if is_cpu else CHUNK_BYTES * tokens_per_batch(device) // TOKENS_PER_BATCH
    compute = ThreadPoolExecutor(width, "embed", torch.set_num_threads, (max(1, total // width),))
    decode = compute if is_cpu else ThreadPoolExecutor(max(2, min(8, cores)), "decode")
    threads = Threads(compute, width, num_bytes, decode, threading.Event())
    try:
        yield threads
    finally:
        threads.is_over.set()
        for pool in (decode, compute):
            pool.shutdown(cancel_futures=True)
        torch.set_num_threads(total)


def embed_shards(
    embedder: Embedder, shards: Iterable[tuple[int, Iterable[Sound]]], todo: Todo, threads: Threads
) -> Steps:
    """Write each shard: the rows of its sounds, in their order, in tables of bounded size.

    The sounds of a shard in `todo.places` are those of its items there, and replace their rows. Columns file,
    start_s, duration_s, time_ms (of timestamp jobs: from the segment's start), embedding (null where `error`
    says why), error, size_bytes and modified_s (of the file that was read).
    """
    rows, limit = _Rows(embedder, todo.job), threads.chunk_bytes
    chunks = (
        (shard, chunk) for shard, sounds in shards for chunk in _chunks(sounds, rows.bytes_per_s, limit)
    )
    for shard, group in groupby(_tables(rows, chunks, threads), key=itemgetter(0)):
        is_update = shard in todo.places
        name = update_name(shard) if is_update else folder.shard_name(shard)
        with folder.table_writer(todo.out, name, rows.schema) as writer:
            for _, chunk, tables in group:
                for table in tables:
                    writer.write_table(table)
                yield len(chunk), sum(sound.duration_s for sound in chunk)
        if is_update:
            merge(todo.out, shard, todo.places[shard], rows.schema)


def _tables(
    rows: "_Rows", chunks: Iterable[tuple[int, list[Sound]]], threads: Threads
) -> Iterator[tuple[int, list[Sound], Iterable[pa.Table]]]:
    """(shard, chunk, tables) in order: short sounds side by side, a long one alone on all cores."""
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


def _chunks(sounds: Iterable[Sound], bytes_per_s: float, limit: int) -> Iterator[list[Sound]]:
    """Sounds of about `limit` bytes, results included; a long one stands alone."""
    chunk: list[Sound] = []
    num_bytes = 0.0
    for sound in sounds:
        if chunk and (sound.is_long or chunk[-1].is_long or num_bytes >= limit):
            yield chunk
            chunk, num_bytes = [], 0.0
        chunk.append(sound)
        num_bytes += sound.num_bytes + bytes_per_s * sound.duration_s
    if chunk:
        yield chunk


class _Rows:
    """Embeds sounds: chunks of them -> tables of a job's columns."""

    def __init__(self, embedder: Embedder, job: EmbedJob) -> None:
        config = embedder.model.config
        self.embedder, self.job = embedder, job
        self.is_scene = job.kind == "scene"
        self.rate = config.mel.sample_rate
        sizes = embedder.config
        size = sizes.scene_size(config) if self.is_scene else sizes.timestamp_size(config)
        self.schema = job.schema(size)
        self.bytes_per_s = 0.0 if self.is_scene else 4 * size * self.rate / embedder.hop
        self.no_rows = np.zeros((1, size), np.float32), np.zeros(1, np.float32)

    def of_chunk(self, sounds: list[Sound]) -> pa.Table:
        """The rows of sounds with waveforms, or errors."""
        waves = {place: sound.wave for place, sound in enumerate(sounds) if sound.wave is not None}
        if self.is_scene:
            scenes = self.embedder.scenes_of_each([*waves.values()])
            results = [(scene[None], np.zeros(1, np.float32)) for scene in scenes]
        else:
            results = self.embedder.timestamps_of_each([*waves.values()])
        by_place = dict(zip(waves, results, strict=True))
        return self._table(sounds, [by_place.get(place, self.no_rows) for place in range(len(sounds))])

    def of_long(self, sound: Sound) -> Iterator[pa.Table]:
        """The rows of a long sound, decoded again; if it cannot be, a row with an error ends it."""
        stream = self.job.open(sound.item, self.embedder.model.config)
        try:
            if self.is_scene:
                yield self._table([sound], [(self.embedder.scene_of(stream)[None], np.zeros(1, np.float32))])
            else:
                for times_ms, values in self.embedder.timestamps_of(stream):
                    yield self._table([sound], [(values, times_ms)])
        except (AudioError, OSError) as error:
            yield self._table([sound._replace(error=str(error))], [self.no_rows])

    def _table(self, sounds: list[Sound], results: list[tuple[np.ndarray, np.ndarray]]) -> pa.Table:
        """Every sound with as many rows as it has values (row, value) and times (row,)."""
        values, times_ms = (np.concatenate(parts) for parts in zip(*results, strict=True))
        sound_of = np.repeat(np.arange(len(sounds)), [len(times) for _, times in results])
        cells = {
            "file": [folder.storable(sound.item.file) for sound in sounds],
            "start_s": [sound.item.start_s for sound in sounds],
            "duration_s": [None if sound.error is not None else sound.duration_s for sound in sounds],
            "error": [folder.storable(sound.error or sound.warning) for sound in sounds],
            "size_bytes": [sound.size_bytes for sound in sounds],
            "modified_s": [sound.modified_s for sound in sounds],
        }
        types = dict(zip(self.schema.names, self.schema.types, strict=True))
        columns = {name: pa.array(cells[name], types[name]).take(sound_of) for name in cells}
        failed = np.array([sound.error is not None for sound in sounds])[sound_of]
        columns["time_ms"] = pa.array(times_ms.astype(np.float64), mask=failed)
        flat, mask, kind = values.reshape(-1), pa.array(failed), types["embedding"]
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=mask)
        return pa.table([columns[name] for name in self.schema.names], schema=self.schema)

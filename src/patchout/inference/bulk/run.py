"""The engine of a bulk job: sounds decoded ahead, batched across files, written in shards, resumable."""

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

from patchout.audio.remarks import SHOWN, low_rate
from patchout.data.items import Item
from patchout.data.job_folder import Folder, claim, only_writer
from patchout.inference.bulk import folder
from patchout.inference.bulk.ahead import Opener, Sound, decode_ahead
from patchout.inference.bulk.folder import HALVES, STATES
from patchout.inference.bulk.job import BulkJob, Rows, model_rate
from patchout.inference.bulk.stale import find_stale, merge, update_name
from patchout.inference.token_budget import TOKENS_PER_BATCH, tokens_per_batch
from patchout.models.tagger import Tagger

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
    warnings: tuple[str, ...]  # on the first items that are silent, or of which only a part could be decoded
    audio_s: float  # computed by this call
    notes: tuple[str, ...] = ()  # on files that have changed, and on the rows as a whole


class Todo(NamedTuple):
    """The work of an engine: the shards of a job that are missing, or have items to compute again."""

    items: Sequence[Item]
    job: BulkJob
    out: str
    shards: list[int]
    device: str
    places: Mapping[int, Sequence[int]] = NO_PLACES  # shard that is there -> its items to compute again

    def items_of(self, shard: int) -> Sequence[Item]:
        """The items of a shard that are to be computed."""
        items = self.job.items_of(self.items, shard)
        return [items[place] for place in self.places[shard]] if shard in self.places else items


Steps = Generator[tuple[int, float], None, None]  # items done and seconds of sound, as they are written
Engine = Callable[[Todo], Steps]


def run_here(todo: Todo) -> Steps:
    """Compute on this machine alone."""
    rows = todo.job.rows(todo.device)
    opener = partial(todo.job.open, config=rows.model.config)
    items = (item for shard in todo.shards for item in todo.items_of(shard))
    with open_threads(rows.model) as threads, closing(threads.decoded(items, opener)) as sounds:
        shards = ((shard, islice(sounds, len(todo.items_of(shard)))) for shard in todo.shards)
        yield from write_shards(rows, shards, todo, threads)


def run(
    items: Sequence[Item],
    job: BulkJob,
    out: str,
    *,
    device: str = "auto",
    on_progress: Callable[[int, float], None] = lambda *_: None,
    engine: Engine = run_here,
) -> Summary:
    """Compute all rows into shards in the folder `out` (a path or an fsspec URL), or go on with them.

    Items of finished shards are computed again if they had failed and can be read now, or if their file has
    changed. `on_progress` gets the items done and the seconds of sound since its last call. Memory holds
    AHEAD_ITEMS sounds and a chunk a core (250 MB where every sound lasts a minute). Raises InputError if the
    folder belongs to another job; an item that fails becomes a row with its reason.
    """
    if not items:
        raise ValueError("no items: name sound files, folders, patterns or lists")
    job, audio_s, path = job.sized(len(items)), 0.0, Folder(out).path
    every = range(job.num_shards(len(items)))
    Folder(out).names()  # refuses a file
    with only_writer(path, halves=[HALVES]) if path else nullcontext():
        finished = folder.finished_shards(claim(out, job.about(items)))
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
            notes += job.notes(folder.read_tables(out, map(folder.shard_name, every)), items)
        notes += rate_notes(folder.read_tables(out, map(folder.shard_name, every), columns=STATES))
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


def rate_notes(tables: Iterable[pa.Table]) -> list[str]:
    """A remark on the sounds whose files hold less than half of what the model hears, or none."""
    count, names, rate, last = 0, list[str](), 0, -1
    for numbers, table in folder.numbered(tables):
        items = table.take(pa.array(np.flatnonzero(np.diff(numbers, prepend=last))))
        last = numbers[-1]
        if "sample_rate" in table.column_names and (model_hz := model_rate(table.schema)):
            low = items.filter(pc.less(items["sample_rate"], model_hz / 2))
            count, rate = count + len(low), model_hz
            rows = low.select(["file", "sample_rate"]).slice(0, SHOWN - len(names)).to_pylist()
            names += [f"{row['file']} ({row['sample_rate']} Hz)" for row in rows]
    return [low_rate(names, count, rate)] if count else []


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
def open_threads(model: Tagger) -> Iterator[Threads]:
    """Threads for the model's device, among which torch's own are divided; they end with their block."""
    cores, total = os.cpu_count() or 1, torch.get_num_threads()
    device = next(model.parameters()).device
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


def write_shards(
    rows: Rows, shards: Iterable[tuple[int, Iterable[Sound]]], todo: Todo, threads: Threads
) -> Steps:
    """Write each shard: the rows of its sounds, in their order, in tables of bounded size.

    The sounds of a shard in `todo.places` are those of its items there, and replace their rows. Columns file,
    start_s, duration_s (null where `error` says why), error, size_bytes, modified_s and sample_rate (of the
    file that was read), and those of the job.
    """
    limit = threads.chunk_bytes
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
    rows: Rows, chunks: Iterable[tuple[int, list[Sound]]], threads: Threads
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

"""The job: list the clips, make the shards in worker processes, tell what was found, and lay it out for `datasets`."""

import hashlib
import json
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.csv import WriteOptions, write_csv

from patchout.data.clips import rows_of
from patchout.data.prepare.check import ORIGINAL, Encoding
from patchout.data.prepare.layouts import read_layout
from patchout.data.prepare.listing import Clip, Listing
from patchout.data.prepare.shard import CHECKED, FOUND, Shards, write_shard
from patchout.errors import InputError
from patchout.files import is_newer, without_stream, write_aside, write_json
from patchout.job_folder import claim, only_writer

INFO, REPORT = "dataset.json", "report.csv"
SHARD_CLIPS, MAX_SHARDS = 64, 512  # a shard is what a killed job does again; each one is a memory map
USUAL_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000)

Progress = Callable[[int, float], None]  # clips done and seconds of sound since the last call
Task = tuple[int, list[Clip]]  # number and clips of a shard


@dataclass(frozen=True)
class Plan:
    """A job before it begins."""

    listing: Listing
    listed: Counter[str]  # clips by split or fold
    about: dict[str, Any]  # what makes two jobs the same
    shards: Shards
    shard_clips: int


def plan(name: str, source: Path, *, out: Path, encoding: Encoding = ORIGINAL) -> Plan:
    """List the clips of a data set of `layouts.LAYOUTS`, downloaded to `source`, for the folder `out`.

    Raises LayoutError for a source that is not laid out as the download.
    """
    listing = read_layout(name, source)
    listed, ids = Counter[str](), hashlib.sha256()
    for clip in listing.clips:
        if encoding == ORIGINAL and (clip.start_s or clip.end_s is not None or without_stream(clip.file)[1]):
            raise ValueError(
                f"{clip.id} is a part of its file: streams and segments need --encoding flac or mp3"
            )
        listed[clip.fold] += 1
        ids.update(f"{clip.id}\n".encode())
    total = listed.total()
    about = {"name": name, "encoding": str(encoding), "clips": total, "ids_sha256": ids.hexdigest()}
    size = max(SHARD_CLIPS, -(-total // MAX_SHARDS))
    return Plan(listing, listed, about, Shards(out, -(-total // size), _schema(listing), encoding), size)


def prepare(plan: Plan, *, workers: int = 1, on_progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Do it, or go on where a stopped call was; what dataset.json holds.

    A shard that is older than a file of its clips is made anew. `on_progress` is called after every shard, first for
    those that were there. Raises InputError for a folder of another job and for a set without a usable clip.
    """
    shards, size = plan.shards, plan.shard_clips
    claim(str(shards.out), plan.about)
    with only_writer(shards.out, halves=[".data-*.arrow"]):
        if (shards.out / INFO).exists():
            return json.loads((shards.out / INFO).read_text())
        (shards.out / CHECKED).mkdir(exist_ok=True)
        numbers = range(shards.num_shards)
        there = {
            number for number in numbers if shards.path(number).exists() and shards.found(number).exists()
        }
        there -= {number for number, _ in _newer(plan)}
        on_progress(sum(min(size, plan.listed.total() - number * size) for number in there), 0.0)
        tasks = (task for task in _tasks(plan) if task[0] not in there)
        try:
            with closing(_written(shards, tasks, workers)) as written:
                for done in written:
                    on_progress(*done)
        finally:
            for aside in shards.out.glob(".data-*.arrow"):  # of workers that were stopped
                aside.unlink()
        return _finish(plan)


def newer_files(plan: Plan) -> list[str]:
    """Files of a set that is there that were written after they were packed: changed, or only copied."""
    return list(dict.fromkeys(file for _, file in _newer(plan)))


def _tasks(plan: Plan) -> Iterator[Task]:
    """All shards with their clips."""
    clips = iter(plan.listing.clips)
    return ((number, list(islice(clips, plan.shard_clips))) for number in range(plan.shards.num_shards))


def _newer(plan: Plan) -> Iterator[tuple[int, str]]:
    """The shards that are older than a file of theirs, with each such file."""
    for number, clips in _tasks(plan):
        files = dict.fromkeys(clip.file for clip in clips)
        yield from ((number, file) for file in files if is_newer(file, str(plan.shards.path(number))))


def _schema(listing: Listing) -> pa.Schema:
    """The columns of the set."""
    columns = {"id": pa.string(), "audio": pa.binary(), "labels": pa.list_(pa.int32())}
    columns |= {listing.fold: pa.string()} if listing.fold else {}
    numbers = dict.fromkeys(("probabilities", "known"), pa.list_(pa.float32()))
    return pa.schema(columns | {name: numbers.get(name, pa.string()) for name in listing.more})


# -- workers -----------------------------------------------------------------------------------------------------------


def _written(shards: Shards, tasks: Iterator[Task], workers: int) -> Generator[tuple[int, float], None, None]:
    """Write the shards, by this process if it is the only worker; a few wait in the queue."""
    if workers == 1:
        for task in tasks:
            yield write_shard(shards, *task)
        return
    ours = set(active_children())
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        running = {pool.submit(write_shard, shards, *task) for task in islice(tasks, 2 * workers)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {pool.submit(write_shard, shards, *task) for task in islice(tasks, len(finished))}
            for future in finished:
                yield future.result()
    except BrokenProcessPool:
        hint = "run the same command again, with fewer --workers if memory was short"
        raise InputError(f"{shards.out}: a worker process died; {hint}") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(active_children()) - ours:
            worker.terminate()
            worker.join()


def _start_worker() -> None:
    """Ctrl-C is for the parent, and a worker does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


# -- the end -----------------------------------------------------------------------------------------------------------


def _finish(plan: Plan) -> dict[str, Any]:
    """Report, the files that `datasets` reads beside the shards, and at last dataset.json, the mark of a whole set."""
    shards, listing = plan.shards, plan.listing
    numbers = range(shards.num_shards)
    found = rows_of([str(shards.found(number)) for number in numbers]) if numbers else FOUND.empty_table()
    kept = found.filter(found["kept"])
    if not len(kept):
        first = f"{found['id'][0]}: {found['note'][0]}" if len(found) else "it lists none"
        raise InputError(f"{shards.out}: no clip can be used ({first}): delete the folder before another try")
    no_names = pa.table(
        {name: pa.array([""] * len(listing.problems), pa.string()) for name in ("id", "file")}
    )
    own = found.filter(pc.not_equal(found["problem"], "")), _rows(no_names, "unusable row", listing.problems)
    tables = (*own, _duplicates(kept), _odd_rates(kept))
    report = pa.concat_tables(table.select(["id", "file", "problem", "note"]) for table in tables)
    with write_aside(shards.out / REPORT) as aside:
        write_csv(report, aside, WriteOptions(quoting_style="needed"))
    counts = Counter({row["values"]: row["counts"] for row in kept["fold"].value_counts().to_pylist()})
    official = plan.listed if listing.official is None else listing.official
    ids = "".join(f"{id}\n" for id in kept["id"].to_pylist())
    info = {
        "format": 1,
        "name": plan.about["name"],
        "encoding": plan.about["encoding"],
        "task": listing.task,
        "classes": list(listing.classes),
        "counts": counts,
        "ids_sha256": hashlib.sha256(ids.encode()).hexdigest(),
        "official": {fold: {"listed": number, "present": counts[fold]} for fold, number in official.items()},
        "audio_s": pc.sum(kept["audio_s"]).as_py(),
        "left_out": len(found) - len(kept) + len(listing.problems),
        "problems": Counter(report["problem"].to_pylist()),
    }
    _lay_out(shards)
    write_json(shards.out / INFO, info)
    shutil.rmtree(shards.out / CHECKED)
    return info


def _lay_out(shards: Shards) -> None:
    """The two small files with which `load_from_disk` opens shards as `save_to_disk` leaves them."""
    from datasets import DatasetInfo, Features

    files = [{"filename": shards.path(number).name} for number in range(shards.num_shards)]
    state: dict[str, Any] = {
        "_data_files": files,
        "_fingerprint": hashlib.sha256(shards.schema.serialize()).hexdigest()[:16],
        "_format_kwargs": {},
        "_output_all_columns": False,
        **dict.fromkeys(("_format_columns", "_format_type", "_split")),
    }
    info = DatasetInfo(features=Features.from_arrow_schema(shards.schema))
    write_json(shards.out / "dataset_info.json", asdict(info))
    write_json(shards.out / "state.json", state)


def _duplicates(kept: pa.Table) -> pa.Table:
    """Clips whose samples are also those of a clip in another split; silent ones do not count."""
    heard = kept.filter(pc.not_equal(kept["digest"], 0))
    folds = heard.group_by("digest", use_threads=False).aggregate([("fold", "distinct")])
    twice = folds.filter(pc.greater(pc.list_value_length(folds["fold_distinct"]), 1))
    where = dict(zip(twice["digest"].to_pylist(), twice["fold_distinct"].to_pylist(), strict=True))
    clips = heard.filter(pc.is_in(heard["digest"], value_set=twice["digest"]))
    notes = [
        f"the same sound is in {', '.join(sorted(where[digest]))}" for digest in clips["digest"].to_pylist()
    ]
    return _rows(clips, "duplicated across splits", notes)


def _odd_rates(kept: pa.Table) -> pa.Table:
    """Clips whose rate is none that sounds have, or at most half of what most clips of the set have."""
    rates = kept["rate"].to_numpy()
    usual = int(np.median(rates))
    clips = kept.take(np.flatnonzero(~np.isin(rates, USUAL_RATES) | (rates <= usual / 2)))
    notes = [f"{rate} Hz, most clips have {usual}" for rate in clips["rate"].to_pylist()]
    return _rows(clips, "suspicious rate", notes)


def _rows(clips: pa.Table, problem: str, notes: Sequence[str]) -> pa.Table:
    """Rows of the report."""
    columns = {
        "id": clips["id"],
        "file": clips["file"],
        "problem": pa.array([problem] * len(notes), pa.string()),
    }
    return pa.table(columns | {"note": pa.array(notes, pa.string())})

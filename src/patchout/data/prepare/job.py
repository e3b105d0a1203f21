"""The job of `patchout prepare`: list the clips, write shards in worker processes, report."""

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

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.csv import WriteOptions, write_csv

from patchout.audio.levels import odd_rates
from patchout.data.job_folder import claim, only_writer
from patchout.data.packed import mapped_rows
from patchout.data.prepare.check import ORIGINAL, Encoding
from patchout.data.prepare.downloads import DOWNLOADS
from patchout.data.prepare.layouts import read_layout
from patchout.data.prepare.listing import Clip, Listing
from patchout.data.prepare.shard import CHECKED, CHECKS, Shards, write_shard
from patchout.data.sets import FORMAT, PREPARED
from patchout.errors import InputError
from patchout.files import is_newer, without_stream, write_aside, write_json

REPORT = "report.csv"
SHARD_CLIPS, MAX_SHARDS = 64, 512  # a killed job does one shard again; each one is a memory map

Progress = Callable[[int, float], None]  # clips done and seconds of sound since the last call
Task = tuple[int, list[Clip]]  # number and clips of a shard


@dataclass(frozen=True)
class Plan:
    """A job before it begins: the clips, the shards, and what makes two jobs the same."""

    listing: Listing
    listed: Counter[str]  # clips by split or fold
    identity: dict[str, Any]  # as job.json holds it
    shards: Shards
    shard_clips: int


def plan(name: str, source: Path, *, out: Path, encoding: Encoding = ORIGINAL) -> Plan:
    """List the clips of a data set of `layouts.LAYOUTS`, downloaded to `source`, for the folder `out`.

    Raises LayoutError for a source that is not laid out as the download.
    """
    listing = read_layout(name, source)
    listed, ids = Counter[str](), hashlib.sha256()
    labels = hashlib.sha256(json.dumps([listing.task, *listing.classes]).encode())
    for clip in listing.clips:
        if encoding == ORIGINAL and (clip.start_s or clip.end_s is not None or without_stream(clip.file)[1]):
            todo = "streams and segments need --encoding flac or mp3"
            raise ValueError(f"{clip.id} is a part of its file: {todo}")
        listed[clip.fold] += 1
        ids.update(f"{clip.id}\n".encode())
        labels.update(json.dumps([clip.labels, clip.fold, clip.more]).encode())
    total = listed.total()
    identity = {"name": name, "encoding": str(encoding), "clips": total}
    identity |= {"ids_sha256": ids.hexdigest(), "labels_sha256": labels.hexdigest()}
    size = max(SHARD_CLIPS, -(-total // MAX_SHARDS))
    return Plan(listing, listed, identity, Shards(out, -(-total // size), _schema(listing), encoding), size)


def prepare(plan: Plan, *, workers: int = 1, on_progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Run a job, or go on where a stopped one was; returns the content of dataset.json.

    A shard that is older than a file of its clips is written again. `on_progress` is called after every
    shard, first for those of a stopped job. InputError for another job's folder, and without a usable clip.
    """
    shards, size = plan.shards, plan.shard_clips
    claim(str(shards.out), plan.identity)
    with only_writer(shards.out, halves=[".data-*.arrow"]):
        if (shards.out / PREPARED).exists():
            return json.loads((shards.out / PREPARED).read_text())
        (shards.out / CHECKED).mkdir(exist_ok=True)
        finished = {number for number in range(shards.num_shards) if shards.is_written(number)}
        finished -= {number for number, _ in _newer(plan)}
        on_progress(sum(min(size, plan.listed.total() - number * size) for number in finished), 0.0)
        tasks = (task for task in _tasks(plan) if task[0] not in finished)
        try:
            with closing(_written(shards, tasks, workers)) as written:
                for progress in written:
                    on_progress(*progress)
        finally:
            for aside in shards.out.glob(".data-*.arrow"):  # of workers that were stopped
                aside.unlink()
        return _finish(plan)


def newer_files(plan: Plan) -> list[str]:
    """Files of a finished set with a modification time after its shards': changed, or only copied."""
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


def _written(shards: Shards, tasks: Iterator[Task], workers: int) -> Generator[tuple[int, float], None, None]:
    """Write the shards, in this process if it is the only worker; yields their clips and seconds."""
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
        todo = "run the same command again, with fewer --workers if memory was short"
        raise InputError(f"{shards.out}: a worker process died; {todo}") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(active_children()) - ours:
            worker.terminate()
            worker.join()


def _start_worker() -> None:
    """Leave Ctrl-C to the parent process, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _finish(plan: Plan) -> dict[str, Any]:
    """Write the report, the files that `datasets` needs, and last dataset.json, the mark of a whole set."""
    shards, listing = plan.shards, plan.listing
    files = [str(shards.checks(number)) for number in range(shards.num_shards)]
    checks = mapped_rows(files) if files else CHECKS.empty_table()
    usable = checks.filter(checks["kept"])
    if not len(usable):
        first = f"{checks['id'][0]}: {checks['note'][0]}" if len(checks) else "it lists none"
        raise InputError(f"{shards.out}: no clip can be used ({first}): delete the folder before another try")
    no_clips = pa.table(dict.fromkeys(("id", "file"), pa.array([""] * len(listing.problems), pa.string())))
    unusable = _rows(no_clips, "unusable row", listing.problems)
    problems = checks.filter(pc.not_equal(checks["problem"], ""))
    tables = (problems, unusable, _duplicates(usable), _odd_rates(usable))
    report = pa.concat_tables(table.select(unusable.column_names) for table in tables)
    with write_aside(shards.out / REPORT) as aside:
        write_csv(report, aside, WriteOptions(quoting_style="needed"))
    counts = Counter(usable["fold"].to_pylist())
    official = plan.listed if listing.official is None else listing.official
    ids = "".join(f"{id}\n" for id in usable["id"].to_pylist())
    info = {
        "format": FORMAT,
        "name": plan.identity["name"],
        "encoding": plan.identity["encoding"],
        "task": listing.task,
        "classes": list(listing.classes),
        "counts": counts,
        "ids_sha256": hashlib.sha256(ids.encode()).hexdigest(),
        "official": {fold: {"listed": number, "present": counts[fold]} for fold, number in official.items()},
        "audio_s": pc.sum(usable["audio_s"]).as_py(),
        "left_out": len(checks) - len(usable) + len(listing.problems),
        "problems": Counter(report["problem"].to_pylist()),
    }
    if download := DOWNLOADS.get(plan.identity["name"]):
        info |= {"licence": download.licence, "source": download.source}
    _describe(shards)
    write_json(shards.out / PREPARED, info)
    shutil.rmtree(shards.out / CHECKED)
    return info


def _describe(shards: Shards) -> None:
    """Write the two files that `datasets.load_from_disk` needs beside the shards."""
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


def _duplicates(clips: pa.Table) -> pa.Table:
    """Clips whose samples are also those of a clip in another split; silent ones do not count."""
    heard = clips.filter(pc.not_equal(clips["digest"], 0))
    folds = heard.group_by("digest", use_threads=False).aggregate([("fold", "distinct")])
    twice = folds.filter(pc.greater(pc.list_value_length(folds["fold_distinct"]), 1))
    folds_of = dict(zip(twice["digest"].to_pylist(), twice["fold_distinct"].to_pylist(), strict=True))
    clips = heard.filter(pc.is_in(heard["digest"], value_set=twice["digest"]))
    names = (", ".join(sorted(folds_of[digest])) for digest in clips["digest"].to_pylist())
    return _rows(clips, "duplicated across splits", [f"the same sound is in {folds}" for folds in names])


def _odd_rates(clips: pa.Table) -> pa.Table:
    """Clips of an unusual sampling rate, by `odd_rates`."""
    remarks = odd_rates(clips["rate"].to_numpy())
    return _rows(clips.take(pa.array([*remarks], pa.int64())), "suspicious rate", [*remarks.values()])


def _rows(clips: pa.Table, problem: str, notes: Sequence[str]) -> pa.Table:
    """Rows of the report."""
    texts = {"problem": [problem] * len(notes), "note": notes}
    columns = {name: pa.array(column, pa.string()) for name, column in texts.items()}
    return pa.table({"id": clips["id"], "file": clips["file"]} | columns)

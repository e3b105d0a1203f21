"""Embeddings of whole tasks by any HEAR model, in the files in which the HEAR kit keeps them.

`<out>/model.json` identifies the model. `<out>/<task folder>/` holds the task's metadata, and for each split
`<split>.embeddings.npy` (raw float32, memory-mapped), `.embedding-dimensions.json` (rows and values),
`.filename-timestamps.json` (file and time in ms of each row) and `.target-labels.pkl` (labels of each row).
"""

import copy
import json
import os
import pickle
import queue
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float, Int

from patchout.data.job_folder import differences
from patchout.errors import InputError
from patchout.files import is_newer, write_aside, write_json
from patchout.hear.scores import frames_from_events
from patchout.hear.settings import PRECISION, SETTINGS, current
from patchout.hear.sources import METADATA, VOCABULARY
from patchout.hear.subject import Subject, batch_size, scenes, timestamps
from patchout.hear.tasks import Task, read_task
from patchout.hear.wavs import read_wav

READERS = 2  # threads that read sounds while others embed
PART_S = 600.0  # seconds of sound between two checkpoints of an interrupted run
UNKNOWN_S = 10.0  # assumed length of a clip where lengths differ
VALUES, SIZES = "embeddings.npy", "embedding-dimensions.json"
STAMPS, LABELS = "filename-timestamps.json", "target-labels.pkl"
DONE = ".done.embeddings"
PROFILE = "profile.embeddings.json"  # split -> seconds that the model took


class EmbeddingError(InputError):
    """A folder of embeddings or results that cannot be used: `<path>: <what is wrong>; <what to do>`."""


def embed_task(
    subject: Subject,
    task: Task,
    out: Path,
    *,
    devices: Sequence[str] = ("cpu",),
    on_clips: Callable[[int], object] = lambda clips: None,
) -> Task:
    """Embed all clips of a task into `<out>/<task folder>`, continuing an interrupted run.

    One copy of the model runs on each device. EmbeddingError: `out` holds embeddings of another model, or of
    another state of the task.
    """
    folder = out / task.folder.name
    if not (folder / DONE).exists():
        task.require(subject.rate)
    folder.mkdir(parents=True, exist_ok=True)
    identity = subject.identity()
    _claim(out / "model.json", identity)
    with FileLock(folder / ".lock"):
        state = {"task": task.name, "task_sha256": task.sha256(), "rate": subject.rate}
        _claim(folder / "task.json", identity | state)
        if not (folder / DONE).exists():
            for name in (METADATA, VOCABULARY, *(f"{split}.json" for split in task.splits)):
                shutil.copyfile(task.folder / name, folder / name)
            _Extraction(subject, task, folder, devices).run(on_clips)
            (folder / DONE).touch()
    return read_embeddings(folder)


def _claim(path: Path, record: dict[str, Any]) -> None:
    """Write the record that identifies what a folder holds, or compare it with the one that is there."""
    if not path.exists():
        write_json(path, record)
    check_same(path, read_json(path, {}), record)


def check_same(path: Path, stored: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Compare the `stored` record at `path` with this run's; EmbeddingError names the first difference.

    Files of earlier versions may lack the settings of a published module.
    """
    old, new = current(stored), current(record)
    for name, (before, now) in differences({SETTINGS: new.get(SETTINGS), **old}, new).items():
        todo = f"give another --out, or move {path.parent} away"
        raise EmbeddingError(f"{path}: was made with {name} {before!r}, this is {now!r}; {todo}")


def stored_precision(out: Path) -> Literal["", "fp32", "bf16"]:
    """The precision of the embeddings that a folder holds already; "": it holds none of our models'."""
    settings = read_json(out / "model.json", {}).get(SETTINGS)
    if not settings:
        return ""
    return "bf16" if settings.get(PRECISION) == "bf16" else "fp32"


def newer_wavs(task: Task, folder: Path, rate: int) -> list[str]:
    """Wavs of a task that were modified after their embeddings in `folder` were written (or only copied)."""
    return [
        f"{split}/{name}"
        for split in task.splits
        for name in dict.fromkeys(name for name, _ in read_json(folder / f"{split}.{STAMPS}", []))
        if is_newer(str(task.folder / str(rate) / split / name), str(folder / f"{split}.{VALUES}"))
    ]


class _Extraction:
    """The extraction of a task's embeddings, with a copy of the model on each device."""

    def __init__(self, subject: Subject, task: Task, folder: Path, devices: Sequence[str]) -> None:
        self.task, self.folder, self.rate, self.num_devices = task, folder, subject.rate, len(devices)
        self.batch_size = batch_size(task.duration_s, subject.rate)
        self.is_over = threading.Event()
        self.replicas: queue.Queue[tuple[Subject, str]] = queue.Queue()
        for index, device in enumerate(devices):
            model = copy.deepcopy(subject.model) if index else subject.model
            self.replicas.put((replace(subject, model=model.to(device).eval()), device))

    def run(self, on_clips: Callable[[int], object]) -> None:
        """Embed the clips that have no embeddings yet; an error or a stop ends all threads after a batch."""
        with ThreadPoolExecutor(self.num_devices + READERS) as pool:
            try:
                for split, files in self.task.shuffled().items():
                    self._split(split, files, pool, on_clips)
            finally:
                self.is_over.set()
                pool.shutdown(cancel_futures=True)

    def _split(self, split: str, files: list[str], pool: Executor, on_clips: Callable[[int], object]) -> None:
        """Append the embeddings of a split in parts; the file of sizes counts those that are whole."""
        names = {name: self.folder / f"{split}.{name}" for name in (VALUES, SIZES, STAMPS, LABELS)}
        num_rows, size = read_json(names[SIZES], [0, 0])
        stamps = [(file, ms) for file, ms in read_json(names[STAMPS], [])[:num_rows]]
        seconds = read_json(self.folder / PROFILE, {})
        num_embedded = len({file for file, _ in stamps})
        on_clips(num_embedded)
        length = max(1, int(PART_S / (self.task.duration_s or UNKNOWN_S)))
        parts = [files[first : first + length] for first in range(num_embedded, len(files), length)]
        with names[VALUES].open("ab") as file:
            file.truncate(4 * num_rows * size)
            for values, more_stamps, more_s in pool.map(partial(self._part, split), parts):
                values.tofile(file)
                file.flush()
                os.fsync(file.fileno())
                stamps += more_stamps
                seconds[split] = seconds.get(split, 0.0) + more_s
                write_json(self.folder / PROFILE, seconds)
                write_json(names[STAMPS], stamps)
                write_json(names[SIZES], [len(stamps), values.shape[1]])
                on_clips(len({file for file, _ in more_stamps}))
        with write_aside(names[LABELS]) as aside:
            aside.write_bytes(pickle.dumps(_labels(self.task, split, stamps)))

    def _part(self, split: str, files: list[str]) -> tuple[np.ndarray, list[tuple[str, float]], float]:
        """Embed some clips: (row, value), file and time in ms of each row (0 for scenes), seconds taken."""
        folder = self.task.folder / str(self.rate) / split
        waves = [read_wav(folder / file, self.rate, self.task.duration_s) for file in files]
        values, stamps = [], list[tuple[str, float]]()
        subject, device = self.replicas.get()
        start = time.perf_counter()
        try:
            for first in range(0, len(files), self.batch_size):
                if self.is_over.is_set():
                    raise CancelledError
                batch = slice(first, first + self.batch_size)
                wave = torch.from_numpy(np.stack(waves[batch])).to(device)
                with torch.no_grad():
                    if self.task.embedding_type == "event":
                        embedding, times_ms = timestamps(subject, wave)
                    else:
                        embedding, times_ms = scenes(subject, wave)[:, None], torch.zeros(len(wave), 1)
                values.append(embedding.flatten(0, 1))
                rows = zip(files[batch], times_ms.tolist(), strict=True)
                stamps += [(file, ms) for file, times in rows for ms in times]
        finally:
            self.replicas.put((subject, device))
        return torch.cat(values).numpy(), stamps, time.perf_counter() - start


def _labels(task: Task, split: str, stamps: Sequence[tuple[str, float]]) -> list[list[str]]:
    """Labels of each row."""
    annotations = task.annotations[split]
    if task.embedding_type == "scene":
        return [annotations[file] for file, _ in stamps]
    rows: list[list[str]] = []
    for file, of_file in groupby(stamps, key=lambda stamp: stamp[0]):
        target = frames_from_events(annotations[file], np.array([ms for _, ms in of_file]), task.labels)
        rows += [[task.labels[column] for column in np.flatnonzero(row)] for row in target]
    return rows


class Rows(NamedTuple):
    """Embeddings and targets of one split, clip after clip: one row a clip for scenes, else one a frame."""

    values: Float[np.ndarray, "row value"]  # mapped from the disk
    target: Float[np.ndarray, "row class"]
    files: tuple[str, ...]
    offsets: Int[np.ndarray, "edge"]  # rows of files[i]: offsets[i] to offsets[i + 1]
    times_ms: Float[np.ndarray, "row"]  # 0 for scenes


def read_embeddings(folder: Path) -> Task:
    """Read the task of a folder of embeddings, ours or the kit's; EmbeddingError if they are not complete."""
    task = read_task(folder)
    files = [folder / f"{split}.{name}" for split in task.splits for name in (VALUES, SIZES, LABELS)]
    files += [folder / DONE] if (folder / "task.json").exists() else []
    if not all(path.exists() for path in files):
        raise EmbeddingError(f"{folder}: not all embeddings are there; run the command that makes them again")
    return task


def embedding_s(folder: Path) -> dict[str, float]:
    """Seconds that the model took, under the key `embedding`; empty for the kit's folders."""
    is_ours = (folder / "task.json").exists()
    return {"embedding": sum(read_json(folder / PROFILE, {}).values())} if is_ours else {}


def read_rows(task: Task, split: str) -> Rows:
    """Read one split of a task with embeddings; EmbeddingError if files disagree or values are not finite."""
    names = (VALUES, SIZES, STAMPS, LABELS)
    values_path, sizes_path, stamps_path, labels_path = (task.folder / f"{split}.{name}" for name in names)
    num_rows, size = read_json(sizes_path, [0, 0])
    unnamed = [[str(row), 0.0] for row in range(num_rows)]  # the kit does not name the clips of scenes
    stamps = read_json(stamps_path, unnamed)
    if (num_bytes := values_path.stat().st_size) != 4 * num_rows * size:
        shape = f"{num_rows} x {size} floats"
        raise EmbeddingError(f"{values_path}: has {num_bytes} bytes, {shape} need another number")
    index = {label: number for number, label in enumerate(task.labels)}
    try:
        with labels_path.open("rb") as file:
            columns = [[index[str(name)] for name in names] for names in _PlainUnpickler(file).load()]
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise EmbeddingError(f"{labels_path}: is not one of the kit's ({error})") from None
    target = np.zeros((len(columns), len(index)), np.float32)
    for row, hot in zip(target, columns, strict=True):
        row[hot] = 1
    if not num_rows == len(target) == len(stamps):
        raise EmbeddingError(f"{task.folder}: the files of {split} do not belong together; embed it again")
    values = np.memmap(values_path, np.float32, mode="r", shape=(num_rows, size))
    if not np.isfinite(values).all():
        raise EmbeddingError(f"{task.folder}: {split} has NaN or infinite embeddings; look at the model")
    files = [Path(name).name for name, _ in stamps]
    edges = [row for row in range(num_rows) if row == 0 or files[row] != files[row - 1]]
    times_ms = np.array([ms for _, ms in stamps], np.float64)
    return Rows(values, target, tuple(files[row] for row in edges), np.array([*edges, num_rows]), times_ms)


def read_json(path: Path, default: Any) -> Any:
    """Read a JSON file; `default` if it does not exist, EmbeddingError if it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default
    except ValueError as error:
        todo = f"move {path.parent} away and run this again"
        raise EmbeddingError(f"{path}: is damaged ({error}); {todo}") from None


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler for lists, strings and numbers only, since a pickle of anything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")

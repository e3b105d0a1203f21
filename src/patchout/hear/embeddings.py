"""Embeddings of whole tasks by any HEAR model, kept on disk as memory-mapped arrays.

`<out>/model.json` says whose they are. `<out>/<task folder>/` holds copies of the task's own files, and for each split
`<split>.npy`, float32 (row, value), and `<split>.index.npz`: files in the kit's order of training, offsets of their
rows, and the rows' times in ms. `done.json` comes last. Folders of embeddings that the kit wrote are read too.
"""

import copy
import json
import pickle
import queue
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float, Int

from patchout.errors import InputError
from patchout.files import write_aside
from patchout.hear.scores import frames_from_events
from patchout.hear.subject import Subject, batch_size, scenes, timestamps
from patchout.hear.tasks import Task, read_task
from patchout.hear.wavs import read_wav

PART_S = 600.0  # of sound between two points from which an interrupted run goes on
UNKNOWN_S = 10.0  # a clip of a task whose clips differ


class EmbeddingError(InputError):
    """A folder of embeddings that cannot be used: `<folder>: <what is wrong>; <what to do>`."""


# -- writing ----------------------------------------------------------------------------------------------------------


def embed_task(
    subject: Subject,
    task: Task,
    out: Path,
    *,
    devices: Sequence[str] = ("cpu",),
    workers: int = 2,
    on_clips: Callable[[int], object] = lambda clips: None,
) -> "Embedded":
    """Embed a task into `<out>/<task folder>`, or go on where an earlier run stopped; done already, it is only read.

    One copy of the model runs on each of `devices`, and `workers` more threads read sounds. Refuses an `out` that holds
    embeddings of another model or of another state of the task.
    """
    folder = out / task.folder.name
    if not (folder / "done.json").exists():
        task.require(subject.rate)
    folder.mkdir(parents=True, exist_ok=True)
    identity = subject.identity()
    _claim(out / "model.json", identity)
    with FileLock(folder / ".lock"):
        _claim(folder / "task.json", identity | {"task": task.name, "task_sha256": task.sha256(), "rate": subject.rate})
        if not (folder / "done.json").exists():
            for name in ("task_metadata.json", "labelvocabulary.csv", *(f"{split}.json" for split in task.splits)):
                shutil.copyfile(task.folder / name, folder / name)
            _embed_splits(subject, task, folder, devices, workers, on_clips)
            _claim(folder / "done.json", {"model": subject.name})
    return read_embeddings(folder)


def _embed_splits(
    subject: Subject,
    task: Task,
    folder: Path,
    devices: Sequence[str],
    workers: int,
    on_clips: Callable[[int], object],
) -> None:
    """Embed the splits that are not there."""
    replicas: queue.Queue[tuple[Subject, str]] = queue.Queue()
    for index, device in enumerate(devices):
        model = copy.deepcopy(subject.model) if index else subject.model
        replicas.put((replace(subject, model=model.to(device).eval()), device))
    with ThreadPoolExecutor(len(devices) + workers) as pool:
        for split, files in task.shuffled().items():
            if (folder / f"{split}.npy").exists():
                continue
            parts = list(
                _parts(folder, task, split, [task.folder / str(subject.rate) / split / file for file in files])
            )
            for clips in pool.map(partial(_embed_part, task, replicas, subject.rate), parts):
                on_clips(clips)
            _join(folder, split, files, [part.path for part in parts])


def _claim(path: Path, record: dict[str, Any]) -> None:
    """Say whose a folder is, or refuse it if it is someone else's."""
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if odd := [name for name, value in record.items() if found.get(name) != value]:
            found_text, text = (f"{odd[0]} {one.get(odd[0])!r}" for one in (found, record))
            raise EmbeddingError(f"{path.parent}: holds {found_text}, this is {text}; give another folder or remove it")
        return
    with write_aside(path) as aside:
        aside.write_text(json.dumps(record, indent=1), encoding="utf-8")


class _Part(NamedTuple):
    """Some clips of a split, and where their embeddings wait for the rest."""

    path: Path
    wavs: list[Path]


def _parts(folder: Path, task: Task, split: str, wavs: list[Path]) -> Iterator[_Part]:
    """About `PART_S` seconds of sound each."""
    size = max(1, int(PART_S / (task.duration_s or UNKNOWN_S)))
    for number, start in enumerate(range(0, len(wavs), size)):
        yield _Part(folder / f"{split}.part-{number:05d}.npz", wavs[start : start + size])


def _embed_part(task: Task, replicas: "queue.Queue[tuple[Subject, str]]", rate: int, part: _Part) -> int:
    """Write the embeddings of a part unless they are there; the number of its clips."""
    if part.path.exists():
        return len(part.wavs)
    waves = [read_wav(path, rate) for path in part.wavs]
    replica = replicas.get()
    try:
        pairs = _embed_waves(task, *replica, waves)
    finally:
        replicas.put(replica)
    values, times_ms = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    with write_aside(part.path) as aside:
        np.savez(aside, values=values, times_ms=times_ms, counts=[len(times) for _, times in pairs])
    return len(part.wavs)


def _embed_waves(
    task: Task, subject: Subject, device: str, waves: list[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Values (time, value) and times in ms (time,) of each sound; a scene is one time, 0. Equal lengths share calls."""
    pairs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    size = batch_size(task.duration_s, subject.rate)
    by_length = sorted(range(len(waves)), key=lambda index: len(waves[index]))
    with torch.no_grad():
        for _, group in groupby(by_length, key=lambda index: len(waves[index])):
            same = list(group)
            for start in range(0, len(same), size):
                batch = same[start : start + size]
                wave = torch.from_numpy(np.stack([waves[index] for index in batch])).to(device)
                if task.embedding_type == "event":
                    values, times_ms = timestamps(subject, wave)
                else:
                    values = scenes(subject, wave)[:, None]
                    times_ms = torch.zeros(len(batch), 1, dtype=torch.float64)
                pairs |= zip(batch, zip(values.numpy(), times_ms.numpy(), strict=True), strict=True)
    return [pairs[index] for index in range(len(waves))]


def _join(folder: Path, split: str, files: list[str], parts: list[Path]) -> None:
    """Parts -> the two files of a split."""
    shapes, counts, times_ms = [], [], []
    for path in parts:
        with np.load(path) as part:
            shapes.append(part["values"].shape)
            counts.append(part["counts"])
            times_ms.append(part["times_ms"])
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    with write_aside(folder / f"{split}.index.npz") as aside:
        np.savez(aside, files=np.array(files), offsets=offsets, times_ms=np.concatenate(times_ms))
    with write_aside(folder / f"{split}.npy") as aside:
        shape = (int(offsets[-1]), shapes[0][1])
        memory = np.lib.format.open_memmap(str(aside), mode="w+", dtype=np.float32, shape=shape)
        first = 0
        for path, (rows, _) in zip(parts, shapes, strict=True):
            with np.load(path) as part:
                memory[first : first + rows] = part["values"]
            first += rows
        memory.flush()
    for path in parts:
        path.unlink()


# -- reading ----------------------------------------------------------------------------------------------------------


class Rows(NamedTuple):
    """One split as a probe takes it: clip after clip, the frames of a clip in order of time; a scene is one row."""

    values: Float[np.ndarray, "row value"]  # mapped from the disk
    target: Float[np.ndarray, "row class"]
    files: tuple[str, ...]
    offsets: Int[np.ndarray, "edge"]  # rows of files[i]: offsets[i] to offsets[i + 1]
    times_ms: Float[np.ndarray, "row"]  # 0 for scenes


@dataclass(frozen=True)
class Embedded:
    """The embeddings of one task."""

    task: Task
    model: str
    by_kit: bool

    def rows(self, split: str) -> Rows:
        """Read one split; values that are not finite or do not fit their index are an EmbeddingError."""
        rows = _kit_rows(self.task, split) if self.by_kit else _own_rows(self.task, split)
        if not len(rows.values) == len(rows.target) == len(rows.times_ms) == rows.offsets[-1]:
            raise EmbeddingError(f"{self.task.folder}: the files of {split} do not belong together; embed it again")
        if not np.isfinite(rows.values).all():
            raise EmbeddingError(f"{self.task.folder}: {split} has NaN or infinite embeddings; look at the model")
        return rows


def read_embeddings(folder: Path) -> Embedded:
    """A task's folder that `embed_task` or the kit has written."""
    task = read_task(folder)
    if (folder / "done.json").exists():
        done = json.loads((folder / "done.json").read_text(encoding="utf-8"))
        return Embedded(task, done["model"], by_kit=False)
    if all((folder / f"{split}.embedding-dimensions.json").exists() for split in task.splits):
        return Embedded(task, folder.resolve().parent.name, by_kit=True)
    raise EmbeddingError(f"{folder}: not all embeddings are there; run the command that makes them again")


def _own_rows(task: Task, split: str) -> Rows:
    with np.load(task.folder / f"{split}.index.npz") as index:
        files, offsets, times_ms = tuple(index["files"].tolist()), index["offsets"], index["times_ms"]
    annotations = task.annotations[split]
    if task.embedding_type == "event":
        spans = zip(files, offsets, offsets[1:], strict=False)
        targets = [frames_from_events(annotations[file], times_ms[a:b], task.labels) for file, a, b in spans]
        target = np.concatenate(targets)
    else:
        target = _multi_hot(task, [annotations[file] for file in files])
    return Rows(np.load(task.folder / f"{split}.npy", mmap_mode="r"), target, files, offsets, times_ms)


class _PlainUnpickler(pickle.Unpickler):
    """Lists, strings and numbers: a pickle that needs anything else could run code."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


def _kit_rows(task: Task, split: str) -> Rows:
    """The kit maps raw floats, and keeps a pickle with the labels of each row."""
    folder = task.folder
    num_rows, size = json.loads((folder / f"{split}.embedding-dimensions.json").read_text(encoding="utf-8"))
    path = folder / f"{split}.embeddings.npy"
    if path.stat().st_size != 4 * num_rows * size:
        raise EmbeddingError(f"{path}: has {path.stat().st_size} bytes, {num_rows} x {size} floats need another number")
    try:
        with (folder / f"{split}.target-labels.pkl").open("rb") as file:
            target = _multi_hot(task, _PlainUnpickler(file).load())
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise EmbeddingError(f"{folder}: {split}.target-labels.pkl is not one of the kit's ({error})") from None
    names, times_ms = (
        [str(row) for row in range(num_rows)],
        np.zeros(num_rows),
    )  # the kit names no clips of a scene task
    if task.embedding_type == "event":
        stamps = json.loads((folder / f"{split}.filename-timestamps.json").read_text(encoding="utf-8"))
        names, times_ms = [Path(name).name for name, _ in stamps], np.array([ms for _, ms in stamps], np.float64)
    edges = [row for row in range(num_rows) if row == 0 or names[row] != names[row - 1]]
    values = np.memmap(path, np.float32, mode="r", shape=(num_rows, size))
    return Rows(values, target, tuple(names[row] for row in edges), np.array([*edges, num_rows]), times_ms)


def _multi_hot(task: Task, labels: Sequence[Sequence[str]]) -> Float[np.ndarray, "row class"]:
    index = {label: number for number, label in enumerate(task.labels)}
    target = np.zeros((len(labels), len(index)), np.float32)
    for row, names in enumerate(labels):
        target[row, [index[str(name)] for name in names]] = 1
    return target

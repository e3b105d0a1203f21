"""Shallow probes of the HEAR kit on one task's embeddings: grid search, folds, and the files of results.

All points of the grid are trained on the first partition, the one with the best validation score also on the
others; each partition is scored on its own test split ("HEAR: Holistic Evaluation of Audio Representations",
Turian et al. 2022).
"""

import hashlib
import itertools
import json
import pickle
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from torch import Generator, nn

from patchout.data.augment import keyed
from patchout.files import write_aside, write_json
from patchout.hear.embeddings import VALUES, check_same, embedding_s, read_json, read_rows
from patchout.hear.probe_exam import Exam, ProbeError, score_mode
from patchout.hear.probe_network import Data, Point, Probe, predict, train_group
from patchout.hear.tasks import Partition, Task

Grid = Literal["full", "two"]
SCORES = "test.predicted-scores.json"  # the kit's name, whatever the splits are called
STAGES = "probe-stages.json"  # finished partitions of an unfinished task
NUM_POINTS = 8  # drawn from a grid, as by the kit
_FULL: dict[str, Sequence[Any]] = {  # in the order of the fields of Point
    "batch_size": (1024,),
    "check_val_every_n_epoch": (3,),
    "dropout": (0.1,),
    "hidden_dim": (1024,),
    "hidden_layers": (1, 2),
    "initialization": ("xavier_uniform_", "xavier_normal_"),
    "lr": (3.2e-3, 1e-3, 3.2e-4, 1e-4),
    "max_epochs": (500,),
    "patience": (20,),
}
GRIDS: dict[Grid, dict[str, Sequence[Any]]] = {
    "full": _FULL,
    "two": _FULL | {"initialization": ("xavier_normal_",), "lr": (1e-3,)},  # ours: one hidden layer, or two
}
_NORMS = {"embedding_norm": str(nn.Identity), "hidden_norm": str(nn.BatchNorm1d)}
_FIXED = _NORMS | {"norm_after_activation": False, "optim": str(torch.optim.Adam)}  # as the kit writes it


def grid_points(task: Task, grid: Grid) -> list[Point]:
    """Points of the grid in the kit's order, with the values that the kit or the metadata set for a task."""
    values = dict(GRIDS[grid])
    if task.name == "dcase2016_task2":
        values["check_val_every_n_epoch"] = (10,)
    of_task = task.metadata.get("evaluation_params", {}).get("task_specific_param_grid", {})
    if unknown := of_task.keys() - values.keys():
        names = ", ".join(values)
        raise ProbeError(f"{task.folder}: sets {min(unknown)} of the probe; what can be set is {names}")
    points = [Point(*row) for row in itertools.product(*(values | of_task).values())]
    random.Random(42).shuffle(points)
    return points[:NUM_POINTS]


def _hparams(point: Point) -> dict[str, Any]:
    """Hyperparameters of a probe as the kit writes them."""
    return dict(sorted((_FIXED | point._asdict()).items()))


def probe_task(
    task: Task,
    out: Path,
    *,
    grid: Grid = "full",
    seed: int = 0,
    device: str = "cpu",
    on_fit: Callable[[int], object] = lambda fits: None,
) -> dict[str, Any]:
    """Train and score the probes of a task with embeddings; returns the kit's record, which `out` gets too.

    An interrupted run continues after its last finished partition; finished results are only read. `on_fit`
    gets numbers of trained networks. EmbeddingError: `out` has results of another model, task, grid or seed.
    """
    fit = _Fit(task, seed, torch.device(device), on_fit)
    points = grid_points(task, grid)
    identity = _identity(task, grid, seed, points)
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".lock"):
        if record := _read(out / SCORES, identity, task):
            return record
        stages = _read(out / STAGES, identity, task)
        stages = stages or {"tests": {}, "patchout": identity | {"seconds": embedding_s(task.folder)}}
        for number, partition in enumerate(task.partitions()):
            if partition.test in stages["tests"]:
                continue
            start = time.perf_counter()
            best, probe = fit.best(number, partition, [points[stages["point"]]] if number else points)
            stages = {"point": best, "setting": probe.best.detail} | stages  # the first partition's stay
            scores, predictions = fit.test(partition.test, probe)
            seconds = time.perf_counter() - start
            stages["tests"][partition.test] = scores | {"time_in_min": seconds / 60}
            stages["patchout"]["seconds"][partition.test] = seconds
            with write_aside(out / f"{partition.test}.predictions.pkl") as aside, aside.open("wb") as file:
                pickle.dump(predictions, file)
            write_json(out / STAGES, stages)
        record = _record(task, points[stages["point"]], stages)
        write_json(out / SCORES, record)
        (out / STAGES).unlink()
    return record


@dataclass(frozen=True)
class _Fit:
    """Trains and tests the probes of one task."""

    task: Task
    seed: int
    device: torch.device
    on_fit: Callable[[int], object]

    def best(self, number: int, partition: Partition, points: Sequence[Point]) -> tuple[int, Probe]:
        """Train all points on a partition; index and probe of the best (of equal ones the first)."""
        exam = Exam(self.task, partition.valid)
        exam.require_choice()
        splits = [read_rows(self.task, split) for split in partition.train]
        values = self._tensor([rows.values for rows in splits])
        if len(values) < 2:
            raise ProbeError(f"{self.task.folder}: {len(values)} row to learn from, normalisation needs 2")
        data = Data(values, self._tensor([rows.target for rows in splits]), exam.one_label)
        key = (self.seed, number)
        probes = [Probe(point, data, keyed("probe", *key, index)) for index, point in enumerate(points)]
        validation = self._tensor([exam.rows.values])
        groups: dict[object, list[Probe]] = {}  # a CPU trains one alone: two would share its caches
        for index, probe in enumerate(probes):
            is_alone = self.device.type == "cpu"
            groups.setdefault(index if is_alone else probe.point.schedule, []).append(probe)
        for index, group in enumerate(groups.values()):
            dropout = Generator(self.device).manual_seed(keyed("probe dropout", *key, index).initial_seed())
            train_group(group, data, validation, exam.check, dropout)
            self.on_fit(len(group))
        best = max(range(len(probes)), key=lambda index: probes[index].best.score)
        return best, probes[best]

    def test(self, split: str, probe: Probe) -> tuple[dict[str, Any], dict[str, Any]]:
        """Scores and predictions of a test split, in the kit's format."""
        exam = Exam(self.task, split)
        logits = predict(probe, self._tensor([exam.rows.values]))
        scores, predictions = exam.report(logits, probe.best.detail)
        validation = exam.sign * probe.best.score
        return scores | {"validation_score": validation, "epoch": probe.best_epoch}, predictions

    def _tensor(self, arrays: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(self.device)  # copied: the files are memory-mapped


def _identity(task: Task, grid: Grid, seed: int, points: Sequence[Point]) -> dict[str, Any]:
    """Everything that the results depend on; results that differ in it are not mixed."""
    unnamed = {"model": task.folder.resolve().parent.name}  # the kit does not say whose embeddings they are
    settings = {"task": task.name, "task_sha256": task.sha256(), "grid": grid, "seed": seed}
    identity: dict[str, Any] = read_json(task.folder / "task.json", unnamed) | settings
    text = json.dumps([identity, [_hparams(point) for point in points]], sort_keys=True)
    return identity | {"config_sha256": hashlib.sha256(text.encode()).hexdigest()}


def _record(task: Task, point: Point, stages: Mapping[str, Any]) -> dict[str, Any]:
    """The record of scores in the kit's format; our additions are under the key `patchout`."""
    tests = stages["tests"]
    record = dict(tests)
    if len(tests) > 1:
        columns = {key: np.array([test[key] for test in tests.values()]) for key in tests[min(tests)]}
        with np.errstate(invalid="ignore"):  # the spread of an infinite d_prime is NaN
            means = {f"{key}_mean": float(column.mean()) for key, column in columns.items()}
            spreads = {f"{key}_std": float(column.std(ddof=1)) for key, column in columns.items()}
        record["aggregated_scores"] = means | spreads
    return record | {
        "hparams": _hparams(point),
        "postprocessing": list(stages["setting"].items()),
        "score_mode": score_mode(task),
        "embedding_path": str(task.folder),
        "patchout": stages["patchout"],
    }


def _read(path: Path, identity: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Read a file of results; {} if there is none, or if the embeddings lie elsewhere and are newer."""
    record: dict[str, Any] = read_json(path, {})
    if record:
        check_same(path, record.get("patchout", {}), identity)
        if task.folder.resolve() != path.parent.resolve():
            values = [task.folder / f"{split}.{VALUES}" for split in task.splits]
            is_stale = max(file.stat().st_mtime for file in values) > path.stat().st_mtime
            return {} if is_stale else record
    return record

"""The HEAR kit's shallow probe on the embeddings of one task: grid, choice, folds, and its files of results.

Every point of the grid learns the first partition; the one with the best validation score learns the others, and each
partition is judged on its own test split ("HEAR: Holistic Evaluation of Audio Representations", Turian et al. 2022).
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
from patchout.hear.probe_group import Data, Point, Probe, predict, train_group
from patchout.hear.tasks import Partition, Task

Grid = Literal["full", "two"]
SCORES = "test.predicted-scores.json"  # the kit's name, whatever the splits are called
STAGES = "probe-stages.json"  # partitions that are done while others are not
NUM_POINTS = 8  # of a grid: those that the kit draws
_FULL: dict[str, Sequence[Any]] = {  # in the order of Point, on which that of the points depends
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
_SAME = {  # of every point, as the kit writes it
    "embedding_norm": str(nn.Identity),
    "hidden_norm": str(nn.BatchNorm1d),
    "norm_after_activation": False,
    "optim": str(torch.optim.Adam),
}


# -- the grid ---------------------------------------------------------------------------------------------------------


def grid_points(task: Task, grid: Grid) -> list[Point]:
    """The points in the kit's order, with what the kit or the task's metadata sets for this task."""
    values = dict(GRIDS[grid])
    if task.name == "dcase2016_task2":
        values["check_val_every_n_epoch"] = (10,)
    own = task.metadata.get("evaluation_params", {}).get("task_specific_param_grid", {})
    if unknown := own.keys() - values.keys():
        raise ProbeError(
            f"{task.folder}: sets {min(unknown)} of the probe; what can be set is {', '.join(values)}"
        )
    points = [Point(*row) for row in itertools.product(*(values | own).values())]
    random.Random(42).shuffle(points)
    return points[:NUM_POINTS]


def _hparams(point: Point) -> dict[str, Any]:
    return dict(sorted((_SAME | point._asdict()).items()))


# -- one task ---------------------------------------------------------------------------------------------------------


def probe_task(
    task: Task,
    out: Path,
    *,
    grid: Grid = "full",
    seed: int = 0,
    device: str = "cpu",
    on_fit: Callable[[int], object] = lambda fits: None,
) -> dict[str, Any]:
    """The kit's record of scores, also written to `out` beside the predictions; done already, it is only read.

    `task` is a folder of embeddings. An interrupted run goes on after the last partition that it has finished. `on_fit`
    is told how many more networks are ready. Refuses an `out` that holds results of another model, task, grid or seed.
    """
    fit = _Fit(task, seed, torch.device(device), on_fit)
    points = grid_points(task, grid)
    about = _about(task, grid, seed, points)
    out.mkdir(parents=True, exist_ok=True)
    with FileLock(out / ".lock"):
        if record := _read(out / SCORES, about, task):
            return record
        stages = _read(out / STAGES, about, task)
        stages = stages or {"tests": {}, "patchout": about | {"seconds": embedding_s(task.folder)}}
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
    """Networks of one task."""

    task: Task
    seed: int
    device: torch.device
    on_fit: Callable[[int], object]

    def best(self, number: int, partition: Partition, points: Sequence[Point]) -> tuple[int, Probe]:
        """Train all points on a partition; which of them is best (of equal ones the first)."""
        exam = Exam(self.task, partition.valid)
        exam.require_choice()
        rows = [read_rows(self.task, split) for split in partition.train]
        values, target = (
            self._tensor([one.values for one in rows]),
            self._tensor([one.target for one in rows]),
        )
        if len(values) < 2:
            raise ProbeError(f"{self.task.folder}: {len(values)} row to learn from, normalisation needs 2")
        data = Data(values, target, exam.one_label)
        key = (self.seed, number)
        probes = [Probe(point, data, keyed("probe", *key, index)) for index, point in enumerate(points)]
        validation = self._tensor([exam.rows.values])
        for index, group in enumerate(self._groups(probes)):
            dropout = Generator(self.device).manual_seed(keyed("probe dropout", *key, index).initial_seed())
            train_group(group, data, validation, exam.check, dropout)
            self.on_fit(len(group))
        best = max(range(len(probes)), key=lambda index: probes[index].best.score)
        return best, probes[best]

    def test(self, split: str, probe: Probe) -> tuple[dict[str, Any], dict[str, Any]]:
        """The kit's scores and predictions of a test split."""
        exam = Exam(self.task, split)
        (logits,) = predict([probe], self._tensor([exam.rows.values]))
        scores, predictions = exam.report(logits, probe.best.detail)
        validation = exam.sign * probe.best.score
        return scores | {"validation_score": validation, "epoch": probe.best_epoch}, predictions

    def _tensor(self, arrays: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(self.device)  # a copy also of one: it is mapped

    def _groups(self, probes: Sequence[Probe]) -> list[list[Probe]]:
        """All of one schedule together on a GPU; on a CPU one alone is a full load, and two only share its caches."""
        if self.device.type == "cpu":
            return [[probe] for probe in probes]
        schedules = dict.fromkeys(probe.point.schedule for probe in probes)
        return [[probe for probe in probes if probe.point.schedule == one] for one in schedules]


# -- files ------------------------------------------------------------------------------------------------------------


def _about(task: Task, grid: Grid, seed: int, points: Sequence[Point]) -> dict[str, Any]:
    """What results depend on; results that differ in it are not mixed."""
    whose = read_json(
        task.folder / "task.json", {"model": task.folder.resolve().parent.name}
    )  # the kit does not say
    about = whose | {"task": task.name, "task_sha256": task.sha256(), "grid": grid, "seed": seed}
    text = json.dumps([about, [_hparams(point) for point in points]], sort_keys=True)
    return about | {"config_sha256": hashlib.sha256(text.encode()).hexdigest()}


def _record(task: Task, point: Point, stages: Mapping[str, Any]) -> dict[str, Any]:
    """The kit's record, and what we add under one key of our own."""
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


def _read(path: Path, about: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """A file of results, {} if there is none or embeddings elsewhere are newer; other results are refused."""
    record: dict[str, Any] = read_json(path, {})
    if record:
        check_same(path, record.get("patchout", {}), about)
        values = [task.folder / f"{split}.{VALUES}" for split in task.splits]
        is_other = task.folder.resolve() != path.parent.resolve()
        if is_other and max(file.stat().st_mtime for file in values) > path.stat().st_mtime:
            return {}
    return record

"""Scores of a probe on one split: the validation score that selects it, and the reported test scores."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchout.errors import InputError
from patchout.hear.embeddings import read_rows
from patchout.hear.probe_network import Check, loss
from patchout.hear.scores import MINIMIZED, EventRow, event_scores, events_from_frames, scene_scores
from patchout.hear.sources import METADATA
from patchout.hear.tasks import Task

EVENT_GRID: dict[str, Sequence[float | int]] = {"median_filter_ms": (250,), "min_duration": (125, 250)}
RANKED = ("aucroc", "d_prime")  # undefined for a class without positive or without negative rows

Setting = Mapping[str, float | int]  # of the event postprocessing; empty for scenes


class ProbeError(InputError):
    """A task that cannot be probed: `<folder>: <why>; <what to do>`."""


class Exam:
    """The evaluation of probes on one split of a task."""

    def __init__(self, task: Task, split: str) -> None:
        """Read the split; ProbeError if the task's metadata asks for something that the kit does not have."""
        self.task, self.split, self.rows = task, split, read_rows(task, split)
        self.one_label = task.prediction_type == "multiclass"
        self.by_loss = _by_loss(task)
        self.sign = 1 if score_mode(task) == "max" else -1
        self.settings = _event_settings(task)
        if self.by_loss and (ways := len(self.settings)) > 1:
            raise ProbeError(f"{task.folder}: the loss cannot choose among {ways} ways to make events")

    def require_choice(self) -> None:
        """Raise a ProbeError if the score that selects a probe is undefined on this validation split."""
        shares, score = self.rows.target.mean(axis=0), self.task.evaluation[0]
        constant = [label for label, share in zip(self.task.labels, shares, strict=True) if share in (0, 1)]
        if not self.by_loss and score in RANKED and constant:
            reason = f"all or none of the clips of {self.split} are {constant[0]!r}"
            todo = f"give that split both kinds, or put another score first in {METADATA}"
            raise ProbeError(f"{self.task.folder}: {score} cannot choose a probe: {reason}; {todo}")

    def check(self, logits: Float[Tensor, "row class"]) -> Check:
        """The validation score, and the event setting that reaches it (of equal ones the greatest)."""
        if self.by_loss or not bool(logits.isfinite().all()):
            return Check(-self._loss(logits), self.settings[0])
        prediction, names = self._prediction(logits), self.task.evaluation[:1]
        scored = [(self._scores(prediction, setting, names)[names[0]], setting) for setting in self.settings]
        score, best = max(scored, key=lambda pair: (np.nan_to_num(pair[0]), *pair[1].values()))
        return Check(self.sign * score, best)

    def report(
        self, logits: Float[Tensor, "row class"], setting: Setting
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """All scores by the kit's names, and the content of the kit's file of predictions."""
        if not bool(logits.isfinite().all()):
            reason = "outputs of the probe are not finite; are the embeddings that large?"
            raise ProbeError(f"{self.task.folder}: {reason}")
        prediction = self._prediction(logits)
        scores = self._scores(prediction, setting, self.task.evaluation)
        record = {"test_loss": self._loss(logits), "test_score": scores[self.task.evaluation[0]]}
        record |= {f"test_{name}": score for name, score in scores.items()}
        predictions: dict[str, Any] = {"target": self.rows.target, "prediction": prediction}
        predictions |= {"prediction_logit": logits.numpy()}
        if setting:
            predictions |= {"target_events": dict(self.task.annotations[self.split])}
            predictions |= {"predicted_events": self._events(prediction, setting)}
            predictions |= {"timestamp": self.rows.times_ms}
        return record, predictions

    def _loss(self, logits: Tensor) -> float:
        return float(loss(logits, torch.from_numpy(self.rows.target), self.one_label))

    def _prediction(self, logits: Tensor) -> np.ndarray:
        return (logits.softmax(1) if self.one_label else logits.sigmoid()).numpy()

    def _scores(self, prediction: np.ndarray, setting: Setting, names: Sequence[str]) -> dict[str, float]:
        if not setting:
            return scene_scores(self.rows.target, prediction, names)
        return event_scores(self.task.annotations[self.split], self._events(prediction, setting), names)

    def _events(self, prediction: np.ndarray, setting: Setting) -> dict[str, list[EventRow]]:
        files, edges, labels = self.rows.files, self.rows.offsets.tolist(), self.task.labels
        median_ms, min_ms = setting["median_filter_ms"], setting["min_duration"]
        spans = {file: slice(*edge) for file, edge in zip(files, itertools.pairwise(edges), strict=True)}
        return {
            file: events_from_frames(prediction[span], self.rows.times_ms[span], labels, median_ms, min_ms)
            for file, span in spans.items()
        }


def _by_loss(task: Task) -> bool:
    """Whether the validation loss selects a probe, not the primary score."""
    return not task.metadata.get("use_scoring_for_early_stopping", True)


def score_mode(task: Task) -> Literal["max", "min"]:
    """Direction of the value that selects a probe."""
    return "min" if _by_loss(task) or task.evaluation[0] in MINIMIZED else "max"


def _event_settings(task: Task) -> list[Setting]:
    """Grid of the event postprocessing: the metadata's, else the kit's; a single empty point for scenes."""
    if task.embedding_type == "scene":
        return [{}]
    grid = task.metadata.get("evaluation_params", {}).get("event_postprocessing_grid", EVENT_GRID)
    if set(grid) != set(EVENT_GRID):
        names = f"{', '.join(grid)}, not {', '.join(EVENT_GRID)}"
        raise ProbeError(f"{task.folder}: event_postprocessing_grid has {names}")
    rows = itertools.product(*(grid[name] for name in sorted(grid)))
    return [dict(zip(sorted(grid), row, strict=True)) for row in rows]

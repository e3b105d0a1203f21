"""What the logits of a probe are worth on one split: the check that chooses, and the scores that are reported."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchout.errors import InputError
from patchout.hear.embeddings import read_rows
from patchout.hear.probe_group import Check, loss
from patchout.hear.scores import MINIMIZED, EventRow, event_scores, events_from_frames, scene_scores
from patchout.hear.tasks import Task

EVENT_GRID: dict[str, Sequence[float | int]] = {"median_filter_ms": (250,), "min_duration": (125, 250)}
RANKED = ("aucroc", "d_prime")  # are not defined where a class has no positive or no negative row

Setting = Mapping[str, float | int]  # one way to make events of frames; empty for scenes


class ProbeError(InputError):
    """A task that cannot be probed: `<folder>: <why>; <what to do>`."""


class Exam:
    """One split of a task."""

    def __init__(self, task: Task, split: str) -> None:
        """Refuse a task whose metadata asks for what the kit does not have."""
        self.task, self.split, self.rows = task, split, read_rows(task, split)
        self.one_label = task.prediction_type == "multiclass"
        self.by_loss = _by_loss(task)
        self.sign = 1 if score_mode(task) == "max" else -1
        self.settings = _event_settings(task)
        if self.by_loss and len(self.settings) > 1:
            raise ProbeError(
                f"{task.folder}: the loss cannot choose among {len(self.settings)} ways to make events"
            )

    def require_choice(self) -> None:
        """Refuse a validation split on which the score that chooses is not defined."""
        share, score = self.rows.target.mean(axis=0), self.task.evaluation[0]
        lonely = [label for label, part in zip(self.task.labels, share, strict=True) if part in (0, 1)]
        if not self.by_loss and score in RANKED and lonely:
            raise ProbeError(
                f"{self.task.folder}: {score} cannot choose a probe: all or none of the clips of {self.split} are "
                f"{lonely[0]!r}; give that split both kinds, or put another score first in task_metadata.json"
            )

    def check(self, logits: Float[Tensor, "row class"]) -> Check:
        """The score that chooses, and the setting for events that reaches it (of equal ones the greatest)."""
        if self.by_loss or not bool(logits.isfinite().all()):
            return Check(-self._loss(logits), self.settings[0])
        names = self.task.evaluation[:1]
        found = [(self._scores(self._prediction(logits), one, names)[names[0]], one) for one in self.settings]
        score, setting = max(
            found, key=lambda pair: (0.0 if math.isnan(pair[0]) else pair[0], *pair[1].values())
        )
        return Check(self.sign * score, setting)

    def report(
        self, logits: Float[Tensor, "row class"], setting: Setting
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """All scores under the kit's names, and what stands in the kit's file of predictions."""
        if not bool(logits.isfinite().all()):
            raise ProbeError(
                f"{self.task.folder}: outputs of the probe are not finite; are the embeddings that large?"
            )
        prediction = self._prediction(logits)
        scores = self._scores(prediction, setting, self.task.evaluation)
        about = {"test_loss": self._loss(logits), "test_score": scores[self.task.evaluation[0]]}
        predictions: dict[str, Any] = {"target": self.rows.target, "prediction": prediction}
        predictions |= {"prediction_logit": logits.numpy()}
        if setting:
            predictions |= {"target_events": dict(self.task.annotations[self.split])}
            predictions |= {
                "predicted_events": self._events(prediction, setting),
                "timestamp": self.rows.times_ms,
            }
        return about | {f"test_{name}": score for name, score in scores.items()}, predictions

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
    """Whether the validation loss chooses, not the primary score."""
    return not task.metadata.get("use_scoring_for_early_stopping", True)


def score_mode(task: Task) -> Literal["max", "min"]:
    """Of the value that chooses."""
    return "min" if _by_loss(task) or task.evaluation[0] in MINIMIZED else "max"


def _event_settings(task: Task) -> list[Setting]:
    """The grid of ways to make events of frames: the kit's, or that of the task's metadata."""
    if task.embedding_type == "scene":
        return [{}]
    grid = task.metadata.get("evaluation_params", {}).get("event_postprocessing_grid", EVENT_GRID)
    if set(grid) != set(EVENT_GRID):
        raise ProbeError(
            f"{task.folder}: event_postprocessing_grid has {', '.join(grid)}, not {', '.join(EVENT_GRID)}"
        )
    names = sorted(grid)
    return [dict(zip(names, row, strict=True)) for row in itertools.product(*(grid[name] for name in names))]

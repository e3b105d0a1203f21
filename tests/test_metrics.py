import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score

from patchout.metrics import accuracy, mean_average_precision, wilson_interval


def scores_and_targets(clips: int = 40, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Random scores, and targets of one class a clip that leave no class out."""
    rng = np.random.default_rng(0)
    targets = np.eye(classes, dtype=np.float32)[np.arange(clips) % classes]
    return rng.random((clips, classes), np.float32) + 0.3 * targets, targets


def test_accuracy_counts_clips_whose_best_class_is_right() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], np.float32)
    targets = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    assert accuracy(scores, targets) == 0.75


def test_average_precision_by_hand() -> None:
    """First and third of four are right: (1/1 + 2/3) / 2."""
    scores = np.array([[0.9], [0.8], [0.7], [0.1]], np.float32)
    targets = np.array([[1], [0], [1], [0]], np.float32)
    assert mean_average_precision(scores, targets) == pytest.approx(5 / 6)


def test_classes_count_alike() -> None:
    """A perfect class and one whose only clip comes last of four: (1 + 1/4) / 2."""
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.2, 0.7], [0.1, 0.6]], np.float32)
    targets = np.array([[1, 1], [0, 0], [0, 0], [0, 0]], np.float32)
    assert mean_average_precision(scores, targets) == pytest.approx(0.625)


def test_classes_without_a_clip_are_left_out() -> None:
    scores, targets = scores_and_targets()
    wider = [np.concatenate([table, np.zeros((len(table), 3), np.float32)], axis=1) for table in (scores, targets)]
    assert mean_average_precision(*wider) == mean_average_precision(scores, targets)


def test_without_any_target_there_is_no_score() -> None:
    assert math.isnan(mean_average_precision(np.ones((3, 2), np.float32), np.zeros((3, 2), np.float32)))


def test_scores_agree_with_scikit_learn() -> None:
    scores, targets = scores_and_targets()
    assert accuracy(scores, targets) == pytest.approx(accuracy_score(targets.argmax(1), scores.argmax(1)))
    assert mean_average_precision(scores, targets) == pytest.approx(average_precision_score(targets, scores))


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        (8, 10, 0.4902, 0.9433),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),  # Newcombe, 1998, table I, method 3
    ],
)
def test_wilson_interval_against_published_values(right: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(right / count, count) == pytest.approx((low, high), abs=5e-5)

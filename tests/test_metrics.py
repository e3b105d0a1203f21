"""Scores: against scikit-learn, against numbers checked by hand, and where there is nothing to score."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

from patchout.inference.metrics import (
    CHUNK,
    accuracy,
    bootstrap,
    class_means,
    d_prime,
    ranking,
    score_text,
    wilson_interval,
)

Pair = tuple[np.ndarray, np.ndarray]


def scores_and_targets(clips: int = 40, classes: int = 5, *, steps: int = 0, seed: int = 0) -> Pair:
    """Scores (equal ones among them with `steps`),
    and targets of one class a clip that leave no class out.
    """
    rng = np.random.default_rng(seed)
    targets = np.eye(classes, dtype=np.float32)[np.arange(clips) % classes]
    scores = rng.random((clips, classes)) + 0.3 * targets
    return (np.round(scores * steps) / steps if steps else scores), targets


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def test_accuracy_counts_clips_whose_best_class_is_right() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]], np.float32)
    targets = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], np.float32)
    assert accuracy(scores, targets) == 0.75


def test_accuracy_agrees_with_scikit_learn() -> None:
    scores, targets = scores_and_targets()
    assert accuracy(scores, targets) == pytest.approx(accuracy_score(targets.argmax(1), scores.argmax(1)))


def test_a_ranking_by_hand() -> None:
    """First and third of four are right: precision (1/1 + 2/3) / 2; of 4 pairs, 3 are in order."""
    found = ranking(column(0.9, 0.8, 0.7, 0.1), column(1, 0, 1, 0))
    assert found.precision == pytest.approx(np.array([[5 / 6]]))
    assert found.auc == pytest.approx(np.array([[3 / 4]]))


def test_equal_scores_are_one_threshold() -> None:
    """Two of the three clips at 0.5 are right: precision 2/3 for both;
    of 2 x 2 pairs two are tied and two in order.
    """
    found = ranking(column(0.5, 0.5, 0.5, 0.1), column(1, 0, 1, 0))
    assert found.precision == pytest.approx(np.array([[2 / 3]]))
    assert found.auc == pytest.approx(np.array([[(2 + 2 / 2) / 4]]))


@pytest.mark.parametrize("steps", [0, 2, 20])
@pytest.mark.parametrize("seed", range(5))
def test_rankings_agree_with_scikit_learn(steps: int, seed: int) -> None:
    scores, targets = scores_and_targets(steps=steps, seed=seed)
    found = ranking(scores, targets)
    assert found.precision[:, 0] == pytest.approx(average_precision_score(targets, scores, average=None))
    assert found.auc[:, 0] == pytest.approx(roc_auc_score(targets, scores, average=None))


def test_labels_nobody_gave_weigh_nothing_as_in_scikit_learn() -> None:
    scores, targets = scores_and_targets(200, steps=30)
    known = (np.random.default_rng(1).random(targets.shape) < 0.5).astype(np.float32)
    found = ranking(scores, targets, known=known)
    for c in range(targets.shape[1]):
        weighed = {"sample_weight": known[:, c]}
        assert found.precision[c, 0] == pytest.approx(
            average_precision_score(targets[:, c], scores[:, c], **weighed)
        )
        assert found.auc[c, 0] == pytest.approx(roc_auc_score(targets[:, c], scores[:, c], **weighed))


def test_a_draw_scores_as_the_clips_it_holds() -> None:
    scores, targets = scores_and_targets(60, steps=30)
    counts = np.random.default_rng(1).multinomial(60, np.full(60, 1 / 60), size=3).T.astype(np.float32)
    found = ranking(scores, targets, counts=counts)
    for draw in range(3):
        held = np.repeat(np.arange(60), counts[:, draw].astype(int))
        assert found.precision[:, draw] == pytest.approx(
            average_precision_score(targets[held], scores[held], average=None)
        )
        assert found.auc[:, draw] == pytest.approx(roc_auc_score(targets[held], scores[held], average=None))


def test_a_class_that_never_occurs_has_no_score() -> None:
    found = ranking(column(0.9, 0.1), column(0, 0))
    assert np.isnan(found.precision).all()
    assert np.isnan(found.auc).all()


def test_a_class_of_all_clips_has_a_precision_of_one_and_no_auc() -> None:
    found = ranking(column(0.9, 0.1), column(1, 1))
    assert found.precision == pytest.approx(np.array([[1.0]]))
    assert np.isnan(found.auc).all()


def test_a_class_that_nobody_labelled_has_no_score() -> None:
    found = ranking(column(0.9, 0.1), column(1, 0), known=column(0, 0))
    assert np.isnan(found.precision).all()


def test_classes_count_alike() -> None:
    """A perfect class and one whose only clip comes last of four: (1 + 1/4) / 2; AUC (1 + 0) / 2."""
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.2, 0.7], [0.1, 0.6]], np.float32)
    targets = np.array([[1, 1], [0, 0], [0, 0], [0, 0]], np.float32)
    means = class_means(ranking(scores, targets))
    assert means["mAP"] == pytest.approx([0.625])
    assert means["AUC"] == pytest.approx([0.5])
    assert means["d_prime"] == pytest.approx([0.0], abs=1e-12)


def test_classes_without_a_score_are_left_out_of_the_mean() -> None:
    scores, targets = scores_and_targets()
    wider = [
        np.concatenate([table, np.zeros((len(table), 3), table.dtype)], axis=1) for table in (scores, targets)
    ]
    assert class_means(ranking(*wider)) == class_means(ranking(scores, targets))


def test_without_any_class_to_score_the_means_are_nan() -> None:
    means = class_means(ranking(np.ones((3, 2)), np.zeros((3, 2))))
    assert all(math.isnan(values[0]) for values in means.values())


def test_a_score_that_is_no_number_is_a_word() -> None:
    assert [score_text(value) for value in (0.5, math.inf, -math.inf, math.nan)] == [
        *("0.5000", "infinite", "minus infinite", "undefined")
    ]


def test_d_prime_by_its_definition() -> None:
    """The paper's AudioSet models lie near an AUC of 0.975: d' 2.7718."""
    assert d_prime(np.array([0.5, 0.975, 1.0])) == pytest.approx([0.0, 2.7718, math.inf], abs=5e-5)
    assert d_prime(np.array([0.81])) == pytest.approx(math.sqrt(2) * norm.ppf(0.81))


# -- intervals -----------------------------------------------------------------------------------------------


def interval(
    scores: np.ndarray, targets: np.ndarray, *, draws: int = 200, seed: int = 0
) -> dict[str, tuple[float, float]]:
    return bootstrap(scores, targets, known=None, draws=draws, rng=np.random.default_rng(seed))


def test_the_interval_holds_the_score_and_is_drawn_from_the_generator() -> None:
    scores, targets = scores_and_targets(100)
    found = interval(scores, targets)
    for name, values in class_means(ranking(scores, targets)).items():
        low, high = found[name]
        assert low < values[0] < high
    assert found == interval(scores, targets)
    assert found != interval(scores, targets, seed=1)


def test_four_times_the_clips_halve_the_interval() -> None:
    widths = []
    for clips in (200, 800):
        low, high = interval(*scores_and_targets(clips))["AUC"]
        widths.append(high - low)
    assert widths[1] / widths[0] == pytest.approx(0.5, abs=0.12)


def test_most_intervals_hold_the_mean_score_of_other_sets() -> None:
    """95 % of them, were there no end of clips: here are 5 of 50 a class."""

    def made(seed: int) -> Pair:
        rng = np.random.default_rng(seed)
        targets = rng.permuted(np.tile(np.repeat(column(1, 0), (5, 45), axis=0), 3), axis=0)
        return rng.normal(size=targets.shape) + targets, targets

    truth = np.mean([class_means(ranking(*made(seed)))["mAP"][0] for seed in range(1000, 1050)])
    held = [
        low <= truth <= high for low, high in (interval(*made(seed), draws=64)["mAP"] for seed in range(30))
    ]
    assert 25 <= sum(held) <= 29


def test_a_perfect_score_has_no_spread() -> None:
    targets = np.eye(3, dtype=np.float32).repeat(10, axis=0)
    found = interval(targets, targets)
    assert found["mAP"] == found["AUC"] == (1.0, 1.0)
    assert found["d_prime"] == (math.inf, math.inf)


@pytest.mark.parametrize("draws", [1, CHUNK, CHUNK + 1])
def test_as_many_sets_are_drawn_as_asked_for(draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def counted(*tables: np.ndarray, counts: np.ndarray | None = None, known: None) -> object:
        drawn.append(0 if counts is None else counts.shape[1])
        return ranking(*tables, known=known, counts=counts)

    monkeypatch.setattr("patchout.inference.metrics.ranking", counted)
    interval(*scores_and_targets(), draws=draws)
    assert sum(drawn) == draws


def test_an_interval_of_nothing_is_nan() -> None:
    found = interval(np.ones((3, 2)), np.zeros((3, 2)))
    assert all(math.isnan(end) for ends in found.values() for end in ends)


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


def test_a_plain_ranking_is_that_of_one_draw_of_all_clips() -> None:
    """Sorted scores alone give what the sums over levels of equal score give, known clips or all."""
    scores, targets = scores_and_targets(60, steps=7)
    targets[:, 0], targets[:, 1] = 0, 1  # nothing to find, nothing to tell from
    known = (np.random.default_rng(1).random(scores.shape) < 0.7).astype(np.float32)
    for mask in (None, known):
        plain = ranking(scores, targets, known=mask)
        summed = ranking(scores, targets, known=mask, counts=np.ones((60, 1), np.float32))
        np.testing.assert_allclose(plain.precision, summed.precision, rtol=1e-14)
        np.testing.assert_allclose(plain.auc, summed.auc, rtol=1e-14)

"""The HEAR scores against the outputs of the original kit,
and against numbers that can be checked by hand.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import median_filter

from patchout.hear.scores import EventRow, event_scores, events_from_frames, frames_from_events, scene_scores

GOLDEN = Path(__file__).parent / "golden" / "hear"  # written by hear-eval-kit 2021.1.3 on made-up embeddings
SCENE = ["top1_acc", "mAP", "d_prime", "aucroc"]
F200, F50, F_OFFSET, ER = (
    "event_onset_200ms_fms",
    "event_onset_50ms_fms",
    "event_onset_offset_50ms_20perc_fms",
    "segment_1s_er",
)


def golden(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text())


def events(*rows: tuple[str, float, float]) -> list[EventRow]:
    return [EventRow(label=label, start=start, end=end) for label, start, end in rows]


def score(name: str, target: list[EventRow], found: list[EventRow]) -> float:
    return event_scores({"f": target}, {"f": found}, [name])[name]


# -- the original kit ----------------------------------------------------------------------------------------


def test_scene_scores_are_those_of_the_kit() -> None:
    arrays, expected = np.load(GOLDEN / "toy_ml.npz"), golden("toy_ml.json")["test"]
    ours = scene_scores(arrays["target"], arrays["prediction"], SCENE)
    assert ours == pytest.approx({name: expected[f"test_{name}"] for name in SCENE}, abs=1e-6)


def test_event_scores_are_those_of_the_kit_key_by_key() -> None:
    rows, expected = golden("toy_maestro.events.json"), golden("toy_maestro.json")["test"]
    ours = event_scores(rows["target_events"], rows["predicted_events"], [F50, F_OFFSET])
    assert ours == pytest.approx(
        {key[5:]: value for key, value in expected.items() if "test_event" in key}, abs=1e-6
    )


def test_events_and_frame_targets_are_those_of_the_kit() -> None:
    arrays, rows = np.load(GOLDEN / "toy_maestro.npz"), golden("toy_maestro.events.json")
    for file, expected in rows["predicted_events"].items():
        frames = arrays["filename"] == file
        times = arrays["timestamp"][frames]
        assert events_from_frames(arrays["prediction"][frames], times, ["a", "b", "c"], 150, 50) == expected
        target = frames_from_events(rows["target_events"][file], times, ["a", "b", "c"])
        assert np.array_equal(target, arrays["target"][frames])


# -- clips, by hand ------------------------------------------------------------------------------------------


def test_scene_scores_of_six_clips() -> None:
    rows = [
        [0.7, 0.2, 0.1],
        [0.3, 0.4, 0.3],
        [0.2, 0.2, 0.6],
        [0.5, 0.4, 0.1],
        [0.3, 0.3, 0.4],
        [0.1, 0.8, 0.1],
    ]
    ours = scene_scores(np.eye(3)[[0, 1, 2, 1, 0, 2]], np.array(rows), SCENE)
    expected = {"top1_acc": 0.5, "mAP": 0.6944444444, "d_prime": 0.8863704527, "aucroc": 0.7291666667}
    assert ours == pytest.approx(expected, abs=1e-9)


def test_scene_scores_of_chance() -> None:
    rng = np.random.RandomState(0)  # the stored numbers were made with it
    prediction = rng.rand(20, 5)
    ours = scene_scores(rng.rand(20, 5) > 0.6, prediction, SCENE)
    expected = {"top1_acc": 0.15, "mAP": 0.45895498046, "d_prime": -0.14004513737, "aucroc": 0.46184615385}
    assert ours == pytest.approx(expected, abs=1e-9)


def test_chroma_forgives_octaves() -> None:
    target, prediction = np.eye(24)[[12, 5, 6, 11]], np.eye(24)[[0, 5, 7, 23]]
    assert scene_scores(target, prediction, ["pitch_acc", "chroma_acc"]) == {
        "pitch_acc": 0.25,
        "chroma_acc": 0.75,
    }


def test_a_perfect_class_has_an_infinite_d_prime() -> None:
    assert scene_scores(np.eye(2), np.eye(2), ["d_prime"]) == {"d_prime": math.inf}
    half_wrong = scene_scores(
        np.eye(2), np.array([[1, 1], [0, 0]]), ["d_prime"]
    )  # infinite in both directions
    assert math.isnan(half_wrong["d_prime"])


def test_a_class_without_a_positive_clip_counts_as_in_the_kit() -> None:
    target, prediction = np.array([[1, 0], [0, 0]]), np.array([[0.9, 0.1], [0.2, 0.3]])
    ours = scene_scores(target, prediction, ["mAP", "aucroc", "d_prime"])
    assert ours["mAP"] == 0.5
    assert math.isnan(ours["aucroc"])
    assert math.isnan(ours["d_prime"])


@pytest.mark.parametrize(
    ("prediction", "names", "reason"),
    [
        (np.eye(3), ["top1_acc"], "must both be"),
        (np.full((2, 2), np.nan), ["mAP"], "NaN"),
        (np.eye(2), ["f1"], "unknown score 'f1'"),
    ],
)
def test_what_cannot_be_scored_is_refused(prediction: np.ndarray, names: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        scene_scores(np.eye(2), prediction, names)


# -- events, by hand -----------------------------------------------------------------------------------------

TARGET = {"f1": events(("a", 0, 1000), ("b", 1500, 2500), ("a", 3000, 3500)), "f2": events(("c", 500, 900))}


def test_event_scores_of_two_files() -> None:
    found = {
        "f1": events(("a", 150, 1150), ("b", 1540, 2900), ("c", 3000, 3500)),
        "f2": events(("c", 710, 900)),
    }
    ours = event_scores(TARGET, found, [F200, F50, F_OFFSET, ER])
    assert [ours[name] for name in (F200, F50, F_OFFSET, ER)] == pytest.approx([0.5, 0.25, 0.0, 0.4])


def test_inventions_cost_precision_and_insertions() -> None:
    found = {**TARGET, "f1": TARGET["f1"] + events(("b", 5000, 5600), ("b", 5000, 5600))}
    ours = event_scores(TARGET, found, [F50, ER])
    assert ours[F50] == pytest.approx(0.8)
    assert ours[f"{F50}_precision"] == pytest.approx(2 / 3)
    assert ours[f"{ER}_error_rate"] == pytest.approx(0.2)


def test_nothing_found_has_no_precision() -> None:
    ours = event_scores(TARGET, {"f1": [], "f2": []}, [F50, ER])
    assert math.isnan(ours[F50])
    assert math.isnan(ours[f"{F50}_precision"])
    assert (ours[f"{F50}_recall"], ours[ER]) == (0, 1)


@pytest.mark.parametrize(
    ("name", "start", "guess", "hit"),
    [(F200, 200, 400, 1), (F50, 1000, 1050, 0), (F50, 250, 300, 1), (F200, 1000, 1200, 1), (F200, 0, 201, 0)],
)
def test_the_collar_ends_where_floats_put_it(name: str, start: float, guess: float, hit: float) -> None:
    assert score(name, events(("a", start, 5000)), events(("a", guess, 5000))) == hit


def test_matching_is_the_largest_one() -> None:
    target, found = events(("a", 100, 400), ("a", 300, 600)), events(("a", 150, 450), ("a", 0, 300))
    assert (score(F200, target, found), score(F50, target, found)) == (1.0, 0.5)


def test_an_offset_may_be_off_by_a_fifth_of_the_event() -> None:
    target, found = events(("a", 1000, 2000), ("b", 1000, 2000)), events(("a", 1000, 2190), ("b", 1000, 2210))
    assert (score(F_OFFSET, target, found), score(ER, target, found)) == (0.5, 1.0)


def test_matching_agrees_with_every_assignment_tried() -> None:
    """Against the assignment problem over all pairs, on crowded random events."""
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(0)
    for _ in range(20):
        target, found = (
            events(*(("a", t, t + 300) for t in rng.integers(0, 1500, 15).tolist())) for _ in range(2)
        )
        near = np.array([[abs(a["start"] / 1e3 - b["start"] / 1e3) <= 0.05 for b in found] for a in target])
        hits = near[linear_sum_assignment(near, maximize=True)].sum()
        assert score(F50, target, found) == pytest.approx(hits / 15)


def test_only_the_files_of_the_predictions_are_scored() -> None:
    assert event_scores(TARGET, {"f2": TARGET["f2"]}, [F50])[F50] == 1
    with pytest.raises(ValueError, match=r"f3, which has no target"):
        event_scores(TARGET, {"f3": []}, [F50])


# -- frames, by hand -----------------------------------------------------------------------------------------

PROBABILITIES = np.array(
    [[p] for p in (0.1, 0.9, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.1)]
)


@pytest.mark.parametrize(
    ("filter_ms", "min_ms", "spans"),
    [
        (0, 0, [(50, 150), (250, 450), (600, 600)]),
        (150, 50, [(50, 450)]),
        (250, 125, [(0, 500)]),
        (250, 250, [(0, 500)]),
    ],
)
def test_frames_become_events(filter_ms: int, min_ms: int, spans: list[tuple[int, int]]) -> None:
    rows = events_from_frames(PROBABILITIES, 50.0 * np.arange(15), ["a"], filter_ms, min_ms)
    assert [(row["start"], row["end"]) for row in rows] == spans


def test_the_threshold_is_strict_and_frames_are_sorted() -> None:
    track = np.array([[0.50001], [0.5], [0.5], [0.50001], [0.5]])
    rows = events_from_frames(track, np.array([150.0, 0.0, 50.0, 100.0, 200.0]), ["a"], 0, 0)
    assert rows == events(("a", 100.0, 150.0))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 12, 31])
def test_the_filter_is_a_median(size: int) -> None:
    track = np.random.default_rng(size).random((20, 3)).astype(np.float32)
    times = 10.0 * np.arange(20)
    smooth = median_filter(track, size=(size, 1), mode="reflect")
    assert events_from_frames(track, times, ["a", "b", "c"], 10 * size, 0) == events_from_frames(
        smooth, times, ["a", "b", "c"], 0, 0
    )


def test_a_frame_belongs_to_events_that_began_and_have_not_ended() -> None:
    rows = events(("a", 100, 200), ("b", 150, 150), ("a", 180, 260))
    times = np.array([0, 50, 100, 150, 200, 250, 260.00005, 260.0002])
    assert frames_from_events(rows, times, ["a", "b"]).tolist() == [
        *([0, 0], [0, 0], [1, 0], [1, 1], [1, 0], [1, 0]),
        *([1, 0], [0, 0]),
    ]


def test_frames_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="ask for"):
        events_from_frames(PROBABILITIES, 50.0 * np.arange(14), ["a"], 0, 0)

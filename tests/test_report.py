"""The report of a run: what it says, what it draws, and that it agrees with the scores."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from patchout.data.sets import ClipSet, DataError
from patchout.inference.evaluate import Predictions, judge
from patchout.inference.metrics import accuracy
from patchout.models.cnn import CnnConfig
from patchout.models.decision import Task
from patchout.training.supervised import figures as report_figures
from patchout.training.supervised.report import mistakes, write_report

NAMES = ("cat", "dog", "owl")
SCORES = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.1, 0.7, 0.2]])  # cat, dog, dog, owl
HAS = np.eye(3, dtype=bool)[[0, 1, 1, 2]]


def clip_set(has: np.ndarray, names: tuple[str, ...] = NAMES, task: Task = "multi_class") -> ClipSet:
    table = pa.table(
        {
            "id": [f"{clip}.wav" for clip in range(len(has))],
            "labels": [np.flatnonzero(row).tolist() for row in has],
        }
    )
    return ClipSet(Path("sounds"), names, task, table, Path("sounds"))


def written(
    run: Path,
    has: np.ndarray = HAS,
    scores: np.ndarray = SCORES,
    task: Task = "multi_class",
    names: tuple[str, ...] = NAMES,
) -> str:
    """The text of a report on these scores."""
    logits = np.log(scores) if task == "multi_class" else np.log(scores / (1 - scores))
    predictions = Predictions(logits.astype(np.float32), np.arange(len(scores)), ("lost.wav: broken",))
    clips = clip_set(np.concatenate([has, has[:1]]), names, task)
    config = CnnConfig(labels=names, task=task)
    write_report(run, predictions, clips, config=config, weights="the average")
    return (run / "report" / "report.md").read_text(encoding="utf-8")


def log(run: Path, *lines: dict[str, object]) -> None:
    run.mkdir(exist_ok=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


# -- mistakes ------------------------------------------------------------------------------------------------


def test_what_is_taken_for_what_by_hand() -> None:
    """The second clip, a dog, leads as cat by 0.3; the last, an owl, as dog by 0.5."""
    found = mistakes(SCORES, HAS, ~HAS)
    assert found.counts.tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert found.rival.tolist() == [1, 0, 0, 1]
    assert found.lead == pytest.approx([-0.5, 0.3, -0.7, 0.5])


@pytest.mark.parametrize("steps", [3, 1000])
def test_the_diagonal_is_the_accuracy_also_where_scores_are_equal(steps: int) -> None:
    rng = np.random.default_rng(0)
    has = np.eye(4, dtype=bool)[rng.integers(0, 4, 200)]
    scores = rng.integers(0, steps, (200, 4)) / steps
    right = np.trace(mistakes(scores, has, ~has).counts) / 200
    assert right == pytest.approx(accuracy(scores, has.astype(np.float32)))


def test_each_class_of_a_clip_is_beaten_by_itself() -> None:
    """cat and owl are there: dog beats the owl alone."""
    found = mistakes(
        np.array([[0.9, 0.5, 0.2]]), np.array([[True, False, True]]), np.array([[False, True, False]])
    )
    assert found.counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert found.lead == pytest.approx([0.3])


def test_labels_nobody_gave_are_no_mistakes() -> None:
    found = mistakes(
        np.array([[0.2, 0.9, 0.1]]), np.array([[True, False, False]]), np.array([[False, False, True]])
    )
    assert found.counts.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert found.lead == pytest.approx([-0.1])


def test_a_clip_without_labels_is_as_wrong_as_its_highest_score() -> None:
    found = mistakes(np.array([[0.2, 0.9]]), np.zeros((1, 2), bool), np.ones((1, 2), bool))
    assert found.counts.sum() == 0
    assert found.lead == pytest.approx([0.9])


def test_pairs_come_by_their_number() -> None:
    assert report_figures.pairs(np.array([[9, 1, 0], [3, 9, 0], [0, 2, 9]])) == [(1, 0), (2, 1), (0, 1)]


# -- the text ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_report_says_what_was_scored(tmp_path: Path) -> None:
    text = written(tmp_path / "mine")
    found = judge(
        Predictions(np.log(SCORES).astype(np.float32), np.arange(4), ()),
        clip_set(HAS),
        labels=NAMES,
        task="multi_class",
    )
    assert text.startswith("# Report of mine\n")
    assert "| accuracy | 0.5000 | 0.150 and 0.850 |" in text
    assert f"| mAP | {found.scores['mAP']:.4f} |" in text
    assert f"- 4 clips of `sounds` (SHA-256 of their ids: {found.ids_sha256}), 3 classes" in text
    assert "- weights: the average" in text
    assert "bootstrap of 1000 draws" in text
    assert "- lost.wav: broken" in text


def test_classes_confusions_and_worst_clips_are_listed(tmp_path: Path) -> None:
    lines = written(tmp_path).splitlines()
    classes = lines.index("| class | clips | share of clips found | average precision | AUC |")
    assert [line.split(" | ")[:3] for line in lines[classes + 2 : classes + 5]] == [
        ["| cat", "1", "1.000"],
        ["| dog", "2", "0.500"],
        ["| owl", "1", "0.000"],
    ]
    assert lines.index("| dog | cat | 1 |") < lines.index("| owl | dog | 1 |")
    worst = lines.index("| sounds/3.wav | owl (0.20) | dog (0.70) |")
    assert lines[worst + 1] == "| sounds/1.wav | dog (0.30) | cat (0.60) |"
    assert lines[worst + 2] == ""


def test_what_is_infinite_is_told_as_such(tmp_path: Path) -> None:
    assert "| d_prime | infinite | infinite and infinite |" in written(
        tmp_path, scores=np.where(HAS, 0.8, 0.1)
    )


def test_several_labels_a_clip_are_ranked(tmp_path: Path) -> None:
    has = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0]], bool)
    scores = np.array([[0.9, 0.2, 0.4], [0.1, 0.8, 0.1], [0.7, 0.3, 0.2]])
    text = written(tmp_path, has, scores, "multi_label")
    assert "accuracy |" not in text
    assert "| class | clips | average precision | AUC |" in text
    assert "| owl | 0 | undefined | undefined |" in text
    assert "| dog | owl | 1 |" in text
    assert "| sounds/0.wav | cat (0.90), dog (0.20) | owl (0.40) |" in text


def test_where_nothing_is_wrong_it_says_so(tmp_path: Path) -> None:
    text = written(tmp_path, HAS, np.where(HAS, 0.8, 0.1))
    assert "None: no wrong class leads." in text


def test_a_bar_in_a_name_does_not_break_the_table(tmp_path: Path) -> None:
    assert "| cat\\|mew | 1 |" in written(tmp_path, names=("cat|mew", "dog", "owl"))


def test_nothing_to_score_is_refused(tmp_path: Path) -> None:
    nothing = Predictions(np.zeros((0, 3), np.float32), np.zeros(0, np.int64), ("0.wav: broken",))
    config = CnnConfig(labels=NAMES, task="multi_class")
    with pytest.raises(DataError, match="none of 1 clips could be read"):
        write_report(tmp_path, nothing, clip_set(HAS[:1]), config=config, weights="last")
    assert list(tmp_path.iterdir()) == []


# -- pictures ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_picture_of_the_text_is_there(tmp_path: Path) -> None:
    log(tmp_path / "run", {"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "accuracy": 0.5})
    text = written(tmp_path / "run")
    pictures = {path.name for path in (tmp_path / "run" / "report").glob("*.png")}
    assert pictures == {"classes.png", "confusions.png", "training.png"}
    assert all(f"({name})" in text for name in pictures)
    assert all(imread(tmp_path / "run" / "report" / name).std() > 0.05 for name in pictures)


def test_without_a_log_there_are_no_curves(tmp_path: Path) -> None:
    assert "training.png" not in written(tmp_path)
    assert not (tmp_path / "report" / "training.png").exists()


@pytest.mark.parametrize("count", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_any_number_of_classes_is_drawn(count: int, tmp_path: Path) -> None:
    """Pictures grow with the classes and stay below 20 inches at 150 dots."""
    names = [f"$class_{number} 鳥" for number in range(count)]
    counts = np.eye(count, dtype=np.int64) + np.eye(count, k=1, dtype=np.int64)
    report_figures.confusion_matrix(tmp_path / "matrix.png", names, counts)
    report_figures.confused_pairs(tmp_path / "pairs.png", names, counts)
    report_figures.class_scores(
        tmp_path / "bars.png", names, np.linspace(0, 1, count), counts.sum(axis=1), score_name="recall"
    )
    heights = [imread(path).shape[0] for path in tmp_path.glob("*.png")]
    assert len(heights) == 3
    assert min(heights) > 150
    assert max(heights) < 3000


@pytest.mark.parametrize(("limit", "method"), [(3, "confusion_matrix"), (2, "confused_pairs")])
def test_too_many_classes_for_a_matrix_are_drawn_as_pairs(
    limit: int, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr(report_figures, "MAX_MATRIX", limit)
    monkeypatch.setattr(report_figures, method, lambda path, names, counts: called.append(path.name))
    written(tmp_path)
    assert called == ["confusions.png"]


def drawn(monkeypatch: pytest.MonkeyPatch, method: str) -> list[tuple[object, ...]]:
    """The arguments of every call of a method of matplotlib's axes."""
    calls: list[tuple[object, ...]] = []
    original = getattr(Axes, method)

    def recorded(self: Axes, *args: object, **options: object) -> object:
        calls.append((*args, options.get("label")))
        return original(self, *args, **options)

    monkeypatch.setattr(Axes, method, recorded)
    return calls


def test_a_matrix_shows_the_number_of_clips_of_every_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = drawn(monkeypatch, "text")
    report_figures.confusion_matrix(tmp_path / "x.png", NAMES, np.array([[5, 0, 2], [0, 7, 0], [1, 0, 0]]))
    assert [call[:3] for call in calls] == [(0, 0, "5"), (2, 0, "2"), (1, 1, "7"), (0, 2, "1")]


def test_bars_are_sorted_and_name_their_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = drawn(monkeypatch, "text")
    scores, counts = np.array([0.25, np.nan, 0.75]), np.array([4, 0, 1])
    report_figures.class_scores(tmp_path / "x.png", NAMES, scores, counts, score_name="average precision")
    assert [call[1:3] for call in calls] == [(0, "0.75   1 clip"), (1, "0.25   4 clips")]


def test_of_many_classes_the_lowest_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_figures, "MAX_BARS", 2)
    calls = drawn(monkeypatch, "text")
    report_figures.class_scores(
        tmp_path / "x.png", NAMES, np.array([0.5, 0.9, 0.1]), np.array([1, 1, 1]), score_name="recall"
    )
    assert [call[2] for call in calls] == ["0.50   1 clip", "0.10   1 clip"]


@pytest.mark.slow
def test_curves_are_those_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = drawn(monkeypatch, "plot")
    lines: list[dict[str, object]] = [
        {"step": 5, "epoch": 1, "seconds": 2.0, "loss": 3.0, "clips_per_s": 9.0, "lr": 1e-4},
        {
            "step": 10,
            "epoch": 2,
            "loss": 2.0,
            "accuracy": 0.5,
            "d_prime": 1.5,
            "accuracy/device=a": 0.4,
            "kept": "last",
        },
    ]
    report_figures.training(tmp_path / "x.png", lines)
    assert calls == [
        ((1, 2), (3.0, 2.0), "loss"),
        ((1,), (1e-4,), "lr"),
        ((1,), (9.0,), "clips_per_s"),
        ((2,), (0.5,), "accuracy"),
    ]

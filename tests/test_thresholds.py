"""Calibration and thresholds: how they are fitted, kept in the checkpoint, reported, and used."""

import csv
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import noise, tiny_config, tone, undrawn_report, write_wav
from scipy import special

import patchout
from patchout.checkpoint import own as checkpoint
from patchout.cli.main import run_command
from patchout.cli.output import audacity_text, table_text
from patchout.data.clips import ClipSet
from patchout.errors import CheckpointError
from patchout.export.graph import WaveformScores
from patchout.inference import thresholds
from patchout.inference.evaluate import Predictions
from patchout.inference.events import EventRule, find_events
from patchout.inference.tagging import to_tags
from patchout.inference.thresholds import (
    choose,
    decide,
    fit_calibration,
    reliability,
    silenced,
    silent_thresholds,
)
from patchout.inference.window_scores import Scored
from patchout.models.cnn import CnnConfig
from patchout.models.decision import Decision, OperatingPoint, Task, probabilities
from patchout.models.passt import Passt
from patchout.training.supervised import figures
from patchout.training.supervised import run as train_run
from patchout.training.supervised.decision_report import decision_report
from patchout.training.supervised.run import Listener, TrainConfig, run

SCORES = np.array([0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
HITS = np.array([1, 1, 1, 1, 0, 1, 0, 0, 0, 0], bool)  # five of ten, one clip in the way


def chosen(scores: np.ndarray, has: np.ndarray, precision_at: float = 0.0) -> thresholds.Chosen:
    known = np.ones((len(has), 1), bool)
    return choose(scores[:, None], has[:, None], known, precision_at=precision_at)[0]


def point_at(threshold: float) -> OperatingPoint:
    ends = (0.5, 1.0)
    return OperatingPoint(
        threshold=threshold, precision=1.0, precision_interval=ends, recall=1.0, recall_interval=ends
    )


DECISION = Decision(points=(point_at(0.9), None, point_at(0.2)))


# -- the choice ----------------------------------------------------------------------------------------------


def test_the_best_f1_by_hand() -> None:
    """Above .45: five hits of six, all found, F1 10/11; above .65: all right, four of five found, F1 8/9."""
    point = chosen(SCORES, HITS).point
    assert point
    assert point.threshold == pytest.approx(0.45)
    assert (point.precision, point.recall) == pytest.approx((5 / 6, 1.0))
    assert point.precision_interval == pytest.approx((0.4365, 0.9699), abs=1e-4)  # Wilson's, of five in six
    assert point.recall_interval == pytest.approx((0.5655, 1.0), abs=1e-4)


def test_a_wanted_precision_takes_the_highest_recall_that_has_it() -> None:
    point = chosen(SCORES, HITS, precision_at=0.9).point
    assert point
    assert (point.threshold, point.precision, point.recall) == pytest.approx((0.65, 1.0, 0.8))
    lower = chosen(SCORES, HITS, precision_at=0.8).point
    assert lower
    assert lower.recall == 1.0


def test_a_class_that_does_not_reach_the_precision_is_silent_and_the_best_is_said() -> None:
    has = np.roll(HITS, 1)  # the highest score is wrong
    point, remark = chosen(SCORES, has, precision_at=0.95)
    assert point
    assert (point.threshold, point.recall) == pytest.approx((0.975, 0.0))
    assert math.isnan(point.precision)
    assert remark == "0.95 is not reached, at best 0.80: silent on these clips"


@pytest.mark.parametrize(
    ("has", "remark"),
    [
        (np.arange(10) < 4, "none: 4 validation clips with the class, 5 are needed"),
        (np.arange(10) < 0, "none: 0 validation clips with the class"),
        (np.arange(10) < 6, "none: 4 validation clips without the class"),
    ],
)
def test_few_clips_choose_no_threshold(has: np.ndarray, remark: str) -> None:
    point, reason = chosen(SCORES, has)
    assert point is None
    assert reason.startswith(remark)


def test_labels_that_nobody_knows_choose_nothing() -> None:
    known = np.arange(10)[:, None] < 9
    assert choose(SCORES[:, None], HITS[:, None], known, precision_at=0.0)[0].point is None


def test_equal_scores_are_one_threshold() -> None:
    point = chosen(np.repeat([0.8, 0.2], 5), np.repeat([True, False], 5)).point
    assert point
    assert (point.threshold, point.precision, point.recall) == (0.5, 1.0, 1.0)


# -- calibration ---------------------------------------------------------------------------------------------


def logits_and_targets(task: Task, *, slope: float, bias: float) -> tuple[np.ndarray, np.ndarray]:
    """4000 clips of three classes whose true logits are slope * logits + bias."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (4000, 3))
    if task == "multi_label":
        return logits, rng.random(logits.shape) < special.expit(slope * logits + bias)
    chances = special.softmax(slope * logits, axis=1).cumsum(axis=1)
    return logits, np.eye(3, dtype=bool)[(rng.random((4000, 1)) > chances).sum(axis=1).clip(0, 2)]


@pytest.mark.parametrize(("task", "slope", "bias"), [("multi_label", 0.5, -1.0), ("multi_class", 0.5, 0.0)])
def test_calibration_finds_the_slope_and_bias_of_the_data(task: Task, slope: float, bias: float) -> None:
    logits, has = logits_and_targets(task, slope=slope, bias=bias)
    fitted = fit_calibration(logits, has, np.ones_like(has), task=task)
    assert fitted == pytest.approx((slope, bias), abs=0.05)
    before, after = (
        reliability(probabilities(values, task), has, np.ones_like(has)).error
        for values in (logits, fitted[0] * logits + fitted[1])
    )
    assert after < 0.02 < before


def test_scores_that_are_all_right_stay_finite() -> None:
    """Without Platt's targets the slope would grow without end."""
    has = np.eye(3, dtype=bool)[np.arange(30) % 3]
    for task in ("multi_label", "multi_class"):
        slope, bias = fit_calibration(np.where(has, 3.0, -3.0), has, np.ones_like(has), task=task)
        assert 0.1 < slope < 5
        assert abs(bias) < 3


def test_too_few_hits_calibrate_nothing() -> None:
    has = np.zeros((50, 2), bool)
    has[:4, 0] = True
    assert fit_calibration(np.ones((50, 2)), has, np.ones_like(has), task="multi_label") == (1.0, 0.0)


def test_without_calibration_the_scores_are_the_same_array() -> None:
    scores = np.array([0.1, 0.9], np.float32)
    assert Decision().calibrated(scores, "multi_label") is scores


@pytest.mark.parametrize("task", ["multi_label", "multi_class"])
def test_tagging_and_evaluation_use_the_calibrated_scores(task: Task) -> None:
    model = Passt(tiny_config(task=task), rng=torch.Generator().manual_seed(0)).eval()
    plain = patchout.tag(model, (noise(1.0), 32_000), top=3)
    model.config = replace(model.config, decision=Decision(slope=0.5, bias=-1.0))
    tags = patchout.tag(model, (noise(1.0), 32_000), top=3)
    logits = np.array([np.log(plain.scores), special.logit(plain.scores)][task == "multi_label"])
    expected = probabilities(0.5 * logits - 1.0, task)
    assert tags.scores == pytest.approx(expected, abs=1e-5)
    assert tags.labels == plain.labels


@pytest.mark.parametrize("task", ["multi_label", "multi_class"])
def test_exported_scores_are_calibrated(task: Task) -> None:
    model = Passt(tiny_config(task=task, decision=Decision(slope=0.5, bias=-1.0))).eval()
    tags = patchout.tag(model, (noise(1.0), 32_000), top=3)
    scores, _ = WaveformScores(model)(torch.from_numpy(noise(1.0)[None]))
    assert sorted(scores[0].tolist(), reverse=True) == pytest.approx(tags.scores, abs=1e-4)


@pytest.mark.parametrize("wrong", [{"slope": 0.0}, {"slope": float("nan")}, {"bias": float("inf")}])
def test_a_calibration_that_says_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a slope above 0 and a finite bias"):
        Decision(**wrong)  # type: ignore[arg-type]


# -- the checkpoint ------------------------------------------------------------------------------------------


def test_a_checkpoint_keeps_the_decision(tmp_path: Path) -> None:
    decision = replace(DECISION, slope=2.0, bias=0.5, background=("noise",))
    checkpoint.save(Passt(tiny_config(decision=decision)), tmp_path / "model.safetensors")
    assert patchout.load(tmp_path / "model.safetensors", "cpu").config.decision == decision


def test_a_checkpoint_of_a_later_version_is_refused() -> None:
    text = json.dumps({"labels": ["a"], "mel": {}, "decision": {"hysteresis": 0.5}})
    with pytest.raises(CheckpointError, match=r"hysteresis.*needs a newer patchout"):
        checkpoint.config_from_json(text)


def test_thresholds_of_other_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="3 thresholds for 2 labels"):
        tiny_config(labels=("a", "b"), decision=DECISION)


# -- tags and events -----------------------------------------------------------------------------------------


def tags_of(
    scores: list[float], decision: Decision, rule: EventRule | None = None, top: int = 3
) -> patchout.Tags:
    config = CnnConfig(labels=("bell", "dog", "rain"), decision=decision)
    scored = Scored("a.wav", 1.0, np.array(scores))
    return to_tags(scored, config, top=top, rule=rule or EventRule(), events=False)


def test_labels_that_pass_come_first() -> None:
    """0.5 stands in where no threshold was chosen."""
    tags = tags_of([0.8, 0.5, 0.3], DECISION)
    assert tags.labels == ("dog", "rain", "bell")
    assert tags.passed == (True, True, False)
    assert tags_of([0.8, 0.5, 0.3], DECISION, top=1).labels == ("dog",)


def test_a_threshold_of_the_user_overrides_those_of_the_model() -> None:
    tags = tags_of([0.8, 0.5, 0.3], DECISION, EventRule(on=0.6))
    assert (tags.labels, tags.passed) == (("bell", "dog", "rain"), (True, False, False))


def test_without_thresholds_nothing_is_decided() -> None:
    tags = tags_of([0.8, 0.5, 0.3], Decision())
    assert (tags.labels, tags.passed, tags.thresholds) == (("bell", "dog", "rain"), (), ())
    assert tags.to_dict()["tags"][0] == {"label": "bell", "score": 0.8, "threshold": None, "passed": None}


def test_the_table_says_that_nothing_is_known() -> None:
    unknown, known = tags_of([0.8, 0.4, 0.1], DECISION), tags_of([0.95, 0.4, 0.1], DECISION)
    assert "  nothing it knows: no score reaches its threshold\n" in table_text(unknown)
    assert "below 0.900" in table_text(unknown)
    assert "nothing it knows" not in table_text(known)
    assert "nothing it knows" not in table_text(tags_of([0.8, 0.4, 0.1], Decision()))


def test_a_label_track_has_what_passes() -> None:
    assert audacity_text(tags_of([0.95, 0.4, 0.1], DECISION), events=False) == "0.000\t1.000\tbell"
    assert audacity_text(tags_of([0.95, 0.4, 0.1], Decision()), events=False).count("\n") == 2
    assert audacity_text(tags_of([0.95, 0.4, 0.1], DECISION), events=True) == ""


def test_events_begin_at_the_threshold_of_their_class() -> None:
    track = np.array([[0.8, 0.8, 0.3], [0.8, 0.8, 0.1]], np.float32)
    sound = (track, np.array([0.5, 1.5], np.float32), ("bell", "dog", "rain"))
    rule = EventRule(median=1)
    events = find_events(*sound, rule=rule, duration_s=2.0, decision=DECISION)
    assert [(event.label, event.end_s) for event in events] == [("dog", 2.0), ("rain", 1.0)]  # off at 0.12
    given = find_events(*sound, rule=replace(rule, on=0.5), duration_s=2.0, decision=DECISION)
    assert [event.label for event in given] == ["bell", "dog"]


def test_the_command_tells_what_passed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = Passt(tiny_config(decision=DECISION), rng=torch.Generator().manual_seed(0))
    checkpoint.save(model, tmp_path / "model.safetensors")
    sound = write_wav(tmp_path / "sound.wav", noise(1.0))
    words = ["tag", str(sound), "--model", str(tmp_path / "model.safetensors"), "--device", "cpu", "--format"]
    assert run_command([*words, "json"]) == 0
    tags = {tag["label"]: tag for tag in json.loads(capfd.readouterr().out)[0]["tags"]}
    assert {label: tag["threshold"] for label, tag in tags.items()} == {"bell": 0.9, "dog": 0.5, "rain": 0.2}
    assert all(tag["passed"] == (tag["score"] >= tag["threshold"]) for tag in tags.values())
    assert run_command([*words, "csv", "--threshold", "0.999"]) == 0
    rows = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert [row["passed"] for row in rows] == ["False"] * 3
    assert run_command([*words, "csv", "--threshold", "2"]) == 2


# -- the report ----------------------------------------------------------------------------------------------


def clip_set(has: np.ndarray) -> ClipSet:
    labels = pa.array([np.flatnonzero(row).tolist() for row in has], pa.list_(pa.int32()))
    table = pa.table({"id": [f"{clip}.wav" for clip in range(len(has))], "labels": labels})
    return ClipSet(Path("sounds"), ("cat", "dog"), "multi_label", table, Path("sounds"))


Reported = Callable[..., tuple[str, str, dict[str, float]]]


@pytest.fixture
def reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reported:
    """Write a report on these clips, by default the validation clips, without its picture."""
    monkeypatch.setattr(figures, "reliability_diagram", lambda *bins: None)

    def report(
        logits: np.ndarray, has: np.ndarray, silent_at: float = 0.0, **changes: Any
    ) -> tuple[str, str, dict[str, float]]:
        clips, config = clip_set(has), CnnConfig(labels=("cat", "dog"))
        predictions = Predictions(logits.astype(np.float32), np.arange(len(has)), ())
        fitted = decide(predictions, clips, config, precision_at=0.0, silent_at=silent_at)
        options: dict[str, Any] = {"config": config, "fitted": fitted, "is_validation": True} | changes
        return decision_report(tmp_path / "report", predictions, clips, **options)

    return report


def clips_of(cats: int, dogs: int, others: int) -> np.ndarray:
    return np.repeat(np.array([[True, False], [False, True], [False, False]]), [cats, dogs, others], axis=0)


def test_a_model_that_names_background_is_not_called_good(reported: Reported) -> None:
    has = clips_of(8, 8, 4)
    logits = np.where(has, 2.0, -2.0)
    logits[-1, 0] = 3.0
    verdict, text, scores = reported(logits, has)
    assert verdict.startswith(
        "**This model is not good yet: 1 of 4 background clips are given a class (cat 1; 95 %:"
    )
    assert "3 of 4 background clips are silent at these thresholds" in text
    assert scores == {"background_silent": 0.75}


def test_thresholds_rise_until_so_many_background_clips_are_silent(reported: Reported) -> None:
    """The cat that one of four is given has 3.0, more than all true ones: no cat is then found."""
    has = clips_of(8, 8, 4)
    logits = np.where(has, 2.0, -2.0)
    logits[-1, 0] = 3.0
    for silent_at, silent in ((0.75, 0.75), (0.9, 1.0)):
        _, text, scores = reported(logits, has, silent_at=silent_at)
        assert scores == {"background_silent": silent}
        assert f"then raised until {silent_at:.0%} of the background clips are silent, on 20" in text
        recalls = re.findall(r"\| (?:cat|dog) \| [\d.]+ \| \S+ \| [^|]+ \| ([\d.]+) ", text)
        assert recalls == (["1.00", "1.00"] if silent_at == 0.75 else ["0.00", "1.00"])


def test_the_class_is_raised_that_loses_the_fewest_labels_for_a_silent_clip() -> None:
    """A dog, without a threshold of its own, loses none at .65; a cat stays until all must be silent."""
    scores = np.array([[0.9, 0.1]] * 6 + [[0.2, 0.95], [0.1, 0.7]] + [[0.1, 0.6]] * 3 + [[0.92, 0.0]])
    has = np.array([[True, False]] * 6 + [[False, True]] * 2 + [[False, False]] * 4)
    decision, known = Decision(points=(point_at(0.5), None)), np.ones_like(has)
    cat, dog = silenced(decision, scores, has, known, silent_at=0.7)
    assert cat == decision.points[0]
    assert dog
    assert (dog.threshold, dog.precision, dog.recall) == pytest.approx((0.65, 1.0, 1.0))
    cat, again = silenced(decision, scores, has, known, silent_at=1.0)
    assert cat
    assert (cat.threshold, cat.recall) == pytest.approx((0.96, 0.0))
    assert again == dog


def test_no_more_is_raised_than_the_share_asks_for() -> None:
    """One of ten background clips is named: nine tenths are silent, though 1 - 0.9 is below 0.1."""
    scores = np.array([[0.9]] * 5 + [[0.1]] * 9 + [[0.8]])
    has = np.arange(15)[:, None] < 5
    decision, known = Decision(points=(point_at(0.5),)), np.ones_like(has)
    assert silenced(decision, scores, has, known, silent_at=0.9) == decision.points


def test_scores_of_one_are_silenced_too() -> None:
    scores, has = np.ones((10, 1)), np.arange(10)[:, None] < 5
    decision, known = Decision(points=(point_at(0.5),)), np.ones_like(has)
    (point,) = silenced(decision, scores, has, known, silent_at=1.0)
    assert point
    assert point.recall == 0.0
    never = chosen(scores[:, 0], has[:, 0], precision_at=0.9).point
    assert never
    assert never.recall == 0.0


def test_without_background_clips_no_threshold_is_raised() -> None:
    decision, scores = Decision(points=(point_at(0.5),)), np.array([[0.9], [0.8]])
    known = np.ones((2, 1), bool)
    assert silenced(decision, scores, known, known, silent_at=1.0) == decision.points


def test_a_model_that_is_silent_on_background_is_told_so(reported: Reported) -> None:
    has = clips_of(8, 8, 4)
    verdict, text, scores = reported(np.where(has, 2.0, -2.0), has)
    assert verdict == "All 4 background clips stay silent (95 %: at most 49 % are named)."
    shares = r"1\.00 \| 0\.68 and 1\.00"
    assert re.search(rf"\| cat \| 0\.\d+ \| {shares} \| {shares} \|\n", text)
    assert "a little too good" in text
    assert scores == {"background_silent": 1.0}


def test_without_background_nothing_is_known_of_it(reported: Reported) -> None:
    has = clips_of(8, 8, 0)
    verdict, _, scores = reported(np.where(has, 2.0, -2.0), has)
    assert "nothing says what the model names on background: add a class `background`" in verdict
    assert scores == {}


def test_classes_without_a_threshold_say_why(reported: Reported) -> None:
    has = clips_of(8, 2, 4)
    _, text, _ = reported(np.where(has, 2.0, -2.0), has)
    assert "| dog | (0.5) |  |  |  |  | none: 2 validation clips with the class, 5 are needed |" in text


def test_test_clips_have_columns_of_their_own(reported: Reported) -> None:
    has = clips_of(8, 8, 0)
    _, text, _ = reported(np.where(has, 2.0, -2.0), has, is_validation=False)
    assert "| precision on test clips |" in text
    assert "a little too good" not in text


def test_the_threshold_that_keeps_background_silent_by_hand() -> None:
    scores = np.array([[0.1, 0.2], [0.3, 0.1], [0.1, 0.4], [0.6, 0.5]])
    limits = silent_thresholds(scores, (0.5, 0.75, 1.0))
    assert limits == pytest.approx([0.3, 0.4, 0.6])
    assert [(scores.max(axis=1) < limit).sum() for limit in limits] == [2, 3, 4]


def test_the_reliability_diagram_by_hand() -> None:
    """Four scores of .2, one right: too low by .05; two of 1.0, both right."""
    scores, has = (
        np.array([[0.2, 0.2, 0.2, 0.2, 1.0, 1.0]]),
        np.array([[True, False, False, False, True, True]]),
    )
    bins = reliability(scores, has, np.ones_like(has))
    assert bins.labels.tolist() == [0, 0, 4, 0, 0, 0, 0, 0, 0, 2]
    assert (bins.share[2], bins.share[9]) == (0.25, 1.0)
    assert bins.error == pytest.approx(0.05 * 4 / 6)


# -- a whole run ---------------------------------------------------------------------------------------------

Train = Callable[..., tuple[Path, list[str]]]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """Train a step or two on 8 tones, 8 lower ones and 8 noises; returns the run, and what it told."""
    for index in range(8):
        write_wav(tmp_path / "set" / "bell" / f"{index}.wav", tone(0.5, 900 + 20 * index))
        write_wav(tmp_path / "set" / "dog" / f"{index}.wav", tone(0.5, 150 + 5 * index))
        write_wav(tmp_path / "set" / "noise" / f"{index}.wav", noise(0.5, index))

    def run_on(name: str = "run", *, pictures: bool = False, **changes: Any) -> tuple[Path, list[str]]:
        notes: list[str] = []
        settings: dict[str, Any] = {"recipe": "test", "model": "cnn", "clip_s": 0.5, "epochs": 1, "batch": 4}
        settings |= {"device": "cpu", "precision": "fp32", "patchout_freq": 0, "background": "auto"}
        settings |= {"warm_up_epochs": 0.0, "patchout_time": 0, "hold_out": 0.7, "thresholds": True}
        config = TrainConfig(**(settings | {"data": str(tmp_path / "set"), "out": tmp_path / name} | changes))
        with pytest.MonkeyPatch.context() as patch:
            if not pictures:
                patch.setattr(figures, "reliability_diagram", lambda *bins: None)
                patch.setattr(train_run, "write_report", undrawn_report)
            run(config, Listener(on_problem=notes.append))
        return tmp_path / name, notes

    return run_on


@pytest.mark.slow
def test_a_run_writes_its_decision(train: Train) -> None:
    out, notes = train(pictures=True)
    config = patchout.load(out, "cpu").config
    assert (config.labels, config.task, config.decision.background) == (
        ("bell", "dog"),
        "multi_label",
        ("noise",),
    )
    assert all(config.decision.points)
    assert config.decision.slope != 1
    report = (out / "report" / "report.md").read_text(encoding="utf-8")
    assert "## Thresholds\n\nChosen for the highest F1 on 18 validation clips." in report
    assert "background_silent" in json.loads((out / "scores.json").read_text())["scores"]
    assert (out / "report" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert any("background clips" in note for note in notes)


@pytest.mark.slow
def test_the_scores_of_a_run_are_those_of_its_model(train: Train, tmp_path: Path, capfd: Any) -> None:
    """Also with the class that has no output among the clips."""
    out, _ = train(hold_out=0.0, exclude=(), thresholds=False)
    words = ["evaluate", str(out), "--data", str(tmp_path / "set"), "--device", "cpu", "--format", "json"]
    assert run_command(words) == 0
    assert json.loads(capfd.readouterr().out)["clips"] == 24


@pytest.mark.slow
def test_thresholds_are_off_unless_asked_for(train: Train) -> None:
    out, _ = train(thresholds=False)
    assert patchout.load(out, "cpu").config.decision == Decision(background=("noise",))


@pytest.mark.slow
def test_a_wanted_precision_changes_the_thresholds(train: Train) -> None:
    points = [
        patchout.load(train(f"{at}", precision_at=at)[0], "cpu").config.decision.points for at in (0.1, 1.0)
    ]
    assert points[0] != points[1]
    assert points[0][0]
    assert points[0][0].recall == 1.0


@pytest.mark.slow
def test_without_validation_clips_there_are_no_thresholds(train: Train) -> None:
    out, notes = train(hold_out=0.0)
    assert "no clips are held out to choose thresholds on: set split or hold_out" in notes
    assert patchout.load(out, "cpu").config.decision.points == ()
    with pytest.raises(ValueError, match=r"precision_at 0\.9: no clips are held out"):
        train("other", hold_out=0.0, precision_at=0.9)
    with pytest.raises(ValueError, match=r"silent_at 0\.9: no clip without a class is held out: add a class"):
        train("other", hold_out=0.0, silent_at=0.9)


@pytest.mark.slow
def test_few_validation_clips_say_why_there_is_no_threshold(train: Train) -> None:
    out, notes = train(hold_out=0.25)
    assert any("bell (none: 2 validation clips with the class, 5 are needed)" in note for note in notes)
    assert patchout.load(out, "cpu").config.decision.points == ()


@pytest.mark.slow
def test_a_new_run_does_not_start_with_the_thresholds_of_another(train: Train) -> None:
    out, _ = train()
    again, _ = train("again", init=str(out), model=None, thresholds=False)
    assert patchout.load(again, "cpu").config.decision == Decision(background=("noise",))


@pytest.mark.slow
def test_one_class_a_clip_has_thresholds_on_the_softmax(train: Train) -> None:
    out, _ = train(background="")
    config = patchout.load(out, "cpu").config
    assert config.task == "multi_class"
    assert len(config.decision.points) == 3
    assert config.decision.bias == 0.0


@pytest.mark.slow
def test_validation_clips_choose_and_test_clips_are_scored(train: Train, tmp_path: Path) -> None:
    rows = ["file,label,split"]
    for path in sorted((tmp_path / "set").rglob("*.wav")):
        split = "train" if int(path.stem) < 2 else "valid" if int(path.stem) < 7 else "test"
        rows.append(f"{path.relative_to(tmp_path / 'set')},{path.parent.name},{split}")
    (tmp_path / "set" / "list.csv").write_text("\n".join(rows))
    out, _ = train(hold_out=0.0, pictures=True)
    text = (out / "report" / "report.md").read_text(encoding="utf-8")
    assert "on 15 validation clips. Precision holds" in text
    assert "| precision on test clips |" in text
    assert all(patchout.load(out, "cpu").config.decision.points)

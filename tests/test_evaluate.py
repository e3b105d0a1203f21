"""Evaluation: what models say of labelled clips, ensembles, scores by group, and the command."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LABELS, RATE, noise, tiny_config, tone, write_wav
from scipy.special import log_softmax, logit

import patchout
from patchout.audio.stream import Stream
from patchout.checkpoint import own as checkpoint
from patchout.cli.main import run_command
from patchout.data.sets import ClipSet, DataError, scan
from patchout.inference import evaluate
from patchout.inference.evaluate import (
    Evaluation,
    Predictions,
    ensemble,
    group_by,
    interleave,
    judge,
    label_orders,
    predict,
)
from patchout.inference.window_batches import window_mels
from patchout.inference.window_scores import Scored
from patchout.models.decision import probabilities
from patchout.models.passt import Passt

BELL, DOG, RAIN = [0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.2, 0.2, 0.6]
TWO_OF_THREE = [BELL, DOG, RAIN, RAIN, DOG, RAIN]  # of bell, dog, rain, bell, dog, rain


def model_of(seed: int = 0, **changes: object) -> Passt:
    return Passt(tiny_config(**changes), rng=torch.Generator().manual_seed(seed)).eval()


def says(clips: ClipSet, *scores: list[float]) -> Predictions:
    """Predictions of a multi-class model with these scores for the first clips."""
    return Predictions(np.log(np.array(scores, np.float32)), np.arange(len(scores)), ())


def judged(clips: ClipSet, *scores: list[float], **options: object) -> Evaluation:
    return judge(says(clips, *scores), clips, labels=LABELS, task="multi_class", **options)  # type: ignore[arg-type]


def ask(model: Passt, clips: ClipSet, **options: object) -> Predictions:
    return predict(model, clips, precision="fp32", batch_size=4, **options)  # type: ignore[arg-type]


@pytest.fixture
def clips(class_folder: Path) -> ClipSet:
    """bell, dog, rain, bell, dog, rain with a device each."""
    devices = ("a", "a", "s1", "s1", "s4", "s4")
    files = [f"{label}/{number}.wav,{label}" for number in range(2) for label in LABELS]
    rows = [f"{file},{device}" for file, device in zip(files, devices, strict=True)]
    (class_folder / "clips.csv").write_text("\n".join(["file,label,device", *rows]), encoding="utf-8")
    return scan(class_folder)


# -- what a model says ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multi_class", "multi_label"])
def test_logits_are_the_models_own_for_a_clip_of_one_window(task: str, clips: ClipSet) -> None:
    model = model_of(task=task)
    found = ask(model, clips)
    waves = [clips.wave(clip, RATE) for clip in range(len(clips))]
    with torch.inference_mode():
        mels = window_mels(waves, model.config, torch.device("cpu"))
        logits = model(mels).logits.numpy()
    wanted = log_softmax(logits, axis=1) if task == "multi_class" else logits
    assert found.scores == pytest.approx(wanted, abs=1e-5)
    assert found.index.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("high", "error"), [(5.0, 2e-5), (10.0, 2e-3)])
def test_logits_are_read_back_as_exactly_as_stated(
    high: float, error: float, clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.linspace(-30, high, 6 * 3).reshape(6, 3)

    def score(models: list[Passt], streams: Iterable[Stream], **options: object) -> Iterator[list[Scored]]:
        return (
            [Scored(stream.name, 1.0, row.sigmoid().numpy())]
            for stream, row in zip(streams, logits, strict=True)
        )

    monkeypatch.setattr(evaluate, "score_each", score)
    assert ask(model_of(task="multi_label"), clips).scores == pytest.approx(logits.numpy(), abs=error)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multi_class", "multi_label"])
def test_scores_are_those_of_tag_for_clips_of_any_length(task: str, class_folder: Path) -> None:
    model = model_of(task=task)
    write_wav(class_folder / "rain" / "long.wav", noise(3.3))
    write_wav(class_folder / "bell" / "short.wav", tone(0.1))
    clips = scan(class_folder)
    scores = probabilities(ask(model, clips).scores, model.config.task)
    for clip, row in enumerate(scores):
        tags = patchout.tag(model, clips.name(clip), top=3)
        assert row[[LABELS.index(label) for label in tags.labels]] == pytest.approx(tags.scores, abs=1e-6)


@pytest.mark.parametrize(
    ("task", "sure", "limit"),
    [("multi_class", [1.0, 0.0, 0.0], -87.34), ("multi_label", [1.0, 0.0, 0.5], 17.33)],
)
def test_scores_of_0_and_1_stay_finite(
    task: str, sure: list[float], limit: float, clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(models: list[Passt], streams: Iterable[Stream], **options: object) -> Iterator[list[Scored]]:
        return ([Scored(stream.name, 1.0, np.array(sure, np.float32))] for stream in streams)

    monkeypatch.setattr(evaluate, "score_each", score)
    found = ask(model_of(task=task), clips).scores[0]
    assert found == pytest.approx(
        [0.0, limit, limit] if task == "multi_class" else [limit, -87.34, 0.0], abs=0.01
    )


def test_a_clip_that_is_cut_short_is_scored_and_told(tiny: Passt, clips: ClipSet, class_folder: Path) -> None:
    path = class_folder / "bell" / "0.wav"
    path.write_bytes(path.read_bytes()[:-2000])
    both = ensemble([ask(tiny, clips)] * 2, [np.arange(3)] * 2)
    assert (len(both.index), both.failed) == (len(clips), ())
    assert [warning.partition(" promises")[0] for warning in both.warnings] == [
        f"{path}: is cut short, its header"
    ]


def test_a_broken_clip_is_named_and_left_out(tiny: Passt, clips: ClipSet, class_folder: Path) -> None:
    (class_folder / "dog" / "0.wav").write_bytes(b"no sound")
    seen: list[None] = []
    found = ask(tiny, clips, on_clip=lambda: seen.append(None))
    assert found.index.tolist() == [0, 2, 3, 4, 5]
    assert len(found.failed) == 1
    assert "0.wav" in found.failed[0]
    assert len(seen) == 6


def test_a_clip_whose_scores_are_not_finite_is_named(tiny: Passt, clips: ClipSet) -> None:
    with torch.no_grad():
        tiny.get_parameter("head.1.bias").fill_(torch.nan)
    found = ask(tiny, clips)
    assert found.scores.shape == (0, 3)
    assert found.failed[0].endswith("bell/0.wav: the model's scores are not finite")


def test_the_segment_of_a_row_is_what_is_scored(tiny: Passt, class_folder: Path) -> None:
    write_wav(class_folder / "dog" / "0.wav", np.concatenate([noise(1.0), tone(0.5)]))
    write_wav(class_folder / "dog" / "1.wav", tone(0.5))
    (class_folder / "clips.csv").write_text(
        "file,label,start,end\ndog/0.wav,dog,1,1.5\ndog/1.wav,dog,,\ndog/2.wav,dog,5,\n"
    )
    found = ask(tiny, scan(class_folder))
    assert found.scores[0] == pytest.approx(found.scores[1], abs=1e-4)
    assert "2.wav" in found.failed[0]


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 7])
def test_parts_by_rank_join_to_the_whole(world: int, tiny: Passt, clips: ClipSet, class_folder: Path) -> None:
    """Seven ranks for six clips: one has none."""
    (class_folder / "rain" / "0.wav").write_bytes(b"no sound")
    whole = ask(tiny, clips)
    joined = interleave([ask(tiny, clips.take(range(rank, len(clips), world))) for rank in range(world)])
    assert joined.scores == pytest.approx(whole.scores, abs=1e-5)
    assert joined.index.tolist() == whole.index.tolist() == [0, 1, 3, 4, 5]
    assert joined.failed == whole.failed


# -- ensembles -----------------------------------------------------------------------------------------------


def test_an_ensemble_averages_logits() -> None:
    """Scores of 0.9 and 0.1 cancel; the mean of logits 2 and 0 is 1."""
    one = Predictions(np.array([[logit(0.9), 2.0]], np.float32), np.array([0]), ())
    other = Predictions(np.array([[logit(0.1), 0.0]], np.float32), np.array([0]), ())
    found = ensemble([one, other], [np.arange(2)] * 2)
    assert found.scores == pytest.approx(np.array([[0.0, 1.0]]), abs=1e-6)


def test_an_ensemble_of_one_is_the_model(tiny: Passt, clips: ClipSet) -> None:
    alone = ask(tiny, clips)
    found = ensemble([alone], label_orders([tiny.config]))
    assert found.scores.tolist() == alone.scores.tolist()


def test_another_order_of_labels_is_brought_in_line() -> None:
    orders = label_orders([tiny_config(), tiny_config(labels=("rain", "bell", "dog"))])
    one = Predictions(np.array([[1.0, 2.0, 3.0]], np.float32), np.array([0]), ())
    found = ensemble([one, replace(one, scores=np.array([[3.0, 1.0, 2.0]], np.float32))], orders)
    assert found.scores.tolist() == [[1.0, 2.0, 3.0]]


def test_an_ensemble_scores_what_all_could_read() -> None:
    one = Predictions(np.array([[1.0], [2.0]], np.float32), np.array([0, 2]), ("b: broken",))
    other = Predictions(np.array([[4.0], [6.0]], np.float32), np.array([1, 2]), ("a: broken",))
    found = ensemble([one, other], [np.arange(1)] * 2)
    assert found.scores.tolist() == [[4.0]]
    assert found.index.tolist() == [2]
    assert found.failed == ("b: broken", "a: broken")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ("bell", "dog", "owl")}, r"not both of models 1 and 2 know \['owl', 'rain'\]"),
        ({"task": "multi_label"}, "model 1 is multi_class, model 2 multi_label"),
    ],
)
def test_what_makes_no_ensemble_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_orders([tiny_config(), tiny_config(**changes)])


# -- scores --------------------------------------------------------------------------------------------------


def test_scores_by_hand(clips: ClipSet) -> None:
    """One bell of six is taken for rain."""
    found = judged(clips, *TWO_OF_THREE)
    assert list(found.scores) == ["accuracy", "mAP", "AUC", "d_prime"]
    assert (found.clips, found.failed, found.draws) == (6, (), 0)
    assert found.scores["accuracy"] == pytest.approx(5 / 6)
    assert found.intervals == {"accuracy": pytest.approx((0.4365, 0.9699), abs=5e-5)}
    # bell: first, then one of three at 0.2: (1 + 2/4) / 2; dog 1; rain: two of the three at 0.6
    assert found.scores["mAP"] == pytest.approx((3 / 4 + 1 + 2 / 3) / 3)
    # pairs in order, equal ones half: bell 4 + (2 + 2/2) of 8; dog 8 of 8; rain 2 x (3 + 1/2) of 8
    assert found.scores["AUC"] == pytest.approx((7 / 8 + 1 + 7 / 8) / 3)


def test_what_is_scored_is_known_by_its_hash(clips: ClipSet) -> None:
    part = replace(says(clips, BELL, RAIN), index=np.array([0, 2]))
    found = judge(part, clips, labels=LABELS, task="multi_class")
    assert found.ids_sha256 == clips.take([0, 2]).ids_sha256() != clips.ids_sha256()
    assert found.scores["accuracy"] == 1.0


def test_a_bootstrap_gives_every_score_an_interval(clips: ClipSet) -> None:
    found = judged(clips, *TWO_OF_THREE, draws=50)
    assert found.draws == 50
    assert set(found.intervals) == set(found.scores)
    assert found == judged(clips, *TWO_OF_THREE, draws=50)


@pytest.mark.parametrize("task", ["multi_label", "multi_class"])
def test_accuracy_is_for_one_class_a_clip(task: str, class_folder: Path) -> None:
    (class_folder / "meta.csv").write_text(
        "file,labels\nbell/0.wav,bell;dog\nrain/0.wav,rain\n", encoding="utf-8"
    )
    clips = scan(class_folder)
    found = judge(says(clips, BELL, RAIN), clips, labels=LABELS, task=task)  # type: ignore[arg-type]
    assert list(found.scores) == ["mAP", "AUC", "d_prime"]


def test_the_order_of_the_models_classes_counts_not_the_datas(clips: ClipSet) -> None:
    names = ("rain", "owl", "dog", "bell")
    scores = np.eye(4, dtype=np.float32)[[3, 2, 0]]
    found = judge(
        Predictions(scores, np.arange(3), ()), clips.take([0, 1, 2]), labels=names, task="multi_class"
    )
    assert found.scores["accuracy"] == 1.0


def test_labels_nobody_gave_do_not_count(clips: ClipSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bell taken for rain is nobody's rain: without it rain is perfect."""
    known = np.ones((6, 3), np.float32)
    known[3, 2] = 0
    monkeypatch.setattr(ClipSet, "knowns", lambda self, classes=None: known)
    assert judged(clips, *TWO_OF_THREE).scores["mAP"] == pytest.approx((3 / 4 + 1 + 1) / 3)


def test_labels_the_model_does_not_know_are_named(clips: ClipSet) -> None:
    with pytest.raises(DataError, match=r"labels \['rain'\] are none of the model's"):
        judge(says(clips, BELL), clips.take([2]), labels=("bell", "dog", "owl"), task="multi_class")


def test_nothing_to_read_is_refused(tiny: Passt, clips: ClipSet, class_folder: Path) -> None:
    for path in class_folder.rglob("*.wav"):
        path.write_bytes(b"no sound")
    with pytest.raises(DataError, match=r"none of 6 clips could be read \(.*0\.wav"):
        judge(ask(tiny, clips), clips, labels=LABELS, task="multi_class")


def test_the_first_score_is_told_by_device(clips: ClipSet) -> None:
    found = judged(clips, *TWO_OF_THREE, groups=group_by(clips, "device"), draws=10)
    told = {name: value for name, value in found.scores.items() if "/" in name}
    assert told == {"accuracy/device=a": 1.0, "accuracy/device=s1": 0.5, "accuracy/device=s4": 1.0}
    assert found.intervals["accuracy/device=s4"] == pytest.approx((0.3424, 1.0), abs=5e-5)


def test_devices_that_training_never_saw_are_told_apart(clips: ClipSet) -> None:
    groups = group_by(clips, "device", clips.take([0, 2]))
    assert groups["/unseen"].tolist() == groups["/device=s4"].tolist()
    found = judged(clips, *TWO_OF_THREE, groups=groups)
    assert (found.scores["accuracy/seen"], found.scores["accuracy/unseen"]) == (0.75, 1.0)


@pytest.mark.parametrize("trained_on", [[0, 2, 4], []])
def test_where_all_or_none_are_seen_there_is_nothing_to_tell_apart(
    trained_on: list[int], clips: ClipSet
) -> None:
    assert "/seen" not in group_by(clips, "device", clips.take(trained_on))


def test_a_group_of_clips_that_failed_has_no_score(clips: ClipSet) -> None:
    found = judged(clips, *TWO_OF_THREE[:4], groups=group_by(clips, "device"))
    assert [name for name in found.scores if "/" in name] == ["accuracy/device=a", "accuracy/device=s1"]


@pytest.mark.parametrize("column", ["city", "labels"])
def test_a_column_that_is_not_there_or_holds_lists_is_refused(clips: ClipSet, column: str) -> None:
    with pytest.raises(DataError, match=f"column '{column}' has 0 values"):
        group_by(clips, column)


def test_a_column_of_names_is_refused(clips: ClipSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "MAX_GROUPS", 2)
    with pytest.raises(DataError, match="column 'device' has 3 values, scores are told for 1 to 2"):
        group_by(clips, "device")


@pytest.mark.parametrize(("num", "draws"), [(80, 1000), (18_951, 200), (2_000_000, 100)])
def test_large_sets_get_fewer_draws(num: int, draws: int) -> None:
    assert evaluate.draws_for(num, 527) == draws


# -- the command ---------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two models, the second with its labels in another order."""
    models = [model_of(0), model_of(1, labels=("rain", "bell", "dog"))]
    for number, model in enumerate(models):
        checkpoint.save(model, tmp_path / f"{number}.safetensors")
    return [str(tmp_path / f"{number}.safetensors") for number in range(2)]


@pytest.mark.slow
def test_the_command_scores_an_ensemble(
    files: list[str], clips: ClipSet, capfd: pytest.CaptureFixture[str]
) -> None:
    code = run_command(["evaluate", *files, "--data", str(clips.root), "--by", "device", "--format", "json"])
    record = json.loads(capfd.readouterr().out)
    models = [model for model in (checkpoint.load(Path(file)) for file in files) if isinstance(model, Passt)]
    orders = label_orders([model.config for model in models])
    both = judge(
        ensemble([ask(model, clips) for model in models], orders), clips, labels=LABELS, task="multi_class"
    )
    assert code == 0
    assert record["models"] == files
    assert (record["clips"], record["ids_sha256"], record["draws"]) == (6, clips.ids_sha256(), 1000)
    assert {name: record[name] for name in both.scores} == pytest.approx(both.scores)
    assert {"accuracy", "mAP", "accuracy/device=a"} <= record["intervals"].keys()


def test_devices_of_no_other_split_are_unseen(
    files: list[str], class_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [
        "bell/0.wav,bell,train,a",
        "dog/0.wav,dog,train,b",
        "bell/1.wav,bell,test,a",
        "dog/1.wav,dog,test,s4",
    ]
    (class_folder / "clips.csv").write_text("\n".join(["file,label,split,device", *rows]), encoding="utf-8")
    options = ("--data", str(class_folder), "--split", "test", "--by", "device", "--format", "json")
    assert run_command(["evaluate", files[0], *options]) == 0
    told = {name for name in json.loads(capfd.readouterr().out) if "/" in name}
    assert told == {f"accuracy/{group}" for group in ("device=a", "device=s4", "seen", "unseen")}


def test_the_table_says_on_what_the_scores_stand(
    files: list[str], clips: ClipSet, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"eval": {"listed": 8, "present": 6}, "train": {"listed": 100, "present": 99}}
    monkeypatch.setattr(
        "patchout.data.sets.scan", lambda source, classes: replace(clips, info={"official": counts})
    )
    assert run_command(["evaluate", files[0], "--data", str(clips.root)]) == 0
    shown = capfd.readouterr().out
    assert f"6 clips (sha256 {clips.ids_sha256()[:12]})" in shown
    assert "eval: 6 of the 8 clips on the official list (75.0%)" in shown
    assert "bootstrap of 1000 draws" in shown


def test_scores_that_are_not_numbers_are_null_in_json(
    files: list[str], class_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of one class alone there is no AUC."""
    (class_folder / "clips.csv").write_text(
        "file,label\nbell/0.wav,bell\nbell/1.wav,bell\n", encoding="utf-8"
    )
    assert run_command(["evaluate", files[0], "--data", str(class_folder), "--format", "json"]) == 0
    record = json.loads(capfd.readouterr().out, parse_constant=pytest.fail)
    assert (record["mAP"], record["AUC"], record["intervals"]["AUC"]) == (1.0, None, [None, None])
    assert record["absent"] == ["dog", "rain"]
    assert run_command(["evaluate", files[0], "--data", str(class_folder)]) == 0
    shown = capfd.readouterr().out
    assert "AUC       undefined  95 % within undefined and undefined" in shown
    assert "no clip of 2 classes, which count in no mean over classes: dog, rain" in shown


@pytest.mark.parametrize(
    ("args", "message"),
    [((), "no model given"), (("0.safetensors", "--batch-size", "0"), "--batch-size must be")],
)
def test_wrong_use_is_code_2(args: tuple[str, ...], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["evaluate", *args, "--data", "x"]) == 2
    assert message in capfd.readouterr().err

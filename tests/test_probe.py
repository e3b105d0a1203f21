"""The probe of frozen embeddings and the survey of unlabelled sounds."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise, tone, write_wav

from patchout import survey as survey_module
from patchout.clips import ClipSet, DataError
from patchout.data import scan, scan_sounds
from patchout.mel import MelConfig, log_mel
from patchout.passt import Passt
from patchout.probe import Probe, Subject, gain, table
from patchout.survey import survey


def answers(name: str, *right: int) -> Subject:
    hits = np.array(right, bool)
    return Subject(name, hits, hits)


# -- the probe --------------------------------------------------------------------------------------------------------


def test_classes_that_lie_apart_are_told_apart(class_folder: Path) -> None:
    probe = Probe(scan(class_folder))
    apart = np.eye(3)[probe.classes] + 0.01 * np.random.default_rng(0).standard_normal((12, 3))
    assert probe.neighbours(apart).all()
    assert not probe.neighbours(np.random.default_rng(1).standard_normal((12, 3))).all()


def test_clips_of_one_group_are_never_on_both_sides(class_folder: Path) -> None:
    """Every group looks like itself alone: only a leak would find its class."""
    rows = ["filename,category,group"]
    for path in sorted(class_folder.rglob("*.wav")):
        name = str(path.relative_to(class_folder))
        rows.append(f"{name},{path.parent.name},{path.parent.name}{int(path.stem) // 2}")
    (class_folder / "meta.csv").write_text("\n".join(rows))
    probe = Probe(scan(class_folder))
    assert probe.splits == 4  # clips of a class, fewer than groups
    _, group = np.unique(probe.groups, return_inverse=True)
    lone = np.eye(6)[group] + 1e-3 * np.random.default_rng(0).standard_normal((12, 6))
    assert probe.neighbours(lone).mean() < 0.5


def test_folds_come_before_groups(class_folder: Path) -> None:
    rows = ["filename,category,fold,group"]
    for path in sorted(class_folder.rglob("*.wav")):
        rows.append(f"{path.relative_to(class_folder)},{path.parent.name},{int(path.stem) % 2},g{path.stem}")
    (class_folder / "meta.csv").write_text("\n".join(rows))
    probe = Probe(scan(class_folder))
    assert (probe.splits, {*probe.groups.tolist()}) == (2, {"0", "1"})


def test_a_model_is_judged_by_its_scene_embeddings(class_folder: Path, tiny: Passt) -> None:
    probe = Probe(scan(class_folder))
    assert probe.features(tiny, "fp32").shape == (12, 32)
    found = probe.judge("tiny", tiny, "fp32")
    assert found.linear.mean() > 0.9  # three kinds of sound that anyone can tell apart


def test_what_cannot_be_a_probe_is_refused(class_folder: Path, tiny: Passt) -> None:
    (class_folder / "dog" / "0.wav").write_text("no sound")
    with pytest.raises(DataError, match=r"probe: .*0\.wav: is not audio.*: repair it"):
        Probe(scan(class_folder)).features(tiny, "fp32")
    write_wav(class_folder / "lone" / "0.wav", tone(0.5))
    with pytest.raises(DataError, match="needs two clips of every class"):
        Probe(scan(class_folder))
    with pytest.raises(DataError, match="needs two classes or more"):
        Probe(scan_sounds(class_folder))


def test_the_gain_by_hand() -> None:
    change, (low, high) = gain(answers("a", 0, 0, 1, 1), answers("b", 1, 1, 1, 1))
    assert change == 0.5
    assert high - change == pytest.approx(1.96 * math.sqrt(1 / 3) / 2)  # 1, 1, 0, 0: variance 1 / 3
    assert low == pytest.approx(change - (high - change))


@pytest.mark.parametrize(
    ("before", "after", "verdict"), [(0, 1, "it helped"), (1, 0, "it did harm"), (1, 1, "40 clips cannot tell")]
)
def test_the_verdict_needs_more_than_chance(before: int, after: int, verdict: str) -> None:
    subjects = [answers(name, *([which] * 39), 1) for name, which in (("random", before), ("own", after))]
    assert verdict in table(subjects)
    assert "own against random" in table(subjects)


# -- the survey -------------------------------------------------------------------------------------------------------


def test_the_statistics_are_those_of_the_sounds(class_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "LEAST_S", 1.0)
    clips, mel = scan_sounds(class_folder), MelConfig()
    every = torch.cat([log_mel(clips.wave(clip, 32_000)[None], mel)[0] for clip in range(len(clips))], dim=1)
    found = survey(clips, mel, per_band=True, floor=0.0)
    assert found.statistics.mean == pytest.approx(every.mean(dim=1).tolist(), abs=1e-5)
    one = survey(clips, mel, per_band=False, floor=0.0)
    assert one.statistics.std == pytest.approx([every.std(unbiased=False).item()], abs=1e-5)
    assert found.hours == pytest.approx(12 / 3600)


def test_hours_follow_from_a_sample(class_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "LEAST_S", 1.0)
    monkeypatch.setattr(survey_module, "MOST_S", 2.5)
    read: list[int] = []
    clips = scan_sounds(class_folder)
    wave = ClipSet.wave

    def reading(self: ClipSet, clip: int, rate: int) -> torch.Tensor:
        read.append(clip)
        return wave(self, clip, rate)

    monkeypatch.setattr(ClipSet, "wave", reading)
    assert survey(clips, MelConfig(), per_band=False, floor=0.3).hours == pytest.approx(12 / 3600)
    assert len(read) == 3


def test_silent_and_broken_clips_are_counted(class_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "LEAST_S", 1.0)
    write_wav(class_folder / "dog" / "0.wav", 0 * noise(1.0))
    (class_folder / "dog" / "1.wav").write_text("no sound")
    found = survey(scan_sounds(class_folder), MelConfig(), per_band=False, floor=0.3)
    assert found.silent == pytest.approx(1 / 11)
    assert ["1.wav" in problem for problem in found.problems] == [True]

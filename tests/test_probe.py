"""The probe of frozen embeddings and the survey of unlabelled sounds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import noise, tone, write_wav

from patchout.audio import decode
from patchout.audio import stream as audio
from patchout.audio.mel import MelConfig, log_mel
from patchout.data.batches import Waves
from patchout.data.clips import ClipSet, DataError
from patchout.data.sets import scan, scan_sounds
from patchout.models.passt import Passt
from patchout.training.masked import survey as survey_module
from patchout.training.masked.probe import Probe, Subject, gain, table
from patchout.training.masked.survey import cut_long, survey


def answers(name: str, *right: int) -> Subject:
    hits = np.array(right, bool)
    return Subject(name, hits, hits)


# -- the probe -----------------------------------------------------------------------------------------------


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


@pytest.mark.slow
def test_a_model_is_judged_by_its_scene_embeddings(class_folder: Path, tiny: Passt) -> None:
    probe = Probe(scan(class_folder))
    assert probe.features(tiny, "fp32").shape == (12, 32)
    found = probe.judge("tiny", tiny, "fp32")
    assert found.linear.mean() > 0.9  # three kinds of sound that anyone can tell apart


def test_a_class_of_one_fold_alone_is_refused(class_folder: Path) -> None:
    """Else its clips would be heard in the test alone, and with two classes nothing could be learnt."""
    classes = {path: path.parent.name for path in class_folder.rglob("*.wav")}
    rows = [f"{name}/{path.name},{name},{name}" for path, name in classes.items()]
    (class_folder / "meta.csv").write_text("\n".join(["file,label,fold", *rows]))
    with pytest.raises(DataError, match="two clips of every class, in two folds"):
        Probe(scan(class_folder))


def test_what_cannot_be_a_probe_is_refused(class_folder: Path) -> None:
    write_wav(class_folder / "lone" / "0.wav", tone(0.5))
    with pytest.raises(DataError, match="needs two clips of every class"):
        Probe(scan(class_folder))
    with pytest.raises(DataError, match="needs two classes or more"):
        Probe(scan_sounds(class_folder))


def test_a_clip_that_cannot_be_read_is_left_out_and_named(class_folder: Path, tiny: Passt) -> None:
    (class_folder / "dog" / "0.wav").write_text("no sound")
    probe = Probe(scan(class_folder))
    assert probe.features(tiny, "fp32").shape == (11, 32)
    (problem,) = probe.problems
    assert problem.startswith("probe: ")
    assert "0.wav: is not audio" in problem
    assert problem.endswith("; it is left out")


def test_the_gain_by_hand() -> None:
    better, worse, chance = gain(answers("a", *[0] * 6, 1), answers("b", *[1] * 6, 0))
    assert (better, worse) == (6, 1)
    assert chance == pytest.approx(2 * (1 + 7) / 2**7)  # six or seven of seven, or none or one
    assert gain(answers("a", 1, 0), answers("b", 1, 0)) == (0, 0, 1.0)


def test_five_clips_that_all_got_better_are_no_proof() -> None:
    before, after = answers("random", *[0] * 5, *[1] * 395), answers("own", *[1] * 400)
    verdict = "+1.2 points (5 clips better, 0 worse, p = 0.062): 400 clips cannot tell a difference"
    assert verdict in table([before, after])


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [(0, 1, "it helped"), (1, 0, "it did harm"), (1, 1, "40 clips cannot tell")],
)
def test_the_verdict_needs_more_than_chance(before: int, after: int, verdict: str) -> None:
    subjects = [answers(name, *([which] * 39), 1) for name, which in (("random", before), ("own", after))]
    assert verdict in table(subjects)
    assert "own against random" in table(subjects)


# -- the survey ----------------------------------------------------------------------------------------------


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
    stream = ClipSet.stream

    def reading(self: ClipSet, clip: int, rate: int) -> audio.Stream:
        read.append(clip)
        return stream(self, clip, rate)

    monkeypatch.setattr(ClipSet, "stream", reading)
    assert survey(clips, MelConfig(), per_band=False, floor=0.3).hours == pytest.approx(12 / 3600)
    assert len(read) == 3


def test_silent_and_broken_clips_are_counted(class_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "LEAST_S", 1.0)
    write_wav(class_folder / "dog" / "0.wav", 0 * noise(1.0))
    (class_folder / "dog" / "1.wav").write_text("no sound")
    found = survey(scan_sounds(class_folder), MelConfig(), per_band=False, floor=0.3)
    assert found.problems[0] == "1 of the 11 clips that were listened to are silent: leave them out"
    assert ["1.wav" in problem for problem in found.problems] == [False, True]


# -- long recordings -----------------------------------------------------------------------------------------


def test_a_long_recording_is_cut_into_equal_stretches(tmp_path: Path) -> None:
    write_wav(tmp_path / "long.wav", noise(4.5))
    write_wav(tmp_path / "short.wav", noise(1.9))
    clips = cut_long(scan_sounds(tmp_path), 0.5)
    assert clips.table["start_s"].to_pylist() == pytest.approx([0.0, 1.125, 2.25, 3.375, 0.0])
    assert clips.table["end_s"].to_pylist()[:3] == pytest.approx([1.125, 2.25, 3.375])
    assert clips.table["end_s"].to_pylist()[3:] == [None, None]  # whatever the header forgot
    parts = torch.cat([clips.wave(clip, 32_000) for clip in range(4)])
    assert torch.equal(parts, scan_sounds(tmp_path).wave(0, 32_000))


def test_the_seconds_of_a_list_are_cut_within_their_bounds(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", noise(5.0))
    (tmp_path / "list.csv").write_text("filename,start,end\na.wav,1,3\na.wav,3,\na.wav,,0.5\n")
    clips = cut_long(scan_sounds(tmp_path / "list.csv"), 0.5)
    starts, ends = (clips.table[name].to_pylist() for name in ("start_s", "end_s"))
    assert list(zip(starts, ends, strict=True)) == [
        (1.0, 2.0),
        (2.0, 3.0),
        (3.0, 4.0),
        (4.0, None),
        (0.0, 0.5),
    ]


def test_what_is_read_from_its_beginning_and_what_is_broken_stays_whole(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.ogg", noise(3.0), 32_000)
    (tmp_path / "b.wav").write_text("no sound")
    clips = scan_sounds(tmp_path)
    assert cut_long(clips, 0.5) is clips


@pytest.mark.parametrize("promised", [0, 2**36 - 1], ids=["no length", "a false length"])
def test_a_length_that_a_header_makes_up_cuts_nothing(tmp_path: Path, promised: int) -> None:
    soundfile.write(tmp_path / "piped.flac", noise(3.0), 32_000)
    data = bytearray((tmp_path / "piped.flac").read_bytes())
    data[21:26] = bytes([data[21] & 0xF0 | promised >> 32]) + (promised & 2**32 - 1).to_bytes(4, "big")
    (tmp_path / "piped.flac").write_bytes(data)
    clips = scan_sounds(tmp_path)
    assert cut_long(clips, 0.5) is clips


def test_a_crop_of_a_long_recording_decodes_little_more_than_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "long.flac", noise(60.0), 32_000)
    decoded = [0]

    def counting(*args: Any, **options: Any) -> Iterator[Any]:
        for block in decode.decode(*args, **options):
            decoded[0] += len(block.samples)
            yield block

    monkeypatch.setattr(audio, "decode", counting)
    clips = cut_long(scan_sounds(tmp_path), 1.0)
    waves = Waves(clips, rate=32_000, num_samples=32_000, seed=0, crop=True)
    for index in (0, 11, 29):
        decoded[0] = 0
        assert waves[0, index].wave.any()
        assert 32_000 <= decoded[0] < 3 * 32_000

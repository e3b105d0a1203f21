"""The five small tasks: built from made-up sources of the same layout,
and from the real ones where they are.
"""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import DATA, RATE, needs_data, tiny_config, tone, write_wav

from patchout.audio import stream as audio
from patchout.checkpoint.own import save
from patchout.cli.hear import main
from patchout.hear import mini
from patchout.hear.mini import make_mini
from patchout.hear.tasks import Task, read_task
from patchout.hear.wavs import inspect, read_wav
from patchout.models.passt import Passt


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def bark(hz: float) -> np.ndarray:
    """One second: 0.3 s of silence, 0.2 s of a tone, silence."""
    return np.pad(tone(0.2, hz), (round(0.3 * RATE), round(0.5 * RATE)))


def make_data(root: Path) -> Path:
    """Two classes in five folds, two digits, three pitches, three pieces."""
    clips = [(fold, name) for fold in range(1, 6) for name in ("dog", "rain")]
    table = [{"filename": f"{fold}-{name}.wav", "fold": fold, "category": name} for fold, name in clips]
    write_table(root / "esc10" / "esc10.csv", table)
    for fold, name in clips:
        write_wav(root / "esc10" / "audio" / f"{fold}-{name}.wav", bark(200 * fold + 100 * (name == "dog")))
    for digit, index in ((digit, index) for digit in "73" for index in (0, 5, 10, 49)):
        write_wav(root / "fsdd" / "recordings" / f"{digit}_ada_{index}.wav", tone(0.4, rate=8_000), 8_000)
    splits = ("train", "valid", "test")
    notes = [{"file": f"{s}{p}.wav", "midi_pitch": p, "split": s} for s in splits for p in (9, 10, 100)]
    write_table(root / "gm" / "pitch.csv", notes)
    for note in notes:
        write_wav(root / "gm" / "pitch" / str(note["file"]), tone(1.0))
    events = [{"label": "60", "start": 270, "end": 506}]
    pieces = {f"{split}.wav": {"split": split, "events": events} for split in splits}
    (root / "gm" / "piano.json").write_text(json.dumps(pieces))
    for name in pieces:
        write_wav(root / "gm" / "piano" / name, tone(1.0))
    return root


@pytest.fixture(autouse=True, scope="module")
def few_office_files() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mini, "OFFICE_FILES", {"train": 2, "valid": 1, "test": 1})
        patch.setattr(mini, "BACKGROUND_LEVEL", 0.02)  # so that the quietest event has a peak in its spectrum
        yield


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


@pytest.fixture(scope="module")
def tasks(few_office_files: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """All five, by name; nothing was wrong."""
    root = tmp_path_factory.mktemp("mini")
    assert list(make_mini(make_data(root / "data"), root / "out")) == []
    return {
        folder.name.removesuffix("-v1-mini"): read_task(folder) for folder in sorted((root / "out").iterdir())
    }


@pytest.mark.slow
def test_five_whole_tasks_are_built(tasks: dict[str, Task]) -> None:
    assert list(tasks) == ["mini_digits", "mini_esc10", "mini_office", "mini_piano", "mini_pitch"]
    assert [inspect(task.folder)["problems"] for task in tasks.values()] == [[]] * 5
    assert {task.rates()[0] for task in tasks.values()} == {RATE}
    assert tasks["mini_esc10"].splits == ("fold00", "fold01", "fold02", "fold03", "fold04")


def test_labels_are_numbered_as_numbers(tasks: dict[str, Task]) -> None:
    assert (tasks["mini_pitch"].labels, tasks["mini_digits"].labels) == (("9", "10", "100"), ("3", "7"))


def test_the_first_recordings_of_a_digit_are_for_the_test(tasks: dict[str, Task]) -> None:
    digits = tasks["mini_digits"]
    ends = {
        split: sorted({file.split("_")[2] for file in clips}) for split, clips in digits.annotations.items()
    }
    assert ends == {"train": ["10.wav", "49.wav"], "valid": ["5.wav"], "test": ["0.wav"]}


def test_piano_follows_the_rules_of_maestro(tasks: dict[str, Task]) -> None:
    piano = tasks["mini_piano"]
    assert piano.metadata["use_scoring_for_early_stopping"] is False
    grid = piano.metadata["evaluation_params"]["event_postprocessing_grid"]
    assert grid == {"median_filter_ms": [150], "min_duration": [50]}
    assert piano.annotations["train"]["train.wav"] == [{"label": "60", "start": 270, "end": 506}]


def test_an_office_event_is_loud_between_its_times_and_its_class_alone_there(tasks: dict[str, Task]) -> None:
    office = tasks["mini_office"]
    (file, events), *_ = office.annotations["train"].items()
    wave = read_wav(office.folder / str(RATE) / "train" / file, RATE, mini.OFFICE_S)
    assert len(events) > 5
    for event in events:
        start, end = (round(event[edge] * RATE / 1000) for edge in ("start", "end"))
        inside = wave[start:end].std()
        assert event["end"] - event["start"] == pytest.approx(
            200, abs=20
        )  # the tone of `bark`, not its silence
        assert inside > 1.5 * mini.BACKGROUND_LEVEL
    for label in office.labels:
        spans = sorted((event["start"], event["end"]) for event in events if event["label"] == label)
        assert all(first[1] <= second[0] for first, second in pairwise(spans))


@pytest.mark.slow
def test_the_built_tasks_are_embedded_judged_and_reported(tasks: dict[str, Task], tmp_path: Path) -> None:
    """From the sounds to the report, each step by its command."""
    save(Passt(tiny_config(columns=12), rng=torch.Generator().manual_seed(0)), tmp_path / "tiny.safetensors")
    folder = str(tasks["mini_esc10"].folder.parent)
    model = [
        str(tmp_path / "tiny.safetensors"),
        "--levels",
        "mid",
        "--tasks",
        folder,
        "--device",
        "cpu",
        "--grid",
        "two",
    ]
    assert main(["run", *model, "--out", str(tmp_path / "results")]) == 0
    assert main(["report", str(tmp_path / "results"), "--out", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert [name for name in tasks if name not in text] == []


def test_office_splits_share_no_clip(tasks: dict[str, Task]) -> None:
    """Each clip of the made-up source has a frequency of its own: fold f is at 200 f or 200 f + 100 Hz."""
    office = tasks["mini_office"]
    heard: dict[str, set[int]] = {}
    for split, clips in office.annotations.items():
        for file, events in clips.items():
            wave = read_wav(office.folder / str(RATE) / split / file, RATE, mini.OFFICE_S)
            spans = [(event["start"], event["end"]) for event in events]
            alone = [a for a in spans if sum(a[0] < b[1] and b[0] < a[1] for b in spans) == 1]
            for start, end in alone:
                part = wave[round(start * RATE / 1000) : round(end * RATE / 1000)]
                peak = np.abs(np.fft.rfft(part, RATE)).argmax()  # Hz
                heard.setdefault(split, set()).add(round(peak / 100) // 2)
    assert heard == {"train": {1, 2, 3}, "valid": {4}, "test": {5}}


def digest(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


@pytest.mark.slow
def test_the_same_sources_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    for out in ("one", "two"):
        assert list(make_mini(data, tmp_path / out)) == []
    assert digest(tmp_path / "one") == digest(tmp_path / "two")


# -- what is not there ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_missing_part_is_named_and_the_others_are_built(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (data / "gm" / "piano.json").unlink()
    assert main(["make-mini", "--data", str(data), "--out", str(tmp_path / "out")]) == 1
    assert f"mini_piano: skipped, because {data / 'gm' / 'piano.json'} is not there" in capfd.readouterr().err
    assert len(list((tmp_path / "out").iterdir())) == 4


@pytest.mark.slow
def test_a_broken_clip_is_named_and_left_out(data: Path, tmp_path: Path) -> None:
    (data / "gm" / "pitch" / "train9.wav").write_bytes(b"no sound")
    (problem,) = make_mini(data, tmp_path / "out")
    assert problem.startswith("mini_pitch: left out ")
    assert "train9.wav" in problem
    assert len(read_task(tmp_path / "out" / "mini_pitch-v1-mini").annotations["train"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"filename": "1-dog.wav", "class": "dog"}], "has another layout (KeyError: 'fold')"),
        ([{"filename": "1-dog.wav", "fold": "one", "category": "dog"}], "has another layout"),
    ],
)
def test_another_layout_is_refused_by_name(
    data: Path, tmp_path: Path, rows: list[dict[str, object]], reason: str
) -> None:
    write_table(data / "esc10" / "esc10.csv", rows)
    problems = list(make_mini(data, tmp_path / "out"))
    assert [problem.partition(":")[0] for problem in problems] == ["mini_esc10", "mini_office"]
    assert all(reason in problem for problem in problems)


@pytest.mark.slow
@needs_data
def test_real_office_mixtures_have_events_of_every_class(tmp_path: Path) -> None:
    """From one clip of each class in three folds."""
    assert DATA is not None
    with (DATA / "esc10" / "esc10.csv").open(newline="") as file:
        first = {(row["fold"], row["category"]): row for row in csv.DictReader(file) if row["fold"] in "123"}
    write_table(tmp_path / "esc10" / "esc10.csv", [dict(row) for row in first.values()])
    (tmp_path / "esc10" / "audio").symlink_to(DATA / "esc10" / "audio")
    clips = list(mini.MINIS["mini_office"].clips(tmp_path))
    events = [event for clip in clips for event in clip.annotation]
    assert [clip.split for clip in clips] == ["train", "train", "valid", "test"]
    assert len({event["label"] for event in events}) == 10
    assert all(np.abs(clip.sound).max() <= 1 for clip in clips if isinstance(clip.sound, np.ndarray))


@needs_data
def test_a_real_piano_note_starts_when_its_event_says() -> None:
    """The level of 30 ms rises at the first onset of a piece."""
    assert DATA is not None
    clip = next(mini.MINIS["mini_piano"].clips(DATA))
    assert isinstance(clip.sound, Path)
    wave = audio.load(clip.sound, RATE)
    first = round(min(event["start"] for event in clip.annotation) * RATE / 1000)
    before, after = wave[max(0, first - 960) : first], wave[first : first + 960]
    assert after.std() > 10 * before.std()
    assert soundfile.info(clip.sound).duration == pytest.approx(20, abs=0.5)

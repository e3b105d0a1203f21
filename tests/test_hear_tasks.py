"""HEAR task folders: read in every split mode, refused with a reason, listed, resampled."""

import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE, tone
from hear_folders import change, make_task, silence

from patchout.cli.hear import main
from patchout.hear.sources import ARCHIVE, sources, task_of
from patchout.hear.tasks import BOARD_OF, BOARDS, TABLE, TaskError, find_tasks, read_task
from patchout.hear.wavs import inspect, read_wav, resample, write_wav

# -- the table -----------------------------------------------------------------------------------------------


def test_the_table_has_the_19_tasks_of_the_leaderboard() -> None:
    wanted = {
        *(
            "beehive_states",
            "beijing_opera",
            "tfds_crema_d",
            "dcase2016_task2",
            "esc50",
            "fsd50k",
            "tfds_gtzan",
        ),
        *("tfds_gtzan_music_speech", "gunshot_triangulation", "libricount", "maestro_5h", "mridangam_stroke"),
        *(
            "mridangam_tonic",
            "nsynth_pitch_50h",
            "nsynth_pitch_5h",
            "speech_commands_5h",
            "speech_commands_full",
        ),
        *("vocal_imitation", "vox_lingua_top10"),
    }
    assert set(BOARDS) == wanted
    assert len(BOARDS) == len(wanted) == 19


def test_the_paper_has_5_speech_7_music_and_7_general_tasks() -> None:
    rows = [row for name, row in TABLE.items() for _ in row.modes if name != "beehive_states_fold1"]
    categories = [row.category for row in rows]
    assert [categories.count(name) for name in ("speech", "music", "general")] == [5, 7, 7]


def test_only_the_official_mode_stands_on_the_leaderboard(tmp_path: Path) -> None:
    boards = {mode: BOARD_OF.get(("nsynth_pitch", mode)) for mode in ("5h", "50h", "small")}
    assert boards == {"5h": "nsynth_pitch_5h", "50h": "nsynth_pitch_50h", "small": None}
    assert BOARD_OF["esc50", "full"] == "esc50"
    assert BOARD_OF["beehive_states_fold1", "full"] == "beehive_states"
    assert inspect(make_task(tmp_path))["board"] == ""


# -- reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["trainvaltest", "presplit_kfold", "new_split_kfold"])
@pytest.mark.parametrize("kind", ["scene", "event"])
def test_every_kind_and_split_mode_is_read(tmp_path: Path, kind: str, mode: str) -> None:
    task = read_task(make_task(tmp_path, kind=kind, mode=mode))
    assert (task.embedding_type, task.split_mode, task.labels) == (kind, mode, ("high", "low"))
    assert [len(clips) for clips in task.annotations.values()] == [3, 3, 3]
    assert inspect(task.folder)["rates"] == [RATE]


def test_every_fold_tests_once_and_the_next_one_chooses(tmp_path: Path) -> None:
    task = read_task(make_task(tmp_path, mode="presplit_kfold"))
    assert [(p.test, p.valid, p.train) for p in task.partitions()] == [
        ("fold00", "fold01", ("fold02",)),
        ("fold01", "fold02", ("fold00",)),
        ("fold02", "fold00", ("fold01",)),
    ]


def test_train_valid_test_is_one_partition(tmp_path: Path) -> None:
    assert read_task(make_task(tmp_path)).partitions() == [(("train",), "valid", "test")]


def test_files_are_shuffled_as_the_kit_does(tmp_path: Path) -> None:
    folder = make_task(tmp_path)
    (folder / "train.json").write_text(json.dumps({name: ["high"] for name in "abcdefgh"}))
    (folder / "valid.json").write_text(json.dumps({name: ["high"] for name in "abcde"}))
    order = read_task(folder).shuffled()
    assert ("".join(order["train"]), "".join(order["valid"])) == ("ebfcadhg", "aebcd")


def test_labels_that_are_numbers_become_strings(tmp_path: Path) -> None:
    folder = make_task(tmp_path, kind="event")
    (folder / "labelvocabulary.csv").write_text("idx,label\n0,60\n1,61\n")
    for split in ("train", "valid", "test"):
        (folder / f"{split}.json").write_text(json.dumps({"a.wav": [{"label": 61, "start": 0, "end": 5}]}))
    assert read_task(folder).annotations["train"]["a.wav"][0]["label"] == "61"


def label_outside(folder: Path) -> None:
    change(folder / "valid.json", **{"valid1.wav": ["loud"]})


def two_labels(folder: Path) -> None:
    change(folder / "valid.json", **{"valid1.wav": ["high", "low"]})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "valid.json").unlink(), "valid.json is missing"),
        (lambda folder: (folder / "task_metadata.json").unlink(), "task_metadata.json is missing"),
        (lambda folder: (folder / "test.json").write_text("{"), "test.json: is not JSON"),
        (lambda folder: (folder / "test.json").write_text("{}"), "test.json has no clips"),
        (lambda folder: (folder / "test.json").write_text("[]"), "no HEAR task as distributed"),
        (lambda folder: (folder / "labelvocabulary.csv").write_text("idx,label\n1,high\n"), "count from 0"),
        (
            lambda folder: (folder / "labelvocabulary.csv").write_bytes(b"idx,label\n0,\xff\n"),
            "no HEAR task as",
        ),
        (
            lambda folder: change(folder / "task_metadata.json", splits=["train", "test"]),
            "needs test train valid",
        ),
        (lambda folder: change(folder / "task_metadata.json", split_mode="random"), "split_mode is 'random'"),
        (lambda folder: change(folder / "task_metadata.json", evaluation=["f1"]), r"evaluation is \['f1'\]"),
        (
            lambda folder: change(folder / "task_metadata.json", task_name="esc50"),
            "split_mode is 'trainvaltest', this",
        ),
        (
            lambda folder: change(folder / "task_metadata.json", sample_duration=0),
            "sample_duration is 0, not some",
        ),
        (
            lambda folder: change(folder / "task_metadata.json", sample_duration="4"),
            "sample_duration is '4', not some",
        ),
        (lambda folder: change(folder / "task_metadata.json", evaluation_params=None), "is None, not grids"),
        (
            lambda folder: change(
                folder / "task_metadata.json",
                evaluation_params={"task_specific_param_grid": {"hidden_dim": []}},
            ),
            "not grids with lists of values",
        ),
        (
            lambda folder: (folder / "labelvocabulary.csv").write_text("idx,label\n0,low\n1,low\n"),
            "'low' twice",
        ),
        (label_outside, "valid1.wav the label 'loud', which is not in the vocabulary"),
        (two_labels, "valid1.wav 2 labels, multiclass needs one"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(
    tmp_path: Path, spoil: Callable[[Path], object], reason: str
) -> None:
    folder = make_task(tmp_path)
    spoil(folder)
    with pytest.raises(TaskError, match=reason) as error:
        read_task(folder)
    assert str(folder) in str(error.value)


def test_files_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    folder = make_task(tmp_path)
    before = read_task(folder)
    for path in folder.glob("*.*"):
        path.write_text(path.read_text(), encoding="utf-8-sig")
    assert read_task(folder) == before


def test_labels_that_no_clip_of_a_split_has(tmp_path: Path) -> None:
    folder = make_task(tmp_path)
    task = read_task(folder)
    assert [task.unheard(split) for split in task.splits] == [[]] * 3
    clips = json.loads((folder / "test.json").read_text())
    (folder / "test.json").write_text(json.dumps({key: ["high"] for key in clips}))
    assert read_task(folder).unheard("test") == ["low"]
    events = read_task(make_task(tmp_path / "events", kind="event"))
    assert events.unheard("test") == []


def test_an_event_that_ends_before_it_starts_is_refused(tmp_path: Path) -> None:
    folder = make_task(tmp_path, kind="event")
    change(folder / "test.json", **{"test0.wav": [{"label": "low", "start": 9, "end": 3}]})
    with pytest.raises(TaskError, match=r"an event of test0.wav"):
        read_task(folder)


def test_tasks_are_found_by_either_name(tmp_path: Path) -> None:
    for name in ("toy", "toy_two"):
        make_task(tmp_path, task_name=name)
    assert [path.name for path in find_tasks(tmp_path, ["toy"])] == ["toy-v1-full"]
    assert len(find_tasks(tmp_path, ["toy", "toy_two-v1-full"])) == len(find_tasks(tmp_path)) == 2
    with pytest.raises(
        TaskError, match=r"no task toys \(did you mean toy\?\); there is toy-v1-full, toy_two-v1-full"
    ):
        find_tasks(tmp_path, ["toys"])


# -- wavs ----------------------------------------------------------------------------------------------------


def test_a_missing_rate_is_refused_with_the_command(tmp_path: Path) -> None:
    task = read_task(make_task(tmp_path))
    command = f"patchout hear resample --tasks {tmp_path} --rate 16000"
    with pytest.raises(TaskError, match=rf"9 wavs are missing at 16000 Hz.*there is 32000 Hz.*{command}$"):
        task.require(16_000)
    (task.folder / str(RATE) / "train" / "train0.wav").unlink()
    with pytest.raises(
        TaskError, match=r"1 wavs are missing at 32000 Hz.*no other rate; unpack the archive again$"
    ):
        task.require(RATE)


def test_a_wav_at_another_rate_is_named(tmp_path: Path) -> None:
    path = make_task(tmp_path) / str(RATE) / "train" / "train0.wav"
    silence(path, 0.5, 16_000)
    with pytest.raises(TaskError, match=r"train0.wav: has 16000 Hz, 1 channels"):
        read_wav(path, RATE, 0.5)


@pytest.mark.parametrize(
    "spoil", [Path.unlink, lambda path: path.write_bytes(b"RIFF"), lambda path: silence(path, 0.4)]
)
def test_a_broken_wav_makes_its_rate_damaged(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    folder = make_task(tmp_path)
    spoil(folder / str(RATE) / "test" / "test2.wav")
    found = inspect(folder)
    assert found["rates"] == []
    assert [("1 wavs at 32000 Hz" in text, "test/test2.wav" in text) for text in found["problems"]] == [
        (True, True)
    ]


def test_written_wavs_are_cut_filled_and_clipped(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.array([0.5, 2.0, -2.0]), RATE, duration_s=4 / RATE)
    write_wav(tmp_path / "b.wav", np.array([0.5, 2.0, -2.0]), RATE, duration_s=2 / RATE)
    assert soundfile.read(tmp_path / "a.wav", dtype="int16")[0].tolist() == [16384, 32767, -32768, 0]
    assert soundfile.read(tmp_path / "b.wav", dtype="int16")[0].tolist() == [16384, 32767]
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"


# -- resampling ----------------------------------------------------------------------------------------------


def test_a_resampled_tone_is_the_same_tone(tmp_path: Path) -> None:
    task = read_task(make_task(tmp_path))
    assert list(resample(task, 16_000)) == [""] * 9
    wave = read_wav(task.folder / "16000" / "valid" / "valid1.wav", 16_000, 0.5)
    expected = tone(0.5, 410.0, rate=16_000)
    assert len(wave) == len(expected)
    assert np.abs(wave - expected)[500:-500].max() < 1e-3


def test_only_what_is_missing_is_resampled(tmp_path: Path) -> None:
    task = read_task(make_task(tmp_path))
    list(resample(task, 16_000))
    lost, kept = (task.folder / "16000" / "train" / f"train{index}.wav" for index in (0, 1))
    before = lost.read_bytes()
    lost.unlink()
    kept.write_bytes(b"mine")
    assert len(list(resample(task, 16_000))) == 1
    assert (lost.read_bytes(), kept.read_bytes()) == (before, b"mine")


def test_a_broken_wav_is_named_and_the_others_are_resampled(tmp_path: Path) -> None:
    task = read_task(make_task(tmp_path))
    (task.folder / str(RATE) / "train" / "train1.wav").write_bytes(b"noise")
    problems = [text for text in resample(task, 16_000) if text]
    assert [f"{RATE}/train/train1.wav: cannot be read" in text for text in problems] == [True]
    assert len(list((task.folder / "16000").rglob("*.wav"))) == 8


# -- the command ---------------------------------------------------------------------------------------------


def test_list_says_what_is_whole_and_what_is_damaged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_task(tmp_path)
    (make_task(tmp_path, task_name="broken") / "test.json").unlink()
    assert main(["list", "--tasks", str(tmp_path), "--format", "json"]) == 1
    out, err = capfd.readouterr()
    found = {record["task"]: record for record in json.loads(out)}
    assert [found[name]["state"] for name in ("toy-v1-full", "broken-v1-full")] == ["complete", "damaged"]
    assert found["toy-v1-full"]["rates"] == [RATE]
    assert "broken-v1-full: test.json is missing" in err


def test_list_names_the_official_tasks_that_are_not_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_task(tmp_path, task_name="speech_commands", evaluation=["top1_acc"])
    assert main(["list", "--tasks", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert (
        out == "speech_commands-v1-full  complete  category speech  score top1_acc  clips 9  rates [32000]\n"
    )
    assert "of the 19 tasks of HEAR, not here: beehive_states, " in err
    assert "speech_commands_full" not in err
    assert "speech_commands-v0.0.2-full" not in err
    assert (
        "  esc50-v2.0.0-full: 2000 clips, 2.8 h, 0.97 GB at 48 kHz; CC BY-NC 3.0 (https://github.com" in err
    )


def test_list_without_a_folder_says_where_the_tasks_are(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"patchout: the 19 tasks of HEAR are archives at {ARCHIVE}: give yours as --tasks")
    assert all(f"  {source.folder}: {source.clips} clips" in err for source in sources())


def test_every_task_of_the_leaderboard_has_a_source() -> None:
    assert {BOARD_OF[task_of(source.folder)] for source in sources()} == set(BOARDS)
    assert len(sources()) == len(BOARD_OF) == 20


def test_the_documentation_has_every_source() -> None:
    page = (Path(__file__).parents[1] / "docs" / "hear" / "README.md").read_text(encoding="utf-8")
    for source in sources():
        size = f"{source.clips} | {source.hours:g} | {source.size_gb:.2g}"
        assert f"| `{source.folder}` | {size} | {source.licence} | <{source.source}> |" in page


def test_archives_are_to_be_unpacked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The sentence names the command; run, it leaves the folder that the sentence names."""
    folder = tmp_path / "down loads"
    folder.mkdir()
    task = make_task(tmp_path / "tasks")
    with tarfile.open(folder / "hear2021-toy-v1-full-48000.tar.gz", "w:gz") as archive:
        archive.add(task, f"tasks/{task.name}")
    with pytest.raises(TaskError, match=r"holds archives \(1\) and no task folder: untar") as error:
        find_tasks(folder)
    subprocess.run(str(error.value).split("`")[1], shell=True, check=True)
    with pytest.raises(TaskError, match=f"the task folders lie deeper: give {folder}/tasks"):
        find_tasks(folder)
    assert [path.name for path in find_tasks(folder / "tasks")] == [task.name]
    with pytest.raises(TaskError, match=f"is itself a task folder: give {folder}/tasks"):
        find_tasks(folder / "tasks" / task.name)


def test_an_archive_beside_task_folders_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make_task(tmp_path)
    for name in ("toy", "esc50"):
        (tmp_path / f"hear2021-{name}-v1-full-48000.tar.gz").touch()
    assert main(["list", "--tasks", str(tmp_path)]) == 0
    err = capfd.readouterr().err
    assert "hear2021-esc50-v1-full-48000.tar.gz is not unpacked: untar these with" in err
    assert "hear2021-toy" not in err


def test_an_empty_folder_says_where_the_tasks_are(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="there is nothing; the tasks of HEAR are at"):
        find_tasks(tmp_path)


def test_the_resample_command_says_what_failed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = make_task(tmp_path)
    command = ["resample", "--tasks", str(tmp_path), "--rate", "16000"]
    assert main(command) == 0
    (folder / "16000" / "train" / "train0.wav").unlink()
    silence(folder / str(RATE) / "train" / "train0.wav", 0.5, 8_000)
    assert main(command) == 1
    assert "has 8000 Hz" in capfd.readouterr().err


def test_a_rate_that_no_model_asks_for_is_refused(tmp_path: Path) -> None:
    make_task(tmp_path)
    with pytest.raises(ValueError, match="--rate 12345 is not allowed") as error:
        main(["resample", "--tasks", str(tmp_path), "--rate", "12345"])
    assert not isinstance(error.value, TaskError)

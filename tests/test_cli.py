"""The command as a user runs it: results on standard output, reasons on standard error,
exit codes 0, 1 and 2.
"""

import csv
import io
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from conftest import RATE, noise, tiny_config, tone, write_wav
from safetensors.torch import save_file

from patchout.checkpoint.own import export_passt, save
from patchout.cli import output
from patchout.cli.main import run_command
from patchout.data.augment import keyed
from patchout.files import distinct
from patchout.inference.tagging import Tags
from patchout.models.passt import Passt
from patchout.training.signals import Stopped


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run one command line in this process."""

    def call(*args: object) -> Ran:
        try:
            code = run_command([str(arg) for arg in args])
        except SystemExit as stop:  # the parser's own way out
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return Ran(code, out, err)

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny checkpoint."""
    path = tmp_path / "tiny.safetensors"
    save(Passt(tiny_config(), rng=torch.Generator().manual_seed(0)), path)
    return path


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "sound.wav", noise(2.0))


# -- tag: formats --------------------------------------------------------------------------------------------


def test_json_has_the_promised_keys(run: Run, model: Path, sound: Path) -> None:
    ran = run("tag", sound, "--model", model, "--top", 2, "--events", "--format", "json")
    (record,) = json.loads(ran.out)
    assert ran.code == 0
    assert list(record) == ["file", "duration_s", "tags", "events", "warning", "error"]
    assert record["file"] == str(sound)
    assert record["duration_s"] == 2.0
    assert len(record["tags"]) == 2
    assert record["warning"] is record["error"] is None
    assert all(list(event) == ["label", "start_s", "end_s", "score"] for event in record["events"])


def test_all_formats_tell_the_same_labels_in_the_same_order(run: Run, model: Path, sound: Path) -> None:
    options = ("--model", model, "--top", 3, "--events", "--threshold", 0.3)
    (record,) = json.loads(run("tag", sound, *options, "--format", "json").out)
    wanted = [row["label"] for row in record["tags"] + record["events"]]
    assert len(wanted) > 3
    table = run("tag", sound, *options).out.splitlines()[1:]
    assert [row.split()[0] for row in table if row and row.strip() != "events:"] == wanted
    rows = list(csv.DictReader(io.StringIO(run("tag", sound, *options, "--format", "csv").out)))
    assert [row["label"] for row in rows] == wanted
    audacity = run("tag", sound, *options, "--format", "audacity").out.splitlines()
    passed = [row["label"] for row in record["tags"] if row["passed"]]
    assert [row.split("\t")[2] for row in audacity] == [row["label"] for row in record["events"]]
    whole = run("tag", sound, *(o for o in options if o != "--events"), "--format", "audacity").out
    assert whole.splitlines() == [f"0.000\t2.000\t{label}" for label in passed]


def test_audacity_takes_one_file(run: Run, model: Path, sound: Path) -> None:
    ran = run("tag", sound, sound, "--model", model, "--format", "audacity")
    assert ran.code == 2
    assert "use --format csv" in ran.err


@pytest.mark.slow
def test_folders_and_patterns_are_searched(run: Run, model: Path, class_folder: Path) -> None:
    by_folder = json.loads(run("tag", class_folder, "--model", model, "--format", "json").out)
    by_pattern = json.loads(run("tag", f"{class_folder}/*/*.wav", "--model", model, "--format", "json").out)
    assert len(by_folder) == 12
    assert by_folder == by_pattern


@pytest.mark.slow
def test_one_picture(run: Run, model: Path, sound: Path, tmp_path: Path) -> None:
    ran = run("tag", sound, "--model", model, "--plot", tmp_path / "picture.png")
    assert ran.code == 0
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "events:" not in ran.out


@pytest.mark.slow
def test_a_folder_of_pictures(run: Run, model: Path, class_folder: Path, tmp_path: Path) -> None:
    ran = run(
        "tag",
        class_folder / "bell",
        class_folder / "dog" / "0.wav",
        "--model",
        model,
        "--plot",
        tmp_path / "all",
    )
    assert ran.code == 0
    names = sorted(path.name for path in (tmp_path / "all").iterdir())
    assert names == ["0-1.png", "0-2.png", "1.png", "2.png", "3.png"]


def test_one_picture_for_several_files_is_refused(run: Run, model: Path, sound: Path, tmp_path: Path) -> None:
    assert run("tag", sound, sound.parent, "--model", model, "--plot", tmp_path / "one.png").code == 2


def test_label_names_can_be_brought(run: Run, sound: Path, tmp_path: Path) -> None:
    weights = export_passt(Passt(tiny_config(width=64, heads=1)))
    torch.save(weights, tmp_path / "fsd.pt")
    (tmp_path / "vocabulary.csv").write_text("0,Bark,/m/1\n1,Bell,/m/2\n2,Rain,/m/3\n")
    ran = run(
        "tag",
        sound,
        "--model",
        tmp_path / "fsd.pt",
        "--labels",
        tmp_path / "vocabulary.csv",
        "--format",
        "json",
    )
    assert {row["label"] for row in json.loads(ran.out)[0]["tags"]} == {"Bark", "Bell", "Rain"}


# -- tag: bad input ------------------------------------------------------------------------------------------


def bad_files(folder: Path) -> dict[str, str]:
    """File name -> what the message must say."""
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("this is a text file\n" * 50)
    nan = noise(0.5)
    nan[100] = np.nan
    soundfile.write(folder / "nan.wav", nan, RATE, subtype="FLOAT")
    (folder / "folder.wav").mkdir()
    return {"missing.wav": "missing.wav", "empty.wav": "empty", "text.wav": "text.wav", "nan.wav": "NaN"}


def test_files_that_cannot_be_tagged_say_why(run: Run, model: Path, tmp_path: Path) -> None:
    for name, reason in bad_files(tmp_path).items():
        ran = run("tag", tmp_path / name, "--model", model, "--format", "json")
        (record,) = json.loads(ran.out)
        assert ran.code == 1
        assert record["tags"] == record["events"] == []
        assert reason in record["error"]
        assert record["error"] in ran.err


def odd_files(folder: Path) -> list[Path]:
    """Sounds that are unusual but fine."""
    paths = [
        folder / name
        for name in ("short.wav", "one.wav", "8bit.wav", "fast.wav", "six.wav", "große Straße – 音.wav")
    ]
    soundfile.write(paths[0], noise(0.01), RATE)
    soundfile.write(paths[1], np.array([0.5], np.float32), RATE)
    soundfile.write(paths[2], tone(0.5), RATE, subtype="PCM_U8")
    soundfile.write(paths[3], tone(0.5, rate=192_000), 192_000)
    soundfile.write(paths[4], np.stack([noise(0.5, seed) for seed in range(6)], axis=1), RATE)
    soundfile.write(paths[5], tone(0.5), RATE)
    return paths


def test_odd_files_are_tagged(run: Run, model: Path, tmp_path: Path) -> None:
    ran = run("tag", *odd_files(tmp_path), "--model", model, "--format", "json")
    records = json.loads(ran.out)
    assert ran.code == 0
    assert [record["error"] for record in records] == [None] * 6
    assert records[5]["file"].endswith("große Straße – 音.wav")


def test_sounds_that_hold_less_than_half_of_what_the_model_hears_are_named(
    run: Run, model: Path, tmp_path: Path
) -> None:
    """Of the ten sounds of ESC-10 the built-in model knows 71 of 80 at 44.1 kHz, 32 at 8 kHz."""
    for rate in (8000, 11025, 16000, 44100):
        soundfile.write(tmp_path / f"{rate}.wav", noise(1.0)[:rate], rate)
    ran = run("tag", tmp_path / "16000.wav", tmp_path / "44100.wav", "--model", model)
    assert (ran.code, ran.err.count("sampled")) == (0, 0)
    ran = run("tag", *tmp_path.glob("*.wav"), "--model", model)
    (text,) = [line for line in ran.err.splitlines() if "sampled" in line]
    assert all(f"{rate}.wav ({rate} Hz)" in text for rate in (8000, 11025))
    assert "44100.wav" not in text
    assert "less than half of the model's 32000 Hz; unless it was trained on such sounds" in text
    ran = run("tag", *[tmp_path / "8000.wav"] * 5, "--model", model)
    assert "8000.wav (8000 Hz) and 2 more: sampled" in ran.err


@pytest.mark.parametrize("command", ["tag", "embed"])
def test_bulk_jobs_name_them_too_and_keep_the_rate_of_each(
    run: Run, model: Path, tmp_path: Path, command: str
) -> None:
    for rate in (8000, 11025, 16000):
        soundfile.write(tmp_path / f"{rate}.wav", noise(1.0)[:rate], rate)
    out, more = tmp_path / "rows.parquet", ["--kind", "timestamp"] if command == "embed" else []
    ran = run(command, *sorted(tmp_path.glob("*.wav")), "--model", model, "--out", out, *more)
    assert ran.code == 0
    (text,) = [line for line in ran.err.splitlines() if "sampled" in line]
    assert "11025.wav (11025 Hz), " in text
    assert "/8000.wav (8000 Hz): sampled at less than half of the model's 32000 Hz" in text
    rows = pq.read_table(out).to_pylist()
    assert {(Path(row["file"]).stem, row["sample_rate"]) for row in rows} == {
        (str(rate), rate) for rate in (8000, 11025, 16000)
    }


@pytest.mark.slow
def test_a_truncated_mp3_is_used_as_far_as_it_goes(run: Run, model: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "cut.mp3", tone(4.0), RATE)
    content = (tmp_path / "cut.mp3").read_bytes()
    (tmp_path / "cut.mp3").write_bytes(content[: len(content) // 2])
    ran = run("tag", tmp_path / "cut.mp3", "--model", model, "--format", "json")
    (record,) = json.loads(ran.out)
    assert ran.code == 0
    assert 1.0 < record["duration_s"] < 3.0
    assert "cut.mp3" in record["warning"]
    assert record["warning"] in ran.err


@pytest.mark.slow
def test_three_broken_files_of_fifty(run: Run, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    for index in range(47):
        write_wav(folder / f"{index:02}.wav", noise(0.2, index))
    (folder / "x1.wav").write_text("broken")
    (folder / "x2.wav").touch()
    (folder / "x3.wav").write_bytes(b"RIFF")
    ran = run("tag", folder, "--model", model, "--format", "json")
    records = json.loads(ran.out)
    assert ran.code == 1
    assert len(records) == 50
    assert sum(len(record["tags"]) > 0 for record in records) == 47
    assert all(f"x{index}.wav" in ran.err for index in (1, 2, 3))


def test_the_segments_of_a_list_are_tagged_at_their_times(run: Run, model: Path, sound: Path) -> None:
    table = sound.parent / "list.csv"
    table.write_text(f"file,onset,offset\n{sound.name},0.5,1\n{sound.name},soon,\n{sound.name},,,4\n")
    ran = run("tag", table, "--model", model, "--format", "json", "--events", "--threshold", "0.01")
    whole, times, cells = json.loads(ran.out)
    assert (whole["start_s"], whole["end_s"], whole["duration_s"]) == (0.5, 1.0, 0.5)
    assert {(event["start_s"], event["end_s"]) for event in whole["events"]} == {(0.5, 1.0)}
    assert times["error"] == f"{sound}: the onset 'soon' is no number: write seconds, or leave the cell empty"
    assert "line 4: has 4 cells" in cells["error"]
    assert ran.code == 1


def test_an_empty_folder_and_a_pattern_without_match(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    assert "without sound files" in run("tag", tmp_path / "none", "--model", model).err
    ran = run("tag", f"{tmp_path}/none/*.wav", "--model", model)
    assert ran.code == 1
    assert "no file matches" in ran.err


def test_a_file_whose_name_begins_like_an_option(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_wav(tmp_path / "-dash.wav", tone(1.0))
    ran = run("tag", "-dash.wav", "--model", model)
    assert (
        ran.code,
        "patchout: -dash.wav: is there, but begins like an option: give ./-dash.wav" in ran.err,
    ) == (
        2,
        True,
    )
    assert run("tag", "./-dash.wav", "--model", model).code == 0
    assert "begins like" not in run("tag", "-other.wav", "--model", model).err


def test_no_files_at_all_is_wrong_usage(run: Run, model: Path) -> None:
    ran = run("tag", "--model", model)
    assert ran.code == 2
    assert "no files given" in ran.err


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (("--top", "0"), "--top counts labels and must be at least 1, got 0"),
        (("--batch-size", "0"), "--batch-size must be at least 1"),
        (("--threshold", "1.5"), "thresholds must be"),
        (("--device", "tpu"), "here are auto"),
        (("--plot", "picture.gif"), "png"),
        (("--frmat", "json"), "frmat"),
        (("--format", "yaml"), "yaml"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    run: Run, model: Path, sound: Path, args: tuple[str, ...], reason: str
) -> None:
    ran = run("tag", sound, "--model", model, *args)
    assert ran.code == 2
    assert reason in ran.err
    assert ran.out == ""


@pytest.mark.slow
def test_an_unknown_model_lists_near_names(run: Run, sound: Path) -> None:
    ran = run("tag", sound, "--model", "passt-s-ap467")
    assert ran.code == 2
    assert "passt-s-ap476" in ran.err


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign", "missing"])
def test_checkpoints_that_cannot_be_used(run: Run, model: Path, sound: Path, damage: str) -> None:
    content = bytearray(model.read_bytes())
    if damage == "truncated":
        model.write_bytes(content[:-100])
    elif damage == "flipped":
        content[-50] ^= 0xFF
        model.write_bytes(content)
    elif damage == "foreign":
        save_file({"weight": torch.zeros(3)}, model)
    else:
        model.unlink()
    ran = run("tag", sound, "--model", model)
    assert ran.code == 1
    assert "tiny.safetensors" in ran.err
    assert ran.out == ""


@pytest.mark.slow
def test_an_output_folder_that_cannot_be_written(
    run: Run, model: Path, sound: Path, class_folder: Path
) -> None:
    ran = run("tag", sound, "--model", model, "--plot", sound / "below-a-file" / "picture.png")
    assert ran.code == 1
    assert "below-a-file" in ran.err
    small = ("--size", "tiny", "--depth", 1, "--split", "", "--batch", 4)
    ran = run("train", "esc10", "--data", class_folder, "--out", sound / "run", *small)
    assert ran.code == 1
    assert "sound.wav" in ran.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
@pytest.mark.parametrize("place", ["/dev/full", "/dev/full/x", "a file", "a file/x", "/proc/x"])
@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_what_is_in_the_way_of_a_folder_is_named(
    run: Run, model: Path, sound: Path, option: str, place: str, tmp_path: Path
) -> None:
    (tmp_path / "a file").touch()
    ran = run("tag", sound, "--model", model, option, tmp_path / place)
    what = "is a device: name a file or" if place.startswith("/dev") else "is a file: "
    what = "the system keeps no files there: " if place == "/proc/x" else what
    path = place if place == "/proc/x" else tmp_path / place.removesuffix("/x")
    assert (ran.code, f"patchout: {path}: {what}" in ran.err) == (1, True), ran.err


@pytest.mark.parametrize(
    ("command", "option", "name"),
    [
        ("export", "--out", "x.onnx"),
        ("embed", "--out", "x.parquet"),
        ("tag", "--out", "x.csv"),
        ("tag", "--plot", "x.png"),
    ],
)
def test_a_place_for_a_file_is_refused_before_anything_is_loaded(
    run: Run,
    sound: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    option: str,
    name: str,
) -> None:
    """The model is not looked for: its name would be refused."""
    args = ("no-model",) if command == "export" else (sound, "--model", "no-model")
    if Path("/proc").is_dir():
        ran = run(command, *args, option, f"/proc/{name}")
        expected = f"patchout: /proc/{name}: the system keeps no files there: name a place on a disk\n"
        assert (ran.code, ran.err) == (1, expected)
    monkeypatch.setattr(os, "access", lambda *_: False)
    ran = run(command, *args, option, tmp_path / name)
    assert (ran.code, ran.err) == (1, f"patchout: {tmp_path}: cannot be written to: name another folder\n")


# -- the other commands --------------------------------------------------------------------------------------


def test_models_lists_the_zoo(run: Run) -> None:
    ran = run("models")
    assert ran.code == 0
    assert "passt-s-ap476" in ran.out
    assert "Apache-2.0" in ran.out
    assert {"name", "score", "licence"} <= json.loads(run("models", "--format", "json").out)[0].keys()


def test_models_tells_what_one_of_them_knows_and_cannot_do(run: Run, tmp_path: Path) -> None:
    model = Passt(tiny_config(), rng=keyed("card"))
    save(model, tmp_path / "mine.safetensors")
    text = run("models", tmp_path / "mine.safetensors").out
    assert text.startswith("# mine.safetensors\n")
    for part in (*model.config.labels, "## Data and licences", "## Limits", f"{model.config.mel.f_max:g} Hz"):
        assert part in text


@pytest.mark.slow
def test_train_then_evaluate_then_tag(run: Run, class_folder: Path, tmp_path: Path) -> None:
    rows = [
        f"{path.relative_to(class_folder)},{path.parent.name},{path.stem}"
        for path in class_folder.rglob("*.wav")
    ]
    (class_folder / "clips.csv").write_text("\n".join(["filename,category,fold", *sorted(rows)]))
    small = (
        "--epochs",
        2,
        "--batch",
        3,
        "--depth",
        1,
        "--clip-s",
        1,
        "--patchout-time",
        2,
        "--split",
        3,
        "--lr",
        3e-4,
    )
    ran = run("train", "esc10", "--data", class_folder, "--out", tmp_path / "run", *small)
    assert ran.code == 0, ran.err
    assert "accuracy" in ran.out
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 2
    result = run("evaluate", tmp_path / "run", "--data", class_folder, "--split", 3, "--format", "json")
    record = json.loads(result.out)
    assert result.code == 0
    assert record["clips"] == 3
    assert 0 <= record["accuracy"] <= 1
    assert "was trained on" not in result.err
    known = run("evaluate", tmp_path / "run" / "model.safetensors", "--data", class_folder)
    assert "was trained on 9 of these 12 clips, which it may know by heart" in known.err
    assert run("tag", class_folder / "bell", "--model", tmp_path / "run" / "model.safetensors").code == 0


def test_evaluate_names_what_it_could_not_read(run: Run, model: Path, class_folder: Path) -> None:
    (class_folder / "dog" / "0.wav").write_text("broken")
    ran = run("evaluate", model, "--data", class_folder, "--format", "json")
    record = json.loads(ran.out)
    assert ran.code == 1
    assert record["clips"] == 11
    assert len(record["failed"]) == 1
    assert "0.wav" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [
        ((), 2, "usage"),
        (("tga",), 2, "did you mean tag"),
        (("train",), 2, "recipes and their variants:"),
        (("train", "esc11", "--data", "x", "--out", "y"), 2, "did you mean esc10"),
        (("train", "esc10"), 2, "--data"),
        (("evaluate", "sounds-tiny"), 2, "--data"),
        (("evaluate", "sounds-tiny", "--data", "nowhere"), 1, "nowhere: no such folder"),
        (("train", "esc10", "--data", "nowhere", "--out", "y"), 1, "nowhere: no such folder"),
    ],
)
def test_mistakes_are_answered_in_one_line(run: Run, args: tuple[str, ...], code: int, reason: str) -> None:
    ran = run(*args)
    assert ran.code == code
    assert reason in ran.err


@pytest.mark.parametrize("command", ["tag", "train", "evaluate", "models"])
def test_every_command_has_a_help_page(run: Run, command: str) -> None:
    ran = run(command, "--help")
    assert ran.code == 0
    assert f"patchout {command}" in ran.out
    assert command in run("--help").out


def test_the_version(run: Run) -> None:
    assert run("--version").out.startswith("patchout 0.")


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error(model: Path, class_folder: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "patchout",
        "tag",
        str(class_folder),
        "--model",
        str(model),
        "--format",
        "csv",
    ]
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert b"Traceback" not in ran.stderr
    assert b"BrokenPipe" not in ran.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is of glibc")
def test_a_command_keeps_the_memory_that_it_frees() -> None:
    """Else every large tensor costs a page fault for each 4 KB, in training up to a fifth of the time."""
    script = """
import resource
from patchout.cli import main

main._keep_memory()
faults = []
for _ in range(3):
    b"x" * 2**26
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[0])
"""
    ran = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True)
    assert int(ran.stdout) < 100


def test_a_result_and_the_bar_never_share_a_line(
    model: Path, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "terminal").open("w+", encoding="utf-8", newline="") as terminal:
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        assert run_command(["tag", str(sound), str(sound), "--model", str(model)]) == 0
        terminal.seek(0)
        before = terminal.read().rpartition(str(sound))[0]
    assert "files" in before
    assert re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", before.rpartition("\x1b[2K")[2]) == ""


def test_a_file_name_of_any_bytes_is_valid_json(capfd: pytest.CaptureFixture[str]) -> None:
    """Python holds a byte that is no letter as a surrogate, which UTF-8 does not take."""
    with output.writer("json", sys.stdout) as write:
        write(Tags("b\udcffd-\u72ac.wav", 1.0, ("dog",), (0.5,)))
    assert json.loads(capfd.readouterr().out)[0]["file"] == "b\udcffd-\u72ac.wav"


def test_a_pattern_matches_files_alone(run: Run, model: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "in" / "a.wav", noise(0.5))
    write_wav(tmp_path / "in" / "deeper" / "b.wav", noise(0.5))
    ran = run("tag", tmp_path / "in" / "*", "--model", model, "--format", "json")
    assert (ran.code, [Path(one["file"]).name for one in json.loads(ran.out)]) == (0, ["a.wav"])


@pytest.mark.slow
def test_a_folder_of_pictures_may_have_a_dot_in_its_name(
    run: Run, model: Path, sound: Path, tmp_path: Path
) -> None:
    (tmp_path / "my.pictures").mkdir()
    assert run("tag", sound, "--model", model, "--plot", tmp_path / "my.pictures").code == 0
    assert (tmp_path / "my.pictures" / "sound.png").is_file()


def test_a_label_track_of_a_broken_file_is_empty(run: Run, model: Path, tmp_path: Path) -> None:
    ran = run("tag", tmp_path / "missing.wav", "--model", model, "--format", "audacity")
    assert (ran.code, ran.out) == (1, "")


@pytest.mark.slow
def test_training_names_a_broken_file_and_does_the_rest(run: Run, class_folder: Path, tmp_path: Path) -> None:
    (class_folder / "dog" / "text.wav").write_text("this is no sound")
    small = ("--size", "tiny", "--depth", 1, "--clip-s", 1, "--patchout-time", 1, "--epochs", 2, "--batch", 4)
    ran = run("train", "esc10", "--data", class_folder, "--out", tmp_path / "run", "--split", "", *small)
    assert ran.code == 0
    assert "text.wav: is not audio" in ran.err
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.slow
def test_no_picture_takes_the_place_of_another(run: Run, model: Path, sound: Path, tmp_path: Path) -> None:
    sounds = [tmp_path / name for name in ("x/a.wav", "y/a.wav", "z/a-1.wav")]
    for path in sounds:
        write_wav(path, noise(0.5))
    assert run("tag", *sounds, "--model", model, "--plot", tmp_path / "all").code == 0
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["a-1.png", "a-2.png", "a-3.png"]


@pytest.mark.slow
def test_pictures_of_long_names_are_there_and_one_that_fails_is_named(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patchout.inference.figures import tags as tag_figures

    drawn = tag_figures.tags_over_time

    def draw(path: Path, track: tag_figures.TagTrack, *, title: str) -> None:
        if title == "b.wav":
            raise OSError(28, "No space left on device")
        drawn(path, track, title=title)

    monkeypatch.setattr(tag_figures, "tags_over_time", draw)
    for name in ("b", "n" * 240 + "1", "n" * 240 + "2"):
        write_wav(tmp_path / "in" / f"{name}.wav", noise(0.1))
    ran = run("tag", tmp_path / "in", "--model", model, "--plot", tmp_path / "all")
    assert ran.code == 1
    assert re.search(r"b.wav: no picture .*b.png \(No space left on device\)", ran.err)
    assert sorted(path.name[-6:] for path in (tmp_path / "all").iterdir()) == ["-1.png", "-2.png"]


def test_names_that_differ_in_case_have_their_own_pictures() -> None:
    assert distinct(["a", "A", "b"]) == ["a-1", "A-2", "b"]


@pytest.mark.parametrize("saved", ["", "run", "run/seed-1", "before"])
@pytest.mark.parametrize(("stop", "code"), [(Stopped, 143), (KeyboardInterrupt, 130)])
def test_a_training_that_is_stopped_says_what_goes_on(
    stop: type[BaseException],
    code: int,
    saved: str,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The code is no success: what follows in a script, and a scheduler, must not take it for the end."""

    def begin(folder: Path, *, is_saved: bool) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
        if is_saved:
            (folder / "state.pt").touch()

    def stopped(*args: object, **options: object) -> None:
        if saved != "before":
            begin(tmp_path / (saved or "run"), is_saved=bool(saved))
        raise stop

    if saved == "before":  # a run that --restart had not moved aside yet
        begin(tmp_path / "run", is_saved=True)
    monkeypatch.setattr("patchout.training.supervised.run.run", stopped)
    ran = run("train", "folder", "--data", tmp_path, "--out", tmp_path / "run", "--restart")
    continues = "the state is saved: the same command, without --restart, continues"
    anew = "before anything was saved: the same command begins anew"
    assert ran == (
        code,
        "",
        f"patchout: stopped{f', {continues}' if saved.startswith('run') else f' {anew}'}\n",
    )


def test_a_reading_process_that_dies_is_a_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(args: list[str]) -> int:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")

    monkeypatch.setattr("patchout.cli.train.main", die)
    ran = run("train", "esc10")
    assert ran.code == 1
    assert "a process that reads sounds was killed" in ran.err


@pytest.mark.parametrize(
    ("command", "todo"),
    [
        ("tag", "give a smaller --batch-size"),
        ("evaluate", "give a smaller --batch-size"),
        ("train", "give a smaller --batch,"),
        ("pretrain", "give a smaller --batch,"),
        ("embed", "give --device cpu"),
    ],
)
def test_a_full_gpu_is_a_sentence(command: str, todo: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(args: list[str]) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(f"patchout.cli.{command}.main", fill)
    ran = run(command, "x")
    assert ran.code == 1
    assert ran.err.startswith(f"patchout: the memory of the GPU is full: {todo}")
    assert len(ran.err.splitlines()) == 1

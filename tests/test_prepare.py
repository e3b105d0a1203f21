"""`patchout prepare`: what is kept, what is named, what a stopped job leaves behind."""

import csv
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import pytest
import soundfile
from conftest import muxed, noise, tone, write_wav
from datasets import Dataset, load_from_disk
from filelock import FileLock

from patchout.audio.stream import load
from patchout.cli.main import run_command
from patchout.data.prepare.check import KBPS, ORIGINAL, Encoding, check
from patchout.data.prepare.job import plan, prepare
from patchout.data.prepare.listing import Clip
from patchout.data.prepare.shard import Shards, write_shard
from patchout.data.sets import scan
from patchout.errors import InputError


class Ran(NamedTuple):
    code: int
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run `patchout prepare` in this process, with one worker."""

    def call(*args: object) -> Ran:
        try:
            code = run_command(["prepare", *map(str, args), "--workers", "1"])
        except SystemExit as stop:
            code = int(stop.code or 0)
        err = "".join(capfd.readouterr())
        assert "Traceback" not in err
        return Ran(code, err)

    return call


def esc50(root: Path, *sounds: tuple[str, int]) -> Path:
    """The tables of an ESC-50 with these names and folds; the sounds are for the caller to write."""
    rows = "".join(f"{name}.wav,{fold},0,dog,False,{name},A\n" for name, fold in sounds)
    (root / "meta").mkdir(parents=True)
    (root / "audio").mkdir()
    (root / "meta/esc50.csv").write_text(f"filename,fold,target,category,esc10,src_file,take\n{rows}")
    return root


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """150 clips: three shards."""
    root = esc50(tmp_path / "esc", *((f"{index:03d}", 1 + index % 5) for index in range(150)))
    for index in range(150):
        write_wav(root / f"audio/{index:03d}.wav", tone(0.02, 200 + 5 * index))
    return root


def bytes_of(wave: np.ndarray, rate: int = 32_000, **how: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, **({"format": "WAV"} | how))
    return file.getvalue()


def report(out: Path) -> list[dict[str, str]]:
    with (out / "report.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def ids(out: Path) -> list[str]:
    data = load_from_disk(str(out))
    assert isinstance(data, Dataset)
    return list(data["id"])


def sounds_of(out: Path) -> dict[str, bytes]:
    return {row["id"]: row["audio"] for row in load_from_disk(str(out))}


# -- problems ------------------------------------------------------------------------------------------------


PROBLEMS = {
    "absent": "missing",
    "junk": "broken",
    "folder": "broken",
    "nan": "broken",
    "empty": "zero-length",
    "no_samples": "zero-length",
    "cut": "damaged",
    "quiet": "silent",
    "slow": "suspicious rate",
    "odd": "suspicious rate",
    "twin": "duplicated across splits",
    "other_twin": "duplicated across splits",
}
LEFT_OUT = {"missing", "broken", "zero-length"}


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """One clip a problem; those without one are twice in a fold, or silent in two."""
    folds = dict.fromkeys(("twin", "same", "quiet"), 2)
    names = (*PROBLEMS, "same", "same_again", "quiet_too", "fine_1", "fine_2", "fine_3")
    root = esc50(tmp_path / "esc", *((name, folds.get(name, 1)) for name in names))
    flac = bytes_of(noise(1.0), format="FLAC")
    contents = {
        "junk": b"no sound at all" * 50,
        "empty": b"",
        "no_samples": bytes_of(np.zeros(0)),
        "cut": flac[: len(flac) // 2],
        "nan": bytes_of(np.full(100, np.nan, np.float32), subtype="FLOAT"),
        "quiet": bytes_of(np.full(3200, 1e-5)),
        "quiet_too": bytes_of(np.full(3200, 1e-5)),
        "slow": bytes_of(tone(0.1, rate=8000), 8000),
        "odd": bytes_of(tone(0.1, 700), 32_001),
        "twin": bytes_of(tone(0.1, 300)),
        "other_twin": bytes_of(tone(0.1, 300), format="WAVEX"),
        "fine_1": bytes_of(tone(0.1, 310)),
        "fine_2": bytes_of(tone(0.1, 320)),
        "fine_3": bytes_of(tone(0.1, 330)),
        "same": bytes_of(tone(0.1, 340)),
        "same_again": bytes_of(tone(0.1, 350)),
    }
    for name, content in contents.items():
        (root / f"audio/{name}.wav").write_bytes(content)
    (root / "audio/folder.wav").mkdir()
    return root


def test_every_problem_is_named(damaged: Path, tmp_path: Path) -> None:
    info = prepare(plan("esc50", damaged, out=tmp_path / "out"))
    rows = report(tmp_path / "out")
    assert {row["id"]: row["problem"] for row in rows} == PROBLEMS | {"quiet_too": "silent"}
    assert all(row["file"].endswith(f"{row['id']}.wav") and row["note"] for row in rows)
    assert info["problems"]["broken"] == 3


def test_only_what_cannot_be_used_is_left_out(damaged: Path, tmp_path: Path) -> None:
    info = prepare(plan("esc50", damaged, out=tmp_path / "out"))
    lost = {name for name, problem in PROBLEMS.items() if problem in LEFT_OUT}
    assert (
        set(ids(tmp_path / "out"))
        == {*PROBLEMS, "same", "same_again", "quiet_too", "fine_1", "fine_2", "fine_3"} - lost
    )
    assert info["left_out"] == len(lost) == 6
    assert info["official"] == {"1": {"listed": 15, "present": 9}, "2": {"listed": 3, "present": 3}}


def test_a_shard_without_a_clip_does_no_harm(many: Path, tmp_path: Path) -> None:
    for index in range(64):
        (many / f"audio/{index:03d}.wav").unlink()
    prepare(plan("esc50", many, out=tmp_path / "out"))
    assert ids(tmp_path / "out") == [f"{index:03d}" for index in range(64, 150)]


def test_a_set_of_one_low_rate_is_not_suspicious(tmp_path: Path) -> None:
    for name in ("a/1", "b/2"):
        write_wav(tmp_path / f"in/{name}.wav", noise(0.1), 8000)
    prepare(plan("folder", tmp_path / "in", out=tmp_path / "out"))
    assert report(tmp_path / "out") == []


def test_a_set_without_a_usable_clip_is_refused(tmp_path: Path) -> None:
    root = esc50(tmp_path / "esc", ("a", 1))
    with pytest.raises(InputError, match="no clip can be used"):
        prepare(plan("esc50", root, out=tmp_path / "out"))
    assert not (tmp_path / "out/dataset.json").exists()


# -- encodings -----------------------------------------------------------------------------------------------


def stereo(seconds: float = 1.0) -> np.ndarray:
    return np.stack([tone(seconds, 440, rate=44_100), tone(seconds, 1000, rate=44_100)], axis=1)


@pytest.mark.parametrize("encoding", [Encoding("flac"), Encoding("mp3", 128), Encoding("mp3", 320)])
def test_channels_are_kept(encoding: Encoding) -> None:
    found = check(bytes_of(stereo(), 44_100), encoding)
    wave, rate = soundfile.read(io.BytesIO(found.audio))
    assert (wave.shape[1], rate, found.rate) == (2, 32_000, 44_100)
    middle = np.fft.rfft(wave[8000:16000] * np.hanning(8000)[:, None], axis=0)  # 4 Hz a bin
    assert np.abs(middle).argmax(axis=0).tolist() == [110, 250]


@pytest.mark.parametrize("encoding", [Encoding("flac"), Encoding("mp3", 128)])
def test_an_encoded_sound_has_the_length_of_the_original(encoding: Encoding) -> None:
    found = check(bytes_of(noise(1.0)[:30_001]), encoding)
    assert len(load(found.audio)) == 30_001
    assert found.audio_s == pytest.approx(30_001 / 32_000)


@pytest.mark.parametrize("kbps", KBPS)
def test_mp3_has_the_rate_that_was_asked_for(kbps: int) -> None:
    with av.open(io.BytesIO(check(bytes_of(noise(1.0)), Encoding("mp3", kbps)).audio)) as container:
        assert container.streams.audio[0].bit_rate == 1000 * kbps


def test_flac_is_the_sound_to_the_last_bit() -> None:
    wave = np.round(noise(0.5) * 32_768) / 32_768
    assert np.array_equal(load(check(bytes_of(wave), Encoding("flac")).audio), wave)


@pytest.mark.parametrize(
    ("low_hz", "high_hz"), [(500, 1000), (10_000, 11_000), (12_000, 13_000), (14_000, 15_000)]
)
def test_mp3_keeps_what_the_mel_bank_hears(low_hz: int, high_hz: int) -> None:
    wave = noise(4.0)

    def level_db(sound: np.ndarray) -> float:
        band = np.abs(np.fft.rfft(sound)[4 * low_hz : 4 * high_hz]) ** 2
        return float(10 * np.log10(band.mean()))

    assert abs(level_db(load(check(bytes_of(wave), Encoding("mp3", 128)).audio)) - level_db(wave)) < 1.0


def test_original_bytes_stay_as_they_are() -> None:
    data = bytes_of(stereo(), 44_100)
    assert check(data, ORIGINAL).audio == data


def test_more_than_two_channels_are_not_encoded() -> None:
    data = bytes_of(np.stack([tone(0.1)] * 4, axis=1))
    assert check(data, ORIGINAL).audio == data
    assert check(data, Encoding("flac"))[:3] == (
        b"",
        "broken",
        "has 4 channels, only 1 or 2 are encoded: keep the original",
    )


def test_what_is_left_of_a_damaged_sound_is_encoded() -> None:
    data = bytes_of(noise(1.0), format="FLAC")
    found = check(data[: len(data) // 2], Encoding("flac"))
    kept = len(load(found.audio))
    assert (found.problem, found.audio_s) == ("damaged", kept / 32_000)
    assert 5_000 < kept < 28_000


def test_a_segment_is_cut_out() -> None:
    ramp = np.arange(32_000) / 32_768
    found = check(bytes_of(ramp), Encoding("flac"), start_s=0.25, end_s=0.5)
    assert np.array_equal(load(found.audio), ramp[8000:16_000].astype(np.float32))


def test_a_sound_that_is_odd_is_not_called_damaged() -> None:
    two, loud = muxed("matroska", "pcm_s16le", [0], num_streams=2), io.BytesIO()
    soundfile.write(loud, 20_000 * noise(0.1), 32_000, format="WAV", subtype="FLOAT")
    for data, note in ((two, "holds 2 audio streams"), (loud.getvalue(), "peaks at ")):
        found = check(data, ORIGINAL)
        assert found.problem == "suspicious sound"
        assert found.note.startswith(note)


def test_an_audio_stream_is_packed_by_itself(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mkv").write_bytes(muxed("matroska", "pcm_s16le", [0], num_streams=2))
    (tmp_path / "in/list.csv").write_text("file,label\na.mkv#a:1,dog\na.mkv#a:2,cat\n")
    with pytest.raises(ValueError, match=r"a.mkv#a:1 is a part of its file: .* need --encoding flac or mp3"):
        plan("folder", tmp_path / "in", out=tmp_path / "out")
    info = prepare(plan("folder", tmp_path / "in", out=tmp_path / "out", encoding=Encoding("flac")))
    assert info["problems"] == {"broken": 1}
    assert "a.mkv#a:2,broken" in (tmp_path / "out" / "report.csv").read_text().replace('"', "")
    assert [len(scan(tmp_path / "out").wave(0, 8000))] == [2000]


def test_equal_sounds_have_equal_digests_whatever_the_file() -> None:
    wave = np.round(noise(0.1) * 32_768) / 32_768
    files = [bytes_of(wave), bytes_of(wave, format="FLAC"), bytes_of(wave * 0.5)]
    digests = [check(file, ORIGINAL).digest for file in files]
    assert digests[0] == digests[1] != digests[2]


def test_segments_need_an_encoding(tmp_path: Path) -> None:
    write_wav(tmp_path / "in/a.wav", tone(1.0))
    (tmp_path / "in/list.csv").write_text("file,label,start,end\na.wav,dog,0.2,0.5\na.wav,cat,0.5,\n")
    with pytest.raises(ValueError, match="segments need --encoding flac or mp3"):
        prepare(plan("folder", tmp_path / "in", out=tmp_path / "out"))
    prepare(plan("folder", tmp_path / "in", out=tmp_path / "out", encoding=Encoding("flac")))
    assert {id: len(load(sound)) for id, sound in sounds_of(tmp_path / "out").items()} == {
        "a.wav#0.2-0.5": 9600,
        "a.wav#0.5-end": 16_000,
    }


# -- stop and go on ------------------------------------------------------------------------------------------


def interrupt_at(number: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ctrl-C in the middle of a shard; the list fills with the numbers of the shards that are begun."""
    begun = list[int]()

    def write_or_stop(shards: Shards, at: int, clips: list[Clip]) -> tuple[int, float]:
        begun.append(at)
        if at == number:
            (shards.out / f".data-{at:05d}.123.arrow").write_bytes(b"half of a shard")
            raise KeyboardInterrupt
        return write_shard(shards, at, clips)

    monkeypatch.setattr("patchout.data.prepare.job.write_shard", write_or_stop)
    return begun


@pytest.mark.slow
def test_a_stopped_job_goes_on_where_it_was(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = plan("esc50", many, out=tmp_path / "out")
    interrupt_at(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        prepare(job)
    assert [path.name for path in job.shards.out.glob("*data-*")] == ["data-00000-of-00003.arrow"]
    monkeypatch.undo()
    begun, told = interrupt_at(-1, monkeypatch), list[tuple[int, float]]()
    info = prepare(job, on_progress=lambda *done: told.append(done))
    assert begun == [1, 2]
    assert [clips for clips, _ in told] == [64, 64, 22]
    whole = prepare(plan("esc50", many, out=tmp_path / "whole"))
    assert info == whole
    assert sounds_of(job.shards.out) == sounds_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process_goes_on_and_leaves_none_behind(many: Path, tmp_path: Path) -> None:
    """kill -9 in the middle; sounds long enough that the job is not done by then."""
    for index in range(150):
        write_wav(many / f"audio/{index:03d}.wav", tone(5.0, 200 + index))
    out = tmp_path / "out"
    words = [
        sys.executable,
        "-m",
        "patchout",
        "prepare",
        "esc50",
        "--source",
        many,
        "--out",
        out,
        "--workers",
        "2",
    ]
    with subprocess.Popen([*map(str, words)], start_new_session=True, stderr=subprocess.DEVNULL) as child:
        until = time.monotonic() + 60
        while not list(out.glob(".data-*")) and time.monotonic() < until:
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
    assert not (out / "dataset.json").exists()
    until = time.monotonic() + 20
    while _session(child.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert _session(child.pid) == []
    info = prepare(plan("esc50", many, out=out))
    assert sum(info["counts"].values()) == len(set(ids(out))) == 150


def _session(leader: int) -> list[int]:
    """Living processes of a session."""
    found = subprocess.run(
        ["ps", "-o", "pid=,stat=", "-s", str(leader)], capture_output=True, text=True, check=False
    )
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "Z" not in line]


@pytest.mark.slow
def test_a_finished_set_is_not_made_again(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = plan("esc50", many, out=tmp_path / "out")
    info = prepare(job)
    begun = interrupt_at(-1, monkeypatch)
    assert prepare(job) == info
    assert begun == []


@pytest.mark.slow
def test_files_that_change_while_a_job_is_stopped_are_packed_anew(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = plan("esc50", many, out=tmp_path / "out")
    interrupt_at(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        prepare(job)
    monkeypatch.undo()
    os.utime(job.shards.path(0), (1e9, 1e9))
    write_wav(many / "audio/003.wav", noise(0.02))
    os.utime(job.shards.path(1), (4e9, 4e9))
    begun = interrupt_at(-1, monkeypatch)
    prepare(job)
    assert begun == [0, 2]
    assert np.array_equal(load(sounds_of(tmp_path / "out")["003"]), load(many / "audio/003.wav"))


def test_files_that_are_newer_than_a_finished_set_are_told(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_wav(tmp_path / "in" / name / "0.wav", tone(0.05))
    words = ("folder", "--source", tmp_path / "in", "--out", tmp_path / "out")
    assert "newer than what" not in run(*words).err
    for shard in (tmp_path / "out").glob("data-*"):
        os.utime(shard, (1e9, 1e9))
    os.utime(tmp_path / "in/a/0.wav", (9e8, 9e8))
    assert re.search(r"1 files are newer than what was packed of them \(\S*b/0.wav is one\)", run(*words).err)


@pytest.mark.slow
def test_two_workers_make_the_same_set(many: Path, tmp_path: Path) -> None:
    one = prepare(plan("esc50", many, out=tmp_path / "one"))
    two = prepare(plan("esc50", many, out=tmp_path / "two"), workers=2)
    assert one == two
    assert ids(tmp_path / "one") == ids(tmp_path / "two") == [f"{index:03d}" for index in range(150)]


@pytest.mark.slow
def test_a_folder_of_another_job_is_refused(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(plan("esc50", many, out=out))
    with pytest.raises(InputError, match=r"another job \(encoding 'original' there, 'flac' here\)"):
        prepare(plan("esc50", many, out=out, encoding=Encoding("flac")))


@pytest.mark.parametrize("changed", ["b,bird,1", "b,cat,2"])
def test_a_set_of_other_labels_or_folds_is_another_job(run: Run, tmp_path: Path, changed: str) -> None:
    """Shards that are finished keep the labels that they were written with."""
    for name in ("a", "b"):
        write_wav(tmp_path / "in" / f"{name}.wav", tone(0.05))
    words = ("folder", "--source", tmp_path / "in", "--out", tmp_path / "out")
    for row, code in (("b,cat,1", 0), (changed, 1), ("b,cat,1", 0)):
        name, label, fold = row.split(",")
        lines = ("file,label,fold", "a.wav,dog,1", f"{name}.wav,{label},{fold}")
        (tmp_path / "in/list.csv").write_text("\n".join(lines))
        ran = run(*words)
        assert ran.code == code, ran.err
        assert ("belongs to another job (other labels)" in ran.err) == bool(code)


def test_a_folder_of_something_else_is_refused(many: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="so it is no job's: give a new or empty folder"):
        prepare(plan("esc50", many, out=tmp_path / "out"))


def test_two_jobs_in_one_folder_are_refused(many: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        FileLock(tmp_path / "out/.lock"),
        pytest.raises(InputError, match="another process is writing to it"),
    ):
        prepare(plan("esc50", many, out=tmp_path / "out"))


# -- what is read back ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_set_is_read_by_scan(many: Path, tmp_path: Path) -> None:
    from patchout.data.sets import scan

    info = prepare(plan("esc50", many, out=tmp_path / "out"))
    clips = scan(tmp_path / "out")
    assert (len(clips), clips.info) == (150, info)
    assert clips.ids_sha256() == info["ids_sha256"]
    assert clips.column("fold")[:6].tolist() == ["1", "2", "3", "4", "5", "1"]
    assert len(clips.wave(0, 32_000)) == 640


@pytest.mark.slow
def test_the_hash_is_that_of_the_ids_a_line_each(many: Path, tmp_path: Path) -> None:
    info = prepare(plan("esc50", many, out=tmp_path / "out"))
    text = "".join(f"{index:03d}\n" for index in range(150))
    done = subprocess.run(["sha256sum"], input=text, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == info["ids_sha256"]


@pytest.mark.slow
def test_nothing_is_left_but_the_set(many: Path, tmp_path: Path) -> None:
    prepare(plan("esc50", many, out=tmp_path / "out"))
    names = {path.name for path in (tmp_path / "out").iterdir()} - {".lock"}
    shards = {f"data-0000{index}-of-00003.arrow" for index in range(3)}
    assert names == {*shards, "state.json", "dataset_info.json", "dataset.json", "job.json", "report.csv"}


# -- the command ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_tells_what_it_did(many: Path, tmp_path: Path, run: Run) -> None:
    done = run("esc50", "--source", many, "--out", tmp_path / "out")
    assert done.code == 0
    assert "150 clips, 0.0 h, 50 classes (multi_class)" in done.err
    assert "  5: 30 of the 30 clips on the official list (100.0 %)" in done.err


def test_clips_that_were_left_out_make_it_fail(damaged: Path, tmp_path: Path, run: Run) -> None:
    for _ in range(2):  # the second time from what was written
        done = run("esc50", "--source", damaged, "--out", tmp_path / "out")
        assert done.code == 1
        assert "3 broken, left out" in done.err
        assert "2 silent, kept" in done.err
        assert str(tmp_path / "out/report.csv") in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--encoding", "mp3"], "none was given: below 128 the top of the spectrum is cut off"),
        (["--encoding", "mp3", "--mp3-kbps", "48"], "got 48: below 128 .* nothing above 11 kHz"),
        (
            ["--encoding", "mp3", "--mp3-kbps", "150"],
            "needs --mp3-kbps 128, 160, 192, 224, 256, 320; got 150",
        ),
        (["--encoding", "flac", "--mp3-kbps", "128"], "--mp3-kbps is for --encoding mp3, not for flac"),
    ],
)
def test_wrong_rates_are_refused(many: Path, tmp_path: Path, run: Run, options: list[str], why: str) -> None:
    done = run("esc50", "--source", many, "--out", tmp_path / "out", *options)
    assert done.code == 2
    assert re.search(why, done.err)
    assert not (tmp_path / "out").exists()


def test_a_typo_is_answered_with_the_name(tmp_path: Path, run: Run) -> None:
    done = run("esc5", "--source", tmp_path, "--out", tmp_path / "out")
    assert (done.code, "unknown data set 'esc5' (did you mean esc50?)" in done.err) == (2, True)


def test_ctrl_c_says_how_to_go_on(
    many: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(1, monkeypatch)
    done = run("esc50", "--source", many, "--out", tmp_path / "out")
    assert done.code == 130
    assert "the same command goes on" in done.err


def test_a_wrong_folder_is_one_line(tmp_path: Path, run: Run) -> None:
    done = run("fsd50k", "--source", tmp_path, "--out", tmp_path / "out")
    assert done.code == 1
    assert "missing: FSD50K.ground_truth/dev.csv" in done.err

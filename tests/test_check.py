"""`patchout check`: each kind of finding in a set that has it, and none in one that has not."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from conftest import RATE, noise, tone, write_wav

from patchout.audio.levels import Levels, Meter
from patchout.audio.mel import MelConfig
from patchout.audio.remarks import Remark
from patchout.audio.stream import Stream
from patchout.cli.main import run_command
from patchout.data.items import Item
from patchout.data.sets import scan
from patchout.inference.check import classes
from patchout.inference.check.findings import Finding, summaries, worst
from patchout.inference.check.neighbours import Clips, correlation, doubtful, fingerprint
from patchout.inference.check.recordings import by_name
from patchout.inference.check.run import Check, check

SECONDS = 1.0


def levels_of(wave: np.ndarray, rate: int = RATE) -> Levels:
    """The levels of (samples,) or (samples, channels)."""
    meter, frames = Meter(), wave.reshape(len(wave), -1)
    for start in range(0, len(frames), 8192):
        meter.add(frames[start : start + 8192])
    return meter.levels(rate)


def sixteen_bits(wave: np.ndarray) -> np.ndarray:
    """As a wav of 16 bits holds it."""
    return (np.clip(np.round(wave * 2**15), -(2**15), 2**15 - 1) / 2**15).astype(np.float32)


def kinds(found: Check | list[Finding]) -> dict[str, list[str]]:
    """Kind -> names of the files, or details where there is none."""
    findings = found.findings if isinstance(found, Check) else found
    names: dict[str, list[str]] = {}
    for finding in findings:
        names.setdefault(finding.kind, []).append(Path(finding.file).name or finding.detail)
    return names


# -- levels --------------------------------------------------------------------------------------------------


def test_cut_peaks_are_clipped_and_a_loud_sine_is_not() -> None:
    hum = tone(1.0, 20.0) * 5.0  # full scale: several samples of its peaks are the same in 16 bits
    assert levels_of(sixteen_bits(hum)).clipped == 0.0
    assert levels_of(sixteen_bits(np.clip(tone(1.0) * 10, -1, 1))).clipped > 0.3


def test_coded_overshoots_are_clipped_where_they_outnumber_the_shoulder() -> None:
    cut = np.clip(8 * noise(1.0), -1, 1) * (1 + noise(1.0, 1) / 20)  # no two samples are the same
    assert levels_of(cut).clipped > 0.1
    assert levels_of(np.clip(2 * noise(1.0), -1, 1)).clipped == 0.0


def test_a_clipped_channel_is_seen_beside_a_quiet_one() -> None:
    both = np.stack([np.clip(tone(1.0) * 10, -1, 1), np.zeros(RATE, np.float32)], axis=1)
    assert levels_of(sixteen_bits(both)).clipped > 0.1


def test_the_mean_of_the_samples_is_an_offset() -> None:
    assert levels_of(noise(1.0) + np.float32(0.03)).offset == pytest.approx(0.03, abs=2e-3)
    assert levels_of(noise(1.0)).offset < 2e-3


def test_channels_of_opposite_polarity_cancel() -> None:
    wave = noise(1.0)
    assert levels_of(np.stack([wave, -0.9 * wave], axis=1)).cancelled < 0.01
    assert levels_of(np.stack([wave, noise(1.0, 1)], axis=1)).cancelled == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("old", [8000, 16_000, 22_050])
def test_an_old_nyquist_frequency_is_an_edge(old: int) -> None:
    fresh = soxr.resample(noise(2.0)[: 2 * old], old, 44_100, quality="HQ")
    levels = levels_of(sixteen_bits(fresh), 44_100)
    assert levels.drop_db > 30
    assert 0.85 * old / 2 < levels.edge_hz < 1.03 * old / 2


def test_white_noise_tones_and_a_gentle_slope_have_no_edge() -> None:
    slope = np.cumsum(noise(2.0)) / 100
    for wave in (noise(2.0), tone(2.0), tone(2.0, 7900.0), slope - slope.mean()):
        assert levels_of(sixteen_bits(wave)).drop_db < 30


def test_a_remark_is_read_back() -> None:
    remark = Remark(
        44_100, "0123456789abcdef", False, "is odd, here; there", Levels(0.5, 0.25, edge_hz=8000.0)
    )
    assert Remark.read(str(remark)) == remark
    plain = Remark(8000, "0123456789abcdef", True, "")
    assert str(plain) == "8000 Hz, 0123456789abcdef, silent"  # what earlier jobs of judge hold
    assert Remark.read(str(plain)) == plain


# -- names, splits, classes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "kind", "recordings"),
    [
        (["1-100032-A-0.ogg", "2-100032-B-0.ogg"], "Freesound clip", ["100032", "100032"]),
        (["CREEK_20240501_053000.wav", "HILL_20240501_053000.wav"], "recorder", ["CREEK", "HILL"]),
        (["--aE2O5G5WE_0.000.wav", "--aE2O5G5WE_10.000.wav"], "video", ["--aE2O5G5WE"] * 2),
        (["0a7c2a8d_nohash_0.wav", "0a7c2a8d_nohash_1.wav"], "voice", ["0a7c2a8d"] * 2),
        (["frog_site3_a.wav", "toad_site12.wav"], "site", ["site3", "site12"]),
        (["park-lyon-0-0-a.wav", "tram-lyon-12-3-a.wav"], "place", ["park-lyon-0", "tram-lyon-12"]),
    ],
)  # fmt: skip
def test_schemes_of_names_say_the_recording(names: list[str], kind: str, recordings: list[str]) -> None:
    named = by_name(names, ["x"] * len(names))
    assert named is not None
    assert (named.kind, named.keys.tolist()) == (kind, recordings)


def test_numbered_files_of_a_class_are_no_recordings() -> None:
    names = [f"{label}_{number:04d}.wav" for label in ("dog", "rain") for number in range(20)]
    assert by_name(names, [name[:3] for name in names]) is None
    assert by_name([f"{number}.wav" for number in range(20)], ["x"] * 20) is None


def test_pieces_of_many_recordings_are_seen() -> None:
    names = [f"walk in {place}_{part}.wav" for place in "abcdefgh" for part in (1, 2)]
    named = by_name(names, ["dog"] * 8 + ["rain"] * 8)
    assert named is not None
    assert len(set(named.keys)) == 8


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [("(", "no regular"), ("a", "0 groups"), ("(a)(b)", "2 groups"), ("(xyz)", "no name")],
)
def test_a_pattern_that_says_nothing_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        by_name(["a.wav"], ["x"], pattern)


Rows = list[tuple[object, ...]]


@pytest.fixture
def table(tmp_path: Path) -> Callable[[str, Rows], Path]:
    """Writes a list and its empty files: what lists say needs no sound."""

    def write(header: str, rows: Rows) -> Path:
        for name, *_ in rows:
            (tmp_path / str(name)).touch()
        path = tmp_path / "list.csv"
        path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]))
        return path

    return write


def test_a_clean_list_has_no_findings(table: Callable[[str, Rows], Path]) -> None:
    rows: Rows = [(f"{label}{n}.wav", label, ("train", "test")[n % 2]) for label in "ab" for n in range(10)]
    assert classes.findings(scan(table("file,label,split", rows))) == []


@pytest.mark.parametrize(
    ("header", "row", "name"),
    [
        ("file,label,split,start,end", lambda n: (f"r{n // 2}.wav", "a", n % 2, n, n + 1), "the file"),
        ("file,label,split,group", lambda n: (f"r{n}.wav", "a", n % 2, f"g{n // 2}"), "group g0"),
        ("file,label,fold", lambda n: (f"1-1{n // 2}-{'AB'[n % 2]}-3.wav", "a", n % 2), "Freesound clip 10"),
    ],
)  # fmt: skip
def test_a_recording_in_two_splits_is_found(
    table: Callable[[str, Rows], Path], header: str, row: Callable[[int], tuple[object, ...]], name: str
) -> None:
    findings = classes.findings(scan(table(header, [row(n) for n in range(20)])))
    assert [finding.kind for finding in findings] == ["recording across splits"] * 10
    assert findings[0].detail.startswith(f"{name} is in ")


def test_a_pattern_finds_what_names_do_not_say_by_themselves(table: Callable[[str, Rows], Path]) -> None:
    rows: Rows = [(f"{n}x{'pq'[n % 2]}{n // 2}.wav", "a", ("train", "test")[n % 2]) for n in range(20)]
    clips = scan(table("file,label,split", rows))
    assert kinds(classes.findings(clips)) == {}
    found = classes.findings(clips, pattern=r"x[pq](\d+)")
    assert len(found) == 10
    assert found[0].detail == r"--group x[pq](\d+) 0 is in test (1), train (1)"


def test_small_missing_and_unbalanced_classes_are_found(table: Callable[[str, Rows], Path]) -> None:
    sizes = {"a": 100, "b": 10, "c": 3}
    rows: Rows = [
        (f"{label}{n}x.wav", label, ("train", "test")[n % 2])
        for label, size in sizes.items()
        for n in range(size)
    ]
    rows += [(f"d{n}x.wav", "d", "train") for n in range(20)]
    assert kinds(classes.findings(scan(table("file,label,split", rows)))) == {
        "small class": ["c (3 clips)"],
        "missing in a split": ["d (none in test)"],
        "unbalanced": ["a has 100 clips, c 3"],
    }


def test_a_class_of_one_recording_is_small(table: Callable[[str, Rows], Path]) -> None:
    rows: Rows = [
        (f"{label}{n}x.wav", label, "r" if label == "a" else n) for label in "ab" for n in range(10)
    ]
    assert kinds(classes.findings(scan(table("file,label,group", rows)))) == {
        "small class": ["a (10 clips of one recording)"]
    }


def test_background_is_no_class(table: Callable[[str, Rows], Path]) -> None:
    rows: Rows = [(f"{label}{n}x.wav", label) for label in "ab" for n in range(10)]
    assert classes.findings(scan(table("file,label", [*rows, ("n.wav", "noise")]))) == []


def test_rows_that_are_left_out_are_findings(table: Callable[[str, Rows], Path]) -> None:
    path = table("file,label", [(f"{label}{n}x.wav", label) for label in "ab" for n in range(10)])
    (path.parent / "a3x.wav").unlink()
    assert "no file 'a3x.wav'" in kinds(classes.findings(scan(path)))["left out"][0]


def test_the_worst_kinds_are_told_first() -> None:
    findings = [Finding("upsampled", "a.wav", ""), Finding("unbalanced", "", "x has 9, y 1")]
    findings += [Finding("silent", f"{n}.wav", "") for n in range(5)] + [Finding("unreadable", "b.wav", "")]
    lines = worst(findings, "sounds")
    assert [line.partition(":")[0] for line in lines[:3]] == ["unreadable", "silent", "upsampled"]
    assert "5 (0.wav, 1.wav, 2.wav ...)" in lines[1]
    assert lines[3] == "1 more kinds; `patchout check sounds` looks deeper"
    assert worst([], "sounds") == []
    assert summaries(findings)[3].names == "x has 9, y 1"


# -- sounds --------------------------------------------------------------------------------------------------


def clean(folder: Path, count: int = 10) -> Path:
    """Two classes of different sounds, without a fault."""
    for n in range(count):
        write_wav(folder / "bell" / f"{n}b.wav", chirp(n))
        write_wav(folder / "rain" / f"{n}r.wav", noise(SECONDS, n))
    return folder


def chirp(seed: int) -> np.ndarray:
    """Tones at random times and pitches over a quiet noise."""
    rng, wave = np.random.default_rng(100 + seed), noise(SECONDS, 500 + seed) / 100
    for _ in range(6):
        start, length = rng.integers(0, RATE - 4000), 4000
        wave[start : start + length] += tone(0.125, rng.uniform(300, 9000)) * np.hanning(length).astype(
            np.float32
        )
    return wave


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """A set with one of every fault of a sound, checked once."""
    folder = clean(tmp_path_factory.mktemp("faulty"))
    loud = np.clip(8 * tone(SECONDS), -1, 1)
    write_wav(folder / "bell" / "clipped.wav", sixteen_bits(loud))
    write_wav(folder / "bell" / "offset.wav", chirp(31) + np.float32(0.05))
    write_wav(folder / "bell" / "silent.wav", np.zeros(RATE, np.float32))
    write_wav(folder / "rain" / "old.wav", soxr.resample(noise(SECONDS, 40)[:16_000], 16_000, RATE))
    write_wav(folder / "rain" / "low.wav", soxr.resample(noise(SECONDS, 41), 32_000, 48_000), 48_000)
    write_wav(folder / "rain" / "strange.wav", noise(SECONDS, 42), 31_000)
    write_wav(folder / "rain" / "cancel.wav", np.stack([noise(1, 43), -noise(1, 43)], axis=1))
    whole = write_wav(folder / "rain" / "cut.wav", noise(SECONDS, 44)).read_bytes()
    (folder / "rain" / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "rain" / "text.wav").write_text("no sound")
    write_wav(folder / "rain" / "copy.wav", noise(SECONDS, 3))
    write_wav(folder / "bell" / "copy of rain.wav", noise(SECONDS, 4))
    soundfile.write(folder / "bell" / "near.ogg", 0.4 * chirp(5)[3000:], RATE)
    return check(str(folder), model="sounds-tiny")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("clipped", "clipped.wav"),
        ("offset", "offset.wav"),
        ("silent", "silent.wav"),
        ("upsampled", "old.wav"),
        ("low-pass", "low.wav"),
        ("unusual rate", "strange.wav"),
        ("cancelling channels", "cancel.wav"),
        ("cut short", "cut.wav"),
        ("unreadable", "text.wav"),
        ("duplicate", "copy.wav"),
        ("duplicate with another label", "4r.wav"),
        ("near-duplicate", "near.ogg"),
        ("mixed rates", "32000 Hz (29 clips), 48000 Hz (1 clips)"),
    ],
)
def test_a_fault_is_found_in_its_sound_alone(faulty: Check, kind: str, name: str) -> None:
    assert kinds(faulty)[kind] == [name]


def test_a_clean_set_has_no_findings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["check", str(clean(tmp_path))]) == 0
    assert capfd.readouterr().out == "20 clips: nothing found\n"


def test_copies_in_two_splits_come_first_and_the_whole_check_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clean(tmp_path / "sounds" / "train")
    clean(tmp_path / "sounds" / "test", 1)  # the first clip of each class, once more
    write_wav(tmp_path / "sounds" / "test" / "bell" / "near & quiet.wav", 0.3 * chirp(4)[4000:])
    out, sounds = tmp_path / "out", str(tmp_path / "sounds")
    assert run_command(["check", sounds, "--out", str(out)]) == 0
    printed = capfd.readouterr().out
    assert printed.index("2  duplicate across splits") < printed.index("1  near-duplicate across splits")
    with (out / "findings.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [*rows[0]] == ["file", "start", "end", "kind", "detail"]
    near = next(row for row in rows if row["kind"] == "near-duplicate across splits")
    assert {"near & quiet.wav", "4b.wav"} == {
        Path(near["file"]).name,
        Path(near["detail"].partition(", which")[0]).name,
    }
    page = (out / "report.html").read_text()
    assert "near &amp; quiet.wav" in page
    assert page.count("<svg") >= 3
    assert "http" not in page
    assert "<script" not in page
    shards = sorted((out / "embeddings").glob("part-*"))
    times = [path.stat().st_mtime_ns for path in shards]
    assert run_command(["check", sounds, "--out", str(out), "--format", "csv"]) == 0
    assert capfd.readouterr().out == (out / "findings.csv").read_text()
    assert [path.stat().st_mtime_ns for path in shards] == times


def test_a_segment_that_the_list_ends_behind_the_file_is_cut(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", noise(1.0))
    (tmp_path / "list.csv").write_text("file,label,start,end\na.wav,x,0,0.5\na.wav,x,0.5,3\n")
    findings = check(str(tmp_path / "list.csv"), model="sounds-tiny").findings
    cut = [finding for finding in findings if finding.kind == "cut short"]
    assert [finding[2:5] for finding in cut] == [("the list ends it at 3 s, the file at 1.00 s", 0.5, 3.0)]


def test_sounds_without_labels_are_checked_without_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "a.wav", noise(0.5))
    (tmp_path / "b.wav").write_text("no sound")
    assert run_command(["check", str(tmp_path)]) == 1  # one cannot be read
    printed = capfd.readouterr()
    assert "checked without labels" in printed.err
    assert printed.out.split()[:3] == ["1", "unreadable", str(tmp_path / "b.wav")]


@pytest.mark.slow
def test_a_prepared_set_is_checked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_wav(clean(tmp_path / "sounds") / "rain" / "again.wav", noise(SECONDS, 3))
    args = ["prepare", "folder", "--source", str(tmp_path / "sounds"), "--out", str(tmp_path / "set")]
    assert run_command([*args, "--workers", "1"]) == 0
    capfd.readouterr()
    again = ["check", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    for _ in range(2):
        assert run_command(again) == 0
        assert capfd.readouterr().out.split()[:2] == ["1", "duplicate"]
    os.utime(next((tmp_path / "set").glob("*.arrow")), (4e9, 4e9))
    assert run_command(again) == 1
    assert "belongs to another job (other shards)" in capfd.readouterr().err


def test_prepare_tells_the_worst_that_lists_say(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clean(tmp_path / "sounds", 2)
    args = ["prepare", "folder", "--source", str(tmp_path / "sounds"), "--out", str(tmp_path / "set")]
    assert run_command([*args, "--workers", "1"]) == 0
    said = capfd.readouterr().err
    assert "small class: 2 (bell (2 clips), rain (2 clips))" in said
    assert f"`patchout check {tmp_path / 'set'}` looks deeper" in said


@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [
        (["empty"], 1, "no sounds in it"),
        (["missing"], 1, "no such folder"),
        (["sounds", "--model", "sounds/bell/0b.wav"], 2, "0b.wav"),
        (["sounds", "--group", "("], 2, "no regular expression"),
        (["sounds", "--out", "sounds/bell/0b.wav"], 1, "0b.wav"),
    ],
)
def test_bad_input_is_a_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    args: list[str],
    code: int,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    clean(tmp_path / "sounds", 1)
    assert run_command(["check", *args]) == code
    said = capfd.readouterr().err
    assert reason in said
    assert "Traceback" not in said


# -- neighbours ----------------------------------------------------------------------------------------------


def correlated(first: np.ndarray, second: np.ndarray) -> float:
    """The likeness of two waves."""
    frames = [fingerprint(Stream((wave, RATE), RATE), MelConfig()) for wave in (first, second)]
    return correlation(frames[0], frames[1])


def test_a_copy_is_like_its_original_whatever_its_gain_and_cut() -> None:
    wave = chirp(0)
    assert correlated(wave, 0.1 * wave[8000:]) > 0.9
    assert correlated(wave, wave + noise(1.0, 7) / 100) > 0.7


def test_other_sounds_of_a_class_are_no_copies() -> None:
    assert correlated(noise(1.0), noise(1.0, 1)) < 0.3
    assert correlated(chirp(0), chirp(1)) < 0.6
    bursts = [np.zeros(RATE, np.float32) for _ in range(2)]
    bursts[0][1000:3000], bursts[1][9000:11_000] = noise(1.0)[:2000], noise(1.0, 1)[:2000]
    assert correlated(*bursts) < 0.6  # silence around both is no likeness


def labelled(labels: list[str], groups: list[str]) -> Clips:
    """Clips without a split."""
    items = [Item(f"{clip}.wav") for clip in range(len(labels))]
    return Clips(np.arange(len(labels)), items, np.array(labels), np.full(len(labels), ""), np.array(groups))


ALONE = [*map(str, range(40))]  # each clip of its own recording


def clusters() -> np.ndarray:
    """Two groups of twenty embeddings."""
    near = np.random.default_rng(0).standard_normal((40, 8))
    return (near + np.repeat([[0], [6]], 20, axis=0)).astype(np.float32)


def test_a_label_that_the_neighbours_contradict_is_doubtful() -> None:
    labels, notes = ["dog"] * 20 + ["rain"] * 20, list[str]()
    assert [*doubtful(labelled(labels, ALONE), clusters(), notes.append)] == []
    labels[3] = "rain"
    (finding,) = doubtful(labelled(labels, ALONE), clusters(), notes.append)
    assert (finding.file, finding.detail) == ("3.wav", "is rain, 10 of the 10 nearest sounds are dog")
    assert notes == []


def test_clips_of_the_same_recording_do_not_contradict() -> None:
    labels = ["dog"] * 20 + ["rain"] * 20
    labels[3] = "rain"
    groups = ["one"] * 20 + ALONE[:20]
    assert [*doubtful(labelled(labels, groups), clusters(), lambda note: None)] == []


def test_embeddings_that_know_nothing_of_the_classes_judge_no_label() -> None:
    labels, notes = ["dog", "rain", "car", "bell"] * 10, list[str]()
    assert [*doubtful(labelled(labels, ALONE), clusters(), notes.append)] == []
    assert "labels are not compared" in notes[0]

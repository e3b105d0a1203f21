"""What is said of a download before any work: where it is, its layout, and what is missing of it."""

import json
import re
from pathlib import Path

import pytest
from conftest import tone, write_wav

from patchout.cli.main import run_command
from patchout.data.prepare.downloads import DOWNLOADS, describe
from patchout.data.prepare.layouts import LAYOUTS


@pytest.fixture
def esc50(tmp_path: Path) -> Path:
    """ESC-50 in the small: two folds, and a listed clip without its sound."""
    rows = ["filename,fold,category,src_file"]
    for name, fold in (("1-1-A-0", 1), ("2-2-A-0", 2), ("2-3-A-0", 2)):
        write_wav(tmp_path / "ESC-50" / "audio" / f"{name}.wav", tone(0.1, 300 + fold * 50))
        rows.append(f"{name}.wav,{fold},dog,{name}")
    (tmp_path / "ESC-50" / "meta").mkdir()
    (tmp_path / "ESC-50" / "meta" / "esc50.csv").write_text("\n".join(rows))
    (tmp_path / "ESC-50" / "audio" / "2-3-A-0.wav").unlink()
    return tmp_path / "ESC-50"


def prepare(*args: object) -> int:
    return run_command(["prepare", *map(str, args)])


@pytest.mark.parametrize("name", sorted(LAYOUTS.keys() - {"folder"}))
def test_every_download_says_where_it_is_its_size_licence_and_layout(name: str) -> None:
    text = describe(name)
    assert re.search(r"\n    source: .*https?://.*\n    size: .+\n    licence: .+", text)
    parts = [part.split("/")[-1] for need in LAYOUTS[name].needs for part in need.split(" or ")]
    assert [part for part in parts if part not in text] == []


def test_the_help_of_a_data_set_describes_its_download(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        prepare("fsd50k", "--help")
    page = capfd.readouterr().out
    assert "https://zenodo.org/record/4060432" in page
    assert "CC0, CC BY, CC BY-NC and Sampling+ by clip" in page
    assert "--source" in page


def test_a_check_counts_the_clips_and_names_missing_ones(
    esc50: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert prepare("esc50", "--source", esc50, "--check") == 1
    lines = capfd.readouterr().out.splitlines()
    missing = f"  missing: {esc50 / 'audio' / '2-3-A-0.wav'}"
    assert lines == ["1: 1 of 1 clips are there", "2: 1 of 2 clips are there", missing]


def test_a_check_of_a_whole_download_succeeds_and_writes_nothing(esc50: Path) -> None:
    write_wav(esc50 / "audio" / "2-3-A-0.wav", tone(0.1))
    before = set(esc50.parent.rglob("*"))
    assert prepare("esc50", "--source", esc50, "--check") == 0
    assert set(esc50.parent.rglob("*")) == before


def test_a_check_counts_clips_that_no_list_names(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_wav(tmp_path / "words" / "yes" / "a_nohash_0.wav", tone(0.1))
    for table in ("validation_list.txt", "testing_list.txt"):
        (tmp_path / "words" / table).write_text("")
    assert prepare("speechcommands", "--source", tmp_path / "words", "--check") == 1
    assert "train: 1 of 84843 clips are there" in capfd.readouterr().out


def test_archives_that_are_not_unpacked_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "openmic-2018-v1.0.0.tgz").write_bytes(b"")
    assert prepare("openmic", "--source", tmp_path, "--check") == 1
    assert "openmic-2018-v1.0.0.tgz lies there (1 archives): unpack it" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [((), "give --out, the folder to fill, or --check"), (("--check", "--out", "x"), "leave --out out")],
)
def test_a_folder_to_fill_belongs_to_packing(
    options: tuple[str, ...], reason: str, esc50: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert prepare("esc50", "--source", esc50, *options) == 2
    assert reason in capfd.readouterr().err


def test_a_prepared_set_keeps_the_licence_of_its_download(esc50: Path, tmp_path: Path) -> None:
    assert prepare("esc50", "--source", esc50, "--out", tmp_path / "out", "--workers", 1) == 1
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (info["licence"], info["source"]) == ("CC BY-NC 3.0", DOWNLOADS["esc50"].source)

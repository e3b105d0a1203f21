"""`patchout tag --out`: the tags that are printed, as a job that goes on, in every form."""

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import LABELS, noise, tone, write_wav

import patchout
from patchout.checkpoint.own import save
from patchout.cli.main import run_command
from patchout.inference.bulk import ahead
from patchout.models.passt import Passt


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def model(decisive: Passt, tmp_path: Path) -> Path:
    save(decisive, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], model: Path) -> Run:
    """Run `patchout tag` in this process, with the tiny model and on the CPU."""

    def call(*args: object) -> Ran:
        defaults = ("--model", model, "--device", "cpu", "--precision", "fp32")
        code = run_command(["tag", *map(str, (*args, *defaults))])
        return Ran(code, *capfd.readouterr())

    return call


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two folders with a file of the same name, one that is silent, one that is no sound."""
    write_wav(tmp_path / "clips" / "a" / "0.wav", noise(3.0))
    write_wav(tmp_path / "clips" / "b" / "0.wav", np.concatenate([tone(1.5), noise(1.0)]))
    write_wav(tmp_path / "clips" / "quiet.wav", 0 * tone(1.0))
    (tmp_path / "clips" / "text.wav").write_text("no sound")
    return tmp_path / "clips"


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


# -- the same tags -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held_s", [60.0, 0.5], ids=["held", "streamed"])
def test_the_csv_is_what_is_printed(
    run: Run, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_s: float
) -> None:
    printed = run(clips, "--events", "--format", "csv")
    monkeypatch.setattr(ahead, "HELD_S", held_s)
    done = run(clips, "--events", "--out", tmp_path / "x.csv")
    assert (printed.code, done.code) == (1, 1)
    assert (tmp_path / "x.csv").read_text() == printed.out
    assert f"patchout: {tmp_path / 'x.csv'}: 3 of 4 files tagged" in done.err


def test_a_row_holds_scores_tags_events_and_scores_over_time(
    run: Run, clips: Path, tmp_path: Path, model: Path
) -> None:
    run(clips / "b" / "0.wav", "--events", "--format", "scores", "--out", tmp_path / "x.parquet")
    (row,) = rows(tmp_path / "x.parquet")
    tags = patchout.tag(patchout.load(model), clips / "b" / "0.wav", events=patchout.EventRule(), top=3)
    assert [tag["label"] for tag in row["tags"]] == list(tags.labels)
    by_label = dict(zip(LABELS, row["scores"], strict=True))
    np.testing.assert_allclose([by_label[label] for label in tags.labels], tags.scores, atol=1e-5)
    assert [(event["label"], event["start_s"]) for event in row["events"]] == [
        (event.label, event.start_s) for event in tags.events
    ]
    assert row["times_s"] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0]
    assert np.shape(row["track"]) == (7, 3)
    labels = json.loads(pq.read_schema(tmp_path / "x.parquet").metadata[b"patchout.labels"])
    assert tuple(labels) == LABELS


def test_segments_have_the_times_of_their_file(run: Run, clips: Path, tmp_path: Path) -> None:
    (clips / "list.csv").write_text("file,start,end\na/0.wav,1,2.5\na/0.wav,0,1\n")
    printed = run(clips / "list.csv", "--events", "--format", "csv")
    run(clips / "list.csv", "--events", "--out", tmp_path / "x.csv")
    assert (tmp_path / "x.csv").read_text() == printed.out
    run(clips / "list.csv", "--format", "scores", "--out", tmp_path / "x.parquet")
    assert rows(tmp_path / "x.parquet")[0]["times_s"] == [1.5, 1.75, 2.0]


# -- as a job ------------------------------------------------------------------------------------------------


def test_what_fails_is_a_row_and_is_tried_again(run: Run, clips: Path, tmp_path: Path) -> None:
    assert run(clips, "--out", tmp_path / "x.parquet").code == 1
    failed = next(row for row in rows(tmp_path / "x.parquet") if row["file"].endswith("text.wav"))
    assert (failed["duration_s"], failed["tags"], failed["scores"]) == (None, None, None)
    assert "is not audio" in failed["error"]
    write_wav(clips / "text.wav", tone(1.0))
    done = run(clips, "--out", tmp_path / "x.parquet")
    assert (done.code, "files that had failed and can be read now: 1" in done.err) == (0, True)
    assert all(row["tags"] for row in rows(tmp_path / "x.parquet"))


def test_a_finished_folder_is_read_and_not_computed(
    run: Run, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(clips, "--events", "--out", tmp_path / "out")
    monkeypatch.setattr(Passt, "predict", None)
    assert "0 s of sound" in run(clips, "--events", "--out", tmp_path / "out", "--format", "audacity").err


def test_another_threshold_is_another_job(run: Run, clips: Path, tmp_path: Path) -> None:
    run(clips, "--out", tmp_path / "out")
    done = run(clips, "--out", tmp_path / "out", "--threshold", 0.9)
    assert (done.code, "threshold None there, 0.9 here" in done.err) == (1, True)


def test_another_engine_is_called(
    run: Run, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patchout.inference.bulk.run import run_here

    engine = ModuleType("patchout.inference.bulk.cluster")
    engine.__dict__["ray_engine"] = lambda: run_here
    monkeypatch.setitem(sys.modules, "patchout.inference.bulk.cluster", engine)
    assert run(clips / "a", "--out", tmp_path / "x.parquet", "--engine", "ray").code == 0


# -- selection tables ----------------------------------------------------------------------------------------


def test_raven_opens_a_table_for_each_file(run: Run, clips: Path, tmp_path: Path) -> None:
    run(clips, "--out", tmp_path / "out", "--format", "raven")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.txt"))
    assert names == ["a-0.selections.txt", "b-0.selections.txt", "quiet.selections.txt"]
    text = (tmp_path / "out" / "a-0.selections.txt").read_text()
    table = [*csv.DictReader(io.StringIO(text), delimiter="\t")]
    (of_file,) = json.loads(run(clips / "a", "--events", "--format", "json").out)
    assert len(table) == len(of_file["events"]) > 0
    for number, (selection, event) in enumerate(zip(table, of_file["events"], strict=True), start=1):
        assert (selection["Selection"], selection["View"], selection["Channel"]) == (
            str(number), "Spectrogram 1", "1",
        )  # fmt: skip
        assert float(selection["Begin Time (s)"]) == event["start_s"] < float(selection["End Time (s)"])
        assert (selection["Low Freq (Hz)"], selection["High Freq (Hz)"]) == ("0.0", "15000.0")
        assert selection["Label"] == event["label"]
        assert Path(selection["Begin Path"]) == clips / "a" / "0.wav"


def test_a_label_track_of_events_has_nothing_else(run: Run, clips: Path, tmp_path: Path) -> None:
    run(clips, "--events", "--out", tmp_path / "out", "--format", "audacity")
    lines = (tmp_path / "out" / "a-0.labels.txt").read_text().splitlines()
    (of_file,) = json.loads(run(clips / "a", "--events", "--format", "json").out)
    spans = [(event["start_s"], event["end_s"], event["label"]) for event in of_file["events"]]
    assert lines == [f"{start_s:.3f}\t{end_s:.3f}\t{label}" for start_s, end_s, label in spans]
    assert lines


def test_the_segments_of_a_file_share_its_table(run: Run, clips: Path, tmp_path: Path) -> None:
    (clips / "list.csv").write_text("file,start,end\na/0.wav,1,2.5\nb/0.wav,0,1\na/0.wav,0,1\n")
    run(clips / "list.csv", "--out", tmp_path / "out", "--format", "audacity")
    lines = (tmp_path / "out" / "a-0.labels.txt").read_text().splitlines()
    spans = {tuple(line.split("\t")[:2]) for line in lines}
    assert spans <= {("1.000", "2.500"), ("0.000", "1.000")}
    assert len(spans) == 2


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--format", "raven"], "belong to a job: give --out FOLDER"),
        (["--engine", "ray"], "belong to a job: give --out FOLDER"),
        (
            ["--out", "x.csv", "--format", "raven"],
            "(a name that ends in .csv) takes --format table, csv",
        ),
        (["--out", "x", "--format", "json"], "--out x (a folder) takes --format table, scores, raven"),
        (["--out", "x.json"], "--out takes a folder, or a name that ends in .parquet or .csv, got x.json"),
        (["--out", "x.npz"], "--out takes a folder, or a name that ends in .parquet or .csv, got x.npz"),
        (["--out", "memory://x.csv"], "a URL takes a folder"),
        (["--out", "x", "--plot", "x.png"], "leave --out out"),
        (["--out", "x", "--batch-size", "2"], "leave --batch-size out"),
    ],
)
def test_what_cannot_be_is_refused(run: Run, clips: Path, options: list[str], reason: str) -> None:
    done = run(clips, *options)
    assert (done.code, reason in done.err) == (2, True)

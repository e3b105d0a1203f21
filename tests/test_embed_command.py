"""`patchout embed` as a user runs it."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import noise, tiny_config, tone, write_wav

from patchout.checkpoint.own import save
from patchout.cli import embed, output
from patchout.cli.main import run_command
from patchout.models import kernels
from patchout.models.passt import Passt

WIDTH, CLASSES = 32, 3


class Ran(NamedTuple):
    code: int
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save(Passt(tiny_config(), rng=torch.Generator().manual_seed(0)), path)
    return path


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], model: Path) -> Run:
    """Run `patchout embed` in this process, with the tiny model and on the CPU."""

    def call(*args: object) -> Ran:
        defaults = {"--model": model, "--device": "cpu"}
        options = [word for name, value in defaults.items() if name not in args for word in (name, value)]
        try:
            code = run_command(["embed", *map(str, (*args, *options))])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        assert out == ""
        return Ran(code, err)

    return call


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two classes of two sounds."""
    for index in range(2):
        write_wav(tmp_path / "clips" / "bell" / f"{index}.wav", tone(0.5, 800 + index))
        write_wav(tmp_path / "clips" / "rain" / f"{index}.wav", noise(0.7, index))
    return tmp_path / "clips"


def size_of(path: Path) -> int:
    return int(pq.read_schema(path).field("embedding").type.list_size)


# -- results -------------------------------------------------------------------------------------------------


def test_one_parquet_file(run: Run, clips: Path, tmp_path: Path) -> None:
    done = run(clips, "--out", tmp_path / "x.parquet")
    table = pq.read_table(tmp_path / "x.parquet")
    assert (done.code, table.num_rows, size_of(tmp_path / "x.parquet")) == (0, 4, WIDTH)
    assert f"patchout: {tmp_path / 'x.parquet'}: 4 of 4 files embedded, 4 rows" in done.err
    assert "x real time" in done.err
    assert not (tmp_path / "x.parquet.parts").exists()


def test_a_folder_of_shards(run: Run, clips: Path, tmp_path: Path) -> None:
    assert run(clips, "--out", tmp_path / "x").code == 0
    assert pq.read_table(tmp_path / "x" / "part-000000.parquet").num_rows == 4


def test_npy(run: Run, clips: Path, tmp_path: Path) -> None:
    done = run(clips, "--out", tmp_path / "x", "--format", "npy")
    assert (done.code, f"patchout: {tmp_path / 'x'}: 4 of 4 files embedded" in done.err) == (0, True)
    assert np.load(tmp_path / "x" / "embeddings.npy").shape == (4, WIDTH)


def test_timestamps(run: Run, clips: Path, tmp_path: Path) -> None:
    assert run(clips / "bell", "--out", tmp_path / "x.parquet", "--kind", "timestamp").code == 0
    assert (
        pq.read_table(tmp_path / "x.parquet")["time_ms"].to_pylist()
        == [50.0 * step for step in range(11)] * 2
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "size"),
    [
        (["--levels", "high", "mid"], CLASSES + WIDTH),
        (["--levels", "low", "mid", "--fields-ms", "160", "320"], 6 * 128 + 2 * WIDTH),
        (["--preset", "base2level"], 2 * (CLASSES + WIDTH)),
        (["--preset", "base2levelmel", "--levels", "mid"], 2 * WIDTH),
    ],
)
def test_levels_fields_and_presets(
    run: Run, clips: Path, tmp_path: Path, options: list[str], size: int
) -> None:
    assert run(clips / "bell", "--out", tmp_path / "x.parquet", "--kind", "timestamp", *options).code == 0
    assert size_of(tmp_path / "x.parquet") == size


def test_a_list_of_segments(run: Run, clips: Path, tmp_path: Path) -> None:
    (clips / "list.csv").write_text("file,start,end\nbell/0.wav,0.1,0.4\nrain/0.wav,,\n")
    assert run(clips / "list.csv", "--out", tmp_path / "x.parquet").code == 0
    assert pq.read_table(tmp_path / "x.parquet")["start_s"].to_pylist() == [0.1, 0.0]


def test_a_row_that_cannot_be_read_is_named_and_the_rest_is_embedded(
    run: Run, clips: Path, tmp_path: Path
) -> None:
    (clips / "list.jsonl").write_text('[1]\n{"path": "bell/0.wav", "start_ms": 1}\n')
    done = run(clips / "list.jsonl", "--out", tmp_path / "x.parquet")
    assert (done.code, pq.read_table(tmp_path / "x.parquet").num_rows) == (1, 1)
    assert "list.jsonl line 1: is not an object" in done.err
    assert "columns that are not used: start_ms" in done.err


@pytest.mark.slow
def test_the_built_in_model_is_named(run: Run, clips: Path, tmp_path: Path) -> None:
    done = run(clips / "bell", "--out", tmp_path / "x.parquet", "--model", "")
    assert "using the built-in model sounds-tiny" in done.err
    assert size_of(tmp_path / "x.parquet") == 192


def test_another_engine_is_called(
    run: Run, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patchout.inference.bulk.run import run_here

    engine = ModuleType("patchout.inference.bulk.cluster")
    engine.__dict__["ray_engine"] = lambda: run_here
    monkeypatch.setitem(sys.modules, "patchout.inference.bulk.cluster", engine)
    assert run(clips, "--out", tmp_path / "x.parquet", "--engine", "ray").code == 0


# -- again ---------------------------------------------------------------------------------------------------


def test_a_finished_result_is_left_alone(run: Run, clips: Path, tmp_path: Path) -> None:
    run(clips, "--out", tmp_path / "x.parquet")
    written = (tmp_path / "x.parquet").stat().st_mtime_ns
    done = run(clips, "--out", tmp_path / "x.parquet")
    assert (done.code, (tmp_path / "x.parquet").stat().st_mtime_ns) == (0, written)
    assert "is there already, with 4 of 4 files embedded" in done.err


def test_a_finished_result_with_failures_still_fails(run: Run, clips: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert run(clips, tmp_path / "gone.wav", "--out", tmp_path / "x.parquet").code == 1


@pytest.mark.parametrize("name", ["x", "x.parquet"])
def test_the_result_of_another_job_is_refused_by_name(
    run: Run, clips: Path, tmp_path: Path, name: str
) -> None:
    run(clips, "--out", tmp_path / name)
    done = run(clips, "--out", tmp_path / name, "--kind", "timestamp")
    assert done.code == 1
    assert f"{name}: belongs to another job (kind 'scene' there, 'timestamp' here)" in done.err


# -- what fails ----------------------------------------------------------------------------------------------


def test_a_broken_file_fails_alone(run: Run, clips: Path, tmp_path: Path) -> None:
    (clips / "bell" / "00.wav").write_text("no sound")
    done = run(clips, "--out", tmp_path / "x.parquet")
    assert done.code == 1
    assert "00.wav" in done.err
    assert "4 of 5 files embedded" in done.err
    assert pq.read_table(tmp_path / "x.parquet")["embedding"].null_count == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--out", "x.npy", "--format", "npy"], 2, "--format npy writes a folder, got --out x.npy"),
        *(
            (["--out", out], 2, f"writes a folder or a name that ends in .parquet, got --out {out}")
            for out in ("x.csv", "x.npz", "x.JSON", "s3://bucket/x.tsv")
        ),
        (["--out", "x.csv", "--format", "npy"], 2, "--format npy writes a folder, got --out x.csv"),
        (["--out", "x.h5"], 2, "--format parquet writes a folder or a name that ends in .parquet"),
        (
            ["--out", "x", "--format", "hdf5"],
            2,
            "writes a name that ends in .h5 or a name that ends in .hdf5",
        ),
        (["--out", "x.doc", "--format", "hdf5"], 2, "writes a name that ends in .h5"),
        (["--out", "memory://x.parquet"], 2, "a URL takes a folder of Parquet shards"),
        (["--out", "x", "--preset", "base2levl"], 2, "did you mean base2level?"),
        (
            ["--out", "x", "--preset", "hop160base"],
            2,
            "give one such as passt-s-hop160-ap473, or a preset that fits",
        ),
        (["--out", "x", "--levels", "mid", "mid"], 2, "each once"),
        (["--out", "x", "--fields-ms", "1"], 2, "does not fit"),
        (["--out", "no/such/x.parquet"], 1, "no such folder to write into"),
        (["--out", "x", "--plot", "x.png"], 2, "add --kind timestamp"),
        (["--out", "x", "--project", "x.png", "--kind", "timestamp"], 2, "--project draws scenes"),
        (["--out", "x", "--project", "x.doc"], 2, "x.doc"),
        (["--out", "x", "--project", "x.png", "--format", "npy"], 2, "leave --format out"),
        (["--out", "x", "--plot", "x.png", "--kind", "timestamp"], 2, "--plot draws one whole file, 4 files"),
        (["--out", "x", "--model", "passt-z"], 2, "unknown model"),
        (["--out", "x", "--device", "tpu"], 2, "no device 'tpu'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    run: Run, clips: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int, reason: str
) -> None:
    monkeypatch.chdir(clips)
    done = run("bell", "rain", *options)
    assert done.code == code
    assert reason in done.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_a_device_is_no_result(run: Run, clips: Path) -> None:
    done = run(clips, "--out", "/dev/full", "--format", "npy")
    assert (done.code, "patchout: /dev/full: is a device: name a file" in done.err) == (1, True)


def test_no_files_are_refused(run: Run, tmp_path: Path) -> None:
    assert "no files given" in run("--out", tmp_path / "x").err


def test_hdf5_without_its_library_names_the_extra(
    run: Run, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "pip install 'patchout[hdf5]'" in run(clips, "--out", tmp_path / "x.h5", "--format", "hdf5").err


# -- pictures ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x", "x.parquet"])
def test_plot_draws_a_sound(run: Run, clips: Path, tmp_path: Path, name: str) -> None:
    picture = tmp_path / "sound.png"
    done = run(clips / "bell" / "0.wav", "--out", tmp_path / name, "--kind", "timestamp", "--plot", picture)
    assert (done.code, picture.read_bytes()[:4]) == (0, b"\x89PNG")


@pytest.mark.slow
def test_project_draws_a_map_without_what_failed(run: Run, clips: Path, tmp_path: Path) -> None:
    picture = tmp_path / "map.png"
    done = run(clips, tmp_path / "gone.wav", "--out", tmp_path / "x.parquet", "--project", picture)
    assert (done.code, picture.read_bytes()[:4]) == (1, b"\x89PNG")


def test_nothing_is_drawn_where_all_failed(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "map.png"
    assert run(tmp_path / "gone.wav", "--out", tmp_path / "x.parquet", "--project", picture).code == 1
    assert not picture.exists()


def test_the_bar_shows_sound_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # taken for a terminal
    with (
        (tmp_path / "terminal").open("w", encoding="utf-8") as terminal,
        output.Bar("files", 4, terminal) as bar,
    ):
        time.sleep(0.02)
        bar.sounds(3, 1.0)
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", (tmp_path / "terminal").read_text(encoding="utf-8"))
    assert re.search(r"3/4 +\d+ s of sound/s", shown)


def test_classes_of_a_data_set_come_from_its_csv(class_folder: Path) -> None:
    rows = [
        f"{path.relative_to(class_folder)},a {path.parent.name}"
        for path in sorted(class_folder.rglob("*.wav"))
    ]
    (class_folder / "clips.csv").write_text("\n".join(["file,label", *rows]))
    found = embed._classes([str(class_folder), "some.wav"])
    assert len(found) == 12
    assert found[str(class_folder / "dog" / "0.wav")] == "a dog"


def test_classes_of_folders_are_those_of_training(tmp_path: Path) -> None:
    paths = [
        tmp_path / "set" / split / name / "a.wav" for split in ("train", "test") for name in ("dog", "cat")
    ]
    for path in paths:
        write_wav(path, tone(0.02))
    assert embed._classes([str(tmp_path / "set")]) == {str(path): path.parent.name for path in paths}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_precision_is_settled_once(precision: str) -> None:
    options = embed.Options(paths=("x",), out="y", model="sounds-tiny", precision=precision)  # type: ignore[arg-type]
    assert embed._job(options).precision == precision


@pytest.mark.parametrize(("speed", "precision"), [(2.0, "bf16"), (0.5, "fp32")])
def test_auto_precision_is_the_faster_one(
    speed: float, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        kernels, "chosen", lambda: kernels.Kernels(False, False, False, False, bf16_speed=speed)
    )
    options = embed.Options(paths=("x",), out="y", model="sounds-tiny", device="cpu")
    assert embed._job(options).precision == precision


@pytest.mark.parametrize(("precision", "is_told"), [("auto", True), ("bf16", False)])
def test_a_precision_that_this_machine_chose_for_a_cluster_is_told(
    precision: str, is_told: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    options = embed.Options(
        paths=("x",),
        out="y",
        model="sounds-tiny",
        engine="ray",
        precision=precision,  # type: ignore[arg-type]
    )
    job = embed._job(options)
    said = f"precision {job.precision}, the faster one on this machine: name the cluster's with --precision"
    assert (said in capfd.readouterr().err) is is_told

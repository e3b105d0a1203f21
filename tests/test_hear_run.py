"""`patchout hear run` as a user runs it."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from conftest import RATE, tiny_config
from hear_folders import make_task, silence
from torch import Tensor, nn

from patchout.checkpoint.own import save
from patchout.cli.hear import _summary as summary
from patchout.cli.hear import main
from patchout.hear.embeddings import EmbeddingError
from patchout.hear.subject import ModuleError
from patchout.hear.tasks import TaskError, read_task
from patchout.models.passt import Passt

SCORES = "test.predicted-scores.json"
QUICK = {"task_specific_param_grid": {"hidden_dim": [8], "max_epochs": [3]}}


class Loudness(nn.Module):
    """Two values a sound; counts the sounds."""

    def __init__(self, weights: str = "") -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(Path(weights).read_text()) if weights else 1.0))
        self.sample_rate, self.scene_embedding_size, self.timestamp_embedding_size = RATE, 2, 2
        self.seen = 0


def scene(wave: Tensor, model: Loudness) -> Tensor:
    model.seen += len(wave)
    return model.scale * torch.stack([wave.square().mean(1), wave.diff(dim=1).square().mean(1)], dim=1)


def timestamp(wave: Tensor, model: Loudness) -> tuple[Tensor, Tensor]:
    frames = wave.unfold(1, 1600, 1600)
    times_ms = (50.0 * torch.arange(frames.shape[1]) + 25).expand(len(wave), -1)
    return torch.stack([frames.square().mean(2), frames.amax(2)], dim=2), times_ms


class Ran(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def models() -> list[Loudness]:
    """Those that were loaded."""
    return []


@pytest.fixture
def run(
    tmp_path: Path, models: list[Loudness], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Run:
    """Run the command on the tasks in `tasks/`, with the module `loudness`."""
    module = ModuleType("loudness")

    def load_model(weights: str = "") -> Loudness:
        models.append(Loudness(weights))
        return models[-1]

    functions = {
        "load_model": load_model,
        "get_scene_embeddings": scene,
        "get_timestamp_embeddings": timestamp,
    }
    module.__dict__.update(functions)
    monkeypatch.setitem(sys.modules, "loudness", module)

    def call(*args: object, model: object = "loudness") -> Ran:
        where = ["--tasks", tmp_path / "tasks", "--out", tmp_path / "out", "--grid", "two", "--device", "cpu"]
        code = main(list(map(str, ["run", model, *where, *args])))
        return Ran(code, *capfd.readouterr())

    return call


def add_task(tmp_path: Path, name: str = "toy", **metadata: Any) -> Path:
    return make_task(tmp_path / "tasks", task_name=name, evaluation_params=QUICK, **metadata)


def results(tmp_path: Path, model: str = "loudness") -> dict[str, Any]:
    """Task -> its record."""
    found = (tmp_path / "out" / model).glob(f"*/{SCORES}")
    return {path.parent.name: json.loads(path.read_text()) for path in found}


# -- what it writes ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scene", "event"])
@pytest.mark.parametrize("mode", ["trainvaltest", "presplit_kfold"])
def test_every_kind_of_task_is_judged(tmp_path: Path, run: Run, kind: str, mode: str) -> None:
    add_task(tmp_path, kind=kind, mode=mode)
    ran = run()
    assert (ran.code, ran.err) == (0, "")
    record = results(tmp_path)["toy-v1-full"]
    splits = ["test"] if mode == "trainvaltest" else ["fold00", "fold01", "fold02"]
    assert list(record)[: len(splits)] == splits
    assert ("aggregated_scores" in record) == (len(splits) > 1)
    assert list(record["patchout"]["seconds"]) == ["embedding", *splits]
    found = {path.name for path in (tmp_path / "out").rglob("*.predictions.pkl")}
    assert found == {f"{split}.predictions.pkl" for split in splits}


def test_the_summary_is_one_line_a_task(tmp_path: Path, run: Run) -> None:
    add_task(tmp_path, "one")
    add_task(tmp_path, "two", mode="presplit_kfold")
    lines = run().out.splitlines()
    assert re.fullmatch(r"one-v1-full  top1_acc \d\.\d{4}  embedding \d+\.\d s  probes \d+\.\d s", lines[0])
    assert re.match(r"two-v1-full  top1_acc \d\.\d{4} \(mean of 3 folds, sd \d\.\d{4}\)  embedding", lines[1])


def test_a_score_that_is_undefined_is_told_as_such(tmp_path: Path) -> None:
    task = read_task(add_task(tmp_path))
    record = {"test": {"test_score": float("nan")}, "patchout": {"seconds": {"test": 1.0}}}
    assert summary(task, record) == "toy-v1-full  top1_acc undefined  probes 1.0 s"


def test_the_record_says_what_it_depends_on(tmp_path: Path, run: Run) -> None:
    add_task(tmp_path)
    run("--seed", "7")
    about = results(tmp_path)["toy-v1-full"]["patchout"]
    assert {name: about[name] for name in ("model", "grid", "seed", "rate")} == {
        "model": "loudness",
        "grid": "two",
        "seed": 7,
        "rate": RATE,
    }
    assert all(
        re.fullmatch("[0-9a-f]{64}", about[name])
        for name in ("weights_sha256", "task_sha256", "config_sha256")
    )


def test_only_the_named_tasks_are_judged(tmp_path: Path, run: Run) -> None:
    for name in ("one", "two", "three"):
        add_task(tmp_path, name)
    run("--task", "one", "three-v1-full")
    assert set(results(tmp_path)) == {"one-v1-full", "three-v1-full"}
    with pytest.raises(TaskError, match="no task four"):
        run("--task", "four")


@pytest.mark.slow
def test_our_models_are_judged_with_their_settings(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_task(tmp_path, kind="event")
    save(Passt(tiny_config(), rng=torch.Generator().manual_seed(0)), tmp_path / "tiny.safetensors")
    monkeypatch.chdir(tmp_path)
    assert run("--levels", "low", "mid", "--fields-ms", "160", "640", model="tiny.safetensors").code == 0
    assert run("--preset", "base2level", model="tiny.safetensors").code == 0
    found = (tmp_path / "out").rglob("test.embedding-dimensions.json")
    sizes = {path.parent.parent.name: json.loads(path.read_text())[1] for path in found}
    assert sizes == {"tiny-low+mid-160ms+640ms": 6 * 128 + 2 * 32, "tiny-base2level": 2 * (3 + 32)}
    with pytest.raises(
        ValueError, match="preset hop160base is for a model with log-mel frames every 5 ms, not 10"
    ):
        run("--preset", "hop160base", model="tiny.safetensors")


@pytest.mark.slow
def test_the_precision_is_part_of_what_a_result_is(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "auto" goes on with that of the embeddings that are there; another one is refused."""
    add_task(tmp_path)
    save(Passt(tiny_config(), rng=torch.Generator().manual_seed(0)), tmp_path / "tiny.safetensors")
    monkeypatch.chdir(tmp_path)
    assert run("--precision", "bf16", model="tiny.safetensors").code == 0
    identity = json.loads((tmp_path / "out" / "tiny" / "model.json").read_text())
    assert identity["settings"]["precision"] == "bf16"
    assert run(model="tiny.safetensors").code == 0  # auto would be fp32 here
    ran = run("--precision", "fp32", model="tiny.safetensors")
    assert ran.code == 1
    assert "was made with settings" in ran.err
    shutil.rmtree(tmp_path / "out")
    assert run("--precision", "fp32", model="tiny.safetensors").code == 0
    assert "precision" not in json.loads((tmp_path / "out" / "tiny" / "model.json").read_text())["settings"]


def test_a_module_has_its_own_precision(tmp_path: Path, run: Run) -> None:
    add_task(tmp_path)
    with pytest.raises(ValueError, match="--precision is for a model by its name, loudness is a HEAR module"):
        run("--precision", "bf16")


def test_a_module_gets_its_weights(tmp_path: Path, run: Run, models: list[Loudness]) -> None:
    add_task(tmp_path)
    (tmp_path / "loud.pt").write_text("2.5")
    run("--weights", tmp_path / "loud.pt")
    assert models[0].scale.item() == 2.5
    assert set(results(tmp_path, "loudness-loud")) == {"toy-v1-full"}


def test_embeddings_that_are_there_are_judged_without_their_model(
    tmp_path: Path, run: Run, models: list[Loudness], capfd: pytest.CaptureFixture[str]
) -> None:
    """Ours with another seed, and the kit's, which do not say whose they are."""
    folder = add_task(tmp_path)
    run()
    embeddings = tmp_path / "out" / "loudness"
    args = ["--out", str(tmp_path / "again"), "--grid", "two", "--device", "cpu"]
    assert main(["run", str(embeddings), "--seed", "1", *args]) == 0
    record = json.loads((tmp_path / "again" / "loudness" / folder.name / SCORES).read_text())
    assert (record["patchout"]["seed"], record["patchout"]["model"]) == (1, "loudness")
    assert len(models) == 1
    for name in ("task.json", ".done.embeddings", SCORES):
        (embeddings / folder.name / name).unlink()
    embeddings.rename(tmp_path / "their.module")
    assert main(["run", str(tmp_path / "their.module"), *args]) == 0
    record = json.loads((tmp_path / "again" / "their.module" / folder.name / SCORES).read_text())
    assert record["patchout"]["model"] == "their.module"


def test_a_module_in_this_folder_is_found(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    add_task(tmp_path)
    (tmp_path / "lying_here.py").write_text("from loudness import *\n")
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(tmp_path)
    assert run(model="lying_here").code == 0


# -- going on ------------------------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again(tmp_path: Path, run: Run, models: list[Loudness]) -> None:
    add_task(tmp_path)
    first = run()
    record = results(tmp_path)
    again = run()
    assert [model.seen for model in models] == [9, 0]
    assert (again.code, again.out) == (0, first.out)
    assert results(tmp_path) == record


@pytest.mark.slow
def test_a_failing_task_is_named_and_the_others_are_judged(tmp_path: Path, run: Run) -> None:
    add_task(tmp_path, "a_good_one")
    (add_task(tmp_path, "half") / "valid.json").unlink()
    silence(add_task(tmp_path, "slow") / str(RATE) / "test" / "test0.wav", 0.5, 16_000)
    add_task(tmp_path, "z_good_too")
    ran = run()
    assert ran.code == 1
    assert set(results(tmp_path)) == {"a_good_one-v1-full", "z_good_too-v1-full"}
    problems = ran.err.splitlines()
    assert len(problems) == 2
    assert re.search(r"half-v1-full: valid.json is missing", problems[0])
    assert re.search(r"slow-v1-full.*test0.wav: has 16000 Hz", problems[1])


def test_embeddings_with_nan_name_the_task(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    add_task(tmp_path)
    add_task(tmp_path, "frames", kind="event")
    monkeypatch.setattr(
        sys.modules["loudness"], "get_scene_embeddings", lambda wave, model: scene(wave, model) * torch.nan
    )
    ran = run()
    assert ran.code == 1
    assert (
        ran.err == "patchout: toy-v1-full: loudness: scene embeddings have NaN or infinite values; "
        "every value must be finite\n"
    )
    assert set(results(tmp_path)) == {"frames-v1-full"}


def test_results_of_two_models_are_not_mixed(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_task(tmp_path)
    run()
    record = results(tmp_path)
    monkeypatch.setattr(sys.modules["loudness"], "load_model", lambda: nn.Module.double(Loudness()))
    ran = run()
    assert ran.code == 1
    assert "made with weights_sha256" in ran.err
    assert results(tmp_path) == record


def test_a_cut_wav_is_refused_by_name(tmp_path: Path, run: Run) -> None:
    silence(add_task(tmp_path) / str(RATE) / "test" / "test0.wav", 0.4)
    ran = run()
    assert ran.code == 1
    assert re.search(
        r"test0.wav: has 32000 Hz, 1 channels and 12800 samples, not 32000 Hz, 1 and 16000; rem", ran.err
    )


def test_a_label_without_an_example_is_told(tmp_path: Path, run: Run) -> None:
    folder = add_task(tmp_path)
    clips = json.loads((folder / "test.json").read_text())
    (folder / "test.json").write_text(json.dumps({key: ["high"] for key in clips}))
    ran = run()
    assert (
        ran.code,
        "toy-v1-full: test has no example of low: 0 in mAP, no AUC and d', as in the kit" in ran.err,
    ) == (
        0,
        True,
    )


@pytest.mark.slow
def test_a_damaged_folder_of_embeddings_does_not_stop_the_others(tmp_path: Path, run: Run) -> None:
    for name in ("a", "b", "c"):
        add_task(tmp_path, name)
    run()
    kept = tmp_path / "out" / "loudness"
    for file in kept.glob(f"*/{SCORES}"):
        file.unlink()
    (kept / "a-v1-full" / "test.target-labels.pkl").unlink()
    (kept / "b-v1-full" / "test.embedding-dimensions.json").write_text("[3")
    assert main(["run", str(kept), "--out", str(tmp_path / "again"), "--grid", "two", "--device", "cpu"]) == 1
    assert [path.parent.name for path in (tmp_path / "again").glob(f"*/*/{SCORES}")] == ["c-v1-full"]


def test_another_seed_wants_another_folder(tmp_path: Path, run: Run) -> None:
    add_task(tmp_path)
    run()
    ran = run("--seed", "1")
    assert ran.code == 1
    assert re.search(r"was made with seed 0, this is 1; give another --out", ran.err)


# -- wrong requests ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--preset", "base2lvl"], r"no preset 'base2lvl' \(did you mean base2level\?\)"),
        (["--levels", "low"], "an embedding's settings are for our models"),
        (["--seed", "-1"], "--seed must be 0 or more"),
        (["--device", "gpu"], "no device 'gpu'"),
    ],
)
def test_a_wrong_request_is_refused(tmp_path: Path, run: Run, args: list[str], reason: str) -> None:
    add_task(tmp_path)
    with pytest.raises(ValueError, match=reason) as error:
        run(*args)
    assert not isinstance(error.value, TaskError | ModuleError | EmbeddingError)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my.py", "my"),
        ("./lib/my.py", "lib.my"),
        ("loudness+lib/my.py", "lib.my"),
        ("/lib/my.py", "my, in its folder"),
    ],
)
def test_the_file_of_a_module_is_answered_with_its_name(
    tmp_path: Path, run: Run, file: str, name: str
) -> None:
    with pytest.raises(
        ValueError, match=rf"my\.py: a HEAR module is given by the name that imports it: give {name}$"
    ):
        run(model=file)


def test_results_of_embeddings_that_have_changed_are_made_anew(
    tmp_path: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = add_task(tmp_path)
    run()
    embeddings = tmp_path / "out" / "loudness"
    words = ["run", str(embeddings), "--out", str(tmp_path / "again"), "--grid", "two", "--device", "cpu"]
    results = tmp_path / "again" / "loudness" / folder.name / SCORES
    assert main(words) == 0
    first = results.stat().st_mtime_ns
    assert main(words) == 0
    assert results.stat().st_mtime_ns == first
    os.utime(embeddings / folder.name / "test.embeddings.npy", (4e9, 4e9))
    assert main(words) == 0
    assert results.stat().st_mtime_ns > first


def test_without_tasks_there_must_be_embeddings(tmp_path: Path, run: Run) -> None:
    for model, *args in (["loudness"], [str(tmp_path), "--preset", "base"]):
        with pytest.raises(ValueError, match=r"--tasks is missing: only a folder of embeddings"):
            main(["run", model, "--out", str(tmp_path / "out"), *args])


def test_the_options_are_at_most_twelve(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    options = set(re.findall(r"(?<![\w-])--([a-z][a-z-]*)", capsys.readouterr().out)) - {"help"}
    assert options == {
        "tasks",
        "out",
        "task",
        "weights",
        "preset",
        "levels",
        "fields-ms",
        "grid",
        "seed",
        "device",
        "precision",
    }

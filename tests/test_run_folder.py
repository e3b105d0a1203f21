"""The run folder: config.json, lock, restart, changed config, log, state."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from patchout.errors import InputError
from patchout.training.masked.recipes import RECIPES
from patchout.training.run_folder import RunFolder, as_begun, open_run, settings_of
from patchout.training.supervised.config import TrainConfig

CONFIG: dict[str, Any] = {"recipe": "test", "lr": 0.1, "gain_db": (-7, 6), "seed": 3}
DATA: dict[str, Any] = {"clips": 4, "classes": ["bell", "dog"], "ids_sha256": "ab12", "root": "/sounds"}
CPU = torch.device("cpu")


def enter(
    out: Path, config: dict[str, Any] = CONFIG, data: dict[str, Any] = DATA, **options: bool
) -> RunFolder:
    """Open and close."""
    with open_run(out, config, data, **options) as folder:
        return folder


def stored(out: Path) -> dict[str, Any]:
    return json.loads((out / "config.json").read_text())


def test_the_config_file_says_what_is_run_on_what(tmp_path: Path) -> None:
    enter(tmp_path / "a" / "run")
    told = stored(tmp_path / "a" / "run")
    assert told["config"] == CONFIG | {"gain_db": [-7, 6]}
    assert (told["data"], told["changes"]) == (DATA, [])
    assert told["versions"]["torch"] == torch.__version__
    assert set(told["versions"]) == {"patchout", "torch", "accelerate", "python"}


def test_the_same_config_continues(tmp_path: Path) -> None:
    enter(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    enter(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_changed_config_is_refused_key_by_key(tmp_path: Path) -> None:
    enter(tmp_path)
    with pytest.raises(
        ValueError, match=r"another config \(lr 0\.1 -> 0\.2, ema None -> 0\.9\): .*--accept-changes"
    ):
        enter(tmp_path, CONFIG | {"lr": 0.2, "ema": 0.9})
    assert stored(tmp_path)["config"]["lr"] == 0.1


@pytest.mark.parametrize("place", [".", "seed-0/fold-1", "left"])
def test_a_run_goes_on_as_it_began_when_its_recipe_has_changed(tmp_path: Path, place: str) -> None:
    old, today = (
        TrainConfig(recipe="test", lr=lr, gain_db=gain) for lr, gain in ((0.1, (-7, 6)), (0.2, (0, 0)))
    )
    enter(tmp_path / place, vars(replace(old, split="1", seed=7)) | {"out": ""})
    config, changes = as_begun(replace(today, epochs=3), today, tmp_path)
    assert config == replace(old, epochs=3)  # but for what a flag asks for
    assert changes == "gain_db (0, 0) -> (-7, 6), lr 0.2 -> 0.1"
    other = replace(today, recipe="other")
    assert as_begun(other, other, tmp_path) == (other, "")


def test_a_run_goes_on_without_what_its_recipe_has_learnt_since(tmp_path: Path) -> None:
    begun = TrainConfig(recipe="test")
    before = {name: value for name, value in vars(begun).items() if name not in ("thresholds", "background")}
    enter(tmp_path, before | {"out": ""})
    today = replace(begun, thresholds=True, background="auto")
    assert as_begun(today, today, tmp_path)[0] == begun


def test_what_the_machine_decided_is_no_change_of_the_recipe(tmp_path: Path) -> None:
    today = TrainConfig(recipe="test", precision="auto")
    enter(tmp_path, vars(replace(today, precision="bf16")) | {"out": ""})
    assert as_begun(today, today, tmp_path) == (today, "")


@pytest.mark.parametrize("place", ["mine", "replaced-1", "seed-0/mine"])
def test_another_run_below_is_not_gone_on_with(tmp_path: Path, place: str) -> None:
    enter(tmp_path / place)
    today = TrainConfig(recipe="test", lr=0.2)
    assert as_begun(today, today, tmp_path) == (today, "")


@pytest.mark.parametrize("restart", [False, True])
def test_a_single_run_does_not_begin_in_a_folder_of_several(restart: bool, tmp_path: Path) -> None:
    enter(tmp_path / "seed-0" / "left")
    (tmp_path / "scores.json").write_text("theirs")
    with pytest.raises(ValueError, match=r"several runs \(seed-0.left is one\), .*: choose another --out"):
        enter(tmp_path, restart=restart)
    assert (tmp_path / "scores.json").read_text() == "theirs"


@pytest.mark.parametrize("init", ["", "maskspec-base"])
def test_a_pre_training_goes_on_as_it_began_with_the_sizes_of_its_start(tmp_path: Path, init: str) -> None:
    today = replace(RECIPES["own"], recipe="own", base_lr=2e-3)
    begun = replace(today, init=init, base_lr=1e-3, batch=96, size="base")
    enter(tmp_path, vars(begun) | {"out": "", "mel_cache": False, "probe_every": 0})
    config, changes = as_begun(today, today, tmp_path, of_weights={"size"})
    assert config == replace(
        today, base_lr=1e-3, size="small" if init else "base"
    )  # a start brings its own, as it did
    assert changes == ("" if init else "size 'small' -> 'base', ") + "base_lr 0.002 -> 0.001"


def test_a_run_of_before_a_field_continues_while_that_is_plain(tmp_path: Path) -> None:
    enter(tmp_path)
    now = CONFIG | {"ema": 0.0}
    enter(tmp_path, settings_of(now, now, stored(tmp_path)["config"]))
    with pytest.raises(ValueError, match=r"another config \(ema None -> 0\.9\)"):
        enter(tmp_path, settings_of(now | {"ema": 0.9}, now, stored(tmp_path)["config"]))


def test_an_accepted_change_is_kept_with_those_before(tmp_path: Path) -> None:
    enter(tmp_path).log({"step": 12, "loss": 1.0})
    for lr in (0.2, 0.3):
        enter(tmp_path, CONFIG | {"lr": lr}, accept_changes=True)
    told = stored(tmp_path)
    assert told["config"]["lr"] == 0.3
    assert [change["changed"] for change in told["changes"]] == [{"lr": [0.1, 0.2]}, {"lr": [0.2, 0.3]}]
    assert told["changes"][0]["after_step"] == 12
    enter(tmp_path, CONFIG | {"lr": 0.3})


@pytest.mark.parametrize("accept", [True, False])
def test_other_data_is_refused(accept: bool, tmp_path: Path) -> None:
    enter(tmp_path)
    with pytest.raises(ValueError, match=r"on other data \(clips 4 -> 5, ids_sha256 'ab12' -> 'cd34'\)"):
        enter(tmp_path, data=DATA | {"clips": 5, "ids_sha256": "cd34"}, accept_changes=accept)


def test_the_data_may_move(tmp_path: Path) -> None:
    enter(tmp_path)
    enter(tmp_path, data=DATA | {"root": "/elsewhere"})
    assert stored(tmp_path)["data"]["root"] == "/sounds"


def test_a_second_run_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    with (
        open_run(tmp_path, CONFIG, DATA),
        pytest.raises(
            ValueError, match="another run is using this folder: wait for it, or choose another --out"
        ),
    ):
        enter(tmp_path)
    enter(tmp_path)


def test_a_refused_config_leaves_the_folder_free(tmp_path: Path) -> None:
    enter(tmp_path)
    with pytest.raises(ValueError, match="another config"):
        enter(tmp_path, CONFIG | {"lr": 0.2})
    enter(tmp_path)


@pytest.mark.slow
def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from patchout.training.run_folder import open_run\n"
        "with open_run(pathlib.Path(sys.argv[1]), {}, {}): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -9
    enter(tmp_path, {}, {})


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    enter(tmp_path / "run", is_main=False)
    assert not (tmp_path / "run").exists()


def test_a_restart_moves_the_old_run_aside_and_says_so(tmp_path: Path) -> None:
    folder = enter(tmp_path)
    folder.log({"step": 20, "loss": 0.5})
    folder.save_state({"step": 20})
    (tmp_path / "notes.txt").write_text("mine")
    again = enter(tmp_path, CONFIG | {"lr": 0.2}, restart=True)
    moved = tmp_path / "replaced-1"
    assert again.replaced == (
        f"replaces a run of 20 steps in {tmp_path}: "
        f"its config.json, metrics.jsonl, state.pt are now in {moved}"
    )
    assert sorted(path.name for path in moved.iterdir()) == ["config.json", "metrics.jsonl", "state.pt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert again.load_state(CPU) is None
    assert stored(tmp_path)["config"]["lr"] == 0.2
    assert "replaced-2" in enter(tmp_path, restart=True).replaced


def test_a_restart_of_nothing_replaces_nothing(tmp_path: Path) -> None:
    assert enter(tmp_path, restart=True).replaced == ""


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": {}}'])
def test_a_damaged_config_says_what_to_do(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(
        InputError, match=r"config.json: damaged: bring it back, or begin anew with --restart"
    ):
        enter(tmp_path)
    assert enter(tmp_path, restart=True).replaced


def test_a_state_without_its_config_is_not_continued(tmp_path: Path) -> None:
    enter(tmp_path).save_state({"step": 1})
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"a state.pt without its config.json"):
        enter(tmp_path)


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    folder = enter(tmp_path)
    for step in (1, 2, 3):
        folder.log({"step": step, "loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    folder.drop_lines_after(2)
    folder.log({"step": 3, "loss": 0.25})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, 0.5), (3, 0.25)]


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    folder = enter(tmp_path)
    assert folder.load_state(CPU) is None
    folder.save_state({"step": 7, "model": {"weight": torch.arange(3.0)}})
    state = folder.load_state(CPU)
    assert state is not None
    assert state["step"] == 7
    assert state["model"]["weight"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[: len(whole) // 2], lambda whole: b"", lambda whole: b"text"]
)
def test_a_damaged_state_says_what_to_do(damage: Any, tmp_path: Path) -> None:
    folder = enter(tmp_path)
    folder.save_state({"step": 7, "weight": torch.ones(1000)})
    (tmp_path / "state.pt").write_bytes(damage((tmp_path / "state.pt").read_bytes()))
    with pytest.raises(
        InputError, match=r"state.pt: damaged \(\w+\): bring back a copy of it, or begin anew"
    ):
        folder.load_state(CPU)


def test_a_state_executes_nothing(tmp_path: Path) -> None:
    torch.save({"step": subprocess.Popen}, tmp_path / "state.pt")
    with pytest.raises(InputError, match="damaged"):
        RunFolder(tmp_path).load_state(CPU)


@pytest.mark.parametrize("file", ["state.pt", "metrics.jsonl"])
def test_a_full_disk_names_the_file_and_what_to_do(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real device without room: what is written there fails as on a full disk."""
    folder = enter(tmp_path)
    folder.save_state({"step": 1})
    original = Path.open

    def full(path: Path, mode: str = "r", **options: Any) -> Any:
        return original(Path("/dev/full") if "w" in mode or "a" in mode else path, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(OSError, match="make room; the same command goes on from the last save") as caught:
            folder.save_state({"step": 2, "weight": torch.ones(9)}) if file == "state.pt" else folder.log(
                {"step": 1}
            )
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / file))
    state = folder.load_state(CPU)
    assert state == {"step": 1}
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != ".lock") == [
        "config.json",
        "state.pt",
    ]


def test_half_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    enter(tmp_path)
    (tmp_path / f".state.{os.getpid()}.pt").write_bytes(b"half")
    (tmp_path / ".notes.txt").write_text("mine")
    enter(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {"config.json", ".notes.txt"}

"""Several processes, as torchrun starts them: one recipe of each family, shares that differ, one voice."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import noise, tiny_config, tone, write_wav

from patchout.checkpoint import own as checkpoint
from patchout.cli.command import DONE, WRONG_USAGE
from patchout.cli.main import run_command
from patchout.data.augment import keyed
from patchout.models.passt import Passt
from patchout.training import signals as stop

SCRIPT = """
import json, os, signal, socket, sys, threading
import torch._dynamo, torch.utils.tensorboard  # what the first run of a process imports
import patchout.training.masked.run, patchout.training.supervised.run
from patchout.cli.main import run_command
from patchout.training import signals

wait = threading.Event.wait
awaited, waiting = os.pipe()


def tell(event, timeout_s=None):
    if (timeout_s or 0) >= signals.PATIENCE_S:  # for the end by torchrun
        os.write(waiting, b".")
    return wait(event, timeout_s)


def start(rank, world, port, commands):
    threading.Event.wait = tell
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
    master = {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in (ranks | master).items()}
    code = max(run_command(line) for line in commands)
    sys.stdout.flush()
    os._exit(code)


def run(world, commands):
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    living = {}
    for rank in range(world):
        if not (child := os.fork()):
            start(rank, world, port, commands)
        living[child] = rank
    codes = {}
    while living:
        child, status = os.wait()
        codes[living.pop(child)] = os.waitstatus_to_exitcode(status)
        if status and len(codes) == 1:
            for _ in living:  # one that is late would be stopped before it has its own error
                os.read(awaited, 1)
            for other in living:
                os.kill(other, signal.SIGTERM)  # as torchrun does
    print("codes", *(codes[rank] for rank in range(world)), flush=True)


for world, commands in json.loads(sys.argv[1]):
    run(world, commands)
"""  # torch is imported once for all
COMMON = "--init  --size tiny --clip-s 0.5 --patchout-freq 2 --patchout-time 1 --mixup 0.3 --evaluate-every 0"
ALIKE = "--device cpu --precision fp32"
RECIPES = {  # 12 clips; the batch is that of a process where the recipe's is
    "passt": f"train openmic {COMMON} --depth 1 --stride 16 16 --split  --swa-start 0 --result last",
    "maskspec": f"train maskspec-openmic {COMMON} --depth 1 --split  --batch 4 --patchout-patches 2"
    " --warm-up-epochs 0",
    "pretrain": "pretrain maskspec --size tiny --decoder 32 1 2 --clip-s 0.5 --batch 4 --warm-up-epochs 0",
}


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """A minute of sound, which a pre-training needs, and beside it a teacher."""
    for index in range(4):
        write_wav(tmp_path / "sounds" / "bell" / f"{index}.wav", tone(5.0, 800 + 20 * index))
        write_wav(tmp_path / "sounds" / "dog" / f"{index}.wav", tone(5.0, 150 + 5 * index))
        write_wav(tmp_path / "sounds" / "rain" / f"{index}.wav", noise(5.0, index))
    checkpoint.save(Passt(tiny_config(), rng=keyed("teacher")), tmp_path / "teacher.safetensors")
    return tmp_path / "sounds"


def lines(sounds: Path, out: Path, *, passt_batch: int, epochs: int) -> list[list[str]]:
    """The command line of every family; those of two epochs go on where one epoch has ended."""
    more = {name: f"--data {sounds} --out {out / name} {ALIKE} --epochs {epochs}" for name in RECIPES}
    teacher = f" --distill {sounds.with_name('teacher.safetensors')}"
    more["passt"] += f" --batch {passt_batch}{teacher}"
    more["maskspec"] += f"{teacher} --distill-cache {out / 'scores'}"
    return [f"{line} {more[name]} --accept-changes".split(" ") for name, line in RECIPES.items()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has torch")
def test_three_and_then_four_processes_train_as_one(sounds: Path, tmp_path: Path) -> None:
    """PaSST's batch of 2 a process is 6 in all, and stays so when four go on;
    the others' 4 are shared 1, 1, 2.
    """
    one = [
        line for epochs in (1, 2) for line in lines(sounds, tmp_path / "one", passt_batch=6, epochs=epochs)
    ]
    begun, ended = (lines(sounds, tmp_path / "some", passt_batch=2, epochs=epochs) for epochs in (1, 2))
    untaught = begun[1][: begun[1].index("--distill")]
    too_few = [*untaught, "--restart", "--batch", "2"]
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([(1, one), (3, begun), (4, ended), (3, [too_few])])],
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,  # of a hang: a busy machine takes minutes
    )
    results = [line.split("  ")[0] for line in told.stdout.splitlines()]
    once = [str(tmp_path / "some" / name / "model.safetensors") for name in RECIPES]
    assert results[7:] == [*once, "codes 0 0 0", *once, "codes 0 0 0 0", "codes 2 2 2"], told.stderr[-2000:]
    for text in (
        "2 clips at a time are too few for 3 processes, each needs one",
        "batches of 6 (2 on each of 3 processes), 2 steps, peak learning rate 1e-05\n",
        "batches of 6 (1 or 2 on each of 4 processes), 4 steps",
    ):
        assert told.stderr.count(text) == 1
    for name in RECIPES:
        logs = ((tmp_path / out / name / "metrics.jsonl").read_text().splitlines() for out in ("one", "some"))
        alone, shared = ([json.loads(line)["loss"] for line in log] for log in logs)
        assert len(alone) == 2
        assert shared == pytest.approx(alone, abs=1e-5), name


@pytest.fixture
def third(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the third that torchrun has started."""
    for name, value in {"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stop, "PATIENCE_S", 0.2)


WRONG = ["train", "no-such-recipe"]


@pytest.mark.usefixtures("third")
def test_an_error_that_the_main_process_has_too_is_left_to_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A process that waits is ended, as torchrun does when another has failed."""
    wait = threading.Event.wait

    def ended(event: threading.Event, timeout_s: float) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return wait(event, timeout_s)

    monkeypatch.setattr(threading.Event, "wait", ended)
    assert run_command(WRONG) == WRONG_USAGE
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("third")
def test_an_error_of_another_process_alone_is_told_with_its_number(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(WRONG) == WRONG_USAGE
    assert capfd.readouterr().err.startswith("patchout: process 2: unknown recipe 'no-such-recipe'")


@pytest.mark.usefixtures("third")
def test_only_the_main_process_ends_with_the_code_of_sigterm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """At a code that is not 0 torchrun ends the others, of which the main one may still be saving."""

    def stopped(*args: object, **options: object) -> None:
        raise stop.Stopped

    monkeypatch.setattr("patchout.training.supervised.run.run", stopped)
    assert run_command(["train", "folder", "--data", str(tmp_path), "--out", str(tmp_path / "run")]) == DONE
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("third")
def test_commands_that_share_no_work_speak_for_themselves(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command(["tag"]) == WRONG_USAGE
    assert "no files given" in capfd.readouterr().err

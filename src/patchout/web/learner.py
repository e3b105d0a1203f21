"""Retraining from the page: `patchout train folder` in a process of its own, its progress and its report."""

import json
import os
import shlex
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from patchout.errors import InputError

HEAD = {"freeze": "encoder", "epochs": "150", "lr": "0.01"}  # of the last layer alone
CLIP_S = 5.0  # of the recipe
RUNS = "runs"
TAIL = 4  # last lines of the log that are shown


class BusyError(InputError):
    """Another training runs already."""


def as_command(words: list[str]) -> str:
    """A line for the terminal."""
    return shlex.join(["patchout", *words])


@dataclass
class Learner:
    """One training at a time, of the labels in `data`, in numbered folders below `folder`."""

    data: Path
    folder: Path
    on_done: Callable[[Path, bool], None]  # run folder, and whether the encoder stayed as it was
    status: Literal["idle", "running", "done", "failed"] = "idle"
    out: Path = Path()
    command: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    _epochs: int = 1
    _process: subprocess.Popen[bytes] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def arguments(self, init: str, *, all_layers: bool, longest_s: float = CLIP_S) -> list[str]:
        """The words behind `patchout` for the next training; the model takes clips of up to `longest_s`."""
        numbers = [int(path.name) for path in (self.folder / RUNS).glob("[0-9]*") if path.name.isdigit()]
        out = self.folder / RUNS / str(max(numbers, default=0) + 1)
        options = {} if all_layers else HEAD | {"embed-cache": str(self.folder / "embeddings")}
        options |= {"clip-s": f"{longest_s:g}"} if longest_s < CLIP_S else {}
        words = ["train", "folder", "--data", str(self.data), "--out", str(out), "--init", init]
        return [*words, *(word for name, value in options.items() for word in (f"--{name}", value))]

    def start(self, init: str, *, all_layers: bool, longest_s: float = CLIP_S) -> None:
        """Train the last layer, or the whole model, from the model `init`."""
        with self._lock:
            if self.status == "running":
                raise BusyError("it is learning already: wait until that is done, or stop it")
            words = self.arguments(init, all_layers=all_layers, longest_s=longest_s)
            self.out, self.command = Path(words[words.index("--out") + 1]), as_command(words)
            self._epochs, self.scores = int(HEAD["epochs"]) if not all_layers else 30, {}
            self.out.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "patchout", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | {"PYTHONUNBUFFERED": "1"},
                )
            self.status = "running"
            threading.Thread(target=self._wait, args=(self._process, all_layers), daemon=True).start()

    def stop(self) -> None:
        """End the training that runs."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    @property
    def _log(self) -> Path:
        return self.out.with_name(f"{self.out.name}.log")

    def _wait(self, process: subprocess.Popen[bytes], all_layers: bool) -> None:
        is_whole_run, is_adopted = process.wait() == 0 and (self.out / "model.safetensors").is_file(), False
        try:
            if is_whole_run and (self.out / "scores.json").is_file():
                self.scores = json.loads((self.out / "scores.json").read_text(encoding="utf-8"))["scores"]
            if is_whole_run:
                self.on_done(self.out, not all_layers)
                is_adopted = True
        except (OSError, ValueError, RuntimeError, sqlite3.Error) as error:
            with self._log.open("a", encoding="utf-8") as log:
                log.write(f"{error}\n")
        finally:  # also where the log cannot be written: else none could begin any more
            self.status = "done" if is_adopted else "failed"

    def state(self, init: str) -> dict[str, Any]:
        """Status, share that is done, scores, command and the last lines that the training said.

        The command before a training is that of the next one, from the model `init`.
        """
        lines: list[str] = []
        if self.status != "idle" and self._log.is_file():
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-TAIL:]
        report = self.out / "report" / "report.md"
        return {
            "status": self.status,
            "share": self._share() if self.status == "running" else 1.0,
            "scores": {name: value for name, value in self.scores.items() if value is not None},
            "command": self.command or as_command(self.arguments(init, all_layers=False)),
            "lines": lines,
            "report": f"{self.out.name}/report.md" if self.status == "done" and report.is_file() else "",
        }

    def _share(self) -> float:
        log = self.out / "metrics.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
        try:
            return min(0.99, float(json.loads(lines[-1])["epoch"]) / self._epochs) if lines else 0.0
        except (ValueError, KeyError):  # a line that is being written
            return 0.0

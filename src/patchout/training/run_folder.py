"""A run folder: config.json, the lock, the log, the state; one run a folder, and the same command continues
it."""

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import accelerate
import torch

import patchout
from patchout.checkpoint.weights import UNREADABLE
from patchout.errors import InputError
from patchout.files import finite, write_aside, write_json
from patchout.job_folder import differences, only_writer

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)

MODELS = ("model.safetensors", "best.safetensors", "last.safetensors", "average.safetensors")
FILES = ("config.json", "metrics.jsonl", "state.pt", "scores.json", *MODELS)
HELD = (*FILES, "report", "tensorboard")  # what a run writes
PART = re.compile(r"seed-\d+|fold-.+|left|right|mean")  # a folder of one of several runs
OWN = {  # settings that differ between the runs of one recipe, or that a run does not store
    *("data", "out", "workers", "trackers", "batch_per_process", "probe", "probe_every", "mel_cache"),
    *("seed", "seeds", "folds", "split", "channel"),
}


@dataclass(frozen=True)
class RunFolder:
    """The files of one run; of several processes only the main one writes."""

    path: Path
    replaced: str = ""  # what a restart moved away, in words; "": nothing

    def log(self, line: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl; a score that is not finite is null there."""
        path = self.path / "metrics.jsonl"
        with _explained(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite({**line})) + "\n")

    def drop_lines_after(self, step: int) -> None:
        """Take the lines of later steps out of metrics.jsonl, and one that a kill cut short."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            kept = [json.dumps(line) + "\n" for line in _lines(path) if line["step"] <= step]
            with _explained(path), write_aside(path) as aside:
                aside.write_text("".join(kept), encoding="utf-8")

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Write state.pt; where that fails the state before stays, and the OSError says what to do."""
        path = self.path / "state.pt"
        with _explained(path), write_aside(path) as aside, aside.open("wb") as file:
            torch.save(state, file)  # to a path, a full disk would be a RuntimeError about positions

    def load_state(self, device: torch.device) -> dict[str, Any] | None:
        """What `save_state` wrote, None before its first call; a damaged file is an InputError."""
        path = self.path / "state.pt"
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except UNREADABLE as error:
            what = f"damaged ({type(error).__name__})"
            raise InputError(
                f"{path}: {what}: bring back a copy of it, or begin anew with --restart"
            ) from None


@contextmanager
def open_run(
    out: Path,
    config: Mapping[str, Any],
    data: Mapping[str, Any],
    *,
    restart: bool = False,
    accept_changes: bool = False,
    is_main: bool = True,
) -> Iterator[RunFolder]:
    """Make the folder `out` for a run, or continue the run in it; it is locked until the block, or the
    process, ends.

    A config that differs from the stored one is a ValueError that lists the changes, unless they are
    accepted; so is other `data` (its `root` may move), and a folder that another run is using. `restart`
    moves an old run aside first.
    """
    if not is_main:
        yield RunFolder(out)
        return
    halves = (f".{Path(name).stem}.*{Path(name).suffix}" for name in HELD)
    busy = ValueError(f"{out}: another run is using this folder: wait for it, or choose another --out")
    with only_writer(out, halves=halves, busy=busy):
        replaced = _move_aside(out) if restart else ""
        _bind(out, {"config": config, "data": data}, accept_changes=accept_changes)
        yield RunFolder(out, replaced)


def stored_config(out: Path) -> dict[str, Any]:
    """The config of the run in a folder, empty where there is none; a damaged config.json is an
    InputError."""
    return _stored(out).get("config", {})


def as_begun(
    config: "Config", recipe: "Config", out: Path, *, of_weights: AbstractSet[str] = frozenset()
) -> tuple["Config", str]:
    """A config with the values that the run in `out` began with, where it has its recipe's; and these in
    words.

    A recipe may change between two versions; a run that is continued does not. Of several seeds, folds or
    channels the first one's config counts, without what differs between them. The settings `of_weights` are
    stored as the start weights had them, where there were any.
    """
    below = [path.parent for depth in range(4) for path in sorted(out.glob("*/" * depth + "config.json"))]
    began = [folder for folder in below if all(map(PART.fullmatch, folder.relative_to(out).parts))]
    stored = stored_config(began[0]) if began else {}
    if stored.get("recipe") != getattr(recipe, "recipe", None):
        return config, ""
    untouched = {name: value for name, value in vars(recipe).items() if getattr(config, name) == value}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    values = {name: value for name, value in values.items() if name in untouched.keys() - OWN}
    if untouched.get("batch") == 0 or untouched.get("batch_per_process"):  # decided by memory, by processes
        values.pop("batch", None)
    if untouched.get("init") == "auto":  # decided by the hours of sound
        values.pop("init", None)
    values = {
        name: value for name, value in values.items() if not (stored.get("init") and name in of_weights)
    }
    changed = differences({name: untouched[name] for name in values}, values)
    return replace(config, **{name: values[name] for name in changed}), _told(changed)


def settings_of(
    config: Mapping[str, Any], plain: Mapping[str, Any], stored: Mapping[str, Any]
) -> dict[str, Any]:
    """What `open_run` compares: `config`, without plain values of what an older version's run did not
    know."""
    return {
        name: value for name, value in config.items() if not stored or name in stored or value != plain[name]
    }


def _stored(out: Path) -> dict[str, Any]:
    """What config.json holds, empty where it is not there."""
    path = out / "config.json"
    if not path.exists():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return {name: held[name] for name in ("config", "data", "versions", "changes")}
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{path}: damaged: bring it back, or begin anew with --restart") from None


def _move_aside(out: Path) -> str:
    """Move what a run has written here into a new folder below, and say so."""
    held = [out / name for name in HELD if (out / name).exists()]
    if not held:
        return ""
    steps = _steps(out)
    place = next(
        path for path in (out / f"replaced-{number}" for number in range(1, 10_000)) if not path.exists()
    )
    place.mkdir()
    for path in held:
        path.rename(place / path.name)
    return f"replaces a run of {steps} steps in {out}: its {', '.join(path.name for path in held)} are now in {place}"


def _bind(out: Path, run: Mapping[str, Any], *, accept_changes: bool) -> None:
    """Store config and data, or compare them with the stored ones."""
    path, stored = out / "config.json", _stored(out)
    now = json.loads(json.dumps(run))  # as it will be read: tuples become lists
    if not stored:
        if (out / "state.pt").exists():
            todo = "bring that back, or begin anew with --restart"
            raise InputError(f"{out}: a state.pt without its config.json: {todo}")
        versions = {module.__name__: module.__version__ for module in (patchout, torch, accelerate)}
        with _explained(path):
            write_json(
                path, {**now, "versions": versions | {"python": platform.python_version()}, "changes": []}
            )
        return
    may_move = {"root": ""}
    if other := differences(
        stored["data"] | may_move, dict.fromkeys(stored["data"]) | now["data"] | may_move
    ):
        raise ValueError(
            f"{out} holds a run on other data ({_told(other)}): choose another --out, or --restart"
        )
    changed = differences(stored["config"], dict.fromkeys(stored["config"]) | now["config"])
    if changed and not accept_changes:
        todo = "undo that, choose another --out, go on with --accept-changes, or begin anew with --restart"
        raise ValueError(f"{out} holds a run with another config ({_told(changed)}): {todo}")
    if changed:
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        history = [*stored["changes"], {"time": when, "after_step": _steps(out), "changed": changed}]
        with _explained(path):
            write_json(path, {**stored, **now, "changes": history})


def _told(changes: Mapping[str, list[Any]]) -> str:
    return ", ".join(f"{key} {repr(old)[:80]} -> {repr(new)[:80]}" for key, (old, new) in changes.items())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log; a kill may have cut the last one short."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _steps(out: Path) -> int:
    """Of the run in a folder, as far as its log says."""
    return max((line["step"] for line in _lines(out / "metrics.jsonl")), default=0)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Let an OSError name the file and say what is lost (nothing that was saved) and what to do."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        told = f"cannot be written ({reason}): make room; the same command goes on from the last save"
        raise OSError(error.errno, told, str(path)) from None

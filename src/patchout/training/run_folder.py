"""The run folder: config.json, lock, metrics.jsonl, state.pt; the same command resumes the run in it."""

import json
import os
import platform
import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import accelerate
import torch

import patchout
from patchout.checkpoint.weights import UNREADABLE
from patchout.data.job_folder import differences, only_writer
from patchout.errors import InputError
from patchout.files import finite, write_aside, write_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Config = TypeVar("Config", bound=DataclassInstance)

MODELS = ("model.safetensors", "best.safetensors", "last.safetensors", "average.safetensors")
OUTPUTS = ("config.json", "metrics.jsonl", "state.pt", "scores.json", *MODELS, "report", "tensorboard")
SUBFOLDER = re.compile(r"seed-\d+|fold-.+|left|right|mean")  # of one of several runs
NOT_COMPARED = {  # settings that differ between the runs of one recipe, or that a run does not store
    *("data", "out", "workers", "trackers", "batch_per_process", "probe", "probe_every", "mel_cache"),
    *("seed", "seeds", "folds", "split", "channel", "distill_cache"),
}


@dataclass(frozen=True)
class RunFolder:
    """Log and training state of one run; of several processes only the main one writes them."""

    path: Path
    replaced: str = ""  # what a restart moved away, in words; "": nothing

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to metrics.jsonl; a score that is not finite is null there."""
        path = self.path / "metrics.jsonl"
        with _explained(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite({**line})) + "\n")

    def drop_lines_after(self, step: int) -> None:
        """Remove the log lines of later steps, and one that a kill cut short."""
        path = self.path / "metrics.jsonl"
        if path.exists():
            lines = [json.dumps(line) + "\n" for line in _log_lines(path) if line["step"] <= step]
            with _explained(path), write_aside(path) as aside:
                aside.write_text("".join(lines), encoding="utf-8")

    def is_finished(self, steps: int) -> bool:
        """Whether the run came to its end after so many steps."""
        return (self.path / "model.safetensors").exists() and _steps(self.path) == steps

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Write state.pt; where that fails, the old one stays and the OSError says what to do."""
        path = self.path / "state.pt"
        with _explained(path), write_aside(path) as aside, aside.open("wb") as file:
            torch.save(state, file)  # to a path, a full disk would be a RuntimeError about positions

    def load_state(self, device: torch.device) -> dict[str, Any] | None:
        """The last saved training state, None where there is none; a damaged file is an InputError."""
        path = self.path / "state.pt"
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location=device, weights_only=True)
        except UNREADABLE as error:
            todo = "bring back a copy of it, or begin anew with --restart"
            raise InputError(f"{path}: damaged ({type(error).__name__}): {todo}") from None


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
    """Create or resume the run in the folder `out`; it is locked until the block, or the process, ends.

    A config that differs from the stored one is a ValueError that lists the changes, unless they are
    accepted; so is other `data` (its `root` may move), and a folder that another run is using, or that holds
    several seeds, folds or channels. `restart` first moves an old run aside. On another process than the main
    one nothing is done.
    """
    if not is_main:
        yield RunFolder(out)
        return
    unfinished = (f".{Path(name).stem}.*{Path(name).suffix}" for name in OUTPUTS)
    busy = ValueError(f"{out}: another run is using this folder: wait for it, or choose another --out")
    with only_writer(out, halves=unfinished, busy=busy):
        if (first := next(_runs(out), out)) != out:
            several = f"{out} holds several runs ({first.relative_to(out)} is one)"
            raise ValueError(f"{several}, whose scores a single one would replace: choose another --out")
        replaced = _move_aside(out) if restart else ""
        _store_or_compare(out, {"config": config, "data": data}, accept_changes=accept_changes)
        yield RunFolder(out, replaced)


def stored_config(out: Path) -> dict[str, Any]:
    """The config of the run in a folder, empty where there is none; a damaged config.json is an
    InputError.
    """
    return _stored(out).get("config", {})


def stored_data(out: Path) -> dict[str, Any]:
    """Root, number and hash of the clips that the run in a folder learns from, empty where there is none."""
    return _stored(out).get("data", {})


def saved_states(out: Path) -> set[tuple[Path, float]]:
    """The training states of the run in `out`, or of its seeds, folds and channels, with their times."""
    files = [folder / "state.pt" for folder in _runs(out)]
    return {(file, file.stat().st_mtime) for file in files if file.exists()}


def as_begun(
    config: "Config", recipe: "Config", out: Path, *, of_weights: AbstractSet[str] = frozenset()
) -> "tuple[Config, str]":
    """The config that resumes the run in `out`, with the recipe's values of its beginning; and the changes.

    A recipe may change between two versions; a run that is resumed does not. Of several seeds, folds or
    channels the first one's config counts, without what differs between them. The settings `of_weights` are
    stored as the initial weights had them, where there were any.
    """
    first = next(_runs(out), None)
    stored = stored_config(first) if first else {}
    if stored.get("recipe") != getattr(recipe, "recipe", None):
        return config, ""
    defaults = {field.name: field.default for field in fields(recipe) if field.default is not MISSING}
    stored = defaults | stored  # a field that is newer than the run
    untouched = {name: value for name, value in vars(recipe).items() if getattr(config, name) == value}
    skipped = NOT_COMPARED | (of_weights if stored.get("init") else set())
    if untouched.get("batch") == 0 or untouched.get("batch_per_process"):  # decided by memory, by processes
        skipped |= {"batch"}
    if untouched.get("precision") == "auto":  # decided by the machine
        skipped |= {"precision"}
    if untouched.get("init") == "auto":  # decided by the hours of sound
        skipped |= {"init"}
    stored = {name: value for name, value in stored.items() if name in untouched.keys() - skipped}
    begun = {name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
    changes = differences({name: untouched[name] for name in begun}, begun)
    return replace(config, **{name: begun[name] for name in changes}), _in_words(changes)


def settings_of(
    config: Mapping[str, Any], defaults: Mapping[str, Any], stored: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings to compare with the stored ones: without defaults of fields that are not stored."""
    return {
        key: value for key, value in config.items() if not stored or key in stored or value != defaults[key]
    }


def _runs(out: Path) -> Iterator[Path]:
    """The folders of the run in `out`, or of its seeds, folds and channels."""
    folders = (path.parent for depth in range(4) for path in sorted(out.glob("*/" * depth + "config.json")))
    return (folder for folder in folders if all(map(SUBFOLDER.fullmatch, folder.relative_to(out).parts)))


def _stored(out: Path) -> dict[str, Any]:
    """The content of config.json, empty where it is not there."""
    path = out / "config.json"
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: content[name] for name in ("config", "data", "versions", "changes")}
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{path}: damaged: bring it back, or begin anew with --restart") from None


def _move_aside(out: Path) -> str:
    """Move the files of a run into a new folder below; what was moved, in words."""
    outputs = [out / name for name in OUTPUTS if (out / name).exists()]
    if not outputs:
        return ""
    text = f"replaces a run of {_steps(out)} steps in {out}: its {', '.join(path.name for path in outputs)}"
    numbered = (out / f"replaced-{number}" for number in range(1, 10_000))
    place = next(path for path in numbered if not path.exists())
    place.mkdir()
    for path in outputs:
        path.rename(place / path.name)
    return f"{text} are now in {place}"


def _store_or_compare(out: Path, run: Mapping[str, Any], *, accept_changes: bool) -> None:
    """Write config and data of a new run to config.json, or compare them with the stored ones."""
    path, stored = out / "config.json", _stored(out)
    now = json.loads(json.dumps(run))  # as it will be read: tuples become lists
    if not stored:
        if (out / "state.pt").exists():
            todo = "bring that back, or begin anew with --restart"
            raise InputError(f"{out}: a state.pt without its config.json: {todo}")
        versions = {module.__name__: module.__version__ for module in (patchout, torch, accelerate)}
        versions["python"] = platform.python_version()
        with _explained(path):
            write_json(path, {**now, "versions": versions, "changes": []})
        return
    old, new = stored["data"] | {"root": ""}, dict.fromkeys(stored["data"]) | now["data"] | {"root": ""}
    if changes := differences(old, new):
        todo = "choose another --out, or --restart"
        raise ValueError(f"{out} holds a run on other data ({_in_words(changes)}): {todo}")
    changes = differences(stored["config"], dict.fromkeys(stored["config"]) | now["config"])
    if changes and not accept_changes:
        todo = "undo that, choose another --out, go on with --accept-changes, or begin anew with --restart"
        raise ValueError(f"{out} holds a run with another config ({_in_words(changes)}): {todo}")
    if changes:
        time = datetime.now(timezone.utc).isoformat(timespec="seconds")
        history = [*stored["changes"], {"time": time, "after_step": _steps(out), "changed": changes}]
        with _explained(path):
            write_json(path, {**stored, **now, "changes": history})


def _in_words(changes: Mapping[str, list[Any]]) -> str:
    return ", ".join(f"{key} {repr(old)[:80]} -> {repr(new)[:80]}" for key, (old, new) in changes.items())


def _log_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log; a kill may have cut the last one short."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _steps(out: Path) -> int:
    """Steps of the run in a folder, as far as its log says."""
    return max((line["step"] for line in _log_lines(out / "metrics.jsonl")), default=0)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Let an OSError name the file and say what is lost (nothing that was saved) and what to do."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        text = f"cannot be written ({reason}): make room; the same command goes on from the last save"
        raise OSError(error.errno, text, str(path)) from None

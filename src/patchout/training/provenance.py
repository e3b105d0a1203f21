"""Provenance of a trained model, as its checkpoint keeps it: command, data, start, cost."""

import json
import os
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from patchout.data.clips import ClipSet
from patchout.models.tagger import TaggerConfig
from patchout.training.config import RunConfig

OWN_OPTIONS = {"recipe", "data", "out"}  # of the command, not of the config
MACHINE = {"workers", "device", "trackers"}  # settings that change no weight


def command_line(config: RunConfig, recipe: RunConfig) -> str:
    """The command that repeats a run: its recipe, and every setting in which it differs from that."""
    words = [
        "patchout",
        config.command,
        config.recipe,
        "--data",
        _name(config.data),
        "--out",
        config.out.name,
    ]
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in OWN_OPTIONS | MACHINE and value != getattr(recipe, field.name):
            words += _option(field.name.replace("_", "-"), value)
    if config.batch != recipe.batch and getattr(config, "batch_per_process", False):
        words.append("--no-batch-per-process")  # the batch of a run counts the clips of all processes
    return shlex.join(words)


def _option(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]


def _name(data: str) -> str:
    """A data set's name: its folder's or file's, or its hub id."""
    return data if data.startswith("hf://") else Path(data).expanduser().resolve().name


def data_of(config: RunConfig, clips: ClipSet) -> dict[str, Any]:
    """Name of the training data, clips trained on, and licence and source where a prepared set says them."""
    stated = {name: clips.info[name] for name in ("licence", "source") if clips.info.get(name)}
    return {"name": _name(config.data), "clips": len(clips), **stated}


def licences_of(config: TaggerConfig) -> str:
    """Licences of a model and of all that it was trained on, in one line; "": none is recorded."""
    data, initial = config.provenance.get("data") or {}, config.provenance.get("init_licence")
    return "; ".join(dict.fromkeys(filter(None, (config.licence, data.get("licence"), initial))))


def cost(run: Path, device: torch.device, processes: int) -> dict[str, Any]:
    """Seconds of a run by its log, and the machine that the last part of it ran on."""
    log = run / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    seconds = sum(json.loads(line).get("seconds", 0.0) for line in lines)
    is_cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_cuda else f"{os.cpu_count()} cores, {device.type}"
    return {"seconds": round(seconds, 1), "device": f"{processes} x {name}" if processes > 1 else name}

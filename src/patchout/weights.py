"""Weights on their way into a model: foreign files read without running anything, every name and shape checked."""

import argparse
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from patchout.errors import InputError
from patchout.labels import label_names

HEAD_WIDTH = 64  # of every attention head in the public models
UNREADABLE = (  # what torch.load raises for damaged files
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError),
    *(TypeError, AttributeError, AssertionError),
)
Path_ = str | os.PathLike[str]


class CheckpointError(InputError):
    """A file that is not a whole checkpoint, or not one of ours."""


def unpickle(path: Path_) -> Mapping[str, Any]:
    """Read a .pt file without running anything in it."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # of the arguments that some tools store
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: not a readable file of plain tensors ({reason})") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def public_weights(content: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Unwrap what training tools put around the weights; averaged weights (net_swa) come before the last ones (net)."""
    for outer in ("state_dict", "model"):
        if isinstance(content.get(outer), Mapping):
            content = content[outer]
    names = {str(name).replace("_orig_mod.", ""): tensor for name, tensor in content.items()}
    for prefix in ("net_swa.", "net."):
        if any(name.startswith(prefix) for name in names):
            strange = [name for name in names if not name.startswith(("net_swa.", "net.")) and name != "device_proxy"]
            if strange:
                raise CheckpointError(f"{where}: unknown {strange} beside the weights of {prefix}*")
            names = {name.removeprefix(prefix): tensor for name, tensor in names.items() if name.startswith(prefix)}
            break
    if strange := [name for name, tensor in names.items() if not isinstance(tensor, Tensor)]:
        raise CheckpointError(f"{where}: {strange[:4]} are no tensors: give the file or dictionary of weights itself")
    return {name: tensor.float() for name, tensor in names.items() if not name.startswith("head_dist.")}


def class_names(given: tuple[str, ...] | None, count: int, where: str) -> tuple[str, ...]:
    """Class names: given, AudioSet's for 527, numbers otherwise."""
    if given is None:
        return label_names("audioset") if count == 527 else tuple(f"class {index}" for index in range(count))
    if len(given) != count:
        raise CheckpointError(f"{where}: has {count} classes, {len(given)} labels were given")
    return tuple(given)


def fill(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into the model; every name and shape must match."""
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or unknown:
        raise CheckpointError(f"{source}: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(f"{source}: {name} is {tuple(tensor.shape)}, the model has {tuple(own[name].shape)}")
    model.load_state_dict(dict(weights))
    model.eval()

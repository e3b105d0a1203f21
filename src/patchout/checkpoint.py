"""One .safetensors file = weights + the whole config; importer for public PaSST weights and the way back."""

import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from patchout.errors import InputError
from patchout.files import write_aside
from patchout.labels import label_names
from patchout.mel import MelConfig
from patchout.passt import Passt, PasstConfig

FORMAT = "patchout-1"
HEAD_WIDTH = 64  # of every attention head in the public models
PUBLIC_STRIDES = (10, 12, 14, 16)
UNREADABLE = (  # what torch.load raises for damaged files
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError),
    *(TypeError, AttributeError, AssertionError),
)
Path_ = str | os.PathLike[str]


class CheckpointError(InputError):
    """A file that is not a whole checkpoint, or not one of ours."""


# -- our own files ----------------------------------------------------------------------------------------------------


def save(model: Passt, path: Path_, *, half: bool = False) -> None:
    """Write weights and config into one .safetensors file, aside and renamed; `half` stores the weights as float16."""
    config = json.dumps(asdict(model.config))
    dtype = torch.float16 if half else torch.float32
    weights = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    metadata = {"format": FORMAT, "model": "Passt", "config": config, "sha256": _digest(config, weights)}
    with write_aside(path) as aside:
        save_file(weights, aside, metadata=metadata)


def load(path: Path_) -> Passt:
    """Read a model that `save` wrote: float32, on the CPU, in evaluation mode.

    Raises FileNotFoundError, or CheckpointError for a truncated, altered or foreign file.
    """
    metadata, weights = _read(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: a .safetensors file of another tool (no {FORMAT!r} in its header); "
            "for public PaSST weights use patchout.checkpoint.import_passt on the .pt file"
        )
    if metadata.get("sha256") != _digest(metadata.get("config", ""), weights):
        raise CheckpointError(f"{path}: damaged, its content does not match its own SHA-256: bring the file again")
    model = Passt(config_from_json(metadata["config"]))
    _fill(model, weights, str(path))
    return model


def config_from_json(text: str) -> PasstConfig:
    """The config that stands in a file's header; fields this version does not know are refused by name."""
    values: dict[str, Any] = json.loads(text)
    known = {field.name for field in fields(PasstConfig)}
    if unknown := sorted(set(values) - known):
        raise CheckpointError(f"config has unknown fields {unknown}: the file needs a newer patchout")
    values |= {"labels": tuple(values["labels"]), "stride": tuple(values["stride"]), "mel": MelConfig(**values["mel"])}
    return PasstConfig(**values)


def _read(path: Path_) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of a .safetensors file."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole .safetensors file ({error}): bring the file again") from None


def _digest(config: str, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the config and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(config.encode())
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def _fill(model: Passt, weights: Mapping[str, Tensor], source: str) -> None:
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


# -- public PaSST files -----------------------------------------------------------------------------------------------


def import_passt(
    source: Mapping[str, Tensor] | Path_,
    *,
    mel: MelConfig | None = None,
    labels: tuple[str, ...] | None = None,
    task: Literal["multi_class", "multi_label"] = "multi_label",
    stride: int | tuple[int, int] | None = None,
) -> Passt:
    """A model from public PaSST weights: a state dict or a .pt file, sizes read from the shapes.

    The shapes tell the frequency stride; the time stride is taken to be the same unless `stride` (frequency, time) says
    otherwise. `mel` cannot be read from the weights: give the hop of the hop-160 and hop-100 models. 527 classes are
    AudioSet's, other counts are named "class 0" ... unless `labels` names them. The unused `head_dist` is dropped; any
    other unknown or missing name is a CheckpointError that names it.
    """
    where = str(source) if isinstance(source, str | os.PathLike) else "state dict"
    public = _public_weights(source if isinstance(source, Mapping) else _unpickle(source), where)
    mel = mel or MelConfig()
    if (
        not {"cls_token", "patch_embed.proj.weight", "time_new_pos_embed", "freq_new_pos_embed", "head.1.weight"}
        <= public.keys()
    ):
        raise CheckpointError(f"{where}: no PaSST weights, it holds {sorted(public)[:4]} ...")
    width, num_classes = public["cls_token"].shape[-1], len(public["head.1.weight"])
    config = PasstConfig(
        labels=_labels(labels, num_classes, where),
        task=task,
        mel=mel,
        width=width,
        depth=len({name.split(".")[1] for name in public if name.startswith("blocks.")}),
        heads=max(1, width // HEAD_WIDTH),
        patch=public["patch_embed.proj.weight"].shape[-1],
        stride=_stride(stride, public["freq_new_pos_embed"].shape[2], public["patch_embed.proj.weight"].shape[-1], mel),
        columns=public["time_new_pos_embed"].shape[-1],
        distilled="dist_token" in public,
    )
    model = Passt(config)
    expected = export_passt(model)
    missing, unknown = sorted(expected.keys() - public.keys()), sorted(public.keys() - expected.keys())
    if missing or unknown:
        raise CheckpointError(f"{where}: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
    _fill(model, _own_names(public), where)
    return model


def export_passt(model: Passt) -> dict[str, Tensor]:
    """The weights of a model under the public names of PaSST (without the unused `head_dist`)."""
    own = dict(model.state_dict())
    tokens, row, column = (own.pop(name) for name in ("tokens", "embed.row_position", "embed.column_position"))
    public = {
        "cls_token": tokens[None, :1],
        "new_pos_embed": own.pop("token_position")[None],
        "freq_new_pos_embed": row.T[None, :, :, None],
        "time_new_pos_embed": column.T[None, :, None, :],
    }
    if model.config.distilled:
        public["dist_token"] = tokens[None, 1:]
    for name, tensor in own.items():
        public[name.replace("embed.", "patch_embed.").removeprefix("encoder.")] = tensor
    return {name: tensor.contiguous() for name, tensor in public.items()}


def _own_names(public: dict[str, Tensor]) -> dict[str, Tensor]:
    """Public names -> ours, shapes without their broadcast axes."""
    rest = dict(public)
    tokens = [rest.pop("cls_token")[0], *([rest.pop("dist_token")[0]] if "dist_token" in rest else [])]
    own = {
        "tokens": torch.cat(tokens),
        "token_position": rest.pop("new_pos_embed")[0],
        "embed.row_position": rest.pop("freq_new_pos_embed")[0, :, :, 0].T,
        "embed.column_position": rest.pop("time_new_pos_embed")[0, :, 0].T,
    }
    for name, tensor in rest.items():
        encoder = "encoder." if name.startswith(("blocks.", "norm.")) else ""
        own[encoder + name.replace("patch_embed.", "embed.")] = tensor
    return own


def _unpickle(path: Path_) -> Mapping[str, Any]:
    """Read a .pt file without running anything in it."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path}: not a readable file of plain tensors ({reason})") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def _public_weights(content: Mapping[str, Any], where: str) -> dict[str, Tensor]:
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


def _stride(given: int | tuple[int, int] | None, rows: int, patch: int, mel: MelConfig) -> tuple[int, int]:
    """Strides (frequency, time) that give `rows` patch rows."""
    frequency = given if isinstance(given, int) else given[0] if given else None
    candidates = [frequency] if frequency else [*PUBLIC_STRIDES, *range(1, patch + 1)]
    fitting = [stride for stride in candidates if (mel.n_mels - patch) // stride + 1 == rows]
    if not fitting:
        what = f"a frequency stride of {frequency}" if frequency else "no stride"
        raise CheckpointError(
            f"{rows} rows of positions fit {what} with {mel.n_mels} mels: give stride=(frequency, time)"
        )
    return (fitting[0], given[1] if isinstance(given, tuple) else fitting[0])


def _labels(given: tuple[str, ...] | None, count: int, where: str) -> tuple[str, ...]:
    """Class names: given, AudioSet's for 527, numbers otherwise."""
    if given is None:
        return label_names("audioset") if count == 527 else tuple(f"class {index}" for index in range(count))
    if len(given) != count:
        raise CheckpointError(f"{where}: has {count} classes, {len(given)} labels were given")
    return tuple(given)

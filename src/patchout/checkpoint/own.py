"""Our checkpoints: one .safetensors file, weights and config; import and export of public PaSST weights."""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from patchout.audio.mel import MelConfig
from patchout.checkpoint.public import Source, class_names, num_blocks, num_heads, read_public
from patchout.checkpoint.weights import Path_, read_file, read_header
from patchout.errors import CheckpointError
from patchout.files import write_aside
from patchout.models.decision import decision_from, tuples
from patchout.models.family import num_patches
from patchout.models.fill import check_finite, check_names, fill, undrawn
from patchout.models.int8 import is_quantised
from patchout.models.maskspec import MaskSpec, MaskSpecConfig
from patchout.models.passt import Passt, PasstConfig
from patchout.models.tagger import FAMILIES, Tagger

Model = Tagger | MaskSpec

FORMAT = "patchout-1"
KINDS: dict[str, tuple[type[Any], type[Any]]] = {  # class name in a file's header -> model and config
    "Passt": (Passt, PasstConfig),
    "MaskSpec": (MaskSpec, MaskSpecConfig),
    **{family.model.__name__: family for family in FAMILIES.values()},
}
PUBLIC_STRIDES = (10, 12, 14, 16)


def save(model: Model, path: Path_, *, half: bool = False, transformers: bool = False) -> None:
    """Write weights and config into one .safetensors file, in one step; `half` stores float16 weights.

    `transformers` marks the file as one that this library reads too. ValueError for a model in int8.
    """
    if is_quantised(model):
        raise ValueError(f"{path}: an int8 model is for inference: save the float32 model it was made from")
    config = json.dumps(asdict(model.config))
    dtype = torch.float16 if half else torch.float32
    weights = {name: x.detach().cpu().to(dtype).contiguous() for name, x in model.state_dict().items()}
    mark = {"format": "pt", "patchout": FORMAT} if transformers else {"format": FORMAT}
    metadata = {**mark, "model": type(model).__name__, "config": config}
    metadata["sha256"] = _digest(config, weights)
    with write_aside(path) as aside:
        try:
            save_file(weights, aside, metadata=metadata)
        except SafetensorError as error:  # a full disk, in safetensors' words
            reason = f"cannot be written ({error}): make room; what was there before is still whole"
            raise OSError(errno.ENOSPC, reason, os.fspath(path)) from None


def load(path: Path_) -> Model:
    """Read a model that `save` wrote: float32, on the CPU, in evaluation mode.

    Raises FileNotFoundError, or CheckpointError for a truncated, altered or foreign file, NaN or infinity.
    """
    metadata, weights = read_file(path)
    if not _is_ours(metadata):
        raise CheckpointError(
            f"{path}: a file of another tool (no {FORMAT!r} in a .safetensors header): public weights are "
            "read by patchout.load, or by import_passt and import_maskspec of this module"
        )
    if metadata.get("sha256") != _digest(metadata.get("config", ""), weights):
        raise CheckpointError(f"{path}: damaged, its content does not match its SHA-256: bring it again")
    kind = metadata.get("model", "Passt")
    if kind not in KINDS:
        reason = f"holds a {kind}, here are {', '.join(KINDS)}"
        raise CheckpointError(f"{path}: {reason}: the file needs a newer patchout")
    check_finite(weights, str(path))
    config = config_from_json(metadata["config"], kind)
    with undrawn():
        model: Model = KINDS[kind][0](config)
    fill(model, weights, str(path))
    return model


def is_own(path: Path_) -> bool:
    """Whether `save` wrote this file; its weights are not read."""
    return _is_ours(read_header(path))


def _is_ours(metadata: Mapping[str, str]) -> bool:
    """Whether a header was written by `save`; transformers wants "pt" as the format."""
    return metadata.get("patchout", metadata.get("format")) == FORMAT


def config_from_json(text: str, kind: str = "Passt") -> Any:
    """Parse the config in a file's header, of a `kind` of model; unknown fields are refused by name."""
    values = tuples(json.loads(text))
    config = KINDS[kind][1]
    if unknown := sorted(set(values) - {field.name for field in fields(config)}):
        raise CheckpointError(f"config has unknown fields {unknown}: the file needs a newer patchout")
    parts: dict[str, Any] = {"mel": MelConfig(**tuples(values["mel"]))}
    if "decision" in values:
        try:
            parts |= {"decision": decision_from(values["decision"])}
        except TypeError as error:
            raise CheckpointError(
                f"config has an unknown decision ({error}): the file needs a newer patchout"
            ) from None
    return config(**values | parts)


def _digest(config: str, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over the config and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(config.encode())
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def import_passt(
    source: Source,
    *,
    mel: MelConfig | None = None,
    labels: tuple[str, ...] | None = None,
    task: Literal["multi_class", "multi_label"] = "multi_label",
    stride: int | tuple[int, int] | None = None,
) -> Passt:
    """A PaSST from public weights, a state dict or a file; sizes are read from the shapes.

    The shapes give the frequency stride; the time stride is taken to be the same unless `stride` (frequency,
    time) is given. `mel` is not in the weights: give the hop of the hop-160 and hop-100 models. 527 classes
    are AudioSet's, other counts are named "class 0" ... unless `labels` names them; without a last layer it
    is an encoder without classes. The unused `head_dist` is dropped. CheckpointError: other unknown or
    missing names.
    """
    _, public, where = read_public(source, "passt")
    mel = mel or MelConfig()
    width, patch = public["cls_token"].shape[-1], public["patch_embed.proj.weight"].shape[-1]
    num_classes = len(public["head.1.weight"]) if "head.1.weight" in public else 0
    if not num_classes:  # the norm of the missing head
        public = {"head.0.weight": torch.ones(width), "head.0.bias": torch.zeros(width)} | public
    config = PasstConfig(
        labels=class_names(labels, num_classes, where),
        task=task,
        mel=mel,
        width=width,
        depth=num_blocks(public),
        heads=num_heads(width),
        patch=patch,
        stride=_stride(stride, public["freq_new_pos_embed"].shape[2], patch, mel),
        columns=public["time_new_pos_embed"].shape[-1],
        distilled="dist_token" in public,
    )
    with undrawn():
        model = Passt(config)
    check_names(public, export_passt(model), where)
    fill(model, _own_names(public), where)
    return model


def export_passt(model: Passt) -> dict[str, Tensor]:
    """The weights of a model under the public names of PaSST (without the unused `head_dist`).

    A model with a position per patch is a ValueError: the public format has none.
    """
    if (positions := model.config.positions) != "separate":
        raise ValueError(f"the public format holds separate positions, this model has {positions!r} ones")
    weights = dict(model.state_dict())
    tables = "tokens", "embed.row_position", "embed.column_position"
    tokens, row, column = (weights.pop(name) for name in tables)
    public = {
        "cls_token": tokens[None, :1],
        "new_pos_embed": weights.pop("token_position")[None],
        "freq_new_pos_embed": row.T[None, :, :, None],
        "time_new_pos_embed": column.T[None, :, None, :],
    }
    if model.config.distilled:
        public["dist_token"] = tokens[None, 1:]
    for name, tensor in weights.items():
        public[name.replace("embed.", "patch_embed.").removeprefix("encoder.")] = tensor
    return {name: tensor.contiguous() for name, tensor in public.items()}


def _own_names(public: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names, without the broadcast axes of the public shapes."""
    public = dict(public)
    weights = {
        "tokens": torch.cat([public.pop(name)[0] for name in ("cls_token", "dist_token") if name in public]),
        "token_position": public.pop("new_pos_embed")[0],
        "embed.row_position": public.pop("freq_new_pos_embed")[0, :, :, 0].T,
        "embed.column_position": public.pop("time_new_pos_embed")[0, :, 0].T,
    }
    for name, tensor in public.items():
        encoder = "encoder." if name.startswith(("blocks.", "norm.")) else ""
        weights[encoder + name.replace("patch_embed.", "embed.")] = tensor
    return weights


def _stride(stride: int | tuple[int, int] | None, rows: int, patch: int, mel: MelConfig) -> tuple[int, int]:
    """Strides (frequency, time) that give `rows` patch rows."""
    frequency = stride[0] if isinstance(stride, tuple) else stride
    candidates = [frequency] if frequency else [*PUBLIC_STRIDES, *range(1, patch + 1)]
    fitting = [step for step in candidates if num_patches(mel.n_mels, patch, step) == rows]
    if not fitting:
        strides = f"a frequency stride of {frequency}" if frequency else "no stride"
        reason = f"{rows} rows of positions fit {strides} with {mel.n_mels} mels"
        raise CheckpointError(f"{reason}: give stride=(frequency, time)")
    return fitting[0], stride[1] if isinstance(stride, tuple) else fitting[0]

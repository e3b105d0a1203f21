"""Public weights: their family, and their tensors without the containers and prefixes of training tools."""

import os
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from patchout.checkpoint.labels import label_names
from patchout.checkpoint.weights import Path_, read_file
from patchout.errors import CheckpointError
from patchout.models.fill import check_finite

Family = Literal["passt", "maskspec", "image"]

HEADS = {1280: 16}  # by width: of ViT-huge; every other public model has heads of 64
SIGNATURES: dict[Family, dict[str, int]] = {  # parameters that identify a family, and their number of axes
    "passt": {"time_new_pos_embed": 4, "freq_new_pos_embed": 4},
    "maskspec": {"pos_embed": 3},
    "image": {"pos_embed": 3},
}
COMMON = {"cls_token": 3, "patch_embed.proj.weight": 4}
TITLES: dict[Family, str] = {"passt": "PaSST", "maskspec": "MaskSpec", "image": "ViT or DeiT for images"}
FOREIGN = {  # weights of other models, by a part of their names, from a dot on
    "audio_spectrogram_transformer.": "an AST of the transformers library",
    "v.pos_embed": "an AST as its authors wrote it",
    "vit.embeddings.": "a ViT of the transformers library: the file of the same model in timm can be read",
    "deit.embeddings.": "a DeiT of the transformers library: the file of the same model in timm can be read",
    "encoder_layer_0.": "a ViT of torchvision: the file of the same model in timm can be read",
    "conv_block1.": "a CNN of PANNs",
    "audio_branch.": "a CLAP",
    "layers.0.blocks.": "a Swin transformer, as in HTS-AT",
    "post_extract_proj.": "a BEATs or wav2vec 2.0",
    "feature_extractor.conv_layers.": "a wav2vec 2.0 or HuBERT",
    "token_embedding.": "a Whisper or another text model",
    "lora_A.": "adapters (LoRA) without the model they belong to",
    "token_position": "a model under the names of patchout: give patchout.load the file that patchout saved",
}
CONTAINERS = (  # keys under which training tools store weights, averaged ones first
    *("ema", "model_ema", "ema_state_dict", "state_dict_ema"),
    *("state_dict", "model_state_dict", "model", "net", "weights"),
)
AVERAGED = ("swa", "ema", "averag")  # in the prefix of averaged weights, preferred to the last ones
BESIDE = ("device_proxy", "n_averaged")  # state of wrappers around a model
UNUSED = "head_dist."  # stored in every public PaSST and DeiT, never used here


class Public(NamedTuple):
    """Float32 weights under their public names, their family, and the name of their source in errors."""

    family: Family
    weights: dict[str, Tensor]
    where: str


Source = Mapping[str, Any] | Path_ | Public


def read_public(source: Source, family: Family | None = None) -> Public:
    """Read public weights from a state dict or a file: without prefixes and containers, in float32.

    Averaged weights are preferred. Raises FileNotFoundError, or CheckpointError for any other file, weights
    of another `family` than asked for (None: any in `TITLES`), and weights that are not finite.
    """
    if isinstance(source, Public):
        public = source
    else:
        where = "state dict" if isinstance(source, Mapping) else os.fspath(source)
        content = _inner(source if isinstance(source, Mapping) else read_file(source).tensors, where)
        for part, title in FOREIGN.items():
            if any(f".{part}" in f".{name}" for name in content):
                raise _none_of(family, where, title)
        public = _identified(_tensors(content, where), where, family)
    if family and public.family != family:
        raise _none_of(family, public.where, f"a {TITLES[public.family]}")
    return public


def num_blocks(weights: Mapping[str, Tensor], prefix: str = "blocks.") -> int:
    """Number of blocks under `prefix`; at least one, so that its names are reported as missing."""
    indices = {name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)}
    return max(1, len(indices))


def num_heads(width: int) -> int:
    """Attention heads of a public model by its width: they are not in the shapes."""
    return HEADS.get(width, max(1, width // 64))


def class_names(labels: tuple[str, ...] | None, count: int, where: str) -> tuple[str, ...]:
    """Class names: `labels`; without them AudioSet's for 527, numbers otherwise."""
    if labels is None:
        return label_names("audioset") if count == 527 else tuple(f"class {index}" for index in range(count))
    if len(labels) != count:
        raise CheckpointError(f"{where}: has {count} classes, {len(labels)} labels were given")
    return tuple(labels)


def _inner(content: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The innermost dictionary of weights."""
    nested = {name: part for name, part in content.items() if isinstance(part, Mapping)}
    parts = {name: part for name, part in nested.items() if _holds_weights(part)}
    if not parts or any(str(name).endswith("cls_token") for name in content):
        return content
    name = next((name for name in CONTAINERS if name in parts), None) or next(iter(parts))
    if len(parts) > 1 and name not in CONTAINERS:
        several = f"several dictionaries of weights, {sorted(parts)}"
        raise CheckpointError(f"{where}: holds {several}: give one of them")
    return _inner(parts[name], where)


def _holds_weights(part: Mapping[Any, Any]) -> bool:
    """Whether it holds a tensor under a string at any depth; optimizers store theirs under integers."""
    named = [value for name, value in part.items() if isinstance(name, str)]
    return any(isinstance(x, Tensor) or (isinstance(x, Mapping) and _holds_weights(x)) for x in named)


def _tensors(content: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Tensors without the prefix of all names, which is the one before `cls_token`."""
    names = {str(name).replace("_orig_mod.", ""): tensor for name, tensor in content.items()}
    prefixes = {name.removesuffix("cls_token") for name in names if f".{name}".endswith(".cls_token")}
    prefix = min(prefixes, key=lambda prefix: not any(word in prefix for word in AVERAGED), default="")
    if unknown := [name for name in names if not name.startswith((prefix, *prefixes, *BESIDE))]:
        raise CheckpointError(f"{where}: unknown {unknown[:4]} beside the weights of {prefix}*")
    bare = {name.removeprefix(prefix): tensor for name, tensor in names.items() if name.startswith(prefix)}
    if invalid := [name for name, tensor in bare.items() if not isinstance(tensor, Tensor)]:
        raise CheckpointError(f"{where}: {invalid[:4]} are no tensors: give the weights themselves")
    return {name: tensor for name, tensor in bare.items() if not name.startswith((UNUSED, *BESIDE))}


def _identified(tensors: dict[str, Tensor], where: str, expected: Family | None) -> Public:
    """The tensors as float32 weights, with their family by `SIGNATURES`."""
    for family, signature in SIGNATURES.items():
        axes = {name: tensors[name].ndim for name in COMMON | signature if name in tensors}
        colours = tensors["patch_embed.proj.weight"].shape[1] if axes == COMMON | signature else 0
        if colours == (3 if family == "image" else 1):
            for name, tensor in tensors.items():
                if not tensor.is_floating_point():
                    numbers = f"{str(tensor.dtype).removeprefix('torch.')} numbers"
                    raise CheckpointError(f"{where}: {name} holds {numbers}: give floating-point weights")
            weights = {name: tensor.float() for name, tensor in tensors.items()}
            check_finite(weights, where)
            return Public(family, weights, where)
    raise _none_of(expected, where, f"{sorted(tensors)[:4]} ...")


def _none_of(family: Family | None, where: str, title: str) -> CheckpointError:
    expected = TITLES[family] if family else f"{TITLES['passt']}, {TITLES['maskspec']} or {TITLES['image']}"
    return CheckpointError(f"{where}: no {expected} weights, it holds {title}")

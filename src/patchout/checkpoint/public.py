"""Public weights: the family they belong to, and their tensors, whatever a training tool put around them."""

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
SIGNATURES: dict[Family, dict[str, int]] = {  # names that a family has, and the number of axes of each
    "passt": {"time_new_pos_embed": 4, "freq_new_pos_embed": 4},
    "maskspec": {"pos_embed": 3},
    "image": {"pos_embed": 3},
}
COMMON = {"cls_token": 3, "patch_embed.proj.weight": 4}
TITLES: dict[Family, str] = {"passt": "PaSST", "maskspec": "MaskSpec", "image": "ViT or DeiT for images"}
FOREIGN = {  # by a part of its names, from a dot on: weights that are often taken for these
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
CONTAINERS = (  # what training tools keep weights in, averaged ones first
    *("ema", "model_ema", "ema_state_dict", "state_dict_ema"),
    *("state_dict", "model_state_dict", "model", "net", "weights"),
)
AVERAGED = ("swa", "ema", "averag")  # in the prefix of averaged weights, which come before the last ones
BESIDE = ("device_proxy", "n_averaged")  # what wrappers of a model keep beside it
UNUSED = "head_dist."  # stored in every public PaSST and DeiT, and never used for sounds


class Public(NamedTuple):
    """Weights under their public names in float32, the family they belong to, and what to call their source."""

    family: Family
    weights: dict[str, Tensor]
    where: str


Source = Mapping[str, Any] | Path_ | Public


def read_public(source: Source, family: Family | None = None) -> Public:
    """Public weights of a state dict or a file: prefixes, containers, half precision and the file's format dissolved.

    Averaged weights come before the last ones. Raises FileNotFoundError, or CheckpointError for what is no such file,
    weights of another `family` (None: any that is known), and weights that are not finite.
    """
    if isinstance(source, Public):
        public = source
    else:
        where = "state dict" if isinstance(source, Mapping) else os.fspath(source)
        content = _inner(source if isinstance(source, Mapping) else read_file(source).tensors, where)
        for part, title in FOREIGN.items():
            if any(f".{part}" in f".{name}" for name in content):
                raise _none_of(family, where, title)
        public = _known(_tensors(content, where), where, family)
    if family and public.family != family:
        raise _none_of(family, public.where, f"a {TITLES[public.family]}")
    return public


def num_blocks(weights: Mapping[str, Tensor], prefix: str = "blocks.") -> int:
    """Blocks whose names begin with `prefix`; one where there is none, so that its names are told as missing."""
    return max(
        1, len({name.removeprefix(prefix).partition(".")[0] for name in weights if name.startswith(prefix)})
    )


def num_heads(width: int) -> int:
    """Heads of every attention in a public model of this width: shapes do not tell them."""
    return HEADS.get(width, max(1, width // 64))


def class_names(given: tuple[str, ...] | None, count: int, where: str) -> tuple[str, ...]:
    """Class names: given, AudioSet's for 527, numbers otherwise."""
    if given is None:
        return label_names("audioset") if count == 527 else tuple(f"class {index}" for index in range(count))
    if len(given) != count:
        raise CheckpointError(f"{where}: has {count} classes, {len(given)} labels were given")
    return tuple(given)


def _inner(content: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The innermost dictionary of weights."""
    parts = {
        name: part for name, part in content.items() if isinstance(part, Mapping) and _holds_weights(part)
    }
    if not parts or any(str(name).endswith("cls_token") for name in content):
        return content
    name = next((name for name in CONTAINERS if name in parts), None) or next(iter(parts))
    if len(parts) > 1 and name not in CONTAINERS:
        raise CheckpointError(
            f"{where}: holds several dictionaries of weights, {sorted(parts)}: give one of them"
        )
    return _inner(parts[name], where)


def _holds_weights(part: Mapping[Any, Any]) -> bool:
    """Whether a tensor stands in it under a name; an optimizer keeps its own under numbers."""
    named = [value for name, value in part.items() if isinstance(name, str)]
    return any(
        isinstance(value, Tensor) or (isinstance(value, Mapping) and _holds_weights(value)) for value in named
    )


def _tensors(content: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Bare names: what stands before `cls_token` is what a tool put before every name."""
    names = {str(name).replace("_orig_mod.", ""): tensor for name, tensor in content.items()}
    prefixes = {name.removesuffix("cls_token") for name in names if f".{name}".endswith(".cls_token")}
    prefix = min(prefixes, key=lambda prefix: not any(word in prefix for word in AVERAGED), default="")
    if strange := [name for name in names if not name.startswith((prefix, *prefixes, *BESIDE))]:
        raise CheckpointError(f"{where}: unknown {strange[:4]} beside the weights of {prefix}*")
    bare = {name.removeprefix(prefix): tensor for name, tensor in names.items() if name.startswith(prefix)}
    if strange := [name for name, tensor in bare.items() if not isinstance(tensor, Tensor)]:
        raise CheckpointError(
            f"{where}: {strange[:4]} are no tensors: give the file or dictionary of weights itself"
        )
    return {name: tensor for name, tensor in bare.items() if not name.startswith((UNUSED, *BESIDE))}


def _known(tensors: dict[str, Tensor], where: str, wanted: Family | None) -> Public:
    """The tensors as float32 weights of their family."""
    for family, signature in SIGNATURES.items():
        axes = {name: tensors[name].ndim for name in COMMON | signature if name in tensors}
        colours = tensors["patch_embed.proj.weight"].shape[1] if axes == COMMON | signature else 0
        if colours == (3 if family == "image" else 1):
            for name, tensor in tensors.items():
                if not tensor.is_floating_point():
                    kind = str(tensor.dtype).removeprefix("torch.")
                    raise CheckpointError(
                        f"{where}: {name} holds {kind} numbers: give floating-point weights"
                    )
            weights = {name: tensor.float() for name, tensor in tensors.items()}
            check_finite(weights, where)
            return Public(family, weights, where)
    raise _none_of(wanted, where, f"{sorted(tensors)[:4]} ...")


def _none_of(family: Family | None, where: str, title: str) -> CheckpointError:
    wanted = TITLES[family] if family else f"{TITLES['passt']}, {TITLES['maskspec']} or {TITLES['image']}"
    return CheckpointError(f"{where}: no {wanted} weights, it holds {title}")

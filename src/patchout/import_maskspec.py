"""Public MaskSpec weights in and out, and the start of fine-tuning from any of them (MaskSpec, section 2.4)."""

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Generator, Tensor, nn

from patchout.maskspec import GridConfig, MaskSpec, MaskSpecConfig
from patchout.maskspec_classifier import MaskSpecClassifier, MaskSpecClassifierConfig
from patchout.mel import MelConfig
from patchout.weights import HEAD_WIDTH, CheckpointError, Path_, class_names, public_weights, unpickle

NEW_HEAD_STD = 2e-5  # of a head put on an encoder that has learnt
DECODER_HEADS = {512: 16, 384: 6}  # by width: the published decoder, and that of `pretrain own`
TABLE_TOLERANCE = 1e-4  # float32 tables of other machines against ours
NAMES = dict(  # ours -> public, by the beginning of a name
    pair.split(":")
    for pair in (
        *("embed.proj.:patch_embed.proj.", "embed.class_token:cls_token", "embed.position:pos_embed", "encoder.:"),
        *("decoder.embed.:decoder_embed.", "decoder.mask_token:mask_token", "decoder.position:decoder_pos_embed"),
        *("decoder.transformer.blocks.:decoder_blocks.", "decoder.transformer.norm.:decoder_norm."),
        "decoder.head.:decoder_pred.",
    )
)
TABLES = ("pos_embed", "decoder_pos_embed")


Model = TypeVar("Model", MaskSpec, MaskSpecClassifier)


class Start(NamedTuple):
    """A classifier that starts from other weights, and what of them found no place."""

    model: MaskSpecClassifier
    missing: tuple[str, ...]  # public names of what was drawn anew
    unexpected: tuple[str, ...]  # public names of what was left behind


def import_maskspec(
    source: Mapping[str, Tensor] | Path_, *, mel: MelConfig, decoder_heads: int | None = None
) -> MaskSpec:
    """A model for pre-training from public weights: a state dict or a .pth file, sizes read from the shapes.

    `mel` is the front end: its statistics are not in the file (`mel_statistics.audioset_statistics` for the public
    ones), nor are the decoder's heads: give those of another width than 512 (16 heads) and 384 (6). A missing or
    unknown name, and a fine-tuned file, are a CheckpointError.
    """
    public, where = _public(source)
    if "head.weight" in public:
        raise CheckpointError(f"{where}: a fine-tuned MaskSpec: read it with import_maskspec_classifier")
    if "decoder_embed.weight" not in public:
        raise CheckpointError(f"{where}: no decoder to pre-train with: read it with start_classifier")
    width, depth = public["decoder_embed.weight"].shape[0], _depth(public, "decoder_blocks.")
    heads = decoder_heads or DECODER_HEADS.get(width)
    if heads is None:
        raise CheckpointError(f"{where}: does not tell the heads of a decoder of width {width}: give decoder_heads")
    sizes = _sizes(public, mel, where) | {"decoder_width": width, "decoder_depth": depth, "decoder_heads": heads}
    config = MaskSpecConfig(mel=mel, **sizes)
    return _filled(MaskSpec(config), public, where)


def import_maskspec_classifier(
    source: Mapping[str, Tensor] | Path_,
    *,
    mel: MelConfig,
    labels: tuple[str, ...] | None = None,
    task: Literal["multi_class", "multi_label"] = "multi_label",
) -> MaskSpecClassifier:
    """A tagger from public fine-tuned weights: a state dict or a .pth file, sizes and pooling read from the shapes.

    527 classes are AudioSet's, other counts are named "class 0" ... unless `labels` names them. `mel` as for
    `import_maskspec`. A missing or unknown name, and a pre-training file, are a CheckpointError.
    """
    public, where = _public(source)
    if "mask_token" in public or "head.weight" not in public:
        raise CheckpointError(
            f"{where}: a pre-trained MaskSpec has no classes yet: fine-tune it (patchout train maskspec-... --init "
            "FILE), or read it with import_maskspec"
        )
    labels = class_names(labels, len(public["head.weight"]), where)
    pooling: Literal["mean", "token"] = "mean" if "fc_norm.weight" in public else "token"
    config = MaskSpecClassifierConfig(labels=labels, task=task, pooling=pooling, mel=mel, **_sizes(public, mel, where))
    return _filled(MaskSpecClassifier(config), public, where)


def start_classifier(
    source: Mapping[str, Tensor] | Path_, config: MaskSpecClassifierConfig, *, rng: Generator | None = None
) -> Start:
    """A classifier with the encoder of public weights and a new head, as fine-tuning starts (section 2.4).

    `source`: pre-trained or fine-tuned, for a model of ours `export_maskspec(model)`. Without a norm of the right kind
    in it a new one begins as one. An encoder of another size is a CheckpointError.
    """
    public, where = _public(source)
    model = MaskSpecClassifier(config, rng=rng)
    if model.head is not None:
        nn.init.trunc_normal_(model.head.weight, std=NEW_HEAD_STD, generator=rng)
    own = export_maskspec(model)
    new = {name for name in own if name.startswith(("head.", "fc_norm.", "norm."))}
    given = {name: tensor for name, tensor in public.items() if not name.startswith("head.")}
    taken = {name: tensor for name, tensor in given.items() if name in own}
    _filled(model, {name: own[name] for name in new} | taken, where)
    return Start(model, tuple(sorted(own.keys() - taken.keys())), tuple(sorted(given.keys() - taken.keys())))


def encoder_of(model: MaskSpec) -> MaskSpecClassifier:
    """The encoder of a pre-trained model, for embeddings: a classifier without classes, as fine-tuning starts."""
    own = {field.name: getattr(model.config, field.name) for field in fields(GridConfig)}
    config, rng = MaskSpecClassifierConfig(**own, labels=()), Generator()  # not torch's own: nobody asked for a draw
    encoder = start_classifier(export_maskspec(model), config, rng=rng).model
    return encoder.to(next(model.parameters()).device)


def is_maskspec(public: Mapping[str, Tensor]) -> bool:
    """Whether public weights are a MaskSpec's: one position a patch like a ViT, but of pictures without colours."""
    kernel = public.get("patch_embed.proj.weight")
    return "pos_embed" in public and kernel is not None and kernel.shape[1] == 1


def export_maskspec(model: MaskSpec | MaskSpecClassifier) -> dict[str, Tensor]:
    """The weights of a model under the public names and in the public shapes, position tables and all."""
    norm = "fc_norm." if isinstance(model, MaskSpecClassifier) and model.config.pooling == "mean" else "norm."
    public = {}
    for name, tensor in (*model.state_dict().items(), *model.named_buffers()):
        start = next((start for start in NAMES if name.startswith(start)), "")
        other = NAMES.get(start, "") + name.removeprefix(start)
        other = norm + other.removeprefix("norm.") if other.startswith("norm.") else other
        shape = (1, 1, -1) if other.endswith("_token") else (1, *tensor.shape) if other in TABLES else tensor.shape
        public[other] = tensor.detach().reshape(shape)
    return public


def _public(source: Mapping[str, Tensor] | Path_) -> tuple[dict[str, Tensor], str]:
    """Weights under public names, and what to call their source."""
    where = "state dict" if isinstance(source, Mapping) else os.fspath(source)
    public = public_weights(source if isinstance(source, Mapping) else unpickle(source), where)
    if not {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= public.keys():
        raise CheckpointError(f"{where}: no MaskSpec weights, it holds {sorted(public)[:4]} ...")
    return public, where


def _sizes(public: Mapping[str, Tensor], mel: MelConfig, where: str) -> dict[str, Any]:
    """Sizes of the encoder and its position table."""
    width, patch = public["cls_token"].shape[-1], public["patch_embed.proj.weight"].shape[-1]
    cells = public["pos_embed"].shape[1] - 1
    rows = mel.n_mels // patch
    if rows < 1 or cells % rows or cells < rows:
        raise CheckpointError(f"{where}: {cells} positions do not divide into {rows} rows of {mel.n_mels} mels")
    depth, heads = _depth(public, "blocks."), max(1, width // HEAD_WIDTH)
    return {"width": width, "depth": depth, "heads": heads, "patch": patch, "columns": cells // rows}


def _depth(public: Mapping[str, Tensor], prefix: str) -> int:
    """Blocks whose names begin with `prefix`."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in public if name.startswith(prefix)})


def _filled(model: Model, public: Mapping[str, Tensor], where: str) -> Model:
    """The model with these weights, in evaluation mode; every name and shape must match, every fixed table agree."""
    own = export_maskspec(model)
    missing, unknown = sorted(own.keys() - public.keys()), sorted(public.keys() - own.keys())
    if missing or unknown:
        raise CheckpointError(f"{where}: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
    for name, tensor in own.items():
        if tensor.shape != public[name].shape:
            given, wanted = tuple(public[name].shape), tuple(tensor.shape)
            raise CheckpointError(f"{where}: {name} is {given}, the model has {wanted}")
        if isinstance(model, MaskSpecClassifier) or name not in TABLES:
            tensor.copy_(public[name])  # a view of the model's own
        elif not torch.allclose(public[name], tensor, atol=TABLE_TOLERANCE):
            raise CheckpointError(f"{where}: {name} is not the fixed table of {model.config.rows} rows: give its mel")
    return model.eval()

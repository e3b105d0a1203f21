"""Public MaskSpec weights in and out, and the start of fine-tuning from any of them (MaskSpec, section 2.4)."""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from patchout.audio.mel import MelConfig
from patchout.audio.statistics import audioset_statistics
from patchout.checkpoint.public import Source, class_names, num_blocks, num_heads, read_public
from patchout.errors import CheckpointError
from patchout.models.fill import check_fit, fill
from patchout.models.masking import sincos_positions
from patchout.models.maskspec import GridConfig, MaskSpec, MaskSpecConfig
from patchout.models.maskspec_classifier import NEW_HEAD_STD, MaskSpecClassifier, MaskSpecClassifierConfig

DECODER_HEADS = {512: 16, 384: 6}  # by width: the published decoder, and that of `pretrain own`
TABLE_TOLERANCE = 1e-4  # float32 tables of other machines against ours
TIME_ORDER = 0.9  # likeness of a table of positions, learnt or not, to that of patches in order of time
NAMES = dict(  # ours -> public, by the beginning of a name
    pair.split(":")
    for pair in (
        *(
            "embed.proj.:patch_embed.proj.",
            "embed.class_token:cls_token",
            "embed.position:pos_embed",
            "encoder.:",
        ),
        *(
            "decoder.embed.:decoder_embed.",
            "decoder.mask_token:mask_token",
            "decoder.position:decoder_pos_embed",
        ),
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


def public_mel(*, half_precision: bool = True) -> MelConfig:
    """The front end that the public weights were trained with: AudioSet's statistics, deaf above 11 kHz.

    Their training rounded the waveform, and what pre-emphasis made of it, to float16 (mean effect: .05 of a log-mel,
    nine deviations in the empty bands). `half_precision=False` leaves that out.
    """
    return MelConfig(**audioset_statistics()._asdict(), low_pass_hz=11_000.0, half_precision=half_precision)


def import_maskspec(
    source: Source, *, mel: MelConfig | None = None, decoder_heads: int | None = None
) -> MaskSpec:
    """A model for pre-training from public weights: a state dict or a file, sizes read from the shapes.

    `mel` is the front end, which is not in the file: that of the published weights (`public_mel()`) unless given. Nor
    are the decoder's heads: give those of another width than 512 (16 heads) and 384 (6). A missing or unknown name,
    and a fine-tuned file, are a CheckpointError.
    """
    _, public, where = read_public(source, "maskspec")
    mel = mel or public_mel()
    if "head.weight" in public:
        raise CheckpointError(f"{where}: a fine-tuned MaskSpec: read it with import_maskspec_classifier")
    if "decoder_embed.weight" not in public:
        raise CheckpointError(f"{where}: no decoder to pre-train with: read it with start_classifier")
    width, depth = public["decoder_embed.weight"].shape[0], num_blocks(public, "decoder_blocks.")
    heads = decoder_heads or DECODER_HEADS.get(width)
    if heads is None:
        raise CheckpointError(
            f"{where}: does not tell the heads of a decoder of width {width}: give decoder_heads"
        )
    sizes = _sizes(public, mel, where) | {
        "decoder_width": width,
        "decoder_depth": depth,
        "decoder_heads": heads,
    }
    config = MaskSpecConfig(mel=mel, **sizes)
    return _filled(MaskSpec(config), public, where)


def import_maskspec_classifier(
    source: Source,
    *,
    mel: MelConfig | None = None,
    labels: tuple[str, ...] | None = None,
    task: Literal["multi_class", "multi_label"] = "multi_label",
) -> MaskSpecClassifier:
    """A tagger from public fine-tuned weights: a state dict or a file, sizes and pooling read from the shapes.

    527 classes are AudioSet's, other counts are named "class 0" ... unless `labels` names them. `mel` as for
    `import_maskspec`. A missing or unknown name, and a pre-training file, are a CheckpointError.
    """
    _, public, where = read_public(source, "maskspec")
    mel = mel or public_mel()
    if "mask_token" in public or "head.weight" not in public:
        raise CheckpointError(
            f"{where}: a pre-trained MaskSpec has no classes yet: fine-tune it (patchout train maskspec-... --init "
            "FILE), or read it with import_maskspec"
        )
    labels = class_names(labels, len(public["head.weight"]), where)
    pooling: Literal["mean", "token"] = "mean" if "fc_norm.weight" in public else "token"
    config = MaskSpecClassifierConfig(
        labels=labels, task=task, pooling=pooling, mel=mel, **_sizes(public, mel, where)
    )
    model = _filled(MaskSpecClassifier(config), public, where)
    grid = config.rows, config.columns
    orders = [sincos_positions(*sides, config.width) for sides in (grid[::-1], grid)]
    by_time, by_frequency = (
        F.cosine_similarity(model.embed.position, table)[1:].mean().item() for table in orders
    )
    if by_time > max(by_frequency, TIME_ORDER):
        raise CheckpointError(
            f"{where}: its patches go by time, as AudioMAE's do, and a MaskSpec's by frequency"
        )
    return model


def start_classifier(
    source: Source, config: MaskSpecClassifierConfig, *, rng: Generator | None = None
) -> Start:
    """A classifier with the encoder of public weights and a new head, as fine-tuning starts (section 2.4).

    `source`: pre-trained or fine-tuned, for a model of ours `export_maskspec(model)`. Without a norm of the right kind
    in it a new one begins as one. An encoder of another size is a CheckpointError.
    """
    _, public, where = read_public(source, "maskspec")
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
    config, rng = (
        MaskSpecClassifierConfig(**own, labels=()),
        Generator(),
    )  # not torch's own: nobody asked for a draw
    encoder = start_classifier(export_maskspec(model), config, rng=rng).model
    return encoder.to(next(model.parameters()).device)


def export_maskspec(model: MaskSpec | MaskSpecClassifier) -> dict[str, Tensor]:
    """The weights of a model under the public names and in the public shapes, position tables and all."""
    public = {}
    for _, other, tensor in _named(model):
        shape = (
            (1, 1, -1)
            if other.endswith("_token")
            else (1, *tensor.shape)
            if other in TABLES
            else tensor.shape
        )
        public[other] = tensor.detach().reshape(shape)
    return public


def _named(model: MaskSpec | MaskSpecClassifier) -> Iterator[tuple[str, str, Tensor]]:
    """Our name, the public name, and the tensor of every parameter and fixed table."""
    norm = "fc_norm." if isinstance(model, MaskSpecClassifier) and model.config.pooling == "mean" else "norm."
    for name, tensor in (*model.state_dict().items(), *model.named_buffers()):
        start = next((start for start in NAMES if name.startswith(start)), "")
        other = NAMES.get(start, "") + name.removeprefix(start)
        yield name, norm + other.removeprefix("norm.") if other.startswith("norm.") else other, tensor


def _sizes(public: Mapping[str, Tensor], mel: MelConfig, where: str) -> dict[str, Any]:
    """Sizes of the encoder and its position table."""
    width, patch = public["cls_token"].shape[-1], public["patch_embed.proj.weight"].shape[-1]
    cells = public["pos_embed"].shape[1] - 1
    rows = mel.n_mels // patch
    if rows < 1 or cells % rows or cells < rows:
        raise CheckpointError(
            f"{where}: {cells} positions do not divide into {rows} rows of {mel.n_mels} mels"
        )
    sizes = {"width": width, "depth": num_blocks(public), "heads": num_heads(width)}
    return {**sizes, "patch": patch, "columns": cells // rows}


def _filled(model: Model, public: Mapping[str, Tensor], where: str) -> Model:
    """The model with these weights, in evaluation mode; every name and shape must match, every fixed table agree."""
    check_fit(public, export_maskspec(model), where)
    fixed, own = dict(model.named_buffers()), {}
    for name, other, tensor in _named(model):
        own[name] = public[other].reshape(tensor.shape)
        if name in fixed and not torch.allclose(own.pop(name), tensor, atol=TABLE_TOLERANCE):
            raise CheckpointError(
                f"{where}: {other} is not the fixed table of {model.config.rows} rows: give its mel"
            )
    fill(model, own, where)
    return model

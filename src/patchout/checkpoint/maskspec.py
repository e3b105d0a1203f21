"""Import and export of public MaskSpec weights, and initialisation for fine-tuning (section 2.4)."""

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
from patchout.models.fill import check_fit, fill, undrawn
from patchout.models.masking import sincos_positions
from patchout.models.maskspec import GridConfig, MaskedEncoder, MaskSpec, MaskSpecConfig
from patchout.models.maskspec_classifier import NEW_HEAD_STD, MaskSpecClassifier, MaskSpecClassifierConfig

DECODER_HEADS = {512: 16, 384: 6}  # by width: the published decoder, and that of `pretrain own`
TABLE_TOLERANCE = 1e-4  # float32 tables of other machines against ours
TIME_ORDER = 0.9  # cosine similarity to fixed positions in time-major order from which weights are refused
NAMES = {  # beginnings of names, ours -> public
    "embed.proj.": "patch_embed.proj.",
    "embed.class_token": "cls_token",
    "embed.position": "pos_embed",
    "encoder.": "",
    "decoder.embed.": "decoder_embed.",
    "decoder.mask_token": "mask_token",
    "decoder.position": "decoder_pos_embed",
    "decoder.transformer.blocks.": "decoder_blocks.",
    "decoder.transformer.norm.": "decoder_norm.",
    "decoder.head.": "decoder_pred.",
}
TABLES = ("pos_embed", "decoder_pos_embed")


Model = TypeVar("Model", MaskSpec, MaskSpecClassifier)


class Initialised(NamedTuple):
    """A classifier initialised from pre-trained weights, and the names that did not match."""

    model: MaskSpecClassifier
    missing: tuple[str, ...]  # public names of new random weights
    unexpected: tuple[str, ...]  # public names of unused weights


def public_mel(*, half_precision: bool = True) -> MelConfig:
    """The front end of the public MaskSpec weights: AudioSet's statistics, low-pass at 11 kHz.

    Their training rounded the waveform before and after pre-emphasis to float16 (mean effect: .05 of a
    log-mel, nine deviations in the empty bands). `half_precision=False` leaves that out.
    """
    return MelConfig(**audioset_statistics()._asdict(), low_pass_hz=11_000.0, half_precision=half_precision)


def import_maskspec(
    source: Source, *, mel: MelConfig | None = None, decoder_heads: int | None = None
) -> MaskSpec:
    """A pre-trained MaskSpec from public weights, a state dict or a file; sizes are read from the shapes.

    `mel`, the front end, is not in the file: `public_mel()` unless given. Nor are the decoder's heads: give
    those of another width than 512 (16 heads) and 384 (6). CheckpointError: other names, fine-tuned weights.
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
        reason = f"does not tell the heads of a decoder of width {width}"
        raise CheckpointError(f"{where}: {reason}: give decoder_heads")
    decoder: dict[str, Any] = {"decoder_width": width, "decoder_depth": depth, "decoder_heads": heads}
    config = MaskSpecConfig(mel=mel, **_sizes(public, mel, where), **decoder)
    with undrawn():
        model = MaskSpec(config)
    return _filled(model, public, where)


def import_maskspec_classifier(
    source: Source,
    *,
    mel: MelConfig | None = None,
    labels: tuple[str, ...] | None = None,
    task: Literal["multi_class", "multi_label"] = "multi_label",
) -> MaskSpecClassifier:
    """A fine-tuned MaskSpec from public weights, a state dict or a file; sizes are read from the shapes.

    527 classes are AudioSet's, other counts are named "class 0" ... unless `labels` names them. `mel` as for
    `import_maskspec`. A missing or unknown name, and pre-trained weights, are a CheckpointError.
    """
    _, public, where = read_public(source, "maskspec")
    mel = mel or public_mel()
    if "mask_token" in public or "head.weight" not in public:
        hint = "fine-tune it (patchout train maskspec-... --init FILE), or read it with import_maskspec"
        raise CheckpointError(f"{where}: a pre-trained MaskSpec has no classes yet: {hint}")
    labels, sizes = class_names(labels, len(public["head.weight"]), where), _sizes(public, mel, where)
    pooling: Literal["mean", "token"] = "mean" if "fc_norm.weight" in public else "token"
    config = MaskSpecClassifierConfig(labels=labels, task=task, pooling=pooling, mel=mel, **sizes)
    with undrawn():
        model = MaskSpecClassifier(config)
    model = _filled(model, public, where)
    position, grid = model.embed.position, (config.rows, config.columns)
    fixed = [sincos_positions(*sides, config.width) for sides in (grid[::-1], grid)]
    by_time, by_frequency = (F.cosine_similarity(position, table)[1:].mean().item() for table in fixed)
    if by_time > max(by_frequency, TIME_ORDER):
        raise CheckpointError(f"{where}: its patches go by time, as AudioMAE's do, a MaskSpec's by frequency")
    return model


def start_classifier(
    source: Source, config: MaskSpecClassifierConfig, *, rng: Generator | None = None
) -> Initialised:
    """A classifier with the encoder of public weights and a new head, for fine-tuning (section 2.4).

    `source`: pre-trained or fine-tuned, for a model of ours `export_maskspec(model)`. A norm that fits no
    pooling of its own is new. An encoder of another size is a CheckpointError.
    """
    _, public, where = read_public(source, "maskspec")
    model = MaskSpecClassifier(config, rng=rng)
    if model.head is not None:
        nn.init.trunc_normal_(model.head.weight, std=NEW_HEAD_STD, generator=rng)
    initial = export_maskspec(model)
    new = {name: x for name, x in initial.items() if name.startswith(("head.", "fc_norm.", "norm."))}
    pretrained = {name: x for name, x in public.items() if not name.startswith("head.")}
    shared = {name: x for name, x in pretrained.items() if name in initial}
    _filled(model, new | shared, where)
    missing, unexpected = initial.keys() - shared.keys(), pretrained.keys() - shared.keys()
    return Initialised(model, tuple(sorted(missing)), tuple(sorted(unexpected)))


def encoder_of(
    model: MaskedEncoder, *, pooling: Literal["mean", "token"] = "mean", norm_of_mean: bool = False
) -> MaskSpecClassifier:
    """The encoder of a pre-trained model, for embeddings: a classifier without classes.

    With `pooling` "token" it has the final norm of the model; the mean of the patches has a new one, unless
    the model was trained with its norm after the mean (`norm_of_mean`).
    """
    sizes = {field.name: getattr(model.config, field.name) for field in fields(GridConfig)}
    config = MaskSpecClassifierConfig(**sizes, labels=(), pooling=pooling)
    # not torch's own generator, which this must not advance
    encoder = MaskSpecClassifier(config, rng=Generator())
    weights = {name.removeprefix("encoder."): tensor for name, tensor in model.state_dict().items()}
    weights["embed.position"] = model.embed.position
    names = encoder.state_dict()
    if pooling == "mean" and not norm_of_mean:
        weights |= {name: tensor for name, tensor in names.items() if name.startswith("norm.")}
    fill(encoder, {name: weights[name] for name in names}, "the encoder")
    return encoder.to(model.embed.class_token.device)


def export_maskspec(model: MaskSpec | MaskSpecClassifier) -> dict[str, Tensor]:
    """The weights of a model under the public names and in the public shapes, position tables and all."""
    public = {}
    for _, name, tensor in _named(model):
        table_shape = (1, *tensor.shape) if name in TABLES else tensor.shape
        public[name] = tensor.detach().reshape((1, 1, -1) if name.endswith("_token") else table_shape)
    return public


def _named(model: MaskSpec | MaskSpecClassifier) -> Iterator[tuple[str, str, Tensor]]:
    """Our name, the public name, and the tensor of every parameter and fixed table."""
    norm = "fc_norm." if isinstance(model, MaskSpecClassifier) and model.config.pooling == "mean" else "norm."
    for name, tensor in (*model.state_dict().items(), *model.named_buffers()):
        prefix = next((prefix for prefix in NAMES if name.startswith(prefix)), "")
        public = NAMES.get(prefix, "") + name.removeprefix(prefix)
        yield name, norm + public.removeprefix("norm.") if public.startswith("norm.") else public, tensor


def _sizes(public: Mapping[str, Tensor], mel: MelConfig, where: str) -> dict[str, Any]:
    """Sizes of the encoder and of its position table, by the shapes."""
    width, patch = public["cls_token"].shape[-1], public["patch_embed.proj.weight"].shape[-1]
    cells = public["pos_embed"].shape[1] - 1
    rows = mel.n_mels // patch
    if rows < 1 or cells % rows or cells < rows:
        reason = f"{cells} positions do not divide into {rows} rows of {mel.n_mels} mels"
        raise CheckpointError(f"{where}: {reason}")
    sizes = {"width": width, "depth": num_blocks(public), "heads": num_heads(width)}
    return {**sizes, "patch": patch, "columns": cells // rows}


def _filled(model: Model, public: Mapping[str, Tensor], where: str) -> Model:
    """Load public weights into a model; every name and shape must match, and every fixed table agree."""
    check_fit(public, export_maskspec(model), where)
    fixed, weights = dict(model.named_buffers()), {}
    for name, public_name, tensor in _named(model):
        weights[name] = public[public_name].reshape(tensor.shape)
        if name in fixed and not torch.allclose(weights.pop(name), tensor, atol=TABLE_TOLERANCE):
            table = f"the fixed table of {model.config.rows} rows"
            raise CheckpointError(f"{where}: {public_name} is not {table}: give its mel")
    fill(model, weights, where)
    return model

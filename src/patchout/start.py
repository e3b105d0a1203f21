"""What training starts from: random weights, a model, weights for images (PaSST, sections 3 and 4)."""

import reprlib
from dataclasses import fields, replace
from typing import NamedTuple

import torch
from torch import Generator

from patchout import imagenet, zoo
from patchout.checkpoint import is_own
from patchout.import_maskspec import export_maskspec, start_classifier
from patchout.masking import sincos_positions
from patchout.maskspec_classifier import MaskSpecClassifier, MaskSpecClassifierConfig
from patchout.mel import MelConfig
from patchout.passt import Passt, PasstConfig, cut_depth
from patchout.public import Public, read_public
from patchout.tagger import Tagger, TaggerConfig
from patchout.weights import fill

FIXED = ("width", "heads", "patch", "stride", "distilled", "positions")  # sizes that weights cannot change
FIXED_MASKSPEC = ("width", "depth", "heads", "patch", "columns")


class Start(NamedTuple):
    """What training starts from: nothing, a model, or weights for images."""

    name: str
    model: Tagger | None = None
    images: Public | None = None


def find(init: str) -> Start:
    """Start weights by name: "" (random), one of `imagenet.FILES`, a DeiT or ViT file, or what `patchout.load` takes.

    The last is a zoo name, a file, a run folder, a hub id. Raises what reading these raises.
    """
    if not init:
        return Start(init)
    try:
        path = imagenet.fetch(init) if init in imagenet.FILES else zoo.locate(init)
    except zoo.UnknownModelError as error:
        raise zoo.UnknownModelError(f"{error}; weights for images are {', '.join(imagenet.FILES)}") from None
    if is_own(path):
        return Start(init, model=zoo.load(path, "cpu"))
    public = read_public(path)
    return Start(init, images=public) if public.family == "image" else Start(init, model=zoo.tagger_of(public))


def start(config: TaggerConfig, found: Start, *, rng: Generator | None, device: torch.device) -> Tagger:
    """A model of `config` on `device` with these weights; what they do not bring is drawn from `rng`.

    A ValueError names all sizes that do not fit, and weights of the other family.
    """
    if isinstance(config, MaskSpecClassifierConfig):
        return _start_maskspec(config, found, rng).to(device)
    if isinstance(found.model, MaskSpecClassifier):
        raise ValueError(f"{found.name} is a MaskSpec, a PaSST was asked for: leave --model out, or start elsewhere")
    if found.model:
        return adapt(found.model, config, found.name, rng=rng).to(device)
    if found.images is None:
        return Passt(config, rng=rng).to(device)
    distilled = "dist_token" in found.images.weights
    importer = imagenet.import_deit if distilled else imagenet.import_vit
    return importer(found.images, config, rng=rng).to(device)


def _start_maskspec(config: MaskSpecClassifierConfig, found: Start, rng: Generator | None) -> MaskSpecClassifier:
    """The encoder of a MaskSpec with a new head, or random weights."""
    if not found.name:
        return MaskSpecClassifier(config, rng=rng)
    if not isinstance(found.model, MaskSpecClassifier):
        raise ValueError(f"{found.name} is no MaskSpec: give the run of `patchout pretrain`, or a fine-tuned MaskSpec")
    has, public = found.model.config, export_maskspec(found.model)
    if not has.labels and config.columns > has.columns:  # pre-trained: its positions are a formula
        has = replace(has, columns=config.columns)
        public["pos_embed"] = sincos_positions(has.rows, has.columns, has.width)[None]
    _check_sizes(has, config, found.name, FIXED_MASKSPEC)
    return start_classifier(public, config, rng=rng).model


def adapt(source: Passt, config: PasstConfig, name: str, *, rng: Generator | None) -> Passt:
    """A model of `config` with the weights of `source`, called `name` in errors.

    The same labels keep the whole head, others its LayerNorm alone, as published. A shorter clip takes the first
    columns of the time positions; a longer one is refused: nothing was learnt there. Fewer blocks: `cut_depth`.
    """
    _check_sizes(source.config, config, name, FIXED)
    model = Passt(replace(config, depth=source.config.depth), rng=rng)
    weights = source.state_dict()
    for table in {"embed.column_position", "embed.grid_position"} & weights.keys():
        weights[table] = weights[table][..., : config.columns, :]
    if config.labels != source.config.labels:
        weights |= {layer: tensor for layer, tensor in model.state_dict().items() if layer.startswith("head.1.")}
    fill(model, weights, name)
    return cut_depth(model, config.depth)


def _check_sizes(has: TaggerConfig, asked: TaggerConfig, name: str, fixed: tuple[str, ...]) -> None:
    """Refuse another front end, other sizes, or a longer clip, all in one message."""
    pairs = [(field, getattr(has, field), getattr(asked, field)) for field in fixed]
    mel = [field.name for field in fields(MelConfig)]
    pairs += [(f"mel {field}", getattr(has.mel, field), getattr(asked.mel, field)) for field in mel]
    wrong = [f"{field} {reprlib.repr(old)} (asked for: {reprlib.repr(new)})" for field, old, new in pairs if old != new]
    if asked.columns > has.columns:
        clip_s, longest_s = (size.max_samples / size.mel.sample_rate for size in (asked, has))
        wrong.append(f"{has.columns} time positions, {longest_s:.2f} s (asked for: {asked.columns}, {clip_s:.2f} s)")
    if wrong:
        raise ValueError(f"{name} has {', '.join(wrong)}: choose what it has, or another start")

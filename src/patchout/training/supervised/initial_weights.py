"""What training starts from: random weights, a model, weights for images (PaSST, sections 3 and 4)."""

import reprlib
from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Generator

from patchout.audio.mel import MelConfig
from patchout.checkpoint import imagenet, zoo
from patchout.checkpoint.own import is_own
from patchout.checkpoint.public import Public, read_public
from patchout.models.passt import PasstConfig
from patchout.models.tagger import FAMILIES, Tagger, TaggerConfig, family_of


class Start(NamedTuple):
    """What training starts from: nothing, a model, or weights for images."""

    name: str
    model: Tagger | None = None
    images: Public | None = None


def find(init: str) -> Start:
    """Start weights by name: "" (random), one of `imagenet.FILES`, a DeiT or ViT file, or what
    `patchout.load` takes.

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
    return (
        Start(init, images=public) if public.family == "image" else Start(init, model=zoo.tagger_of(public))
    )


def start(config: TaggerConfig, found: Start, *, rng: Generator | None, device: torch.device) -> Tagger:
    """A model of `config` on `device` with these weights; what they do not bring is drawn from `rng`.

    A ValueError names all sizes that do not fit, and weights of another family.
    """
    if not found.name:
        return FAMILIES[family_of(config)].model(config, rng=rng).to(device)
    if found.images is not None and isinstance(config, PasstConfig):
        distilled = "dist_token" in found.images.weights
        importer = imagenet.import_deit if distilled else imagenet.import_vit
        return importer(found.images, config, rng=rng).to(device)
    if found.model is None or type(found.model.config) is not type(config):
        has = found.model.config.title if found.model else "ViT for images"
        raise ValueError(f"{found.name} {config.other_start.format(has=has, title=config.title)}")
    _check_sizes(found.model.config, config, found.name)
    return found.model.adapted(config, found.name, rng=rng).to(device)


def _check_sizes(has: TaggerConfig, asked: TaggerConfig, name: str) -> None:
    """Refuse another front end, other sizes, or a longer clip, all in one message."""
    pairs = [(field, getattr(has, field), getattr(asked, field)) for field in asked.fixed]
    mel = [field.name for field in fields(MelConfig)]
    pairs += [(f"mel {field}", getattr(has.mel, field), getattr(asked.mel, field)) for field in mel]
    wrong = [
        f"{field} {reprlib.repr(old)} (asked for: {reprlib.repr(new)})"
        for field, old, new in pairs
        if old != new
    ]
    if not has.lends(asked.columns):
        clip_s, longest_s = (size.max_samples / size.mel.sample_rate for size in (asked, has))
        wrong.append(
            f"{has.columns} time positions, {longest_s:.2f} s (asked for: {asked.columns}, {clip_s:.2f} s)"
        )
    if wrong:
        raise ValueError(f"{name} has {', '.join(wrong)}: choose what it has, or another start")

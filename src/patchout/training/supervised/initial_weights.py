"""Initial weights of training: random, of an audio model, or of an image model (PaSST, sections 3 and 4)."""

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


class Initial(NamedTuple):
    """Initial weights: none, a model's, or an image model's."""

    name: str
    model: Tagger | None = None
    images: Public | None = None


def find(init: str) -> Initial:
    """Load initial weights by name: "" (random), one of `imagenet.FILES`, a DeiT or ViT file, or a model.

    A model is what `patchout.load` takes: a zoo name, a file, a run folder, a hub id. Raises what reading it
    raises.
    """
    if not init:
        return Initial(init)
    try:
        path = imagenet.fetch(init) if init in imagenet.FILES else zoo.locate(init)
    except zoo.UnknownModelError as error:
        raise zoo.UnknownModelError(f"{error}; weights for images are {', '.join(imagenet.FILES)}") from None
    if is_own(path):
        return Initial(init, model=zoo.load(path, "cpu"))
    public = read_public(path)
    if public.family == "image":
        return Initial(init, images=public)
    return Initial(init, model=zoo.tagger_of(public))


def start(config: TaggerConfig, initial: Initial, *, rng: Generator | None, device: torch.device) -> Tagger:
    """Build a model of `config` on `device` with these initial weights; missing ones are drawn from `rng`.

    A ValueError names all sizes that do not fit, and weights of another family.
    """
    name, source = initial.name, initial.model
    if not name:
        return FAMILIES[family_of(config)].model(config, rng=rng).to(device)
    if initial.images is not None and isinstance(config, PasstConfig):
        distilled = "dist_token" in initial.images.weights
        importer = imagenet.import_deit if distilled else imagenet.import_vit
        return importer(initial.images, config, rng=rng).to(device)
    if source is None or type(source.config) is not type(config):
        has = source.config.title if source else "ViT for images"
        raise ValueError(f"{name} {config.other_start.format(has=has, title=config.title)}")
    _check_sizes(source.config, config, name)
    return source.adapted(config, name, rng=rng).to(device)


def _check_sizes(has: TaggerConfig, needs: TaggerConfig, name: str) -> None:
    """Refuse another front end, other sizes, or a longer clip, all in one message."""
    sizes = [(field, getattr(has, field), getattr(needs, field)) for field in needs.fixed]
    for field in fields(MelConfig):
        sizes.append((f"mel {field.name}", getattr(has.mel, field.name), getattr(needs.mel, field.name)))
    short = reprlib.repr
    wrong = [f"{size} {short(old)} (asked for: {short(new)})" for size, old, new in sizes if old != new]
    if not has.lends(needs.columns):
        clip_s, longest_s = (config.max_samples / config.mel.sample_rate for config in (needs, has))
        lacking = f"(asked for: {needs.columns}, {clip_s:.2f} s)"
        wrong.append(f"{has.columns} time positions, {longest_s:.2f} s {lacking}")
    if wrong:
        raise ValueError(f"{name} has {', '.join(wrong)}: choose what it has, or another start")

"""Config of the model that a run trains: labels and task of the data; sizes of the run, else of its start."""

from dataclasses import replace

import torch
from torch import nn

from patchout.data.clips import ClipSet
from patchout.models.decision import Decision
from patchout.models.passt import SIZES
from patchout.models.tagger import FAMILIES, Tagger, TaggerConfig, family_of
from patchout.training.supervised.config import TrainConfig


def model_config(config: TrainConfig, clips: ClipSet, source: TaggerConfig | None) -> TaggerConfig:
    """The model config, of the family that `config.model` names, else of the initial weights, else a PaSST.

    Without sizes from either: Base, 12 blocks, a 10 ms hop, and a table of positions as long as a clip; of a
    PaSST stride 10. A trained model's licence, history and thresholds are not the next one's. What the family
    has not, and clips longer than the table of positions, are ValueErrors.
    """
    if not clips.classes:
        todo = "give labels, or run patchout pretrain"
        raise ValueError(f"{config.data}: its clips have no labels to train on: {todo}")
    name = config.model or (family_of(source) if source else "passt")
    family = FAMILIES[name].config
    foreign = set().union(*(other.config.options for other in FAMILIES.values())) - family.options
    if strange := [option for option in sorted(foreign) if getattr(config, option)]:
        them = "them" if len(strange) > 1 else "it"
        raise ValueError(f"{name} has no {', '.join(strange)}: leave {them} out")
    start = source if isinstance(source, family) else None
    data = {"labels": clips.classes, "task": clips.task, "pad_s": config.clip_s, "channel": config.channel}
    names = ("depth", "stride", "positions", "pooling")
    sizes = {name: value for name in names if (value := getattr(config, name))}
    if config.size:
        sizes |= dict(zip(("width", "heads"), SIZES[config.size], strict=True))
    fresh = {"licence": "", "provenance": {}, "decision": Decision(background=clips.background)}
    shape = replace(start or family.fresh(), **data, **sizes, **fresh)
    if config.hop_length is not None:
        shape = replace(shape, mel=replace(shape.mel, hop_length=config.hop_length))
    needed = num_columns(shape, config.clip_s)
    table_s = config.table_s if "table_s" in family.options else None
    columns = max(needed, shape.columns) if table_s is None else num_columns(shape, table_s or config.clip_s)
    shape = replace(shape, columns=columns if start is None or start.lends(columns) else start.columns)
    if needed > shape.columns:
        has_s = shape.max_samples / shape.mel.sample_rate
        table = f"table_s {table_s:g}: lengthen table_s" if table_s else f"the start's {has_s:.2f} s: cut it"
        raise ValueError(f"clip_s {config.clip_s:g} is longer than {table}")
    config.patchout.num_kept(shape.rows, needed)
    return shape


def num_columns(shape: TaggerConfig, seconds: float) -> int:
    """Number of patch columns of so many seconds."""
    frames = shape.mel.num_frames(max(1, round(seconds * shape.mel.sample_rate)))
    if frames < shape.patch:
        problem = f"gives {frames} frames, a patch needs {shape.patch}"
        raise ValueError(f"clip_s {seconds:g} {problem}: lengthen it")
    return shape.num_columns(frames)


def freeze(model: Tagger, part: str) -> None:
    """Exclude from training everything but the head ("encoder"), or nothing ("")."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not part or name.startswith("head."))


def begin_at_priors(model: Tagger, clips: ClipSet) -> None:
    """Give a new multi-label head the log-odds of each class as its bias (Lin et al. 2017, section 4.1).

    From zero all scores begin at one half, and the first steps teach an encoder that every class is rare:
    a pre-trained one is spoilt by it before it learns to tell classes apart. One clip more each way keeps the
    odds finite.
    """
    linear = [layer for layer in model.head.modules() if isinstance(layer, nn.Linear)][-1]
    odds = (torch.from_numpy(clips.class_counts()).float() + 1) / (len(clips) + 2)
    with torch.no_grad():
        linear.bias.copy_(odds.logit())

"""The model that a run trains: labels and task from the data, sizes from the config, else from the start weights."""

from dataclasses import replace
from typing import Any

from patchout.clips import ClipSet
from patchout.maskspec_classifier import MaskSpecClassifierConfig
from patchout.mel import MelConfig
from patchout.mel_statistics import audioset_statistics
from patchout.passt import SIZES, PasstConfig
from patchout.tagger import Tagger, TaggerConfig
from patchout.train_config import TrainConfig

STD_FLOOR = 0.3  # of AudioSet's bands, for a MaskSpec from random weights: full-band sound shall not be blown up


def model_config(config: TrainConfig, clips: ClipSet, source: TaggerConfig | None) -> TaggerConfig:
    """The config of that model: of the family that `config.model` names, else of the start's, else a PaSST.

    Without sizes from either: Base, 12 blocks, a 10 ms hop, and a table of positions as long as a clip; of a PaSST
    stride 10. What the family has not, and clips longer than the table of positions, are ValueErrors.
    """
    if not clips.classes:
        raise ValueError(f"{config.data}: its clips have no labels to train on: give labels, or run patchout pretrain")
    family = config.model or ("maskspec" if isinstance(source, MaskSpecClassifierConfig) else "passt")
    foreign = {"maskspec": ("stride", "positions", "table_s"), "passt": ("drop_path", "pooling")}[family]
    if strange := [name for name in foreign if getattr(config, name)]:
        raise ValueError(f"{family} has no {', '.join(strange)}: leave {'them' if len(strange) > 1 else 'it'} out")
    shape = (_maskspec if family == "maskspec" else _passt)(config, clips, source)
    needed = num_columns(shape, config.clip_s)
    if needed > shape.columns:
        has_s = shape.max_samples / shape.mel.sample_rate
        table = (
            f"table_s {config.table_s:g}: lengthen table_s" if config.table_s else f"the start's {has_s:.2f} s: cut it"
        )
        raise ValueError(f"clip_s {config.clip_s:g} is longer than {table}")
    config.patchout.num_kept(shape.rows, needed)
    return shape


def _passt(config: TrainConfig, clips: ClipSet, source: TaggerConfig | None) -> PasstConfig:
    like = source if isinstance(source, PasstConfig) else PasstConfig(labels=clips.classes, columns=1)
    stride, positions = config.stride or like.stride, config.positions or like.positions
    shape = replace(like, **_common(config, clips, like), stride=stride, positions=positions)
    table = num_columns(shape, config.table_s or config.clip_s)
    return replace(shape, columns=max(table, like.columns) if config.table_s is None else table)


def _maskspec(config: TrainConfig, clips: ClipSet, source: TaggerConfig | None) -> MaskSpecClassifierConfig:
    mel = MelConfig(**audioset_statistics(floor=STD_FLOOR)._asdict())
    given = isinstance(source, MaskSpecClassifierConfig)
    like = source if isinstance(source, MaskSpecClassifierConfig) else MaskSpecClassifierConfig(labels=(), mel=mel)
    shape = replace(like, **_common(config, clips, like), pooling=config.pooling or like.pooling)
    if like.labels:  # it has learnt its positions; those of a pre-trained encoder are a formula
        return shape
    return replace(shape, columns=max(num_columns(shape, config.clip_s), like.columns if given else 1))


def _common(config: TrainConfig, clips: ClipSet, like: TaggerConfig) -> dict[str, Any]:
    """What both families have; a trained model's licence and history are not the next one's."""
    width, heads = SIZES[config.size] if config.size else (like.width, like.heads)
    sizes = {"width": width, "heads": heads, "depth": config.depth or like.depth, "mel": _mel(config, like)}
    heard = {"labels": clips.classes, "task": clips.task, "pad_s": config.clip_s, "channel": config.channel}
    return {**heard, **sizes, "licence": "", "provenance": {}}


def _mel(config: TrainConfig, like: TaggerConfig) -> MelConfig:
    return like.mel if config.hop_length is None else replace(like.mel, hop_length=config.hop_length)


def num_columns(shape: TaggerConfig, seconds: float) -> int:
    """Patch columns of so many seconds."""
    frames = shape.mel.num_frames(max(1, round(seconds * shape.mel.sample_rate)))
    if frames < shape.patch:
        raise ValueError(f"clip_s {seconds:g} gives {frames} frames, a patch needs {shape.patch}: lengthen it")
    return (frames - shape.patch) // shape.stride[1] + 1


def num_class_tokens(shape: TaggerConfig) -> int:
    """Tokens that stand for the whole clip: C, and of most PaSSTs D."""
    return 2 if isinstance(shape, PasstConfig) and shape.distilled else 1


def freeze(model: Tagger, what: str) -> None:
    """Keep the start weights of everything but the head ("encoder"), or of nothing ("")."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not what or name.startswith("head."))

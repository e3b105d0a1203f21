"""Rows of the complexity tables (PaSST, Tables 1 and 2; HEAR paper, Table 2): models, FLOP, cited values."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from patchout.models.passt import PasstConfig
from patchout.models.patches import Patchout, Positions
from patchout.models.transformer import every_other_block
from patchout.training.recipes import recipe

TableName = Literal["1", "2", "hear"]

CLIP_S = 10.0


@dataclass(frozen=True)
class Cited:
    """Values that the papers give for a model, on one consumer GPU; None if they give none."""

    tokens: int | None = None  # as printed: the finer hops leave out C and D
    mAP: float | None = None  # AudioSet  # noqa: N815
    training_clips_per_s: float | None = None
    inference_clips_per_s: float | None = None
    training_gb: float | None = None  # a clip
    speed_up: float | None = None  # in training: over AST, B on the same task, the same hop without Patchout
    score: float | None = None  # on the task of Table 2, as printed


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A PaSST variant as its differences from plain PaSST on ten seconds."""

    cited: Cited
    clip_s: float = CLIP_S  # the table of positions is for CLIP_S
    stride: tuple[int, int] = (10, 10)
    hop_length: int = 320
    every_other: bool = False  # block
    positions: Positions = "separate"
    drop: Patchout | None = None

    def config(self, base: PasstConfig) -> PasstConfig:
        """Model config: sizes of `base`, time positions for one clip."""
        mel = replace(base.mel, hop_length=self.hop_length)
        depth = len(every_other_block(base.depth)) if self.every_other else base.depth
        config = replace(base, mel=mel, depth=depth, stride=self.stride, positions=self.positions)
        return replace(config, columns=columns(config, CLIP_S))


def columns(config: PasstConfig, clip_s: float) -> int:
    """Number of patch columns of a clip."""
    return config.num_columns(config.mel.num_frames(round(clip_s * config.mel.sample_rate)))


_S, _HALF = Patchout(freq=4, time=40), (16, 16)
VARIANTS = {
    "B": Variant(cited=Cited(1190, 0.462, 23.1, None, 2.33, 1.0)),
    "U": Variant(cited=Cited(790, 0.466, 43.2, None, 1.14, 1.9), drop=Patchout(patches=400)),
    "S": Variant(cited=Cited(474, 0.471, 88.7, None, 0.513, 3.8), drop=_S),
    "S-L": Variant(cited=Cited(474, 0.459, 148.6, None, 0.311, 6.4), drop=_S, every_other=True),
    "S-N": Variant(
        cited=Cited(254, 0.466, 184.2, None, 0.202, 8.0), drop=Patchout(freq=2, time=20), stride=_HALF
    ),
    "S16": Variant(cited=Cited(None, 0.468), drop=Patchout(freq=1, time=20), stride=_HALF),
    "AST": Variant(cited=Cited(1190, 0.459, 23.1, None, 2.33, 1.0), positions="grid"),
    "AST-N": Variant(cited=Cited(498, 0.454, 80.0, None, 0.534, 3.4), positions="grid", stride=_HALF),
    "hop320": Variant(cited=Cited(1190, None, 23.1, 62.5)),
    "hop320-S": Variant(cited=Cited(474, 0.476, 88.7, 62.5, None, 3.8), drop=_S),
    "hop160": Variant(cited=Cited(2388, None, 6.8, 18.9), hop_length=160),
    "hop160-S": Variant(
        cited=Cited(594, 0.473, 62.4, 18.9, None, 9.2), hop_length=160, drop=Patchout(freq=6, time=100)
    ),
    "hop100": Variant(cited=Cited(3828, None, 3.0, 8.5), hop_length=100),
    "hop100-S": Variant(
        cited=Cited(1014, 0.473, 29.7, 8.5, None, 9.9), hop_length=100, drop=Patchout(freq=6, time=150)
    ),
}
CNN14 = "CNN14"  # the one row that is no transformer


class TaskCited(NamedTuple):
    """A column of PaSST's Table 2: scores as printed, and training speed over that of B."""

    title: str
    baseline: float
    best: tuple[str, float]  # previous state of the art: name and score
    scores: tuple[float, ...]  # in the order of LETTERS
    speed_ups: tuple[int, ...]


LETTERS = ("B", "U", "S", "S-L", "S-N")
TASKS = {  # by the recipes that fine-tune on them
    "openmic": TaskCited(
        "OpenMIC mAP", 0.795, ("RF-CNN", 0.831), (0.837, 0.843, 0.843, 0.841, 0.840), (1, 4, 4, 6, 8)
    ),
    "esc50": TaskCited(
        "ESC-50 accuracy", 76.9, ("AST", 95.6), (96.3, 96.5, 96.8, 95.5, 96.4), (1, 2, 2, 2, 4)
    ),
    "dcase2020": TaskCited(
        "DCASE20 accuracy", 54.1, ("challenge winner", 73.7), (76.3, 75.6, 75.6, 73.7, 73.9), (1, 4, 4, 6, 8)
    ),
    "fsd50k": TaskCited(
        "FSD50K mAP", 0.434, ("PSLA", 0.558), (0.649, 0.639, 0.653, 0.584, 0.637), (1, 4, 4, 6, 8)
    ),
}


def _fine_tuned(task: str, letter: str, cited: Cited) -> Variant:
    """A variant with the clip length and the Patchout of its recipe for a task."""
    config = recipe(f"{task}-{letter.lower()}").config
    drop = None if config.patchout == Patchout() else config.patchout
    return replace(VARIANTS[letter], cited=cited, clip_s=config.clip_s or CLIP_S, drop=drop)


MEASURED = VARIANTS | {
    f"{task}-{letter.lower()}": _fine_tuned(task, letter, Cited(score=score, speed_up=float(speed_up)))
    for task, column in TASKS.items()
    for letter, score, speed_up in zip(LETTERS, column.scores, column.speed_ups, strict=True)
}
CITED = {name: variant.cited for name, variant in VARIANTS.items()}
CITED |= {CNN14: Cited(None, 0.439, 131.0, None, 0.213, 5.7)}
CITED_ONLY = {
    "Baseline": Cited(mAP=0.314),
    "AST-1212": Cited(1212, 0.459, 23.1, None, 2.33, 1.0),
    "RF-CNN": Cited(None, 0.438, 126.3, None, 0.213, 5.5),
    **{f"{task}-baseline": Cited(score=column.baseline) for task, column in TASKS.items()},
    **{f"{task}-best": Cited(score=column.best[1]) for task, column in TASKS.items()},
}
ROWS = CITED | {name: variant.cited for name, variant in MEASURED.items()} | CITED_ONLY
TABLES: dict[TableName, tuple[str, ...]] = {
    "1": ("Baseline", CNN14, "AST-1212", "AST", "AST-N", "RF-CNN", *LETTERS),
    "2": tuple(f"{task}-{row.lower()}" for task in TASKS for row in ("baseline", "best", *LETTERS)),
    "hear": ("hop320", "hop320-S", "hop160", "hop160-S", "hop100", "hop100-S"),
}


def passt_gflop(config: PasstConfig, patches: int, *, training: bool) -> float:
    """GFLOP of the matrix products of one clip, a multiply-add counted as two.

    Forward: 24 n d^2 + 4 n^2 d a block, for n tokens of width d. Backward: twice that, without the pixels. In
    inference the last block computes the class tokens alone, whose heads attend to tokens of the whole width.
    """
    width, prefix = config.width, config.num_class_tokens
    tokens = patches + prefix
    block = 24 * tokens * width**2 + 4 * tokens**2 * width
    last = 24 * prefix * width**2 + 4 * prefix * tokens * config.heads * width
    projection, head = 2 * patches * config.patch**2 * width, 2 * width * len(config.labels)
    if training:
        return (3 * (config.depth * block + head) + 2 * projection) / 1e9
    return ((config.depth - 1) * block + last + head + projection) / 1e9


def checked(names: Sequence[str]) -> tuple[str, ...]:
    """Names of rows, by default all of ten seconds; ValueError if there is no such row."""
    if unknown := [name for name in names if name not in CITED and name not in MEASURED]:
        raise ValueError(f"no row {', '.join(unknown)}: there are {', '.join(CITED | MEASURED)}")
    return tuple(names) or tuple(CITED)

"""Rows of the papers' complexity tables: models, their FLOP, what is cited (PaSST, Table 1; HEAR paper, Table 2)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from patchout.passt import PasstConfig
from patchout.patches import Patchout, Positions
from patchout.transformer import every_other_block

CLIP_S = 10


@dataclass(frozen=True)
class Cited:
    """What the papers say of a model, on one consumer GPU; None where they say nothing."""

    tokens: int | None  # as printed: the finer hops leave out C and D
    mAP: float | None = None  # AudioSet  # noqa: N815
    training_clips_per_s: float | None = None
    inference_clips_per_s: float | None = None
    training_gb: float | None = None  # a clip


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A PaSST as the difference from the plain one on ten seconds."""

    cited: Cited
    stride: tuple[int, int] = (10, 10)
    hop_length: int = 320
    every_other: bool = False  # block
    positions: Positions = "separate"
    drop: Patchout | None = None

    def config(self, base: PasstConfig) -> PasstConfig:
        """The model: sizes of `base`, a time table for one clip."""
        mel = replace(base.mel, hop_length=self.hop_length)
        columns = (mel.num_frames(CLIP_S * mel.sample_rate) - base.patch) // self.stride[1] + 1
        depth = len(every_other_block(base.depth)) if self.every_other else base.depth
        return replace(base, mel=mel, depth=depth, stride=self.stride, columns=columns, positions=self.positions)


_S, _HALF = Patchout(freq=4, time=40), (16, 16)
VARIANTS = {
    "B": Variant(cited=Cited(1190, 0.462, 23.1, None, 2.33)),
    "U": Variant(cited=Cited(790, 0.466, 43.2, None, 1.14), drop=Patchout(patches=400)),
    "S": Variant(cited=Cited(474, 0.471, 88.7, None, 0.513), drop=_S),
    "S-L": Variant(cited=Cited(474, 0.459, 148.6, None, 0.311), drop=_S, every_other=True),
    "S-N": Variant(cited=Cited(254, 0.466, 184.2, None, 0.202), drop=Patchout(freq=2, time=20), stride=_HALF),
    "S16": Variant(cited=Cited(None, 0.468), drop=Patchout(freq=1, time=20), stride=_HALF),
    "AST": Variant(cited=Cited(1190, 0.459, 23.1, None, 2.33), positions="grid"),
    "AST-N": Variant(cited=Cited(498, 0.454, 80.0, None, 0.534), positions="grid", stride=_HALF),
    "hop320": Variant(cited=Cited(1190, None, 23.1, 62.5)),
    "hop320-S": Variant(cited=Cited(474, 0.476, 88.7, 62.5), drop=_S),
    "hop160": Variant(cited=Cited(2388, None, 6.8, 18.9), hop_length=160),
    "hop160-S": Variant(cited=Cited(594, 0.473, 62.4, 18.9), hop_length=160, drop=Patchout(freq=6, time=100)),
    "hop100": Variant(cited=Cited(3828, None, 3.0, 8.5), hop_length=100),
    "hop100-S": Variant(cited=Cited(1014, 0.473, 29.7, 8.5), hop_length=100, drop=Patchout(freq=6, time=150)),
}
CNN14 = "CNN14"  # the one row that is no transformer
CITED = {name: variant.cited for name, variant in VARIANTS.items()} | {CNN14: Cited(None, 0.439, 131.0, None, 0.213)}


def passt_gflop(config: PasstConfig, patches: int, *, training: bool) -> float:
    """GFLOP of the matrix products of one clip, a multiply-add counted as two.

    Forward: a block of n tokens and width d takes 24 n d^2 + 4 n^2 d. Backward: twice that; pixels need no gradient.
    """
    width, tokens = config.width, patches + (2 if config.distilled else 1)
    block = 24 * tokens * width**2 + 4 * tokens**2 * width
    projection = 2 * patches * config.patch**2 * width
    rest = config.depth * block + 2 * width * len(config.labels)
    return (3 * rest + 2 * projection if training else rest + projection) / 1e9


def known(names: Sequence[str]) -> tuple[str, ...]:
    """The rows of these names, or all where there is none; an unknown name is a ValueError."""
    if unknown := [name for name in names if name not in CITED]:
        raise ValueError(f"no row {', '.join(unknown)}: there are {', '.join(CITED)}")
    return tuple(names) or tuple(CITED)

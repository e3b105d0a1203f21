"""MaskSpec for fine-tuning: its encoder with learnt positions and a classification head (section 2.4)."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from patchout.audio.mel import MelConfig
from patchout.audio.pcm import Channel
from patchout.audio.statistics import audioset_statistics
from patchout.models.decision import NO_DECISION, Decision
from patchout.models.device import to_device
from patchout.models.family import Output, Tagger, TaggerConfig
from patchout.models.fill import fill
from patchout.models.masking import patchify, sincos_positions, take
from patchout.models.maskspec import GridConfig, GridEmbed
from patchout.models.patches import Patchout, patchout
from patchout.models.transformer import INIT_STD, NORM_EPS, Block, init_linear, init_projection

NEW_HEAD_STD = 2e-5  # of a new head on pre-trained weights
STD_FLOOR = 0.3  # of AudioSet's bands, for random weights: full-band sound must not be amplified


@dataclass(frozen=True, kw_only=True)
class MaskSpecClassifierConfig(GridConfig, TaggerConfig):
    """Hyper-parameters, front end and labels of a MaskSpec tagger (section 2.4); see also `TaggerConfig`.

    `pooling`: the head reads the normalised mean of the patches, or the class token.
    """

    title = "MaskSpec"
    options = frozenset({"size", "depth", "pooling", "drop_path", "patchout"})
    fixed = ("width", "depth", "heads", "patch")
    untrained = "pre-trained MaskSpec"
    recipe = "maskspec-esc50"
    other_start = "is no {title}: give the run of `patchout pretrain`, or a fine-tuned {title}"

    labels: tuple[str, ...]
    task: Literal["multi_class", "multi_label"] = "multi_label"
    pooling: Literal["mean", "token"] = "mean"
    pad_s: float = 0.0
    channel: Channel = "mean"
    decision: Decision = NO_DECISION

    def __post_init__(self) -> None:
        """Check sizes and names."""
        super().__post_init__()
        self.check_names()

    @classmethod
    def fresh(cls) -> "MaskSpecClassifierConfig":
        """The default config, with AudioSet's band statistics."""
        return cls(labels=(), columns=1, mel=MelConfig(**audioset_statistics(floor=STD_FLOOR)._asdict()))

    def lends(self, columns: int) -> bool:
        """The same columns; more only for a pre-trained encoder, whose positions are still the fixed ones."""
        return columns == self.columns or (columns > self.columns and not self.labels)


class DropPathBlock(Block):
    """Transformer block with stochastic depth (drop path); its parameters are those of a Block."""

    def forward(
        self, x: Float[Tensor, "batch token width"], factor: Float[Tensor, "2 batch"] | None = None
    ) -> Float[Tensor, "batch token width"]:
        """Residual attention and MLP, each scaled by its `factor`: 0 where a clip skips it."""
        if factor is None:
            return super().forward(x)
        x = x + factor[0, :, None, None] * self.attn(self.norm1(x))
        return x + factor[1, :, None, None] * self.mlp(self.norm2(x))


def drop_path_factors(
    depth: int, batch: int, rate: float, rng: Generator | None
) -> Float[Tensor, "depth 2 batch"]:
    """Drop path: 0 where a clip skips a branch, else 1 / (1 - p); p rises linearly with depth to `rate`."""
    if not 0 <= rate < 1:
        raise ValueError(f"drop path is a chance below 1, got {rate:g}")
    stay = 1 - torch.linspace(0, rate, depth)[:, None, None]
    return (torch.rand(depth, 2, batch, generator=rng) < stay) / stay


class MaskSpecClassifier(Tagger):
    """MaskSpec encoder with learnt positions and a head (section 2.4): log-mel -> Output."""

    config: MaskSpecClassifierConfig

    def __init__(self, config: MaskSpecClassifierConfig, *, rng: Generator | None = None) -> None:
        """Random weights drawn from `rng` (a CPU generator; torch's own when None)."""
        super().__init__(config)
        self.embed = GridEmbed(config, learnt=True)
        self.blocks = nn.ModuleList(DropPathBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)  # of the mean, or of all tokens
        self.head = nn.Linear(config.width, len(config.labels)) if config.labels else None
        init_projection(self.embed.proj, rng)
        init_linear(self, rng)
        for weight in (self.embed.class_token, self.embed.position):
            nn.init.trunc_normal_(weight, std=INIT_STD, generator=rng)

    def forward(
        self,
        mel: Float[Tensor, "batch mel frame"],
        *,
        patchout: Patchout | None = None,
        drop_path: float = 0.0,
        rng: Generator | None = None,
    ) -> Output:
        """Log-mel (batch, n_mels, frames) -> Output; `patchout` and `drop_path` are drawn from `rng`.

        As published (section 2.4): Patchout(patches=200), one draw for the whole batch, and drop_path=0.1. A
        short clip reads the first columns of the positions. Too short for a patch or too long: a ValueError.
        """
        tokens = self.embed(*self._patches(mel, patchout, rng))  # (B, 1 + N, D)
        factors: list[Tensor | None] = [None] * len(self.blocks)
        if drop_path:
            drawn = drop_path_factors(len(self.blocks), mel.shape[0], drop_path, rng)
            factors = list(to_device(drawn, mel.device))
        for block, factor in zip(self.blocks, factors, strict=True):
            tokens = block(tokens, factor)
        with torch.autocast(mel.device.type, enabled=False):
            if self.config.pooling == "mean":
                embedding = self.norm(tokens[:, 1:].float().mean(dim=1))
            else:
                tokens = self.norm(tokens.float())
                embedding = tokens[:, 0]
            logits = self.head(embedding) if self.head else embedding[:, :0]
        return Output(logits, embedding, tokens)

    def _patches(self, mel: Tensor, drop: Patchout | None, rng: Generator | None) -> tuple[Tensor, Tensor]:
        """Pixels and cells (indices of positions) of the patches that stay."""
        cell, pixels = self.config.cells(mel), patchify(mel, self.config.patch)
        if drop is None:
            return pixels, cell[None]
        columns = self.config.num_columns(mel.shape[-1])
        row, column = patchout(self.config.rows, columns, drop, batch=mel.shape[0], rng=rng)
        index = to_device(row * columns + column, mel.device)
        return take(pixels, index.expand(mel.shape[0], -1)), cell[index]

    def adapted(
        self, config: MaskSpecClassifierConfig, name: str, *, rng: Generator | None
    ) -> "MaskSpecClassifier":
        """A model of `config` with this encoder and a new head, for fine-tuning (section 2.4).

        Another pooling gets a new norm, and more columns (of a pre-trained encoder) the fixed positions.
        """
        model = MaskSpecClassifier(config, rng=rng)
        if model.head is not None:
            nn.init.trunc_normal_(model.head.weight, std=NEW_HEAD_STD, generator=rng)
        new = ("head.", "norm.") if config.pooling != self.config.pooling else ("head.",)
        weights = self.weights_for(model, new)
        if config.columns > self.config.columns:
            weights["embed.position"] = sincos_positions(config.rows, config.columns, config.width)
        fill(model, weights, name)
        return model

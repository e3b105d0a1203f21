"""PaSST, the Patchout audio spectrogram transformer: log-mel -> logits and embedding (arXiv 2110.05069)."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from patchout.audio.mel import MelConfig
from patchout.audio.pcm import Channel
from patchout.models.decision import NO_DECISION, Decision
from patchout.models.family import Output, Prediction, Tagger, TaggerConfig
from patchout.models.fill import fill
from patchout.models.patches import PatchEmbed, Patchout, Positions
from patchout.models.patches import patchout as draw
from patchout.models.transformer import INIT_STD, Encoder, every_other_block, init_linear

SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12), "huge": (1280, 16)}  # width, heads
HALVED = 32  # blocks of ViT-huge, of which PaSST kept sixteen (section 3.2)


@dataclass(frozen=True, kw_only=True)
class PasstConfig(TaggerConfig):
    """Hyper-parameters, front end and labels of a PaSST (section 2). The defaults are PaSST-S on ten seconds.

    `stride` is (frequency, time) in pixels, `columns` the length of the time-position table; `distilled`: a
    distillation token D beside the class token C; `positions`: "separate" frequency and time positions, added
    (section 2.1), or one per patch ("grid", as in AST). For the others see `TaggerConfig`.
    """

    title = "PaSST"
    options = frozenset({"size", "depth", "stride", "positions", "table_s", "patchout"})
    fixed = ("width", "heads", "patch", "stride", "distilled", "positions")
    untrained = "PaSST without its last layer"
    recipe = "esc50"

    labels: tuple[str, ...]
    task: Literal["multi_class", "multi_label"] = "multi_label"
    mel: MelConfig = field(default_factory=MelConfig)
    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    stride: tuple[int, int] = (10, 10)
    columns: int = 99
    distilled: bool = True
    positions: Positions = "separate"
    pad_s: float = 0.0
    channel: Channel = "mean"
    licence: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    decision: Decision = NO_DECISION

    def __post_init__(self) -> None:
        """Check names and sizes."""
        self.check_names()
        if min(self.width, self.depth, self.heads, self.patch, *self.stride, self.columns) < 1:
            raise ValueError(f"every size of a PaSST must be at least 1, got {self}")
        if self.patch > self.mel.n_mels:
            raise ValueError(f"a patch of {self.patch} mels does not fit into {self.mel.n_mels}")

    @property
    def num_class_tokens(self) -> int:
        """C, and D unless `distilled` is False."""
        return 2 if self.distilled else 1

    def lends(self, columns: int) -> bool:
        """Up to its own columns: a shorter clip reads the first ones, no position beyond them was learnt."""
        return columns <= self.columns


class Passt(Tagger):
    """The Patchout audio spectrogram transformer (section 2)."""

    config: PasstConfig

    def __init__(self, config: PasstConfig, *, rng: Generator | None = None) -> None:
        """Random weights drawn from `rng` (a CPU generator; torch's own when None)."""
        super().__init__(config)
        width, prefix, grid = config.width, config.num_class_tokens, (config.rows, config.columns)
        self.embed = PatchEmbed(
            width, patch=config.patch, stride=config.stride, grid=grid, positions=config.positions
        )
        self.tokens = nn.Parameter(torch.empty(prefix, width))  # C and D
        self.token_position = nn.Parameter(torch.empty(prefix, width))
        self.encoder = Encoder(width, config.depth, config.heads)
        self.head = nn.Sequential(nn.LayerNorm(width))  # eps 1e-5, as published
        if config.labels:
            self.head.append(nn.Linear(width, len(config.labels)))
        self.init_weights(rng)

    def init_weights(self, rng: Generator | None = None) -> None:
        """Draw all weights: positions, tokens and linear layers from N(0, 0.02), as published."""
        self.embed.init_weights(rng)
        for table in (self.tokens, self.token_position):
            nn.init.trunc_normal_(table, std=INIT_STD, generator=rng)
        init_linear(self, rng)

    def forward(
        self,
        mel: Float[Tensor, "batch mel frame"],
        *,
        patchout: Patchout | None = None,
        time_offset: int = 0,
        rng: Generator | None = None,
    ) -> Output:
        """Log-mel (batch, n_mels, frames) -> Output; `patchout` (section 2.2) is drawn from the CPU `rng`.

        A clip shorter than the time table reads its first columns, or those from `time_offset` on. A clip too
        short for a patch or too long for the table, or a Patchout that drops everything: ValueError.
        """
        config, columns = self.config, self.config.check(mel, first_column=time_offset)
        batch = mel.shape[0]  # not len(): an exported graph would fix it
        grid = draw(config.rows, columns, patchout, batch=batch, rng=rng) if patchout is not None else None
        patches = self.embed(mel, grid, time_offset=time_offset)
        tokens = self.encoder(self._with_class_tokens(patches))  # (B, 2 + N, D)
        return Output(*self._classified(tokens[:, : len(self.tokens)]), tokens)

    def predict(self, mel: Float[Tensor, "batch mel frame"]) -> Prediction:
        """Logits and embedding of `forward`; the last block computes C and D alone."""
        self.config.check(mel)
        tokens = self._with_class_tokens(self.embed(mel, None))
        return self._classified(self.encoder.first(tokens, len(self.tokens)))

    def _with_class_tokens(
        self, patches: Float[Tensor, "batch patch width"]
    ) -> Float[Tensor, "batch token width"]:
        prefix = (self.tokens + self.token_position).expand(patches.shape[0], -1, -1)
        return torch.cat([prefix, patches], dim=1)

    def _classified(self, class_tokens: Float[Tensor, "batch prefix width"]) -> Prediction:
        """Head on the mean of C and D (section 2)."""
        with torch.autocast(class_tokens.device.type, enabled=False):
            embedding = class_tokens.float().mean(dim=1)
            return Prediction(self.head(embedding) if self.config.labels else embedding[:, :0], embedding)

    def adapted(self, config: PasstConfig, name: str, *, rng: Generator | None) -> "Passt":
        """A model of `config` initialised with these weights, for fine-tuning; `name` is theirs in errors.

        The same labels keep the whole head, others its LayerNorm alone, as published. Shorter clips take the
        first columns of the time positions. Fewer blocks: `cut_depth`.
        """
        model = Passt(replace(config, depth=self.config.depth), rng=rng)
        weights = self.weights_for(model, ("head.1.",) if config.labels != self.config.labels else ())
        for table in {"embed.column_position", "embed.grid_position"} & weights.keys():
            weights[table] = weights[table][..., : config.columns, :]
        fill(model, weights, name)
        return cut_depth(model, config.depth)


def keep_blocks(model: Passt, keep: tuple[int, ...]) -> Passt:
    """A copy with only the blocks of `keep`, e.g. `every_other_block(12)` for PaSST-L (section 4.1)."""
    depth = model.config.depth
    if not keep or list(keep) != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= depth:
        raise ValueError(f"blocks to keep must ascend within 0 ... {depth - 1}, got {keep}")
    weights = model.state_dict()
    thin = Passt(replace(model.config, depth=len(keep)), rng=torch.Generator()).to(weights["tokens"].device)
    for name in thin.state_dict():
        source = name
        if name.startswith("encoder.blocks."):
            index, parameter = name.removeprefix("encoder.blocks.").split(".", 1)
            source = f"encoder.blocks.{keep[int(index)]}.{parameter}"
        thin.get_parameter(name).data.copy_(weights[source])
    return thin.train(model.training)


def cut_depth(model: Passt, depth: int) -> Passt:
    """Depth reduction: the model with all `depth` blocks, every other one (section 4.1), or half of 32 (3.2).

    ValueError for any other depth. The paper does not say which half: here evenly spread.
    """
    full = model.config.depth
    cuts = [tuple(range(full)), *([every_other_block(full)] if full > 2 else [])]
    if full == HALVED:
        cuts.append(tuple(round(index * (full - 1) / (full // 2 - 1)) for index in range(full // 2)))
    keep = {len(blocks): blocks for blocks in cuts}
    if depth not in keep:
        allowed = f"{' or '.join(map(str, keep))} (all, or every other block)"
        raise ValueError(f"{full} blocks do not become {depth}: set depth to {allowed}")
    return model if depth == full else keep_blocks(model, keep[depth])

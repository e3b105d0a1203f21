"""PaSST: log-mel -> class logits, clip embedding, tokens ("Efficient Training of Audio Transformers with Patchout")."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from patchout.mel import MelConfig
from patchout.patches import PatchEmbed, Patchout, Positions, patchout
from patchout.pcm import Channel
from patchout.transformer import INIT_STD, Encoder, every_other_block, init_linear

SIZES = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12), "huge": (1280, 16)}  # width, heads
HALVED = 32  # blocks of ViT-huge, of which PaSST kept sixteen (section 3.2)


@dataclass(frozen=True, kw_only=True)
class PasstConfig:
    """Everything needed to build a PaSST and to feed it. The defaults are PaSST-S on ten seconds.

    `stride` is (frequency, time) in pixels, `columns` the length of the time-position table, `distilled` says whether a
    distillation token D stands beside the class token C, `positions` whether a patch's position is the sum of its row's
    and its column's, or its own. `task`: one class a clip (softmax) or any number (sigmoid). `pad_s`: a shorter sound
    gets silence after it up to so many seconds before it is tagged, as in the training of this model. `channel`: which
    one of a file the model hears, as it did there. Without labels it is an encoder for embeddings alone.
    """

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

    def __post_init__(self) -> None:
        """Refuse sizes that make no model."""
        if len(set(self.labels)) != len(self.labels):
            twice = next(label for label in self.labels if self.labels.count(label) > 1)
            raise ValueError(f"label {twice!r} stands twice: every class needs its own name")
        if min(self.width, self.depth, self.heads, self.patch, *self.stride, self.columns) < 1:
            raise ValueError(f"every size of a PaSST must be at least 1, got {self}")
        if self.patch > self.mel.n_mels:
            raise ValueError(f"a patch of {self.patch} mels does not fit into {self.mel.n_mels}")

    @property
    def rows(self) -> int:
        """Patch rows: 12, 10, 9, 8 for a frequency stride of 10, 12, 14, 16."""
        return (self.mel.n_mels - self.patch) // self.stride[0] + 1

    @property
    def max_frames(self) -> int:
        """The longest log-mel one forward pass takes; more would need another column."""
        return self.patch + self.columns * self.stride[1] - 1

    @property
    def max_samples(self) -> int:
        """The longest waveform one forward pass takes."""
        return self.max_frames * self.mel.hop_length

    @property
    def min_samples(self) -> int:
        """The shortest waveform that fills one patch."""
        return max(self.mel.min_samples, self.mel.num_samples(self.patch))


class Output(NamedTuple):
    """What PaSST returns."""

    logits: Float[Tensor, "batch class"]
    embedding: Float[Tensor, "batch width"]  # mean of the C and D tokens after the final norm
    tokens: Float[Tensor, "batch token width"]  # C, D, then the patches, after the final norm


class Passt(nn.Module):
    """The Patchout audio spectrogram transformer."""

    def __init__(self, config: PasstConfig, *, rng: Generator | None = None) -> None:
        """Build it with random weights drawn from `rng` (a CPU generator; torch's own when None)."""
        super().__init__()
        self.config = config
        width, prefix = config.width, 2 if config.distilled else 1
        self.embed = PatchEmbed(
            width,
            patch=config.patch,
            stride=config.stride,
            grid=(config.rows, config.columns),
            positions=config.positions,
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
        nn.init.trunc_normal_(self.tokens, std=INIT_STD, generator=rng)
        nn.init.trunc_normal_(self.token_position, std=INIT_STD, generator=rng)
        init_linear(self, rng)

    def forward(
        self,
        mel: Float[Tensor, "batch mel frame"],
        *,
        patchout: Patchout | None = None,
        time_offset: int = 0,
        rng: Generator | None = None,
    ) -> Output:
        """Log-mel (batch, n_mels, frames) -> Output; Patchout only when asked for, drawn from the CPU generator `rng`.

        A clip shorter than the time table reads its first columns, or those from `time_offset` on. A clip that is too
        short for a patch or too long for the table, and a Patchout that leaves nothing, are ValueErrors.
        """
        grid = self._grid(mel, patchout, time_offset, rng)
        patches = self.embed(mel, grid, time_offset=time_offset)
        prefix = (self.tokens + self.token_position).expand(len(mel), -1, -1)
        tokens = self.encoder(torch.cat([prefix, patches], dim=1))  # (B, 2 + N, D)
        with torch.autocast(mel.device.type, enabled=False):
            embedding = tokens[:, : len(self.tokens)].float().mean(dim=1)
            logits = self.head(embedding) if self.config.labels else embedding[:, :0]
        return Output(logits, embedding, tokens)

    def _grid(
        self, mel: Tensor, drop: Patchout | None, time_offset: int, rng: Generator | None
    ) -> tuple[Tensor, Tensor] | None:
        """Check the clip against the model and choose the patches that stay (None: all)."""
        config, frames = self.config, mel.shape[-1]
        columns = self.embed.columns(frames)
        if mel.ndim != 3 or mel.shape[1] != config.mel.n_mels:
            raise ValueError(
                f"the model takes log-mels of shape (batch, {config.mel.n_mels}, frames), got {tuple(mel.shape)}"
            )
        if columns < 1:
            raise ValueError(
                f"a clip of {frames} frames holds no patch of {config.patch}: pad it to {config.min_samples} samples"
            )
        if not 0 <= time_offset <= config.columns - columns:
            longest = f"{config.max_frames} frames ({config.max_samples / config.mel.sample_rate:.2f} s)"
            at = f" from column {time_offset} on" if time_offset else ""
            raise ValueError(
                f"the model takes at most {longest}, got {frames}{at}: cut the clip into windows, as patchout.tag does"
            )
        if drop is None:
            return None
        return patchout(config.rows, columns, drop, batch=len(mel), rng=rng)


def keep_blocks(model: Passt, keep: tuple[int, ...]) -> Passt:
    """A shallower copy with only the blocks of `keep`, e.g. `every_other_block(12)` for PaSST-L (section 4.1)."""
    depth = model.config.depth
    if not keep or list(keep) != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= depth:
        raise ValueError(f"blocks to keep must ascend within 0 ... {depth - 1}, got {keep}")
    weights = model.state_dict()
    thin = Passt(replace(model.config, depth=len(keep)), rng=torch.Generator()).to(weights["tokens"].device)
    for name in thin.state_dict():
        source = name
        if name.startswith("encoder.blocks."):
            _, _, index, rest = name.split(".", 3)
            source = f"encoder.blocks.{keep[int(index)]}.{rest}"
        thin.get_parameter(name).data.copy_(weights[source])
    return thin.train(model.training)


def cut_depth(model: Passt, depth: int) -> Passt:
    """The model with `depth` blocks: itself, every other block of it where that leaves so many, or half of 32.

    ValueError for any other depth. Which half the paper does not say: here evenly spread, the first and the last too.
    """
    has = model.config.depth
    cuts = [tuple(range(has)), *([every_other_block(has)] if has > 2 else [])]
    if has == HALVED:
        cuts.append(tuple(round(index * (has - 1) / (has // 2 - 1)) for index in range(has // 2)))
    keep = {len(blocks): blocks for blocks in cuts}
    if depth not in keep:
        fits = " or ".join(map(str, keep))
        raise ValueError(f"{has} blocks do not become {depth}: set depth to {fits} (all, or every other block)")
    return model if depth == has else keep_blocks(model, keep[depth])

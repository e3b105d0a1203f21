"""MaskSpec, a masked autoencoder of log-mels: most patches are masked and predicted from the visible ones.

"Masked Spectrogram Prediction For Self-Supervised Audio Pre-Training" (arXiv 2204.12768). Where its text and
the public weights differ, this follows the weights: an MLP's hidden width is four times the width (3072 for
Base, which gives the 86 M parameters of its Table 1; the 2048 of the text would give 67 M), and the mask
token has the decoder's width, 512.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from patchout.audio.mel import MelConfig
from patchout.models import masking
from patchout.models.family import Geometry
from patchout.models.transformer import INIT_STD, Encoder, init_projection


@dataclass(frozen=True, kw_only=True)
class GridConfig(Geometry):
    """Front end, non-overlapping patches and encoder of a MaskSpec (section 2). The defaults: Base on 10 s.

    `columns` is the length of the position table; a shorter clip reads its first columns.
    """

    mel: MelConfig = field(default_factory=MelConfig)
    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    columns: int = 62
    licence: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the sizes."""
        if min(self.width, self.depth, self.heads, self.patch, self.columns) < 1:
            raise ValueError(f"every size of a MaskSpec must be at least 1, got {self}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads: use a multiple")
        if self.mel.n_mels % self.patch:
            raise ValueError(f"{self.mel.n_mels} mels do not divide into patches of {self.patch}: change one")

    def cells(self, mel: Tensor) -> Int[Tensor, "token"]:
        """Indices in the position table of the patches of log-mels (batch, n_mels, frames), checked."""
        table = torch.arange(self.rows * self.columns, device=mel.device).view(self.rows, -1)
        return table[:, : self.check(mel)].flatten()


@dataclass(frozen=True, kw_only=True)
class MaskSpecConfig(GridConfig):
    """Hyper-parameters and front end of a MaskSpec with its decoder, for pre-training (section 2.3).

    `normalize_patches`: the target of a patch is standardised by its own mean and deviation, as published.
    """

    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    normalize_patches: bool = True

    def __post_init__(self) -> None:
        """Check the sizes."""
        super().__post_init__()
        if min(self.decoder_width, self.decoder_depth, self.decoder_heads) < 1:
            raise ValueError(f"every size of a decoder must be at least 1, got {self}")


class GridEmbed(nn.Module):
    """Patch embedding with a class token; a position for each cell of the grid, learnt or fixed."""

    def __init__(self, config: GridConfig, *, learnt: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, config.width, config.patch, config.patch)  # applied as a matrix
        self.class_token = nn.Parameter(torch.empty(config.width))
        self.position: Tensor
        table = masking.sincos_positions(config.rows, config.columns, config.width)
        if learnt:
            self.position = nn.Parameter(table)
        else:
            self.register_buffer("position", table, persistent=False)

    def forward(
        self, pixels: Float[Tensor, "batch token pixel"], cell: Int[Tensor, "#batch token"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Project the patches, add the positions of their cells, prepend the class token."""
        patches = F.linear(pixels, self.proj.weight.flatten(1), self.proj.bias) + self.position[1 + cell]
        class_token = (self.class_token + self.position[0]).expand(pixels.shape[0], 1, -1)
        return torch.cat([class_token, patches], dim=1)


class Decoder(nn.Module):
    """Decoder: latent tokens and mask tokens at the masked patches -> `outputs` of all (section 2.3)."""

    def __init__(self, config: GridConfig, sizes: tuple[int, int, int], outputs: int) -> None:
        """`sizes`: width, blocks and heads."""
        super().__init__()
        width, depth, heads = sizes
        self.embed = nn.Linear(config.width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.transformer = Encoder(width, depth, heads)
        self.head = nn.Linear(width, outputs)
        self.position: Tensor
        table = masking.sincos_positions(config.rows, config.columns, width)
        self.register_buffer("position", table, persistent=False)

    def forward(
        self,
        latent: Float[Tensor, "batch visible width"],
        index: Int[Tensor, "batch index"],
        cell: Int[Tensor, "token"],
    ) -> Float[Tensor, "batch token output"]:
        """Put the visible tokens at their `index` among mask tokens, and predict every patch."""
        return self.head(self.features(latent, index, cell))

    def features(
        self,
        latent: Float[Tensor, "batch visible width"],
        index: Int[Tensor, "batch index"],
        cell: Int[Tensor, "token"],
    ) -> Float[Tensor, "batch token decoder_width"]:
        """What the head reads of every patch."""
        visible = self.embed(latent)
        masked = self.mask_token.to(visible.dtype).expand(latent.shape[0], len(cell), -1)
        patches = masked.scatter(1, index[..., None].expand(-1, -1, masked.shape[-1]), visible[:, 1:])
        tokens = torch.cat([visible[:, :1], patches + self.position[1 + cell]], dim=1)
        return self.transformer(tokens)[:, 1:]


class Prediction(NamedTuple):
    """Output of pre-training: loss, predicted pixels, mask, latent tokens."""

    loss: Float[Tensor, ""]
    prediction: Float[Tensor, "batch token pixel"]  # standardised by each patch with `normalize_patches`
    mask: Float[Tensor, "batch token"]  # 1 where masked
    latent: Float[Tensor, "batch visible width"]  # class token, then visible patches in order of noise


class MaskedEncoder(nn.Module):
    """Vision transformer of the visible patches of a log-mel; a pre-training objective adds what predicts."""

    config: GridConfig

    def __init__(self, config: GridConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = GridEmbed(config, learnt=False)
        self.encoder = Encoder(config.width, config.depth, config.heads)

    def init_weights(self, rng: Generator | None = None) -> None:
        """Xavier-uniform matrices, also of the patch projection; tokens from N(0, 0.02), as published."""
        init_projection(self.embed.proj, rng)  # the bias stays
        nn.init.xavier_uniform_(self.embed.proj.weight.detach().flatten(1), generator=rng)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight, generator=rng)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        for name, token in self.named_parameters():
            if name.endswith("_token"):
                nn.init.normal_(token, std=INIT_STD, generator=rng)

    def see(
        self,
        pixels: Float[Tensor, "batch token pixel"],
        index: Int[Tensor, "batch index"],
        cell: Int[Tensor, "token"],
    ) -> Float[Tensor, "batch visible width"]:
        """Class token and the patches at `index`, after the final norm; the others are never computed."""
        return self.encoder(self.embed(masking.take(pixels, index), cell[index]))


class MaskSpec(MaskedEncoder):
    """Masked autoencoder: a deep encoder of the visible patches, a light decoder of all (section 2)."""

    config: MaskSpecConfig

    def __init__(self, config: MaskSpecConfig, *, rng: Generator | None = None) -> None:
        """Random weights drawn from `rng` (a CPU generator; torch's own when None)."""
        super().__init__(config)
        sizes = config.decoder_width, config.decoder_depth, config.decoder_heads
        self.decoder = Decoder(config, sizes, config.patch**2)
        self.init_weights(rng)

    def forward(
        self,
        mel: Float[Tensor, "batch mel frame"],
        mask_ratio: float = 0.75,
        noise: Float[Tensor, "batch token"] | None = None,
        rng: Generator | None = None,
        weight: Float[Tensor, "batch"] | None = None,
    ) -> Prediction:
        """Mask `mask_ratio` of the patches of log-mels (batch, n_mels, frames) and predict them (section 2).

        The patches with the smallest `noise` stay; without it, it is drawn from `rng` on the generator's own
        device. `weight` is that of each clip in the loss; 1 without it. Frames that fill no further patch are
        left out. ValueError: a ratio outside 0.05 ... 0.95, or a clip too short for a patch or too long for
        the table.
        """
        cell = self.config.cells(mel)
        pixels = masking.patchify(mel, self.config.patch)  # (B, N, 256)
        mask = self._mask(pixels, mask_ratio, noise, rng)
        latent = self.see(pixels, mask.visible, cell)  # (B, 1 + visible, D)
        prediction = self.decoder(latent, mask.visible, cell).float()
        mean, deviation = masking.patch_scale(pixels) if self.config.normalize_patches else (0.0, 1.0)
        loss = masking.masked_error(prediction, (pixels - mean) / deviation, mask.masked, weight)
        return Prediction(loss, prediction, mask.masked, latent)

    def _mask(
        self, pixels: Tensor, mask_ratio: float, noise: Tensor | None, rng: Generator | None
    ) -> masking.Mask:
        """Random mask (section 2.1) from the given noise, or from noise drawn now."""
        if noise is None:
            noise = torch.rand(pixels.shape[:2], generator=rng, device=rng.device if rng else pixels.device)
        if noise.shape != pixels.shape[:2]:
            raise ValueError(f"noise is of shape {tuple(pixels.shape[:2])}, got {tuple(noise.shape)}")
        return masking.random_mask(noise.to(pixels.device, torch.float32, non_blocking=True), mask_ratio)


def lengthened(model: MaskSpec, columns: int) -> MaskSpec:
    """The model with fixed positions (section 2.1) for at least `columns` columns."""
    if columns <= model.config.columns:
        return model
    longer = MaskSpec(replace(model.config, columns=columns), rng=Generator())
    longer.load_state_dict(model.state_dict())
    return longer

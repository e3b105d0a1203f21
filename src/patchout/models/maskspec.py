"""MaskSpec: hide most patches of a log-mel, predict them from the rest; then fine-tune the encoder.

"Masked Spectrogram Prediction For Self-Supervised Audio Pre-Training" (arXiv 2204.12768). Where its text and the public
weights differ, this is the weights' shape: an MLP is four times as wide inside (3072 for Base, which gives the 86 M
parameters of its Table 1; the 2048 of the text would give 67 M), and the mask token has the decoder's width, 512.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from patchout.audio.mel import MelConfig
from patchout.models.family import Geometry
from patchout.models.masking import (
    Mask,
    masked_error,
    patch_scale,
    patchify,
    random_mask,
    sincos_positions,
    take,
)
from patchout.models.transformer import INIT_STD, Encoder

# -- configs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GridConfig(Geometry):
    """What every MaskSpec model has: the front end, patches side by side, an encoder. The defaults are Base on 10 s.

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
        """Refuse sizes that make no model."""
        if min(self.width, self.depth, self.heads, self.patch, self.columns) < 1:
            raise ValueError(f"every size of a MaskSpec must be at least 1, got {self}")
        if self.width % self.heads:
            raise ValueError(
                f"width {self.width} does not divide into {self.heads} heads: use a multiple of them"
            )
        if self.mel.n_mels % self.patch:
            raise ValueError(
                f"{self.mel.n_mels} mels do not divide into patches of {self.patch}: choose a multiple"
            )

    def cells(self, mel: Tensor) -> Int[Tensor, "token"]:
        """Place in the position table of every whole patch of these log-mels, or a ValueError that says what fits."""
        columns = self.check(mel)
        return (
            torch.arange(self.rows * self.columns, device=mel.device)
            .view(self.rows, -1)[:, :columns]
            .flatten()
        )


@dataclass(frozen=True, kw_only=True)
class MaskSpecConfig(GridConfig):
    """Everything needed to build a MaskSpec for pre-training and to feed it.

    `normalize_patches`: every patch is predicted by its own mean and deviation, as published.
    """

    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    normalize_patches: bool = True

    def __post_init__(self) -> None:
        """Refuse sizes that make no model."""
        super().__post_init__()
        if min(self.decoder_width, self.decoder_depth, self.decoder_heads) < 1:
            raise ValueError(f"every size of a decoder must be at least 1, got {self}")


# -- parts ------------------------------------------------------------------------------------------------------------


class GridEmbed(nn.Module):
    """Patches -> tokens with the class token in front; one position for each cell of the grid, learnt or fixed."""

    def __init__(self, config: GridConfig, *, learnt: bool) -> None:
        super().__init__()
        self.patch = config.patch
        self.proj = nn.Conv2d(
            1, config.width, config.patch, config.patch
        )  # owns the parameters; applied as a matrix
        self.class_token = nn.Parameter(torch.empty(config.width))
        self.position: Tensor
        table = sincos_positions(config.rows, config.columns, config.width)
        if learnt:
            self.position = nn.Parameter(table)
        else:
            self.register_buffer("position", table, persistent=False)

    def init_projection(self, rng: Generator | None) -> None:
        """The convolution's own uniform distribution."""
        bound = self.patch**-1  # 1 / sqrt(fan in)
        for weight in self.proj.parameters():
            nn.init.uniform_(weight, -bound, bound, generator=rng)

    def forward(
        self, pixels: Float[Tensor, "batch token pixel"], cell: Int[Tensor, "#batch token"]
    ) -> Float[Tensor, "batch tokens width"]:
        """Project the patches, add the positions of their cells, put the class token before them."""
        patches = F.linear(pixels, self.proj.weight.flatten(1), self.proj.bias) + self.position[1 + cell]
        first = (self.class_token + self.position[0]).expand(len(pixels), 1, -1)
        return torch.cat([first, patches], dim=1)


class Decoder(nn.Module):
    """Latent tokens and a mask token for every hidden patch -> pixels of all patches (section 2.3)."""

    def __init__(self, config: MaskSpecConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.embed = nn.Linear(config.width, width)
        self.mask_token = nn.Parameter(torch.empty(width))
        self.transformer = Encoder(width, config.decoder_depth, config.decoder_heads)
        self.head = nn.Linear(width, config.patch**2)
        self.position: Tensor
        self.register_buffer(
            "position", sincos_positions(config.rows, config.columns, width), persistent=False
        )

    def forward(
        self,
        latent: Float[Tensor, "batch visible width"],
        kept: Int[Tensor, "batch kept"],
        cell: Int[Tensor, "token"],
    ) -> Float[Tensor, "batch token pixel"]:
        """Put the visible tokens in their places among mask tokens, and predict every patch."""
        visible = self.embed(latent)
        hidden = self.mask_token.to(visible.dtype).expand(len(latent), len(cell), -1)
        patches = hidden.scatter(1, kept[..., None].expand(-1, -1, hidden.shape[-1]), visible[:, 1:])
        tokens = torch.cat([visible[:, :1], patches + self.position[1 + cell]], dim=1)
        return self.head(self.transformer(tokens)[:, 1:])


# -- models -----------------------------------------------------------------------------------------------------------


class Prediction(NamedTuple):
    """What `MaskSpec` returns."""

    loss: Float[Tensor, ""]
    prediction: Float[
        Tensor, "batch token pixel"
    ]  # in units of each patch's deviation with `normalize_patches`
    mask: Float[Tensor, "batch token"]  # 1 where hidden
    latent: Float[
        Tensor, "batch visible width"
    ]  # class token, then the visible patches in order of their noise


class MaskSpec(nn.Module):
    """The masked autoencoder of spectrograms: a deep encoder for what is visible, a light decoder for everything."""

    def __init__(self, config: MaskSpecConfig, *, rng: Generator | None = None) -> None:
        """Build it with random weights drawn from `rng` (a CPU generator; torch's own when None)."""
        super().__init__()
        self.config = config
        self.embed = GridEmbed(config, learnt=False)
        self.encoder = Encoder(config.width, config.depth, config.heads)
        self.decoder = Decoder(config)
        self.init_weights(rng)

    def init_weights(self, rng: Generator | None = None) -> None:
        """Xavier-uniform matrices, the patch projection as one of them; tokens from N(0, 0.02), as published."""
        self.embed.init_projection(rng)  # its bias keeps this one
        nn.init.xavier_uniform_(self.embed.proj.weight.detach().flatten(1), generator=rng)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight, generator=rng)
                nn.init.zeros_(part.bias)
        nn.init.normal_(self.embed.class_token, std=INIT_STD, generator=rng)
        nn.init.normal_(self.decoder.mask_token, std=INIT_STD, generator=rng)

    def forward(
        self,
        mel: Float[Tensor, "batch mel frame"],
        mask_ratio: float = 0.75,
        noise: Float[Tensor, "batch token"] | None = None,
        rng: Generator | None = None,
        weight: Float[Tensor, "batch"] | None = None,
    ) -> Prediction:
        """Hide `mask_ratio` of the patches of log-mels (batch, n_mels, frames) and predict them.

        The patches with the smallest `noise` stay; without it, it is drawn from `rng` on the generator's own device.
        `weight` is how much each clip counts in the loss; 1 without it.
        Frames that fill no further patch are left out. A ratio outside 0.05 ... 0.95, and a clip that is too short for
        a patch or too long for the position table, are ValueErrors.
        """
        cell = self.config.cells(mel)
        pixels = patchify(mel, self.config.patch)  # (B, N, 256)
        mask = self._mask(pixels, mask_ratio, noise, rng)
        latent = self.encoder(self.embed(take(pixels, mask.kept), cell[mask.kept]))  # (B, 1 + visible, D)
        prediction = self.decoder(latent, mask.kept, cell).float()
        mean, deviation = patch_scale(pixels) if self.config.normalize_patches else (0.0, 1.0)
        loss = masked_error(prediction, (pixels - mean) / deviation, mask.removed, weight)
        return Prediction(loss, prediction, mask.removed, latent)

    def _mask(self, pixels: Tensor, mask_ratio: float, noise: Tensor | None, rng: Generator | None) -> Mask:
        """The mask of the noise that was given, or of new noise."""
        if noise is None:
            noise = torch.rand(pixels.shape[:2], generator=rng, device=rng.device if rng else pixels.device)
        if noise.shape != pixels.shape[:2]:
            raise ValueError(
                f"noise must be one value a patch, {tuple(pixels.shape[:2])}, got {tuple(noise.shape)}"
            )
        return random_mask(noise.to(pixels.device, torch.float32, non_blocking=True), mask_ratio)


def lengthened(model: MaskSpec, columns: int) -> MaskSpec:
    """The model with a table of positions for at least so many columns: fixed positions are a formula (section 2.1)."""
    if columns <= model.config.columns:
        return model
    longer = MaskSpec(replace(model.config, columns=columns), rng=Generator())
    longer.load_state_dict(model.state_dict())
    return longer

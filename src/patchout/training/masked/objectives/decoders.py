"""Decoders: visible tokens -> a vector for every patch of the grid. The transformer is MaskSpec's own."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from patchout.models.maskspec import Decoder, GridConfig
from patchout.training.masked.config import PretrainConfig

KERNEL = 3
MASK_STD = 0.01  # of what stands in the place of a hidden patch


class ConvolutionalDecoder(nn.Module):
    """3 x 3 convolutions over the grid, each with a norm, GELU and a shortcut; no positions (EAT)."""

    def __init__(self, config: GridConfig, sizes: tuple[int, int, int], outputs: int) -> None:
        """`sizes`: width, layers and groups of the convolutions."""
        super().__init__()
        width, layers, groups = sizes
        if width % groups or config.width % groups:
            raise ValueError(
                f"{groups} groups do not divide a decoder of {width} channels on an encoder of {config.width}"
                ": set --decoder WIDTH LAYERS GROUPS"
            )
        self.rows = config.rows
        inputs = [config.width, *[width] * (layers - 1)]
        self.layers = nn.ModuleList(
            nn.Conv2d(size, width, KERNEL, padding=KERNEL // 2, groups=groups) for size in inputs
        )
        self.head = nn.Linear(width, outputs)

    def init_weights(self, rng: torch.Generator | None) -> None:
        """Xavier-uniform kernels."""
        for layer in self.layers:
            assert isinstance(layer, nn.Conv2d)
            assert layer.bias is not None
            nn.init.xavier_uniform_(layer.weight, generator=rng)
            nn.init.zeros_(layer.bias)

    def features(
        self,
        latent: Float[Tensor, "batch visible width"],
        visible: Int[Tensor, "batch index"],
        cell: Int[Tensor, "token"],
        noise: Float[Tensor, "token width"] | None = None,
    ) -> Float[Tensor, "batch token decoder_width"]:
        """`noise`, drawn once a step for all clips, stands where a patch is hidden; zeros without it."""
        if noise is None:
            noise = latent.new_zeros(len(cell), latent.shape[-1])
        hidden = (MASK_STD * noise).to(latent.dtype).expand(len(latent), -1, -1)
        patches = hidden.scatter(1, visible[..., None].expand(-1, -1, hidden.shape[-1]), latent[:, 1:])
        grid = patches.mT.reshape(
            len(patches), -1, self.rows, len(cell) // self.rows
        )  # (B, D, rows, columns)
        for layer in self.layers:
            change = layer(grid).movedim(1, -1)
            change = F.gelu(F.layer_norm(change, change.shape[-1:])).movedim(-1, 1)
            grid = grid + change if grid.shape == change.shape else change
        return grid.flatten(2).mT

    def forward(
        self,
        latent: Float[Tensor, "batch visible width"],
        visible: Int[Tensor, "batch index"],
        cell: Int[Tensor, "token"],
        noise: Float[Tensor, "token width"] | None = None,
    ) -> Float[Tensor, "batch token output"]:
        """`outputs` values of every patch."""
        return self.head(self.features(latent, visible, cell, noise))


def decoder_of(config: PretrainConfig, shape: GridConfig, outputs: int) -> Decoder | ConvolutionalDecoder:
    """The decoder that a config asks for."""
    kind = Decoder if config.decoder_kind == "transformer" else ConvolutionalDecoder
    return kind(shape, config.decoder, outputs)

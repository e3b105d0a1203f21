"""`pixels`: the log-mel of the hidden patches, from the visible ones (MaskSpec, 2204.12768, section 2)."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from patchout.data import augment
from patchout.data.batches import Batch
from patchout.models.masking import patchify
from patchout.models.maskspec import GridConfig, MaskSpec, MaskSpecConfig
from patchout.training.masked.config import PretrainConfig
from patchout.training.masked.objective import Objective
from patchout.training.step import Place


class Pixels(Objective):
    """Mean squared error of the hidden patches."""

    @classmethod
    def build(cls, config: PretrainConfig, shape: GridConfig) -> MaskSpec:
        """A MaskSpec: encoder, and a decoder that stays in the checkpoint."""
        decoder = zip(("decoder_width", "decoder_depth", "decoder_heads"), config.decoder, strict=True)
        sizes: dict[str, Any] = {field.name: getattr(shape, field.name) for field in fields(GridConfig)}
        full = MaskSpecConfig(**sizes, **dict[str, Any](decoder), normalize_patches=config.normalize_patches)
        return MaskSpec(full, rng=augment.keyed("weights", config.seed))

    def __call__(self, model: nn.Module, batch: Batch, place: Place) -> Tensor:
        """Every mask of a clip is predicted on its own."""
        mel = self.log_mel(batch, place)
        visible = self.visible(place, mel, self.config.mask_ratio)
        mel, weight = (
            each.repeat_interleave(self.config.masks_per_clip, dim=0) for each in (mel, batch.weight[:, 0])
        )
        order = torch.arange(visible.shape[1], device=mel.device) / visible.shape[1] - 1
        tokens = self.shape.rows * self.shape.num_columns(mel.shape[-1])
        noise = torch.ones(len(mel), tokens, device=mel.device).scatter(
            1, visible, order.expand(len(mel), -1)
        )
        with self.autocast(mel):
            out = model(mel, 1 - visible.shape[1] / tokens, noise, weight=weight)
        self.watch_silence(patchify(mel, self.shape.patch), out.mask)
        self.watch_spread(out.latent[:, 1:].float().mean(dim=1))
        return out.loss

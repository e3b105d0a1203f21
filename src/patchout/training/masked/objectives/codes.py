"""`codes`: which of many frozen random vectors a hidden patch is nearest to (BEST-RQ-2, arXiv 2606.30700)."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from patchout.data import augment
from patchout.data.batches import Batch
from patchout.models.masking import patchify, take
from patchout.models.maskspec import GridConfig, MaskedEncoder
from patchout.training.masked.config import PretrainConfig
from patchout.training.masked.objective import SILENT, SPREAD, Alarm, Objective
from patchout.training.masked.objectives.decoders import decoder_of
from patchout.training.step import Place

CODE_WIDTH = 16  # of the frozen vectors


class CodePrediction(NamedTuple):
    """What `CodeModel` returns."""

    loss: Float[Tensor, ""]
    codes: Int[Tensor, "batch masked"]  # of the hidden patches
    hidden: Float[Tensor, "batch token"]
    latent: Float[Tensor, "batch visible width"]


class CodeModel(MaskedEncoder):
    """An encoder of visible patches, and a light predictor of hidden ones' codes, which is thrown away."""

    def __init__(self, config: PretrainConfig, shape: GridConfig) -> None:
        super().__init__(shape)
        self.decoder = decoder_of(config, shape, config.codes)
        self.init_weights(augment.keyed("weights", config.seed))
        rng = augment.keyed("codes", config.seed)  # frozen, and no part of a checkpoint: the seed says them
        projection = nn.init.xavier_uniform_(torch.empty(shape.patch**2, CODE_WIDTH), generator=rng)
        book = F.normalize(torch.randn(config.codes, CODE_WIDTH, generator=rng), dim=-1)
        self.projection: Tensor
        self.register_buffer("projection", projection, persistent=False)
        self.book: Tensor
        self.register_buffer("book", book, persistent=False)

    @torch.no_grad()
    def codes(self, pixels: Float[Tensor, "batch token pixel"]) -> Int[Tensor, "batch token"]:
        """The code of every patch; in float32."""
        with torch.autocast(pixels.device.type, enabled=False):
            return (F.normalize(pixels.float() @ self.projection, dim=-1) @ self.book.T).argmax(dim=-1)

    def forward(
        self,
        mel: Float[Tensor, "batch mel frame"],
        visible: Int[Tensor, "masked index"],
        weight: Float[Tensor, "batch"],
    ) -> CodePrediction:
        """Cross-entropy of the hidden patches' codes; the masks of a clip follow one another."""
        cell, pixels = self.config.cells(mel), patchify(mel, self.config.patch)
        pixels, weight = (
            each.repeat_interleave(len(visible) // len(mel), dim=0) for each in (pixels, weight)
        )
        latent = self.see(pixels, visible, cell)
        hidden = torch.ones(pixels.shape[:2], device=mel.device).scatter(1, visible, 0.0)
        place = hidden.argsort(dim=1, descending=True)[:, : pixels.shape[1] - visible.shape[1]]
        codes = self.codes(take(pixels, place))
        features = take(self.decoder.features(latent, visible, cell), place)
        loss = F.cross_entropy(self.decoder.head(features).float().mT, codes, reduction="none")
        return CodePrediction((loss.mean(dim=1) * weight).mean(), codes, hidden, latent)


class Codes(Objective):
    """Cross-entropy over the codes of the hidden patches."""

    alarms = (
        Alarm(
            "code_entropy",
            lambda entropy: entropy < 0.25,
            "nearly all patches have the same few codes, there is little to predict: standardise the bands "
            "by these sounds (--statistics data), or leave silent clips out",
        ),
        SPREAD,
        SILENT,
    )

    @classmethod
    def build(cls, config: PretrainConfig, shape: GridConfig) -> CodeModel:
        """Encoder and predictor."""
        return CodeModel(config, shape)

    def __init__(self, config: PretrainConfig, model: MaskedEncoder) -> None:
        super().__init__(config, model)
        self._used = torch.zeros(
            config.codes, device=model.embed.class_token.device
        )  # how often each code was a target

    def __call__(self, model: nn.Module, batch: Batch, place: Place) -> Tensor:
        """The ratio of hidden patches is drawn for every step."""
        config, mel = self.config, self.log_mel(batch, place)
        rng = augment.keyed("ratio", config.seed, place.step)
        ratio = augment.uniform(config.mask_ratio, config.mask_ratio_to or config.mask_ratio, rng)
        visible = self.visible(place, mel, ratio)
        with self.autocast(mel):
            out = model(mel, visible, batch.weight[:, 0])
        self._used += torch.bincount(out.codes.flatten(), minlength=config.codes)
        self.watch_silence(patchify(mel, self.shape.patch), out.hidden[:: config.masks_per_clip])
        self.watch_spread(out.latent[:, 1:].mean(dim=1))
        return out.loss

    def seen(self) -> dict[str, float]:
        """Beside the means, how evenly codes are used: entropy as a share of the most that it could be."""
        used, values = self._used.cpu().clone(), super().seen()
        self._used.zero_()
        count = float(used.sum())
        if count > 1:
            share = used[used > 0] / count
            values["code_entropy"] = float(-(share * share.log()).sum()) / math.log(min(len(used), count))
        return values

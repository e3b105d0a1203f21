"""`latent`: what an averaged teacher makes of the whole clip, patch by patch and as one (EAT, 2401.03497)."""

import math
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from patchout.data import augment
from patchout.data.batches import Batch
from patchout.models.device import to_device
from patchout.models.masking import patchify
from patchout.models.maskspec import GridConfig, MaskedEncoder
from patchout.models.transformer import Block
from patchout.training.masked.config import PretrainConfig
from patchout.training.masked.objective import SILENT, SPREAD, Alarm, Objective
from patchout.training.masked.objectives.decoders import ConvolutionalDecoder, decoder_of
from patchout.training.optim import Teacher
from patchout.training.step import Place

RAMP = 0.25  # share of the updates in which the teacher's decay rises
EPS = 1e-5


def teacher_decay(updates: int, *, steps: int, first: float, last: float) -> float:
    """Decay of the teacher: straight from `first` to `last` over the first quarter of the updates."""
    return first + (last - first) * min(1.0, updates / max(1.0, RAMP * steps))


class LatentPrediction(NamedTuple):
    """What `LatentModel` returns."""

    loss: Float[Tensor, ""]
    prediction: Float[Tensor, "masked token width"]
    hidden: Float[Tensor, "masked token"]
    latent: Float[Tensor, "masked visible width"]


class LatentModel(MaskedEncoder):
    """An encoder of visible patches, and a decoder that predicts the teacher's targets; it is thrown away."""

    def __init__(self, config: PretrainConfig, shape: GridConfig) -> None:
        super().__init__(shape)
        self.utterance = config.utterance
        self.decoder = decoder_of(config, shape, shape.width)
        rng = augment.keyed("weights", config.seed)
        self.init_weights(rng)
        if isinstance(self.decoder, ConvolutionalDecoder):
            self.decoder.init_weights(rng)

    def targets(
        self, pixels: Float[Tensor, "batch token pixel"], cell: Tensor
    ) -> Float[Tensor, "batch token width"]:
        """Mean over blocks of their MLP's outputs, each normalised over the clip's patches; then over
        channels.
        """
        tokens, total = self.embed(pixels, cell[None]), torch.zeros((), device=pixels.device)
        for block in self.encoder.blocks:
            assert isinstance(block, Block)
            tokens = tokens + block.attn(block.norm1(tokens))
            change = block.mlp(block.norm2(tokens))
            tokens = tokens + change
            variance, mean = torch.var_mean(change[:, 1:], dim=1, keepdim=True, unbiased=False)
            total = total + (change[:, 1:] - mean) / (variance + EPS).sqrt()
        return F.layer_norm(total / len(self.encoder.blocks), total.shape[-1:])

    def forward(
        self,
        pixels: Float[Tensor, "batch token pixel"],
        cell: Int[Tensor, "token"],
        visible: Int[Tensor, "masked index"],
        target: Float[Tensor, "batch token width"],
        weight: Float[Tensor, "batch"],
        noise: Float[Tensor, "token width"],
    ) -> LatentPrediction:
        """Squared error of the hidden patches, and of the class token against the mean target of the clip."""
        masks = len(visible) // len(pixels)
        pixels, weight = (each.repeat_interleave(masks, dim=0) for each in (pixels, weight))
        latent = self.see(pixels, visible, cell)
        more = (noise,) if isinstance(self.decoder, ConvolutionalDecoder) else ()
        prediction = self.decoder(latent, visible, cell, *more).float()
        hidden = torch.ones(pixels.shape[:2], device=pixels.device).scatter(1, visible, 0.0)
        error = (prediction.unflatten(0, (-1, masks)) - target[:, None]).square().mean(dim=-1).flatten(0, 1)
        local = (error * hidden).sum(dim=1) / hidden.sum(dim=1)
        mean_target = target.mean(dim=1).repeat_interleave(masks, dim=0)
        utterance = (latent[:, 0].float() - mean_target).square().mean(dim=-1)
        loss = (local + self.utterance * utterance) / math.sqrt(target.shape[-1])
        return LatentPrediction((loss * weight).mean(), prediction, hidden, latent)


class Latent(Objective):
    """Mean squared error against the teacher, of several masks of a clip that share one pass of it."""

    alarms = (
        Alarm(
            "target_spread",
            lambda spread: spread < 0.1,
            "the teacher gives all clips the same targets, it has collapsed: raise --teacher-decay, lower "
            "--base-lr",
        ),
        Alarm(
            "prediction_spread",
            lambda spread: spread < 0.01,
            "all clips get the same predictions, the encoder has collapsed: lower --base-lr, or lengthen the "
            "warm-up",
        ),
        SPREAD,
        SILENT,
    )

    def __init__(self, config: PretrainConfig, model: MaskedEncoder) -> None:
        super().__init__(config, model)
        self.teacher = Teacher(model, lambda updates: 0.0)

    def begin(self, steps: int) -> None:
        """The teacher's decay, which the length of the run says."""
        super().begin(steps)
        assert self.teacher is not None
        first, last = self.config.teacher_decay
        self.teacher.schedule = partial(teacher_decay, steps=steps, first=first, last=last)

    @classmethod
    def build(cls, config: PretrainConfig, shape: GridConfig) -> LatentModel:
        """Encoder and decoder."""
        return LatentModel(config, shape)

    def __call__(self, model: nn.Module, batch: Batch, place: Place) -> Tensor:
        """One decode and one teacher pass for all masks of a clip."""
        config, mel, weight = self.config, self.log_mel(batch, place), batch.weight[:, 0]
        cell, pixels = self.shape.cells(mel), patchify(mel, self.shape.patch)
        visible = self.visible(place, mel, config.mask_ratio)
        assert self.teacher is not None
        with torch.no_grad():  # in float32, as published
            target = cast(LatentModel, self.teacher.model).targets(pixels, cell)
        rng = augment.keyed("noise", config.seed, place.step, place.part)
        noise = to_device(torch.randn(len(cell), self.shape.width, generator=rng), mel.device)
        with self.autocast(mel):
            out = model(pixels, cell, visible, target, weight, noise)
        first = slice(None, None, config.masks_per_clip)  # mask of a clip
        self.watch_silence(pixels, out.hidden[first])
        self.watch_spread(out.latent[first, 1:].mean(dim=1))
        self._watch_clips("target_spread", target)
        self._watch_clips("prediction_spread", out.prediction[first])
        return out.loss

    def _watch_clips(self, name: str, values: Float[Tensor, "batch token width"]) -> None:
        """Deviation over the clips of what stands at one place of the grid, as the variance's mean root."""
        variance = values.detach().float().var(dim=0, unbiased=False)
        self.watch(name, variance.mean().sqrt(), counts=len(values) > 1)

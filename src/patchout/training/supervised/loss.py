"""Loss of a supervised step: log-mel, SpecAugment, mixup, time offset and Patchout (PaSST, section 3)."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from patchout.audio.mel import log_mel
from patchout.data import augment
from patchout.data.augment import Masks, Share
from patchout.data.batches import Batch
from patchout.data.clips import ClipSet
from patchout.models.device import autocast, to_device
from patchout.models.tagger import TaggerConfig
from patchout.training.step import Place
from patchout.training.supervised.config import TrainConfig

LONGEST_MASK = 0.2  # of a clip; the published ones are 192 of 1000 and 80 of 500 frames
HEAVIEST = 10  # times the lightest class, where rare classes weigh more


class StepLoss:
    """Training loss of a part of a step; its randomness is keyed by (seed, step, part), for all processes."""

    def __init__(
        self, config: TrainConfig, model: TaggerConfig, class_weight: Float[Tensor, "class"]
    ) -> None:
        self.config = config
        self.model = model
        self.class_weight = class_weight  # moved to the device of the first batch
        fill: float | Literal["mean"] = "mean" if config.mask_fill == "mean" else 0.9
        frames = model.mel.num_frames(round(config.clip_s * model.mel.sample_rate))
        longest = min(config.mask_time, int(LONGEST_MASK * frames))
        self.masks = Masks(config.mask_freq, longest, shared=config.mask_shared, fill=fill)
        self.spare_columns = model.columns - model.num_columns(frames) if "table_s" in model.options else 0
        regularisers = model.options & {"patchout", "drop_path"}
        self.arguments = {name: getattr(config, name) for name in regularisers}

    def __call__(self, model: nn.Module, batch: Batch, place: Place) -> Tensor:
        """Mean cross entropy (multi-class) or binary cross entropy (multi-label) with the mixed targets.

        Labels that are not known and clips that could not be read have weight 0.
        """
        config, mel_config = self.config, self.model.mel
        rng = augment.keyed("step", config.seed, place.step, place.part)
        nyquist = mel_config.sample_rate / 2
        band = augment.mel_band(mel_config.f_max, rng, nyquist=nyquist) if config.mel_jitter else None
        mel, share = log_mel(batch.wave, mel_config, band=band), Share(place.first, place.total, place.gather)
        mel = augment.spec_augment(mel, self.masks, rng, share=share)
        target, weight = batch.target, batch.weight
        if config.mixup:  # of two clips a label has the weight of those that know it
            weighted = torch.cat([weight * target, weight], dim=1)
            mel, mixed = augment.mixup(mel, weighted, config.mixup, rng, share=share)
            weighted_target, weight = mixed.chunk(2, dim=1)
            target = weighted_target / weight.clamp(min=1e-6)
        offset = {}
        if self.spare_columns:
            offset["time_offset"] = int(torch.randint(0, self.spare_columns + 1, (), generator=rng))
        with autocast(mel.device, config.precision):
            logits = model(mel, rng=rng, **self.arguments, **offset).logits
        return self.compare(logits, target, weight)

    def compare(
        self,
        logits: Float[Tensor, "batch class"],
        target: Float[Tensor, "batch class"],
        weight: Float[Tensor, "batch class"],
    ) -> Float[Tensor, ""]:
        """Cross entropy of these logits, with label smoothing; `weight` is that of every label."""
        if self.class_weight.device != weight.device:
            self.class_weight = to_device(self.class_weight, weight.device)
        smooth, weight = self.config.label_smoothing, weight * self.class_weight
        if self.model.task == "multi_class":
            smoothed = target * (1 - smooth) + smooth / target.shape[1]
            return -(weight * smoothed * logits.float().log_softmax(1)).sum(1).mean()
        smoothed = target * (1 - smooth) + 0.5 * smooth
        return F.binary_cross_entropy_with_logits(logits.float(), smoothed, weight)


def class_weights(clips: ClipSet) -> Float[Tensor, "class"]:
    """Class weights by inverse frequency, at most HEAVIEST times the commonest's; the mean label weighs 1."""
    count = torch.from_numpy(clips.class_counts()).float().clamp(min=1)
    weight = (count.max() / count).clamp(max=HEAVIEST)
    return weight * count.sum() / (weight * count).sum()


def wave_augment(
    wave: Float[Tensor, "sample"], rng: Generator, *, config: TrainConfig, rate: int
) -> Float[Tensor, "changed"]:
    """Waveform augmentation: speed, gain, roll."""
    if config.speed:
        wave = augment.speed(wave, augment.uniform(1 - config.speed, 1 + config.speed, rng))
    wave = augment.gain(wave, config.gain_db, rng)
    return augment.roll(wave, round(config.roll_s * rate), rng)

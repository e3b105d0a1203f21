"""The loss of one supervised step: log-mel, masks, mixup, a place in the time table, Patchout (PaSST, section
3)."""

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
from patchout.models.device import autocast
from patchout.models.tagger import TaggerConfig
from patchout.training.step import Place
from patchout.training.supervised.config import TrainConfig

LONGEST_MASK = 0.2  # of a clip; the published ones are 192 of 1000 and 80 of 500 frames
HEAVIEST = 10  # times the lightest class, where rare classes weigh more


class StepLoss:
    """Everything random in it is drawn from (seed, step, part), for the clips of all processes."""

    def __init__(
        self, config: TrainConfig, model: TaggerConfig, class_weight: Float[Tensor, "class"]
    ) -> None:
        self.config = config
        self.model = model
        self.class_weight = class_weight
        fill: float | Literal["mean"] = "mean" if config.mask_fill == "mean" else 0.9
        frames = model.mel.num_frames(round(config.clip_s * model.mel.sample_rate))
        longest = min(config.mask_time, int(LONGEST_MASK * frames))
        self.masks = Masks(config.mask_freq, longest, shared=config.mask_shared, fill=fill)
        self.spare_columns = model.columns - model.num_columns(frames) if "table_s" in model.options else 0
        self.arguments = {
            name: getattr(config, name) for name in ("patchout", "drop_path") if name in model.options
        }

    def __call__(self, model: nn.Module, batch: Batch, place: Place) -> Tensor:
        """Cross entropy (multi-class) or binary cross entropy (multi-label) against the mixed targets, mean
        over all.

        Labels that are not known and clips that could not be read have weight 0.
        """
        config, mel_config = self.config, self.model.mel
        rng = augment.keyed("step", config.seed, place.step, place.part)
        band = augment.mel_band(mel_config.f_max, rng) if config.mel_jitter else None
        mel, share = log_mel(batch.wave, mel_config, band=band), Share(place.first, place.total, place.gather)
        mel = augment.spec_augment(mel, self.masks, rng, share=share)
        target, weight = batch.target, batch.weight
        if config.mixup:  # of two clips a label has the weight of those that know it
            mel, both = augment.mixup(
                mel, torch.cat([weight * target, weight], 1), config.mixup, rng, share=share
            )
            told, weight = both.chunk(2, dim=1)
            target = told / weight.clamp(min=1e-6)
        place_in_table = {}
        if self.spare_columns:
            place_in_table["time_offset"] = int(torch.randint(0, self.spare_columns + 1, (), generator=rng))
        with autocast(mel.device, config.precision):
            logits = model(mel, rng=rng, **self.arguments, **place_in_table).logits
        return self.compare(logits, target, weight)

    def compare(
        self,
        logits: Float[Tensor, "batch class"],
        target: Float[Tensor, "batch class"],
        weight: Float[Tensor, "batch class"],
    ) -> Float[Tensor, ""]:
        """The loss of these logits; `weight` is that of every label."""
        smooth, weight = self.config.label_smoothing, weight * self.class_weight.to(weight.device)
        if self.model.task == "multi_class":
            smoothed = target * (1 - smooth) + smooth / target.shape[1]
            return -(weight * smoothed * logits.float().log_softmax(1)).sum(1).mean()
        smoothed = target * (1 - smooth) + 0.5 * smooth
        return F.binary_cross_entropy_with_logits(logits.float(), smoothed, weight)


def class_weights(clips: ClipSet) -> Float[Tensor, "class"]:
    """Rarer classes weigh more, by 1 / clips, at most HEAVIEST times the commonest; the mean label weighs
    1."""
    count = torch.from_numpy(clips.class_counts()).float().clamp(min=1)
    weight = (count.max() / count).clamp(max=HEAVIEST)
    return weight * count.sum() / (weight * count).sum()


def wave_augment(
    wave: Float[Tensor, "sample"], rng: Generator, *, config: TrainConfig, rate: int
) -> Float[Tensor, "changed"]:
    """The augmentation of one waveform: speed, gain, roll."""
    if config.speed:
        wave = augment.speed(wave, augment.uniform(1 - config.speed, 1 + config.speed, rng))
    wave = augment.gain(wave, config.gain_db, rng)
    return augment.roll(wave, round(config.roll_s * rate), rng)

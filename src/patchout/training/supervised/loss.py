"""Loss of a supervised step: log-mel, SpecAugment, mixup, time offset and Patchout (PaSST, section 3)."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from patchout.audio.mel import MelConfig, log_mel
from patchout.data import augment
from patchout.data.augment import Masks, Share
from patchout.data.batches import Batch
from patchout.data.clips import ClipSet, Task
from patchout.models.device import autocast, to_device
from patchout.models.tagger import TaggerConfig
from patchout.training.step import Place
from patchout.training.supervised.config import TrainConfig
from patchout.training.supervised.distillation import Distillation

LONGEST_MASK = 0.2  # of a clip; the published ones are 192 of 1000 and 80 of 500 frames
HEAVIEST = 10  # times the lightest class, where rare classes weigh more


class StepLoss:
    """Training loss of a part of a step; its randomness is keyed by (seed, step, part), for all processes."""

    def __init__(
        self,
        config: TrainConfig,
        model: TaggerConfig,
        class_weight: Float[Tensor, "class"],
        distillation: Distillation | None = None,
    ) -> None:
        self.config = config
        self.model = model
        self.class_weight = class_weight  # moved to the device of the first batch
        self.distillation = distillation
        frames = model.mel.num_frames(round(config.clip_s * model.mel.sample_rate))
        self.spare_columns = model.columns - model.num_columns(frames) if "table_s" in model.options else 0
        regularisers = model.options & {"patchout", "drop_path"}
        self.arguments = {name: getattr(config, name) for name in regularisers}

    def __call__(self, model: nn.Module, batch: Batch, place: Place) -> Tensor:
        """Mean cross entropy (multi-class) or binary cross entropy (multi-label) with the mixed targets.

        Labels that are not known and clips that could not be read have weight 0. With teachers it is the
        weighted mean of this loss and that with their scores; what they hear is made by the same draws.
        """
        config, mel_config, distillation = self.config, self.model.mel, self.distillation
        rng = augment.keyed("step", config.seed, place.step, place.part)
        share, start = Share(place.first, place.total, place.gather), rng.get_state()
        target, weight = batch.target, batch.weight
        if distillation:
            target, weight = distillation.widened(target, weight)
        weighted = torch.cat([weight * target, weight], dim=1)
        mel, mixed = self._mixed_mel(batch.wave, weighted, mel_config, rng, share)
        if config.mixup:  # of two clips a label has the weight of those that know it
            weighted_target, weight = mixed.chunk(2, dim=1)
            target = weighted_target / weight.clamp(min=1e-6)
        offset = {}
        if self.spare_columns:
            offset["time_offset"] = int(torch.randint(0, self.spare_columns + 1, (), generator=rng))
        with autocast(mel.device, config.precision):
            logits = model(mel, rng=rng, **self.arguments, **offset).logits
        if distillation is None:
            return self.compare(logits, target, weight)

        def heard(front_end: MelConfig) -> Tensor:
            if front_end == mel_config:
                return mel
            replay = Generator()
            replay.set_state(start)
            return self._mixed_mel(batch.wave, weighted, front_end, replay, share)[0]

        (target, scores), (weight, scored) = (part.chunk(2, dim=1) for part in (target, weight))
        if distillation.teachers:
            scores = distillation.scores(heard, config.precision)
        softly = cross_entropy(logits, scores, scored, self.model.task)
        return torch.lerp(self.compare(logits, target, weight), softly, distillation.weight)

    def _mixed_mel(
        self,
        wave: Float[Tensor, "batch sample"],
        weighted: Float[Tensor, "batch value"],
        front_end: MelConfig,
        rng: Generator,
        share: Share,
    ) -> tuple[Float[Tensor, "batch mel frame"], Float[Tensor, "batch value"]]:
        """Log-mel with jitter, masks and mixup, and targets mixed alike; the same draws for any front end."""
        config = self.config
        nyquist = front_end.sample_rate / 2
        band = augment.mel_band(front_end.f_max, rng, nyquist=nyquist) if config.mel_jitter else None
        mel = log_mel(wave, front_end, band=band)
        mel = augment.spec_augment(mel, self._masks(front_end), rng, share=share)
        if not config.mixup:
            return mel, weighted
        return augment.mixup(mel, weighted, config.mixup, rng, share=share)

    def _masks(self, front_end: MelConfig) -> Masks:
        """SpecAugment's masks, of the same share of the bands and the clip in any front end."""
        config, mel = self.config, self.model.mel
        fill: float | Literal["mean"] = "mean" if config.mask_fill == "mean" else 0.9
        frames, other = (part.num_frames(round(config.clip_s * mel.sample_rate)) for part in (mel, front_end))
        longest = min(config.mask_time, int(LONGEST_MASK * frames)) * other / frames
        freq = round(config.mask_freq * front_end.n_mels / mel.n_mels)
        return Masks(freq, round(longest), shared=config.mask_shared, fill=fill)

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
        even = smooth / target.shape[1] if self.model.task == "multi_class" else 0.5 * smooth
        return cross_entropy(logits, target * (1 - smooth) + even, weight, self.model.task)


def cross_entropy(
    logits: Float[Tensor, "batch class"],
    target: Float[Tensor, "batch class"],
    weight: Float[Tensor, "batch class"],
    task: Task,
) -> Float[Tensor, ""]:
    """Mean over the clips of the cross entropy (multi-class), over all labels of the binary one."""
    if task == "multi_class":
        return -(weight * target * logits.float().log_softmax(1)).sum(1).mean()
    return F.binary_cross_entropy_with_logits(logits.float(), target, weight)


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

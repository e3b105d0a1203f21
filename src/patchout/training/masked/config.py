"""PretrainConfig: every number of a pre-training; an objective refuses what it has no use for."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from patchout.audio.mel import MelConfig
from patchout.models.masking import num_kept
from patchout.training.config import RunConfig
from patchout.training.masked.masks import Masks

FRONT_ENDS = {  # without statistics; "coarse" has a quarter of the patches (BEST-RQ-2)
    "32khz": MelConfig(),
    "16khz": MelConfig(sample_rate=16_000, win_length=400, hop_length=160, f_max=8_000.0),
    "coarse": MelConfig(sample_rate=16_000, n_fft=2048, win_length=2048, hop_length=625, f_max=8_000.0),
}
READ_BY = {  # settings that only some objectives read
    "codes": ("codes",),
    "teacher_decay": ("latent",),
    "utterance": ("latent",),
    "temperature": ("contrast",),
    "view_ratios": ("contrast",),
    "normalize_patches": ("pixels",),
    "decoder": ("pixels", "codes", "latent"),
    "decoder_kind": ("pixels", "codes", "latent"),
    "mask_ratio": ("pixels", "codes", "latent"),
    "mask_ratio_to": ("codes",),
}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """One pre-training. A recipe fills it; every field is a flag of `patchout pretrain`."""

    command: ClassVar[str] = "pretrain"

    exclude: tuple[str, ...] = ()
    """folds or splits that are not listened to"""

    # what is predicted
    objective: Literal["pixels", "codes", "latent", "contrast"] = "pixels"
    """pixels of hidden patches (MaskSpec), their codes (BEST-RQ-2), a teacher's latents (EAT), or views of a
    clip
    """
    codes: int = 8192
    """of `codes`: frozen random vectors that patches are compared with"""
    teacher_decay: tuple[float, float] = (0.9998, 0.99999)
    """of `latent`: decay a step of the teacher's weights, at first and from a quarter of the run on"""
    utterance: float = 1.0
    """of `latent`: weight of the class token's error"""
    temperature: float = 0.1
    """of `contrast`: what similarities are divided by"""

    # the model
    init: str = ""
    """a pre-trained encoder to go on from; "": random weights; auto: chosen by the hours of sound"""
    size: Literal["tiny", "small", "base"] = "base"
    """width 192, 384 or 768 of the encoder; as the start weights where there are any, like the next four"""
    decoder: tuple[int, int, int] = (512, 8, 16)
    """width, blocks and heads of the decoder; of a convolutional one width, layers and groups"""
    decoder_kind: Literal["transformer", "convolutional"] = "transformer"
    """what predicts codes or latents of hidden patches; pixels has a transformer, contrast none"""
    front_end: Literal["32khz", "16khz", "coarse"] = "32khz"
    """log-mels up to 15 kHz, up to 8 kHz, or these in windows of 128 ms every 39 ms (BEST-RQ-2)"""
    statistics: Literal["audioset", "data", "one"] = "audioset"
    """mean and deviation of the bands: AudioSet's, those of the data, or one pair of it for all bands"""
    std_floor: float = 0.3
    """lowest deviation of a band; the published 0.04 of an empty band turns full-band sound into 60
    deviations
    """
    normalize_patches: bool = True
    """predict each patch by its own mean and deviation"""

    # the clips and their masks
    masks: Masks = "random"
    """what is hidden: single patches, all but some blocks, whole columns (of a second view rows), or blocks
    of them
    """
    mask_ratio: float = 0.75
    """share of the patches that is hidden"""
    mask_ratio_to: float = 0.0
    """of `codes`: the share is drawn for every step from mask_ratio to this; 0: it stays"""
    view_ratios: tuple[float, float] = (0.6, 0.4)
    """of `contrast`: share of the columns that the first view drops, and of the rows that the second drops"""
    masks_per_clip: int = 1
    """different masks of each decoded clip in a step"""
    mel_cache: str = ""
    """folder to keep every clip's log-mel in, which later epochs only crop; needs --no-mel-jitter"""

    # optimisation
    epochs: int = 80
    batch: int = 512
    """clips a step, over all processes; 0: as many as fit, up to 512 (contrast: 64)"""
    base_lr: float = 1e-3
    """peak learning rate of AdamW for 256 clips a step; it grows with the batch"""
    betas: tuple[float, float] = (0.9, 0.95)
    """memory of AdamW"""
    weight_decay: float = 0.05
    """of matrices and tokens"""
    warm_up_epochs: float = 40.0
    horizon_epochs: int = 0
    """epoch at which the cosine reaches zero; 0: the last; the published code: 400"""
    clip_norm: float = 3.0
    """longest gradient; 0: any, as published"""
    ema: float = 0.0
    """decay a step of averaged weights, which are then the result; 0: none"""

    # what watches it
    probe: str = ""
    """a small labelled set, one class a clip: does what was learnt tell its classes apart?"""
    probe_every: int = 10
    """epochs between its looks"""

    def __post_init__(self) -> None:
        """Refuse values that train nothing."""
        self._check_objective()
        num_kept(1, self.mask_ratio)
        for name in ("masks_per_clip", "epochs", "parts", "probe_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "batch",
            "base_lr",
            "weight_decay",
            "horizon_epochs",
            "clip_norm",
            "std_floor",
            "seed",
            "workers",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number from 0 on, got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is a decay below 1, got {self.ema}")
        if not 0 < self.clip_s < math.inf:
            raise ValueError(f"clip_s must be some seconds, got {self.clip_s}")
        if self.mel_cache and self.mel_jitter:
            raise ValueError(
                "a mel_cache has the bands of its first epoch: add --no-mel-jitter, or go without it"
            )
        super().__post_init__()
        last = self.horizon_epochs or self.epochs
        if not 0 <= self.warm_up_epochs < last or last < self.epochs:
            raise ValueError(
                f"{self.epochs} epochs with {self.warm_up_epochs:g} of warm-up and a horizon of {last}: end "
                "the warm-up before the horizon, and put that not before the last epoch"
            )

    def peak_lr(self, batch: int) -> float:
        """Peak learning rate of AdamW, in proportion to the batch."""
        return self.base_lr * batch / 256

    def _check_objective(self) -> None:
        """Refuse what this objective cannot do."""
        name, parts = self.objective, self.parts
        if name == "pixels" and self.decoder_kind != "transformer":
            raise ValueError("pixels has the decoder of MaskSpec: leave --decoder-kind at transformer")
        if name == "contrast" and 0 < self.batch // parts < 2:
            raise ValueError(
                f"contrast needs two clips or more at a time, got a batch of {self.batch} in {parts} parts: "
                "raise --batch"
            )
        if name == "contrast" and (self.mel_cache or self.masks_per_clip > 1):
            raise ValueError(
                "contrast augments waveforms, twice a clip: it has no mel_cache, and one mask a view"
            )
        if name == "latent" and self.ema:
            raise ValueError("latent averages its teacher (--teacher-decay): leave --ema at 0")
        if self.codes < 2 or not self.temperature > 0 or not 0 <= self.utterance < math.inf:
            raise ValueError(
                f"codes must be two or more, temperature above 0, utterance a number from 0 on, got "
                f"{self.codes}, {self.temperature:g}, {self.utterance:g}"
            )
        if not all(0 <= decay < 1 for decay in self.teacher_decay):
            raise ValueError(f"teacher_decay are decays below 1, got {self.teacher_decay}")
        if self.mask_ratio_to:
            num_kept(1, self.mask_ratio_to)
        if self.front_end != "32khz" and self.statistics == "audioset":
            raise ValueError(
                f"AudioSet's statistics are those of the front end 32khz, not of {self.front_end}: "
                "add --statistics one"
            )

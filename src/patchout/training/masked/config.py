"""PretrainConfig: every number of a pre-training, and its recipes (MaskSpec, sections 2 and 3.2)."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from patchout.errors import near
from patchout.models.masking import num_kept
from patchout.training.config import RunConfig

ABOUT = {
    "maskspec": """MaskSpec as published: Base on AudioSet, or on any sounds, without their labels.

`patchout prepare audioset --source AudioSet --out data/audioset`, then `patchout pretrain maskspec --data data/audioset
--out runs/maskspec --workers 16`, with torchrun in front on several GPUs; -small and -tiny are the paper's smaller
encoders. Cited cost of Base: 80 epochs, four days on eight V100; cited scores after fine-tuning: docs/maskspec.md. We
have not run it.

The split "eval" is left out where there is one: it tests what is fine-tuned later. -code has the numbers of the
published code, of which the plain recipe changes three: the horizon (--horizon-epochs 400: the code's cosine ends
there, 80 epochs were run), a floor under the deviation of the bands that the published statistics leave empty
(--std-floor 0), and the clipped gradient (--clip-norm 0). -paper has those of the paper: a rate of .001 for its batch,
the pixels as they are instead of each patch normalised, no jitter of the bands. Precision is bf16 in all of them, and
where the text is not what the public weights are, they are as these: docs/maskspec.md.""",
    "own": """Your own unlabelled sounds: does pre-training on them help?

`patchout pretrain own --data my_sounds --out runs/own --probe my_labelled_set`. The labelled set is optional: nearest
neighbours watch the run on it, and at the end a table compares random weights, the start and the result. Then
`patchout train folder --data my_labelled_set --init runs/own --out ...`, or embed with it.

Random crops of 5.12 s halve the tokens; positions are a formula, so fine-tuning may take longer clips. The decoder is
4 x 384 instead of 8 x 512, which would be most of the work (84 % with a Small encoder) and is thrown away. One mean and
deviation of your sounds serves all bands, so that a band that they leave empty is not blown up in others.""",
}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """One pre-training. A recipe fills it; every field is a flag of `patchout pretrain`."""

    exclude: tuple[str, ...] = ()
    """folds or splits that are not listened to"""

    # the model
    init: str = ""
    """a pre-trained MaskSpec to go on from; "": random weights; auto: chosen by the hours of sound, and told"""
    size: Literal["tiny", "small", "base"] = "base"
    """width 192, 384 or 768 of the encoder; as the start weights where there are any, like the next four"""
    decoder: tuple[int, int, int] = (512, 8, 16)
    """width, blocks and heads of the decoder"""
    statistics: Literal["audioset", "data", "one"] = "audioset"
    """mean and deviation of the bands: AudioSet's, those of the data, or one pair of the data for all bands"""
    std_floor: float = 0.3
    """lowest deviation of a band; the published 0.04 of an empty band turns full-band sound into 60 deviations"""
    normalize_patches: bool = True
    """predict each patch by its own mean and deviation"""

    # the clips and their masks
    mask_ratio: float = 0.75
    """share of the patches that is hidden"""
    masks_per_clip: int = 1
    """different masks of each decoded clip in a step"""
    mel_cache: str = ""
    """folder to keep every clip's log-mel in, which later epochs only crop; needs --no-mel-jitter"""

    # optimisation
    epochs: int = 80
    batch: int = 512
    """clips a step, over all processes; 0: as many as fit, up to 512"""
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
                f"{self.epochs} epochs with {self.warm_up_epochs:g} of warm-up and a horizon of {last}: end the "
                "warm-up before the horizon, and put that not before the last epoch"
            )

    def peak_lr(self, batch: int) -> float:
        """Peak learning rate of AdamW, in proportion to the batch."""
        return self.base_lr * batch / 256


MASKSPEC = PretrainConfig(recipe="maskspec", exclude=("eval",))
OWN = PretrainConfig(
    recipe="own",
    init="auto",
    size="small",
    decoder=(384, 4, 6),
    statistics="one",
    clip_s=5.12,
    batch=0,
    warm_up_epochs=8.0,
)
RECIPES = {
    "maskspec": MASKSPEC,
    "maskspec-small": replace(MASKSPEC, size="small"),
    "maskspec-tiny": replace(MASKSPEC, size="tiny"),
    "maskspec-code": replace(MASKSPEC, horizon_epochs=400, std_floor=0.0, clip_norm=0.0),
    "maskspec-paper": replace(
        MASKSPEC,
        base_lr=1e-3 * 256 / MASKSPEC.batch,
        normalize_patches=False,
        mel_jitter=False,
        clip_norm=0.0,
    ),
    "own": OWN,
}


def recipe(name: str) -> tuple[PretrainConfig, str]:
    """The recipe of that name and what there is to say about it; an unknown one is a ValueError with the nearest."""
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}{near(name, RECIPES)}: recipes are {', '.join(RECIPES)}")
    return replace(RECIPES[name], recipe=name), ABOUT[name.partition("-")[0]]

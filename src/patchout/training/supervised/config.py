"""TrainConfig: the settings of a supervised run; a recipe fills it, a flag of `patchout train` changes it."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from patchout.models.patches import Patchout
from patchout.training.config import RunConfig

FROM_0 = (
    *("clip_s", "table_s", "roll_s", "wave_mix_alpha", "mixup", "lr", "weight_decay", "seed", "workers"),
    *("warm_up_epochs", "plateau_epochs", "clip_norm", "batch", "draws", "evaluate_every", "swa_start"),
    *("mask_freq", "mask_time"),
)
LIMITS: tuple[tuple[float, float, tuple[str, ...]], ...] = (  # lowest value, what it stays below, fields
    (1, math.inf, ("depth", "hop_length", "epochs", "parts", "seeds", "ramp_epochs", "swa_every")),
    (0, math.inf, FROM_0),
    (0, 1, ("speed", "label_smoothing", "ema", "hold_out", "floor", "drop_path")),
    (0, 1 + 1e-9, ("wave_mix", "precision_at", "silent_at")),
    (1e-3, 1 + 1e-9, ("layer_decay", "distill_weight")),
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """One training run. A recipe fills it; every field is a flag of `patchout train`."""

    command: ClassVar[str] = "train"

    seeds: int = 1
    """runs with seeds seed, seed + 1, ...; mean and spread of their scores are the result"""

    # the clips
    split: str = ""
    """fold or split held out for validation; "": none"""
    test: str = ""
    """split scored once, at the end, with the weights that the run reports; "": none"""
    folds: tuple[str, ...] = ()
    """one run a fold, each held out in turn; the mean of their scores is the result"""
    hold_out: float = 0.0
    """share of the clips held out for validation where no split is named, by group"""
    channel: Literal["mean", "left", "right", "each"] = "mean"
    """which channel of a stereo clip is heard; each: a model for all three, their ensemble is the result"""
    background: str = ""
    """class without an output, on whose clips every class is to be silent; auto: classes called background,
    noise, none or _background; "": no class"""
    by: str = ""
    """column by whose values the scores are also told, e.g. device"""
    draws: int = 0
    """clips an epoch; 0: all"""
    balance: Literal["", "sampling", "loss"] = ""
    """favour rare classes: draw their clips more often (fewer draws than clips), or weigh their loss"""

    # the model
    init: str = ""
    """start weights: a model, a file, deit-base-384, deit-small, deit-tiny (ImageNet-1k), vit-base-21k,
    -small-21k, -tiny-21k, vit-huge-21k (ImageNet-21k; with --size huge --depth 16); "": random"""
    model: Literal["passt", "maskspec", "cnn"] | None = None
    """family; None: that of the start weights, else passt"""
    pooling: Literal["mean", "token"] | None = None
    """what a MaskSpec's head reads: the mean of the patches or the class token; else mean"""
    freeze: Literal["", "encoder"] = ""
    """what keeps its start weights; a frozen encoder hears each clip once, without augmentation"""
    embed_cache: str = ""
    """folder that keeps the embeddings of a frozen encoder for the next run"""
    size: Literal["tiny", "small", "base", "huge"] | None = None
    """width 192, 384, 768 or 1280; None here and below: as the start weights, else base"""
    depth: int | None = None
    """transformer blocks; fewer than the start weights have: every other one; else 12"""
    stride: tuple[int, int] | None = None
    """pixels between patches, frequency and time; else 10 10"""
    hop_length: int | None = None
    """samples at 32 kHz between spectrogram frames; else 320"""
    positions: Literal["separate", "grid"] | None = None
    """a learned position per row and per column, or per patch (AST); else separate"""
    table_s: float | None = None
    """seconds that the table of time positions covers, a shorter clip takes a random part of it; else
    clip_s"""

    # the teachers
    head_bias: Literal["zero", "prior"] = "zero"
    """where a multi-label head begins: at zero as published, or at the log-odds of each class, which spares
    short runs the steps that only make every class rarer"""
    distill: tuple[str, ...] = ()
    """models whose mean scores are targets beside the labels, of the very crop, augmentation and mix that the
    student hears; where the sounds have no labels, alone"""
    distill_weight: float = 0.9
    """share of the teachers in the loss, the labels have the rest; 1: labels only score"""
    distill_cache: str = ""
    """folder that keeps the teachers' scores, computed once: of whole clips without augmentation, so that
    crops, gain, roll and masks no longer move the targets; mixes still mix them"""

    # Patchout
    patchout_freq: int = 4
    """rows of patches dropped"""
    patchout_time: int = 40
    """columns of patches dropped"""
    patchout_patches: int = 0
    """single patches dropped"""
    patchout_per_clip: bool = False
    """draw what is dropped for every clip instead of once a batch"""

    # augmentation
    gain_db: tuple[int, int] = (-7, 6)
    """quietest and loudest change, whole decibels"""
    roll_s: float = 0.0
    """circular shift of up to this many seconds either way"""
    speed: float = 0.0
    """play up to this share faster or slower, pitch and all"""
    wave_mix: float = 0.0
    """chance that a clip's waveform is mixed with another's"""
    wave_mix_alpha: float = 2.0
    """Beta parameter of that mix"""
    mask_freq: int = 48
    """widest masked band, mels"""
    mask_time: int = 192
    """longest masked stretch, frames; at most a fifth of the clip"""
    mask_shared: bool = False
    """one mask for the whole batch, as the published models had it"""
    mask_fill: Literal["published", "mean"] = "published"
    """write 0.9, as the published code does, or the mean of the batch"""
    mixup: float = 0.3
    """Beta parameter of spectrogram mixup; 0: none"""
    label_smoothing: float = 0.0
    """share of the target spread over all classes"""

    # optimisation
    epochs: int = 120
    batch: int = 32
    """clips a step, over all processes; 0: as many as fit, up to 32"""
    batch_per_process: bool = False
    """batch counts the clips of one process (a GPU), as in the published code of PaSST: the whole grows with
    them"""
    lr: float = 1e-3
    """peak learning rate of AdamW"""
    layer_decay: float = 1.0
    """factor of the learning rate from a block to the one below it (MaskSpec: 0.75; 1 from random weights)"""
    drop_path: float = 0.0
    """chance that a clip skips the last block's branches, rising from 0 at the first; MaskSpec alone"""
    decay_all: bool = False
    """decay biases, norms and positions too, as the published code does"""
    schedule: Literal["cosine", "exp_ramp"] = "cosine"
    """half a cosine to zero; or the published one, an epoch a stair: exponential warm-up, plateau, straight
    ramp"""
    warm_up_epochs: float = 5.0
    plateau_epochs: int = 50
    """epochs until the ramp of exp_ramp begins"""
    ramp_epochs: int = 50
    """epochs that the ramp takes"""
    floor: float = 0.01
    """share of the peak rate after the ramp"""
    clip_norm: float = 1.0
    swa_start: int = 0
    """epoch (from 1) at whose start the weights first enter an equal average (SWA); 0: none"""
    swa_every: int = 1
    """epochs until they do so again"""
    result: Literal["last", "best", "average"] = "last"
    """the weights that the run reports; best is by the validation split"""
    evaluate_every: int = 0
    """epochs between validations; 0: once, at the end"""
    thresholds: bool = False
    """calibrate the scores and choose a threshold a class, on the validation clips, for patchout tag"""
    precision_at: float = 0.0
    """precision that these thresholds are to reach, with the highest recall; 0: the highest F1"""
    silent_at: float = 0.0
    """share of the held-out background clips without any label, for which thresholds are raised; 0: none"""

    def __post_init__(self) -> None:
        """Refuse values that train nothing, or contradict each other."""
        for low, high, names in LIMITS:
            for name in names:
                value = getattr(self, name)
                if value is not None and not low <= value < high:
                    raise ValueError(f"{name} must be at least {low} and below {high:g}, got {value}")
        super().__post_init__()
        best, averages = self.result == "best", self.ema or self.swa_start
        no_average = self.result == "average" and not averages
        unwatched = best and not (self.evaluate_every and (self.split or self.hold_out))
        by_fold, two_splits = best and self.folds, self.folds and self.split
        no_init = self.freeze and not self.init
        no_frozen = self.embed_cache and not self.freeze
        no_teacher = self.distill_cache and not self.distill
        aims = {"precision_at": self.precision_at, "silent_at": self.silent_at}
        unaimed = [] if self.thresholds else [f"{name} {aim:g}" for name, aim in aims.items() if aim]
        folds, stride, gain_db = ", ".join(self.folds), self.stride, self.gain_db
        undrawn = self.balance == "sampling" and not self.draws
        refusals = {
            f"stride counts pixels and must be at least 1, got {stride}": stride and min(stride) < 1,
            f"gain_db goes from the lower to the higher end, got {gain_db}": gain_db[0] > gain_db[1],
            "ema and swa_start are two averages: set one of them to 0": self.ema and self.swa_start,
            "result average needs an average: set ema or swa_start": no_average,
            "result best would choose by the fold that is scored: set result to last or average": by_fold,
            "result best needs clips to choose by: set split or hold_out, and evaluate_every": unwatched,
            f"split {self.split} and folds {folds} both hold clips out: give one of them": two_splits,
            f"{' and '.join(unaimed)} needs thresholds: set thresholds": unaimed,
            "balance sampling draws no clip twice: set draws below the clips, or balance loss": undrawn,
            f"freeze {self.freeze} needs start weights worth keeping: set init": no_init,
            f"embed_cache {self.embed_cache} keeps embeddings of a frozen encoder: set freeze": no_frozen,
            f"freeze {self.freeze} hears no teachers: leave distill out": self.freeze and self.distill,
            f"distill_cache {self.distill_cache} keeps teachers' scores: set distill": no_teacher,
        }
        if reasons := [reason for reason, applies in refusals.items() if applies]:
            raise ValueError(reasons[0])

    @property
    def patchout(self) -> Patchout:
        """Patchout of a training step."""
        return Patchout(self.patchout_freq, self.patchout_time, self.patchout_patches, self.patchout_per_clip)

    def peak_lr(self, batch: int) -> float:
        """Peak learning rate of AdamW, of any batch the same."""
        return self.lr

"""Supervised training: one config, the batches, the loss, the run folder (PaSST, section 3)."""

import json
import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator
from jaxtyping import Float
from torch import Generator, Tensor, nn

import patchout
from patchout import augment, checkpoint, evaluate, loop, optim
from patchout.data import Batch, ClipSet, DataError, StepSampler, Waves, batches, scan
from patchout.device import Precision, autocast, pick_device
from patchout.files import write_aside
from patchout.mel import MelConfig, log_mel
from patchout.passt import SIZES, Passt, PasstConfig
from patchout.patches import Patchout

LIMITS = {  # lowest value, and what it stays below
    **dict.fromkeys(("depth", "hop_length", "epochs", "batch"), (1, math.inf)),
    **dict.fromkeys(("clip_s", "roll_s", "mixup", "lr", "weight_decay", "warm_up_epochs", "clip_norm"), (0, math.inf)),
    **dict.fromkeys(("mask_freq", "mask_time", "evaluate_every", "seed", "workers"), (0, math.inf)),
    **dict.fromkeys(("speed", "label_smoothing", "ema"), (0, 1)),
}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. A recipe fills it; every field is a flag of `patchout train`."""

    recipe: tyro.conf.Suppress[str]
    """name of the recipe, no flag"""
    split: str = ""
    """fold or split held out for validation; "": none"""
    exclude: tuple[str, ...] = ()
    """folds or splits neither trained on nor looked at"""

    size: Literal["tiny", "small", "base"] = "base"
    """width 192, 384 or 768"""
    depth: int = 12
    """transformer blocks"""
    stride: tuple[int, int] = (10, 10)
    """pixels between patches, frequency and time"""
    hop_length: int = 320
    """samples at 32 kHz between spectrogram frames"""
    clip_s: float = 10.0
    """seconds a clip: longer ones are cropped at random, shorter ones padded with zeros"""

    patchout_freq: int = 4
    """rows of patches dropped"""
    patchout_time: int = 40
    """columns of patches dropped"""
    patchout_patches: int = 0
    """single patches dropped"""
    patchout_per_clip: bool = False
    """draw what is dropped for every clip instead of once a batch"""

    gain_db: tuple[int, int] = (-7, 6)
    """quietest and loudest change, whole decibels"""
    roll_s: float = 0.0
    """circular shift of up to this many seconds either way"""
    speed: float = 0.0
    """play up to this share faster or slower, pitch and all"""
    mel_jitter: bool = True
    """draw new band edges of the mel bank for every batch"""
    mask_freq: int = 48
    """widest masked band, mels"""
    mask_time: int = 192
    """longest masked stretch, frames"""
    mixup: float = 0.3
    """Beta parameter of spectrogram mixup; 0: none"""
    label_smoothing: float = 0.0
    """share of the target spread over all classes"""

    epochs: int = 120
    """passes over the clips"""
    batch: int = 32
    """clips a step"""
    lr: float = 1e-3
    """peak learning rate of AdamW"""
    weight_decay: float = 0.05
    """of matrices"""
    warm_up_epochs: float = 5.0
    """epochs until the peak; a cosine leads down from there"""
    clip_norm: float = 1.0
    """longest gradient; 0: any"""
    ema: float = 0.0
    """decay a step of the averaged weights, which are then the result; 0: the last weights"""
    evaluate_every: int = 0
    """epochs between validations; 0: once, at the end"""

    seed: int = 0
    """of everything random"""
    workers: int = 0
    """processes that decode"""
    device: str = "auto"
    """cuda, mps or cpu"""
    precision: Precision = "auto"
    """bf16 where the hardware gains, fp32 elsewhere"""

    def __post_init__(self) -> None:
        """Refuse values that train nothing."""
        for name, (low, high) in LIMITS.items():
            if not low <= getattr(self, name) < high:
                raise ValueError(f"{name} must be at least {low} and below {high}, got {getattr(self, name)}")
        if min(self.stride) < 1:
            raise ValueError(f"stride counts pixels and must be at least 1, got {self.stride}")
        if self.gain_db[0] > self.gain_db[1]:
            raise ValueError(f"gain_db goes from the lower to the higher end, got {self.gain_db}")

    @property
    def patchout(self) -> Patchout:
        """What training drops."""
        return Patchout(self.patchout_freq, self.patchout_time, self.patchout_patches, self.patchout_per_clip)


def model_config(config: TrainConfig, clips: ClipSet) -> PasstConfig:
    """The model that a run trains: sizes from the config, labels and task from the data."""
    mel = MelConfig(hop_length=config.hop_length)
    width, heads = SIZES[config.size]
    frames = mel.num_frames(round(config.clip_s * mel.sample_rate))
    columns = (frames - 16) // config.stride[1] + 1
    if columns < 1:
        raise ValueError(f"clip_s {config.clip_s:g} gives {frames} frames, a patch needs 16: lengthen it")
    passt = PasstConfig(
        labels=clips.classes,
        task=clips.task,
        mel=mel,
        width=width,
        depth=config.depth,
        heads=heads,
        stride=config.stride,
        columns=columns,
    )
    config.patchout.num_kept(passt.rows, passt.columns)
    return passt


def run(
    config: TrainConfig,
    data: Path,
    out: Path,
    *,
    on_progress: Callable[[loop.Progress], None] | None = None,
    on_problem: Callable[[str], None] = lambda problem: None,
) -> dict[str, float]:
    """Train on the folder `data`, write the run folder `out`, return the scores of the last validation.

    The same call continues a run that was stopped; another config in it is a ValueError that says what differs.
    """
    training, held = choose_clips(config, data, on_problem)
    device = pick_device(config.device)
    model = Passt(model_config(config, training), rng=augment.keyed("weights", config.seed)).to(device)
    _open_run_folder(out, config, training)  # not before the config is known to work: the folder is bound to it
    provenance = {
        "recipe": config.recipe,
        "seed": config.seed,
        "version": patchout.__version__,
        "clips": len(training.clips),
    }

    def save_model(result: nn.Module, path: Path) -> None:
        assert isinstance(result, Passt)
        result.config = replace(result.config, provenance=provenance | {"scores": scores})
        checkpoint.save(result, path)

    def validate(result: nn.Module) -> dict[str, float]:
        assert isinstance(result, Passt)
        if held.clips:
            found = evaluate.evaluate(result, held, precision=config.precision)
            scores.update(found.scores)
            for problem in found.failed:
                on_problem(problem)
        return scores

    scores: dict[str, float] = {}
    steps = config.epochs * len(training.clips) // config.batch
    job = loop.Job(
        model=model,
        optimizer=_optimizer(model, config),
        loss=StepLoss(config, model.config),
        rate=lambda step: optim.cosine(
            step, steps=steps, warm_up=round(config.warm_up_epochs * len(training.clips) / config.batch)
        ),
        batches=lambda first: _batches(config, training, model.config, first, steps),
        steps=steps,
        clip_names=[clip.file.name for clip in training.clips],
        batch=config.batch,
        ema=config.ema,
        clip_norm=config.clip_norm,
        validate=validate,
        evaluate_every=config.evaluate_every,
        save_model=save_model,
        out=out,
    )
    return loop.run(job, Accelerator(cpu=device.type == "cpu", mixed_precision="no"), on_progress=on_progress)


def choose_clips(config: TrainConfig, data: Path, on_problem: Callable[[str], None]) -> tuple[ClipSet, ClipSet]:
    """The clips to train on and those held out; unusable rows, and recordings on both sides, are reported."""
    clips = scan(data)
    for problem in clips.problems:
        on_problem(problem)
    held = clips.only(config.split) if config.split else replace(clips, clips=())
    training = clips.without(*filter(None, (config.split, *config.exclude)))
    if len(training.classes) < 2:
        raise DataError(f"{data}: one class only ({training.classes[0]}): there is nothing to tell apart")
    if config.batch > len(training.clips):
        count = len(training.clips)
        raise DataError(f"a batch of {config.batch} is larger than the {count} clips to train on: lower --batch")
    shared = sorted({clip.group for clip in held.clips} & {clip.group for clip in training.clips} - {""})
    if shared:
        names = ", ".join(shared[:5])
        on_problem(f"{len(shared)} groups are trained on and held out ({names}): the scores will be too good")
    return training, held


class StepLoss:
    """The loss of one step: log-mel, masks, mixup and Patchout, all drawn from (seed, step)."""

    def __init__(self, config: TrainConfig, model: PasstConfig) -> None:
        self.config = config
        self.mel = model.mel
        self.task = model.task

    def __call__(self, model: nn.Module, batch: Batch, step: int) -> Tensor:
        """Cross entropy (multi-class) or binary cross entropy (multi-label) against the mixed targets."""
        config, (wave, target, _) = self.config, batch
        rng = augment.keyed("step", config.seed, step)
        mel = log_mel(wave, self.mel, band=augment.mel_band(self.mel.f_max, rng) if config.mel_jitter else None)
        mel = augment.spec_augment(mel, config.mask_freq, config.mask_time, rng)
        if config.mixup:
            mel, target = augment.mixup(mel, target, config.mixup, rng)
        with autocast(mel.device, config.precision):
            logits = model(mel, patchout=config.patchout, rng=rng).logits
        if self.task == "multi_class":
            return F.cross_entropy(logits, target, label_smoothing=config.label_smoothing)
        smooth = target * (1 - config.label_smoothing) + 0.5 * config.label_smoothing
        return F.binary_cross_entropy_with_logits(logits, smooth)


def wave_augment(
    wave: Float[Tensor, "sample"], rng: Generator, *, config: TrainConfig, rate: int
) -> Float[Tensor, "changed"]:
    """The augmentation of one waveform: speed, gain, roll."""
    if config.speed:
        wave = augment.speed(wave, augment.uniform(1 - config.speed, 1 + config.speed, rng))
    wave = augment.gain(wave, config.gain_db, rng)
    return augment.roll(wave, round(config.roll_s * rate), rng)


def _batches(config: TrainConfig, clips: ClipSet, model: PasstConfig, first: int, steps: int) -> Any:
    rate = model.mel.sample_rate
    change = partial(wave_augment, config=config, rate=rate)  # unlike a closure it can be sent to a spawned worker
    waves = Waves(clips, rate=rate, num_samples=round(config.clip_s * rate), seed=config.seed, augment=change)
    sampler = StepSampler(len(waves), config.batch, seed=config.seed, first=first, last=steps)
    return batches(waves, sampler, workers=config.workers)


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, fused; each group remembers its peak rate."""
    groups = [{**group, "peak_lr": config.lr} for group in optim.parameter_groups(model, config.weight_decay)]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def _open_run_folder(out: Path, config: TrainConfig, clips: ClipSet) -> None:
    """Make the run folder, or check that the run in it has the same config and trains on as many clips and classes."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "config.json"
    now = json.loads(json.dumps(asdict(config) | {"data": str(clips.root.resolve())}))
    holds = {"clips": len(clips.clips), "classes": list(clips.classes)}
    if path.exists():
        stored = json.loads(path.read_text())
        before = stored["config"]
        if stored.get("data", holds) != holds:
            raise ValueError(
                f"{out} holds a run on other clips or classes than {clips.root} has now: choose another --out"
            )
        if changed := [
            f"{key} {before.get(key)!r} -> {now.get(key)!r}"
            for key in {**before, **now}
            if before.get(key) != now.get(key)
        ]:
            raise ValueError(f"{out} holds a run with another config ({', '.join(changed)}): choose another --out")
        return
    versions = {"patchout": patchout.__version__, "torch": torch.__version__, "python": platform.python_version()}
    with write_aside(path) as aside:
        aside.write_text(json.dumps({"config": now, "data": holds, "versions": versions}, indent=1))

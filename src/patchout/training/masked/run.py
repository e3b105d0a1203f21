"""Masked pre-training on unlabelled sounds: where it starts, the run, and whether it helped (MaskSpec, section 2)."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchout.audio.mel import MelConfig
from patchout.audio.statistics import audioset_statistics
from patchout.checkpoint import zoo
from patchout.checkpoint.maskspec import encoder_of
from patchout.data import augment
from patchout.data.batches import Waves
from patchout.data.mel_cache import MelCache
from patchout.data.sets import scan
from patchout.files import write_json
from patchout.models.masking import num_kept
from patchout.models.maskspec import MaskSpec, MaskSpecConfig, lengthened
from patchout.models.passt import SIZES
from patchout.training import loop, optim
from patchout.training import run as training
from patchout.training.masked.config import RECIPES, PretrainConfig
from patchout.training.masked.loss import PretrainLoss, alarms
from patchout.training.masked.probe import Probe, Subject, table
from patchout.training.masked.survey import Survey, choose_start, cut_long, sounds_of, survey
from patchout.training.run import MAY_CHANGE, SILENT, Host, Listener, Training
from patchout.training.run_folder import RunFolder
from patchout.training.signals import Signals
from patchout.training.supervised.repeats import Scores

__all__ = ["Listener", "parameter_groups", "run", "start"]

LARGEST_BATCH = 512  # the published one


def run(
    config: PretrainConfig,
    listener: Listener = SILENT,
    *,
    restart: bool = False,
    accept_changes: bool = False,
) -> Scores:
    """Pre-train, write the run folder `config.out`, return what was seen last: loss, silence, spread, the probe.

    The same call continues a run that was stopped, as `supervised.run` does. model.safetensors is a MaskSpec with its
    decoder. With a probe, the last word is a table of random weights, start and result.
    """
    with Signals() as signals:
        signals.safe = True  # but for the steps, which hear of it by themselves
        return training.run(config, _prepare, listener, restart=restart, accept_changes=accept_changes)


def _prepare(config: PretrainConfig, host: Host) -> "_Masked":
    """The clips, the model that goes on from them, and what watches it."""
    sounds, stored = sounds_of(config), host.stored
    for note in (*sounds.problems, *sounds.notes):
        host.listener.tell(note)
    clips = cut_long(sounds, config.clip_s)
    probe = Probe(scan(config.probe)) if config.probe else None
    if stored and "mask_ratio" not in stored:
        raise ValueError(
            f"{config.out} holds a run of `patchout train {stored['recipe']}`: choose another --out"
        )
    if config.init == "auto" and stored.get("recipe") == config.recipe:  # as it was decided then
        config = replace(config, init=stored["init"])
    heard = survey(clips, MelConfig(), per_band=config.statistics == "data", floor=config.std_floor)
    init, decided = choose_start(config.init, heard.hours)
    config = replace(config, init=init)
    model = start(config, heard, device=host.device)
    config, shape = _of_model(config, model.config), model.config
    patches = shape.rows * (_frames(config, shape.mel) // shape.patch)
    cut = f"{len(sounds)} recordings, the long ones cut: {len(clips)} clips" if clips is not sounds else ""
    cached = {"mel_cache": bool(config.mel_cache)}
    return _Masked(
        config=config,
        recipe=RECIPES.get(config.recipe, config),
        clips=clips,
        model=model,
        loss=PretrainLoss(config, shape, host.device),
        host=host,
        tokens=(1 + patches, 1 + num_kept(patches, config.mask_ratio)),
        may_change={**MAY_CHANGE, "probe": "", "probe_every": 0, **cached},
        averages=bool(config.ema),
        largest_batch=LARGEST_BATCH,
        probe=probe,
        notes=(cut, decided, *heard.problems, *(probe.problems if probe else ())),
        seconds=max(3600 * heard.hours, len(clips) * config.clip_s),
    )


# -- the start --------------------------------------------------------------------------------------------------------


def start(config: PretrainConfig, heard: Survey, *, device: torch.device) -> MaskSpec:
    """The model that a run trains: that of the start weights, or a random one with the statistics asked for.

    Positions are a formula: a clip longer than the start's adds columns. One that fills no patch is a ValueError.
    """
    if config.init:
        model = zoo.load_pretrained(config.init, "cpu")
        model = lengthened(model, _frames(config, model.config.mel) // model.config.patch)
    else:
        published = config.statistics == "audioset"
        statistics = audioset_statistics(floor=config.std_floor) if published else heard.statistics
        mel, (width, heads) = MelConfig(**statistics._asdict()), SIZES[config.size]
        decoder = dict(zip(("decoder_width", "decoder_depth", "decoder_heads"), config.decoder, strict=True))
        columns = max(1, _frames(config, mel) // MaskSpecConfig.patch)
        sizes: dict[str, Any] = {"width": width, "heads": heads, "columns": columns, **decoder}
        shape = MaskSpecConfig(mel=mel, normalize_patches=config.normalize_patches, **sizes)
        model = MaskSpec(shape, rng=augment.keyed("weights", config.seed))
    frames, patch = _frames(config, model.config.mel), model.config.patch
    if frames < patch:
        raise ValueError(
            f"clip_s {config.clip_s:g} gives {frames} frames, a patch needs {patch}: lengthen it"
        )
    return model.to(device)


def _of_model(config: PretrainConfig, shape: MaskSpecConfig) -> PretrainConfig:
    """The config with the sizes that start weights have brought."""
    names = {sizes: name for name, sizes in SIZES.items()}
    decoder = shape.decoder_width, shape.decoder_depth, shape.decoder_heads
    sizes: dict[str, Any] = {"size": names.get((shape.width, shape.heads), config.size), "decoder": decoder}
    return replace(config, normalize_patches=shape.normalize_patches, **sizes)


def _frames(config: PretrainConfig, mel: MelConfig) -> int:
    return mel.num_frames(max(1, round(config.clip_s * mel.sample_rate)))


# -- the run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Masked(Training):
    """Training on what is hidden of unlabelled clips."""

    config: PretrainConfig
    model: MaskSpec
    loss: PretrainLoss
    probe: Probe | None
    notes: tuple[str, ...]  # what was found and decided on the way here
    seconds: float  # of sound

    def begin(self) -> Iterable[str]:
        """Forget the measured step, and open the cache of log-mels."""
        self.loss.seen()
        sounds = self.sounds()
        return (sounds.open(self.seconds) if isinstance(sounds, MelCache) else "", *self.notes)

    def sounds(self) -> Waves | MelCache:
        config, mel = self.config, self.model.config.mel
        size = round(config.clip_s * mel.sample_rate)
        if config.mel_cache:
            plain = replace(mel, mean=None, std=None)
            return MelCache(self.clips, plain, Path(config.mel_cache), size, config.seed)
        return Waves(self.clips, rate=mel.sample_rate, num_samples=size, seed=config.seed, crop=True)

    def job(self, folder: RunFolder) -> loop.Job:
        config, clips = self.config, len(self.clips)
        groups = parameter_groups(self.model, config.weight_decay)
        optimizer = optim.adamw(groups, config.peak_lr(config.batch), betas=config.betas)
        steps = (config.horizon_epochs or config.epochs) * clips // config.batch
        warm_up = round(config.warm_up_epochs * clips / config.batch)
        return self.common_job(
            folder, optimizer=optimizer, rate=partial(optim.cosine, steps=steps, warm_up=warm_up)
        )

    def validate(self, model: nn.Module) -> Scores:
        """After an epoch: what the loss has seen, and now and then the probe; what looks wrong is told once."""
        assert isinstance(model, MaskSpec)
        config, seen = self.config, self.loss.seen()
        if not self.host.world.is_main_process:
            return {}
        self.tell_once(alarms(seen))
        step = self.loss.step + 1
        epoch = step * config.batch // len(self.clips)
        if self.probe and (epoch % config.probe_every == 0 or step == self.steps):
            features = self.probe.features(encoder_of(model), config.precision)
            seen["probe"] = float(self.probe.neighbours(features).mean())
        return seen

    def conclude(self, folder: RunFolder, scores: Scores) -> Scores:
        """Ask the probe what random weights, start and result are worth; write and tell it. Adds the last loss."""
        last = (folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        scores = {"loss": json.loads(last)["loss"], **scores}
        subjects: list[Subject] = []
        if self.probe:
            config, shape, device = self.config, self.model.config, str(self.host.device)
            models = {"random weights": MaskSpec(shape, rng=augment.keyed("weights", config.seed)).to(device)}
            models |= {"starting weights": zoo.load_pretrained(config.init, device)} if config.init else {}
            models |= {"pre-trained here": zoo.load_pretrained(folder.path / "model.safetensors", device)}
            subjects = [
                self.probe.judge(name, encoder_of(model), config.precision) for name, model in models.items()
            ]
            self.host.listener.on_result(table(subjects))
        judged = {
            of.name: {"neighbours": of.neighbours.mean(), "linear": of.linear.mean()} for of in subjects
        }
        write_json(folder.path / "scores.json", {"scores": scores, "probe": judged})
        return scores


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and, as published, the two tokens with weight decay; biases and norms without."""
    named = dict(model.named_parameters())
    decayed = {name for name, parameter in named.items() if parameter.ndim > 1 or name.endswith("_token")}
    both = (weight_decay, sorted(decayed)), (0.0, sorted(named.keys() - decayed))
    return [
        {"params": [*map(named.get, names)], "weight_decay": decay, "scale": 1.0} for decay, names in both
    ]

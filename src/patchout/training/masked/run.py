"""Masked pre-training on unlabelled sounds: where it starts, the run, and whether it helped (MaskSpec,
section 2).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from patchout.audio.mel import MelConfig
from patchout.audio.statistics import audioset_statistics
from patchout.checkpoint import zoo
from patchout.data.batches import Waves
from patchout.data.mel_cache import MelCache
from patchout.data.sets import scan
from patchout.files import write_json
from patchout.models.maskspec import GridConfig, MaskedEncoder, MaskSpec, MaskSpecConfig, lengthened
from patchout.models.maskspec_classifier import MaskSpecClassifier
from patchout.models.passt import SIZES
from patchout.models.tagger import Tagger
from patchout.training import loop, optim
from patchout.training import run as training
from patchout.training.masked.config import FRONT_ENDS, PretrainConfig
from patchout.training.masked.objective import FORGOTTEN, CollapseError, Objective
from patchout.training.masked.objectives.codes import Codes
from patchout.training.masked.objectives.contrast import Contrast
from patchout.training.masked.objectives.latent import Latent
from patchout.training.masked.objectives.pixels import Pixels
from patchout.training.masked.probe import Probe, Subject, table
from patchout.training.masked.recipes import RECIPES, refuse_unread
from patchout.training.masked.survey import Survey, choose_start, cut_long, sounds_of, survey
from patchout.training.run import MAY_CHANGE, SILENT, Host, Listener, Training
from patchout.training.run_folder import RunFolder
from patchout.training.signals import Signals
from patchout.training.supervised.repeats import Scores

__all__ = ["Listener", "parameter_groups", "run", "start"]

LARGEST_BATCH = {"contrast": 64}  # that its rate was measured with; of others the published 512
OBJECTIVES: dict[str, type[Objective]] = {
    "pixels": Pixels,
    "codes": Codes,
    "latent": Latent,
    "contrast": Contrast,
}


def run(
    config: PretrainConfig,
    listener: Listener = SILENT,
    *,
    restart: bool = False,
    accept_changes: bool = False,
) -> Scores:
    """Pre-train, write the run folder `config.out`, return what was seen last: loss, silence, spread, the
    probe.

    The same call continues a run that was stopped, as `supervised.run` does. model.safetensors is a MaskSpec
    with its decoder. With a probe, the last word is a table of random weights, start and result.
    """
    with Signals() as signals:
        signals.safe = True  # but for the steps, which hear of it by themselves
        return training.run(config, _prepare, listener, restart=restart, accept_changes=accept_changes)


def _prepare(config: PretrainConfig, host: Host) -> "_Masked":
    """The clips, the model that goes on from them, and what watches it."""
    stored = host.stored
    if not stored:  # a run that began with such a value goes on
        refuse_unread(config)
    sounds = sounds_of(config)
    for note in (*sounds.problems, *sounds.notes):
        host.listener.on_problem(note)
    clips = cut_long(sounds, config.clip_s)
    probe = Probe(scan(config.probe)) if config.probe else None
    if stored and "mask_ratio" not in stored:
        raise ValueError(
            f"{config.out} holds a run of `patchout train {stored['recipe']}`: choose another --out"
        )
    if stored and (before := stored.get("objective", "pixels")) != config.objective:
        raise ValueError(
            f"{config.out} holds a run of --objective {before}, not {config.objective}: choose another "
            "--out, or begin anew with --restart; --init goes on from its encoder"
        )
    if config.init == "auto" and stored.get("recipe") == config.recipe:  # as it was decided then
        config = replace(config, init=stored["init"])
    heard = survey(
        clips, FRONT_ENDS[config.front_end], per_band=config.statistics == "data", floor=config.std_floor
    )
    init, decided = choose_start(config.init, heard.hours)
    config = replace(config, init=init)
    model = start(config, heard, device=host.device)
    config, shape = _of_model(config, model.config), model.config
    columns = _frames(config, shape.mel) // shape.patch
    objective = OBJECTIVES[config.objective](config, model)
    cut = f"{len(sounds)} recordings, the long ones cut: {len(clips)} clips" if clips is not sounds else ""
    cached = {"mel_cache": bool(config.mel_cache)}
    return _Masked(
        config=config,
        recipe=RECIPES.get(config.recipe, config),
        clips=clips,
        model=model,
        loss=objective,
        host=host,
        tokens=(objective.num_views * (1 + shape.rows * columns), objective.tokens(columns)),
        may_change={**MAY_CHANGE, "probe": "", "probe_every": 0, **cached},
        averages=bool(config.ema or objective.teacher),
        largest_batch=LARGEST_BATCH.get(config.objective, 512),
        probe=probe,
        notes=(cut, decided, *heard.problems, *(probe.problems if probe else ())),
        seconds=max(3600 * heard.hours, len(clips) * config.clip_s),
    )


# -- the start -----------------------------------------------------------------------------------------------


def start(config: PretrainConfig, heard: Survey, *, device: torch.device) -> MaskedEncoder:
    """The model that a run trains: that of the start weights, or a random one with the statistics asked for.

    Positions are a formula: a clip longer than the start's adds columns. One that fills no patch is a
    ValueError. `pixels` goes on with the decoder of its start, the other objectives take the encoder of any.
    """
    model: MaskedEncoder
    if config.init and config.objective == "pixels":
        start = zoo.load_pretrained(config.init, "cpu")
        model = lengthened(start, _frames(config, start.config.mel) // start.config.patch)
    elif config.init:
        encoder = zoo.load(config.init, "cpu")
        if not isinstance(encoder, MaskSpecClassifier):
            raise ValueError(
                f"{config.init} is a {encoder.config.title}: give the run folder or file of a pre-training, "
                "or a MaskSpec"
            )
        sizes = {field.name: getattr(encoder.config, field.name) for field in fields(GridConfig)}
        columns = max(1, _frames(config, encoder.config.mel) // encoder.config.patch)
        model = OBJECTIVES[config.objective].build(config, GridConfig(**sizes | {"columns": columns}))
        take_encoder(model, encoder)
    else:
        published = config.statistics == "audioset"
        statistics = audioset_statistics(floor=config.std_floor) if published else heard.statistics
        mel, (width, heads) = (
            replace(FRONT_ENDS[config.front_end], **statistics._asdict()),
            SIZES[config.size],
        )
        columns = max(1, _frames(config, mel) // GridConfig.patch)
        shape = GridConfig(mel=mel, width=width, heads=heads, columns=columns)
        model = OBJECTIVES[config.objective].build(config, shape)
    frames, patch = _frames(config, model.config.mel), model.config.patch
    if frames < patch:
        raise ValueError(
            f"clip_s {config.clip_s:g} gives {frames} frames, a patch needs {patch}: lengthen it"
        )
    return model.to(device)


def take_encoder(model: MaskedEncoder, encoder: MaskSpecClassifier) -> None:
    """Copy patch projection, class token and blocks, and the final norm; positions are the formula's."""
    weights = model.state_dict()
    for name, tensor in encoder.state_dict().items():
        name = name if name.startswith("embed.") else f"encoder.{name}"
        if name in weights:
            weights[name] = tensor
    model.load_state_dict(weights)


def _of_model(config: PretrainConfig, shape: GridConfig) -> PretrainConfig:
    """The config with the sizes that start weights have brought."""
    names = {sizes: name for name, sizes in SIZES.items()}
    config = replace(config, size=names.get((shape.width, shape.heads), config.size))  # type: ignore[arg-type]
    if not isinstance(shape, MaskSpecConfig):
        return config
    decoder = shape.decoder_width, shape.decoder_depth, shape.decoder_heads
    return replace(config, normalize_patches=shape.normalize_patches, decoder=decoder)


def _frames(config: PretrainConfig, mel: MelConfig) -> int:
    return mel.num_frames(max(1, round(config.clip_s * mel.sample_rate)))


# -- the run -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Masked(Training):
    """Training on what is hidden of unlabelled clips."""

    config: PretrainConfig
    model: MaskedEncoder
    loss: Objective
    probe: Probe | None
    notes: tuple[str, ...]  # what was found and decided on the way here
    seconds: float  # of sound

    def begin(self) -> Iterable[str]:
        """Open the cache of log-mels."""
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
        rate = partial(optim.cosine, steps=steps, warm_up=self.warm_up)
        job = self.common_job(folder, optimizer=optimizer, rate=rate)
        self.loss.begin(self.steps)
        return replace(job, teacher=self.loss.teacher)

    @property
    def warm_up(self) -> int:
        """Steps until the learning rate peaks."""
        return round(self.config.warm_up_epochs * len(self.clips) / self.config.batch)

    def save(self, model: nn.Module, path: Path, scores: Scores) -> None:
        """Write a MaskSpec whole; of the other objectives the encoder, as what predicts is thrown away."""
        assert isinstance(model, MaskedEncoder)
        super().save(model if isinstance(model, MaskSpec) else self.loss.encoder(model), path, scores)

    def validate(self, models: Sequence[nn.Module]) -> list[Scores]:
        """After an epoch: what the loss has seen, and now and then the probe; what looks wrong is told once.

        CollapseError, on all processes: an alarm that says that to go on would teach nothing.
        """
        return [self._validated(model) for model in models]

    def _validated(self, model: nn.Module) -> Scores:
        assert isinstance(model, MaskedEncoder)
        watched = self.loss.seen()
        return loop.agreed(lambda: self._look(model, watched) if self.host.world.is_main_process else {})

    def _look(self, model: MaskedEncoder, watched: Scores) -> Scores:
        """The probe's score beside what the loss has seen; tells what an alarm says, or raises it after the
        warm-up.
        """
        config, step = self.config, self.loss.step + 1
        ringing, epoch = self.loss.ringing(watched), step * config.batch // len(self.clips)
        if self.probe and (epoch % config.probe_every == 0 or step == self.steps):
            features = self.probe.features(self.loss.encoder(model), config.precision)
            watched["probe"] = float(self.probe.neighbours(features).mean())
            if model is self.model and self.probe.is_lost(watched["probe"], best=_best_probe(config.out)):
                ringing.append(FORGOTTEN)
        self.tell_once(alarm.text for alarm in ringing if not alarm.stops)
        for alarm in ringing:
            if alarm.stops and step > self.warm_up + alarm.patience:
                raise CollapseError(
                    f"{alarm.value} {watched[alarm.value]:.3g} after {step} steps: {alarm.text}"
                )
        return watched

    def conclude(self, folder: RunFolder, scores: Scores) -> Scores:
        """Ask the probe what random weights, start and result are worth; write and tell it. Adds the last
        loss.
        """
        last = (folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        scores = {"loss": json.loads(last)["loss"], **scores}
        subjects: list[Subject] = []
        if self.probe:
            config, device = self.config, str(self.host.device)
            fresh = OBJECTIVES[config.objective].build(config, self.model.config).to(device)
            models: dict[str, Tagger] = {"random weights": self.loss.encoder(fresh)}
            models |= {"starting weights": zoo.load(config.init, device)} if config.init else {}
            models |= {"pre-trained here": zoo.load(folder.path / "model.safetensors", device)}
            subjects = [self.probe.judge(name, model, config.precision) for name, model in models.items()]
            self.host.listener.on_result(table(subjects))
        judged = {
            of.name: {"neighbours": of.neighbours.mean(), "linear": of.linear.mean()} for of in subjects
        }
        write_json(folder.path / "scores.json", {"scores": scores, "probe": judged})
        return scores


def _best_probe(out: Path) -> float:
    """The probe's best score in the log, 0 before its first."""
    log = out / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return max((json.loads(line).get("probe", 0.0) for line in lines), default=0.0)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and, as published, the two tokens with weight decay; biases and norms without."""
    named = dict(model.named_parameters())
    decayed = {name for name, parameter in named.items() if parameter.ndim > 1 or name.endswith("_token")}
    groups = (weight_decay, sorted(decayed)), (0.0, sorted(named.keys() - decayed))
    return [
        {"params": [*map(named.get, names)], "weight_decay": decay, "scale": 1.0} for decay, names in groups
    ]

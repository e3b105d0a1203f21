"""Masked pre-training on unlabelled sounds: where it starts, the run, and whether it helped (MaskSpec, section 2)."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

import patchout
from patchout import augment, checkpoint, loop, optim, zoo
from patchout.batches import Batch, StepSampler, Waves, batches
from patchout.clips import ClipSet, DataError
from patchout.data import scan, scan_sounds
from patchout.device import pick_device
from patchout.files import write_json
from patchout.import_maskspec import encoder_of
from patchout.masking import num_kept
from patchout.maskspec import MaskSpec, MaskSpecConfig, lengthened
from patchout.mel import MelConfig
from patchout.mel_cache import MelCache
from patchout.mel_statistics import audioset_statistics
from patchout.passt import SIZES
from patchout.plan import Plan, fitting_batch, measure
from patchout.pretrain_config import MASKSPEC, PretrainConfig
from patchout.pretrain_loss import PretrainLoss
from patchout.probe import Probe, Subject, table
from patchout.run_folder import RunFolder, open_run, stored_config
from patchout.survey import Survey, choose_start, cut_long, survey

LARGEST_BATCH = 512  # the published one
ALARMS: tuple[tuple[str, Callable[[float], bool], str], ...] = (  # what is seen, when it is wrong, what to say
    ("silent", lambda share: share > 0.5, "more than half of what is hidden is silence: leave silent clips out"),
    ("spread", lambda spread: spread < 0.01, "all clips look alike to the encoder, it has collapsed: lower --base-lr"),
)


@dataclass(frozen=True)
class Listener:
    """Who hears of a pre-training while it goes on."""

    on_plan: Callable[[Plan], None] = lambda plan: None
    on_progress: Callable[[loop.Progress], None] = lambda progress: None
    on_note: Callable[[str], None] = lambda note: None  # what was found, decided or looks wrong
    on_result: Callable[[str], None] = lambda result: None  # did it help?


@dataclass(frozen=True)
class _Task:
    """What one run works with."""

    config: PretrainConfig
    clips: ClipSet
    model: MaskSpec
    loss: PretrainLoss
    probe: Probe | None
    world: Accelerator
    listener: Listener

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.config.epochs * len(self.clips) // self.config.batch

    @property
    def source(self) -> Waves | MelCache:
        """What the clips are cropped from."""
        config, mel = self.config, self.model.config.mel
        size = round(config.clip_s * mel.sample_rate)
        if config.mel_cache:
            plain = replace(mel, mean=None, std=None)
            return MelCache(self.clips, plain, Path(config.mel_cache), size, config.seed)
        return Waves(self.clips, rate=mel.sample_rate, num_samples=size, seed=config.seed, crop=True)


def run(
    config: PretrainConfig, listener: Listener = Listener(), *, restart: bool = False, accept_changes: bool = False
) -> dict[str, float]:
    """Pre-train, write the run folder `config.out`, return what was seen last: loss, silence, spread, the probe.

    The same call continues a run that was stopped, as `train.run` does. model.safetensors is a MaskSpec with its
    decoder. With a probe, the last word is a table of random weights, start and result.
    """
    if not config.data or config.out == Path():
        raise ValueError("a run needs data and out: replace(config, data=..., out=...)")
    sounds = _sounds(config)
    clips = cut_long(sounds, config.clip_s)
    probe = Probe(scan(config.probe)) if config.probe else None
    device = pick_device(config.device)
    world = loop.engine(device, config.out, trackers=config.trackers)
    device = world.device if world.num_processes > 1 else device
    stored = {} if restart else stored_config(config.out)
    if stored and "mask_ratio" not in stored:
        raise ValueError(f"{config.out} holds a run of `patchout train {stored['recipe']}`: choose another --out")
    if config.init == "auto" and stored.get("recipe") == config.recipe:  # as it was decided then
        config = replace(config, init=stored["init"])
    heard = survey(clips, MelConfig(), per_band=config.statistics == "data", floor=config.std_floor)
    init, told = choose_start(config.init, heard.hours)
    config = replace(config, init=init)
    model = start(config, heard, device=device)
    config = _of_model(config, model.config)
    task = _Task(config, clips, model, PretrainLoss(config, model.config, device), probe, world, listener)
    made = plan(task, stored.get("batch", 0))
    task = replace(task, config=replace(config, batch=made.batch))
    same = {"data": "", "out": "", "probe": "", "probe_every": 0, "workers": 0, "trackers": ()}  # moves no weight
    data = {"root": str(clips.root), "clips": len(clips), "ids_sha256": clips.ids_sha256()}
    main = world.is_main_process
    settings = asdict(task.config) | same | {"mel_cache": bool(config.mel_cache)}
    with open_run(config.out, settings, data, restart=restart, accept_changes=accept_changes, is_main=main) as folder:
        if main:
            cut = f"{len(sounds)} recordings, the long ones cut: {len(clips)} clips" if clips is not sounds else ""
            source, seconds = task.source, max(3600 * heard.hours, len(clips) * config.clip_s)
            kept = source.open(seconds) if isinstance(source, MelCache) else ""
            unheard = probe.problems if probe else ()
            for note in filter(
                None, (folder.replaced, cut, told, kept, *clips.problems, *clips.notes, *heard.problems, *unheard)
            ):
                listener.on_note(note)
            listener.on_plan(made)
        scores = loop.run(_job(task, folder), world, on_progress=listener.on_progress, on_problem=listener.on_note)
        if main:
            scores = _conclude(task, folder, scores)
    return broadcast_object_list([scores])[0]


def _sounds(config: PretrainConfig) -> ClipSet:
    """What is listened to; a split that only the recipe leaves out need not be there."""
    sounds = scan_sounds(config.data)
    known = {*sounds.column("fold").tolist()}
    left = sounds.without(*(name for name in config.exclude if name in known or name not in MASKSPEC.exclude))
    if not len(left):
        raise DataError(f"{config.data}: all {len(sounds)} clips are excluded ({', '.join(config.exclude)})")
    return left


# -- the start --------------------------------------------------------------------------------------------------------


def start(config: PretrainConfig, heard: Survey, *, device: torch.device) -> MaskSpec:
    """The model that a run trains: that of the start weights, or a random one with the statistics asked for.

    Positions are a formula: a clip longer than the start's adds columns. One that fills no patch is a ValueError.
    """
    if config.init:
        model = zoo.load_pretrained(config.init, "cpu")
        model = lengthened(model, _frames(config, model.config.mel) // model.config.patch)
    else:
        own = config.statistics != "audioset"
        statistics = heard.statistics if own else audioset_statistics(floor=config.std_floor)
        mel, (width, heads) = MelConfig(**statistics._asdict()), SIZES[config.size]
        decoder = dict(zip(("decoder_width", "decoder_depth", "decoder_heads"), config.decoder, strict=True))
        columns = max(1, _frames(config, mel) // MaskSpecConfig.patch)
        sizes: dict[str, Any] = {"width": width, "heads": heads, "columns": columns, **decoder}
        shape = MaskSpecConfig(mel=mel, normalize_patches=config.normalize_patches, **sizes)
        model = MaskSpec(shape, rng=augment.keyed("weights", config.seed))
    frames, patch = _frames(config, model.config.mel), model.config.patch
    if frames < patch:
        raise ValueError(f"clip_s {config.clip_s:g} gives {frames} frames, a patch needs {patch}: lengthen it")
    return model.to(device)


def _of_model(config: PretrainConfig, shape: MaskSpecConfig) -> PretrainConfig:
    """The config with the sizes that start weights have brought."""
    names = {sizes: name for name, sizes in SIZES.items()}
    decoder = shape.decoder_width, shape.decoder_depth, shape.decoder_heads
    sizes: dict[str, Any] = {"size": names.get((shape.width, shape.heads), config.size), "decoder": decoder}
    return replace(config, normalize_patches=shape.normalize_patches, **sizes)


def _frames(config: PretrainConfig, mel: MelConfig) -> int:
    return mel.num_frames(max(1, round(config.clip_s * mel.sample_rate)))


def plan(task: _Task, stored_batch: int) -> Plan:
    """Measure a few clips and say what the run takes; a batch of 0 becomes the one found before, or one that fits."""
    config, model, clips = task.config, task.model, len(task.clips)
    device = next(model.parameters()).device
    length = round(config.clip_s * model.config.mel.sample_rate)
    trial = measure(model, task.loss, num_samples=length, num_classes=1)  # its weight is the clip's
    task.loss.seen()
    state = sum(optim.state_bytes(model, average=bool(config.ema)))
    share = config.parts * task.world.num_processes
    fitting = partial(fitting_batch, trial, state, device, clips, largest=LARGEST_BATCH, share=share)
    size = config.batch or stored_batch or fitting()
    if size > clips:
        raise DataError(f"{config.data}: a batch of {size} is larger than the {clips} clips: lower --batch")
    patches = model.config.rows * (_frames(config, model.config.mel) // model.config.patch)
    steps, processes = config.epochs * clips // size, task.world.num_processes
    return Plan(
        origin=task.clips.origin(),
        clips=clips,
        classes=0,
        task="",
        tokens=1 + patches,
        kept=1 + num_kept(patches, config.mask_ratio),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        batch=size,
        steps=steps,
        class_clips=(0, 0, 0),
        state_bytes=state,
        memory_bytes=state + trial.activation_bytes * size // (config.parts * processes),
        seconds=trial.seconds * size * steps / processes,
    )


# -- the run ----------------------------------------------------------------------------------------------------------


def _job(task: _Task, folder: RunFolder) -> loop.Job:
    """The run as the loop takes it."""
    config, clips = task.config, len(task.clips)
    groups = parameter_groups(task.model, config.weight_decay)
    rate = partial(
        optim.cosine,
        steps=(config.horizon_epochs or config.epochs) * clips // config.batch,
        warm_up=round(config.warm_up_epochs * clips / config.batch),
    )
    return loop.Job(
        model=task.model,
        optimizer=optim.adamw(groups, config.base_lr * config.batch / 256, betas=config.betas),
        loss=task.loss,
        rate=rate,
        batch=config.batch,
        clips=clips,
        clip_name=task.clips.name,
        parts=config.parts,
        precision=config.precision,
        compile=config.compile,
        clip_norm=config.clip_norm,
        batches=partial(_batches, task),
        steps=task.steps,
        epoch=clips,
        save_model=partial(_save, task),
        folder=folder,
        validate=partial(_look, task, set()),
        evaluate_every=1,
        result="average" if config.ema else "last",
        ema=config.ema,
    )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and, as published, the two tokens with weight decay; biases and norms without."""
    named = dict(model.named_parameters())
    decayed = {name for name, parameter in named.items() if parameter.ndim > 1 or name.endswith("_token")}
    both = (weight_decay, sorted(decayed)), (0.0, sorted(named.keys() - decayed))
    return [{"params": [*map(named.get, names)], "weight_decay": decay, "scale": 1.0} for decay, names in both]


def _batches(task: _Task, first: int) -> Iterable[Batch]:
    """This process's batches from step `first` on, a part each; every clip is cropped at random."""
    config, world = task.config, task.world
    sampler = StepSampler(
        len(task.clips),
        config.batch // config.parts,
        seed=config.seed,
        first=first * config.parts,
        last=task.steps * config.parts,
        rank=world.process_index,
        world=world.num_processes,
    )
    return batches(task.source, sampler, workers=config.workers)


def _save(task: _Task, model: nn.Module, path: Path, scores: dict[str, float]) -> None:
    """Write weights with what made them."""
    assert isinstance(model, MaskSpec)
    made = {"recipe": task.config.recipe, "seed": task.config.seed, "version": patchout.__version__}
    made |= {"init": task.config.init, "clips": len(task.clips), "scores": scores}
    model.config = replace(model.config, provenance=made)
    checkpoint.save(model, path)


def _look(task: _Task, told: set[str], model: nn.Module) -> dict[str, float]:
    """After an epoch: what the loss has seen, and now and then the probe; what looks wrong is told once."""
    assert isinstance(model, MaskSpec)
    config, seen = task.config, task.loss.seen()
    if not task.world.is_main_process:
        return {}
    for name, rings, alarm in ALARMS:
        if name in seen and rings(seen[name]) and alarm not in told:
            task.listener.on_note(alarm)
            told.add(alarm)
    step = task.loss.step + 1
    epoch = step * config.batch // len(task.clips)
    if task.probe and (epoch % config.probe_every == 0 or step == task.steps):
        features = task.probe.features(encoder_of(model), config.precision)
        seen["probe"] = float(task.probe.neighbours(features).mean())
    return seen


def _conclude(task: _Task, folder: RunFolder, scores: dict[str, float]) -> dict[str, float]:
    """Ask the probe what random weights, the start and the result are worth; write and tell it. Adds the last loss."""
    last = (folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    scores = {"loss": json.loads(last)["loss"], **scores}
    found: list[Subject] = []
    if task.probe:
        config, shape, device = task.config, task.model.config, str(next(task.model.parameters()).device)
        models = {"random weights": MaskSpec(shape, rng=augment.keyed("weights", config.seed)).to(device)}
        models |= {"starting weights": zoo.load_pretrained(config.init, device)} if config.init else {}
        models |= {"pre-trained here": zoo.load_pretrained(folder.path / "model.safetensors", device)}
        found = [task.probe.judge(name, encoder_of(model), config.precision) for name, model in models.items()]
        task.listener.on_result(table(found))
    told = {one.name: {"neighbours": one.neighbours.mean(), "linear": one.linear.mean()} for one in found}
    write_json(folder.path / "scores.json", {"scores": scores, "probe": told})
    return scores

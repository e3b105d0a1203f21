"""Masked pre-training on unlabelled sounds: where it starts, the run, and whether it helped (MaskSpec, section 2)."""

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack
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
from patchout.batches import Batch, StepSampler, batches
from patchout.clips import ClipSet, DataError
from patchout.data import scan
from patchout.device import pick_device
from patchout.files import write_json
from patchout.import_maskspec import encoder_of
from patchout.masking import num_kept
from patchout.maskspec import MaskSpec, MaskSpecConfig, lengthened
from patchout.mel import MelConfig
from patchout.mel_cache import MelCache, crops
from patchout.mel_statistics import audioset_statistics
from patchout.passt import SIZES
from patchout.plan import Plan, fitting_batch, measure
from patchout.pretrain_config import RECIPES, PretrainConfig
from patchout.pretrain_loss import PretrainLoss, alarms
from patchout.probe import Probe, Subject, table
from patchout.run_folder import RunFolder, open_run, settings_of, stored_config
from patchout.survey import Survey, choose_start, cut_long, sounds_of, survey

LARGEST_BATCH = 512  # the published one


@dataclass(frozen=True)
class Listener:
    """Who hears of a pre-training while it goes on; of several processes the main one's."""

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
    notes: tuple[str, ...]  # what was found and decided on the way here
    seconds: float  # of sound

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.config.epochs * len(self.clips) // self.config.batch


def run(
    config: PretrainConfig, listener: Listener = Listener(), *, restart: bool = False, accept_changes: bool = False
) -> dict[str, float]:
    """Pre-train, write the run folder `config.out`, return what was seen last: loss, silence, spread, the probe.

    The same call continues a run that was stopped, as `train.run` does. model.safetensors is a MaskSpec with its
    decoder. With a probe, the last word is a table of random weights, start and result.
    """
    if not config.data or config.out == Path():
        raise ValueError("a run needs data and out: replace(config, data=..., out=...)")
    device = pick_device(config.device)
    world = loop.engine(device, config.out, trackers=config.trackers)
    main = world.is_main_process
    stored = loop.agreed(lambda: {} if restart else stored_config(config.out))
    config = replace(config, precision=loop.settle(config.precision, stored.get("precision"), device))
    task = loop.agreed(lambda: _prepare(config, stored, world, listener if main else Listener(), device))
    planned = plan(task, stored.get("batch", 0))
    task, clips = replace(task, config=replace(task.config, batch=planned.batch)), task.clips
    same = {"data": "", "out": "", "probe": "", "probe_every": 0, "workers": 0, "trackers": ()}  # moves no weight
    same |= {"mel_cache": bool(task.config.mel_cache)}
    data = {"root": str(clips.root), "clips": len(clips), "ids_sha256": clips.ids_sha256()}
    settings = settings_of(asdict(task.config) | same, asdict(PretrainConfig(recipe="")) | same, stored)
    with ExitStack() as stack:
        opened = open_run(config.out, settings, data, restart=restart, accept_changes=accept_changes, is_main=main)
        folder = loop.agreed(lambda: stack.enter_context(opened))
        source = crops(clips, task.model.config.mel, config)
        kept = loop.agreed(lambda: source.open(task.seconds) if isinstance(source, MelCache) and main else "")
        for note in filter(None, (folder.replaced, kept, *task.notes)):
            task.listener.on_note(note)
        task.listener.on_plan(planned)
        scores = loop.run(_job(task, folder), world, on_progress=listener.on_progress, on_problem=listener.on_note)
        scores = loop.agreed(lambda: _conclude(task, folder, scores) if main else scores)
    return broadcast_object_list([scores])[0]


def _prepare(
    config: PretrainConfig, stored: dict[str, Any], world: Accelerator, listener: Listener, device: torch.device
) -> _Task:
    """The clips, the model that goes on from them, and what watches it."""
    sounds = sounds_of(config)
    for note in (*sounds.problems, *sounds.notes):
        listener.on_note(note)
    clips = cut_long(sounds, config.clip_s)
    probe = Probe(scan(config.probe)) if config.probe else None
    device = world.device if world.num_processes > 1 else device
    if stored and "mask_ratio" not in stored:
        raise ValueError(f"{config.out} holds a run of `patchout train {stored['recipe']}`: choose another --out")
    if config.init == "auto" and stored.get("recipe") == config.recipe:  # as it was decided then
        config = replace(config, init=stored["init"])
    heard = survey(clips, MelConfig(), per_band=config.statistics == "data", floor=config.std_floor)
    init, decided = choose_start(config.init, heard.hours)
    config = replace(config, init=init)
    model = start(config, heard, device=device)
    config = _of_model(config, model.config)
    cut = f"{len(sounds)} recordings, the long ones cut: {len(clips)} clips" if clips is not sounds else ""
    notes = cut, decided, *heard.problems, *(probe.problems if probe else ())
    seconds = max(3600 * heard.hours, len(clips) * config.clip_s)
    loss = PretrainLoss(config, model.config, device)
    return _Task(config, clips, model, loss, probe, world, listener, notes, seconds)


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
    sharing = config.parts * task.world.num_processes
    fit = partial(fitting_batch, trial, state, device, clips, largest=LARGEST_BATCH, share=sharing)
    size = config.batch or stored_batch or fit()
    if size > clips:
        raise DataError(f"{config.data}: a batch of {size} is larger than the {clips} clips: lower --batch")
    patches = model.config.rows * (_frames(config, model.config.mel) // model.config.patch)
    like = RECIPES.get(config.recipe, config)
    same = like.batch in (0, size) and like.base_lr == config.base_lr
    return Plan(
        origin=task.clips.origin(),
        clips=clips,
        classes=0,
        task="",
        tokens=1 + patches,
        kept=1 + num_kept(patches, config.mask_ratio),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        batch=size,
        parts=config.parts,
        processes=task.world.num_processes,
        lr=config.base_lr * size / 256,
        published="" if same else f"{like.batch} at {like.base_lr * like.batch / 256:.3g}",
        steps=config.epochs * clips // size,
        class_clips=(0, 0, 0),
        state_bytes=state,
        trial=trial,
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
    return batches(crops(task.clips, task.model.config.mel, config), sampler, workers=config.workers)


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
    for alarm in alarms(seen) - told:
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

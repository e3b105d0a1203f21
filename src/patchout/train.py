"""Supervised training, from random weights or a model's: the model, the plan, the run (PaSST, section 3)."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import nn

import patchout
from patchout import augment, checkpoint, evaluate, loop, optim, zoo
from patchout.augment import WaveMix
from patchout.batches import Batch, StepSampler, Waves, balance_weights, batches
from patchout.channels import EVALUATION_BATCH, each_channel
from patchout.clips import ClipSet
from patchout.device import pick_device
from patchout.files import finite, write_json
from patchout.plan import Plan, fitting_batch, measure
from patchout.recipes import names, recipe
from patchout.repeat import Scores, repeat
from patchout.report import write_report
from patchout.run_folder import RunFolder, open_run, settings_of, stored_config
from patchout.shape import freeze, model_config, num_columns
from patchout.split import Split, choose
from patchout.start import find, start
from patchout.step_loss import StepLoss, class_weights, wave_augment
from patchout.stop import Signals
from patchout.tagger import Tagger
from patchout.train_config import TrainConfig

__all__ = ["Listener", "TrainConfig", "run"]


@dataclass(frozen=True)
class Listener:
    """Who hears of a run while it goes on; of several processes the main one's."""

    on_plan: Callable[[Plan], None] = lambda plan: None
    on_progress: Callable[[loop.Progress], None] = lambda progress: None
    on_problem: Callable[[str], None] = lambda problem: None


def run(
    config: TrainConfig, listener: Listener = Listener(), *, restart: bool = False, accept_changes: bool = False
) -> Scores:
    """Train, write the run folder `config.out`, return the scores of what it reports; of seeds and folds, their mean.

    The same call continues a run that was stopped. Another config in the same folder is a ValueError that says what
    differs, unless `accept_changes`; `restart` moves the old run aside and begins anew. Processes that torchrun started
    share every batch, which keeps its size when another number of them continues the run.
    """
    if not config.data or config.out == Path():
        raise ValueError("a run needs data and out: replace(config, data=..., out=...)")

    one = partial(_run, listener=listener, restart=restart, accept_changes=accept_changes)
    one = one if config.channel != "each" else partial(each_channel, run=one)
    with Signals() as signals:
        signals.safe = True  # but for the steps, which hear of it by themselves
        return repeat(config, one) if config.seeds > 1 or config.folds else one(config)


# -- one run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """What one run works with."""

    config: TrainConfig
    split: Split
    model: Tagger
    loss: StepLoss
    world: Accelerator
    listener: Listener

    @property
    def epoch(self) -> int:
        """Clips an epoch."""
        return self.config.draws or len(self.split.training)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.config.epochs * self.epoch // self.config.batch


def _run(config: TrainConfig, *, listener: Listener, restart: bool, accept_changes: bool) -> Scores:
    """One seed, one fold."""
    device = pick_device(config.device)
    world = loop.engine(device, config.out, trackers=config.trackers)
    main = world.is_main_process
    stored = loop.agreed(lambda: {} if restart else stored_config(config.out))
    begun = stored.get("processes", 1) if stored else world.num_processes
    config = replace(config, batch=config.batch * (begun if config.batch_per_process else 1))
    config = replace(config, precision=loop.settle(config.precision, stored.get("precision"), device))
    task = loop.agreed(lambda: _prepare(config, world, listener if main else Listener(), device))
    planned = plan(task, stored.get("batch", 0))
    task, clips = replace(task, config=replace(config, batch=planned.batch)), task.split.training
    data = {"root": str(clips.root), "classes": clips.classes, "clips": len(clips), "ids_sha256": clips.ids_sha256()}
    same = {"data": "", "out": "", "workers": 0, "trackers": (), "batch_per_process": False}  # what moves no weight
    settings = settings_of(asdict(task.config) | same, asdict(TrainConfig(recipe="")), stored)
    settings |= {"processes": begun} if begun > 1 else {}  # of which the recipe's batch is taken when others go on
    with ExitStack() as stack:
        opened = open_run(config.out, settings, data, restart=restart, accept_changes=accept_changes, is_main=main)
        folder = loop.agreed(lambda: stack.enter_context(opened))
        task.listener.on_plan(planned)
        if folder.replaced:
            listener.on_problem(folder.replaced)
        scores = loop.run(_job(task, folder), world, on_progress=listener.on_progress, on_problem=listener.on_problem)
        reported = loop.agreed(lambda: _conclude(task, folder, scores) if main else {})
    return broadcast_object_list([reported])[0]


def _prepare(config: TrainConfig, world: Accelerator, listener: Listener, device: torch.device) -> _Task:
    """The clips, the model with its start weights, and the loss."""
    split = choose(config, listener.on_problem)
    found = find(config.init)
    shape = model_config(config, split.training, found.model.config if found.model else None)
    device = world.device if world.num_processes > 1 else device
    model = start(shape, found, rng=augment.keyed("weights", config.seed), device=device)
    freeze(model, config.freeze)
    if config.draws > len(split.training):
        raise ValueError(f"{config.draws} draws an epoch of {len(split.training)} clips, none twice: lower draws")
    weight = class_weights(split.training) if config.balance == "loss" else torch.ones(len(split.training.classes))
    return _Task(config, split, model, StepLoss(config, model.config, weight), world, listener)


def plan(task: _Task, stored_batch: int) -> Plan:
    """Measure a few clips and say what the run will take; a batch of 0 becomes the stored one, or one that fits."""
    config, model, clips = task.config, task.model, task.split.training
    device = next(model.parameters()).device
    length = round(config.clip_s * model.config.mel.sample_rate)
    trial = measure(model, task.loss, num_samples=length, num_classes=len(clips.classes))
    state = sum(optim.state_bytes(model, average=bool(config.ema or config.swa_start)))
    sharing = config.parts * task.world.num_processes
    size = config.batch or stored_batch or fitting_batch(trial, state, device, len(clips), share=sharing)
    shape = model.config
    columns, tokens = num_columns(shape, config.clip_s), shape.num_class_tokens
    steps = config.epochs * task.epoch // size
    if steps < 1:
        raise ValueError(f"{config.epochs} epochs of {task.epoch} clips are less than one batch of {size}: lower batch")
    counts = np.sort(clips.class_counts())
    return Plan(
        origin=clips.origin(),
        clips=len(clips),
        classes=len(clips.classes),
        task=clips.task,
        tokens=tokens + shape.rows * columns,
        kept=tokens + config.patchout.num_kept(shape.rows, columns),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        batch=size,
        parts=config.parts,
        processes=task.world.num_processes,
        lr=config.lr,
        published=_published(config, size),
        steps=steps,
        class_clips=(int(counts[0]), int(counts[len(counts) // 2]), int(counts[-1])),
        state_bytes=state,
        trial=trial,
    )


def _published(config: TrainConfig, batch: int) -> str:
    """Batch and learning rate of the config's recipe, "" where this run has them or the recipe names none."""
    like = recipe(config.recipe).config if config.recipe in names() else config
    if not like.batch or (like.batch, like.lr) == (batch, config.lr):
        return ""
    return f"{like.batch}{' on one GPU' if like.batch_per_process else ''} at {like.lr:.3g}"


def _job(task: _Task, folder: RunFolder) -> loop.Job:
    """The run as the loop takes it."""
    config, model, clips = task.config, task.model, task.split.training
    per_epoch = Fraction(task.epoch, config.batch)
    swa = optim.swa_steps(per_epoch, config.epochs, start=config.swa_start, every=config.swa_every)
    first = "accuracy" if clips.task == "multi_class" else "mAP"
    averaged = loop.AVERAGE if config.ema or config.swa_start else ""
    groups = optim.parameter_groups(
        model, config.weight_decay, decay_all=config.decay_all, layer_decay=config.layer_decay
    )
    return loop.Job(
        model=model,
        optimizer=optim.adamw(groups, config.lr),
        loss=task.loss,
        rate=_rate(config, per_epoch, task.steps),
        batch=config.batch,
        clips=len(clips),
        clip_name=clips.name,
        parts=config.parts,
        precision=config.precision,
        compile=config.compile,
        clip_norm=config.clip_norm,
        batches=partial(_batches, task),
        steps=task.steps,
        epoch=task.epoch,
        save_model=partial(_save, task),
        folder=folder,
        validate=partial(_validate, task, set()),
        evaluate_every=config.evaluate_every,
        metric=averaged + first if config.evaluate_every and len(task.split.validation) else "",
        result=config.result,
        ema=config.ema,
        swa=swa if config.swa_start else frozenset(),
    )


def _rate(config: TrainConfig, per_epoch: Fraction, steps: int) -> Callable[[int], float]:
    """Step -> factor of the peak rate."""
    if config.schedule == "cosine":
        return partial(optim.cosine, steps=steps, warm_up=round(config.warm_up_epochs * per_epoch))
    return partial(
        optim.exp_ramp,
        steps_per_epoch=per_epoch,
        warm_up=round(config.warm_up_epochs),
        plateau_end=config.plateau_epochs,
        ramp=config.ramp_epochs,
        floor=config.floor,
    )


def _batches(task: _Task, first: int) -> Iterable[Batch]:
    """This process's batches from step `first` on, a part each."""
    config, clips, world = task.config, task.split.training, task.world
    rate = task.model.config.mel.sample_rate
    change = partial(wave_augment, config=config, rate=rate)  # unlike a closure it can be sent to a spawned worker
    mix = WaveMix(config.wave_mix, config.wave_mix_alpha) if config.wave_mix else None
    size, seed = round(config.clip_s * rate), config.seed
    waves = Waves(clips, rate=rate, num_samples=size, seed=seed, augment=change, mix=mix)
    sampler = StepSampler(
        len(clips),
        config.batch // config.parts,
        seed=seed,
        first=first * config.parts,
        last=task.steps * config.parts,
        rank=world.process_index,
        world=world.num_processes,
        draws=config.draws or None,
        weights=balance_weights(clips) if config.balance == "sampling" else None,
    )
    return batches(waves, sampler, workers=config.workers)


def _save(task: _Task, model: nn.Module, path: Path, scores: Scores) -> None:
    """Write weights with what made them."""
    assert isinstance(model, Tagger)
    made = {"recipe": task.config.recipe, "seed": task.config.seed, "version": patchout.__version__}
    made |= {"init": task.config.init, "clips": len(task.split.training), "scores": finite(scores)}
    model.config = replace(model.config, provenance=made)
    checkpoint.save(model, path)


def _validate(task: _Task, told: set[str], model: nn.Module) -> Scores:
    """Scores on the clips held out to watch the run, which the processes share."""
    assert isinstance(model, Tagger)
    clips, world = task.split.validation, task.world
    if not len(clips):
        return {}
    mine = clips.take(range(world.process_index, len(clips), world.num_processes))
    part = evaluate.predict(model, mine, precision=task.config.precision, batch_size=EVALUATION_BATCH)
    found = evaluate.interleave(gather_object([part]))
    if not world.is_main_process:
        return {}
    problems = {*found.failed, *found.warnings}
    for problem in sorted(problems - told):
        task.listener.on_problem(problem)
    told |= problems
    return _judge(task, found, clips).scores


def _judge(task: _Task, found: evaluate.Predictions, clips: ClipSet) -> evaluate.Evaluation:
    """Scores of these predictions, by the values of the config's column too."""
    groups = evaluate.group_by(clips, task.config.by, task.split.training) if task.config.by else {}
    shape = task.model.config
    return evaluate.judge(found, clips, labels=shape.labels, task=shape.task, groups=groups)


def _conclude(task: _Task, folder: RunFolder, scores: Scores) -> Scores:
    """Score the test split with the weights that the run reports, and write the report; returns the last word."""
    clips, which = (task.split.test, "test") if len(task.split.test) else (task.split.validation, "validation")
    if not len(clips):
        return scores
    path = folder.path / "model.safetensors"
    model = zoo.load(path, str(next(task.model.parameters()).device))
    found = evaluate.predict(model, clips, precision=task.config.precision, batch_size=EVALUATION_BATCH)
    weights = f"{path.name}, the {task.config.result} of {task.steps} steps, on the {which} clips"
    write_report(folder.path, found, clips, labels=model.config.labels, task=model.config.task, weights=weights)
    for problem in (*found.failed, *found.warnings) if which == "test" else ():
        task.listener.on_problem(problem)
    judged = _judge(task, found, clips)
    final = judged.scores
    if judged.absent:
        task.listener.on_problem(f"{which} clips: {judged.unscored}")
    if which == "test":
        _save(task, model, path, final)
    write_json(folder.path / "scores.json", finite({"clips": which, "scores": final, "validation": scores}))
    return final

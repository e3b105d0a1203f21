"""Common parts of supervised and masked training: cost estimate, run folder, batches, training, scoring."""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from jaxtyping import Float
from torch import Tensor, nn

import patchout
from patchout.checkpoint import own as checkpoint
from patchout.data.batches import Batch, StepSampler, Waves, batches, shared_memory_note
from patchout.data.clips import ClipSet, DataError
from patchout.data.mel_cache import MelCache
from patchout.files import finite
from patchout.models.device import pick_device, pick_precision
from patchout.models.maskspec import MaskedEncoder
from patchout.models.tagger import Tagger
from patchout.training import loop, optim
from patchout.training.config import RunConfig
from patchout.training.plan import LARGEST_BATCH, Plan, fitting_batch, measure
from patchout.training.provenance import command_line, data_of
from patchout.training.run_folder import RunFolder, open_run, settings_of, stored_config
from patchout.training.step import Place
from patchout.training.supervised.frozen import EmbeddedClips
from patchout.training.supervised.repeats import Scores

Config = TypeVar("Config", bound=RunConfig)

MAY_CHANGE = {"data": "", "out": "", "workers": 0, "trackers": ()}


@dataclass(frozen=True)
class Listener:
    """Callbacks of a run; of several processes the main one's."""

    on_plan: Callable[[Plan], None] = lambda plan: None
    on_progress: Callable[[loop.Progress], None] = lambda progress: None
    on_problem: Callable[[str], None] = lambda problem: None  # what was found, decided or looks wrong
    on_result: Callable[[str], None] = lambda result: None  # did pre-training help?


SILENT = Listener()


class Host(NamedTuple):
    """Processes, device, stored config and callbacks that a run is prepared for."""

    world: Accelerator
    device: torch.device  # of this process
    stored: Mapping[str, Any]  # config in the run folder, empty where a run begins
    listener: Listener  # SILENT, but on the main process


@dataclass(frozen=True, kw_only=True)
class Training(ABC):
    """A prepared run; supervised and masked training differ in the loss and in what is scored."""

    config: RunConfig
    recipe: RunConfig  # the config of that name before it was changed
    recipe_unit: str = ""  # what its batch is counted on, in words
    clips: ClipSet  # that are trained on
    model: Tagger | MaskedEncoder
    loss: Callable[[nn.Module, Batch, Place], Tensor]
    host: Host
    tokens: tuple[int, int]  # of a clip, and those of it in a training step
    may_change: dict[str, Any]  # settings that move no weight, and what is stored instead of them
    classes: tuple[str, ...] = ()  # that the loss compares with
    soft_targets: bool = False  # whether the clips bring further ones, as many as classes
    sources: Mapping[str, Any] = field(default_factory=dict)  # of the targets: no resumed run has others
    history: dict[str, Any] = field(default_factory=dict)  # further facts for a model's provenance
    averages: bool  # whether averaged weights are kept beside the trained ones
    draws: int = 0  # clips an epoch; 0: all
    draw_weights: Float[Tensor, "clip"] | None = None  # how likely each clip is drawn
    largest_batch: int = LARGEST_BATCH  # that is chosen where the config leaves it open
    reported: set[str] = field(default_factory=set)

    @property
    def epoch(self) -> int:
        """Clips an epoch."""
        return self.draws or len(self.clips)

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.epoch // self.config.batch

    @property
    def input_size(self) -> int:
        """Values of a clip in a batch: its samples."""
        return round(self.config.clip_s * self.model.config.mel.sample_rate)

    @abstractmethod
    def sounds(self) -> Waves | MelCache | EmbeddedClips:
        """The data set of clips that batches are made of."""

    @abstractmethod
    def job(self, folder: RunFolder) -> loop.Job:
        """The job for the training loop."""

    @abstractmethod
    def validate(self, models: Sequence[nn.Module]) -> list[Scores]:
        """Validation scores of some models, computed on every process; the main one's count."""

    @abstractmethod
    def conclude(self, folder: RunFolder, scores: Scores) -> Scores:
        """Final scores of the finished model, on the main process; `scores` are its last validation's."""

    def begin(self) -> Iterable[str]:
        """Get ready for the first step, on the main process; returns notes on the run."""
        return ()

    def tell_once(self, texts: Iterable[str]) -> None:
        """Report what this run has not reported yet."""
        for text in sorted({*texts} - self.reported):
            self.host.listener.on_problem(text)
            self.reported.add(text)

    def plan(self) -> Plan:
        """Estimate the cost of the run from a few clips; a batch of 0 becomes the stored or a fitting one."""
        config, model, clips, world = self.config, self.model, self.clips, self.host.world
        classes = len(self.classes)
        targets = max(1, classes) * (2 if self.soft_targets else 1)
        trial = measure(model, self.loss, num_samples=self.input_size, num_classes=targets)
        state = sum(optim.state_bytes(model, average=self.averages))
        device, largest, share = self.host.device, self.largest_batch, config.parts * world.num_processes
        batch = config.batch or self.host.stored.get("batch", 0)
        batch = batch or fitting_batch(trial, state, device, len(clips), largest=largest, share=share)
        steps = config.epochs * self.epoch // batch
        if batch > len(clips):
            few = f"the {len(clips)} clips: lower --batch"
            raise DataError(f"{config.data}: a batch of {batch} is larger than {few}")
        if steps < 1:
            few = f"{config.epochs} epochs of {self.epoch} clips"
            raise ValueError(f"{few} are less than one batch of {batch}: lower batch")
        lr, recipe_batch = config.peak_lr(batch), self.recipe.batch
        recipe_lr = self.recipe.peak_lr(recipe_batch)
        differs = recipe_batch and (recipe_batch, recipe_lr) != (batch, lr)
        counts = np.sort(clips.class_counts()) if classes else np.zeros(1)
        return Plan(
            clips=len(clips),
            classes=classes,
            task=clips.task if classes else "",
            tokens=self.tokens[0],
            training_tokens=self.tokens[1],
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            batch=batch,
            parts=config.parts,
            processes=world.num_processes,
            lr=lr,
            published=f"{recipe_batch}{self.recipe_unit} at {recipe_lr:.3g}" if differs else "",
            steps=steps,
            class_clips=(int(counts[0]), int(counts[len(counts) // 2]), int(counts[-1])),
            state_bytes=state,
            trial=trial,
            origin=clips.origin(),
        )

    def common_job(
        self, folder: RunFolder, *, optimizer: torch.optim.Optimizer, rate: Callable[[int], float]
    ) -> loop.Job:
        """The settings that every `job` has; it is validated after every epoch."""
        config = self.config
        return loop.Job(
            model=self.model,
            optimizer=optimizer,
            loss=self.loss,
            rate=rate,
            batch=config.batch,
            clips=len(self.clips),
            clip_name=self.clips.name,
            parts=config.parts,
            precision=config.precision,
            compile=config.compile,
            clip_norm=config.clip_norm,
            batches=self.batches,
            steps=self.steps,
            epoch=self.epoch,
            save_model=self.save,
            folder=folder,
            validate=self.validate,
            evaluate_every=1,
            result="average" if config.ema else "last",
            ema=config.ema,
            tokens=self.tokens[1],
        )

    def batches(self, first: int) -> Iterable[Batch]:
        """This process's batches from step `first` on, a part each."""
        config, parts, world = self.config, self.config.parts, self.host.world
        sampler = StepSampler(
            len(self.clips),
            config.batch // parts,
            seed=config.seed,
            first=first * parts,
            last=self.steps * parts,
            rank=world.process_index,
            world=world.num_processes,
            draws=self.draws or None,
            weights=self.draw_weights,
        )
        is_cuda = self.host.device.type == "cuda"
        return batches(
            self.sounds(), sampler, workers=config.workers, pin_memory=is_cuda, batch_bytes=self.batch_bytes
        )

    @property
    def batch_bytes(self) -> int:
        """Memory of the largest batch that a process loads."""
        processes = self.host.world.num_processes
        return self.sounds().clip_bytes * math.ceil(self.config.batch // self.config.parts / processes)

    def save(self, model: nn.Module, path: Path, scores: Scores) -> None:
        """Write weights with their provenance."""
        assert isinstance(model, checkpoint.Model)
        config = self.config
        provenance = {"recipe": config.recipe, "seed": config.seed, "version": patchout.__version__}
        provenance |= {"init": config.init, "clips": len(self.clips), "scores": finite(scores)}
        provenance |= {"command": command_line(config, self.recipe), "data": data_of(config, self.clips)}
        provenance |= {**self.sources, **self.history}
        model.config = replace(model.config, provenance=provenance)
        checkpoint.save(model, path)


def run(
    config: Config,
    prepare: Callable[[Config, Host], Training],
    listener: Listener,
    *,
    restart: bool = False,
    accept_changes: bool = False,
) -> Scores:
    """Begin or resume the run in the folder `config.out` and finish it: `supervised.run` and `masked.run`."""
    if not config.data or config.out == Path():
        raise ValueError("a run needs data and out: replace(config, data=..., out=...)")
    device = pick_device(config.device)
    world = loop.engine(device, config.out, trackers=config.trackers)
    main, is_alone = world.is_main_process, world.num_processes == 1
    stored = loop.agreed(lambda: {} if restart else stored_config(config.out))
    if config.precision == "auto":  # the stored one, else what is faster for the main process
        precision = broadcast_object_list([stored.get("precision") or pick_precision("auto", device)])[0]
        config = replace(config, precision=precision)
    host = Host(world, device if is_alone else world.device, stored, listener if main else SILENT)
    training = loop.agreed(lambda: prepare(config, host))
    plan = training.plan()
    training = replace(training, config=replace(training.config, batch=plan.batch))
    clips, may_change = training.clips, training.may_change
    defaults = {field.name: field.default for field in fields(training.config)} | may_change
    settings = settings_of(asdict(training.config) | may_change, defaults, stored)
    data = {"root": str(clips.root), "clips": len(clips), "ids_sha256": clips.ids_sha256()}
    data |= ({"classes": training.classes} if training.classes else {}) | {**training.sources}
    options = {"restart": restart, "accept_changes": accept_changes, "is_main": main}
    with ExitStack() as stack:
        opened = open_run(config.out, settings, data, **options)
        folder = loop.agreed(lambda: stack.enter_context(opened))
        notes = loop.agreed(lambda: training.begin() if main else ())
        workers = training.config.workers * int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
        shared = shared_memory_note(training.batch_bytes, workers)
        for note in filter(None, (folder.replaced, shared, *notes)):
            host.listener.on_problem(note)
        host.listener.on_plan(replace(plan, is_finished=folder.is_finished(plan.steps)))
        job = training.job(folder)
        last = loop.run(job, world, on_progress=listener.on_progress, on_problem=listener.on_problem)
        scores = loop.agreed(lambda: training.conclude(folder, last) if main else {})
    return broadcast_object_list([scores])[0]

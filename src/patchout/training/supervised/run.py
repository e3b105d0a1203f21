"""Supervised training, from random weights or a model's: the model, the run, its scores (PaSST, section
3)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import torch
from accelerate.utils import gather_object
from torch import nn

from patchout.checkpoint import zoo
from patchout.data import augment
from patchout.data.augment import WaveMix
from patchout.data.batches import Waves, balance_weights
from patchout.data.clips import ClipSet
from patchout.files import finite, write_json
from patchout.inference import evaluate
from patchout.models.tagger import Tagger
from patchout.training import loop, optim
from patchout.training import run as training
from patchout.training.recipes import names, recipe
from patchout.training.run import MAY_CHANGE, SILENT, Host, Listener, Training
from patchout.training.run_folder import RunFolder
from patchout.training.signals import Signals
from patchout.training.supervised.channel_ensemble import EVALUATION_BATCH, each_channel
from patchout.training.supervised.config import TrainConfig
from patchout.training.supervised.data_split import Split, choose
from patchout.training.supervised.initial_weights import find, start
from patchout.training.supervised.loss import StepLoss, class_weights, wave_augment
from patchout.training.supervised.model_config import freeze, model_config, num_columns
from patchout.training.supervised.repeats import Scores, repeat
from patchout.training.supervised.report import write_report

__all__ = ["Listener", "TrainConfig", "run"]


def run(
    config: TrainConfig, listener: Listener = SILENT, *, restart: bool = False, accept_changes: bool = False
) -> Scores:
    """Train, write the run folder `config.out`, return the scores of what it reports; of seeds and folds,
    their mean.

    The same call continues a run that was stopped. Another config in the same folder is a ValueError that
    says what differs, unless `accept_changes`; `restart` moves the old run aside and begins anew. Processes
    that torchrun started share every batch, which keeps its size when another number of them continues the
    run.
    """

    def single(config: TrainConfig) -> Scores:
        return training.run(config, _prepare, listener, restart=restart, accept_changes=accept_changes)

    train = single if config.channel != "each" else partial(each_channel, run=single)
    with Signals() as signals:
        signals.safe = True  # but for the steps, which hear of it by themselves
        return repeat(config, train) if config.seeds > 1 or config.folds else train(config)


def _prepare(config: TrainConfig, host: Host) -> "_Supervised":
    """The clips, the model with its start weights, and the loss."""
    begun = host.stored.get("processes", 1) if host.stored else host.world.num_processes
    config = replace(config, batch=config.batch * (begun if config.batch_per_process else 1))
    processes = {"processes": begun} if begun > 1 else {}  # of which the batch is taken when others go on
    split = choose(config, host.listener.tell)
    clips, initial = split.training, find(config.init)
    shape = model_config(config, clips, initial.model.config if initial.model else None)
    model = start(shape, initial, rng=augment.keyed("weights", config.seed), device=host.device)
    freeze(model, config.freeze)
    if config.draws > len(clips):
        raise ValueError(f"{config.draws} draws an epoch of {len(clips)} clips, none twice: lower draws")
    weight = class_weights(clips) if config.balance == "loss" else torch.ones(len(clips.classes))
    published = recipe(config.recipe).config if config.recipe in names() else config
    columns, whole = num_columns(shape, config.clip_s), shape.num_class_tokens
    return _Supervised(
        config=config,
        recipe=published,
        recipe_unit=" on one GPU" if published.batch_per_process else "",
        clips=clips,
        model=model,
        loss=StepLoss(config, model.config, weight),
        host=host,
        tokens=(whole + shape.rows * columns, whole + config.patchout.num_kept(shape.rows, columns)),
        may_change={**MAY_CHANGE, "batch_per_process": False, **processes},
        classes=clips.classes,
        averages=bool(config.ema or config.swa_start),
        draws=config.draws,
        draw_weights=balance_weights(clips) if config.balance == "sampling" else None,
        split=split,
    )


@dataclass(frozen=True, kw_only=True)
class _Supervised(Training):
    """Training on labelled clips."""

    config: TrainConfig
    model: Tagger
    split: Split

    def sounds(self) -> Waves:
        config, rate = self.config, self.model.config.mel.sample_rate
        change = partial(
            wave_augment, config=config, rate=rate
        )  # unlike a closure it can be sent to a spawned worker
        mix = WaveMix(config.wave_mix, config.wave_mix_alpha) if config.wave_mix else None
        size = round(config.clip_s * rate)
        return Waves(self.clips, rate=rate, num_samples=size, seed=config.seed, augment=change, mix=mix)

    def job(self, folder: RunFolder) -> loop.Job:
        config, per_epoch = self.config, Fraction(self.epoch, self.config.batch)
        decay, layer_decay = config.weight_decay, config.layer_decay
        groups = optim.parameter_groups(
            self.model, decay, decay_all=config.decay_all, layer_decay=layer_decay
        )
        swa = optim.swa_steps(per_epoch, config.epochs, start=config.swa_start, every=config.swa_every)
        score = "accuracy" if self.clips.task == "multi_class" else "mAP"
        metric = f"{loop.AVERAGE if self.averages else ''}{score}"
        return replace(
            self.common_job(folder, optimizer=optim.adamw(groups, config.lr), rate=self._rate(per_epoch)),
            evaluate_every=config.evaluate_every,
            metric=metric if config.evaluate_every and len(self.split.validation) else "",
            result=config.result,
            swa=swa if config.swa_start else frozenset(),
        )

    def _rate(self, per_epoch: Fraction) -> Callable[[int], float]:
        config = self.config
        if config.schedule == "cosine":
            return partial(optim.cosine, steps=self.steps, warm_up=round(config.warm_up_epochs * per_epoch))
        return partial(
            optim.exp_ramp,
            steps_per_epoch=per_epoch,
            warm_up=round(config.warm_up_epochs),
            plateau_end=config.plateau_epochs,
            ramp=config.ramp_epochs,
            floor=config.floor,
        )

    def validate(self, model: nn.Module) -> Scores:
        """Scores on the clips held out to watch the run, which the processes share."""
        assert isinstance(model, Tagger)
        clips, world = self.split.validation, self.host.world
        if not len(clips):
            return {}
        mine = clips.take(range(world.process_index, len(clips), world.num_processes))
        part = evaluate.predict(model, mine, precision=self.config.precision, batch_size=EVALUATION_BATCH)
        predictions = evaluate.interleave(gather_object([part]))
        if not world.is_main_process:
            return {}
        self.tell_once((*predictions.failed, *predictions.warnings))
        return self._judge(predictions, clips).scores

    def _judge(self, predictions: evaluate.Predictions, clips: ClipSet) -> evaluate.Evaluation:
        """Scores of these predictions, by the values of the config's column too."""
        groups = evaluate.group_by(clips, self.config.by, self.clips) if self.config.by else {}
        shape = self.model.config
        return evaluate.judge(predictions, clips, labels=shape.labels, task=shape.task, groups=groups)

    def conclude(self, folder: RunFolder, scores: Scores) -> Scores:
        """Score the test split with the weights that the run reports, and write the report; returns the last
        word."""
        clips, which = (
            (self.split.test, "test") if len(self.split.test) else (self.split.validation, "validation")
        )
        if not len(clips):
            return scores
        path = folder.path / "model.safetensors"
        model = zoo.load(path, str(self.host.device))
        predictions = evaluate.predict(
            model, clips, precision=self.config.precision, batch_size=EVALUATION_BATCH
        )
        weights = f"{path.name}, the {self.config.result} of {self.steps} steps, on the {which} clips"
        labels, task = model.config.labels, model.config.task
        write_report(folder.path, predictions, clips, labels=labels, task=task, weights=weights)
        if which == "test":
            self.tell_once((*predictions.failed, *predictions.warnings))
        judged = self._judge(predictions, clips)
        if judged.absent:
            self.host.listener.tell(f"{which} clips: {judged.unscored}")
        if which == "test":
            self.save(model, path, judged.scores)
        write_json(
            folder.path / "scores.json",
            finite({"clips": which, "scores": judged.scores, "validation": scores}),
        )
        return judged.scores

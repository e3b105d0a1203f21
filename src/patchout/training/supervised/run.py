"""Supervised training from random or pre-trained weights: the run and its scores (PaSST, section 3)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

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
from patchout.inference.thresholds import decide, is_background
from patchout.models.tagger import Tagger, TaggerConfig
from patchout.training import loop, optim
from patchout.training import run as training
from patchout.training.provenance import cost, licences_of
from patchout.training.recipes import names, recipe
from patchout.training.run import MAY_CHANGE, SILENT, Host, Listener, Training
from patchout.training.run_folder import RunFolder
from patchout.training.signals import Signals
from patchout.training.supervised.channel_ensemble import EVALUATION_BATCH, each_channel
from patchout.training.supervised.config import TrainConfig
from patchout.training.supervised.data_split import Split, choose, is_labelled
from patchout.training.supervised.decision_report import DecisionReport, decision_report
from patchout.training.supervised.distillation import Distillation, Teacher, check_hearing, load_teachers
from patchout.training.supervised.frozen import NOTE, EmbeddedClips, HeadLoss, embed_clips
from patchout.training.supervised.initial_weights import find, start
from patchout.training.supervised.loss import StepLoss, class_weights, wave_augment
from patchout.training.supervised.model_config import begin_at_priors, freeze, model_config, num_columns
from patchout.training.supervised.repeats import Scores, repeat
from patchout.training.supervised.report import write_report
from patchout.training.supervised.score_cache import ScoreCache

__all__ = ["Listener", "TrainConfig", "run"]


def run(
    config: TrainConfig, listener: Listener = SILENT, *, restart: bool = False, accept_changes: bool = False
) -> Scores:
    """Train in the run folder `config.out`; returns the scores it reports, of seeds or folds their mean.

    The same call resumes a run that was stopped. Another config in the same folder is a ValueError that says
    what differs, unless `accept_changes`; `restart` moves the old run aside and begins anew. Processes that
    torchrun started share every batch, which keeps its size when another number of them resumes the run.
    """

    def single(config: TrainConfig) -> Scores:
        return training.run(config, _prepare, listener, restart=restart, accept_changes=accept_changes)

    train = single if config.channel != "each" else partial(each_channel, run=single)
    with Signals() as signals:
        signals.safe = True  # but for the steps, which hear of it by themselves
        return repeat(config, train) if config.seeds > 1 or config.folds else train(config)


def _prepare(config: TrainConfig, host: Host) -> "_Supervised":
    """Clips, model with its initial weights, and loss of a run."""
    processes = host.stored.get("processes", 1) if host.stored else host.world.num_processes
    config = replace(config, batch=config.batch * (processes if config.batch_per_process else 1))
    teachers = load_teachers(config.distill, torch.device("cpu") if config.distill_cache else host.device)
    split = choose(config, host.listener.on_problem, teachers[0].model.config if teachers else None)
    if config.thresholds and not len(split.validation):
        problem = "no clips are held out to choose thresholds on: set split or hold_out"
        if config.precision_at:
            raise ValueError(f"precision_at {config.precision_at:g}: {problem}")
        host.listener.on_problem(problem)
    held_out = split.validation
    if config.silent_at and not is_background(held_out.targets() > 0, held_out.knowns() > 0).any():
        problem = "no clip without a class is held out: add a class `background`"
        raise ValueError(f"silent_at {config.silent_at:g}: {problem}")
    clips, initial = split.training, find(config.init)
    shape = model_config(config, clips, initial.model.config if initial.model else None)
    model = start(shape, initial, rng=augment.keyed("weights", config.seed), device=host.device)
    if config.head_bias == "prior" and clips.task == "multi_label" and is_labelled(clips):
        begin_at_priors(model, clips)
    freeze(model, config.freeze)
    if config.freeze and host.world.num_processes > 1:
        raise ValueError("freeze encoder trains the last layer alone, in seconds: start it without torchrun")
    if config.draws > len(clips):
        raise ValueError(f"{config.draws} draws an epoch of {len(clips)} clips, none twice: lower draws")
    distillation, cache = _distillation(config, clips, teachers, model.config)
    weight = class_weights(clips) if config.balance == "loss" else torch.ones(len(clips.classes))
    published = recipe(config.recipe).config if config.recipe in names() else config
    columns, class_tokens = num_columns(shape, config.clip_s), shape.num_class_tokens
    patches = (shape.rows * columns, config.patchout.num_kept(shape.rows, columns))
    fixed = {"batch_per_process": False, "distill_cache": "computed before" if cache else ""}
    fixed |= {"embed_cache": ""}  # it holds what would be computed
    stored = {"processes": processes} if processes > 1 else {}  # for the batch when another number resumes
    return _Supervised(
        config=config,
        recipe=published,
        recipe_unit=" on one GPU" if published.batch_per_process else "",
        clips=clips,
        model=model,
        loss=(HeadLoss if config.freeze else StepLoss)(config, model.config, weight, distillation),
        host=host,
        tokens=(class_tokens + patches[0], 0 if config.freeze else class_tokens + patches[1]),
        may_change={**MAY_CHANGE, **fixed, **stored},
        classes=clips.classes,
        soft_targets=cache is not None,
        history={"init_licence": licences_of(initial.model.config)} if initial.model else {},
        sources={"teachers": [teacher.sha256 for teacher in teachers]} if teachers else {},
        averages=bool(config.ema or config.swa_start),
        draws=config.draws,
        draw_weights=balance_weights(clips) if config.balance == "sampling" and is_labelled(clips) else None,
        split=split,
        teachers=teachers,
        score_cache=cache,
    )


def _distillation(
    config: TrainConfig, clips: ClipSet, teachers: tuple[Teacher, ...], student: TaggerConfig
) -> tuple[Distillation | None, ScoreCache | None]:
    """The teachers' part of the loss, and the cache of their scores where there is one."""
    if not teachers:
        return None, None
    weight = config.distill_weight if is_labelled(clips) else 1.0
    if config.distill_cache:
        folder = Path(config.distill_cache).expanduser()
        return Distillation(weight, student), ScoreCache(folder, student, len(clips))
    check_hearing(teachers, student, config.clip_s)
    return Distillation(weight, student, teachers), None


@dataclass(frozen=True, kw_only=True)
class _Supervised(Training):
    """Training on labelled clips."""

    config: TrainConfig
    model: Tagger
    split: Split
    teachers: tuple[Teacher, ...]
    score_cache: ScoreCache | None

    @property
    def input_size(self) -> int:
        return self.model.config.width if self.config.freeze else super().input_size

    def begin(self) -> Iterable[str]:
        if self.config.freeze:
            return (NOTE,)
        return (self.score_cache.bind(self.clips, self.teachers),) if self.score_cache else ()

    def sounds(self) -> Waves | EmbeddedClips:
        config, rate = self.config, self.model.config.mel.sample_rate
        if config.freeze:
            return self._embedded
        change = partial(wave_augment, config=config, rate=rate)  # unlike a closure a spawned worker takes it
        mix = WaveMix(config.wave_mix, config.wave_mix_alpha) if config.wave_mix else None
        size = round(config.clip_s * rate)
        return Waves(
            self.clips,
            rate=rate,
            num_samples=size,
            seed=config.seed,
            augment=change,
            mix=mix,
            soft=self.score_cache,
        )

    @cached_property
    def _embedded(self) -> EmbeddedClips:
        return embed_clips(self.model, self.clips, self.config.precision, self.config.embed_cache)

    def job(self, folder: RunFolder) -> loop.Job:
        if self.score_cache:
            self.score_cache.fill(self.clips, self.teachers, self.host, self.config.precision)
        config, per_epoch = self.config, Fraction(self.epoch, self.config.batch)
        decay, layer_decay = config.weight_decay, config.layer_decay
        groups = optim.parameter_groups(
            self.model, decay, decay_all=config.decay_all, layer_decay=layer_decay
        )
        optimizer, rate = optim.adamw(groups, config.lr), self._rate(per_epoch)
        swa = optim.swa_steps(per_epoch, config.epochs, start=config.swa_start, every=config.swa_every)
        score = "accuracy" if self.clips.task == "multi_class" else "mAP"
        metric = f"{loop.AVERAGE if self.averages else ''}{score}"
        return replace(
            self.common_job(folder, optimizer=optimizer, rate=rate),
            evaluate_every=0 if config.freeze and config.result != "best" else config.evaluate_every,
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

    def validate(self, models: Sequence[nn.Module]) -> list[Scores]:
        """Scores on the validation split, decoded once, whose clips the processes share."""
        clips, world = self.split.validation, self.host.world
        if not len(clips):
            return [{} for _ in models]
        shard = clips.take(range(world.process_index, len(clips), world.num_processes))
        shares = gather_object([self._predict(models, shard)])  # of each process, a prediction a model
        if not world.is_main_process:
            return [{} for _ in models]
        joined = [evaluate.interleave(parts) for parts in zip(*shares, strict=True)]
        self.tell_once(chain.from_iterable((*part.failed, *part.warnings) for part in joined))
        return [self._judge(part, clips).scores for part in joined]

    def _predict(self, models: Sequence[nn.Module], clips: ClipSet) -> list[evaluate.Predictions]:
        taggers, precision = [model for model in models if isinstance(model, Tagger)], self.config.precision
        return evaluate.predict_each(taggers, clips, precision=precision, batch_size=EVALUATION_BATCH)

    def _judge(self, predictions: evaluate.Predictions, clips: ClipSet) -> evaluate.Evaluation:
        """Scores of these predictions, also for each value of the column `by`."""
        groups = evaluate.group_by(clips, self.config.by, self.clips) if self.config.by else {}
        shape = self.model.config
        return evaluate.judge(predictions, clips, labels=shape.labels, task=shape.task, groups=groups)

    def _decide(
        self, folder: RunFolder, model: Tagger, logits: evaluate.Predictions
    ) -> DecisionReport | None:
        """Calibrate the model and choose its thresholds on the validation clips, if the config says so.

        `logits` are those of the clips that the run reports.
        """
        config, validation, (name, clips) = self.config, self.split.validation, self.split.scored
        if not (config.thresholds and len(validation)):
            return None
        fitting = logits if name == "validation" else self._predict([model], validation)[0]
        aims = {"precision_at": config.precision_at, "silent_at": config.silent_at}
        fitted = decide(fitting, validation, model.config, **aims)
        model.config = replace(model.config, decision=fitted.decision)
        if remarks := fitted.summary(model.config.labels):
            self.host.listener.on_problem(remarks)
        return decision_report(
            folder.path / "report",
            logits,
            clips,
            config=model.config,
            fitted=fitted,
            is_validation=name == "validation",
        )

    def conclude(self, folder: RunFolder, scores: Scores) -> Scores:
        """Scores of model.safetensors on the test split, else the validation split; writes the report."""
        name, clips = self.split.scored
        if not len(clips):
            return scores
        path = folder.path / "model.safetensors"
        model = zoo.load(path, str(self.host.device))
        (predictions,) = self._predict([model], clips)
        weights = f"{path.name}, the {self.config.result} of {self.steps} steps, on the {name} clips"
        decided = self._decide(folder, model, predictions)
        calibrated = replace(predictions, scores=model.config.decision.scaled(predictions.scores))
        config = model.config
        report = write_report(folder.path, calibrated, clips, config=config, weights=weights, decided=decided)
        evaluation = self._judge(calibrated, clips)
        if decided:
            self.host.listener.on_problem(decided.verdict)
            evaluation.scores.update(decided.scores)
        if name == "test":
            self.tell_once((*predictions.failed, *predictions.warnings))
        self.history["intervals"] = {score: [*map(finite, ends)] for score, ends in report.intervals.items()}
        self.history["scored"] = f"{report.clips} clips, {name} split of {Path(self.config.data).name}"
        self.history["cost"] = cost(folder.path, self.host.device, self.host.world.num_processes)
        self.save(model, path, evaluation.scores)
        if evaluation.absent:
            self.host.listener.on_problem(f"{name} clips: {evaluation.unscored}")
        content = {"clips": name, "scores": evaluation.scores, "validation": scores}
        write_json(folder.path / "scores.json", finite(content))
        return evaluation.scores

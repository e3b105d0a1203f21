"""Split of the clips into training, validation and test sets."""

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from patchout.data.augment import keyed
from patchout.data.background import as_background, background_classes
from patchout.data.folders import TEST, TRAINING, VALIDATION
from patchout.data.sets import ClipSet, DataError, scan, scan_sounds
from patchout.inference.check.classes import findings
from patchout.inference.check.findings import worst
from patchout.models.decision import tuples
from patchout.models.tagger import TaggerConfig
from patchout.training.run_folder import stored_config, stored_data
from patchout.training.supervised.config import TrainConfig

FOLD = re.compile(r"(fold)?[\W_]*\d+", re.IGNORECASE)  # a split that is a fold


class Split(NamedTuple):
    """Three sets without a common clip; the last two may be empty."""

    training: ClipSet
    validation: ClipSet
    test: ClipSet

    @property
    def scored(self) -> tuple[str, ClipSet]:
        """Name and clips of the split whose scores a run reports: test, else validation."""
        return ("test", self.test) if len(self.test) else ("validation", self.validation)


def choose(
    config: TrainConfig, on_problem: Callable[[str], None], teacher: TaggerConfig | None = None
) -> Split:
    """Split the data set of a run; reports unusable rows and the worst that its lists say.

    Sounds without labels have the classes of `teacher`, and no clip of them is held out to be scored. Raises
    DataError for a split that does not exist, for one class only, for labels that are not the teacher's, and
    for a batch larger than the training set.
    """
    assert config.channel != "each", "channels are runs of their own"
    clips = replace(_scan(config, on_problem, teacher), channel=config.channel)
    for problem in (*clips.problems, *clips.notes):
        on_problem(problem)
    if clips.background and config.background == "auto":
        on_problem(f'{", ".join(clips.background)} is background, no class: --background "" makes it one')
    if len(clips.classes) < 2 and not clips.background and not clips.is_negative().any():
        raise DataError(f"{config.data}: one class only ({clips.classes[0]}): there is nothing to tell apart")
    watched, scored = (tuple(filter(None, [name])) for name in (config.split, config.test))
    labelled = is_labelled(clips)
    if not labelled:
        splits = {*clips.column("fold").tolist()}
        watched, scored = (tuple(splits.intersection(names)) for names in (watched, scored))
    elif not (config.split or config.test or config.exclude):
        watched, scored = named_splits(clips)
        for names, use in ((watched, "watches the run"), (scored, "is scored at its end")):
            if names:
                text = f"split {', '.join(names)} {use} and is not trained on"
                on_problem(f"{text}: --split, --test and --exclude choose")
    training = clips.without(*watched, *scored, *config.exclude)
    for line in _other_splits(training) if labelled else ():
        on_problem(line)
    validation, test = (clips.only(*names) if labelled else clips.take([]) for names in (watched, scored))
    if config.hold_out and labelled and not watched:
        mask = hold_out(training, config.hold_out)
        training, validation = training.take(np.flatnonzero(~mask)), training.take(np.flatnonzero(mask))
    if max(config.batch, 1) > len(training):
        todo = "lower --batch" + (" or start fewer processes" if config.batch_per_process else "")
        problem = f"a batch of {config.batch} is larger than the {len(training)} clips to train on"
        raise DataError(f"{config.data}: {problem}: {todo}")
    split = Split(training, validation, test)
    for line in _worst(config, split) if labelled else ():
        on_problem(line)
    return split


def num_trained_on(run: Path, clips: ClipSet) -> int:
    """How many of the clips are of files that the run in a folder was trained on.

    0 where that cannot be told: for other folders, and where the run's set is not what it was, or elsewhere.
    """
    values, data = stored_config(run), stored_data(run)
    names = {field.name for field in fields(TrainConfig)}
    if not names >= values.keys() >= {"hold_out", "folds"} or not Path(data["root"]).exists():
        return 0
    config = TrainConfig(**{**tuples(values), "data": data["root"], "out": run})
    try:
        training = choose(config, lambda text: None).training
    except DataError:
        return 0
    if training.ids_sha256() != data["ids_sha256"] or training.root.resolve() != clips.root.resolve():
        return 0
    files = {*training.files()}
    return sum(file in files for file in clips.files())


def _scan(config: TrainConfig, on_problem: Callable[[str], None], teacher: TaggerConfig | None) -> ClipSet:
    """The clips with their labels, or those of a student that has none, with the classes of its teacher."""
    if teacher is None:
        return _labelled(config)
    try:
        clips = _labelled(config)
    except DataError as error:
        sounds, reason = scan_sounds(config.data), str(error)  # raises where there are no sounds either
    else:
        strange = sorted({*clips.classes} ^ {*teacher.labels})
        if not strange and teacher.task in (clips.task, "multi_label"):
            return replace(clips, task=teacher.task)
        names = ", ".join(strange[:5]) + (" ..." if len(strange) > 5 else "")
        reason = f"{config.data}: not both it and the teachers know {names}"
        if not strange:
            reason = f"{config.data}: is {clips.task}, the teachers are {teacher.task}"
        if config.distill_weight < 1:
            todo = "choose teachers of these labels, or learn from the teachers alone (distill_weight 1)"
            raise DataError(f"{reason}: {todo}")
        sounds = scan_sounds(config.data)
    on_problem(f"{reason}: learns from the teachers alone, and no clip is held out to be scored")
    return replace(sounds, classes=teacher.labels, task=teacher.task)


def _labelled(config: TrainConfig) -> ClipSet:
    """The clips with their labels; background has none."""
    clips = scan(config.data)
    return as_background(clips, background_classes(clips, config.background))


def is_labelled(clips: ClipSet) -> bool:
    """Whether any clip has a label."""
    return bool(clips.class_counts().any())


def named_splits(clips: ClipSet) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Validation and test splits of a set, by their names.

    Beside no split called train, dev is the development set, which is trained on. Splits that leave nothing
    to train on are none.
    """
    splits = sorted({*clips.column("fold").tolist()})
    names = {split.casefold() for split in splits}
    validation = VALIDATION if names & TRAINING else VALIDATION - {"dev"}
    watched = tuple(split for split in splits if split.casefold() in validation)
    scored = tuple(split for split in splits if split.casefold() in TEST)
    return (watched, scored) if len(watched) + len(scored) < len(splits) else ((), ())


def _other_splits(training: ClipSet) -> Iterator[str]:
    """Which of several splits that are trained on are not called so; numbers are folds."""
    splits = training.column("fold")
    names = {*splits.tolist()}
    if ("fold" in training.columns and "split" not in training.columns) or len(names) < 2:
        return
    others = [name for name in sorted(names - {""}) if not (_is_training(name) or FOLD.fullmatch(name))]
    if not any(map(_is_training, names)):
        others = [name for name in others if name.casefold() != "dev"]  # the development set is for training
    if others:
        todo = "--split or --test has one scored, --exclude leaves one out"
        are = "splits {} are" if len(others) > 1 else "split {} is"
        yield f"{are.format(', '.join(others))} trained on: {todo}"
    if count := int((splits == "").sum()):
        todo = "write one into their rows if they are not for training"
        yield f"clips that name no split are trained on: {count}: {todo}"


def _is_training(split: str) -> bool:
    """Whether a split is called train or the like, also as balanced_train is."""
    return not TRAINING.isdisjoint(re.split(r"[\W_]+", split.casefold()))


def hold_out(clips: ClipSet, share: float) -> Bool[np.ndarray, "clip"]:
    """Stratified group hold-out: about `share` of every class, whole groups, always the same ones.

    A file without a group is its own. A class keeps a group on either side where it has two. Clips of no
    class count as a class.
    """
    targets = np.column_stack([clips.targets(), clips.is_negative()])
    total = targets.sum(axis=0)
    goal, count = np.maximum(1, np.round(share * total)), np.zeros_like(total)
    mask = np.zeros(len(clips), bool)
    _, group_of = np.unique(clips.groups(), return_inverse=True)
    groups = np.split(np.argsort(group_of, kind="stable"), np.cumsum(np.bincount(group_of))[:-1])
    seed = int(keyed("hold out").initial_seed())
    for group in np.random.default_rng(seed).permutation(len(groups)):
        added = targets[groups[group]].sum(axis=0)
        fits = (count + added < total) & ((count + added <= goal) | (count == 0))
        if fits[added > 0].all():
            mask[groups[group]] = True
            count += added
    return mask


def _worst(config: TrainConfig, split: Split) -> list[str]:
    """What lists say against the split: recordings on both sides, classes on one alone, small ones."""
    tables = []
    for name, clips in split._asdict().items():
        columns = {column: clips.table[column] for column in clips.table.column_names}
        tables.append(pa.table(columns | {"fold": pa.array([name] * len(clips), pa.string())}))
    clips = replace(split.training, table=pa.concat_tables(tables), problems=())
    return worst(findings(clips, background=""), config.data)

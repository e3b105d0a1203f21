"""Split of the clips into training, validation and test sets."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from patchout.data.augment import keyed
from patchout.data.folders import TEST, TRAINING, VALIDATION
from patchout.data.sets import ClipSet, DataError, scan
from patchout.training.supervised.config import TrainConfig


class Split(NamedTuple):
    """Three sets without a common clip; the last two may be empty."""

    training: ClipSet
    validation: ClipSet
    test: ClipSet

    @property
    def scored(self) -> tuple[str, ClipSet]:
        """Name and clips of the split whose scores a run reports: test, else validation."""
        return ("test", self.test) if len(self.test) else ("validation", self.validation)


def choose(config: TrainConfig, on_problem: Callable[[str], None]) -> Split:
    """Split the data set of a run; reports unusable rows, shared files or groups, classes with no clip.

    Raises DataError for a split that does not exist, for one class only, and for a batch larger than the
    training set.
    """
    assert config.channel != "each", "channels are runs of their own"
    clips = scan(config.data, channel=config.channel)
    for problem in (*clips.problems, *clips.notes):
        on_problem(problem)
    if len(clips.classes) < 2:
        raise DataError(f"{config.data}: one class only ({clips.classes[0]}): there is nothing to tell apart")
    watched, scored = (tuple(filter(None, [name])) for name in (config.split, config.test))
    if not (config.split or config.test or config.exclude):
        watched, scored = named_splits(clips)
        for names, use in ((watched, "watches the run"), (scored, "is scored at its end")):
            if names:
                text = f"split {', '.join(names)} {use} and is not trained on"
                on_problem(f"{text}: --split, --test and --exclude choose")
    training = clips.without(*watched, *scored, *config.exclude)
    validation, test = clips.only(*watched), clips.only(*scored)
    if config.hold_out and not watched:
        mask = hold_out(training, config.hold_out)
        training, validation = training.take(np.flatnonzero(~mask)), training.take(np.flatnonzero(mask))
    if max(config.batch, 1) > len(training):
        todo = "lower --batch" + (" or start fewer processes" if config.batch_per_process else "")
        problem = f"a batch of {config.batch} is larger than the {len(training)} clips to train on"
        raise DataError(f"{config.data}: {problem}: {todo}")
    for name, other in (("validation", validation), ("test", test)):
        if len(other):
            _report(name, training, other, on_problem)
    return Split(training, validation, test)


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


def hold_out(clips: ClipSet, share: float) -> Bool[np.ndarray, "clip"]:
    """Stratified group hold-out: about `share` of every class, whole groups, always the same ones.

    A file without a group is its own. A class keeps a group on either side where it has two.
    """
    targets = clips.targets()
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


def _report(name: str, training: ClipSet, other: ClipSet, on_problem: Callable[[str], None]) -> None:
    """Report what biases the scores of a held-out set: shared groups and files, classes on one side alone."""
    groups = {*other.column("group").tolist()}.intersection(training.column("group").tolist()) - {""}
    files = {*other.files()}.intersection(training.files())
    for kind, shared in (("groups", sorted(groups)), ("files", sorted(files))):
        if shared:
            text = f"{len(shared)} {kind} are trained on and held out ({', '.join(shared[:5])})"
            on_problem(f"{text}: the scores will be too good")
    for side, first, second in (("training", training, other), (name, other, training)):
        missing = np.flatnonzero((first.class_counts() == 0) & (second.class_counts() > 0))
        if len(missing):
            names = ", ".join(training.classes[index] for index in missing[:5])
            on_problem(f"no {side} clip of {len(missing)} classes ({names})")

"""Which clips are trained on, which are held out to watch the run, and which are scored once at its end."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from patchout.data.augment import keyed
from patchout.data.folders import TEST, TRAINING, VALIDATION
from patchout.data.sets import ClipSet, DataError, scan
from patchout.training.supervised.config import TrainConfig


class Split(NamedTuple):
    """Three sets without a common clip; the last two may be empty."""

    training: ClipSet
    validation: ClipSet
    test: ClipSet


def choose(config: TrainConfig, on_problem: Callable[[str], None]) -> Split:
    """The clips of a run; unusable rows, files or groups on both sides and classes missing on one are
    reported.

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
                on_problem(
                    f"split {', '.join(names)} {use} and is not trained on: --split, --test and --exclude choose"
                )
    training = clips.without(*watched, *scored, *config.exclude)
    validation, test = clips.only(*watched), clips.only(*scored)
    if config.hold_out and not watched:
        held = hold_out(training, config.hold_out)
        training, validation = training.take(np.flatnonzero(~held)), training.take(np.flatnonzero(held))
    if max(config.batch, 1) > len(training):
        have = f"the {len(training)} clips to train on"
        fewer = " or start fewer processes" if config.batch_per_process else ""
        raise DataError(
            f"{config.data}: a batch of {config.batch} is larger than {have}: lower --batch{fewer}"
        )
    for what, other in (("validation", validation), ("test", test)):
        _report(what, training, other, on_problem)
    return Split(training, validation, test)


def named_splits(clips: ClipSet) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The splits of a set that are called as those that watch a run, and as those that are scored at its end.

    Beside no split called train, dev is the development set, which is trained on. Splits that leave nothing
    to train on are none.
    """
    splits = sorted({*clips.column("fold").tolist()})
    names = {split.casefold() for split in splits}
    watch = VALIDATION if names & TRAINING else VALIDATION - {"dev"}
    watched = tuple(split for split in splits if split.casefold() in watch)
    scored = tuple(split for split in splits if split.casefold() in TEST)
    return (watched, scored) if len(watched) + len(scored) < len(splits) else ((), ())


def hold_out(clips: ClipSet, share: float) -> np.ndarray:
    """Which clips to hold out: (clip,) bool, about `share` of every class, whole groups, always the same
    ones.

    A file without a group is its own. A class keeps a group on either side where it has two.
    """
    group = clips.groups()
    targets = clips.targets()
    total = targets.sum(axis=0)
    wanted = np.maximum(1, np.round(share * total))
    found = np.zeros_like(total)
    held = np.zeros(len(clips), bool)
    order, members = np.unique(group, return_inverse=True)
    places = np.split(np.argsort(members, kind="stable"), np.cumsum(np.bincount(members))[:-1])
    seed = int(keyed("hold out").initial_seed())
    for place in np.random.default_rng(seed).permutation(len(order)):
        count = targets[places[place]].sum(axis=0)
        here = count > 0
        fits = (found + count < total) & ((found + count <= wanted) | (found == 0))
        if fits[here].all():
            held[places[place]] = True
            found += count
    return held


def _report(what: str, training: ClipSet, held: ClipSet, on_problem: Callable[[str], None]) -> None:
    """Say what makes the scores of a held-out set mean something else than they seem to."""
    if not len(held):
        return
    groups = {*held.column("group").tolist()}.intersection(training.column("group").tolist()) - {""}
    files = {*held.files()}.intersection(training.files())
    for kind, shared in (("groups", sorted(groups)), ("files", sorted(files))):
        if shared:
            names = ", ".join(shared[:5])
            on_problem(
                f"{len(shared)} {kind} are trained on and held out ({names}): the scores will be too good"
            )
    for name, first, second in (("training", training, held), (what, held, training)):
        missing = np.flatnonzero((first.class_counts() == 0) & (second.class_counts() > 0))
        if len(missing):
            names = ", ".join(training.classes[index] for index in missing[:5])
            on_problem(f"no {name} clip of {len(missing)} classes ({names})")

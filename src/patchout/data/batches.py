"""Clips -> batches that depend on (seed, step) alone, whatever the workers, ranks and restarts."""

import signal
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from patchout.data.augment import Labelled, WaveMix, fit, keyed, own_shares, uniform, wave_mix
from patchout.data.clips import LONG_S
from patchout.data.sets import ClipSet, DataError

CACHE_HOURS = 2.0  # sets up to this long are decoded once and kept in memory (460 MB an hour at 32 kHz)

Key = tuple[int, int]  # epoch, index of the clip
Augment = Callable[[Float[Tensor, "sample"], Generator], Float[Tensor, "sample"]]


class Item(NamedTuple):
    """One clip of a batch."""

    wave: Tensor  # (samples,)
    target: Tensor  # (classes,)
    weight: Tensor  # (classes,), (1,) without classes
    clip: int
    problem: str  # why the clip is silent, "" if it is not
    remarks: tuple[str, ...] = ()  # what is missing or odd in what was decoded for it


class Batch(NamedTuple):
    """What one process gets for a step; a clip that cannot be read is silence of zero weight and no class."""

    wave: Tensor  # (B, samples); from a cache of log-mels (B, frames, mels)
    target: Tensor  # (B, classes)
    weight: Tensor  # (B, classes): 0 where the label is not known; (B, 1) without classes
    clip: Tensor  # (B,) index into the training clips
    problems: tuple[str, ...]  # why clips could not be read
    remarks: tuple[str, ...] = ()  # what is missing or odd in those that could


class Waves(Dataset[Item]):
    """(epoch, index) -> a clip of fixed length, augmented and mixed by that key alone; a broken one is silence."""

    def __init__(
        self,
        clips: ClipSet,
        *,
        rate: int,
        num_samples: int,
        seed: int,
        crop: bool = False,
        augment: Augment | None = None,
        mix: WaveMix | None = None,
    ) -> None:
        """`augment` takes the whole waveform and a generator; without it and `crop` the first samples are taken."""
        self.clips = clips
        self.rate = rate
        self.num_samples = num_samples
        self.seed = seed
        self.crop = crop or augment is not None  # at random
        self.augment = augment
        self.mix = mix
        self.cache_samples = round(CACHE_HOURS * 3600 * rate)  # in all workers together
        self._cached_samples = 0
        self._cache: dict[int, Tensor] = {}
        self._remarks: list[str] = []  # since the last item

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: Key) -> Item:
        epoch, index = key
        try:
            one = self._clip(index, keyed("clip", self.seed, epoch, index))
        except DataError as error:
            return broken(torch.zeros(self.num_samples), self.clips, index, error)
        rng = keyed("mix", self.seed, epoch, index)
        if self.mix is None or uniform(0.0, 1.0, rng) >= self.mix.probability:
            return self._weighed(one, index)
        other = int(torch.randint(len(self), (), generator=rng))
        own = float(own_shares(self.mix.alpha, 1, rng))
        try:
            return self._weighed(wave_mix(one, self._clip(other, rng), own), index)
        except DataError as error:
            return self._weighed(one, index, str(error))

    def _weighed(self, one: Labelled, index: int, problem: str = "") -> Item:
        """A clip by the weight that its set gives it."""
        known = one.known if self.clips.classes else torch.ones(1)
        remarks, self._remarks = tuple(self._remarks), []
        return Item(one.wave, one.target, known * self.clips.weight(index), index, problem, remarks)

    def _clip(self, index: int, rng: Generator) -> Labelled:
        """One clip by itself."""
        wave = self._decode(index, rng)
        wave = self.augment(wave, rng) if self.augment else wave
        wave = fit(wave, self.num_samples, rng if self.crop else None)
        return Labelled(wave, self.clips.target(index), self.clips.known(index))

    def _decode(self, index: int, rng: Generator) -> Tensor:
        """The clip's waveform, kept in memory while the set is small; workers share what may be kept."""
        if index in self._cache:
            return self._cache[index]
        wave, remark = self.clips.heard(index, self.rate, rng if self.crop else None)
        self._remarks += [remark] if remark else []
        worker = get_worker_info()
        room = self.cache_samples / (worker.num_workers if worker else 1) - self._cached_samples
        if len(wave) <= room and len(wave) < LONG_S * self.rate:
            self._cache[index] = wave
            self._cached_samples += len(wave)
        return wave


def broken(nothing: Tensor, clips: ClipSet, index: int, error: DataError) -> Item:
    """`nothing` in the place of a clip that cannot be read: of no class and of no weight."""
    return Item(
        nothing, torch.zeros(len(clips.classes)), torch.zeros(max(1, len(clips.classes))), index, str(error)
    )


def balance_weights(clips: ClipSet) -> Float[Tensor, "clip"]:
    """How likely each clip is drawn: the sum of 1000 / (100 + clips of the class) over its classes, as published."""
    owners, classes = clips.positives()
    weights = np.zeros(len(clips))
    np.add.at(weights, owners, (1000 / (100 + clips.class_counts()))[classes])
    return torch.from_numpy(weights).float()


def share(clips: int, rank: int, world: int) -> range:
    """Which of the clips that are computed at a time process `rank` of `world` gets: equal shares, but for one clip.

    The last process has the largest share. Fewer clips than processes are a ValueError.
    """
    if clips < world:
        todo = f"raise --batch, lower --parts, or start at most {clips}"
        raise ValueError(f"{clips} clips at a time are too few for {world} processes, each needs one: {todo}")
    return range(rank * clips // world, (rank + 1) * clips // world)


class StepSampler(Sampler[list[Key]]):
    """The batches of steps `first` ... `last` - 1 of an endless pass over the clips, drawn anew in every epoch.

    Step s holds positions s * batch ... of the epochs laid end to end: nothing is padded or repeated, and any step can
    be the first. An epoch is every clip once, or `draws` of them, by `weights` where there are any. `batch` counts the
    clips of all processes; process `rank` of `world` gets its `share` of it.
    """

    def __init__(
        self,
        num_clips: int,
        batch: int,
        *,
        seed: int,
        first: int,
        last: int,
        rank: int = 0,
        world: int = 1,
        draws: int | None = None,
        weights: Float[Tensor, "clip"] | None = None,
    ) -> None:
        choice = num_clips if weights is None else int((weights > 0).sum())
        if choice < 1:
            raise DataError("no clips to train on")
        if draws is not None and not 1 <= draws <= choice:
            raise ValueError(f"{draws} draws an epoch, each from the clips that are left: give 1 to {choice}")
        self.num_clips = num_clips
        self.batch = batch
        self.seed = seed
        self.first = first
        self.last = last
        self.weights = weights
        self.epoch_clips = draws or choice
        self.mine = share(batch, rank, world)

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[Key]]:
        order, epoch_of_order = torch.empty(0), -1
        for step in range(self.first, self.last):
            keys: list[Key] = []
            for place in self.mine:
                epoch, position = divmod(step * self.batch + place, self.epoch_clips)
                if epoch != epoch_of_order:
                    order, epoch_of_order = self._order(epoch), epoch
                keys.append((epoch, int(order[position])))
            yield keys

    def _order(self, epoch: int) -> Tensor:
        """The clips of an epoch, none twice."""
        rng = keyed("order", self.seed, epoch)
        if self.weights is None:
            return torch.randperm(self.num_clips, generator=rng)
        drawn = torch.multinomial(self.weights, self.epoch_clips, generator=rng)
        return drawn[torch.randperm(len(drawn), generator=rng)]  # heavy clips tend to be drawn first


def batches(waves: Dataset[Item], sampler: StepSampler, *, workers: int) -> DataLoader[Item]:
    """A loader of `Batch`; workers are spawned."""
    context = "spawn" if workers else None
    return DataLoader(
        waves,
        batch_sampler=sampler,
        num_workers=workers,
        multiprocessing_context=context,
        collate_fn=_stack,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=leave_to_parent,
    )


def leave_to_parent(worker: int) -> None:
    """Make a loader's worker deaf to SIGTERM and Ctrl-C: they often go to a whole group, and its parent decides."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _stack(items: list[Item]) -> Batch:
    """Items side by side; a worker puts all of them into shared memory here: copying later, it aborts when stopped."""
    *tensors, clip, problems, remarks = zip(*items, strict=True)
    wave, target, weight, clips = (
        default_collate(list(part)) for part in (*tensors, map(torch.tensor, clip))
    )
    return Batch(
        wave, target, weight, clips, tuple(filter(None, problems)), tuple(chain.from_iterable(remarks))
    )

"""Batches of clips that depend on (seed, step) alone, whatever the workers, processes and restarts."""

import atexit
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from patchout.data.augment import Labelled, WaveMix, fit, keyed, mixing_weights, uniform, wave_mix
from patchout.data.clips import LONG_S
from patchout.data.sets import ClipSet, DataError

CACHE_HOURS = 2.0  # sets up to this long are decoded once and kept in memory (460 MB an hour at 32 kHz)
SHARED_BYTES = 2**32  # that the batches of all workers may take before each makes one ahead, not two
SHARED = Path("/dev/shm")  # where they lie on Linux

Key = tuple[int, int]  # epoch, index of the clip
Augment = Callable[[Float[Tensor, "sample"], Generator], Float[Tensor, "sample"]]
SoftTargets = Callable[[int], tuple[Float[Tensor, "class"], bool]]  # clip -> scores, and whether it has any


class Item(NamedTuple):
    """One clip of a batch: waveform or log-mel, target, loss weight, and remarks about its sound."""

    wave: Tensor  # (samples,)
    target: Tensor  # (classes,), with soft targets (2 classes,)
    weight: Tensor  # as the target; (1,) without classes
    clip: int
    problem: str  # why the clip is silent, "" if it is not
    remarks: tuple[str, ...] = ()  # what is missing or odd in what was decoded for it


class Batch(NamedTuple):
    """The clips of a process for one step; one that cannot be read is silence of zero weight, no class."""

    wave: Tensor  # (B, samples); from a cache of log-mels (B, frames, mels)
    target: Tensor  # (B, classes), with soft targets (B, 2 classes): those stand behind the labels
    weight: Tensor  # as the target: 0 where the label is not known; (B, 1) without classes
    clip: Tensor  # (B,) index into the training clips
    problems: tuple[str, ...]  # why clips could not be read
    remarks: tuple[str, ...] = ()  # what is missing or odd in those that could


@dataclass(eq=False)
class Waves(Dataset[Item]):
    """(epoch, index) -> a clip of fixed length, augmented and mixed by this key; a broken one is silence.

    `augment` takes the whole waveform and a generator; without it and `crop` the first samples are taken.
    `soft` gives further targets of a whole clip, which are mixed as its labels are.
    """

    clips: ClipSet
    _: KW_ONLY
    rate: int  # Hz
    num_samples: int
    seed: int
    crop: bool = False  # at random, as always with `augment`
    augment: Augment | None = None
    mix: WaveMix | None = None
    soft: SoftTargets | None = None

    def __post_init__(self) -> None:
        """Begin with an empty cache of decoded clips."""
        self.cache_samples = round(CACHE_HOURS * 3600 * self.rate)  # in all workers together
        self._cached_samples = 0
        self._cache: dict[int, Tensor] = {}
        self._remarks: list[str] = []  # since the last item

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def clip_bytes(self) -> int:
        """Memory of a clip in a batch."""
        return 4 * self.num_samples

    def __getitem__(self, key: Key) -> Item:
        epoch, index = key
        try:
            clip = self._clip(index, keyed("clip", self.seed, epoch, index))
        except DataError as error:
            zeros = torch.zeros(self.num_samples)
            return silent(zeros, self.clips, index, error, soft=self.soft is not None)
        rng, problem = keyed("mix", self.seed, epoch, index), ""
        if self.mix is not None and uniform(0.0, 1.0, rng) < self.mix.probability:
            partner = int(torch.randint(len(self), (), generator=rng))
            weight = float(mixing_weights(self.mix.alpha, 1, rng))
            try:
                clip = wave_mix(clip, self._clip(partner, rng), weight)
            except DataError as error:
                problem = str(error)
        known = clip.known if self.clips.classes else torch.ones(1)
        remarks, self._remarks = tuple(self._remarks), []
        return Item(clip.wave, clip.target, known * self.clips.weight(index), index, problem, remarks)

    def _clip(self, index: int, rng: Generator) -> Labelled:
        """One clip, augmented and cut to length, not mixed."""
        crop_rng = rng if self.crop or self.augment else None
        wave = self._decode(index, crop_rng)
        wave = self.augment(wave, rng) if self.augment else wave
        target, known = self.clips.target(index), self.clips.known(index)
        if self.soft is not None:
            scores, is_scored = self.soft(index)
            target = torch.cat([target, scores])
            known = torch.cat([known, torch.full_like(scores, float(is_scored))])
        return Labelled(fit(wave, self.num_samples, crop_rng), target, known)

    def _decode(self, index: int, rng: Generator | None) -> Tensor:
        """The clip's waveform, cached while the set is small; the workers share the room."""
        if index in self._cache:
            return self._cache[index]
        wave, remark = self.clips.decode(index, self.rate, rng)
        self._remarks += [remark] if remark else []
        worker = get_worker_info()
        room = self.cache_samples / (worker.num_workers if worker else 1) - self._cached_samples
        if len(wave) <= room and len(wave) < LONG_S * self.rate:
            self._cache[index] = wave
            self._cached_samples += len(wave)
        return wave


def silent(zeros: Tensor, clips: ClipSet, index: int, error: DataError, *, soft: bool = False) -> Item:
    """Silence of no class and no weight, in the place of a clip that cannot be read."""
    classes = len(clips.classes) * (2 if soft else 1)
    return Item(zeros, torch.zeros(classes), torch.zeros(max(1, classes)), index, str(error))


def balance_weights(clips: ClipSet) -> Float[Tensor, "clip"]:
    """Class-balanced sampling weights: the sum of 1000 / (100 + clips of the class) over a clip's classes.

    Clips that are known to be of no class (background, negative labels) are drawn like one.
    """
    owners, classes = clips.positives()
    weights = np.bincount(owners, (1000 / (100 + clips.class_counts()))[classes], len(clips))
    if clips.background or "known" in clips.table.column_names:
        negative = clips.is_negative()
        weights[negative] = 1000 / (100 + negative.sum())
    return torch.from_numpy(weights).float()


def share(clips: int, rank: int, world: int) -> range:
    """The places of a batch that process `rank` of `world` computes: equal shares, but for one clip.

    The last process has the largest share. Fewer clips than processes are a ValueError.
    """
    if clips < world:
        todo = f"raise --batch, lower --parts, or start at most {clips}"
        raise ValueError(f"{clips} clips at a time are too few for {world} processes, each needs one: {todo}")
    return range(rank * clips // world, (rank + 1) * clips // world)


@dataclass(frozen=True, eq=False)
class StepSampler(Sampler[list[Key]]):
    """The batches of steps `first` to `last` - 1 of endless epochs, each in an order of its own.

    Step s holds positions s * batch ... of the epochs laid end to end: nothing is padded or repeated, and any
    step can be the first. An epoch is every clip once, or `draws` of them, by `weights` where there are any.
    `batch` counts the clips of all processes; process `rank` of `world` gets its `share` of it.
    """

    num_clips: int
    batch: int
    _: KW_ONLY
    seed: int
    first: int
    last: int
    rank: int = 0
    world: int = 1
    draws: int | None = None
    weights: Float[Tensor, "clip"] | None = None

    def __post_init__(self) -> None:
        """Refuse an empty epoch, and one of more draws than clips."""
        if self._candidates < 1:
            raise DataError("no clips to train on")
        if self.draws is not None and not 1 <= self.draws <= self._candidates:
            allowed = f"each from the clips that are left: give 1 to {self._candidates}"
            raise ValueError(f"{self.draws} draws an epoch, {allowed}")
        share(self.batch, self.rank, self.world)

    @property
    def _candidates(self) -> int:
        """Clips that may be drawn."""
        return self.num_clips if self.weights is None else int((self.weights > 0).sum())

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[Key]]:
        order, epoch_of_order, size = torch.empty(0), -1, self.draws or self._candidates
        for step in range(self.first, self.last):
            keys: list[Key] = []
            for place in share(self.batch, self.rank, self.world):
                epoch, position = divmod(step * self.batch + place, size)
                if epoch != epoch_of_order:
                    order, epoch_of_order = self._order(epoch, size), epoch
                keys.append((epoch, int(order[position])))
            yield keys

    def _order(self, epoch: int, size: int) -> Tensor:
        """The clips of an epoch, none twice."""
        rng = keyed("order", self.seed, epoch)
        if self.weights is None:
            return torch.randperm(self.num_clips, generator=rng)
        drawn = torch.multinomial(self.weights, size, generator=rng)
        return drawn[torch.randperm(len(drawn), generator=rng)]  # heavy clips tend to be drawn first


def num_ahead(batch_bytes: int, workers: int) -> int:
    """Batches that each worker makes ahead, in shared memory: two, or one where they are large."""
    return 2 if 2 * workers * batch_bytes <= SHARED_BYTES else 1


def shared_memory_note(batch_bytes: int, workers: int) -> str:
    """What helps where shared memory may not hold the batches made ahead, as in a container; else ""."""
    if not (workers and SHARED.is_dir()):
        return ""
    needed, free = workers * num_ahead(batch_bytes, workers) * batch_bytes, shutil.disk_usage(SHARED).free
    todo = "give more (docker run --shm-size), lower --workers, or raise --parts"
    sizes = f"up to {needed / 1e9:.2f} GB of shared memory, {SHARED} has {free / 1e9:.2f} free"
    return "" if needed <= free else f"the batches of {workers} workers take {sizes}: {todo}"


def batches(
    waves: Dataset[Item],
    sampler: StepSampler,
    *,
    workers: int,
    pin_memory: bool = False,
    batch_bytes: int = 0,
) -> DataLoader[Item]:
    """A data loader of `Batch`, whose workers are spawned; `pin_memory` is for training on CUDA.

    `batch_bytes`, the memory of a batch, decides how many are made ahead.
    """
    return DataLoader(
        waves,
        batch_sampler=sampler,
        num_workers=workers,
        prefetch_factor=num_ahead(batch_bytes, workers) if workers else None,
        multiprocessing_context="spawn" if workers else None,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=begin_worker,
    )


def begin_worker(worker: int) -> None:
    """Let a loader's worker end at once: its interpreter would abort while a thread still copies a batch."""
    ignore_signals(worker)
    atexit.register(os._exit, 0)


def ignore_signals(worker: int) -> None:
    """Ignore SIGTERM and Ctrl-C in a loader's worker: sent to a whole group, they are the parent's."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _collate(items: list[Item]) -> Batch:
    """Items stacked; a worker moves them into shared memory here: copying later, it aborts when stopped."""
    *tensors, clips, problems, remarks = zip(*items, strict=True)
    wave, target, weight = (default_collate(list(part)) for part in tensors)
    clip = default_collate(list(map(torch.tensor, clips)))
    problems, remarks = tuple(filter(None, problems)), tuple(chain.from_iterable(remarks))
    return Batch(wave, target, weight, clip, problems, remarks)

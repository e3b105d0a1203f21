"""Labelled sounds on disk: a folder per class or a CSV -> clips -> batches that depend on (seed, step) alone."""

import csv
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from patchout import audio
from patchout.augment import fit, keyed
from patchout.errors import InputError

SUFFIXES = frozenset(
    (
        *(".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".caf", ".au"),
        *(".m4a", ".aac", ".mp4", ".webm", ".wma", ".mka", ".mkv", ".mov", ".3gp", ".amr", ".ac3"),
    )
)
FILE_COLUMNS = ("filename", "file", "path")
LABEL_COLUMNS = ("category", "label", "labels")
CACHE_HOURS = 2.0  # sets up to this long are decoded once and kept in memory (460 MB an hour at 32 kHz)


class DataError(InputError):
    """A data set that cannot be used as it is."""


@dataclass(frozen=True)
class Clip:
    """One labelled sound; `fold` is the CSV's split, else its fold."""

    file: Path
    labels: tuple[str, ...]
    fold: str = ""
    group: str = ""
    start_s: float = 0.0
    end_s: float | None = None


@dataclass(frozen=True)
class ClipSet:
    """The clips of a data set, its classes in alphabetical order, and each unusable row with its reason."""

    root: Path
    clips: tuple[Clip, ...]
    classes: tuple[str, ...]
    task: Literal["multi_class", "multi_label"]
    problems: tuple[str, ...] = ()

    def only(self, *folds: str) -> "ClipSet":
        """The clips of these folds; an unknown fold is a DataError that lists the known ones."""
        self._check(folds)
        return replace(self, clips=tuple(clip for clip in self.clips if clip.fold in folds))

    def without(self, *folds: str) -> "ClipSet":
        """The clips of all other folds."""
        self._check(folds)
        return replace(self, clips=tuple(clip for clip in self.clips if clip.fold not in folds))

    def targets(self, classes: Sequence[str] | None = None) -> Float[np.ndarray, "clip class"]:
        """One row a clip with 1 at its labels, in the order of `classes` (the set's own by default)."""
        place = {name: index for index, name in enumerate(classes or self.classes)}
        if strange := sorted({label for clip in self.clips for label in clip.labels} - place.keys()):
            known = f"{', '.join(sorted(place)[:8])}{' ...' if len(place) > 8 else ''} ({len(place)} classes)"
            raise DataError(f"{self.root}: labels {strange[:8]} are none of the model's: it knows {known}")
        targets = np.zeros((len(self.clips), len(place)), np.float32)
        for row, clip in enumerate(self.clips):
            targets[row, [place[label] for label in clip.labels]] = 1.0
        return targets

    def _check(self, folds: Sequence[str]) -> None:
        known = sorted({clip.fold for clip in self.clips} - {""})
        if unknown := [fold for fold in folds if fold not in known]:
            none = 'its clips name none: add a CSV with a column split or fold, or give an empty one (--split "")'
            have = f"it has {', '.join(known)}" if known else none
            raise DataError(f"{self.root}: no split or fold {', '.join(unknown)}: {have}")


def scan(root: str | os.PathLike[str]) -> ClipSet:
    """Read a data set: a folder with one CSV on top, else a folder with one sub-folder per class.

    The CSV needs a column filename, file or path (beside it, or in `audio/`) and one of category, label (one name) or
    labels (several, separated by ; or ,); it may have fold, split, group, start and end (seconds).
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder: give a folder of class folders, or one with a CSV on top")
    tables = sorted(path for path in folder.glob("*.csv") if not path.name.startswith("."))
    if len(tables) > 1:
        raise DataError(f"{folder}: {len(tables)} CSV files on top ({', '.join(t.name for t in tables)}): leave one")
    clips, problems = _read_table(tables[0]) if tables else (_read_folders(folder), [])
    if not clips:
        why = problems[0] if problems else "no class folders with sounds, and no CSV"
        raise DataError(f"{folder}: no clips ({why})")
    classes = tuple(sorted({label for clip in clips for label in clip.labels}))
    several = any(len(clip.labels) != 1 for clip in clips)
    return ClipSet(folder, tuple(clips), classes, "multi_label" if several else "multi_class", tuple(problems))


def is_sound(path: Path) -> bool:
    """Whether a file's name says that it holds sound."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _read_folders(root: Path) -> list[Clip]:
    """Every sound below a sub-folder belongs to the class of that name, whatever the name is."""
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [
        Clip(path, (folder.name,))
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and is_sound(path)
    ]


def _read_table(table: Path) -> tuple[list[Clip], list[str]]:
    """Clips of a CSV, and its unusable rows by line number."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or ()
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a table ({error}): save it as CSV in UTF-8") from None
    file_column = next((name for name in FILE_COLUMNS if name in header), None)
    label_column = next((name for name in LABEL_COLUMNS if name in header), None)
    if file_column is None or label_column is None:
        wanted = f"one of {', '.join(FILE_COLUMNS)} and one of {', '.join(LABEL_COLUMNS)}"
        raise DataError(f"{table}: needs the columns {wanted}, its header is {', '.join(header) or 'empty'}")
    clips, problems = [], []
    for line, row in rows:
        try:
            clips.append(_row(row, table.parent, file_column, label_column))
        except (ValueError, FileNotFoundError) as error:
            problems.append(f"{table.name} line {line}: {error}")
    return clips, problems


def _row(row: dict[str, str], folder: Path, file_column: str, label_column: str) -> Clip:
    """One row of a CSV."""
    name = (row[file_column] or "").strip()
    places = [folder / name, folder / "audio" / name]
    path = next((place for place in places if name and place.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"no file {name!r} beside it or in audio/")
    text = (row[label_column] or "").strip()
    labels = [text]
    if label_column == "labels":
        labels = [label.strip() for label in text.replace(";", ",").split(",")]
    if not all(labels):
        raise ValueError(f"no label for {name}")
    start_s, end_s = float(row.get("start") or 0.0), float(row.get("end") or math.inf)
    if not 0 <= start_s < end_s:
        raise ValueError(f"{name} cannot start at {start_s:g} s and end at {end_s:g} s")
    return Clip(
        path,
        tuple(dict.fromkeys(labels)),
        fold=(row.get("split") or row.get("fold") or "").strip(),
        group=(row.get("group") or "").strip(),
        start_s=start_s,
        end_s=end_s if end_s < math.inf else None,
    )


# -- batches ----------------------------------------------------------------------------------------------------------

Key = tuple[int, int]  # epoch, index of the clip
Item = tuple[Tensor, Tensor, int]
Batch = tuple[Tensor, Tensor, Tensor]  # waves (B, samples), targets (B, classes), clip numbers (B,)
Augment = Callable[[Float[Tensor, "sample"], Generator], Float[Tensor, "sample"]]


class Waves(Dataset[Item]):
    """(epoch, index) -> a clip of fixed length (samples,), augmented by that key alone, its target, its index."""

    def __init__(
        self, clips: ClipSet, *, rate: int, num_samples: int, seed: int, augment: Augment | None = None
    ) -> None:
        """`augment` takes the whole waveform and a generator; without it the first `num_samples` are returned."""
        self.clips = clips
        self.rate = rate
        self.num_samples = num_samples
        self.seed = seed
        self.augment = augment
        self.targets = torch.from_numpy(clips.targets())
        self._cached_samples = 0
        self._cache: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.clips.clips)

    def __getitem__(self, key: Key) -> Item:
        epoch, index = key
        wave = self._decode(index)
        if self.augment is None:
            return fit(wave, self.num_samples), self.targets[index], index
        rng = keyed("clip", self.seed, epoch, index)
        return fit(self.augment(wave, rng), self.num_samples, rng), self.targets[index], index

    def _decode(self, index: int) -> Tensor:
        """The clip's waveform, kept in memory while the set is small."""
        if index in self._cache:
            return self._cache[index]
        clip = self.clips.clips[index]
        try:
            wave = torch.from_numpy(audio.load(clip.file, self.rate, start_s=clip.start_s, end_s=clip.end_s))
        except audio.AudioError as error:
            raise DataError(str(error)) from error
        if self._cached_samples + len(wave) <= CACHE_HOURS * 3600 * self.rate:
            self._cache[index] = wave
            self._cached_samples += len(wave)
        return wave


class StepSampler(Sampler[list[Key]]):
    """The batches of steps `first` ... `last` - 1 of an endless pass over the clips, shuffled anew in every epoch.

    Step s holds positions s * batch ... of the epochs laid end to end: nothing is padded, dropped or repeated, and any
    step can be the first.
    """

    def __init__(self, num_clips: int, batch: int, *, seed: int, first: int, last: int) -> None:
        if num_clips < 1:
            raise DataError("no clips to train on")
        self.num_clips = num_clips
        self.batch = batch
        self.seed = seed
        self.first = first
        self.last = last

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[Key]]:
        order, epoch_of_order = torch.empty(0), -1
        for step in range(self.first, self.last):
            keys: list[Key] = []
            for position in range(step * self.batch, (step + 1) * self.batch):
                epoch, rank = divmod(position, self.num_clips)
                if epoch != epoch_of_order:
                    order = torch.randperm(self.num_clips, generator=keyed("order", self.seed, epoch))
                    epoch_of_order = epoch
                keys.append((epoch, int(order[rank])))
            yield keys


def batches(waves: Waves, sampler: StepSampler, *, workers: int) -> DataLoader[Item]:
    """A loader of (batch, samples), (batch, classes) and clip numbers (batch,); workers are spawned."""
    context = "spawn" if workers else None
    return DataLoader(
        waves, batch_sampler=sampler, num_workers=workers, multiprocessing_context=context, collate_fn=_stack
    )


def _stack(items: list[Item]) -> Batch:
    """Items side by side, as a tuple."""
    wave, target, clip = zip(*items, strict=True)
    return torch.stack(wave), torch.stack(target), torch.tensor(clip)

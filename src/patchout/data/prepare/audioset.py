"""AudioSet in its three forms: lists with sound files, HDF5 of the public code, Parquet of the hub."""

import csv
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from patchout.checkpoint.labels import label_names
from patchout.data.folders import walk
from patchout.data.prepare.listing import Clip, LayoutError, Listing, Places

OFFICIAL = {"balanced_train": 22_160, "unbalanced_train": 2_041_789, "eval": 20_371}  # clips in the lists
WORDS = ("eval", "eval"), ("test", "eval"), ("unbal", "unbalanced_train"), ("bal", "balanced_train")
ID_LETTERS = 11  # of a YouTube id
ROWS = 4096  # of a container, whose labels are read at a time

Reader = Callable[[Path, str], Iterator[Clip]]  # a file and its split -> its clips


def read(splits: Sequence[str], root: Path) -> Listing:
    """These splits of AudioSet, 527 classes in the published order; a clip's id is the YouTube id."""
    hub: dict[str, list[Path]] = {split: [] for split in splits}
    for path in sorted(root.rglob("*.parquet")):
        name = str(path.relative_to(root)).lower()
        hub.get(next((split for word, split in WORDS if word in name), ""), []).append(path)
    by_reader: dict[Reader, dict[str, list[Path]]] = {
        _hdf5: {split: sorted(root.rglob(f"{split}_segments_mp3.hdf")) for split in splits},
        _parquet: hub,
        _list: {split: sorted(root.rglob(f"{split}_segments.csv")) for split in splits},
    }
    reader, files = max(by_reader.items(), key=lambda item: sum(map(bool, item[1].values())))
    if missing := [split for split in splits if not files[split]]:
        names = ", ".join(f"{split}_segments.csv" for split in splits)
        forms = f"{names} with the sounds below, or such files ending in _mp3.hdf"
        hub_form = "Parquet files of the hub with bal, unbal and eval in their names"
        raise LayoutError(f"{root}: AudioSet needs {forms}, or {hub_form}; missing: {', '.join(missing)}")
    official = None if reader is _list else {split: OFFICIAL[split] for split in splits}
    return Listing(label_names("audioset"), "multi_label", _Clips(root, files, reader), official=official)


@dataclass(frozen=True)
class _Clips:
    """The clips of all files; those of lists with the sound files below the folder."""

    root: Path
    files: dict[str, list[Path]]
    read: Reader

    def __iter__(self) -> Iterator[Clip]:
        for split, files in self.files.items():
            for path in files:
                for clip in self.read(path, split):
                    yield clip if clip.file else clip._replace(file=self.sounds.get(clip.id, ""))

    @cached_property
    def sounds(self) -> dict[str, str]:
        """YouTube id -> sound file, called Y<id>.wav, <id>.mp3, <id>_30.000.flac or the like."""
        return {_id(Path(path).stem): path for path in walk(self.root, lambda problem: None)}


def _list(path: Path, split: str) -> Iterator[Clip]:
    """An official list: comments, then id, start, end, "labels"."""
    place = Places(_mids())
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.reader((line for line in file if not line.startswith("# ")), skipinitialspace=True):
            if len(row) != 4:
                raise LayoutError(f"{path}: {','.join(row)!r} is not id, start, end and labels")
            yield Clip(row[0], "", tuple(place[label] for label in row[3].split(",")), split)


def _hdf5(path: Path, split: str) -> Iterator[Clip]:
    """`audio_name`, `mp3` (a file's bytes) and `target` (bits, the first class in the highest one)."""
    if importlib.util.find_spec("h5py") is None:
        raise LayoutError(f"{path}: HDF5 needs h5py: pip install 'patchout[hdf5]'")
    import h5py

    with h5py.File(path) as file:
        for first in range(0, len(file["audio_name"]), ROWS):
            bits = np.unpackbits(file["target"][first : first + ROWS], axis=1, count=len(_mids()))
            for row, name in enumerate(file["audio_name"][first : first + ROWS]):
                labels = tuple(np.flatnonzero(bits[row]).tolist())
                yield Clip(_id(Path(name.decode()).stem), str(path), labels, split, row=first + row)


def _parquet(path: Path, split: str) -> Iterator[Clip]:
    """`audio` (struct of bytes and path) and `labels` or `human_labels`: indices, identifiers or names."""
    place = Places(label_names("audioset"))
    place.update((mid, index) for index, mid in enumerate(_mids()))
    with pq.ParquetFile(path, pre_buffer=False) as file:
        columns = set(file.schema_arrow.names)
        column = next((name for name in ("labels", "human_labels") if name in columns), "")
        if not column:
            raise LayoutError(f"{path}: has no column labels or human_labels")
        names = ["video_id" if "video_id" in columns else "audio.path", column]
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=names, use_threads=False)
            for number, row in enumerate(rows.to_pylist()):
                labels = {label if isinstance(label, int) else place[label] for label in row[column]}
                id = row["video_id"] if "video_id" in row else _id(Path(row["audio"]["path"]).stem)
                yield Clip(id, str(path), tuple(sorted(labels)), split, row=number, group=group)


def _id(stem: str) -> str:
    """The YouTube id in Y<id>, <id> and <id>_<start>..."""
    return stem[1:] if len(stem) == ID_LETTERS + 1 and stem.startswith("Y") else stem[:ID_LETTERS]


def _mids() -> tuple[str, ...]:
    """The machine identifiers of the 527 classes, as /m/09x0r."""
    table = resources.files("patchout.checkpoint") / "label_lists" / "audioset.csv"
    return tuple(row["mid"] for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines()))

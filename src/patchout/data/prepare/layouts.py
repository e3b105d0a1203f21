"""The official downloads of the published data sets, and what a user has: folder -> Listing."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from patchout.checkpoint.labels import label_names, read_labels
from patchout.data.prepare import audioset
from patchout.data.prepare.listing import Clip, LayoutError, Listing, Places, rows_of
from patchout.data.sets import ClipSet, scan

RELEVANT = 0.5  # OpenMIC: a judged instrument above this is a label
WORDS = {
    "train": 84_843,
    "valid": 9_981,
    "test": 11_005,
}  # Speech Commands v2; no list names those of training


class Layout(NamedTuple):
    """The files that tell a download (`a or b` where there are two ways), and how they are read."""

    needs: tuple[str, ...]
    read: Callable[[Path], Listing]


def read_layout(name: str, source: Path) -> Listing:
    """The clips of a downloaded data set; `source` is its folder, or the one that holds it.

    A folder that is not laid out so is a LayoutError that says which files are needed and which are missing.
    """
    needs, read = LAYOUTS[name]
    if read is _folder:
        return read(source)
    if not source.is_dir():
        raise LayoutError(
            f"{source}: no such folder: give the one that the download of {name} was unpacked to"
        )
    inner = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    lacking = {
        root: [need for need in needs if not any((root / part).exists() for part in need.split(" or "))]
        for root in (source, *inner)
    }
    root = min(lacking, key=lambda root: len(lacking[root]))
    if lacking[root]:
        raise LayoutError(f"{source}: {name} needs {', '.join(needs)}; missing: {', '.join(lacking[root])}")
    return read(root)


def _esc50(root: Path) -> Listing:
    """ESC-50: five folds; clips cut from one recording share a group."""
    classes, clips = label_names("esc50"), []
    place = Places(classes)
    sounds = next(root / name for name in ("audio", "audio_32k") if (root / name).is_dir())
    for row in rows_of(root / "meta/esc50.csv", ("filename", "fold", "category", "src_file")):
        label, file = place[row["category"]], sounds / row["filename"]
        clips.append(Clip(file.stem, str(file), (label,), row["fold"], {"group": row["src_file"]}))
    return Listing(classes, "multi_class", clips, "fold", ("group",))


def _dcase(suffix: str, root: Path) -> Listing:
    """Urban acoustic scenes: fold 1 of the official evaluation set-up; recordings of one place share a group."""
    classes, clips = label_names("dcase_scenes"), []
    place = Places(classes)
    meta = rows_of(root / "meta.csv", ("filename", "identifier", "source_label"))
    about = {row["filename"]: {"group": row["identifier"], "device": row["source_label"]} for row in meta}
    for split, part in (("train", "train"), ("test", "evaluate")):
        table = root / f"evaluation_setup/fold1_{part}.{suffix}"
        for line in table.read_text(encoding="utf-8-sig").splitlines():
            name, _, scene = line.strip().partition("\t")
            if name in about:
                clips.append(
                    Clip(Path(name).stem, str(root / name), (place[scene.strip()],), split, about[name])
                )
            elif name not in ("", "filename"):  # the header; 2018 has none
                raise LayoutError(f"{table}: {name} is not in meta.csv: unpack the download again")
    return Listing(classes, "multi_class", clips, more=("group", "device"))


def _speechcommands(root: Path) -> Listing:
    """Speech Commands v2: 35 words in alphabetical order, without background noise; a speaker is a group."""
    classes = tuple(sorted(label_names("speechcommands_v2")))
    lists = {"valid": "validation_list.txt", "test": "testing_list.txt"}
    listed = {
        name: split for split, table in lists.items() for name in (root / table).read_text("utf-8").split()
    }
    found = {f"{word}/{path.name}" for word in classes for path in (root / word).glob("*.wav")}
    place, clips = Places(classes), []
    for name in sorted(found | listed.keys()):
        word, _, file = name.removesuffix(".wav").partition("/")
        more = {"group": file.partition("_")[0]}
        clips.append(
            Clip(f"{word}/{file}", str(root / name), (place[word],), listed.get(name, "train"), more)
        )
    return Listing(classes, "multi_class", clips, more=("group",), official=WORDS)


def _fsd50k(root: Path) -> Listing:
    """FSD50K: its own training, validation and evaluation splits, 200 classes in the order of vocabulary.csv."""
    tables = root / "FSD50K.ground_truth"
    classes, clips = read_labels(tables / "vocabulary.csv"), []
    place = Places(classes)
    for part, columns in (("dev", ("fname", "labels", "split")), ("eval", ("fname", "labels"))):
        for row in rows_of(tables / f"{part}.csv", columns):
            file = root / f"FSD50K.{part}_audio" / f"{row['fname']}.wav"
            labels = tuple(place[label] for label in row["labels"].split(","))
            clips.append(Clip(row["fname"], str(file), labels, row.get("split", part)))
    return Listing(classes, "multi_label", clips)


def _openmic(root: Path) -> Listing:
    """OpenMIC-2018, split 1: the relevance of the instruments that were judged, and which ones were."""
    order = json.loads((root / "class-map.json").read_text("utf-8"))
    classes = tuple(sorted(order, key=order.__getitem__))
    place, clips = Places(classes), []
    judged: dict[str, dict[int, float]] = {}
    table = root / "openmic-2018-aggregated-labels.csv"
    for row in rows_of(table, ("sample_key", "instrument", "relevance")):
        judged.setdefault(row["sample_key"], {})[place[row["instrument"]]] = float(row["relevance"])
    for split in ("train", "test"):
        for key in (root / f"partitions/split01_{split}.csv").read_text("utf-8").split():
            relevance = [judged.get(key, {}).get(index, -1.0) for index in range(len(classes))]
            labels = tuple(index for index, value in enumerate(relevance) if value > RELEVANT)
            known = [float(value >= 0) for value in relevance]
            more = {"probabilities": [max(value, 0.0) for value in relevance], "known": known}
            clips.append(Clip(key, str(root / "audio" / key[:3] / f"{key}.ogg"), labels, split, more))
    return Listing(classes, "multi_label", clips, more=("probabilities", "known"))


@dataclass(frozen=True)
class _Own:
    """The clips of a scanned set; the id is the path in its folder, with the seconds of a segment."""

    clips: ClipSet
    more: tuple[str, ...]

    def __iter__(self) -> Iterator[Clip]:
        for batch in self.clips.table.to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                start_s, end_s = row.get("start_s") or 0.0, row.get("end_s")
                span = f"#{start_s:g}-{end_s or 'end'}" if start_s or end_s else ""
                more = {name: row[name] for name in self.more}
                clip = Clip(row["id"] + span, str(self.clips.folder / row["id"]), tuple(row["labels"]))
                yield clip._replace(fold=row.get("fold") or "", more=more, start_s=start_s, end_s=end_s)


def _folder(root: Path) -> Listing:
    """What `scan` reads: class folders, or a list; no list is official."""
    clips = scan(root)
    if clips.packed:
        raise LayoutError(f"{root}: is packed already: train and evaluate take it as it is")
    texts = [
        field.name for field in clips.table.schema if pa.types.is_string(field.type) and field.name != "id"
    ]
    used = [name for name in texts if pc.any(pc.not_equal(clips.table[name], "")).as_py()]
    more = tuple(name for name in used if name != "fold")
    fold: Literal["split", ""] = "split" if "fold" in used else ""
    return Listing(
        clips.classes,
        clips.task,
        _Own(clips, more),
        fold,
        more,
        official={},
        problems=clips.problems,
        notes=clips.notes,
    )


def _tau(suffix: str) -> Layout:
    lists = tuple(f"evaluation_setup/fold1_{part}.{suffix}" for part in ("train", "evaluate"))
    return Layout(("meta.csv", *lists, "audio"), partial(_dcase, suffix))


_OPENMIC = ("openmic-2018-aggregated-labels.csv", "class-map.json", "partitions/split01_train.csv", "audio")
_FSD50K = tuple(
    f"FSD50K.{part}" for part in ("ground_truth/dev.csv", "ground_truth/eval.csv", "dev_audio", "eval_audio")
)

LAYOUTS = {
    "audioset": Layout((), partial(audioset.read, ("balanced_train", "unbalanced_train", "eval"))),
    "audioset20k": Layout((), partial(audioset.read, ("balanced_train", "eval"))),
    "esc50": Layout(("meta/esc50.csv", "audio or audio_32k"), _esc50),
    "openmic": Layout((*_OPENMIC, "partitions/split01_test.csv"), _openmic),
    "fsd50k": Layout((*_FSD50K, "FSD50K.ground_truth/vocabulary.csv"), _fsd50k),
    "dcase2018": _tau("txt"),
    "dcase2019": _tau("csv"),
    "dcase2020": _tau("csv"),
    "speechcommands": Layout(("validation_list.txt", "testing_list.txt"), _speechcommands),
    "folder": Layout((), _folder),
}

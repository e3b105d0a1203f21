"""The layouts of the official downloads, and of a user's own folder: folder -> Listing."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from patchout.checkpoint.labels import label_names, read_labels
from patchout.data.clips import ClipSet, segment_suffix
from patchout.data.prepare import audioset
from patchout.data.prepare.listing import Clip, LayoutError, Listing, Places, read_rows
from patchout.data.sets import scan

ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar")
RELEVANT = 0.5  # OpenMIC: a annotated instrument above this is a label
WORDS = {"train": 84_843, "valid": 9_981, "test": 11_005}  # Speech Commands v2; no list has those of training


class Layout(NamedTuple):
    """The files that a download must have (`a or b`: one of them), and the function that reads it."""

    needs: tuple[str, ...]
    read: Callable[[Path], Listing]


def read_layout(name: str, source: Path) -> Listing:
    """The clips of a downloaded data set; `source` is its folder, or the one that holds it.

    LayoutError, with the files that are needed and missing, for a folder of another layout.
    """
    needs, reader = LAYOUTS[name]
    if reader is _folder:
        return reader(source)
    if not source.is_dir():
        todo = f"give the one that the download of {name} was unpacked to"
        raise LayoutError(f"{source}: no such folder: {todo}")
    inner = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    missing = {
        root: [need for need in needs if not any((root / part).exists() for part in need.split(" or "))]
        for root in (source, *inner)
    }
    root = min(missing, key=lambda root: len(missing[root]))
    if missing[root]:
        reason = f"{name} needs {', '.join(needs)}; missing: {', '.join(missing[root])}"
        raise LayoutError(f"{source}: {reason}{_packed(source)}")
    return reader(root)


def _packed(source: Path) -> str:
    """The hint at archives that lie in a folder; "": there are none."""
    archives = sorted(path.name for path in source.iterdir() if path.name.endswith(ARCHIVES))
    return f"; {archives[0]} lies there ({len(archives)} archives): unpack it" if archives else ""


def _esc50(root: Path) -> Listing:
    """ESC-50: five folds; clips cut from one recording share a group."""
    classes, clips = label_names("esc50"), []
    place = Places(classes)
    sounds = next(root / name for name in ("audio", "audio_32k") if (root / name).is_dir())
    for row in read_rows(root / "meta/esc50.csv", ("filename", "fold", "category", "src_file")):
        label, file = place[row["category"]], sounds / row["filename"]
        clips.append(Clip(file.stem, str(file), (label,), row["fold"], {"group": row["src_file"]}))
    return Listing(classes, "multi_class", clips, "fold", ("group",))


def _dcase(suffix: str, root: Path) -> Listing:
    """TAU urban acoustic scenes: fold 1 of the official set-up; recordings of one place share a group."""
    classes, clips = label_names("dcase_scenes"), []
    place = Places(classes)
    meta = read_rows(root / "meta.csv", ("filename", "identifier", "source_label"))
    more = {row["filename"]: {"group": row["identifier"], "device": row["source_label"]} for row in meta}
    for split, part in (("train", "train"), ("test", "evaluate")):
        table = root / f"evaluation_setup/fold1_{part}.{suffix}"
        for line in table.read_text(encoding="utf-8-sig").splitlines():
            name, _, scene = line.strip().partition("\t")
            if name in more:
                label = place[scene.strip()]
                clips.append(Clip(Path(name).stem, str(root / name), (label,), split, more[name]))
            elif name not in ("", "filename"):  # the header; 2018 has none
                raise LayoutError(f"{table}: {name} is not in meta.csv: unpack the download again")
    return Listing(classes, "multi_class", clips, more=("group", "device"))


def _speechcommands(root: Path) -> Listing:
    """Speech Commands v2: 35 words in alphabetical order, without background noise; a speaker is a group."""
    classes = tuple(sorted(label_names("speechcommands_v2")))
    split_of: dict[str, str] = {}
    for split, table in (("valid", "validation_list.txt"), ("test", "testing_list.txt")):
        split_of |= dict.fromkeys((root / table).read_text("utf-8").split(), split)
    files = {f"{word}/{path.name}" for word in classes for path in (root / word).glob("*.wav")}
    place, clips = Places(classes), []
    for name in sorted(files | split_of.keys()):
        word, _, file = name.removesuffix(".wav").partition("/")
        split, more = split_of.get(name, "train"), {"group": file.partition("_")[0]}
        clips.append(Clip(f"{word}/{file}", str(root / name), (place[word],), split, more))
    return Listing(classes, "multi_class", clips, more=("group",), official=WORDS)


def _fsd50k(root: Path) -> Listing:
    """FSD50K: its training, validation and evaluation splits, 200 classes in the order of vocabulary.csv."""
    tables = root / "FSD50K.ground_truth"
    classes, clips = read_labels(tables / "vocabulary.csv"), []
    place = Places(classes)
    for part, columns in (("dev", ("fname", "labels", "split")), ("eval", ("fname", "labels"))):
        for row in read_rows(tables / f"{part}.csv", columns):
            file = root / f"FSD50K.{part}_audio" / f"{row['fname']}.wav"
            labels = tuple(place[label] for label in row["labels"].split(","))
            clips.append(Clip(row["fname"], str(file), labels, row.get("split", part)))
    return Listing(classes, "multi_label", clips)


def _openmic(root: Path) -> Listing:
    """OpenMIC-2018, split 1: the relevance of the instruments that were annotated, and a mask of these."""
    order = json.loads((root / "class-map.json").read_text("utf-8"))
    classes = tuple(sorted(order, key=order.__getitem__))
    place, clips = Places(classes), []
    annotated: dict[str, dict[int, float]] = {}
    table = root / "openmic-2018-aggregated-labels.csv"
    for row in read_rows(table, ("sample_key", "instrument", "relevance")):
        annotated.setdefault(row["sample_key"], {})[place[row["instrument"]]] = float(row["relevance"])
    for split in ("train", "test"):
        for key in (root / f"partitions/split01_{split}.csv").read_text("utf-8").split():
            relevance = [annotated.get(key, {}).get(index, -1.0) for index in range(len(classes))]
            labels = tuple(index for index, value in enumerate(relevance) if value > RELEVANT)
            mask = [float(value >= 0) for value in relevance]
            more = {"probabilities": [max(value, 0.0) for value in relevance], "known": mask}
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
                more = {name: row[name] for name in self.more}
                id = row["id"] + segment_suffix(start_s, end_s)
                clip = Clip(id, str(self.clips.folder / row["id"]), tuple(row["labels"]))
                yield clip._replace(fold=row.get("fold") or "", more=more, start_s=start_s, end_s=end_s)


def _folder(root: Path) -> Listing:
    """A user's own sounds, as `scan` reads them: class folders, or a list."""
    clips = scan(root)
    if clips.packed:
        raise LayoutError(f"{root}: is packed already: train and evaluate take it as it is")
    schema = clips.table.schema
    texts = [field.name for field in schema if pa.types.is_string(field.type) and field.name != "id"]
    used = [name for name in texts if pc.any(pc.not_equal(clips.table[name], "")).as_py()]
    more = tuple(name for name in used if name != "fold") + ("known",) * ("known" in schema.names)
    fold: Literal["split", ""] = "split" if "fold" in used else ""
    listing = Listing(clips.classes, clips.task, _Own(clips, more), fold, more, official={})
    return replace(listing, problems=clips.problems, notes=clips.notes)


def _tau(suffix: str) -> Layout:
    lists = tuple(f"evaluation_setup/fold1_{part}.{suffix}" for part in ("train", "evaluate"))
    return Layout(("meta.csv", *lists, "audio"), partial(_dcase, suffix))


_OPENMIC = ("openmic-2018-aggregated-labels.csv", "class-map.json", "partitions/split01_train.csv", "audio")
_FSD50K = (
    "ground_truth/dev.csv",
    "ground_truth/eval.csv",
    "dev_audio",
    "eval_audio",
    "ground_truth/vocabulary.csv",
)

LAYOUTS = {
    "audioset": Layout((), partial(audioset.read, ("balanced_train", "unbalanced_train", "eval"))),
    "audioset20k": Layout((), partial(audioset.read, ("balanced_train", "eval"))),
    "esc50": Layout(("meta/esc50.csv", "audio or audio_32k"), _esc50),
    "openmic": Layout((*_OPENMIC, "partitions/split01_test.csv"), _openmic),
    "fsd50k": Layout(tuple(f"FSD50K.{part}" for part in _FSD50K), _fsd50k),
    "dcase2018": _tau("txt"),
    "dcase2019": _tau("csv"),
    "dcase2020": _tau("csv"),
    "speechcommands": Layout(("validation_list.txt", "testing_list.txt"), _speechcommands),
    "folder": Layout((), _folder),
}

"""The tasks of HEAR, and task folders as they are distributed, read and checked.

A folder holds `task_metadata.json`, `labelvocabulary.csv`, and for each split `<split>.json` and `<rate>/<split>/*.wav`
("HEAR: Holistic Evaluation of Audio Representations", Turian et al. 2022).
"""

import csv
import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from patchout.errors import InputError, near
from patchout.hear.scores import EVENT_SCORES, SCENE_SCORES
from patchout.hear.sources import ARCHIVE, METADATA, advice

Category = Literal["music", "speech", "general"]
EmbeddingType = Literal["scene", "event"]
PredictionType = Literal["multiclass", "multilabel"]
SplitMode = Literal["trainvaltest", "presplit_kfold", "new_split_kfold"]
TVT: SplitMode = "trainvaltest"
PRESPLIT: SplitMode = "presplit_kfold"
NEW: SplitMode = "new_split_kfold"
KINDS = {"embedding_type": EmbeddingType, "prediction_type": PredictionType, "split_mode": SplitMode}
SHOWN = 5  # problems of one folder in one message


class TaskError(InputError):
    """A task folder that cannot be used: `<folder>: <what is wrong>[; what to do]`."""


class Row(NamedTuple):
    """What is known of a task, whatever its folder says; the leaderboard has it in `modes`."""

    category: Category
    embedding_type: EmbeddingType
    prediction_type: PredictionType
    split_mode: SplitMode
    num_splits: int
    primary: str
    modes: tuple[str, ...] = ("full",)


TABLE: dict[str, Row] = {  # categories: "Learning General Audio Representations ...", section 5
    "dcase2016_task2": Row("general", "event", "multilabel", TVT, 3, "event_onset_200ms_fms"),
    "nsynth_pitch": Row("music", "scene", "multiclass", TVT, 3, "pitch_acc", ("5h", "50h")),
    "speech_commands": Row("speech", "scene", "multiclass", TVT, 3, "top1_acc", ("5h", "full")),
    "beehive_states_fold0": Row("general", "scene", "multiclass", TVT, 3, "aucroc"),
    "beehive_states_fold1": Row("general", "scene", "multiclass", TVT, 3, "aucroc"),
    "beijing_opera": Row("music", "scene", "multiclass", NEW, 5, "top1_acc"),
    "tfds_crema_d": Row("speech", "scene", "multiclass", NEW, 5, "top1_acc"),
    "esc50": Row("general", "scene", "multiclass", PRESPLIT, 5, "top1_acc"),
    "fsd50k": Row("general", "scene", "multilabel", TVT, 3, "mAP"),
    "gunshot_triangulation": Row("general", "scene", "multiclass", NEW, 7, "top1_acc"),
    "tfds_gtzan": Row("music", "scene", "multiclass", NEW, 10, "top1_acc"),
    "tfds_gtzan_music_speech": Row("general", "scene", "multiclass", NEW, 10, "top1_acc"),
    "libricount": Row("speech", "scene", "multiclass", NEW, 5, "top1_acc"),
    "maestro": Row("music", "event", "multilabel", NEW, 5, "event_onset_50ms_fms", ("5h",)),
    "mridangam_stroke": Row("music", "scene", "multiclass", NEW, 5, "top1_acc"),
    "mridangam_tonic": Row("music", "scene", "multiclass", NEW, 5, "top1_acc"),
    "vocal_imitation": Row("general", "scene", "multiclass", NEW, 3, "mAP"),
    "vox_lingua_top10": Row("speech", "scene", "multiclass", NEW, 5, "top1_acc"),
    "spoken_digit": Row(
        "speech", "scene", "multiclass", NEW, 5, "top1_acc", ()
    ),  # open, beside the leaderboard
    "nsynth_pitch_kfold": Row("music", "scene", "multiclass", NEW, 10, "pitch_acc", ()),
    "mini_esc10": Row(
        "general", "scene", "multiclass", PRESPLIT, 5, "top1_acc", ()
    ),  # `patchout hear make-mini`
    "mini_digits": Row("speech", "scene", "multiclass", TVT, 3, "top1_acc", ()),
    "mini_pitch": Row("music", "scene", "multiclass", TVT, 3, "pitch_acc", ()),
    "mini_office": Row("general", "event", "multilabel", TVT, 3, "event_onset_200ms_fms", ()),
    "mini_piano": Row("music", "event", "multilabel", TVT, 3, "event_onset_50ms_fms", ()),
}


BOARD_OF = {  # task and mode -> column of the leaderboard: one for both folds of Beehive, one for each of several modes
    (name, mode): name.partition("_fold")[0] if row.modes == ("full",) else f"{name}_{mode}"
    for name, row in TABLE.items()
    for mode in row.modes
}
BOARDS = tuple(sorted(set(BOARD_OF.values())))
CATEGORY: dict[str, str] = {
    name: row.category for name, row in TABLE.items()
}  # also by column of the leaderboard
CATEGORY |= {board: CATEGORY[name] for (name, _), board in BOARD_OF.items()}


class Partition(NamedTuple):
    """Which splits train, choose and judge one probe."""

    train: tuple[str, ...]
    valid: str
    test: str


@dataclass(frozen=True)
class Task:
    """One task folder without its sounds."""

    folder: Path
    metadata: Mapping[str, Any]  # all of task_metadata.json
    name: str
    mode: str
    embedding_type: EmbeddingType
    prediction_type: PredictionType
    split_mode: SplitMode
    splits: tuple[str, ...]  # in the order of the metadata
    evaluation: tuple[str, ...]  # scores, the primary one first
    duration_s: float | int | None  # of every clip; None: they differ
    labels: tuple[str, ...]
    annotations: Mapping[str, Mapping[str, list[Any]]]  # split -> file -> labels (strings), or `EventRow`s

    @property
    def num_clips(self) -> int:
        """Of all splits."""
        return sum(map(len, self.annotations.values()))

    def shuffled(self) -> dict[str, list[str]]:
        """Split -> its files in the order in which the kit trains on them: one stream of chance for the whole task."""
        chance = random.Random(0)
        order = {split: list(self.annotations[split]) for split in self.splits}
        for files in order.values():
            chance.shuffle(files)
        return order

    def partitions(self) -> list[Partition]:
        """One of train, valid and test; of k folds one each: fold i tests, the next one chooses, the others train."""
        if self.split_mode == TVT:
            return [Partition(("train",), "valid", "test")]
        folds = sorted(self.splits)
        pairs = zip([*folds[1:], folds[0]], folds, strict=True)
        return [Partition(tuple(fold for fold in folds if fold not in pair), *pair) for pair in pairs]

    def unheard(self, split: str) -> list[str]:
        """Labels that no clip of a split has: scores by class are not defined for them."""
        clips = self.annotations[split].values()
        heard = {row["label"] if isinstance(row, dict) else row for rows in clips for row in rows}
        return [label for label in self.labels if label not in heard]

    def wavs(self, rate: int) -> dict[Path, str]:
        """Every wav of this task at a rate -> `<split>/<file>`."""
        names = [f"{split}/{file}" for split in self.splits for file in self.annotations[split]]
        return {self.folder / str(rate) / name: name for name in names}

    def rates(self) -> list[int]:
        """Rates in Hz of which there is a folder."""
        return sorted(
            int(path.name) for path in self.folder.iterdir() if path.is_dir() and path.name.isdigit()
        )

    def require(self, rate: int) -> None:
        """Refuse a rate whose wavs are not all there, with the command that writes them."""
        if absent := [name for path, name in self.wavs(rate).items() if not path.is_file()]:
            others = " and ".join(f"{other} Hz" for other in self.rates() if other != rate)
            command = f"run: patchout hear resample --tasks {self.folder.parent} --rate {rate}"
            todo = (
                f"there is {others}; {command}"
                if others
                else "there is no other rate; unpack the archive again"
            )
            raise TaskError(
                f"{self.folder}: {len(absent)} wavs are missing at {rate} Hz, such as {absent[0]}; {todo}"
            )

    def sha256(self) -> str:
        """Of everything but the sounds."""
        text = json.dumps([dict(self.metadata), self.labels, self.annotations])
        return hashlib.sha256(text.encode()).hexdigest()


def find_tasks(tasks: Path, names: Sequence[str] = ()) -> list[Path]:
    """The folders under `tasks`, or those with these names (`esc50` or `esc50-v2.0.0-full`), sorted."""
    if todo := advice(tasks):
        raise TaskError(f"{tasks}: {todo}")
    folders = sorted(path for path in tasks.iterdir() if path.is_dir() and not path.name.startswith("."))
    called = {name: [path for path in folders if f"{path.name}-".startswith(f"{name}-")] for name in names}
    if not folders or not all(called.values()):
        missing = next((name for name, found in called.items() if not found), "in it")
        there = [path.name for path in folders]
        hint = near(missing, [*there, *(name.partition("-")[0] for name in there)])
        there_is = ", ".join(there) or f"nothing; the tasks of HEAR are at {ARCHIVE}"
        raise TaskError(f"{tasks}: there is no task {missing}{hint}; there is {there_is}")
    return [path for path in folders if not names or any(path in found for found in called.values())]


# -- reading ----------------------------------------------------------------------------------------------------------


def read_task(folder: Path) -> Task:
    """Read a folder (one of embeddings has the same files); all that is wrong with it is one TaskError."""
    try:
        metadata = _json(folder / METADATA)
        problems = list(_odd_metadata(metadata))
        if not problems:
            task = _read(folder, metadata)
            problems = list(_odd_annotations(task))
    except FileNotFoundError as error:
        raise TaskError(f"{folder}: {Path(error.filename).name} is missing") from None
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        raise TaskError(
            f"{folder}: is no HEAR task as distributed ({type(error).__name__}: {error})"
        ) from None
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise TaskError(f"{folder}: {'; '.join(problems[:SHOWN])}{more}")
    return task


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise TaskError(f"{path}: is not JSON ({error})") from None


def _read(folder: Path, metadata: Mapping[str, Any]) -> Task:
    with (folder / "labelvocabulary.csv").open(newline="", encoding="utf-8-sig") as file:
        vocabulary = [(row["idx"], row["label"]) for row in csv.DictReader(file)]
    if [index for index, _ in vocabulary] != [str(index) for index in range(len(vocabulary))]:
        raise TaskError(f"{folder}: labelvocabulary.csv does not count from 0")
    splits = tuple(metadata["splits"])
    clips = {split: _json(folder / f"{split}.json") for split in splits}
    return Task(
        folder=folder,
        metadata=metadata,
        name=metadata["task_name"],
        mode=metadata["mode"],
        embedding_type=metadata["embedding_type"],
        prediction_type=metadata["prediction_type"],
        split_mode=metadata["split_mode"],
        splits=splits,
        evaluation=tuple(metadata["evaluation"]),
        duration_s=metadata["sample_duration"],
        labels=tuple(label for _, label in vocabulary),
        annotations={
            split: {file: [_labelled(row) for row in rows] for file, rows in clips[split].items()}
            for split in splits
        },
    )


def _labelled(row: Any) -> Any:
    """Labels may be numbers in the files and are strings everywhere else."""
    return {**row, "label": str(row["label"])} if isinstance(row, dict) else str(row)


def _odd_metadata(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Values that nobody knows, and those that contradict the table."""
    splits, mode, duration_s = sorted(metadata["splits"]), metadata["split_mode"], metadata["sample_duration"]
    if duration_s is not None and not (isinstance(duration_s, int | float) and duration_s > 0):
        yield f"sample_duration is {duration_s!r}, not some seconds or null"
    params = metadata.get("evaluation_params", {})
    grids = [*params.values()] if isinstance(params, dict) else [params]
    values = [value for grid in grids if isinstance(grid, dict) for value in grid.values()]
    if not all(isinstance(grid, dict) for grid in grids) or not all(
        isinstance(one, list) and one for one in values
    ):
        yield f"evaluation_params is {params!r}, not grids with lists of values"
    for name, kind in KINDS.items():
        if metadata[name] not in get_args(kind):
            yield f"{name} is {metadata[name]!r}, not one of {', '.join(get_args(kind))}"
    known = EVENT_SCORES if metadata["embedding_type"] == "event" else SCENE_SCORES
    if not metadata["evaluation"] or not set(metadata["evaluation"]) <= set(known):
        yield f"evaluation is {metadata['evaluation']}, not some of {', '.join(known)}"
    wanted = (
        ["test", "train", "valid"]
        if mode == TVT
        else [f"fold{index:02d}" for index in range(max(3, len(splits)))]
    )
    if splits != wanted:
        yield f"splits are {' '.join(splits)}, but {mode} needs {' '.join(wanted)}"
    if row := TABLE.get(metadata["task_name"]):
        found = {name: metadata[name] for name in KINDS} | {"primary": next(iter(metadata["evaluation"]), "")}
        found |= {"num_splits": len(splits)} if metadata["mode"] != "small" else {}
        table = row._asdict()
        odd = {name: value for name, value in found.items() if value != table[name]}
        yield from (f"{name} is {value!r}, this task has {table[name]!r}" for name, value in odd.items())


def _odd_annotations(task: Task) -> Iterator[str]:
    """Labels outside the vocabulary, and clips that do not say what their task needs."""
    known = set(task.labels)
    if len(known) < len(task.labels):
        yield f"labelvocabulary.csv has {max(task.labels, key=task.labels.count)!r} twice"
    for split, clips in task.annotations.items():
        if not clips:
            yield f"{split}.json has no clips"
        for file, rows in clips.items():
            labels = {row["label"] for row in rows} if task.embedding_type == "event" else set(rows)
            if labels - known:
                yield f"{split}.json gives {file} the label {min(labels - known)!r}, which is not in the vocabulary"
            if task.prediction_type == "multiclass" and len(rows) != 1:
                yield f"{split}.json gives {file} {len(rows)} labels, multiclass needs one"
            if task.embedding_type == "event" and any(not 0 <= row["start"] <= row["end"] for row in rows):
                yield f"{split}.json has an event of {file} that does not run from a start of 0 or more to its end"

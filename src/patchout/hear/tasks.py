"""The tasks of HEAR, and a reader that validates their folders.

A folder holds `task_metadata.json`, `labelvocabulary.csv`, `<split>.json` and `<rate>/<split>/*.wav` ("HEAR:
Holistic Evaluation of Audio Representations", Turian et al. 2022).
"""

import csv
import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from patchout.errors import InputError, near
from patchout.hear.scores import EVENT_SCORES, SCENE_SCORES
from patchout.hear.sources import ARCHIVE, METADATA, VOCABULARY, advice

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
    """Reference metadata of a task; `modes` are those of the leaderboard."""

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
    # open tasks that are not on the leaderboard, then those of `patchout hear make-mini`
    "spoken_digit": Row("speech", "scene", "multiclass", NEW, 5, "top1_acc", ()),
    "nsynth_pitch_kfold": Row("music", "scene", "multiclass", NEW, 10, "pitch_acc", ()),
    "mini_esc10": Row("general", "scene", "multiclass", PRESPLIT, 5, "top1_acc", ()),
    "mini_digits": Row("speech", "scene", "multiclass", TVT, 3, "top1_acc", ()),
    "mini_pitch": Row("music", "scene", "multiclass", TVT, 3, "pitch_acc", ()),
    "mini_office": Row("general", "event", "multilabel", TVT, 3, "event_onset_200ms_fms", ()),
    "mini_piano": Row("music", "event", "multilabel", TVT, 3, "event_onset_50ms_fms", ()),
}


BOARD_OF = {  # task and mode -> column of the leaderboard; the folds of Beehive share one
    (name, mode): name.partition("_fold")[0] if row.modes == ("full",) else f"{name}_{mode}"
    for name, row in TABLE.items()
    for mode in row.modes
}
BOARDS = tuple(sorted(set(BOARD_OF.values())))
CATEGORY: dict[str, str] = {name: row.category for name, row in TABLE.items()}
CATEGORY |= {board: CATEGORY[name] for (name, _), board in BOARD_OF.items()}


class Partition(NamedTuple):
    """The splits of one probe: training, validation, test."""

    train: tuple[str, ...]
    valid: str
    test: str


@dataclass(frozen=True)
class Task:
    """A task folder: metadata, labels and annotations, without the sounds."""

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
        """Clips of all splits."""
        return sum(map(len, self.annotations.values()))

    def shuffled(self) -> dict[str, list[str]]:
        """Split -> its files in the kit's training order, drawn from one generator for the whole task."""
        rng, order = random.Random(0), {split: list(files) for split, files in self.annotations.items()}
        for files in order.values():
            rng.shuffle(files)
        return order

    def partitions(self) -> list[Partition]:
        """Partitions of the task: one, or k for k folds (fold i is test, fold i + 1 validation)."""
        if self.split_mode == TVT:
            return [Partition(("train",), "valid", "test")]
        folds = sorted(self.splits)
        pairs = zip([*folds[1:], folds[0]], folds, strict=True)
        return [Partition(tuple(fold for fold in folds if fold not in pair), *pair) for pair in pairs]

    def unheard(self, split: str) -> list[str]:
        """Labels without a clip in a split, for which scores by class are undefined."""
        present = set[str]().union(*map(labels_of, self.annotations[split].values()))
        return [label for label in self.labels if label not in present]

    def wavs(self, rate: int) -> dict[Path, str]:
        """Paths of the task's wavs at a rate -> `<split>/<file>`."""
        names = [f"{split}/{file}" for split in self.splits for file in self.annotations[split]]
        return {self.folder / str(rate) / name: name for name in names}

    def rates(self) -> list[int]:
        """Sample rates in Hz for which there is a folder of wavs."""
        folders = [path.name for path in self.folder.iterdir() if path.is_dir()]
        return sorted(int(name) for name in folders if name.isdigit())

    def require(self, rate: int) -> None:
        """Raise a TaskError unless all wavs exist at a rate; it names the command that writes them."""
        if absent := [name for path, name in self.wavs(rate).items() if not path.is_file()]:
            missing = f"{len(absent)} wavs are missing at {rate} Hz, such as {absent[0]}"
            todo = "there is no other rate; unpack the archive again"
            if rates := " and ".join(f"{other} Hz" for other in self.rates() if other != rate):
                command = f"patchout hear resample --tasks {self.folder.parent} --rate {rate}"
                todo = f"there is {rates}; run: {command}"
            raise TaskError(f"{self.folder}: {missing}; {todo}")

    def sha256(self) -> str:
        """Hash of metadata, labels and annotations."""
        text = json.dumps([dict(self.metadata), self.labels, self.annotations])
        return hashlib.sha256(text.encode()).hexdigest()


def labels_of(annotation: Sequence[Any]) -> set[str]:
    """Labels of one clip, whether its annotation has labels or events."""
    return {row["label"] if isinstance(row, dict) else row for row in annotation}


def find_tasks(tasks: Path, names: Sequence[str] = ()) -> list[Path]:
    """Task folders in `tasks`, sorted; with `names` (`esc50` or `esc50-v2.0.0-full`) only those."""
    if todo := advice(tasks):
        raise TaskError(f"{tasks}: {todo}")
    folders = sorted(path for path in tasks.iterdir() if path.is_dir() and not path.name.startswith("."))
    matches = {name: [path for path in folders if f"{path.name}-".startswith(f"{name}-")] for name in names}
    if not folders or not all(matches.values()):
        missing = next((name for name, paths in matches.items() if not paths), "in it")
        present = [path.name for path in folders]
        hint = near(missing, [*present, *(name.partition("-")[0] for name in present)])
        there_is = ", ".join(present) or f"nothing; the tasks of HEAR are at {ARCHIVE}"
        raise TaskError(f"{tasks}: there is no task {missing}{hint}; there is {there_is}")
    return [path for path in folders if not names or any(path in paths for paths in matches.values())]


def read_task(folder: Path) -> Task:
    """Read and validate a task folder (or a folder of its embeddings); a TaskError lists the problems."""
    try:
        metadata = _json(folder / METADATA)
        problems = list(_metadata_problems(metadata))
        if not problems:
            task = _read(folder, metadata)
            problems = list(_annotation_problems(task))
    except FileNotFoundError as error:
        raise TaskError(f"{folder}: {Path(error.filename).name} is missing") from None
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, csv.Error) as error:
        reason = f"{type(error).__name__}: {error}"
        raise TaskError(f"{folder}: is no HEAR task as distributed ({reason})") from None
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
    with (folder / VOCABULARY).open(newline="", encoding="utf-8-sig") as file:
        vocabulary = [(row["idx"], row["label"]) for row in csv.DictReader(file)]
    if [index for index, _ in vocabulary] != [str(index) for index in range(len(vocabulary))]:
        raise TaskError(f"{folder}: {VOCABULARY} does not count from 0")
    splits = tuple(metadata["splits"])
    clips = {split: _json(folder / f"{split}.json") for split in splits}
    return Task(
        folder=folder,
        metadata=metadata,
        name=metadata["task_name"],
        mode=metadata["mode"],
        **{name: metadata[name] for name in KINDS},
        splits=splits,
        evaluation=tuple(metadata["evaluation"]),
        duration_s=metadata["sample_duration"],
        labels=tuple(label for _, label in vocabulary),
        annotations={
            split: {file: [_with_text(row) for row in rows] for file, rows in files.items()}
            for split, files in clips.items()
        },
    )


def _with_text(row: Any) -> Any:
    """A label, or an event with its label, as a string: files may have numbers."""
    return {**row, "label": str(row["label"])} if isinstance(row, dict) else str(row)


def _metadata_problems(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Problems of the metadata: unknown values, and those that contradict `TABLE`."""
    splits, mode, duration_s = sorted(metadata["splits"]), metadata["split_mode"], metadata["sample_duration"]
    if duration_s is not None and not (isinstance(duration_s, int | float) and duration_s > 0):
        yield f"sample_duration is {duration_s!r}, not some seconds or null"
    params = metadata.get("evaluation_params", {})
    grids = [*params.values()] if isinstance(params, dict) else [params]
    choices = [[*grid.values()] if isinstance(grid, dict) else [None] for grid in grids]
    if not all(isinstance(choice, list) and choice for choice in chain(*choices)):
        yield f"evaluation_params is {params!r}, not grids with lists of values"
    for name, kind in KINDS.items():
        if metadata[name] not in get_args(kind):
            yield f"{name} is {metadata[name]!r}, not one of {', '.join(get_args(kind))}"
    scores = EVENT_SCORES if metadata["embedding_type"] == "event" else SCENE_SCORES
    if not metadata["evaluation"] or not set(metadata["evaluation"]) <= set(scores):
        yield f"evaluation is {metadata['evaluation']}, not some of {', '.join(scores)}"
    folds = [f"fold{index:02d}" for index in range(max(3, len(splits)))]
    allowed = ["test", "train", "valid"] if mode == TVT else folds
    if splits != allowed:
        yield f"splits are {' '.join(splits)}, but {mode} needs {' '.join(allowed)}"
    if row := TABLE.get(metadata["task_name"]):
        values = {name: metadata[name] for name in KINDS} | {
            "primary": next(iter(metadata["evaluation"]), "")
        }
        values |= {"num_splits": len(splits)} if metadata["mode"] != "small" else {}
        for name, value in values.items():
            if value != (expected := getattr(row, name)):
                yield f"{name} is {value!r}, this task has {expected!r}"


def _annotation_problems(task: Task) -> Iterator[str]:
    """Problems of the annotations: labels outside the vocabulary, and clips that do not fit the task."""
    vocabulary, is_event = set(task.labels), task.embedding_type == "event"
    if len(vocabulary) < len(task.labels):
        yield f"{VOCABULARY} has {max(task.labels, key=task.labels.count)!r} twice"
    for split, clips in task.annotations.items():
        if not clips:
            yield f"{split}.json has no clips"
        for file, rows in clips.items():
            labels = {row["label"] for row in rows} if is_event else set(rows)
            name = f"{split}.json"
            if unknown := labels - vocabulary:
                yield f"{name} gives {file} the label {min(unknown)!r}, which is not in the vocabulary"
            if task.prediction_type == "multiclass" and len(rows) != 1:
                yield f"{name} gives {file} {len(rows)} labels, multiclass needs one"
            if is_event and any(not 0 <= row["start"] <= row["end"] for row in rows):
                yield f"{name} has an event of {file} that does not run from a start of 0 or more to its end"

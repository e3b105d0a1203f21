"""Tiny HEAR task folders in every split mode and of every kind, as they are distributed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from conftest import RATE, tone, write_wav

SECONDS = 0.5
TVT = ("train", "valid", "test")
LABELS = ("high", "low")
SCORES = {"scene": ["top1_acc", "mAP"], "event": ["event_onset_200ms_fms", "segment_1s_er"]}


def annotation(kind: str, prediction: str, index: int) -> list[Any]:
    if kind == "event":
        return [{"label": LABELS[index % 2], "start": 100.0, "end": 300.0}]
    return list(LABELS) if prediction == "multilabel" else [LABELS[index % 2]]


def make_task(
    tasks: Path,
    *,
    kind: str = "scene",
    mode: str = "trainvaltest",
    prediction: str = "multiclass",
    **metadata: object,
) -> Path:
    """Three clips of half a second per split at 32 kHz; `metadata` replaces values of task_metadata.json."""
    prediction = "multilabel" if kind == "event" else prediction
    splits = TVT if mode == "trainvaltest" else ("fold00", "fold01", "fold02")
    about: dict[str, Any] = {
        "task_name": "toy",
        "version": "v1",
        "mode": "full",
        "embedding_type": kind,
        "prediction_type": prediction,
        "split_mode": mode,
        "sample_duration": SECONDS,
        "evaluation": SCORES[kind],
        "splits": list(splits),
        "something_else": 1,
    } | metadata
    folder = tasks / f"{about['task_name']}-v1-{about['mode']}"
    folder.mkdir(parents=True)
    (folder / "task_metadata.json").write_text(json.dumps(about))
    (folder / "labelvocabulary.csv").write_text("idx,label\n0,high\n1,low\n")
    for number, split in enumerate(splits):
        clips = {f"{split}{index}.wav": annotation(kind, prediction, index) for index in range(3)}
        (folder / f"{split}.json").write_text(json.dumps(clips))
        for index, file in enumerate(clips):
            write_wav(folder / str(RATE) / split / file, tone(SECONDS, 300.0 + 100 * index + 10 * number))
    return folder


def change(path: Path, **values: object) -> None:
    """Replace values of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def silence(path: Path, seconds: float, rate: int = RATE) -> None:
    """Replace a wav."""
    write_wav(path, np.zeros(round(seconds * rate), np.float32), rate)

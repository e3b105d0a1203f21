"""A prepared set of made-up sounds, written by `datasets` itself."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from conftest import RATE


def wav(wave: np.ndarray) -> bytes:
    """A 16-bit wav file."""
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format="WAV")
    return file.getvalue()


def write_prepared(folder: Path, sounds: Sequence[np.ndarray | bytes], **more: Any) -> Path:
    """Sounds called `clip 0` ... of the classes cat and dog in turn, the fifth of both; split train and test
    in turn.

    `more` are further columns, of the same value in every row.
    """
    import datasets  # two seconds, which spawned workers need not wait

    labels = [[0, 1] if index == 4 else [index % 2] for index in range(len(sounds))]
    columns = {
        "id": [f"clip {index}" for index in range(len(sounds))],
        "audio": [sound if isinstance(sound, bytes) else wav(sound) for sound in sounds],
        "labels": labels,
        "split": ["test" if index % 2 else "train" for index in range(len(sounds))],
        "device": [None if index % 2 else "a" for index in range(len(sounds))],
        **{name: [value] * len(sounds) for name, value in more.items()},
    }
    kinds = {"audio": datasets.Value("binary"), "labels": datasets.List(datasets.Value("int32"))}
    numbers = dict.fromkeys(("probabilities", "known"), datasets.List(datasets.Value("float32")))
    features = {name: (kinds | numbers).get(name, datasets.Value("string")) for name in columns}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    datasets.disable_progress_bars()
    table.save_to_disk(folder, num_shards=min(2, len(sounds)))
    several = any(len(own) != 1 for own in labels)
    about = {
        "format": 1,
        "name": "tones",
        "classes": ["cat", "dog"],
        "task": "multi_label" if several else "multi_class",
    }
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder

"""Five small tasks in HEAR's format, built deterministically from free sounds at 32 kHz.

They cover sound events, speech and pitch, scenes and timestamps, within minutes.
"""

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.signal import lfilter

from patchout.audio import stream as audio
from patchout.errors import InputError
from patchout.files import write_aside
from patchout.hear.scores import EventRow
from patchout.hear.sources import METADATA, VOCABULARY
from patchout.hear.tasks import KINDS, TABLE, labels_of, read_task
from patchout.hear.wavs import write_wav

RATE = 32_000
SPLIT_ORDER = {"train": 1, "valid": 2, "test": 3}
DIGIT_S = 0.56  # length of a spoken digit in HEAR
OFFICE_S = 20.0
OFFICE_FILES = {"train": 20, "valid": 10, "test": 20}  # with 60 a probe took a core half an hour
BACKGROUND_LEVEL = 0.003  # of full scale, root of the mean square
EVENT_GAIN_DB = (6.0, 24.0)  # of an event above the background
EVENT_PEAK = 0.4  # of full scale, at most, so that two of them do not clip
EVENT_GAP_S = (0.2, 1.8)  # from one onset to the next
EVENT_LIMIT_S = 1.5
EVENT_FLOOR = 0.1  # of the loudest 10 ms of the clip: quieter frames are no event
EVENT_PAUSE = 20  # quiet frames of 10 ms that end an event
ACCURACY = ("top1_acc", "mAP", "d_prime", "aucroc")


class Clip(NamedTuple):
    """One sound of a task that is being built."""

    split: str
    file: str
    annotation: list[Any]
    sound: Path | np.ndarray  # of any rate, or (samples,) at RATE


class Mini(NamedTuple):
    """Recipe of a task; the rest of its metadata is in `tasks.TABLE`."""

    needs: str
    clips: Callable[[Path], Iterator[Clip]]
    duration_s: float
    evaluation: tuple[str, ...]
    rules: dict[str, Any] = {}  # noqa: RUF012  # added to the metadata, never changed


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _esc10(data: Path) -> Iterator[Clip]:
    for row in _rows(data / "esc10" / "esc10.csv"):
        path = data / "esc10" / "audio" / row["filename"]
        yield Clip(f"fold{int(row['fold']) - 1:02d}", f"{path.stem}.wav", [row["category"]], path)


def _digits(data: Path) -> Iterator[Clip]:
    """Spoken digits: recordings 0-4 of a speaker and digit are test, 5-9 validation, the others training."""
    for path in sorted((data / "fsdd" / "recordings").glob("*_*_*.wav")):
        digit, _, index = path.stem.split("_")
        split = "test" if int(index) < 5 else "valid" if int(index) < 10 else "train"
        yield Clip(split, path.name, [digit], path)


def _pitch(data: Path) -> Iterator[Clip]:
    for row in _rows(data / "gm" / "pitch.csv"):
        path = data / "gm" / "pitch" / row["file"]
        yield Clip(row["split"], f"{path.stem}.wav", [row["midi_pitch"]], path)


def _piano(data: Path) -> Iterator[Clip]:
    for name, piece in json.loads((data / "gm" / "piano.json").read_text(encoding="utf-8")).items():
        path = data / "gm" / "piano" / name
        yield Clip(piece["split"], f"{path.stem}.wav", piece["events"], path)


def _office(data: Path) -> Iterator[Clip]:
    """Events of ESC-10 over noise: the last fold is test, the one before validation, the others training."""
    rows = _rows(data / "esc10" / "esc10.csv")
    folds = sorted({row["fold"] for row in rows}, key=int)
    if len(folds) < 3:
        raise InputError(f"{data / 'esc10'}: has {len(folds)} folds; train, valid and test need one each")
    events: dict[str, list[tuple[str, np.ndarray]]] = {fold: [] for fold in folds}
    for row in rows:
        with suppress(audio.AudioError, OSError):  # `mini_esc10` reports it
            event = _event(audio.load(data / "esc10" / "audio" / row["filename"], RATE))
            events[row["fold"]] += [(row["category"], event)] if len(event) else []
    parts = {"train": folds[:-2], "valid": folds[-2:-1], "test": folds[-1:]}
    for number, (split, names) in enumerate(parts.items()):
        choice = [event for fold in names for event in events[fold]]
        for index in range(OFFICE_FILES[split] if choice else 0):
            mixture, annotation = _mix(choice, np.random.default_rng([number, index]))
            yield Clip(split, f"{split}{index:03d}.wav", annotation, mixture)


def _event(wave: np.ndarray) -> np.ndarray:
    """Cut the first event out of a clip, with faded ends and unit RMS; (0,) of a silent clip."""
    frame = RATE // 100
    level = np.sqrt((wave[: len(wave) // frame * frame].reshape(-1, frame) ** 2).mean(axis=1))
    loud = np.flatnonzero(level > EVENT_FLOOR * level.max(initial=0))
    if not len(loud):
        return wave[:0]
    pauses = np.flatnonzero(np.diff(loud) > EVENT_PAUSE)
    last = loud[pauses[0]] if len(pauses) else loud[-1]
    part = wave[loud[0] * frame : (last + 1) * frame][: round(EVENT_LIMIT_S * RATE)]
    fade = frame // 2
    ramp = np.concatenate([np.linspace(0, 1, fade), np.ones(len(part) - 2 * fade), np.linspace(1, 0, fade)])
    return (part * ramp / np.sqrt((part**2).mean())).astype(np.float32)


def _mix(choice: list[tuple[str, np.ndarray]], rng: np.random.Generator) -> tuple[np.ndarray, list[EventRow]]:
    """Mix events over noise: (samples,) and the annotation; only different classes overlap."""
    size = round(OFFICE_S * RATE)
    noise = lfilter([1.0], [1.0, -0.95], rng.standard_normal(size))
    mixture = noise * BACKGROUND_LEVEL / np.sqrt((noise**2).mean())
    rows: list[EventRow] = []
    busy: dict[str, int] = {}
    start = round(rng.uniform(*EVENT_GAP_S) * RATE)
    while start < size:
        label, event = choice[rng.integers(len(choice))]
        end = start + len(event)
        if end <= size and busy.get(label, 0) <= start:
            gain = BACKGROUND_LEVEL * 10 ** (rng.uniform(*EVENT_GAIN_DB) / 20)
            mixture[start:end] += min(gain, EVENT_PEAK / np.abs(event).max()) * event
            rows.append(EventRow(label=label, start=1000 * start / RATE, end=1000 * end / RATE))
            busy[label] = end
        start += round(rng.uniform(*EVENT_GAP_S) * RATE)
    return mixture, rows


PIANO_RULES = {  # MAESTRO's own metadata
    "use_scoring_for_early_stopping": False,
    "evaluation_params": {
        "event_postprocessing_grid": {"median_filter_ms": [150], "min_duration": [50]},
        "task_specific_param_grid": {"max_epochs": [50], "check_val_every_n_epoch": [1]},
    },
}
_EVERY_10 = {"task_specific_param_grid": {"check_val_every_n_epoch": [10]}}
OFFICE_RULES = {"evaluation_params": _EVERY_10}  # DCASE's
OFFICE_SCORES = ("event_onset_200ms_fms", "segment_1s_er")
ONSETS = ("event_onset_50ms_fms", "event_onset_offset_50ms_20perc_fms")
MINIS: dict[str, Mini] = {
    "mini_esc10": Mini("esc10/esc10.csv", _esc10, 5.0, ACCURACY),
    "mini_digits": Mini("fsdd/recordings", _digits, DIGIT_S, ACCURACY),
    "mini_pitch": Mini("gm/pitch.csv", _pitch, 1.0, ("pitch_acc", "chroma_acc")),
    "mini_office": Mini("esc10/esc10.csv", _office, OFFICE_S, OFFICE_SCORES, OFFICE_RULES),
    "mini_piano": Mini("gm/piano.json", _piano, 20.0, ONSETS, PIANO_RULES),
}


def make_mini(data: Path, out: Path, *, on_clip: Callable[[], object] = lambda: None) -> Iterator[str]:
    """Build every task whose sounds are in `data` as `<out>/<name>-v1-mini`; yields the problems."""
    for name, mini in MINIS.items():
        if not (data / mini.needs).exists():
            yield f"{name}: skipped, because {data / mini.needs} is not there"
            continue
        try:
            yield from _build(name, data, out / f"{name}-v1-mini", on_clip)
        except InputError as error:
            yield f"{name}: {error}"
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            yield f"{name}: {data / mini.needs} has another layout ({type(error).__name__}: {error})"


def _build(name: str, data: Path, folder: Path, on_clip: Callable[[], object]) -> Iterator[str]:
    """Write the task folder of a recipe; the metadata come last and mark it as complete."""
    mini = MINIS[name]
    clips: dict[str, dict[str, list[Any]]] = defaultdict(dict)
    for clip in mini.clips(data):
        try:
            wave = clip.sound if isinstance(clip.sound, np.ndarray) else audio.load(clip.sound, RATE)
        except (audio.AudioError, OSError) as error:
            yield f"{name}: left out {error}"
            continue
        write_wav(folder / str(RATE) / clip.split / clip.file, wave, RATE, duration_s=mini.duration_s)
        clips[clip.split][clip.file] = clip.annotation
        on_clip()
    splits = sorted(clips, key=lambda split: (SPLIT_ORDER.get(split, 0), split))
    labels = {label for files in clips.values() for rows in files.values() for label in labels_of(rows)}
    ordered = sorted(labels, key=lambda label: label.zfill(4) if label.isdigit() else label)
    vocabulary = "".join(f"{index},{label}\n" for index, label in enumerate(ordered))
    metadata: dict[str, Any] = {"task_name": name, "version": "v1", "mode": "mini", "default_mode": "mini"}
    metadata |= {key: getattr(TABLE[name], key) for key in KINDS}
    metadata |= {"sample_duration": mini.duration_s, "evaluation": mini.evaluation, "splits": splits}
    texts = {f"{split}.json": json.dumps(clips[split], indent=1) for split in splits}
    texts |= {VOCABULARY: f"idx,label\n{vocabulary}", METADATA: json.dumps(metadata | mini.rules, indent=1)}
    for file, text in texts.items():
        with write_aside(folder / file) as aside:
            aside.write_text(text, encoding="utf-8")
    read_task(folder)  # refuses what no probe could use

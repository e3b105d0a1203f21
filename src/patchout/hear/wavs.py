"""Wavs of task folders (mono, 16 bit, a folder a rate): reading, writing, checking, resampling."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from patchout.files import write_aside
from patchout.hear.tasks import BOARD_OF, CATEGORY, Task, TaskError, read_task

RATES = (16_000, 22_050, 32_000, 44_100, 48_000)  # that HEAR models may ask for


def read_wav(path: Path, rate: int, duration_s: float | int | None) -> np.ndarray:
    """Read a wav as float32 (samples,); TaskError if it does not have the format of its task."""
    if reason := _header_problem(path, rate, duration_s):
        raise TaskError(f"{path}: {reason}; remove it, and resample the task or unpack its archive again")
    return _fit(soundfile.read(path, dtype="float32")[0], rate, duration_s)


def write_wav(path: Path, wave: np.ndarray, rate: int, *, duration_s: float | int | None) -> None:
    """Write float samples (samples,) as int16, cut or zero-padded at the end to `duration_s`."""
    pcm = np.clip(np.rint(32768.0 * _fit(wave, rate, duration_s)), -32768, 32767).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as aside:
        soundfile.write(aside, pcm, rate, format="WAV", subtype="PCM_16")


def _fit(wave: np.ndarray, rate: int, duration_s: float | int | None) -> np.ndarray:
    """Cut or zero-pad a sound at its end to a duration, if there is one."""
    size = len(wave) if duration_s is None else round(duration_s * rate)
    return np.pad(wave[:size], (0, max(0, size - len(wave))))


def inspect(folder: Path) -> dict[str, Any]:
    """Report the state of a task folder: its metadata, and the problems of metadata and wav headers."""
    try:
        task = read_task(folder)
    except TaskError as error:
        return {"task": folder.name, "state": "damaged", "problems": [str(error)]}
    problems, whole_rates = [], []
    for rate in task.rates():
        checks = [
            (name, _header_problem(path, rate, task.duration_s)) for path, name in task.wavs(rate).items()
        ]
        if odd := [f"{name} ({reason})" for name, reason in checks if reason]:
            problems += [f"{folder}: {len(odd)} wavs at {rate} Hz are missing or broken, such as {odd[0]}"]
        else:
            whole_rates.append(rate)
    if not (problems or whole_rates):
        problems = [f"{folder}: has no folder of wavs, such as 48000/{task.splits[0]}"]
    return {
        "task": folder.name,
        "state": "damaged" if problems else "complete",
        "board": BOARD_OF.get((task.name, task.mode), ""),
        "category": CATEGORY.get(task.name, "other"),
        "score": task.evaluation[0],
        "clips": task.num_clips,
        "rates": whole_rates,
        "problems": problems,
    }


def _header_problem(path: Path, rate: int, duration_s: float | int | None) -> str:
    """Problem of a wav's header, in words; empty if there is none."""
    if not path.is_file():
        return "is not there"
    try:
        header = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        return f"cannot be read ({error.error_string})"
    size = header.frames if duration_s is None else round(duration_s * rate)
    if (header.samplerate, header.channels) == (rate, 1) and abs(header.frames - size) <= 1 and header.frames:
        return ""
    actual = f"{header.samplerate} Hz, {header.channels} channels and {header.frames} samples"
    return f"has {actual}, not {rate} Hz, 1 and {size or 'some'}"


def resample(task: Task, rate: int) -> Iterator[str]:
    """Resample the wavs that a task lacks at `rate` from its highest rate; yields a problem or "" a wav."""
    if rate not in RATES:
        rates = ", ".join(map(str, RATES))
        raise ValueError(f"--rate {rate} is not allowed: HEAR models ask for one of {rates}")
    sources = [other for other in task.rates() if other != rate]
    missing = [(path, name) for path, name in task.wavs(rate).items() if not path.is_file()]
    if missing and not sources:
        raise TaskError(f"{task.folder}: has wavs at no other rate than {rate} Hz; unpack the archive again")

    def convert(target: Path, name: str) -> str:
        try:
            wave = read_wav(task.folder / str(sources[-1]) / name, sources[-1], task.duration_s)
        except TaskError as error:
            return str(error)
        wave = soxr.resample(wave, sources[-1], rate, quality="HQ")
        write_wav(target, wave, rate, duration_s=task.duration_s)
        return ""

    with ThreadPoolExecutor() as pool:
        yield from pool.map(convert, *zip(*missing, strict=True)) if missing else ()

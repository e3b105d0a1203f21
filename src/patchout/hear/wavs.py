"""The wavs of task folders: mono, 16 bit, one folder per rate; read, written, checked, resampled."""

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
    """Float32 (samples,) of a wav as its task wants it; anything else is a TaskError that names it."""
    if reason := _oddness(path, rate, duration_s):
        raise TaskError(f"{path}: {reason}; remove it, and resample the task or unpack its archive again")
    wave = soundfile.read(path, dtype="float32")[0]
    size = len(wave) if duration_s is None else round(duration_s * rate)
    return np.pad(wave[:size], (0, max(0, size - len(wave))))  # one sample more or less


def write_wav(path: Path, wave: np.ndarray, rate: int, *, duration_s: float | int | None) -> None:
    """Write float samples (samples,) as int16, cut or filled with zeros at the end to `duration_s`, by rename."""
    size = len(wave) if duration_s is None else round(duration_s * rate)
    pcm = np.zeros(size, np.int16)
    pcm[: len(wave)] = np.clip(np.rint(32768.0 * wave[:size]), -32768, 32767)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as aside:
        soundfile.write(aside, pcm, rate, format="WAV", subtype="PCM_16")


def inspect(folder: Path) -> dict[str, Any]:
    """What is there and everything that is wrong with it: the folder's files, and the header of each wav."""
    try:
        task = read_task(folder)
    except TaskError as error:
        return {"task": folder.name, "state": "damaged", "problems": [str(error)]}
    odd = {
        rate: [
            (name, reason)
            for path, name in task.wavs(rate).items()
            if (reason := _oddness(path, rate, task.duration_s))
        ]
        for rate in task.rates()
    }
    problems = [
        f"{folder}: {len(wavs)} wavs at {rate} Hz are missing or broken, such as {wavs[0][0]} ({wavs[0][1]})"
        for rate, wavs in odd.items()
        if wavs
    ]
    if not odd:
        problems = [f"{folder}: has no folder of wavs, such as 48000/{task.splits[0]}"]
    return {
        "task": folder.name,
        "state": "damaged" if problems else "complete",
        "board": BOARD_OF.get((task.name, task.mode), ""),
        "category": CATEGORY.get(task.name, "other"),
        "score": task.evaluation[0],
        "clips": task.num_clips,
        "rates": [rate for rate, wavs in odd.items() if not wavs],
        "problems": problems,
    }


def _oddness(path: Path, rate: int, duration_s: float | int | None) -> str:
    """What the header of a wav has wrong, or nothing."""
    if not path.is_file():
        return "is not there"
    try:
        found = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        return f"cannot be read ({error.error_string})"
    wanted = found.frames if duration_s is None else round(duration_s * rate)
    if (found.samplerate, found.channels) == (rate, 1) and abs(found.frames - wanted) <= 1 and found.frames:
        return ""
    is_there = f"{found.samplerate} Hz, {found.channels} channels and {found.frames} samples"
    return f"has {is_there}, not {rate} Hz, 1 and {wanted or 'some'}"


def resample(task: Task, rate: int) -> Iterator[str]:
    """Write the wavs of a task that are not there at `rate`, from its highest other rate; one "" or problem per wav."""
    if rate not in RATES:
        raise ValueError(
            f"--rate {rate} is not allowed: HEAR models ask for one of {', '.join(map(str, RATES))}"
        )
    sources = [other for other in task.rates() if other != rate]
    missing = [(path, name) for path, name in task.wavs(rate).items() if not path.is_file()]
    if missing and not sources:
        raise TaskError(f"{task.folder}: has wavs at no other rate than {rate} Hz; unpack the archive again")

    def convert(target: Path, name: str) -> str:
        try:
            wave = read_wav(task.folder / str(sources[-1]) / name, sources[-1], task.duration_s)
        except TaskError as error:
            return str(error)
        write_wav(
            target, soxr.resample(wave, sources[-1], rate, quality="HQ"), rate, duration_s=task.duration_s
        )
        return ""

    with ThreadPoolExecutor() as pool:
        yield from pool.map(convert, *zip(*missing, strict=True)) if missing else ()

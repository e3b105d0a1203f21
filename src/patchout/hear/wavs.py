"""The wavs of task folders: mono, 16 bit, one folder per rate; read, written, checked, resampled."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr

from patchout.files import write_aside
from patchout.hear.tasks import Task, TaskError, read_task

RATES = (16_000, 22_050, 32_000, 44_100, 48_000)  # that HEAR models may ask for


def read_wav(path: Path, rate: int) -> np.ndarray:
    """Float32 (samples,) of a mono wav at `rate`; anything else is a TaskError that names it."""
    try:
        wave, found = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise TaskError(f"{path}: cannot be read ({error})") from None
    if found != rate or wave.shape[1] != 1 or not len(wave):
        shape = f"{found} Hz, {wave.shape[1]} channels and {len(wave)} samples"
        raise TaskError(f"{path}: has {shape}, {rate} Hz mono is needed; remove it and resample the task again")
    return wave[:, 0]


def write_wav(path: Path, wave: np.ndarray, rate: int, *, duration_s: float | int | None) -> None:
    """Write float samples (samples,) as int16, cut or filled with zeros at the end to `duration_s`, by rename."""
    size = len(wave) if duration_s is None else round(duration_s * rate)
    pcm = np.zeros(size, np.int16)
    pcm[: len(wave)] = np.clip(np.rint(32768.0 * wave[:size]), -32768, 32767)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_aside(path) as aside:
        soundfile.write(aside, pcm, rate, format="WAV", subtype="PCM_16")


class Found(NamedTuple):
    """A folder that should hold a task."""

    folder: Path
    task: Task | None
    rates: tuple[int, ...]  # in Hz, whose wavs are whole
    problems: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """What a list shows of it."""
        about: dict[str, Any] = {"task": self.folder.name, "state": "damaged" if self.problems else "complete"}
        if self.task is not None:
            about |= {"board": self.task.board, "category": self.task.category, "score": self.task.evaluation[0]}
            about |= {"clips": sum(len(clips) for clips in self.task.annotations.values()), "rates": list(self.rates)}
        return {**about, "problems": list(self.problems)}


def inspect(folder: Path) -> Found:
    """Everything wrong with a folder: its files, and the header of each wav at each rate."""
    try:
        task = read_task(folder)
    except TaskError as error:
        return Found(folder, None, (), (str(error),))
    problems, whole = [], []
    for rate in task.rates():
        odd = [f"{name} ({reason})" for path, name in task.wavs(rate).items() if (reason := _oddness(path, rate, task))]
        whole += [] if odd else [rate]
        problems += [f"{folder}: {len(odd)} wavs at {rate} Hz are missing or broken, such as {odd[0]}"] if odd else []
    if not task.rates():
        problems.append(f"{folder}: has no folder of wavs, such as 48000/{task.splits[0]}")
    return Found(folder, task, tuple(whole), tuple(problems))


def _oddness(path: Path, rate: int, task: Task) -> str:
    """What the header of a wav has wrong, or nothing."""
    if not path.is_file():
        return "not there"
    try:
        found = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        return str(error)
    wanted = found.frames if task.duration_s is None else round(task.duration_s * rate)
    if (found.samplerate, found.channels) == (rate, 1) and abs(found.frames - wanted) <= 1 and found.frames:
        return ""
    return f"{found.samplerate} Hz, {found.channels} channels, {found.frames} of {wanted} samples"


def resample(task: Task, rate: int, *, workers: int = 4) -> Iterator[str]:
    """Write the wavs of a task that are not there at `rate`, from its highest other rate; one "" or problem per wav."""
    sources = [other for other in task.rates() if other != rate]
    if rate not in RATES:
        raise ValueError(f"--rate {rate} is not allowed: HEAR models ask for one of {', '.join(map(str, RATES))}")
    missing = [(path, name) for path, name in task.wavs(rate).items() if not path.is_file()]
    if missing and not sources:
        raise TaskError(
            f"{task.folder}: has no wavs at another rate than {rate} Hz to resample; unpack the archive again"
        )

    def convert(target: Path, name: str) -> str:
        try:
            wave = read_wav(task.folder / str(sources[-1]) / name, sources[-1])
        except TaskError as error:
            return str(error)
        write_wav(target, soxr.resample(wave, sources[-1], rate, quality="HQ"), rate, duration_s=task.duration_s)
        return ""

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(convert, *zip(*missing, strict=True)) if missing else ()

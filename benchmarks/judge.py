"""How FD, KL, IS and KAD of `patchout judge` move with growing damage, and how far protocols differ.

    PATCHOUT_DATA=... python benchmarks/judge.py [--clips 80] [--random-clips 16] [--out DIR]

Fold 1 of ESC-10 is the reference, the pair of each clip. It is judged against itself, against itself through
an MP3 of 64 kbit/s, a telephone (300 to 3400 Hz, 8 kHz) and white noise at three levels, and against fold 2
(no pairs). With the built-in model, and with a PaSST-S of random weights, which says whether a metric needs
training at all.
"""

import argparse
import csv
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
import torch
from scipy import signal

from patchout import load
from patchout.checkpoint.labels import label_names
from patchout.checkpoint.own import save
from patchout.figures import picture
from patchout.judge import Settings, compare
from patchout.judge.figures import compared
from patchout.judge.report import by_metric, numbers
from patchout.models.passt import Passt, PasstConfig

DATA = Path(os.environ["PATCHOUT_DATA"]) / "esc10"
METRICS = ("fd", "kl", "is", "kad")
Damage = Callable[[np.ndarray, int], tuple[np.ndarray, int]]


def telephone(wave: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
    """300 to 3400 Hz, at 8 kHz."""
    band = signal.butter(4, (300, 3400), "bandpass", fs=8000, output="sos")
    return signal.sosfilt(band, soxr.resample(wave, rate, 8000)), 8000


def noisy(snr_db: float) -> Damage:
    """White noise at a ratio of powers; digital silence stays."""

    def damage(wave: np.ndarray, rate: int) -> tuple[np.ndarray, int]:
        noise = np.random.default_rng(0).standard_normal(len(wave))
        return wave + noise * np.sqrt(np.mean(wave**2)) * 10 ** (-snr_db / 20), rate

    return damage


def write_mp3(path: Path, wave: np.ndarray, rate: int) -> None:
    """Mono, 64 kbit/s."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libmp3lame", rate=rate)
        stream.bit_rate, stream.layout = 64_000, "mono"
        frame = av.AudioFrame.from_ndarray(wave.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


DAMAGES: dict[str, Damage] = {
    "itself": lambda wave, rate: (wave, rate),
    "MP3 64 kbit/s": lambda wave, rate: (wave, rate),
    "telephone": telephone,
    "noise 20 dB": noisy(20),
    "noise 10 dB": noisy(10),
    "noise 0 dB": noisy(0),
}


def make_sets(folder: Path, clips: int) -> dict[str, Path]:
    """The sets by name, so many clips in each; "reference" is the fold itself."""
    with (DATA / "esc10.csv").open() as file:
        rows = [*csv.DictReader(file)]
    sets = {name: folder / name.replace("/", "-") for name in ("reference", *DAMAGES, "other fold")}
    for path in sets.values():
        path.mkdir()
    for fold, names in (("1", ("reference", *DAMAGES)), ("2", ("other fold",))):
        chosen = sorted(
            (row for row in rows if row["fold"] == fold), key=lambda row: row["take"] + row["filename"]
        )
        for row in chosen[:: max(1, len(chosen) // clips)][:clips]:
            wave, rate = soundfile.read(DATA / "audio" / row["filename"])
            for name in names:
                damaged, new_rate = DAMAGES.get(name, DAMAGES["itself"])(wave, rate)
                target = sets[name] / Path(row["filename"]).stem
                if "MP3" in name:
                    write_mp3(target.with_suffix(".mp3"), damaged, new_rate)
                else:
                    soundfile.write(target.with_suffix(".wav"), damaged, new_rate, subtype="FLOAT")
    return sets


def course(sets: dict[str, Path], model: str) -> dict[str, dict[str, float]]:
    """Set -> metric -> number, by av-benchmark's loading."""
    table: dict[str, dict[str, float]] = {}
    for name in (*DAMAGES, "other fold"):
        metrics = [metric for metric in METRICS if name != "other fold" or metric != "kl"]
        (judgement,) = compare(
            str(sets[name]), str(sets["reference"]), protocols=["av-benchmark"], metrics=metrics, model=model
        )
        table[name] = {metric: value.value for metric, value in judgement.values.items()}
        print(name, json.dumps(table[name]), flush=True)
    return table


def draw(path: Path, courses: dict[str, dict[str, dict[str, float]]]) -> None:
    """Each metric's course, as a share of its largest value."""
    with picture(path, (9, 6.5)) as figure:
        panels = figure.subplots(2, 2, sharex=True).ravel()
        for axes, metric in zip(panels, METRICS, strict=True):
            for (name, table), colour in zip(courses.items(), ("#2b6c99", "#d55e00"), strict=True):
                values = np.array([row.get(metric, np.nan) for row in table.values()])
                axes.plot(values / np.nanmax(np.abs(values)), "o-", color=colour, label=name)
            axes.set_title(f"{metric.upper()}, share of its largest", loc="left", fontsize=10)
            axes.set_xticks(range(len(table)), table, rotation=35, ha="right", fontsize=8)
            axes.grid(color="#e8eef3")
            axes.axhline(0, color="#cccccc", linewidth=0.8)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].legend(frameon=False, fontsize=8)


def random_passt(path: Path) -> str:
    """A PaSST-S of random weights, 527 classes."""
    config = PasstConfig(labels=tuple(label_names("audioset")))
    save(Passt(config, rng=torch.Generator().manual_seed(0)), path)
    return str(path)


def main() -> None:
    """Measure, print the tables of docs/judge.md and draw its pictures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=80)
    parser.add_argument("--random-clips", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["HF_HOME"] = f"{temporary}/cache"
        folders = {name: Path(temporary) / name for name in ("built-in", "random")}
        for folder in folders.values():
            folder.mkdir()
        sets = make_sets(folders["built-in"], options.clips)
        few = make_sets(folders["random"], options.random_clips)
        courses = {f"sounds-tiny, N = {options.clips}": course(sets, "sounds-tiny")}
        judgements = compare(
            str(sets["noise 20 dB"]),
            str(sets["reference"]),
            model="sounds-tiny",
            settings=Settings(on_note=print),
        )
        print(numbers(judgements))
        compared(
            options.out / "judge-compare.png", by_metric(judgements), title="noise at 20 dB, sounds-tiny"
        )
        model = random_passt(Path(temporary) / "random.safetensors")
        assert load(model, "cpu").config.width == 768
        courses[f"random PaSST-S, N = {options.random_clips}"] = course(few, model)
        print(json.dumps(courses, indent=1))
        draw(options.out / "judge.png", courses)


if __name__ == "__main__":
    main()

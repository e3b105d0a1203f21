"""Four objectives of pre-training on the same sounds, for the same processor time.

`python benchmarks/objectives.py sounds DATA OUT`: the unlabelled sounds, 16 kHz, stretches of 5 s and more.
`... run OBJECTIVE SOUNDS OUT --minutes 60 --seed 0`: pre-train; `--epochs 12` repeats what took another
processor so long.
`... judge DATA RUN ...`: a table of frozen encoders.
`... start RUN START.safetensors`: the weights that a run began with.

DATA holds `free/`, `fsdd/`, `gm/` and `esc50/`. Sounds: the first, takes 5-49 of the digits, the training
instruments and pieces, and ESC-50 without fold 5 and without labels. A run of Tiny on clips of 5 s ends when
its processor time is used up; told to run again it goes on. Judged on ESC-50 at 16 kHz (fold 5), spoken
digits (takes 0-4) and the pitch of notes (instruments held out) by 5 nearest neighbours and by a logistic
regression, beside random weights and the mean and deviation of each band.
"""

import argparse
import contextlib
import csv
import json
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from unlabelled import digits_and_notes

from patchout.audio import stream as audio
from patchout.audio.mel import log_mel
from patchout.checkpoint import own
from patchout.checkpoint.maskspec import encoder_of
from patchout.files import write_json
from patchout.inference.embedding import Embedder, mid_level
from patchout.inference.metrics import wilson_interval
from patchout.models.maskspec_classifier import MaskSpecClassifier
from patchout.training.loop import Progress
from patchout.training.masked import run as masked
from patchout.training.masked.config import FRONT_ENDS, PretrainConfig
from patchout.training.masked.recipes import recipe
from patchout.training.masked.run import OBJECTIVES, start
from patchout.training.masked.survey import cut_long, sounds_of, survey
from patchout.training.run import Listener

RATE, STREAM_S, SHORT_S = 16_000, 6.0, 4.0
HELD_OUT = "5"  # fold of ESC-50


# -- the sounds ----------------------------------------------------------------------------------------------


def unlabelled(data: Path) -> Iterator[tuple[str, list[Path]]]:
    """Name and files of each group of sounds."""
    for folder in sorted(path for path in (data / "free").iterdir() if path.is_dir()):
        yield f"free_{folder.name}", sorted(path for path in folder.rglob("*") if path.is_file())
    yield from digits_and_notes(data).items()
    pieces = json.loads((data / "gm" / "piano.json").read_text())
    yield "piano", [data / "gm" / "piano" / name for name in pieces if pieces[name]["split"] == "train"]
    rows = csv.DictReader((data / "esc50" / "meta" / "esc50.csv").open())
    yield "esc50", [data / "esc50" / "audio" / row["filename"] for row in rows if row["fold"] != HELD_OUT]


def write_streams(groups: Iterable[tuple[str, list[Path]]], out: Path, rate: int = RATE) -> None:
    """Write each group's sounds into a new folder, short ones one after the other in streams of 6 s."""
    out.mkdir(parents=True)
    seconds = 0.0
    for name, paths in groups:
        order = np.random.default_rng(0).permutation(len(paths))
        waiting: list[np.ndarray] = []
        files = 0
        for place, index in enumerate(order):
            wave = audio.load(paths[index], rate)
            waiting.append(wave)
            length = sum(map(len, waiting))
            if len(wave) < SHORT_S * rate and length < STREAM_S * rate and place + 1 < len(order):
                continue
            soundfile.write(out / f"{name}_{files:04d}.wav", np.concatenate(waiting), rate, subtype="PCM_16")
            waiting, files, seconds = [], files + 1, seconds + length / rate
    print(f"{len(list(out.iterdir()))} files, {seconds / 3600:.2f} hours")


# -- the runs ------------------------------------------------------------------------------------------------

COMMON = {
    "size": "tiny",
    "clip_s": 5.0,
    "front_end": "16khz",
    "statistics": "one",
    "mel_jitter": False,
    "precision": "bf16",
    "batch": 64,
    "base_lr": 1e-3 * 256 / 64,
    "clip_norm": 3.0,
    "exclude": (),
}
SETTINGS: dict[str, dict[str, object]] = {  # objective (and variant): what its recipe of Tiny is changed to
    "pixels": {"decoder": (192, 4, 3)},
    "codes": {"front_end": "coarse"},
    "codes-fine": {},
    "latent": {"batch": 16, "base_lr": 1e-3 * 256 / 16, "masks_per_clip": 8, "teacher_decay": (0.99, 0.999)},
    "contrast": {},
    "contrast-blocks": {"masks": "blocks"},
}
LOOKS = 8  # at the nearest neighbours of a run, over its time; the last is the result
PROBES, SEEDS = ("neighbours", "linear"), (0, 1, 2)
TRIAL_STEPS = 12  # from which the clips a second are measured


def config_of(name: str, data: Path, out: Path, epochs: int, seed: int) -> PretrainConfig:
    """The recipe of that objective, with the settings of this comparison."""
    base = recipe({"pixels": "maskspec"}.get(name, name.partition("-")[0]) + "-tiny")[0]
    settings = {"epochs": epochs, "warm_up_epochs": 0.1 * epochs, **COMMON, **SETTINGS[name]}
    return replace(base, recipe=name, data=str(data), out=out, seed=seed, device="cpu", **settings)  # type: ignore[arg-type]


class Clock:
    """Processor seconds of a run over all its calls, in processor.json of its folder; copies of its state on
    the way.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        held = out / "processor.json"
        self.before = json.loads(held.read_text())["seconds"] if held.exists() else 0.0
        self.started, self.written = time.process_time(), 0.0

    def watch(self, now: Progress) -> None:
        """After a step: write the time every few seconds, copy the last saved state a few times a run."""
        seconds = self.before + time.process_time() - self.started
        if seconds - self.written > 5 or now.step == now.steps:
            self.written = seconds
            write_json(self.out / "processor.json", {"seconds": round(seconds, 1), "step": now.step})
        look, state = now.step * LOOKS // now.steps, self.out / "state.pt"
        copy = self.out / f"look-{look}.pt"
        if 0 < look < LOOKS and state.exists() and not copy.exists():
            shutil.copyfile(state, copy)


def calibrate(name: str, data: Path) -> tuple[int, float]:
    """Clips of the set, and how many a processor second; of a few steps whose results are thrown away."""
    marks: list[tuple[int, float]] = []
    clips: list[int] = []

    def mark(now: Progress) -> None:
        marks.append((now.step, time.process_time()))
        if now.step >= TRIAL_STEPS:
            raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder:
        config = config_of(name, data, Path(folder), 1, 0)
        with contextlib.suppress(KeyboardInterrupt):
            masked.run(config, Listener(on_progress=mark, on_plan=lambda plan: clips.append(plan.clips)))
    (first, start), (last, end) = marks[1], marks[-1]
    return clips[0], (last - first) * config.batch / (end - start)


def run(name: str, data: Path, out: Path, minutes: float, seed: int, epochs: int = 0) -> None:
    """Train for so many epochs, or as many as take about so many processor minutes; a run that has begun
    keeps its number.
    """
    out.mkdir(parents=True, exist_ok=True)
    about = out / "comparison.json"
    if not about.exists():
        clips, rate = calibrate(name, data)
        epochs = epochs or max(1, round(60 * minutes * rate / clips))
        plan = {
            "name": name,
            "minutes": round(epochs * clips / rate / 60, 1),
            "epochs": epochs,
            "clips": clips,
            "clips_per_s": round(rate, 2),
        }
        write_json(about, plan)
    print(about.read_text(), flush=True)
    config = config_of(name, data, out, json.loads(about.read_text())["epochs"], seed)
    scores = masked.run(
        config, Listener(on_progress=Clock(out).watch, on_problem=lambda text: print(text, flush=True))
    )
    print(scores, flush=True)


# -- what was learnt -----------------------------------------------------------------------------------------


class Task(NamedTuple):
    """Labelled sounds, of which some are held out."""

    waves: list[np.ndarray]
    labels: np.ndarray
    test: np.ndarray  # is it held out?


def tasks(data: Path) -> dict[str, Task]:
    """ESC-50 at 16 kHz, spoken digits, pitch of notes."""
    rows = list(csv.DictReader((data / "esc50" / "meta" / "esc50.csv").open()))
    notes = list(csv.DictReader((data / "gm" / "pitch.csv").open()))
    digits = sorted((data / "fsdd" / "recordings").glob("*.wav"))
    parts = [path.stem.split("_") for path in digits]
    found = {
        "ESC-50": (
            [data / "esc50" / "audio" / row["filename"] for row in rows],
            [row["category"] for row in rows],
            [row["fold"] == HELD_OUT for row in rows],
        ),
        "digits": (digits, [part[0] for part in parts], [int(part[2]) < 5 for part in parts]),
        "pitch": (
            [data / "gm" / "pitch" / row["file"] for row in notes],
            [row["midi_pitch"] for row in notes],
            [row["split"] == "test" for row in notes],
        ),
    }
    return {
        name: Task([audio.load(path, RATE) for path in paths], np.array(labels), np.array(test))
        for name, (paths, labels, test) in found.items()
    }


def statistics(task: Task) -> np.ndarray:
    """Mean and deviation of every band."""
    mel, rows = FRONT_ENDS["16khz"], []
    for wave in task.waves:
        image = log_mel(np.pad(wave, (0, max(0, mel.min_samples - len(wave))))[None], mel)[0]
        rows.append(torch.cat([image.mean(1), image.std(1, unbiased=False)]).numpy())
    return np.stack(rows)


def encoders(out: Path) -> Iterator[tuple[str, float, MaskSpecClassifier]]:
    """What is asked about, share of the run, encoder: looks with the pooling of the objective, and both at
    the end.
    """
    stored = json.loads((out / "config.json").read_text())["config"]
    names = {field.name for field in fields(PretrainConfig)} - {"probe", "probe_every", "mel_cache"}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
    }
    config = PretrainConfig(**{name: value for name, value in values.items() if name in names})
    config = replace(config, data=json.loads((out / "config.json").read_text())["data"]["root"], out=out)
    clips = cut_long(sounds_of(config), config.clip_s)
    front = FRONT_ENDS[config.front_end]
    heard = survey(clips, front, per_band=config.statistics == "data", floor=config.std_floor)
    model = start(config, heard, device=torch.device("cpu"))
    objective = OBJECTIVES[config.objective](config, model)
    steps = config.epochs * len(clips) // config.batch
    yield "random", 0.0, objective.encoder(model)
    for path in (*sorted(out.glob("look-*.pt")), out / "state.pt"):
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        kind = "mean" if path.name == "state.pt" else "look"
        yield kind, state["step"] / steps, objective.encoder(model)
    if config.objective != "contrast":
        yield "token", state["step"] / steps, encoder_of(model, pooling="token")
    if "average" in state:
        model.load_state_dict(state["average"]["model"])
        yield "teacher", state["step"] / steps, objective.encoder(model)


def accuracies(features: np.ndarray, task: Task, *, linear: bool) -> dict[str, list[float]]:
    """Share of the held-out clips that each probe names; a linear one for three draws of nine tenths of the
    rest.
    """
    scaled = StandardScaler().fit(features[~task.test]).transform(features)
    train, held = scaled[~task.test], scaled[task.test]
    labels, truth = task.labels[~task.test], task.labels[task.test]
    near = KNeighborsClassifier(5, metric="cosine").fit(train, labels)
    scores = {"neighbours": [float((near.predict(held) == truth).mean())]}
    for seed in SEEDS if linear else ():
        drawn = np.random.default_rng(seed).permutation(len(train))[: 9 * len(train) // 10]
        model = LogisticRegression(C=0.1, max_iter=300).fit(train[drawn], labels[drawn])
        scores.setdefault("linear", []).append(float((model.predict(held) == truth).mean()))
    return scores


def judge(data: Path, runs: Sequence[Path]) -> None:
    """Ask every encoder, write judged.json into each run, print the table and the curves."""
    known = tasks(data)
    rows = {
        "log-mel statistics": {
            name: accuracies(statistics(task), task, linear=True) for name, task in known.items()
        }
    }
    for out in runs:
        judged: list[dict[str, Any]] = []
        for kind, share, encoder in encoders(out):
            embedder, is_look = Embedder(encoder, mid_level(encoder.config), precision="bf16"), kind == "look"
            scores = {
                name: accuracies(np.stack(embedder.scenes_of_each(task.waves)), task, linear=not is_look)
                for name, task in known.items()
                if not is_look or name == "ESC-50"
            }
            judged.append({"kind": kind, "share": round(share, 3), "scores": scores})
            print(out.name, json.dumps(judged[-1]), flush=True)
            if not is_look:
                rows[f"{out.name}, {kind}"] = scores
        write_json(out / "judged.json", {"judged": judged})
    print("| frozen encoder | " + " | ".join(f"{name}, {probe}" for name in known for probe in PROBES) + " |")
    print("| --- |" + " --- |" * (len(known) * len(PROBES)))
    for row, scores in rows.items():
        cells = [cell(scores[name][probe], int(known[name].test.sum())) for name in known for probe in PROBES]
        print(f"| {row} | " + " | ".join(cells) + " |")


def cell(scores: Sequence[float], clips: int) -> str:
    """Mean over the seeds, and its interval of 95 % for so many clips."""
    mean = float(np.mean(scores))
    low, high = wilson_interval(mean, clips)
    return f"{100 * mean:.1f} ({100 * low:.1f} - {100 * high:.1f})"


def main() -> None:
    """One of the three."""
    parser = argparse.ArgumentParser(
        description="Four objectives of pre-training, for the same processor time."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("sounds")
    make.add_argument("data", type=Path)
    make.add_argument("out", type=Path)
    train = commands.add_parser("run")
    train.add_argument("objective", choices=SETTINGS)
    train.add_argument("sounds", type=Path)
    train.add_argument("out", type=Path)
    train.add_argument("--minutes", type=float, default=60.0)
    train.add_argument("--epochs", type=int, default=0, help="instead of minutes")
    train.add_argument("--seed", type=int, default=0)
    ask = commands.add_parser("judge")
    ask.add_argument("data", type=Path)
    ask.add_argument("runs", type=Path, nargs="+")
    first = commands.add_parser("start")
    first.add_argument("run", type=Path)
    first.add_argument("out", type=Path)
    options = parser.parse_args()
    if options.command == "start":
        _, _, encoder = next(encoders(options.run))
        own.save(encoder, options.out)
    elif options.command == "judge":
        judge(options.data, options.runs)
    elif options.command == "sounds":
        write_streams(unlabelled(options.data), options.out)
    else:
        run(options.objective, options.sounds, options.out, options.minutes, options.seed, options.epochs)


if __name__ == "__main__":
    main()

"""The bulk job from files to shards against its model alone, both measured in this run:
python benchmarks/bulk.py

The built-in model on clips like those of ESC-10 (5 s, 44.1 kHz, 16-bit wav): made up, or those of
`PATCHOUT_DATA`/esc10 if that is set. Model alone: the same clips, decoded before, through the same embedder,
as many at a time as the job takes. Every round runs each side once; the best round of each counts. Then the
resident memory of one job over 10,000 clips of one second, read while it runs. Run it on an otherwise idle
machine.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import soundfile
import torch

from patchout.audio.mel import MelConfig
from patchout.data.items import Item, read_items
from patchout.inference.bulk import run as bulk
from patchout.inference.bulk.ahead import decode, open_stream
from patchout.inference.bulk.embed import EmbedJob
from patchout.inference.bulk.run import run
from patchout.inference.embedding import MID
from patchout.models.device import pick_precision

ESC_S, ESC_RATE = 5.0, 44_100
WARM = 0.2  # of a job: what is allocated until then is not counted as growth


def make_clips(folder: Path, count: int, seconds: float, rate: int) -> list[Item]:
    """Tones in noise, no two alike."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    time_s = np.arange(round(seconds * rate)) / rate
    items = []
    for index in range(count):
        wave = 0.2 * np.sin(2 * np.pi * rng.uniform(100, 5000) * time_s) + 0.02 * rng.standard_normal(
            len(time_s)
        )
        soundfile.write(folder / f"{index:05}.wav", wave, rate)
        items.append(Item(str(folder / f"{index:05}.wav")))
    return items


def job_seconds(items: Sequence[Item], job: EmbedJob, out: Path) -> float:
    """The whole job, loading the model included."""
    start = time.perf_counter()
    summary = run(items, job, str(out), device="cpu")
    assert summary.num_failed == 0, summary.failed
    return time.perf_counter() - start


def decoded(items: Sequence[Item]) -> list[np.ndarray]:
    """Every clip at the model's rate."""
    opener = partial(open_stream, rate=MelConfig().sample_rate, channel="mean")
    sounds = (decode(item, opener) for item in items)
    return [sound.wave for sound in sounds if sound.wave is not None]


def model_seconds(waves: Sequence[np.ndarray], job: EmbedJob) -> float:
    """The model on sounds that are decoded already, those of equal length at a time."""
    embedder = job.embedder("cpu")
    at_a_time = max(1, min(job.sized(len(waves)).shard_rows, bulk.CHUNK_BYTES // (4 * len(waves[0]))))
    start = time.perf_counter()
    for first in range(0, len(waves), at_a_time):
        for _, group in groupby(sorted(waves[first : first + at_a_time], key=len), key=len):
            part = torch.from_numpy(np.stack(list(group)))
            embedder.scenes(part) if job.kind == "scene" else embedder.timestamps(part)
    return time.perf_counter() - start


def speed(
    items: Sequence[Item], kind: Literal["scene", "timestamp"], folder: Path, rounds: int
) -> dict[str, object]:
    """Seconds of both sides, and how much longer the job takes."""
    precision = pick_precision("auto", torch.device("cpu"))
    job = EmbedJob(model="sounds-tiny", kind=kind, config=MID, precision=precision)
    waves = decoded(items)
    model = whole = float("inf")
    for number in range(rounds):
        model = min(model, model_seconds(waves, job))
        whole = min(whole, job_seconds(items, job, folder / f"{kind}-{number}"))
    over = whole / model - 1
    print(
        f"{kind:<10}{len(items)} clips, {precision}: model {model:.2f} s, job {whole:.2f} s, {over:+.1%}",
        flush=True,
    )
    return {
        "kind": kind,
        "clips": len(items),
        "model_s": model,
        "job_s": whole,
        "over": over,
        "precision": precision,
    }


def memory(items: Sequence[Item], folder: Path) -> dict[str, float]:
    """Resident memory of this process in MB when the job is warm, at its most after that, and at its end."""
    process, seen, done = psutil.Process(), [], 0

    def look(count: int, _: float) -> None:
        nonlocal done
        done += count
        if done >= WARM * len(items):
            seen.append(process.memory_info().rss / 2**20)

    run(items, EmbedJob(model="sounds-tiny", config=MID), str(folder), device="cpu", on_progress=look)
    found = {"warm_mb": seen[0], "most_mb": max(seen), "end_mb": seen[-1]}
    numbers = ", ".join(f"{name.removesuffix('_mb')} {value:.0f} MB" for name, value in found.items())
    print(f"memory    {len(items)} clips of 1 s: {numbers}", flush=True)
    return found


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description="The bulk embedding job against its model alone (CPU).")
    parser.add_argument(
        "--clips", type=int, default=400, help="made-up clips of 5 s (default: 400, as ESC-10)"
    )
    parser.add_argument(
        "--short", type=int, default=10_000, help="clips of 1 s for the memory (default: 10000)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="times each side runs; the best counts (default: 3)"
    )
    parser.add_argument("--json", type=Path, help="file to write the same numbers to")
    options = parser.parse_args()
    print(f"torch {torch.__version__}  threads {torch.get_num_threads()}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder, data = Path(name), os.environ.get("PATCHOUT_DATA")
        items: Sequence[Item] = read_items([f"{data}/esc10"]) if data else []
        items = items or make_clips(folder / "clips", options.clips, ESC_S, ESC_RATE)
        rows = [speed(items, kind, folder, options.rounds) for kind in ("scene", "timestamp")]
        short = memory(make_clips(folder / "short", options.short, 1.0, 32_000), folder / "short out")
    if options.json:
        options.json.write_text(json.dumps({"speed": rows, "memory": short}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Clips a second and core that reach the training loop from mp3: python benchmarks/loader.py

Makes clips of 10 s (mono mp3 at 32 kHz, 128 kbit/s), packs them as `patchout prepare` does, and reads them as
training does: from the memory map, decoded, gain and roll, stacked to batches, by spawned workers, without
and with waveform mixing (which decodes every other clip twice). Decoding with libav alone, in the same round,
is what there is to reach. Rates are clips over the processor time of all processes together, the best round
of each; so other work on the machine counts little, and what the training loop's process spends on taking the
batches counts in full.
"""

import argparse
import io
import json
import platform
import tempfile
from pathlib import Path

import av
import numpy as np
import psutil
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from patchout.data import augment
from patchout.data.augment import WaveMix
from patchout.data.batches import StepSampler, Waves, batches
from patchout.data.sets import ClipSet, scan

RATE = 32_000
CLIP_S = 10
BATCH = 12
SHARD_CLIPS = 100


def mp3(seed: int) -> bytes:
    """Ten seconds of tones that come and go, and noise."""
    seconds = np.arange(CLIP_S * RATE) / RATE
    rng = np.random.default_rng(seed)
    tones = sum(
        np.sin(2 * np.pi * hz * seconds) * np.sin(speed * seconds)
        for hz, speed in rng.uniform(1, 4000, (5, 2))
    )
    wave = (0.05 * tones + 0.02 * rng.standard_normal(len(seconds))).astype(np.float32)
    file = io.BytesIO()
    with av.open(file, "w", "mp3") as container:
        stream = container.add_stream("mp3", rate=RATE, bit_rate=128_000, layout="mono", format="fltp")
        for start in range(0, len(wave), 1152):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1152], "fltp", "mono")
            frame.sample_rate, frame.pts = RATE, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def pack(folder: Path, clips: int) -> ClipSet:
    """A prepared set of so many clips, of which 32 differ."""
    sounds = [mp3(seed) for seed in range(32)]
    files = []
    for first in range(0, clips, SHARD_CLIPS):
        numbers = range(first, min(first + SHARD_CLIPS, clips))
        table = pa.table(
            {
                "id": [f"clip {number}" for number in numbers],
                "audio": pa.array([sounds[number % 32] for number in numbers], pa.binary()),
                "labels": pa.array([[number % 527] for number in numbers], pa.list_(pa.int32())),
            }
        )
        files.append(folder / f"data-{first:05d}.arrow")
        with pa.OSFile(str(files[-1]), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": file.name} for file in files]})
    )
    classes = [f"class {index}" for index in range(527)]
    (folder / "dataset.json").write_text(json.dumps({"format": 1, "classes": classes, "task": "multi_label"}))
    return scan(folder)


def change(wave: Float[Tensor, "sample"], rng: Generator) -> Float[Tensor, "sample"]:
    """The published augmentation of one waveform."""
    return augment.roll(augment.fit(augment.gain(wave, (-7, 6), rng), RATE * CLIP_S), 50, rng)


def cpu_s() -> float:
    """Processor time of this process and its workers, seconds."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def decoded(clips: ClipSet, count: int) -> float:
    """Clips a second that libav alone decodes, here and on one thread, with nothing done to the samples."""
    assert clips.packed is not None
    started = cpu_s()
    for number in range(count):
        with av.open(clips.packed.source(number % len(clips), "clip")) as container:
            for _ in container.decode(audio=0):
                pass
    return count / (cpu_s() - started)


def loaded(clips: ClipSet, mix: WaveMix | None, *, workers: int, count: int) -> float:
    """Clips a second through the whole loader, once its workers have begun."""
    waves = Waves(clips, rate=RATE, num_samples=RATE * CLIP_S, seed=0, augment=change, mix=mix)
    waves.cache_samples = 0
    sampler = StepSampler(len(clips), BATCH, seed=0, first=0, last=10**9)
    ready = iter(batches(waves, sampler, workers=workers))
    for _ in range(4 * max(1, workers)):  # as many as are read ahead, and more
        next(ready)
    started = cpu_s()
    for _ in range(count // BATCH):
        next(ready)
    return count // BATCH * BATCH / (cpu_s() - started)


def main() -> None:
    """Pack, measure, print."""
    parser = argparse.ArgumentParser(description="Clips a second and core from mp3 to a batch.")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode; 0: this one")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, list[float]] = {"libav alone": [], "without mixing": [], "with mixing": []}
    with tempfile.TemporaryDirectory() as folder:
        clips = pack(Path(folder), options.clips)
        for _ in range(options.rounds):
            rows["libav alone"].append(decoded(clips, options.clips))
            for name, mix in (("without mixing", None), ("with mixing", WaveMix())):
                rows[name].append(loaded(clips, mix, workers=options.workers, count=options.clips))
    best = {name: max(rates) for name, rates in rows.items()}
    print(
        f"{platform.machine()}, torch {torch.__version__}, PyAV {av.__version__}, {options.workers} workers"
    )
    for name, rate in best.items():
        print(f"{name:<16}{rate:>8.1f} clips/s and core{rate / best['libav alone']:>8.2f}")


if __name__ == "__main__":
    main()

"""Writes the files beside it by a version's public names and commands alone: `python make.py`, once a
version.

They are what people have on their disks: checkpoints, runs that were stopped, a prepared set, an embedding
job of which a shard is missing, HEAR results. `tests/test_stored_files.py` opens them with today's code.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch

import patchout
from patchout.checkpoint import own as checkpoint
from patchout.models.maskspec import MaskSpec, MaskSpecConfig

RATE = 8000
SECONDS = 0.25
TONES_HZ = {"bell": 1500, "dog": 150, "rain": 0}  # 0: noise
STEPS = ["--device", "cpu", "--precision", "fp32", "--batch", "6", "--clip-s", "0.25"]


def wave(label: str, index: int, *, rate: int = RATE) -> np.ndarray:
    """A quarter of a second that anyone can tell apart, (samples,)."""
    samples = round(SECONDS * rate)
    if not TONES_HZ[label]:
        return 0.1 * np.random.default_rng(index).standard_normal(samples)
    return 0.2 * np.sin(2 * np.pi * (TONES_HZ[label] + 20 * index) * np.arange(samples) / rate)


def write(path: Path, samples: np.ndarray, *, rate: int = RATE) -> None:
    """A 16-bit wav, folders and all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)


def call(*words: str) -> None:
    """The command, to its end."""
    subprocess.run([sys.executable, "-m", "patchout", *words], check=True)


def stop_after_an_epoch(out: Path, words: Sequence[str]) -> None:
    """The command, asked to stop once it has logged an epoch: it saves its state and leaves."""
    process = subprocess.Popen([sys.executable, "-m", "patchout", *words, "--out", str(out)])
    while not (out / "metrics.jsonl").is_file():
        assert process.poll() is None, f"{out}: ended before its first epoch"
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert not (out / "model.safetensors").exists(), f"{out}: came to its end before it was asked to stop"
    shutil.rmtree(out / "tensorboard", ignore_errors=True)


def hear_task(folder: Path) -> None:
    """A HEAR task of two classes with three clips a split."""
    splits = ("train", "valid", "test")
    about = {
        "task_name": "toy",
        "version": "v1",
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "split_mode": "trainvaltest",
        "sample_duration": SECONDS,
        "evaluation": ["top1_acc"],
        "splits": splits,
        "mode": "full",
    }
    for split in splits:
        labels = {f"{split}{index}.wav": ["bell" if index % 2 else "dog"] for index in range(3)}
        for file, (label,) in labels.items():
            write(folder / "32000" / split / file, wave(label, int(file[-5]), rate=32_000), rate=32_000)
        (folder / f"{split}.json").write_text(json.dumps(labels))
    (folder / "task_metadata.json").write_text(json.dumps(about))
    (folder / "labelvocabulary.csv").write_text("idx,label\n0,bell\n1,dog\n")


def main() -> None:
    """Everything, into the folder of this file."""
    os.chdir(Path(__file__).parent)
    for path in Path.cwd().iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "make.py":
            path.unlink()
    for label in TONES_HZ:
        for index in range(4):
            write(Path("sounds", label, f"{index}.wav"), wave(label, index))
    hiss = 0.1 * np.random.default_rng(0).standard_normal(
        61_000
    )  # a minute, below which nothing can be learnt
    Path("unlabelled").mkdir()
    soundfile.write("unlabelled/hiss.wav", hiss, 1000, subtype="PCM_U8")
    rng = torch.Generator().manual_seed(0)
    config = patchout.PasstConfig(
        width=16,
        depth=2,
        heads=2,
        columns=9,
        labels=tuple(TONES_HZ),
        task="multi_class",
        mel=patchout.MelConfig(),
    )
    checkpoint.save(patchout.Passt(config, rng=rng), "passt.safetensors")
    masked = MaskSpecConfig(
        width=16, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2, columns=6
    )
    checkpoint.save(MaskSpec(masked, rng=rng), "maskspec.safetensors")
    train = ["train", "folder", "--data", "sounds", "--init", "passt.safetensors", "--epochs", "6", *STEPS]
    stop_after_an_epoch(Path("run"), [*train, "--roll-s", "0"])
    pretrain = ["pretrain", "own", "--data", "unlabelled", "--init", "maskspec.safetensors", *STEPS]
    stop_after_an_epoch(
        Path("pretraining"), [*pretrain, "--epochs", "3", "--horizon-epochs", "3", "--warm-up-epochs", "1"]
    )
    call("prepare", "folder", "--source", "sounds", "--out", "prepared", "--encoding", "flac")
    embed = ["embed", "sounds", "--model", "passt.safetensors", "--device", "cpu", "--precision", "fp32"]
    call(*embed, "--out", "job")
    Path("job", "part-000001.parquet").unlink()
    call(*embed, "--out", "joined.parquet")
    hear_task(Path("tasks", "toy-v1-full"))
    call(
        "hear",
        "run",
        "passt.safetensors",
        "--tasks",
        "tasks",
        "--out",
        "hear",
        "--grid",
        "two",
        "--device",
        "cpu",
    )


if __name__ == "__main__":
    main()

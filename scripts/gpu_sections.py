"""The sections of `gpu_check.py`: rows on the published sizes, or on such as try the script."""

import itertools
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_setting import Row, Setting, rng, waves, written
from torch import nn

import patchout
from patchout.bench import measure
from patchout.bench.rows import columns, passt_gflop
from patchout.checkpoint import own
from patchout.data.batches import Batch
from patchout.data.items import Item
from patchout.hear.probe import GRIDS, NUM_POINTS
from patchout.hear.probe_network import Check, Data, Point, Probe, train_group
from patchout.inference import token_budget
from patchout.inference.bulk.embed import EmbedJob
from patchout.inference.bulk.run import run as embed_all
from patchout.inference.embedding import EmbedConfig, Embedder, Level
from patchout.inference.window_scores import score
from patchout.models.device import Precision
from patchout.models.maskspec import MaskSpec, MaskSpecConfig
from patchout.models.passt import PasstConfig
from patchout.training import loop, optim
from patchout.training.masked.config import PretrainConfig
from patchout.training.masked.objectives.pixels import Pixels
from patchout.training.step import Stepper, Work
from patchout.training.supervised.config import TrainConfig
from patchout.training.supervised.loss import StepLoss

TESTS = "tests/test_gpu.py"


# -- sections ------------------------------------------------------------------------------------------------


def machine(setting: Setting) -> Iterator[Row]:
    """Ceilings: matrix products, memory, the way to the device."""
    size = 256 if setting.quick else 8192
    a, b = (torch.randn(size, size, device=setting.device) for _ in range(2))
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x, y = a.to(dtype), b.to(dtype)
        seconds = setting.timed(lambda x=x, y=y: x @ y)  # type: ignore[misc]
        yield Row(f"matrix product, {name}", 2 * size**3 / seconds / 1e12, "TFLOP/s")
    source = torch.empty(2**20 if setting.quick else 2**30, dtype=torch.uint8, device=setting.device)
    yield Row("copy on the device", 2 * len(source) / setting.timed(source.clone) / 1e9, "GB/s")
    host = torch.empty(2**20 if setting.quick else 2**28, dtype=torch.uint8)
    for name, tensor in (("pageable", host), *([("pinned", host.pin_memory())] if setting.is_cuda else [])):
        seconds = setting.timed(lambda tensor=tensor: tensor.to(setting.device, copy=True))  # type: ignore[misc]
        yield Row(f"copy to the device, {name}", len(host) / seconds / 1e9, "GB/s")


def tests(setting: Setting) -> Iterator[Row]:
    """The tests marked gpu, which hold the bounds against the CPU and allow no wait in a step."""
    if not setting.is_cuda:
        return
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "--tb=short",
        TESTS,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    sys.stderr.write(done.stdout[-6000:])
    for outcome in ("passed", "failed", "error", "skipped"):
        words = done.stdout.replace(",", " ").split()
        count = next((int(words[i - 1]) for i, word in enumerate(words) if i and word.startswith(outcome)), 0)
        yield Row(f"tests {outcome}", count, "tests", "0" if outcome in ("failed", "error") else "")


def bench(setting: Setting) -> Iterator[Row]:
    """`patchout bench`: PaSST-S and S-N."""
    base = setting.passt().config if setting.quick else PasstConfig(labels=setting.passt().config.labels)
    settings = measure.Settings(
        device=setting.device, batch=2 if setting.quick else 0, seconds=setting.seconds, base=base
    )
    peak = measure.matrix_flops(settings)
    for row in measure.rows(("S",) if setting.quick else ("S", "S-N"), settings, peak):
        if row.measured is None:
            raise RuntimeError(row.problem)
        values = row.measured
        yield Row(
            f"bench {row.name}, training",
            values.training_clips_per_s,
            "clips/s",
            "1450" if row.name == "S" else "",
        )
        yield Row(f"bench {row.name}, share of the peak", 100 * values.utilisation, "%")
        yield Row(
            f"bench {row.name}, inference",
            values.inference_clips_per_s,
            "clips/s",
            "1800" if row.name == "S" else "",
        )


def stepped(
    setting: Setting, model: nn.Module, loss: Any, clips: int, *, may_wait: bool = False, **changes: Any
) -> float:
    """Clips a second of the real training step on batches in pinned memory, whose waits are errors."""
    group = {"params": [*model.parameters()], "scale": 1.0, "weight_decay": 0.0}
    classes = len(getattr(model.config, "labels", ()))
    wave = torch.from_numpy(np.stack(waves(clips, setting.clip_s)))
    label, weight = torch.zeros(clips, classes), torch.ones(clips, max(1, classes))
    if setting.is_cuda:
        wave, label, weight = (part.pin_memory() for part in (wave, label, weight))
    batch = Batch(wave, label, weight, torch.arange(clips), ())
    values: dict[str, Any] = {"model": model, "optimizer": optim.adamw([group], 1e-5), "loss": loss}
    values |= {"rate": lambda step: 1.0, "batch": clips, "clips": clips, "clip_name": str}
    with tempfile.TemporaryDirectory() as folder:
        stepper = Stepper(Work(**values, **changes), loop.engine(setting.device, Path(folder)), print)
        for _ in range(3):
            stepper.train([batch], 0)
        if setting.is_cuda and not may_wait:
            torch.cuda.set_sync_debug_mode("error")
        try:
            stepper.train([batch], 0)
        finally:
            if setting.is_cuda:
                torch.cuda.set_sync_debug_mode("default")
        seconds = setting.timed(lambda: stepper.train([batch], 0))
        stepper.check()
    return clips / seconds


def training(setting: Setting) -> Iterator[Row]:
    """Supervised steps of PaSST-S: log-mel, SpecAugment, mixup, Patchout, AdamW."""
    modes: list[tuple[int, Precision, str]] = [
        (12, "bf16", ""),
        (64, "bf16", ""),
        (256, "bf16", ""),
        (64, "fp16", ""),
        (12, "bf16", "compiled"),
        (64, "bf16", "compiled"),
        (12, "bf16", "CUDA graphs"),  # last: nobody has tried them
    ]
    for clips, precision, way in [(4, setting.precision(), "")] if setting.quick else modes:
        model = setting.passt().to(setting.device)
        drops: dict[str, Any] = {"patchout_freq": 1, "patchout_time": 2} if setting.quick else {}
        config = TrainConfig(
            recipe="check", clip_s=setting.clip_s, precision=precision, mel_jitter=True, **drops
        )
        loss = StepLoss(config, model.config, torch.ones(len(model.config.labels)))
        if way == "CUDA graphs":
            model.encoder.compile(dynamic=False, mode="reduce-overhead")
        changes = {"may_wait": bool(way), "compile": way == "compiled"}
        rate = stepped(setting, model, loss, clips, precision=precision, **changes)
        name = f"train PaSST-S, {clips} clips a step, {precision}{', ' * bool(way)}{way}"
        yield Row(name, rate, "clips/s", "1450" if (clips, precision) == (64, "bf16") else "")
        across = columns(model.config, setting.clip_s)
        visible = config.patchout.num_kept(model.config.rows, across)
        yield Row(
            f"{name}: arithmetic", rate * passt_gflop(model.config, visible, training=True) / 1e3, "TFLOP/s"
        )


def pretraining(setting: Setting) -> Iterator[Row]:
    """Steps of MaskSpec Base."""
    tiny: dict[str, Any] = {
        "width": 32,
        "depth": 1,
        "heads": 2,
        "columns": 6,
        "decoder_width": 32,
        "decoder_depth": 1,
        "decoder_heads": 2,
    }
    for clips, compiled in [(4, False)] if setting.quick else [(64, False), (512, False), (512, True)]:
        model = MaskSpec(MaskSpecConfig(**(tiny if setting.quick else {})), rng=rng()).to(setting.device)
        precision = setting.precision()
        config = PretrainConfig(recipe="check", clip_s=setting.clip_s, precision=precision, mel_jitter=True)
        loss = Pixels(config, model)
        changes = {"may_wait": compiled, "compile": compiled}
        rate = stepped(setting, model, loss, clips, precision=precision, **changes)
        name = f"pre-train MaskSpec Base, {clips} clips a step{', compiled' if compiled else ''}"
        yield Row(name, rate, "clips/s", "2500" if clips == 512 else "")


def inference(setting: Setting) -> Iterator[Row]:
    """Tagging: from memory with equal and unequal lengths, and from compressed files."""
    model, precision = setting.passt().to(setting.device).eval(), setting.precision()
    count = 8 if setting.quick else 512
    lengths = np.random.default_rng(0).uniform(0.3, 1.0, count) * setting.clip_s
    sounds = waves(count, setting.clip_s)
    unequal = [wave[: round(32_000 * length)] for wave, length in zip(sounds, lengths, strict=True)]

    def tag(some: list[np.ndarray]) -> None:
        streams = (patchout.audio.Stream((wave, 32_000)) for wave in some)
        for _ in score(model, streams, precision=precision, batch_size=64):
            pass

    for name, some in (("of equal lengths", sounds), ("of unequal lengths", unequal)):
        for when in ("for the first time", "again"):  # kernels may be planned for each new length
            seconds = setting.once(partial(tag, some))
            goal = "1800" if some is sounds and when == "again" else ""
            yield Row(f"tag, from memory, {name}, {when}", count / seconds, "clips/s", goal)
    with tempfile.TemporaryDirectory() as folder:
        paths = written(Path(folder), sounds)
        seconds = setting.once(lambda: [*patchout.tag_many(model, paths, precision=precision, batch_size=64)])
        yield Row("tag, FLAC files of 44.1 kHz", count / seconds, "files/s")


def embeddings(setting: Setting) -> Iterator[Row]:
    """Timestamps, x real time, and a job on files."""
    model, count = setting.passt().to(setting.device).eval(), 2 if setting.quick else 64
    sounds, precision = waves(count, setting.clip_s), setting.precision()
    fields: dict[str, tuple[Level, ...]] = {
        "mid, 160 ms": ("mid",),
        "low and mid, 160 and 640 ms": ("low", "mid"),
    }
    for name, levels in fields.items():
        config = EmbedConfig(levels=levels, scene_levels=("mid",), fields_ms=(160.0, 640.0)[: len(levels)])
        embedder = Embedder(model, config, precision=precision)
        seconds = setting.timed(lambda embedder=embedder: embedder.timestamps_of_each(sounds))  # type: ignore[misc]
        yield Row(f"timestamps, {name}", count * setting.clip_s / seconds, "x real time", "1000")
    with tempfile.TemporaryDirectory() as folder:
        files = [
            Item(str(path))
            for path in written(Path(folder), waves(8 if setting.quick else 512, setting.clip_s))
        ]
        own.save(model, Path(folder) / "model.safetensors")
        job = EmbedJob(
            model=str(Path(folder) / "model.safetensors"),
            config=EmbedConfig(scene_levels=("mid",)),
            precision=precision,
        )
        for tokens in [8192] if setting.quick else [8192, 32_768, 131_072]:
            token_budget.CUDA_TOKENS = tokens
            out = f"{folder}/{tokens}"
            seconds = setting.once(lambda out=out: embed_all(files, job, out, device=str(setting.device)))  # type: ignore[misc]
            yield Row(
                f"scene embeddings of FLAC files, {tokens} tokens a pass", len(files) / seconds, "files/s"
            )


def probes(setting: Setting) -> Iterator[Row]:
    """The eight HEAR probes: one after another, and as one group, in float32 and TF32."""
    rows, epochs = (40, 1) if setting.quick else (1600, 10)
    target = nn.functional.one_hot(torch.randint(50, (rows,), generator=rng()), 50).float()
    data = Data(
        torch.randn(rows, 1295, generator=rng()).to(setting.device), target.to(setting.device), one_label=True
    )
    grid: dict[str, Any] = {**GRIDS["full"], "max_epochs": (epochs,)}
    points = [Point(*row) for row in itertools.product(*grid.values())][::2][
        : 2 if setting.quick else NUM_POINTS
    ]

    def fit(groups: list[list[Probe]]) -> None:
        for group in groups:
            draw = torch.Generator(setting.device).manual_seed(0)
            train_group(group, data, data.values, lambda logits: Check(0.0), draw)

    def seconds(together: bool) -> float:
        made_of = [Probe(point, data, rng()) for point in points]
        return setting.once(lambda: fit([made_of] if together else [[probe] for probe in made_of]))

    seconds(True)  # the first use of a device is slow
    for name in ("highest", "high") if setting.is_cuda else ("highest",):
        torch.set_float32_matmul_precision(name)
        alone, together = seconds(False), seconds(True)
        kind = "TF32" if name == "high" else "fp32"
        yield Row(f"{len(points)} probes in one group, {kind}", epochs / together, "epochs/s")
        yield Row(
            f"{len(points)} probes in one group against one after another, {kind}", alone / together, "x", "5"
        )


SECTIONS: dict[str, Callable[[Setting], Iterator[Row]]] = {
    section.__name__: section
    for section in (machine, tests, bench, training, pretraining, inference, embeddings, probes)
}

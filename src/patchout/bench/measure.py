"""Measures the rows of the papers' complexity tables on this machine: size, cost, speed, memory."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from patchout.audio.mel import MelConfig, log_mel
from patchout.bench import cnn14
from patchout.bench.rows import CITED_ONLY, CLIP_S, CNN14, MEASURED, ROWS, Cited, columns, passt_gflop
from patchout.checkpoint.labels import label_names
from patchout.models import kernels
from patchout.models.autotune import processor
from patchout.models.device import HALF, InferencePrecision, Precision, autocast, pick_precision
from patchout.models.int8 import at_precision
from patchout.models.passt import Passt, PasstConfig
from patchout.models.tagger import Tagger
from patchout.models.transformer import compile_transformer
from patchout.training.plan import activation_bytes

BATCH = {"cuda": 64, "mps": 8, "cpu": 2}
ROUND_S = 0.2  # shortest time that is measured: calls are repeated to fill it
ARITHMETICS: dict[str, tuple[InferencePrecision, ...]] = {
    "cuda": ("fp32", "bf16", "fp16"),
    "mps": ("fp32",),
    "cpu": ("fp32", "bf16", "int8"),
}
MATRIX = {"cuda": 8192, "mps": 4096, "cpu": 2048}  # size of the matrix product that shows the peak


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a measurement: `batch` 0 is that of the device, `seconds` is for each timing of a row.

    `compile` compiles the encoder of training steps, as a run with --compile does.
    """

    device: torch.device
    precision: Precision = "auto"
    batch: int = 0
    seconds: float = 3.0
    compile: bool = False
    base: PasstConfig = field(default_factory=lambda: PasstConfig(labels=label_names("audioset")))

    @property
    def clips(self) -> int:
        """Clips a step."""
        return self.batch or BATCH[self.device.type]


class Arithmetic(NamedTuple):
    """Speed of PaSST-S in one arithmetic, and its share of the fastest matrix product in it."""

    precision: str
    peak_tflops: float
    clips_per_s: float
    utilisation: float


@dataclass(frozen=True)
class Measured:
    """Measurements of one row; GFLOP are of the matrix products of one clip, without the log-mel."""

    tokens: int  # in training, C and D included; 0: no transformer
    inference_tokens: int
    parameters: int
    training_gflop: float  # forward and backward
    inference_gflop: float
    training_clips_per_s: float  # waveform -> log-mel -> forward -> backward -> AdamW
    inference_clips_per_s: float  # waveform -> log-mel -> logits
    activation_gb: float  # that autograd keeps for one more clip
    peak_gb: float | None  # of a training step on a CUDA device, all in all
    utilisation: float  # FLOP/s in training over those of a large matrix product


class Subject(NamedTuple):
    """A model under test: front end, log-mel -> logits in both modes, tokens and GFLOP."""

    model: nn.Module
    mel: MelConfig
    clip_s: float
    learn: Callable[[Tensor], Tensor]
    infer: Callable[[Tensor], Tensor]
    tokens: tuple[int, int]  # in training, in inference
    gflop: tuple[float, float]


@dataclass(frozen=True)
class Row:
    """A line of a table; `problem` says why nothing was measured, unless it is cited only."""

    name: str
    measured: Measured | None
    cited: Cited
    problem: str = ""


def rows(names: Sequence[str], settings: Settings, peak_flops: float) -> Iterator[Row]:
    """Measure the rows one after the other; rows of one model and Patchout are measured once."""
    measured: dict[object, Measured] = {}
    for name in names:
        key = replace(MEASURED[name], cited=Cited()) if name in MEASURED else name
        problem = ""
        try:
            if key not in measured and name not in CITED_ONLY:
                measured[key] = measure(name, settings, peak_flops)
        except torch.OutOfMemoryError:
            problem = f"a batch of {settings.clips} does not fit: lower --batch"
        yield Row(name, measured.get(key), ROWS[name], problem)


def measure(name: str, settings: Settings, peak_flops: float) -> Measured:
    """Measure one row against `peak_flops`; torch.OutOfMemoryError if it does not fit on the GPU."""
    device, subject = settings.device, make(name, settings.base)
    model = subject.model.to(device).train()
    activations = activation_bytes(training_forward(subject, settings))
    if settings.compile:
        compile_transformer(model)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    step_s = best_s(training_step(subject, settings), device, seconds=settings.seconds)
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None
    wave = _noise(subject, settings)[: settings.clips]

    def infer() -> Tensor:
        with torch.inference_mode(), autocast(device, settings.precision):
            return subject.infer(log_mel(wave, subject.mel))

    model.eval()
    inference_s = best_s(infer, device, seconds=settings.seconds)
    return Measured(
        *subject.tokens,
        sum(parameter.numel() for parameter in model.parameters()),
        *subject.gflop,
        settings.clips / step_s,
        settings.clips / inference_s,
        activations / 1e9,
        peak,
        1e9 * subject.gflop[0] * settings.clips / step_s / peak_flops,
    )


def training_forward(subject: Subject, settings: Settings) -> Callable[[int], Tensor]:
    """The forward pass in training, waveform -> log-mel -> logits, as a function of the number of clips."""
    wave = _noise(subject, settings)

    def forward(clips: int) -> Tensor:
        with autocast(settings.device, settings.precision):
            return subject.learn(log_mel(wave[:clips], subject.mel)).float()

    return forward


def training_step(subject: Subject, settings: Settings) -> Callable[[], None]:
    """A training step: forward pass, binary cross-entropy, backward pass, AdamW."""
    forward = training_forward(subject, settings)
    optimizer = torch.optim.AdamW(subject.model.parameters(), 1e-5, fused=True)
    target = torch.zeros(settings.clips, len(settings.base.labels), device=settings.device)

    def step() -> None:
        torch.autograd.backward(F.binary_cross_entropy_with_logits(forward(settings.clips), target))
        optimizer.step()
        optimizer.zero_grad()

    return step


def _noise(subject: Subject, settings: Settings) -> Tensor:
    """White noise (clips, samples), two clips at least."""
    samples = round(subject.clip_s * subject.mel.sample_rate)
    return 0.1 * torch.randn(max(2, settings.clips), samples, device=settings.device)


def make(name: str, base: PasstConfig) -> Subject:
    """The model of a row, with random weights."""
    if name == CNN14:
        return _make_cnn14(len(base.labels))
    config, drop, clip_s = MEASURED[name].config(base), MEASURED[name].drop, MEASURED[name].clip_s
    model = Passt(config, rng=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(0)
    prefix, across = config.num_class_tokens, columns(config, clip_s)
    patches = config.rows * across
    visible = drop.num_kept(config.rows, across) if drop else patches

    def learn(mel: Tensor) -> Tensor:
        return model(mel, patchout=drop, rng=rng).logits

    tokens = (prefix + visible, prefix + patches)
    gflop = (passt_gflop(config, visible, training=True), passt_gflop(config, patches, training=False))
    return Subject(model, config.mel, clip_s, learn, lambda mel: model.predict(mel).logits, tokens, gflop)


def _make_cnn14(num_classes: int) -> Subject:
    """CNN14 with its GFLOP counted by torch."""
    model, mel = cnn14.Cnn14(num_classes), cnn14.MEL
    with torch.device("meta"):  # counted, not computed
        clips = torch.empty(2, mel.n_mels, mel.num_frames(round(CLIP_S * mel.sample_rate)))
        on_meta = cnn14.Cnn14(num_classes)
    with FlopCounterMode(display=False) as forward:
        logits = on_meta(clips)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.backward(logits.sum())
    once, back = (counter.get_total_flops() / len(clips) / 1e9 for counter in (forward, backward))
    return Subject(model, mel, CLIP_S, model, model, (0, 0), (once + back, once))


def best_s(call: Callable[[], object], device: torch.device, *, seconds: float) -> float:
    """Shortest time of one call over rounds of at least ROUND_S within `seconds`, after a warm-up call."""

    def timed(calls: int) -> float:
        started = time.perf_counter()
        for _ in range(calls):
            call()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return (time.perf_counter() - started) / calls

    timed(1)
    until = time.perf_counter() + seconds
    best = timed(1)
    calls = max(1, round(ROUND_S / best))
    while time.perf_counter() < until:
        best = min(best, timed(calls))
    return best


def matrix_flops(settings: Settings, precision: InferencePrecision | None = None) -> float:
    """Measured FLOP/s of a large matrix product: the peak of the hardware at this precision."""
    device, size = settings.device, MATRIX[settings.device.type]
    name = precision or pick_precision(settings.precision, device)
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    product: Callable[[Tensor, Tensor], Tensor] = torch._int_mm if name == "int8" else torch.mm
    dtype = torch.int8 if name == "int8" else HALF.get(name, torch.float32)
    a, b = a.to(dtype), b.to(dtype)
    return 2 * size**3 / best_s(lambda: product(a, b), device, seconds=settings.seconds)


def arithmetics(settings: Settings) -> Iterator[Arithmetic]:
    """Inference of PaSST-S, waveform to logits, in every arithmetic of a device."""
    device, subject = settings.device, make("S", settings.base)
    model = subject.model.to(device).eval()
    assert isinstance(model, Tagger)
    wave = _noise(subject, settings)[: settings.clips]
    for precision in ARITHMETICS[device.type]:
        tagger, inside = at_precision(model, precision)

        def infer(tagger: Tagger = tagger, inside: Precision = inside) -> Tensor:
            with torch.inference_mode(), autocast(device, inside):
                return tagger.predict(log_mel(wave, subject.mel)).logits

        peak = matrix_flops(settings, precision)
        clips_per_s = settings.clips / best_s(infer, device, seconds=settings.seconds)
        yield Arithmetic(precision, peak / 1e12, clips_per_s, 1e9 * subject.gflop[1] * clips_per_s / peak)


def auto(device: torch.device) -> str:
    """The precision that "auto" selects on a device, with the reason on a CPU."""
    precision = pick_precision("auto", device)
    if device.type != "cpu":
        return precision
    speed = kernels.chosen().bf16_speed
    why = f"{speed:.2f} x fp32" if precision == "bf16" else f"bf16 has {speed:.2f} x its speed"
    return f"{precision}, {why} on this processor (measured)"


def machine(settings: Settings, peak_flops: float) -> dict[str, Any]:
    """Record of the machine and the settings of the measurements."""
    device = settings.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": pick_precision(settings.precision, device),
        "auto": auto(device),
        "batch": settings.clips,
        "compile": settings.compile,
        "matrix_tflops": peak_flops / 1e12,
    }

"""Rows that are measured, the sizes they are measured with, and sounds from formulas."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from patchout.bench import measure
from patchout.models.device import Precision, pick_precision
from patchout.models.passt import Passt, PasstConfig


@dataclass(frozen=True)
class Row:
    """One measured number."""

    what: str
    value: float
    unit: str
    goal: str = ""


@dataclass(frozen=True)
class Setting:
    """The device, and sizes: the published ones, or such as try the script."""

    device: torch.device
    quick: bool

    @property
    def is_cuda(self) -> bool:
        """Whether there is a GPU to wait for."""
        return self.device.type == "cuda"

    @property
    def clip_s(self) -> float:
        """Length of a clip."""
        return 1.0 if self.quick else 10.0

    @property
    def seconds(self) -> float:
        """How long one number is timed."""
        return 0.05 if self.quick else 3.0

    def passt(self) -> Passt:
        """PaSST-S with random weights, or a tiny one."""
        tiny: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "columns": 12} if self.quick else {}
        labels = tuple(f"class {index}" for index in range(20 if self.quick else 527))
        return Passt(PasstConfig(labels=labels, **tiny), rng=rng())

    def precision(self) -> Precision:
        """The one that auto means here."""
        return pick_precision("auto", self.device)

    def timed(self, call: Callable[[], object]) -> float:
        """Best seconds of a call."""
        return measure.best_s(call, self.device, seconds=self.seconds)

    def once(self, call: Callable[[], object]) -> float:
        """Seconds of one call, the device's work included."""
        started = time.perf_counter()
        call()
        if self.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - started


def rng() -> torch.Generator:
    """A generator of its own."""
    return torch.Generator().manual_seed(0)


def waves(count: int, seconds: float) -> list[np.ndarray]:
    """White noise at 32 kHz."""
    draw = np.random.default_rng(0)
    return [(0.1 * draw.standard_normal(round(32_000 * seconds))).astype(np.float32) for _ in range(count)]


def written(folder: Path, sounds: list[np.ndarray]) -> list[Path]:
    """The sounds as FLAC files that say 44.1 kHz."""
    paths = [folder / f"{number}.flac" for number in range(len(sounds))]
    for path, wave in zip(paths, sounds, strict=True):
        soundfile.write(path, wave, 44_100)
    return paths

"""Weights and waves that `golden/passt.npz` was made with, from names and formulas alone."""

import math
import zlib

import numpy as np
import torch
from torch import Tensor

RATE = 32_000


def golden_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Every parameter under its public name: normal noise seeded by the name,
    scaled so that each layer matters.
    """
    return {name: torch.from_numpy(_tensor(name, shape)) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(
        shape, dtype=np.float32
    )
    if name.endswith("bias"):
        return 0.1 * values
    if len(shape) == 1:  # a gain of a LayerNorm
        return 1.0 + 0.1 * values
    if "pos_embed" in name or "token" in name:
        return 0.5 * values
    return values / np.float32(math.sqrt(math.prod(shape[1:])))


def golden_wave(seconds: float) -> np.ndarray:
    """Two clips (2, samples): a swelling sweep in noise; tones,
    clicks and silence. Cut from 15 s at 32 kHz.
    """
    t = np.arange(15 * RATE) / RATE
    noise = np.random.Generator(np.random.PCG64(4793)).standard_normal((2, t.size))
    swell = 0.55 + 0.45 * np.sin(2 * np.pi * 0.7 * t)
    sweep = 0.3 * np.sin(2 * np.pi * (50 * t + 0.5 * 930 * t**2)) * swell
    partials = sum(0.12 / k * np.sin(2 * np.pi * 220 * k * t) for k in range(1, 9))
    tones = partials * (np.sin(2 * np.pi * 1.3 * t) > 0)
    clicks = 0.8 * (np.arange(t.size) % 6_400 < 24)
    wave = np.stack([sweep + 0.01 * noise[0], (tones + clicks + 0.003 * noise[1]) * (t % 5.0 < 4.2)])
    return wave[:, : round(seconds * RATE)].astype(np.float32)

"""Data augmentation as pure functions of a tensor and a random generator, which is seeded by a key."""

import math
import zlib
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from patchout.models.device import to_device


class WaveMix(NamedTuple):
    """Mixup of waveforms: how often, and with weights of which Beta(alpha, alpha); PaSST's by default."""

    probability: float = 0.5
    alpha: float = 2.0


class Labelled(NamedTuple):
    """A waveform with its target and the mask of its known classes."""

    wave: Float[Tensor, "sample"]
    target: Float[Tensor, "class"]
    known: Float[Tensor, "class"]  # 1 where the target is known


class Masks(NamedTuple):
    """SpecAugment's masks (PaSST: 48 mels, 192 frames), and the value that they write.

    `fill` 0.9 is the published value: log-mel 0.0 before normalisation, louder than most sounds. "mean" is
    that of the step's clips.
    """

    freq: int  # widest band, mels
    time: int  # longest stretch, frames
    shared: bool = False  # one mask for all clips, as when the published models were trained, or one for each
    fill: float | Literal["mean"] = 0.9


class Share(NamedTuple):
    """The clips of a step that one process computes; random draws are made for those of all processes."""

    first: int  # place of the process's first clip
    total: int  # clips of all processes
    gather: Callable[[Tensor], Tensor]  # puts the rows of all processes together, one a clip


def keyed(purpose: str, *key: int) -> Generator:
    """A CPU generator seeded by a purpose and a key of numbers >= 0: ("clip", seed, epoch, index)."""
    sequence = np.random.SeedSequence((zlib.crc32(purpose.encode()), len(key), *key))
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0]))


def uniform(low: float, high: float, rng: Generator) -> float:
    """One draw from [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=rng))


def gain(wave: Float[Tensor, "sample"], range_db: tuple[int, int], rng: Generator) -> Float[Tensor, "sample"]:
    """Random gain: a whole number of decibels, uniform over both ends of the range (PaSST: -7 to +6 dB)."""
    decibels = int(torch.randint(range_db[0], range_db[1] + 1, (), generator=rng))
    return wave * 10 ** (decibels / 20)


def roll(wave: Float[Tensor, "sample"], range_samples: int, rng: Generator) -> Float[Tensor, "sample"]:
    """Random circular shift by up to `range_samples` either way."""
    return wave.roll(int(torch.randint(-range_samples, range_samples + 1, (), generator=rng)))


def speed(wave: Float[Tensor, "sample"], factor: float) -> Float[Tensor, "changed"]:
    """Speed perturbation, tempo and pitch together, by linear interpolation; the length changes."""
    length = max(2, round(len(wave) / factor))
    return torch.nn.functional.interpolate(wave[None, None], length, mode="linear", align_corners=True)[0, 0]


def fit(
    wave: Float[Tensor, "sample"], num_samples: int, rng: Generator | None = None
) -> Float[Tensor, "fixed"]:
    """Pad with zeros or crop to `num_samples`: at a random place, or without `rng` the beginning."""
    if len(wave) <= num_samples:
        return torch.nn.functional.pad(wave, (0, num_samples - len(wave)))
    start = 0 if rng is None else int(torch.randint(0, len(wave) - num_samples + 1, (), generator=rng))
    return wave[start : start + num_samples]


def mixing_weights(alpha: float, count: int, rng: Generator) -> Float[Tensor, "count"]:
    """Mixup weights max(l, 1 - l) with l ~ Beta(alpha, alpha)."""
    seed = int(torch.randint(2**62, (), generator=rng))
    weights = np.random.Generator(np.random.PCG64(seed)).beta(alpha, alpha, count)
    return torch.from_numpy(np.maximum(weights, 1 - weights)).float()


def wave_mix(clip: Labelled, partner: Labelled, weight: float) -> Labelled:
    """Mixup of two waveforms without their means, and of their targets: `weight` is that of `clip`.

    A class that is known of either is known of the mix; an unknown target counts as 0 (as in PaSST's
    OpenMIC).
    """
    wave = weight * (clip.wave - clip.wave.mean()) + (1 - weight) * (partner.wave - partner.wave.mean())
    target = weight * clip.target * clip.known + (1 - weight) * partner.target * partner.known
    return Labelled(wave - wave.mean(), target, torch.maximum(clip.known, partner.known))


def mel_band(f_max: float, rng: Generator, *, nyquist: float = math.inf) -> tuple[float, float]:
    """Jittered edges (Hz) of a batch's mel filter bank: f_min 0 to 9, f_max - 999 to f_max + 1000.

    The upper edge stays below `nyquist`: a lower f_max is taken where that needs it.
    """
    low = int(torch.randint(0, 10, (), generator=rng))
    return float(low), min(f_max + 1000.0, nyquist) - int(torch.randint(0, 2000, (), generator=rng))


def mask_span(size: int, width: int, batch: int, rng: Generator) -> Float[Tensor, "batch size"]:
    """SpecAugment's mask along one axis: 1 on a random stretch of up to `width` of `size` places, else 0."""
    length = torch.rand(batch, 1, generator=rng) * min(width, size)
    start = torch.rand(batch, 1, generator=rng) * (size - length)
    place = torch.arange(size)
    return ((place >= start.floor()) & (place < start.floor() + length.floor())).float()


def spec_augment(
    mel: Float[Tensor, "batch mel frame"], masks: Masks, rng: Generator, *, share: Share
) -> Float[Tensor, "batch mel frame"]:
    """SpecAugment: one masked band of mels and one masked stretch of frames a clip."""
    batch, mels, frames = mel.shape
    drawn, first = (1, 0) if masks.shared else (share.total, share.first)
    spans = (mask_span(mels, masks.freq, drawn, rng), mask_span(frames, masks.time, drawn, rng))
    band, stretch = (to_device(span[first : first + batch], mel.device) for span in spans)
    fill = share.gather(mel.mean(dim=(1, 2))).mean() if masks.fill == "mean" else masks.fill
    return torch.where(band[:, :, None] + stretch[:, None, :] > 0, fill, mel)


def mixup(
    mel: Float[Tensor, "batch mel frame"],
    target: Float[Tensor, "batch class"],
    alpha: float,
    rng: Generator,
    *,
    share: Share,
) -> tuple[Float[Tensor, "batch mel frame"], Float[Tensor, "batch class"]]:
    """Mixup: every clip and target blended with another clip of the step, weights max(l, 1 - l)."""
    local = slice(share.first, share.first + len(mel))
    partner = to_device(torch.randperm(share.total, generator=rng)[local], mel.device)
    weights = to_device(mixing_weights(alpha, share.total, rng)[local], mel.device)
    by_clip, by_class = weights[:, None, None], weights[:, None]
    mixed = by_clip * mel + (1 - by_clip) * share.gather(mel)[partner]
    return mixed, by_class * target + (1 - by_class) * share.gather(target)[partner]

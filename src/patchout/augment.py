"""Augmentation as pure functions: tensor + generator -> tensor. A generator is made from a key, never from a state."""

import zlib

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor


def keyed(purpose: str, *key: int) -> Generator:
    """A CPU generator that depends on its purpose and key alone, e.g. ("clip", seed, epoch, index), none negative."""
    state = np.random.SeedSequence((zlib.crc32(purpose.encode()), len(key), *key)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def uniform(low: float, high: float, rng: Generator) -> float:
    """One draw from [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=rng))


def gain(wave: Float[Tensor, "sample"], range_db: tuple[int, int], rng: Generator) -> Float[Tensor, "sample"]:
    """Multiply by a whole number of decibels, uniform over both ends of the range; PaSST draws from -7 ... +6 dB."""
    decibels = int(torch.randint(range_db[0], range_db[1] + 1, (), generator=rng))
    return wave * 10 ** (decibels / 20)


def roll(wave: Float[Tensor, "sample"], range_samples: int, rng: Generator) -> Float[Tensor, "sample"]:
    """Shift in a circle by up to `range_samples` either way."""
    return wave.roll(int(torch.randint(-range_samples, range_samples + 1, (), generator=rng)))


def speed(wave: Float[Tensor, "sample"], factor: float) -> Float[Tensor, "changed"]:
    """Play `factor` times as fast, pitch and all, by linear interpolation; the result is shorter or longer."""
    length = max(2, round(len(wave) / factor))
    return torch.nn.functional.interpolate(wave[None, None], length, mode="linear", align_corners=True)[0, 0]


def fit(wave: Float[Tensor, "sample"], num_samples: int, rng: Generator | None = None) -> Float[Tensor, "fixed"]:
    """Exactly `num_samples`: zeros after a shorter wave; a random stretch of a longer one, its first without `rng`."""
    if len(wave) <= num_samples:
        return torch.nn.functional.pad(wave, (0, num_samples - len(wave)))
    start = 0 if rng is None else int(torch.randint(0, len(wave) - num_samples + 1, (), generator=rng))
    return wave[start : start + num_samples]


def mel_band(f_max: float, rng: Generator) -> tuple[float, float]:
    """Jittered band edges for one batch: f_min 0 ... 9 Hz, f_max -999 ... +1000 Hz (14001 ... 16000 Hz for PaSST)."""
    low = int(torch.randint(0, 10, (), generator=rng))
    return float(low), f_max + 1000.0 - int(torch.randint(0, 2000, (), generator=rng))


def mask_span(size: int, width: int, batch: int, rng: Generator) -> Float[Tensor, "batch size"]:
    """One stretch per clip of up to `width` places out of `size`: 1 where masked, 0 elsewhere (SpecAugment)."""
    length = torch.rand(batch, 1, generator=rng) * min(width, size)
    start = torch.rand(batch, 1, generator=rng) * (size - length)
    place = torch.arange(size)
    return ((place >= start.floor()) & (place < start.floor() + length.floor())).float()


def spec_augment(
    mel: Float[Tensor, "batch mel frame"], freq: int, time: int, rng: Generator, *, fill: float = 0.9
) -> Float[Tensor, "batch mel frame"]:
    """Mask one band of up to `freq` mels and one stretch of up to `time` frames in every clip.

    `fill` 0.9 is what the published code writes: log-mel 0.0 before normalisation.
    """
    batch, mels, frames = mel.shape
    band = mask_span(mels, freq, batch, rng).to(mel.device)[:, :, None]
    stretch = mask_span(frames, time, batch, rng).to(mel.device)[:, None, :]
    return mel.masked_fill((band + stretch) > 0, fill)


def mixup(
    mel: Float[Tensor, "batch mel frame"], target: Float[Tensor, "batch class"], alpha: float, rng: Generator
) -> tuple[Float[Tensor, "batch mel frame"], Float[Tensor, "batch class"]]:
    """Blend every clip and target with another of the batch; its own share is max(l, 1 - l), l ~ Beta(alpha, alpha)."""
    partner = torch.randperm(len(mel), generator=rng)
    seed = int(torch.randint(2**62, (), generator=rng))
    share = np.random.Generator(np.random.PCG64(seed)).beta(alpha, alpha, len(mel))
    own = torch.from_numpy(np.maximum(share, 1 - share)).float().to(mel.device)
    partner = partner.to(mel.device)
    by_clip, by_class = own[:, None, None], own[:, None]
    return by_clip * mel + (1 - by_clip) * mel[partner], by_class * target + (1 - by_class) * target[partner]

"""Augmentation as pure functions: tensor + generator -> tensor. A generator is made from a key, never from a state."""

import zlib
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor


class WaveMix(NamedTuple):
    """How waveforms are mixed (PaSST: every second one, with Beta(2, 2))."""

    probability: float = 0.5
    alpha: float = 2.0


class Labelled(NamedTuple):
    """A waveform and what is known about it."""

    wave: Float[Tensor, "sample"]
    target: Float[Tensor, "class"]
    known: Float[Tensor, "class"]  # 1 where the target is known


class Masks(NamedTuple):
    """What SpecAugment masks (PaSST: 48 mels, 192 frames), and what it writes there.

    `fill` 0.9 is the published value, log-mel 0.0 before normalisation: louder than most sounds. "mean" is the mean of
    all clips of the step.
    """

    freq: int  # widest band, mels
    time: int  # longest stretch, frames
    shared: bool = False  # one mask for all clips, as when the published models were trained, or one for each
    fill: float | Literal["mean"] = 0.9


class Share(NamedTuple):
    """The clips of a step that one process holds: draws are made for all of them, so that processes do not count."""

    first: int  # place of the process's first clip
    total: int  # clips of all processes
    gather: Callable[[Tensor], Tensor]  # puts the rows of all processes together, one a clip


def keyed(purpose: str, *key: int) -> Generator:
    """A CPU generator that depends on its purpose and key alone, e.g. ("clip", seed, epoch, index), none negative."""
    state = np.random.SeedSequence((zlib.crc32(purpose.encode()), len(key), *key)).generate_state(
        1, np.uint64
    )[0]
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


def fit(
    wave: Float[Tensor, "sample"], num_samples: int, rng: Generator | None = None
) -> Float[Tensor, "fixed"]:
    """Exactly `num_samples`: zeros after a shorter wave; a random stretch of a longer one, its first without `rng`."""
    if len(wave) == num_samples:
        return wave
    if len(wave) < num_samples:
        return torch.nn.functional.pad(wave, (0, num_samples - len(wave)))
    start = 0 if rng is None else int(torch.randint(0, len(wave) - num_samples + 1, (), generator=rng))
    return wave[start : start + num_samples]


def own_shares(alpha: float, count: int, rng: Generator) -> Float[Tensor, "count"]:
    """max(l, 1 - l) with l ~ Beta(alpha, alpha), once for each."""
    seed = int(torch.randint(2**62, (), generator=rng))
    share = np.random.Generator(np.random.PCG64(seed)).beta(alpha, alpha, count)
    return torch.from_numpy(np.maximum(share, 1 - share)).float()


def wave_mix(one: Labelled, other: Labelled, own: float) -> Labelled:
    """`own` of one clip and the rest of another, each without its mean, and the same of their targets.

    What is known of either is known of the mix; the target of what is not known counts as 0 (PaSST's rule for OpenMIC).
    """
    wave = own * (one.wave - one.wave.mean()) + (1 - own) * (other.wave - other.wave.mean())
    target = own * one.target * one.known + (1 - own) * other.target * other.known
    return Labelled(wave - wave.mean(), target, torch.maximum(one.known, other.known))


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
    mel: Float[Tensor, "batch mel frame"], masks: Masks, rng: Generator, *, share: Share
) -> Float[Tensor, "batch mel frame"]:
    """Mask one band of mels and one stretch of frames in every clip."""
    batch, mels, frames = mel.shape
    drawn, first = (1, 0) if masks.shared else (share.total, share.first)
    spans = (mask_span(mels, masks.freq, drawn, rng), mask_span(frames, masks.time, drawn, rng))
    band, stretch = (span[first : first + batch].to(mel.device) for span in spans)
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
    """Blend every clip and target with another of the step; its own share is max(l, 1 - l), l ~ Beta(alpha, alpha)."""
    mine = slice(share.first, share.first + len(mel))
    partner = torch.randperm(share.total, generator=rng)[mine].to(mel.device)
    own = own_shares(alpha, share.total, rng)[mine].to(mel.device)
    by_clip, by_class = own[:, None, None], own[:, None]
    others, their_targets = share.gather(mel)[partner], share.gather(target)[partner]
    return by_clip * mel + (1 - by_clip) * others, by_class * target + (1 - by_class) * their_targets

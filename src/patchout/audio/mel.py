"""The front end: waveform -> normalised log-mel spectrogram, and frames <-> samples <-> seconds (PaSST, section 3)."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

PRE_EMPHASIS = 0.97
LOG_OFFSET = 1e-5  # added, not clamped: silence reads ln(1e-5)
LOG_MEAN, LOG_SCALE = -4.5, 5.0  # fixed constants of the published models, not statistics of a data set


@dataclass(frozen=True)
class MelConfig:
    """The front end of one model: sizes in samples, band edges in Hz. The defaults are PaSST's at a 10 ms hop.

    The window is a Hann of `win_length`; MaskSpec's text says a Hamming of 1024, its public weights heard this one.
    `mean` and `std`, one value a band or one for all, standardise the log-mel (MaskSpec). `low_pass_hz` deafens it
    above a frequency and `half_precision` rounds the waveform to float16: the public MaskSpec weights heard their
    training sounds through an 11 kHz low-pass and in half precision.
    """

    sample_rate: int = 32_000
    n_fft: int = 1024
    win_length: int = 800
    hop_length: int = 320
    n_mels: int = 128
    f_min: float = 0.0
    f_max: float = 15_000.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    low_pass_hz: float | None = None
    half_precision: bool = False

    def __post_init__(self) -> None:
        """Refuse a front end that cannot be computed."""
        if min(self.sample_rate, self.n_fft, self.win_length, self.hop_length, self.n_mels) < 1:
            raise ValueError(f"every size of a mel front end must be at least 1, got {self}")
        if self.win_length > self.n_fft:
            raise ValueError(
                f"win_length {self.win_length} is longer than n_fft {self.n_fft}: shorten the window"
            )
        check_band(self.f_min, self.f_max, self.sample_rate)
        if self.low_pass_hz is not None and self.low_pass_hz - self.f_min <= self.sample_rate / self.n_fft:
            raise ValueError(
                f"low_pass_hz {self.low_pass_hz:g} leaves nothing above {self.f_min:g} Hz: raise it"
            )
        mean, std = self.mean or (), self.std or ()
        if len(mean) != len(std) or (self.mean is not None and len(mean) not in (1, self.n_mels)):
            raise ValueError(
                f"{len(mean)} values of mean and {len(std)} of std do not fit {self.n_mels} bands: "
                "give one of each a band, one for all bands, or neither"
            )
        if not all(map(math.isfinite, (*mean, *std))) or min(std, default=1.0) <= 0:
            raise ValueError(
                f"mean must be finite and std above 0, the lowest std is {min(std)}: set a floor for it"
            )

    @property
    def min_samples(self) -> int:
        """The shortest waveform `log_mel` takes: its ends are mirrored by half a transform."""
        return self.n_fft // 2 + 2

    @property
    def frame_s(self) -> float:
        """Seconds from one frame to the next."""
        return self.hop_length / self.sample_rate

    def num_frames(self, num_samples: int) -> int:
        """Frames that `log_mel` makes of a waveform; frame i is centred on sample i * hop_length + 1."""
        return 1 + (num_samples - 1) // self.hop_length

    def num_samples(self, num_frames: int) -> int:
        """The shortest waveform that gives this many frames."""
        return (num_frames - 1) * self.hop_length + 1

    @property
    def band_hz(self) -> np.ndarray:
        """Centre of every mel band in Hz, (n_mels,)."""
        low, step = _mel_edges(self.f_min, self.f_max, self.n_mels)
        return 700.0 * np.expm1((low + step * np.arange(1, self.n_mels + 1)) / 1127.0)


def check_band(f_min: float, f_max: float, sample_rate: int) -> None:
    """Refuse band edges outside 0 <= f_min < f_max <= half the sample rate (Hz)."""
    if not 0 <= f_min < f_max <= sample_rate / 2:
        raise ValueError(
            f"band edges must be 0 <= f_min < f_max <= {sample_rate / 2:g} Hz, got {f_min:g} and {f_max:g}"
        )


def _mel_edges(f_min: float, f_max: float, n_mels: int) -> tuple[float, float]:
    """Lowest edge and spacing of the bands on Kaldi's mel scale."""
    low, high = (1127.0 * math.log(1.0 + f / 700.0) for f in (f_min, f_max))
    return low, (high - low) / (n_mels + 1)


def mel_bank(
    config: MelConfig, band: tuple[float, float] | None = None, *, device: torch.device | None = None
) -> Float[Tensor, "mel bin"]:
    """Kaldi's triangular filters, slopes linear in mel, for the n_fft // 2 bins below the Nyquist frequency.

    `band` (f_min, f_max in Hz) overrides the config's edges. Built in float32 as the published models had it, on
    `device` (else the CPU): a copy of it would wait for the device.
    """
    low, step = _mel_edges(*(band or (config.f_min, config.f_max)), config.n_mels)
    number = torch.arange(config.n_mels, device=device).unsqueeze(1)
    left, centre, right = (low + step * (number + edge) for edge in range(3))
    hz = torch.arange(config.n_fft // 2, device=device) * (config.sample_rate / config.n_fft)
    bins = 1127.0 * (1.0 + hz / 700.0).log()
    bank = torch.clamp(
        torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)), min=0.0
    )
    if config.low_pass_hz is not None:
        bank[:, math.floor(config.low_pass_hz * config.n_fft / config.sample_rate) + 1 :] = 0.0
    return bank


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # it outlives the call that made it, and autograd refuses inference tensors
def _evaluation_bank(config: MelConfig, device: torch.device) -> Tensor:
    """The constant bank of a config, up to its last bin that is not zero."""
    bank = mel_bank(config)
    return bank[:, : int(bank.any(dim=0).nonzero().max()) + 1].contiguous().to(device)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _window(length: int, device: torch.device) -> Tensor:
    """The symmetric Hann window."""
    return torch.hann_window(length, periodic=False, device=device)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _statistics(config: MelConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation as columns, (1 or n_mels, 1)."""
    assert config.mean is not None
    assert config.std is not None
    return torch.tensor(config.mean, device=device)[:, None], torch.tensor(config.std, device=device)[:, None]


def log_mel(
    waveform: Float[Tensor, "batch sample"] | Float[np.ndarray, "batch sample"],
    config: MelConfig,
    *,
    band: tuple[float, float] | None = None,
) -> Float[Tensor, "batch mel frame"]:
    """Waveforms (batch, samples) at the config's rate -> normalised log-mel (batch, n_mels, frames), always in float32.

    `band` (f_min, f_max in Hz) replaces the config's band edges for this call: the mel jitter of training.
    Never pads: a waveform under `config.min_samples` is a ValueError. frames = 1 + (samples - 1) // hop.
    """
    wave = torch.as_tensor(waveform)
    if wave.ndim != 2:
        raise ValueError(
            f"log_mel takes waveforms of shape (batch, samples), got {tuple(wave.shape)}: use waveform[None]"
        )
    if wave.shape[1] < config.min_samples:
        shortest = f"{config.min_samples} samples ({1e3 * config.min_samples / config.sample_rate:.1f} ms)"
        raise ValueError(
            f"log_mel needs at least {shortest}, got {wave.shape[1]}: pad the clip or leave it out"
        )
    if band is not None:
        check_band(*band, config.sample_rate)
    with torch.autocast(wave.device.type, enabled=False):
        jittered = band is not None
        bank = (
            mel_bank(config, band, device=wave.device) if jittered else _evaluation_bank(config, wave.device)
        )
        power = _power(wave.float(), config)  # (batch, n_fft // 2 + 1, frames)
        mel = bank @ power[:, : bank.shape[1]]
        mel = (mel + LOG_OFFSET).log_().sub_(LOG_MEAN).div_(LOG_SCALE)
        if config.mean is None:
            return mel
        mean, std = _statistics(config, mel.device)
        return mel.sub_(mean).div_(std)


def _power(wave: Float[Tensor, "batch sample"], config: MelConfig) -> Float[Tensor, "batch bin frame"]:
    """Power spectrum of the pre-emphasised waveform; the first sample is lost, not padded."""
    if config.half_precision:
        wave = wave.half().float()
    # two roundings, as published: a fused one moves quiet bands by 6e-5
    emphasised = wave[:, 1:] - PRE_EMPHASIS * wave[:, :-1]
    if config.half_precision:
        emphasised = emphasised.half().float()
    window = _window(config.win_length, wave.device)
    spectrum = torch.stft(
        emphasised, config.n_fft, config.hop_length, config.win_length, window, return_complex=True
    )
    return spectrum.real.square() + spectrum.imag.square()

"""Log-mel front end: waveform -> normalised log-mel spectrogram; frames <-> samples (PaSST, section 3)."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

PRE_EMPHASIS = 0.97
LOG_OFFSET = 1e-5  # added, not clamped: silence reads ln(1e-5)
LOG_MEAN, LOG_SCALE = -4.5, 5.0  # fixed constants of the published models, not statistics of a data set
DB_FLOOR, DB_RANGE = 1e-10, 120.0  # lowest power in decibels, and dB below the loudest value of a clip

Scale = Literal["ln", "db"]


@dataclass(frozen=True)
class MelConfig:
    """Parameters of a log-mel front end: sizes in samples, band edges in Hz. Defaults: PaSST's, 10 ms hop.

    The window is a Hann of `win_length`; MaskSpec's text says a Hamming of 1024, its public weights were
    trained with this one. `mean` and `std`, one value a band or one for all, standardise the log-mel
    (MaskSpec). `low_pass_hz` zeroes all above it and `half_precision` rounds the waveform to float16, as the
    public MaskSpec weights need: they were trained on half-precision sounds behind an 11 kHz low-pass.
    `scale` "ln" is the published (ln + 4.5) / 5 of the power; "db" is 10 log10, at most 120 dB below a clip's
    loudest value. `periodic` leaves out the window's last sample, as in spectral analysis.
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
    pre_emphasis: float = PRE_EMPHASIS
    periodic: bool = False
    scale: Scale = "ln"

    def __post_init__(self) -> None:
        """Refuse a front end that cannot be computed."""
        if min(self.sample_rate, self.n_fft, self.win_length, self.hop_length, self.n_mels) < 1:
            raise ValueError(f"every size of a mel front end must be at least 1, got {self}")
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length {self.win_length} is longer than n_fft {self.n_fft}: shorten it")
        if not 0 <= self.pre_emphasis < 1:
            raise ValueError(f"pre_emphasis must be 0 (none) or more and below 1, got {self.pre_emphasis:g}")
        if self.scale not in get_args(Scale):
            raise ValueError(f"no scale {self.scale!r} of a log-mel: give {' or '.join(get_args(Scale))}")
        check_band(self.f_min, self.f_max, self.sample_rate)
        if self.low_pass_hz is not None and self.low_pass_hz - self.f_min <= self.sample_rate / self.n_fft:
            low_pass = f"low_pass_hz {self.low_pass_hz:g}"
            raise ValueError(f"{low_pass} leaves nothing above {self.f_min:g} Hz: raise it")
        mean, std = self.mean or (), self.std or ()
        if len(mean) != len(std) or (self.mean is not None and len(mean) not in (1, self.n_mels)):
            raise ValueError(
                f"{len(mean)} values of mean and {len(std)} of std do not fit {self.n_mels} bands: "
                "give one of each a band, one for all bands, or neither"
            )
        if not all(map(math.isfinite, (*mean, *std))) or min(std, default=1.0) <= 0:
            raise ValueError(f"mean must be finite, std above 0, the lowest std is {min(std)}: set a floor")

    @property
    def min_samples(self) -> int:
        """Samples of the shortest waveform `log_mel` takes: reflection padding mirrors half a transform."""
        return self.n_fft // 2 + 2

    @property
    def frame_s(self) -> float:
        """Seconds from one frame to the next."""
        return self.hop_length / self.sample_rate

    def num_frames(self, num_samples: int) -> int:
        """Frames of a waveform's log-mel; frame i is centred on sample i * hop_length + 1."""
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
        allowed = f"0 <= f_min < f_max <= {sample_rate / 2:g} Hz"
        raise ValueError(f"band edges must be {allowed}, got {f_min:g} and {f_max:g}")


def _mel_edges(f_min: float, f_max: float, n_mels: int) -> tuple[float, float]:
    """Lowest edge and spacing of the bands in mel, on Kaldi's scale: 1127 ln(1 + f / 700)."""
    low, high = (1127.0 * math.log(1.0 + f / 700.0) for f in (f_min, f_max))
    return low, (high - low) / (n_mels + 1)


def mel_bank(
    config: MelConfig, band: tuple[float, float] | None = None, *, device: torch.device | None = None
) -> Float[Tensor, "mel bin"]:
    """Mel filter bank: Kaldi's triangles, slopes linear in mel, for the n_fft // 2 bins below Nyquist.

    `band` (f_min, f_max in Hz) overrides the config's edges. Built in float32 as the published models had it,
    on `device` (else the CPU): copying it there would synchronise.
    """
    f_min, f_max = band or (config.f_min, config.f_max)
    check_band(f_min, f_max, config.sample_rate)
    low, step = _mel_edges(f_min, f_max, config.n_mels)
    number = torch.arange(config.n_mels, device=device).unsqueeze(1)
    lower, centre, upper = (low + step * (number + edge) for edge in range(3))
    hz = torch.arange(config.n_fft // 2, device=device) * (config.sample_rate / config.n_fft)
    bins = 1127.0 * (1.0 + hz / 700.0).log()
    bank = torch.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)).clamp(min=0.0)
    if config.low_pass_hz is not None:
        bank[:, math.floor(config.low_pass_hz * config.n_fft / config.sample_rate) + 1 :] = 0.0
    return bank


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # they outlive the call that made them, and autograd refuses inference tensors
def _constants(config: MelConfig, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hann window; filter bank to its last bin that is not zero; mean and deviation as columns."""
    window = torch.hann_window(config.win_length, periodic=config.periodic, device=device)
    bank = mel_bank(config)
    bank = bank[:, : int(bank.any(dim=0).nonzero().max()) + 1].contiguous().to(device)
    mean, std = (torch.tensor(values or (), device=device)[:, None] for values in (config.mean, config.std))
    return window, bank, mean, std


def log_mel(
    waveform: Float[Tensor, "batch sample"] | Float[np.ndarray, "batch sample"],
    config: MelConfig,
    *,
    band: tuple[float, float] | None = None,
) -> Float[Tensor, "batch mel frame"]:
    """Normalised log-mel (batch, n_mels, frames) of waveforms (batch, samples) at the config's rate; float32.

    `band` (f_min, f_max in Hz) replaces the config's band edges for this call: the mel jitter of training.
    Never pads: a waveform under `config.min_samples` is a ValueError.
    """
    wave = torch.as_tensor(waveform)
    if wave.ndim != 2:
        raise ValueError(f"log_mel takes (batch, samples), got {tuple(wave.shape)}: use waveform[None]")
    if wave.shape[1] < config.min_samples:
        least = f"{config.min_samples} samples ({1e3 * config.min_samples / config.sample_rate:.1f} ms)"
        raise ValueError(f"log_mel needs at least {least}, got {wave.shape[1]}: pad the clip or leave it out")
    with torch.autocast(wave.device.type, enabled=False):
        window, bank, mean, std = _constants(config, wave.device)
        if band is not None:
            bank = mel_bank(config, band, device=wave.device)
        power = _power(wave.float(), config, window)  # (batch, n_fft // 2 + 1, frames)
        mel = bank @ power[:, : bank.shape[1]]
        mel = logarithm(mel, config)
        return mel if config.mean is None else mel.sub_(mean).div_(std)


def logarithm(mel: Float[Tensor, "batch mel frame"], config: MelConfig) -> Float[Tensor, "batch mel frame"]:
    """Power in mel bands on the config's logarithmic scale."""
    if config.scale == "ln":
        return (mel + LOG_OFFSET).log_().sub_(LOG_MEAN).div_(LOG_SCALE)
    decibels = 10.0 * mel.clamp(min=DB_FLOOR).log10()
    return decibels.maximum(decibels.amax(dim=(1, 2), keepdim=True) - DB_RANGE)


def _power(
    wave: Float[Tensor, "batch sample"], config: MelConfig, window: Float[Tensor, "tap"]
) -> Float[Tensor, "batch bin frame"]:
    """Power spectrum of the pre-emphasised waveform; the first sample is lost, not padded."""
    if config.half_precision:
        wave = wave.half().float()
    # two roundings, as published: a fused one moves quiet bands by 6e-5
    emphasised = wave[:, 1:] - config.pre_emphasis * wave[:, :-1]
    if config.half_precision:
        emphasised = emphasised.half().float()
    sizes = config.n_fft, config.hop_length, config.win_length
    spectrum = torch.stft(emphasised, *sizes, window, return_complex=True)
    return spectrum.real.square() + spectrum.imag.square()

"""`log_mel` computed again in float64, and how far float32 may be from it on any processor."""

import numpy as np

from patchout.audio.mel import LOG_MEAN, LOG_OFFSET, LOG_SCALE, PRE_EMPHASIS, MelConfig, log_mel, mel_bank

EXACT = 3e-5  # of a log-mel before it is standardised


def hold(wave: np.ndarray, config: MelConfig) -> None:
    """Assert that the log-mel of waveforms (batch, sample) is the reference's,
    within the tolerance of each value.
    """
    mel, tolerance = reference(wave, config)
    off = np.abs(log_mel(wave, config).numpy() - mel) / tolerance
    assert off.max() <= 1, (
        f"{off.max():.2f} tolerances at clip, band, frame {np.unravel_index(off.argmax(), off.shape)}"
    )


def reference(wave: np.ndarray, config: MelConfig) -> tuple[np.ndarray, np.ndarray]:
    """The log-mel (batch, mel, frame) of waveforms (batch, sample) in float64, and the tolerance of each
    value.

    What is published in float32 stays so: the pre-emphasis, with its two roundings, and the bank. The
    tolerance is 3e-5, or, where a band is so quiet that it is more, float32's rounding: a transform leaves up
    to four roundings of the frame's loudest bin in every other, which is nothing beside a loud bin and a lot
    beside one 90 dB below. The libraries behind torch.stft (MKL on AMD, MKL on Intel, pocketfft) differ by
    that much.
    """
    emphasised = wave[:, 1:] - np.float32(PRE_EMPHASIS) * wave[:, :-1]
    bank = mel_bank(config).double().numpy()
    spectrum = np.abs(np.fft.rfft(_frames(emphasised.astype(np.float64), config)))
    energy = bank @ (spectrum[..., : config.n_fft // 2] ** 2).swapaxes(1, 2)
    rounding = 4 * 2.0**-24 * spectrum.max(axis=-1)[:, None]  # of the amplitude in a bin
    width = bank.sum(axis=1)[:, None]
    off = np.log1p((2 * rounding * np.sqrt(energy * width) + width * rounding**2) / (energy + LOG_OFFSET))
    mel, tolerance = (np.log(energy + LOG_OFFSET) - LOG_MEAN) / LOG_SCALE, np.maximum(EXACT, off / LOG_SCALE)
    if config.mean is None:
        return mel, tolerance
    mean, std = (np.array(values)[:, None] for values in (config.mean, config.std))
    return (mel - mean) / std, tolerance / std


def _frames(wave: np.ndarray, config: MelConfig) -> np.ndarray:
    """Windowed frames (batch, frame, n_fft) of a wave whose ends are mirrored."""
    margin = config.n_fft - config.win_length
    window = np.pad(np.hanning(config.win_length), (margin // 2, margin - margin // 2))
    mirrored = np.pad(wave, ((0, 0), (config.n_fft // 2,) * 2), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, config.n_fft, axis=1)
    return frames[:, :: config.hop_length] * window

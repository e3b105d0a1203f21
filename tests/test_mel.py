"""Numbers of the front end that can be looked up or worked out by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DATA, RATE, needs_data, tone
from golden_recipe import golden_wave
from mel_reference import hold, reference
from torch import Tensor

from patchout.audio.mel import MelConfig, log_mel, mel_bank
from patchout.audio.statistics import audioset_statistics, frame_statistics
from patchout.audio.stream import load

SILENCE = (np.log(1e-5) + 4.5) / 5


@pytest.mark.parametrize(
    ("samples", "hop", "frames"),
    [
        (320_000, 320, 1000),
        (320_000, 160, 2000),
        (320_000, 100, 3200),
        (4801, 320, 16),
        (4800, 320, 15),
        (600, 100, 6),
    ],
)
def test_frames(samples: int, hop: int, frames: int) -> None:
    config = MelConfig(hop_length=hop)
    assert log_mel(torch.zeros(1, samples), config).shape == (1, 128, frames)
    assert config.num_frames(samples) == frames
    assert config.num_frames(config.num_samples(frames)) == frames
    assert config.num_frames(config.num_samples(frames) - 1) == frames - 1


def test_bank_has_the_published_shape() -> None:
    bank = mel_bank(MelConfig())
    assert bank.shape == (128, 512)
    assert int((bank > 1e-4).sum()) == 947  # the published 948th is the rounding of the last edge
    assert float(bank.sum()) == pytest.approx(473.490557, abs=1e-3)
    assert float(bank.max()) == pytest.approx(0.9996676, abs=1e-6)
    assert bank[:, 0].any().item() is False
    assert bank[0, 1].item() == pytest.approx(0.18859525, abs=1e-6)
    assert bank[1, 1].item() == pytest.approx(0.81140476, abs=1e-6)
    assert bank[127, 470].item() == pytest.approx(0.83385742, abs=1e-5)
    torch.testing.assert_close(bank[:, 1:469].sum(0), torch.ones(468), atol=1e-4, rtol=0)


def test_silence_is_a_constant() -> None:
    mel = log_mel(torch.zeros(2, RATE), MelConfig())
    torch.testing.assert_close(mel, torch.full_like(mel, SILENCE))


def test_a_constant_input_gives_the_published_values() -> None:
    mel = log_mel(torch.full((1, 10 * RATE), 0.5), MelConfig())[0]
    assert mel.mean().item() == pytest.approx(-1.277145, abs=2e-5)
    assert mel[0, 0].item() == pytest.approx(1.118824, abs=2e-5)
    assert mel[10, 500].item() == pytest.approx(-0.915223, abs=2e-5)
    assert torch.isfinite(mel).all()


@pytest.mark.parametrize(("hop", "mean"), [(320, -1.164796), (160, -1.164710), (100, -1.164704)])
def test_a_sine_gives_the_published_mean(hop: int, mean: float) -> None:
    wave = torch.from_numpy(0.5 * np.sin(2 * np.pi * 440 * np.arange(10 * RATE) / RATE)).float()
    assert log_mel(wave[None], MelConfig(hop_length=hop)).mean().item() == pytest.approx(mean, abs=2e-5)


def test_an_impulse_gives_the_published_values() -> None:
    wave = torch.zeros(1, RATE)
    wave[0, RATE // 2] = 1.0
    mel = log_mel(wave, MelConfig())[0]
    expected = [-0.817286, -0.533853, 0.179454, 0.826166, 1.661703]
    np.testing.assert_allclose(mel[[0, 1, 30, 64, 127], 50].numpy(), expected, atol=2e-5)


@needs_data
def test_real_sounds_are_those_of_a_float64_computation() -> None:
    assert DATA is not None
    for path in sorted((DATA / "esc10" / "audio").glob("*"))[::40]:
        hold(load(path)[None], MelConfig())


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"win_length": 801}, {"hop_length": 321}, {"f_max": 15_001.0}])
def test_the_reference_knows_a_wrong_front_end(change: dict[str, Any]) -> None:
    other, _ = reference(golden_wave(1.0), MelConfig(**change))
    mel, tolerance = reference(golden_wave(1.0), MelConfig())
    frames = min(mel.shape[2], other.shape[2])
    assert (np.abs(other - mel)[..., :frames] > tolerance[..., :frames]).mean() > 0.5


def test_batch_and_single_agree() -> None:
    waves = torch.from_numpy(np.stack([tone(1.0, 300), tone(1.0, 3000)]))
    single = torch.cat([log_mel(wave[None], MelConfig()) for wave in waves])
    torch.testing.assert_close(log_mel(waves, MelConfig()), single)


def test_a_tone_is_loudest_in_its_band() -> None:
    config = MelConfig()
    mel = log_mel(tone(1.0, 2000)[None], config)[0]
    assert config.band_hz[mel.mean(1).argmax()] == pytest.approx(2000, rel=0.03)


def test_autocast_changes_nothing() -> None:
    wave = torch.from_numpy(tone(1.0))[None]
    with torch.autocast("cpu", torch.bfloat16):
        inside = log_mel(wave, MelConfig())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, log_mel(wave, MelConfig()))


def test_band_edges_can_be_drawn_anew() -> None:
    wave = torch.from_numpy(tone(1.0))[None]
    own = log_mel(wave, MelConfig())
    torch.testing.assert_close(log_mel(wave, MelConfig(), band=(0.0, 15_000.0)), own)
    assert not torch.allclose(log_mel(wave, MelConfig(), band=(5.0, 14_500.0)), own, atol=1e-3)


def test_it_never_pads_and_says_so() -> None:
    with pytest.raises(ValueError, match=r"at least 514 samples \(16.1 ms\), got 513"):
        log_mel(torch.zeros(1, 513), MelConfig())
    assert log_mel(torch.zeros(1, 514), MelConfig()).shape == (1, 128, 2)


def test_one_waveform_needs_a_batch_axis() -> None:
    from patchout.audio.mel import log_mel as unchecked

    with pytest.raises(ValueError, match="waveform\\[None\\]"):
        unchecked.__wrapped__(torch.zeros(RATE), MelConfig())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hop_length": 0}, "at least 1"),
        ({"win_length": 2048}, "2048 is longer than n_fft 1024"),
        ({"f_max": 17_000.0}, "16000 Hz, got 0 and 17000"),
        ({"f_min": -1.0}, "got -1 and 15000"),
        ({"mean": (0.0,) * 64, "std": (1.0,) * 64}, "64 values of mean and 64 of std do not fit 128 bands"),
        ({"mean": (0.0,)}, "1 values of mean and 0 of std"),
        ({"mean": (), "std": ()}, "0 values of mean"),
        ({"mean": (0.0,), "std": (0.0,)}, "the lowest std is 0.0: set a floor"),
        ({"mean": (float("nan"),), "std": (1.0,)}, "must be finite"),
        ({"low_pass_hz": 31.25}, "leaves nothing above 0 Hz"),
    ],
)
def test_impossible_front_ends_are_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        MelConfig(**changes)  # type: ignore[arg-type]


def test_what_was_cached_in_inference_mode_serves_autograd_later() -> None:
    config = MelConfig(n_mels=31)  # nobody else's
    with torch.inference_mode():
        log_mel(torch.zeros(1, 1000), config)
    wave = torch.zeros(1, 1000, requires_grad=True)
    log_mel(wave, config).sum().backward()  # type: ignore[no-untyped-call]
    assert wave.grad is not None


# -- statistics and the switches of MaskSpec's public weights ------------------------------------------------


def chirp() -> torch.Tensor:
    """A sweep over the whole band (1, samples) of ten seconds."""
    t = np.arange(10 * RATE) / RATE
    return torch.from_numpy(0.25 * np.sin(2 * np.pi * (100 * t + 700 * t**2))).float()[None]


def standardised(**changes: object) -> MelConfig:
    return replace(MelConfig(), **(audioset_statistics()._asdict() | changes))


def test_a_standardised_sweep_gives_the_published_values() -> None:
    mel = log_mel(chirp(), standardised())[0]
    assert mel[127, 999].item() == pytest.approx(59.26318, abs=1e-3)
    assert mel.mean().item() == pytest.approx(-1.306970, abs=2e-5)
    assert mel.std(correction=0).item() == pytest.approx(4.932081, abs=2e-4)


def test_standardised_silence_gives_the_published_values() -> None:
    mel = log_mel(torch.zeros(1, RATE), standardised())[0]
    np.testing.assert_allclose(mel[[0, 64, 127], 50], [-1.093441, -2.256788, -0.060697], atol=2e-6)


def test_one_pair_serves_all_bands() -> None:
    wave = torch.from_numpy(tone(1.0))[None]
    torch.testing.assert_close(
        log_mel(wave, MelConfig(mean=(-0.5,), std=(2.0,))), (log_mel(wave, MelConfig()) + 0.5) / 2
    )


def test_statistics_work_with_drawn_band_edges() -> None:
    wave = torch.from_numpy(tone(1.0))[None]
    plain = log_mel(wave, MelConfig(), band=(5.0, 14_500.0))
    torch.testing.assert_close(
        log_mel(wave, MelConfig(mean=(1.0,), std=(2.0,)), band=(5.0, 14_500.0)), (plain - 1) / 2
    )


def test_half_precision_moves_the_sweep_as_published() -> None:
    off = (log_mel(chirp(), MelConfig(half_precision=True)) - log_mel(chirp(), MelConfig())).abs()
    assert off.max().item() == pytest.approx(0.40, abs=0.005)
    assert off.mean().item() == pytest.approx(0.048, abs=0.0005)


def test_the_low_pass_keeps_full_band_sound_out_of_the_empty_bands() -> None:
    loud = torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))
    full, deaf = log_mel(loud, standardised())[0], log_mel(loud, standardised(low_pass_hz=11_000.0))[0]
    assert full[120:].mean().item() > 50
    assert deaf[120:].abs().max().item() < 0.1
    below = MelConfig().band_hz < 10_000
    torch.testing.assert_close(deaf[below], full[below])


@pytest.mark.parametrize("per_band", [True, False])
def test_statistics_are_in_float64_only_on_the_cpu(per_band: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of Apple has no float64."""
    calls: list[str] = []

    def noted(name: str) -> Callable[[Tensor], Tensor]:
        plain = getattr(Tensor, name)

        def call(tensor: Tensor) -> Tensor:
            calls.append(name)
            return plain(tensor)

        return call

    for name in ("cpu", "double"):
        monkeypatch.setattr(Tensor, name, noted(name))
    frame_statistics([torch.rand(4, 10)], per_band=per_band)
    assert calls == ["cpu", "double"]


def test_statistics_are_those_of_all_frames() -> None:
    clips = [
        torch.randn(128, frames, generator=torch.Generator().manual_seed(frames)) for frames in (50, 100)
    ]
    frames = torch.cat(clips, dim=1).double()
    each, together = frame_statistics(clips, floor=0.1), frame_statistics(clips, floor=0.1, per_band=False)
    np.testing.assert_allclose(each.mean, frames.mean(dim=1), atol=1e-9)
    np.testing.assert_allclose(each.std, frames.std(dim=1, correction=0), atol=1e-9)
    np.testing.assert_allclose(together, [[frames.mean()], [frames.std(correction=0)]], atol=1e-9)


def test_what_was_measured_standardises() -> None:
    noise = torch.randn(4, RATE, generator=torch.Generator().manual_seed(0))
    config = replace(MelConfig(), **frame_statistics(log_mel(noise, MelConfig()), floor=1e-3)._asdict())
    mel = log_mel(noise, config)
    torch.testing.assert_close(mel.mean(dim=(0, 2)), torch.zeros(128), atol=1e-4, rtol=0)
    torch.testing.assert_close(mel.std(dim=(0, 2), correction=0), torch.ones(128), atol=1e-4, rtol=0)


def test_an_empty_band_gets_the_floor() -> None:
    silent = log_mel(torch.zeros(1, RATE), MelConfig())
    assert frame_statistics(silent).std == pytest.approx((0.3,) * 128)
    assert min(audioset_statistics().std) == pytest.approx(0.0427, abs=1e-4)
    assert min(audioset_statistics(floor=0.3).std) == 0.3
    with pytest.raises(ValueError, match="at least one clip"):
        frame_statistics([])

"""Numbers of the front end that can be looked up or worked out by hand."""

import numpy as np
import pytest
import torch
from conftest import RATE, tone

from patchout.mel import MelConfig, log_mel, mel_bank

SILENCE = (np.log(1e-5) + 4.5) / 5


@pytest.mark.parametrize(
    ("samples", "hop", "frames"),
    [(320_000, 320, 1000), (320_000, 160, 2000), (320_000, 100, 3200), (4801, 320, 16), (4800, 320, 15), (600, 100, 6)],
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
    assert int((bank > 0).sum()) == 948
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
    assert torch.equal(log_mel(wave, MelConfig(), band=(0.0, 15_000.0)), own)
    assert not torch.equal(log_mel(wave, MelConfig(), band=(5.0, 14_500.0)), own)


def test_it_never_pads_and_says_so() -> None:
    with pytest.raises(ValueError, match=r"at least 514 samples \(16.1 ms\), got 513"):
        log_mel(torch.zeros(1, 513), MelConfig())
    assert log_mel(torch.zeros(1, 514), MelConfig()).shape == (1, 128, 2)


def test_one_waveform_needs_a_batch_axis() -> None:
    from patchout.mel import log_mel as unchecked

    with pytest.raises(ValueError, match="waveform\\[None\\]"):
        unchecked.__wrapped__(torch.zeros(RATE), MelConfig())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hop_length": 0}, "at least 1"),
        ({"win_length": 2048}, "2048 is longer than n_fft 1024"),
        ({"f_max": 17_000.0}, "16000 Hz, got 0 and 17000"),
        ({"f_min": -1.0}, "got -1 and 15000"),
    ],
)
def test_impossible_front_ends_are_refused(changes: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        MelConfig(**changes)  # type: ignore[arg-type]


def test_what_was_cached_in_inference_mode_serves_autograd_later() -> None:
    config = MelConfig(n_mels=31)  # nobody else's
    with torch.inference_mode():
        log_mel(torch.zeros(1, 1000), config)
    wave = torch.zeros(1, 1000, requires_grad=True)
    log_mel(wave, config).sum().backward()  # type: ignore[no-untyped-call]
    assert wave.grad is not None

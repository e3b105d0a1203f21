"""Log-mels of overlapping windows: what is shared equals what is not."""

import pytest
import torch
from conftest import noise, tone
from mel_reference import reference

import patchout.audio
from patchout.audio import window_mels as windows_mel
from patchout.audio.mel import MelConfig, log_mel
from patchout.audio.window_mels import window_mels


def hold_shared(wave: torch.Tensor, config: MelConfig, *, size: int, hop: int) -> None:
    """Assert that shared and unshared log-mels are the same but for their rounding."""
    windows = wave.unfold(1, size, hop).flatten(0, 1)
    off = (window_mels(wave, config, size=size, hop=hop) - log_mel(windows, config)).abs().numpy()
    assert (off <= reference(windows.numpy(), config)[1]).all()


def frames_computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the number of frames of every call of `log_mel`."""
    frames: list[int] = []

    def counting(wave: torch.Tensor, config: MelConfig) -> torch.Tensor:
        mel = log_mel(wave, config)
        frames.append(mel.shape[0] * mel.shape[2])
        return mel

    monkeypatch.setattr(windows_mel, "log_mel", counting)
    return frames


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 1e-4, 0.0])
@pytest.mark.parametrize("field_ms", [160, 640, 800])
@pytest.mark.parametrize("hop_length", [320, 160, 100])
def test_shared_equals_unshared(hop_length: int, field_ms: int, scale: float) -> None:
    config, size = MelConfig(hop_length=hop_length), 32 * field_ms
    wave = scale * torch.stack([torch.from_numpy(noise(1.5)), torch.from_numpy(tone(1.5))])
    hold_shared(wave, config, size=size, hop=1600)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "size", "hop"),
    [
        (MelConfig(), 5120, 1601),  # frames of neighbours do not meet
        (MelConfig(), 1920, 1600),  # nearly every frame sees an end
        (MelConfig(), 5120, 8000),  # windows do not overlap
        (MelConfig(), 514, 320),  # the shortest that there is
        (MelConfig(), 20_721, 320),  # the last frame does not see the end
        (MelConfig(win_length=801), 5500, 960),
        (MelConfig(win_length=1024, hop_length=500), 5120, 1000),
        (
            MelConfig(win_length=400, hop_length=640),
            20_480,
            640,
        ),  # a frame to each side of an empty cut is too short
    ],
)
def test_windows_of_any_size_are_right(config: MelConfig, size: int, hop: int) -> None:
    hold_shared(torch.from_numpy(noise(1.3))[None], config, size=size, hop=hop)


@pytest.mark.parametrize(("field_ms", "at_most"), [(160, 0.65), (640, 0.18), (800, 0.15)])
def test_sharing_saves_frames(field_ms: int, at_most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = frames_computed(monkeypatch)
    mels = window_mels(torch.zeros(1, 10 * 32_000), MelConfig(), size=32 * field_ms, hop=1600)
    assert sum(frames) < at_most * mels.shape[0] * mels.shape[2]


@pytest.mark.slow
def test_the_public_windows_stays_a_function_beside_this_module() -> None:
    assert callable(patchout.audio.windows)

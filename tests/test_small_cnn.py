"""The small CNN of the benchmarks as a HEAR module."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import module_of, noise

from patchout.hear.subject import open_module, scenes, timestamps


@pytest.fixture
def small_cnn() -> ModuleType:
    """The file as a module."""
    return module_of("benchmarks/small_cnn.py")


def test_it_is_a_hear_module(small_cnn: ModuleType, tmp_path: Path) -> None:
    """Its own check of shapes, values and times; a timestamp hears 80 ms either way and no more."""
    torch.manual_seed(0)
    torch.save(small_cnn.SmallCnn(3).state_dict(), tmp_path / "cnn.pt")
    subject = open_module("small_cnn", small_cnn, weights=str(tmp_path / "cnn.pt"))
    wave = torch.from_numpy(np.stack([noise(1.0), noise(1.0, 1)]))
    values, times_ms = timestamps(subject, wave)
    assert times_ms[0].tolist() == pytest.approx([50 * index for index in range(21)])
    assert scenes(subject, wave).shape == (2, 256)
    later = wave.clone()
    later[:, 18_000:] = 0  # from 562.5 ms on
    changed = (timestamps(subject, later)[0] - values).abs().amax(dim=(0, 2)) > 1e-5
    assert [int(ms) for ms in times_ms[0][~changed].round()] == [50 * index for index in range(10)]

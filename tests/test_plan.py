"""What a run will take: counted by hand on a linear layer."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from patchout.training.plan import LARGEST_BATCH, Plan, Trial, fitting_batch, free_bytes, measure

CPU = torch.device("cpu")


def test_what_the_backward_pass_keeps_is_counted_once_and_weights_are_not() -> None:
    layer = nn.Linear(100, 50, bias=False)
    trial = measure(
        layer, lambda model, batch, place: model(batch.wave).square().sum(), num_samples=100, num_classes=2
    )
    assert trial.activation_bytes == 4 * (
        100 + 50
    )  # the input for the weight's gradient, the output for the square's
    assert trial.seconds > 0
    assert layer.weight.grad is None


def test_a_measured_model_can_be_freed() -> None:
    """A sigmoid's backward pass needs its output, which knows the graph that it came from."""
    layer = nn.Linear(100, 50)
    weight = weakref.ref(layer.weight)
    measure(
        layer, lambda model, batch, place: model(batch.wave).sigmoid().sum(), num_samples=100, num_classes=2
    )
    del layer
    gc.collect()
    assert weight() is None


@pytest.mark.parametrize(("clips", "batch"), [(1000, 32), (40, 8), (10, 2), (3, 2)])
def test_a_batch_is_at_most_a_quarter_of_the_clips(clips: int, batch: int) -> None:
    assert fitting_batch(Trial(1, 1.0), 0, CPU, clips) == batch


def test_a_batch_fits_into_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchout.training.plan.free_bytes", lambda device: 2200)
    assert fitting_batch(Trial(100, 1.0), 100, CPU, 1000) == 8  # (1100 - 100) / 100 = 10
    assert fitting_batch(Trial(5000, 1.0), 100, CPU, 1000) == 1
    assert fitting_batch(Trial(1, 1.0), 0, CPU, 1000) == LARGEST_BATCH


def test_several_processes_share_a_batch_evenly() -> None:
    assert fitting_batch(Trial(1, 1.0), 0, CPU, 1000, share=3) == 3 * 8  # 32 // 3 = 10
    assert fitting_batch(Trial(1, 1.0), 0, CPU, 12, share=4) == 4


def test_free_memory_is_found() -> None:
    assert free_bytes(CPU) > 2**20


def test_the_cache_of_files_is_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal: 8000000 kB\nMemFree:  200000 kB\nMemAvailable:    5000000 kB\n")
    monkeypatch.setattr("patchout.training.plan.MEMORY", memory)
    assert free_bytes(CPU) == 5_000_000 * 1024
    for content in ("MemFree: 200000 kB\n", None):  # an older kernel, another system
        memory.write_text(content) if content else memory.unlink()
        assert free_bytes(CPU) > 2**20


def test_a_plan_in_words() -> None:
    plan = Plan(
        clips=80,
        classes=10,
        task="multi_class",
        tokens=590,
        training_tokens=234,
        parameters=5_400_000,
        batch=16,
        parts=2,
        processes=1,
        lr=1e-3,
        published="",
        steps=200,
        class_clips=(4, 8, 12),
        state_bytes=2**28,
        trial=Trial(2**25, 0.0375),  # eight at a time: as much as the state; 3200 clips
    )
    assert plan.describe() == (
        "80 clips, 10 classes of 4 to 12 clips (middle: 8), one class a clip; batches of 16, 200 steps, "
        "peak learning rate 0.001\n"
        "5.4 M parameters, 234 of 590 tokens a clip; about 0.50 GiB "
        "(0.25 of it weights, gradients, optimizer and averages) and 2 min on this machine, "
        "without validation"
    )
    assert replace(plan, origin="label from label").describe() == f"{plan.describe()}\nlabel from label"

import inspect
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from patchout.models import device, kernels
from patchout.models.device import autocast, pick_device, pick_precision
from patchout.models.kernels import Kernels

CPU = torch.device("cpu")


@pytest.fixture
def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without an accelerator."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two CUDA devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("cpu_only")
def test_auto_is_the_cpu_where_there_is_nothing_else() -> None:
    assert pick_device() == pick_device("auto") == pick_device("cpu") == CPU


@pytest.mark.usefixtures("two_gpus")
def test_auto_takes_the_gpu_where_there_is_one() -> None:
    assert pick_device("auto") == torch.device("cuda")


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_can_be_chosen_by_number() -> None:
    assert pick_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.usefixtures("two_gpus")
def test_a_number_beyond_the_gpus_is_refused() -> None:
    with pytest.raises(ValueError, match="no device 'cuda:2' on this machine: here are auto, cuda"):
        pick_device("cuda:2")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_a_process_of_torchrun_takes_the_gpu_of_its_number(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device(name) == torch.device("cuda", 1)


@pytest.mark.usefixtures("two_gpus")
def test_processes_of_torchrun_do_not_share_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="takes a GPU of its own: give cuda instead of 'cuda:1'"):
        pick_device("cuda:1")


@pytest.mark.usefixtures("two_gpus")
def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="no device 'cuda:2' on this machine"):
        pick_device("auto")


@pytest.mark.usefixtures("cpu_only")
def test_processes_of_torchrun_share_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == CPU


@pytest.mark.usefixtures("cpu_only")
@pytest.mark.parametrize("name", ["cuda", "mps", "meta", "tpu", ""])
def test_a_device_that_is_not_there_is_refused_with_the_ones_that_are(name: str) -> None:
    with pytest.raises(ValueError, match=f"no device '{name}'.*here are auto, cpu"):
        pick_device(name)


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_is_the_faster_one(
    native: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "prefers_bf16", lambda _: native)
    assert pick_precision("auto", CPU) == expected


def test_a_named_precision_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "prefers_bf16", lambda _: pytest.fail("nobody asked"))
    assert pick_precision("bf16", CPU) == "bf16"
    assert pick_precision("fp32", CPU) == "fp32"


def test_an_unknown_precision_is_refused() -> None:
    unchecked: Any = inspect.unwrap(pick_precision)  # a user's call has no type checker before it
    with pytest.raises(ValueError, match="auto, fp32, bf16 or fp16, got 'fp8'"):
        unchecked("fp8", CPU)


@pytest.mark.parametrize("kind", ["cpu", "mps"])
def test_fp16_is_refused_where_its_losses_are_not_scaled(kind: str) -> None:
    with pytest.raises(ValueError, match=f"fp16 needs .* a CUDA GPU, not {kind}: use bf16 or fp32"):
        pick_precision("fp16", torch.device(kind))


def test_fp16_is_for_gpus() -> None:
    assert pick_precision("fp16", torch.device("cuda")) == "fp16"


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_multiply_bf16_from_ampere_on(
    capability: tuple[int, int], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert device.prefers_bf16(torch.device("cuda")) is native


def test_a_cpu_takes_bf16_where_it_was_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    for speed, expected in ((1.8, "bf16"), (1.02, "fp32"), (0.57, "fp32")):
        monkeypatch.setattr(
            kernels, "chosen", lambda speed=speed: Kernels(True, True, True, True, bf16_speed=speed)
        )
        assert pick_precision("auto", CPU) == expected


def test_mps_computes_in_fp32() -> None:
    assert pick_precision("auto", torch.device("mps")) == "fp32"


def test_fp32_needs_no_context() -> None:
    assert isinstance(autocast(CPU, "fp32"), nullcontext)


def test_bf16_multiplies_in_bf16_inside_the_context_alone() -> None:
    matrix = torch.ones(4, 4)
    with autocast(CPU, "bf16"):
        assert (matrix @ matrix).dtype == torch.bfloat16
    assert (matrix @ matrix).dtype == torch.float32

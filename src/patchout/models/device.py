"""Device and floating-point precision of a computation, by name."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from patchout.models import kernels

Precision = Literal["auto", "fp32", "bf16", "fp16"]
InferencePrecision = Literal["auto", "fp32", "bf16", "fp16", "int8"]  # int8: linear layers, on a CPU
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """A device by torch's name; "auto" is the first present of cuda, mps, cpu. ValueError if absent.

    Of several processes that torchrun started on one machine, each gets the GPU of its own number.
    """
    gpus = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    present = [*(name for name, is_present in gpus.items() if is_present), "cpu"]
    try:
        device = torch.device(present[0] if name == "auto" else name)
    except RuntimeError:
        raise ValueError(f"no device {name!r}: here are auto, {', '.join(present)}") from None
    rank = os.environ.get("LOCAL_RANK")  # set by torchrun
    if device.type == "cuda" and rank is not None:
        if device.index is not None:
            raise ValueError(f"with torchrun a process takes a GPU of its own: give cuda instead of {name!r}")
        device = torch.device("cuda", int(rank))
    is_beyond = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if device.type not in present or is_beyond:
        raise ValueError(f"no device '{device}' on this machine: here are auto, {', '.join(present)}")
    return device


def prefers_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32: by compute capability on CUDA, as measured on a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and kernels.chosen().prefers_bf16


def pick_precision(name: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """The precision that "auto" means: bf16 where it is faster, else fp32; others are checked."""
    if name not in ("auto", "fp32", "bf16", "fp16"):
        raise ValueError(f"precision is auto, fp32, bf16 or fp16, got {name!r}")
    if name == "fp16" and device.type != "cuda":
        needs = "the loss scaling and kernels of a CUDA GPU"
        raise ValueError(f"fp16 needs {needs}, not {device.type}: use bf16 or fp32")
    return name if name != "auto" else "bf16" if prefers_bf16(device) else "fp32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Autocast context of `precision`; log-mels and class scores stay float32 inside it."""
    exact = pick_precision(precision, device)
    return torch.autocast(device.type, HALF[exact]) if exact in HALF else nullcontext()


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; from the CPU to CUDA by pinned memory, so that nobody waits for it."""
    is_cuda = device.type == "cuda"
    if is_cuda and tensor.device.type == "cpu" and not torch.compiler.is_compiling():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=is_cuda)


class Upload:
    """Copies to a device; those to a GPU from pinned memory run beside its work, on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        is_cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The tensors on the device, for work that is queued after this call."""
        if self._stream is None:
            return [tensor.to(self.device, non_blocking=True) for tensor in tensors]
        with torch.cuda.stream(self._stream):
            copies = [tensor.to(self.device, non_blocking=True) for tensor in tensors]
        work = torch.cuda.current_stream(self.device)
        work.wait_stream(self._stream)
        for copy in copies:
            copy.record_stream(work)  # its memory is free for the next copy only after this work
        return copies


class HostCopy:
    """An asynchronous copy of a tensor to the CPU, which can be read later without waiting for later work."""

    def __init__(self, tensor: Tensor) -> None:
        """Queue the copy behind the work that computes the tensor."""
        self._event = torch.cuda.Event() if tensor.is_cuda else None  # type: ignore[no-untyped-call]
        self._tensor = tensor
        if self._event:
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            self._event.record()

    def read(self) -> Tensor:
        """The tensor on the CPU, once it is there."""
        if self._event:
            self._event.synchronize()
        return self._tensor.cpu()

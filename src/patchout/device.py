"""Where to compute and how exactly: device and precision by name."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]


def pick_device(name: str = "auto") -> torch.device:
    """A device by torch's name; "auto" is the first of cuda, mps, cpu that is there. A missing one is a ValueError."""
    present = ["cuda"] if torch.cuda.is_available() else []
    present += ["mps"] if torch.backends.mps.is_available() else []
    present += ["cpu"]
    if name == "auto":
        return torch.device(present[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"no device {name!r}: here are auto, {', '.join(present)}") from None
    if device.type not in present or (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()):
        raise ValueError(f"no device {name!r} on this machine: here are auto, {', '.join(present)}")
    return device


def has_native_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself; where it is emulated it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def pick_precision(name: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """Settle "auto": bf16 where the hardware computes it natively, fp32 elsewhere."""
    if name not in ("auto", "fp32", "bf16"):
        raise ValueError(f"precision is auto, fp32 or bf16, got {name!r}")
    return name if name != "auto" else "bf16" if has_native_bf16(device) else "fp32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which a model runs at `precision`; log-mels and class scores stay float32 inside it."""
    if pick_precision(precision, device) == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)

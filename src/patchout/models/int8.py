"""int8 inference on a CPU: the linear layers of blocks with int8 weights and activations, dynamically.

Weights have a scale per output channel. Activations have a scale per row (token), taken from the row itself,
so that a score does not depend on what else is in its batch. Patch projection, norms, head and the
projection of a last block that computes class tokens alone stay float32.
"""

import warnings
from collections.abc import Callable
from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchout.models import kernels
from patchout.models.device import InferencePrecision, Precision
from patchout.models.family import Tagger
from patchout.models.transformer import Block, Encoder

ROWS = 512  # of a product at a time, for each thread: integers and their scaled values stay in the caches


class Int8Linear(nn.Module):
    """Linear layer in int8: integer products, scaled back by row and output channel.

    `dtype` is that of what comes out: bfloat16 where attention is faster in it.
    """

    weight: Tensor  # (out, in) int8
    scale: Tensor  # (out, 1)
    bias: Tensor  # (out,)

    def __init__(self, linear: nn.Linear, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        weight, scale = kernels.quantise(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", linear.bias.detach())
        self.dtype = dtype

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Rows (..., in) -> (..., out)."""
        return by_rows(self._product, x)

    def _product(self, x: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        return kernels.int8_linear(x.float(), self.weight, self.scale, self.bias).to(self.dtype)


class ByRows(nn.Module):
    """A module that treats every row alike, on as many rows at a time as the caches hold."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Rows (..., in) -> (..., out)."""
        return by_rows(self.module, x)


def by_rows(function: Callable[[Tensor], Tensor], x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
    """Apply a function of rows (row, in) -> (row, out) to some rows at a time."""
    rows = x.reshape(-1, x.shape[-1])
    parts = [function(part) for part in torch.split(rows, ROWS * torch.get_num_threads())]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(*x.shape[:-1], -1)


def at_precision(model: Tagger, precision: InferencePrecision) -> tuple[Tagger, Precision]:
    """A model and the precision for `autocast`: "int8" gives a quantised copy, run in float32."""
    return (quantised(model), "fp32") if precision == "int8" else (model, precision)


def is_quantised(model: nn.Module) -> bool:
    """Whether linear layers of a model are in int8."""
    return any(isinstance(part, Int8Linear) for part in model.modules())


def quantised(model: Tagger) -> Tagger:
    """Quantise a model to int8: a copy for inference on a CPU. A quantised model is returned as it is.

    ValueError for a model on another device, or one without transformer blocks. Warns where int8 is the
    slower one on this processor.
    """
    if is_quantised(model):
        return model
    if (device := next(model.parameters()).device).type != "cpu":
        raise ValueError(f"int8 is for a CPU, this model is on {device}: use bf16, or --device cpu")
    if not any(isinstance(part, Block) for part in model.modules()):
        raise ValueError("int8 is for transformers, this model has no blocks: use fp32 or bf16")
    chosen = kernels.chosen()
    if chosen.int8_speed < 1:
        slower = f"int8 has {chosen.int8_speed:.2f} x the speed of fp32 on this processor (measured)"
        warnings.warn(f"{slower}: --precision auto is faster", stacklevel=3)
    copy = deepcopy(model).eval()
    last = [part.blocks[-1] for part in copy.modules() if isinstance(part, Encoder)]
    for block in [part for part in copy.modules() if isinstance(part, Block)]:
        qkv = block.attn.qkv
        _quantise(block, torch.bfloat16 if chosen.bf16_attention else torch.float32)
        if block in last:  # `Attention.first` reads its weight, with little work
            block.attn.qkv = qkv
    return copy


def _quantise(block: Block, attention_dtype: torch.dtype) -> None:
    parts: dict[nn.Module, dict[str, nn.Module]] = {
        block.attn: {
            "qkv": Int8Linear(block.attn.qkv, attention_dtype),
            "proj": Int8Linear(block.attn.proj),
        },
        block.mlp: {"fc1": Int8Linear(block.mlp.fc1), "fc2": Int8Linear(block.mlp.fc2)},
        block: {"mlp": ByRows(block.mlp)},
    }
    for parent, layers in parts.items():
        for name, layer in layers.items():
            setattr(parent, name, layer)

"""Products and attention as fast as a CPU can: torch's own elsewhere (what each is worth: `docs/results.md`)."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

ONEDNN = (  # whether oneDNN can be asked for a product in float32, and has better kernels than MKL may choose
    torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.cpu.get_cpu_capability() == "AVX512"
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)
CACHED_SCORES = 2**20  # attention scores at a time for each thread of a CPU: 2 MiB of bfloat16


class Linear(nn.Linear):
    """A linear layer by `linear`."""

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Row by row."""
        return linear(x, self.weight, self.bias)


def linear(
    x: Float[Tensor, "*rows in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, "out"]
) -> Float[Tensor, "*rows out"]:
    """Rows times a matrix, plus a bias: torch's own function, but for float32 on a CPU with AVX-512.

    There torch calls MKL, which on AMD processors takes twice the time of oneDNN.
    """
    plain = x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32 or x.numel() == 0
    if plain or not ONEDNN or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    out: Tensor = OneDnnLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class OneDnnLinear(torch.autograd.Function):
    """`linear` by oneDNN, forwards and backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Rows (..., in), weight (out, in), bias (out,) -> (..., out)."""
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of rows, weight and bias, where they are needed."""
        x, weight = ctx.saved_tensors
        rows = grad.contiguous().view(-1, grad.shape[-1])
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _product(rows, weight.T, None).view(x.shape) if for_x else None,
            _product(rows.T, x.reshape(-1, x.shape[-1]).T, None) if for_weight else None,
            rows.sum(dim=0) if for_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def attend(
    q: Float[Tensor, "batch head token key"],
    k: Float[Tensor, "batch head token key"],
    v: Float[Tensor, "batch head token key"],
) -> Float[Tensor, "batch head token key"]:
    """Softmax attention, scaled by 1 / sqrt(key): the fused kernel, but for bfloat16 on a CPU.

    There the kernel computes in float32, and explicit products of some heads at a time take half its time or less.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and not torch.compiler.is_compiling():
        out: Tensor = HeadwiseAttention.apply(*(x.flatten(0, 1) for x in (q, k, v)))  # type: ignore[no-untyped-call]
        return out.view(q.shape)
    return F.scaled_dot_product_attention(q, k, v)


class HeadwiseAttention(torch.autograd.Function):
    """Attention of as many heads at a time as the cache holds; the backward pass computes the scores anew."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys and values (heads of all clips, tokens, key) -> the same shape."""
        ctx.save_for_backward(q, k, v)
        out = torch.empty_like(q)
        for q_, k_, v_, out_ in _some_heads(q, k, v, out):
            torch.bmm(_attention(q_, k_), v_, out=out_)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values."""
        q, k, v = ctx.saved_tensors
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for q_, k_, v_, grad_, *(dq, dk, dv) in _some_heads(q, k, v, grad, *grads):
            share = _attention(q_, k_)
            torch.bmm(share.mT, grad_, out=dv)
            score = torch._softmax_backward_data(grad_ @ v_.mT, share, -1, q.dtype).mul_(q.shape[-1] ** -0.5)
            torch.bmm(score, k_, out=dq)
            torch.bmm(score.mT, q_, out=dk)
        return grads


def _some_heads(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same few heads of every tensor."""
    at_a_time = max(1, CACHED_SCORES * torch.get_num_threads() // tensors[0].shape[1] ** 2)
    return zip(*(torch.split(tensor, at_a_time) for tensor in tensors), strict=True)


def _attention(q: Tensor, k: Tensor) -> Float[Tensor, "head query key"]:
    """How much of every token each token takes."""
    return torch.baddbmm(q.new_empty(1, 1, 1), q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5).softmax(dim=-1)

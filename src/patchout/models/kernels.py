"""CPU kernels of matrix products and attention, the fastest by measurement; whether bfloat16 is faster.

Their speed on several machines: `docs/results/speed.md`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from patchout.models import autotune
from patchout.models.autotune import Cases, Seconds

CACHED_SCORES = 2**20  # attention scores at a time for each thread of a CPU: 2 MiB of bfloat16
NOISE = 0.05  # a kernel that saves less of the time than this is not chosen
PLANLESS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # not cuDNN
UNMEASURED = "PATCHOUT_UNMEASURED"  # environment variable: if set, no autotuning, the same kernels everywhere

TORCH, ONEDNN, BF16, INT8 = "product/torch", "product/onednn", "product/bf16", "product/int8"
FUSED_FP32, FUSED, HEADWISE = "attention fp32/fused", "attention bf16/fused", "attention bf16/headwise"
FUSED_TRAINED, HEADWISE_TRAINED = "attention gradients bf16/fused", "attention gradients bf16/headwise"


class Kernels(NamedTuple):
    """The kernels chosen for a CPU."""

    onednn: bool  # float32 products by oneDNN, else by torch's default, such as MKL
    headwise: bool  # attention in bfloat16 by `HeadwiseAttention`, else by torch's fused kernel
    headwise_training: bool  # the same where gradients follow
    bf16_attention: bool  # whether attention is faster in bfloat16 than in float32
    bf16_speed: float = 1.0  # of a transformer block, in units of its float32 speed
    int8_speed: float = 1.0  # of one whose linear layers are in int8, in the same units

    @property
    def prefers_bf16(self) -> bool:
        """Whether bfloat16 is faster, beyond noise."""
        return self.bf16_speed * (1 - NOISE) > 1


def has_onednn() -> bool:
    """Whether oneDNN can be asked for a product in float32; torch offers it under no public name."""
    is_present: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return is_present and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@cache
def chosen() -> Kernels:
    """The kernels of this process, measured at the first call on this machine."""
    if os.environ.get(UNMEASURED):
        return Kernels(onednn=has_onednn(), headwise=True, headwise_training=True, bf16_attention=True)
    attention = [FUSED_FP32, FUSED, HEADWISE, FUSED_TRAINED, HEADWISE_TRAINED]
    names = [TORCH, BF16, INT8, *attention, *([ONEDNN] if has_onednn() else [])]
    return choose(autotune.measured(names, _cases))


def choose(seconds: Seconds) -> Kernels:
    """The fastest kernels; torch's own unless another is faster beyond noise."""
    onednn = seconds.get(ONEDNN, seconds[TORCH]) < (1 - NOISE) * seconds[TORCH]
    headwise = seconds[HEADWISE] < (1 - NOISE) * seconds[FUSED]
    training = seconds[HEADWISE_TRAINED] < (1 - NOISE) * seconds[FUSED_TRAINED]
    attention = seconds[HEADWISE if headwise else FUSED]
    bf16_attention = attention < (1 - NOISE) * seconds[FUSED_FP32]
    fp32 = 3 * seconds[ONEDNN if onednn else TORCH] + seconds[FUSED_FP32]
    bf16 = 3 * seconds[BF16] + attention
    int8 = 3 * seconds[INT8] + (attention if bf16_attention else seconds[FUSED_FP32])
    return Kernels(onednn, headwise, training, bf16_attention, fp32 / bf16, fp32 / int8)


def _cases(tokens: int) -> Cases:
    """Calls to time: a product and the attention of a Base block (width 768, 12 heads) by every kernel.

    The largest product is a third of all. The attention: a quarter of the heads on four times the tokens, so
    that a typical sequence is measured in little time; with gradients all heads on a sequence that Patchout
    has shortened.
    """
    rng = torch.Generator().manual_seed(0)  # not torch's own, which a run may have seeded
    x, weight, bias = (torch.rand(size, generator=rng) for size in ((tokens, 768), (3072, 768), (3072,)))
    q, k, v = torch.rand(3, 3, 4 * tokens, 64, generator=rng)
    half = q.bfloat16(), k.bfloat16(), v.bfloat16()
    heads = [part.view(12, tokens, 64).detach().requires_grad_() for part in half]
    cases: Cases = {
        TORCH: partial(F.linear, x, weight, bias),
        BF16: partial(F.linear, x.bfloat16(), weight.bfloat16(), bias.bfloat16()),
        INT8: partial(int8_linear, x, *quantise(weight), bias),
        FUSED_FP32: partial(F.scaled_dot_product_attention, q[None], k[None], v[None]),
        FUSED: partial(F.scaled_dot_product_attention, *(part[None] for part in half)),
        HEADWISE: partial(_headwise, *half),
        FUSED_TRAINED: partial(_gradients, F.scaled_dot_product_attention, [part[None] for part in heads]),
        HEADWISE_TRAINED: partial(_gradients, HeadwiseAttention.apply, heads),
    }
    return {**cases, ONEDNN: partial(_product, x, weight, bias)} if has_onednn() else cases


def _gradients(attention: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    out = attention(*inputs)
    return torch.autograd.grad(out, inputs, out.detach())


class Linear(nn.Linear):
    """Linear layer computed by `linear`."""

    def reset_parameters(self) -> None:
        """Nothing: its model draws the weights, or they are loaded; torch's draw takes as long as a load."""

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Rows (..., in) -> (..., out)."""
        return linear(x, self.weight, self.bias)


def linear(
    x: Float[Tensor, "*rows in"], weight: Float[Tensor, "out in"], bias: Float[Tensor, "out"]
) -> Float[Tensor, "*rows out"]:
    """Linear map of rows, x W^T + b: torch's own kernel, or oneDNN for float32 on CPUs where it is faster.

    There torch calls MKL, which on AMD processors takes twice the time of oneDNN.
    """
    plain = x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32 or x.numel() == 0
    if plain or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or not chosen().onednn:
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


LEVELS = 127  # of int8, of either sign
SMALLEST = 1e-30  # scale: of rows and channels that are zero


def quantise(x: Float[Tensor, "row in"]) -> tuple[Int8[Tensor, "row in"], Float[Tensor, "row 1"]]:
    """Round rows to int8, each with a scale of its own: the largest value of a row becomes 127."""
    scale = x.abs().amax(dim=1, keepdim=True).clamp_(min=SMALLEST).div_(LEVELS)
    return x.div(scale).round_().to(torch.int8), scale


def int8_linear(
    x: Float[Tensor, "row in"],
    weight: Int8[Tensor, "out in"],
    scale: Float[Tensor, "out 1"],
    bias: Float[Tensor, "out"],
) -> Float[Tensor, "row out"]:
    """Linear map of rows by integer products; the weight comes from `quantise`, rows are quantised here."""
    rows, row_scale = quantise(x)
    product = torch._int_mm(rows, weight.t()).float()
    return torch.addcmul(bias, product.mul_(scale[:, 0]), row_scale)


def attend(
    q: Float[Tensor, "batch head query key"],
    k: Float[Tensor, "batch head token key"],
    v: Float[Tensor, "batch head token key"],
) -> Float[Tensor, "batch head query key"]:
    """Scaled dot-product attention: torch's fused kernel, or ours for bfloat16 on CPUs where it is faster.

    There the fused one computes in float32; explicit products of some heads at a time may take half its time,
    and where it has a fast forward pass, a third of the time with gradients.
    Without gradients, a GPU does without cuDNN: it plans each new shape anew, and sounds differ in length.
    """
    plain = q.device.type != "cpu" or q.dtype != torch.bfloat16 or torch.compiler.is_compiling()
    is_trained = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if not plain and (chosen().headwise_training if is_trained else chosen().headwise):
        heads = (x.flatten(0, 1) for x in (q, k, v))
        out: Tensor = HeadwiseAttention.apply(*heads)  # type: ignore[no-untyped-call]
        return out.view(q.shape)
    if q.is_cuda and not torch.is_grad_enabled() and not torch.compiler.is_compiling():
        with sdpa_kernel(PLANLESS):
            return F.scaled_dot_product_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


class HeadwiseAttention(torch.autograd.Function):
    """Attention, as many heads at a time as fit the cache; the backward pass recomputes the scores."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys and values (heads of all clips, tokens, key) -> the same shape."""
        ctx.save_for_backward(q, k, v)
        return _headwise(q, k, v)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries, keys and values."""
        q, k, v = ctx.saved_tensors
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for q_, k_, v_, grad_, *(dq, dk, dv) in _some_heads(q, k, v, grad, *grads):
            weights = _attention(q_, k_)
            torch.bmm(weights.mT, grad_, out=dv)
            dscore = torch._softmax_backward_data(grad_ @ v_.mT, weights, -1, q.dtype)
            dscore.mul_(q.shape[-1] ** -0.5)
            torch.bmm(dscore, k_, out=dq)
            torch.bmm(dscore.mT, q_, out=dk)
        return grads


def _headwise(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = torch.empty_like(q)
    for q_, k_, v_, out_ in _some_heads(q, k, v, out):
        torch.bmm(_attention(q_, k_), v_, out=out_)
    return out


def _some_heads(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same few heads of every tensor."""
    at_a_time = max(1, CACHED_SCORES * torch.get_num_threads() // tensors[0].shape[1] ** 2)
    return zip(*(torch.split(tensor, at_a_time) for tensor in tensors), strict=True)


def _attention(q: Tensor, k: Tensor) -> Float[Tensor, "head query key"]:
    """Attention weights: softmax of the scaled scores of every query and key."""
    return torch.baddbmm(q.new_empty(1, 1, 1), q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5).softmax(dim=-1)

"""The encoder of a vision transformer: attention, MLP, pre-norm block. Nothing here knows about audio."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

from patchout.models.kernels import Linear, attend

NORM_EPS = 1e-6  # of every LayerNorm in the encoder, as in the ImageNet models it starts from
INIT_STD = 0.02


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys and values (in that order)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """Self-attention over all tokens."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # 3 of (B, N, heads, key)
        q, k, v = (part.transpose(1, 2) for part in qkv)  # views, whose gradients are stacked without a copy
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))

    def first(
        self, x: Float[Tensor, "batch token width"], count: int
    ) -> Float[Tensor, "batch {count} width"]:
        """The first `count` tokens attend to all, without the keys and values of all.

        q (W_k x) is (q W_k) x, and the mean of W_v x is W_v times the mean of x. The bias of the keys adds
        the same to all scores of a query: softmax does not see it.
        """
        batch, _, width = x.shape
        query, key, value = self.qkv.weight.view(3, self.heads, -1, width)  # (heads, key, width)
        query_bias, _, value_bias = self.qkv.bias.view(3, -1)
        q = F.linear(x[:, :count], query.flatten(0, 1), query_bias).view(batch, count, self.heads, -1)
        q = torch.einsum("bqhk,hkw->bhqw", q * q.shape[-1] ** -0.5, key).flatten(1, 2)
        means = ((q @ x.mT).softmax(dim=-1) @ x).view(batch, self.heads, count, width)
        values = torch.einsum("bhqw,hkw->bqhk", means, value)
        return self.proj(values.flatten(2) + value_bias)


class Mlp(nn.Module):
    """Feed-forward network: two linear layers around an exact (erf) GELU, hidden width 4 x width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
        """The same for each token; without gradients the GELU is computed in place."""
        hidden = self.fc1(x)
        active = F.gelu(hidden) if torch.is_grad_enabled() else torch.ops.aten.gelu_(hidden)
        return self.fc2(active)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width)

    def forward(self, x: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """Residual attention, then residual MLP."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def first(
        self, x: Float[Tensor, "batch token width"], count: int
    ) -> Float[Tensor, "batch {count} width"]:
        """The first `count` tokens of the result, without computing the others."""
        x = x[:, :count] + self.attn.first(self.norm1(x), count)
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """Transformer encoder: a stack of blocks, and a final LayerNorm over all tokens."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads: use a multiple of {heads}")
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """Tokens in, normalised tokens out."""
        return self.norm(self.blocks(x))

    def first(
        self, x: Float[Tensor, "batch token width"], count: int
    ) -> Float[Tensor, "batch {count} width"]:
        """The first `count` normalised tokens: the last block computes no others."""
        last = self.blocks[-1]
        assert isinstance(last, Block)
        return self.norm(last.first(self.blocks[:-1](x), count))


def compile_transformer(model: nn.Module) -> None:
    """Compile the encoders of a model in place, else its blocks, else all of it; the names of weights stay.

    Random draws stay outside: a generator would break the graph. Each shape is compiled for itself.
    """
    encoders = [part for part in model.modules() if isinstance(part, Encoder)]
    blocks = [part for part in model.modules() if isinstance(part, Block)]
    chosen: Sequence[nn.Module] = encoders or blocks or [model]
    for part in chosen:
        part.compile(dynamic=False)


def init_linear(module: nn.Module, rng: Generator | None = None) -> None:
    """Draw every Linear below `module` from N(0, 0.02), its bias zero, as the ViT family does."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=INIT_STD, generator=rng)
            nn.init.zeros_(part.bias)


def init_projection(convolution: nn.Conv2d, rng: Generator | None) -> None:
    """Draw a patch projection from torch's default for a convolution: uniform within 1 / sqrt(fan in)."""
    bound = convolution.kernel_size[0] ** -1
    for parameter in convolution.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=rng)


def every_other_block(depth: int) -> tuple[int, ...]:
    """Indices of the blocks kept when every other one is removed (PaSST-L; PaSST, section 4.1).

    The first, the last and 1, 3, 5 ... between: twelve become 0, 1, 3, 5, 7, 9, 11, the paper's seven.
    """
    if depth < 3:
        raise ValueError(f"only an encoder of 3 blocks or more can be thinned, this one has {depth}")
    return (0, *range(1, depth - 1, 2), depth - 1)

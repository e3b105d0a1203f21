"""The encoder of a vision transformer: attention, MLP, pre-norm block. Nothing here knows about audio."""

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
        """Every token attends to every token."""
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each (B, heads, N, head width)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers around an exact (erf) GELU, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """Token by token."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """One pre-norm transformer block."""

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


class Encoder(nn.Module):
    """A stack of blocks and the final norm over all tokens."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads: use a multiple of {heads}")
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)

    def forward(self, x: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """Tokens in, normalised tokens out."""
        return self.norm(self.blocks(x))


def init_linear(module: nn.Module, rng: Generator | None = None) -> None:
    """Draw every Linear below `module` from N(0, 0.02), its bias zero, as the ViT family does."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=INIT_STD, generator=rng)
            nn.init.zeros_(part.bias)


def every_other_block(depth: int) -> tuple[int, ...]:
    """Blocks kept when every other one is removed: the first, the last and 1, 3, 5 ... between (PaSST, section 4.1).

    Twelve blocks become 0, 1, 3, 5, 7, 9, 11: the paper's seven of PaSST-L.
    """
    if depth < 3:
        raise ValueError(f"only an encoder of 3 blocks or more can be thinned, this one has {depth}")
    return (0, *range(1, depth - 1, 2), depth - 1)

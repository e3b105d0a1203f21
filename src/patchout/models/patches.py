"""Log-mel -> patch tokens with time and frequency positions; Patchout (PaSST, sections 2.1 and 2.2)."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from patchout.models.kernels import linear
from patchout.models.transformer import INIT_STD


@dataclass(frozen=True)
class Patchout:
    """What training drops: whole rows (`freq`) and columns (`time`) of the grid, then single `patches` of what is left.

    `freq` and `time` are structured Patchout (PaSST-S), `patches` is unstructured (PaSST-U). One choice serves
    the whole batch, as published, unless `per_clip`.
    """

    freq: int = 0
    time: int = 0
    patches: int = 0
    per_clip: bool = False

    def __post_init__(self) -> None:
        """Refuse negative amounts."""
        if min(self.freq, self.time, self.patches) < 0:
            raise ValueError(f"Patchout amounts count what is dropped and cannot be negative, got {self}")

    def __bool__(self) -> bool:
        """Whether anything is dropped."""
        return bool(self.freq or self.time or self.patches)

    def num_kept(self, rows: int, columns: int) -> int:
        """Patches left of a grid; a setting that leaves none is a ValueError."""
        if self.freq >= rows:
            raise ValueError(f"cannot drop {self.freq} of {rows} rows: lower freq of the Patchout")
        if self.time >= columns:
            raise ValueError(
                f"cannot drop {self.time} of {columns} columns: lower time of the Patchout or lengthen the clip"
            )
        left = (rows - self.freq) * (columns - self.time)
        if self.patches >= left:
            raise ValueError(f"cannot drop {self.patches} of {left} patches: lower patches of the Patchout")
        return left - self.patches


Positions = Literal["separate", "grid"]  # a learned position per row and per column, or per patch as AST has
Grid = tuple[Int[Tensor, "#batch token"], Int[Tensor, "#batch token"]]  # row and column of every token


def whole_grid(rows: int, columns: int, device: torch.device) -> Grid:
    """Row and column of every patch, frequency-major: token = row * columns + column; each (1, rows * columns)."""
    index = torch.arange(rows * columns, device=device)[None]
    return index // columns, index % columns


def patchout(rows: int, columns: int, drop: Patchout, *, batch: int, rng: Generator | None) -> Grid:
    """Draw the patches that stay: row and column of each, (1, N), or (batch, N) with per_clip (PaSST, section 2.2).

    Order of the draws, as published: columns, rows, single patches; indices ascend. `rng` is a CPU generator.
    """
    drop.num_kept(rows, columns)
    draws = [_draw(rows, columns, drop, rng) for _ in range(batch if drop.per_clip else 1)]
    index = torch.stack(draws)
    return index // columns, index % columns


def _draw(rows: int, columns: int, drop: Patchout, rng: Generator | None) -> Int[Tensor, "token"]:
    """One draw: indices into the flattened grid, ascending."""
    column = _keep(columns, drop.time, rng)
    row = _keep(rows, drop.freq, rng)
    index = (row[:, None] * columns + column).flatten()
    return index[_keep(len(index), drop.patches, rng)]


def _keep(total: int, drop: int, rng: Generator | None) -> Int[Tensor, "kept"]:
    """A random subset of 0 ... total - 1 without `drop` members, ascending; no draw when nothing is dropped."""
    if drop == 0:
        return torch.arange(total)
    return torch.randperm(total, generator=rng)[: total - drop].sort().values


class PatchEmbed(nn.Module):
    """Overlapping patches -> tokens, plus one learned position per row and one per column, or one per patch."""

    def __init__(
        self, width: int, *, patch: int, stride: tuple[int, int], grid: tuple[int, int], positions: Positions
    ) -> None:
        """`patch` in pixels; `stride` and `grid` as (frequency, time): pixels between patches; rows and columns."""
        super().__init__()
        self.patch = patch
        self.stride = stride
        self.positions = positions
        self.proj = nn.Conv2d(
            1, width, patch, stride
        )  # owns the parameters; applied as a matrix to the patches that stay
        if positions == "separate":
            self.row_position = nn.Parameter(torch.empty(grid[0], width))
            self.column_position = nn.Parameter(torch.empty(grid[1], width))
        else:
            self.grid_position = nn.Parameter(torch.empty(*grid, width))

    def init_weights(self, rng: Generator | None = None) -> None:
        """Positions from N(0, 0.02); the projection keeps the convolution's own uniform distribution."""
        bound = self.patch**-1  # 1 / sqrt(fan in), torch's default for a convolution
        nn.init.uniform_(self.proj.weight, -bound, bound, generator=rng)
        assert self.proj.bias is not None
        nn.init.uniform_(self.proj.bias, -bound, bound, generator=rng)
        for table in self.parameters(recurse=False):
            nn.init.trunc_normal_(table, std=INIT_STD, generator=rng)

    def position(
        self, row: Int[Tensor, "#batch token"], column: Int[Tensor, "#batch token"]
    ) -> Float[Tensor, "#batch token width"]:
        """What is added to a patch of this row and column."""
        if self.positions == "separate":
            return self.row_position[row] + self.column_position[column]
        return self.grid_position[row, column]

    def patches(self, mel: Float[Tensor, "batch mel frame"]) -> Float[Tensor, "batch row column patch patch"]:
        """Every patch of the spectrogram, as a view."""
        return mel.unfold(1, self.patch, self.stride[0]).unfold(2, self.patch, self.stride[1])

    def forward(
        self, mel: Float[Tensor, "batch mel frame"], grid: Grid | None = None, *, time_offset: int = 0
    ) -> Float[Tensor, "batch token width"]:
        """Project the patches of `grid` (None: all) and add their positions; column 0 reads position `time_offset`."""
        patches = self.patches(mel)
        if grid is None:
            row, column = whole_grid(patches.shape[1], patches.shape[2], mel.device)
            pixels = patches.flatten(3).flatten(1, 2)  # (B, rows * columns, pixels)
        else:
            row, column = (index.to(mel.device, non_blocking=True) for index in grid)
            clip = torch.arange(len(mel), device=mel.device)[:, None]
            pixels = patches[clip, row, column].flatten(
                2
            )  # (B, N, pixels): what was dropped is never copied or projected
        assert self.proj.bias is not None
        tokens = linear(pixels, self.proj.weight.flatten(1), self.proj.bias)
        return tokens + self.position(row, column + time_offset)

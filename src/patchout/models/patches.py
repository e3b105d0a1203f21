"""Patch embedding with time and frequency positions (PaSST, section 2.1); Patchout (section 2.2)."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from patchout.models.device import to_device
from patchout.models.kernels import linear
from patchout.models.transformer import INIT_STD, init_projection


@dataclass(frozen=True)
class Patchout:
    """Amounts of Patchout (PaSST, section 2.2): drops `freq` rows, `time` columns, then single `patches`.

    `freq` and `time` are structured Patchout (PaSST-S), `patches` is unstructured (PaSST-U). One draw for
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
        """Patches that stay of a grid; ValueError if none does."""
        if self.freq >= rows:
            raise ValueError(f"cannot drop {self.freq} of {rows} rows: lower freq of the Patchout")
        if self.time >= columns:
            hint = "lower time of the Patchout or lengthen the clip"
            raise ValueError(f"cannot drop {self.time} of {columns} columns: {hint}")
        total = (rows - self.freq) * (columns - self.time)
        if self.patches >= total:
            raise ValueError(f"cannot drop {self.patches} of {total} patches: lower patches of the Patchout")
        return total - self.patches


Positions = Literal["separate", "grid"]  # a learned position per row and per column, or per patch as AST has
Grid = tuple[Int[Tensor, "#batch token"], Int[Tensor, "#batch token"]]  # row and column of every token


def whole_grid(rows: int, columns: int, device: torch.device) -> Grid:
    """Row and column of every patch, (1, rows * columns) each; frequency-major: row * columns + column."""
    row = torch.arange(rows, device=device)[:, None].expand(rows, columns)
    column = torch.arange(columns, device=device).expand(rows, columns)
    return row.reshape(1, -1), column.reshape(1, -1)


def patchout(rows: int, columns: int, drop: Patchout, *, batch: int, rng: Generator | None) -> Grid:
    """Draw Patchout (PaSST, section 2.2): rows and columns of the patches that stay, (1 or batch, N).

    Order of the draws, as published: columns, rows, single patches; indices ascend. `rng` is a CPU generator.
    """
    drop.num_kept(rows, columns)
    draws = []
    for _ in range(batch if drop.per_clip else 1):
        column = _keep(columns, drop.time, rng)
        row = _keep(rows, drop.freq, rng)
        index = (row[:, None] * columns + column).flatten()
        draws.append(index[_keep(len(index), drop.patches, rng)])
    index = torch.stack(draws)
    return index // columns, index % columns


def _keep(total: int, drop: int, rng: Generator | None) -> Int[Tensor, "kept"]:
    """Random subset of 0 ... total - 1 without `drop` members, ascending; draws nothing if `drop` is 0."""
    if drop == 0:
        return torch.arange(total)
    return torch.randperm(total, generator=rng)[: total - drop].sort().values


class PatchEmbed(nn.Module):
    """Linear projection of overlapping patches, plus learned positions (PaSST, section 2.1)."""

    def __init__(
        self, width: int, *, patch: int, stride: tuple[int, int], grid: tuple[int, int], positions: Positions
    ) -> None:
        """`patch` and `stride` (frequency, time) in pixels; `grid`: rows and columns of positions."""
        super().__init__()
        self.patch = patch
        self.stride = stride
        self.positions = positions
        self.proj = nn.Conv2d(1, width, patch, stride)  # applied as a matrix to the patches that stay
        if positions == "separate":
            self.row_position = nn.Parameter(torch.empty(grid[0], width))
            self.column_position = nn.Parameter(torch.empty(grid[1], width))
        else:
            self.grid_position = nn.Parameter(torch.empty(*grid, width))

    def init_weights(self, rng: Generator | None = None) -> None:
        """Positions from N(0, 0.02); the projection from torch's default for a convolution."""
        init_projection(self.proj, rng)
        for table in self.parameters(recurse=False):
            nn.init.trunc_normal_(table, std=INIT_STD, generator=rng)

    def position(
        self, row: Int[Tensor, "#batch token"], column: Int[Tensor, "#batch token"]
    ) -> Float[Tensor, "#batch token width"]:
        """Position embedding of patches: frequency plus time (PaSST, section 2.1), or of the grid cell."""
        if self.positions == "separate":
            return self.row_position[row] + self.column_position[column]
        return self.grid_position[row, column]

    def patches(self, mel: Float[Tensor, "batch mel frame"]) -> Float[Tensor, "batch row column patch patch"]:
        """All overlapping patches of a spectrogram, as a view."""
        return mel.unfold(1, self.patch, self.stride[0]).unfold(2, self.patch, self.stride[1])

    def forward(
        self, mel: Float[Tensor, "batch mel frame"], grid: Grid | None = None, *, time_offset: int = 0
    ) -> Float[Tensor, "batch token width"]:
        """Project the patches of `grid` (None: all), add positions; column 0 has that of `time_offset`."""
        patches = self.patches(mel)
        if grid is None:
            row, column = whole_grid(patches.shape[1], patches.shape[2], mel.device)
            pixels = patches.flatten(3).flatten(1, 2)  # (B, rows * columns, pixels)
        else:
            row, column = (to_device(index, mel.device) for index in grid)
            clip = torch.arange(mel.shape[0], device=mel.device)[:, None]
            pixels = patches[clip, row, column].flatten(2)  # (B, N, pixels): the dropped are never copied
        assert self.proj.bias is not None
        tokens = linear(pixels, self.proj.weight.flatten(1), self.proj.bias)
        return tokens + self.position(row, column + time_offset)

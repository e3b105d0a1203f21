"""The mask sampler: how many patches stay, and where."""

import pytest
import torch
from torch import Generator, Tensor

from patchout.training.masked.masks import Sampler, sample

ROWS, COLUMNS = 8, 31


def drawn(
    sampler: Sampler, ratio: float, *, clips: int = 64, columns: int = COLUMNS, seed: int = 0
) -> Tensor:
    """1 where a patch stays visible, (clips, rows, columns)."""
    rng = Generator().manual_seed(seed)
    visible = sample(sampler, ROWS, columns, ratio, clips=clips, rng=rng)
    assert all(len({*row.tolist()}) == visible.shape[1] for row in visible)
    return torch.zeros(clips, ROWS * columns).scatter(1, visible, 1.0).view(clips, ROWS, columns)


@pytest.mark.parametrize(
    ("sampler", "ratio", "count"),
    [
        ("random", 0.75, 62),
        ("inverse-blocks", 0.8, 49),
        ("columns", 0.6, 8 * 12),
        ("rows", 0.4, 4 * 31),
        ("time-blocks", 0.6, 3 * 3 * 8),
        ("cells", 0.4, 38 * 3),
    ],
)
def test_every_mask_leaves_as_many_patches(sampler: Sampler, ratio: float, count: int) -> None:
    grids = drawn(sampler, ratio)
    assert {*grids.sum(dim=(1, 2)).tolist()} == {count}
    assert grids.std(dim=0).max() > 0.2  # for every clip its own


def test_columns_and_rows_are_whole() -> None:
    assert {*drawn("columns", 0.6).sum(dim=1).flatten().tolist()} == {0.0, 8.0}
    assert {*drawn("rows", 0.4).sum(dim=2).flatten().tolist()} == {0.0, 31.0}


def test_blocks_of_time_are_eighths_and_cells_repeat_every_eight_columns() -> None:
    """Of 64 columns 3 of 8 blocks of 8, and 38 of 64 cells, as in AudioMosaic's code."""
    blocks = drawn("time-blocks", 0.6, columns=64).view(64, ROWS, 8, 8)
    assert {*blocks.sum(dim=(1, 3)).flatten().tolist()} == {0.0, 64.0}
    cells = drawn("cells", 0.4, columns=64).view(64, ROWS, 8, 8)
    assert cells.eq(cells[:, :, :1]).all()
    assert cells[:, :, 0].sum(dim=(1, 2)).eq(38).all()


def test_inverse_blocks_lie_together() -> None:
    """A visible patch has more visible neighbours than at random."""

    def neighbours(grids: Tensor) -> float:
        return float((grids[:, :, 1:] * grids[:, :, :-1]).sum() / grids.sum())

    assert neighbours(drawn("inverse-blocks", 0.8)) > 2 * neighbours(drawn("random", 0.8))


def test_a_grid_smaller_than_a_block_has_inverse_blocks_too() -> None:
    assert drawn("inverse-blocks", 0.8, columns=3).sum(dim=(1, 2)).eq(4).all()


@pytest.mark.parametrize(
    ("sampler", "ratio", "columns", "message"),
    [
        (
            "rows",
            0.9,
            31,
            r"a mask ratio of 0.9 keeps 0 of 8 rows of the grid, nothing is left to see: change it",
        ),
        ("columns", 0.0, 31, "keeps 31 of 31 columns of the grid, nothing is hidden"),
        (
            "columns",
            0.6,
            1,
            "keeps 0 of 1 columns of the grid, nothing is left to see: change it, or lengthen",
        ),
        ("cells", 0.4, 7, "cut a clip into 8 stretches, it has 7 columns of patches: lengthen clip_s"),
    ],
)
def test_masks_that_leave_nothing_are_refused(
    sampler: Sampler, ratio: float, columns: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        drawn(sampler, ratio, columns=columns)

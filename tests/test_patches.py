"""Patchout and patch embedding on grids one can see through."""

import pytest
import torch

from patchout.models.patches import PatchEmbed, Patchout, Positions, patchout, whole_grid


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embedding(positions: Positions) -> PatchEmbed:
    module = PatchEmbed(8, patch=16, stride=(10, 10), grid=(12, 9), positions=positions)
    module.init_weights(rng())
    return module


@pytest.fixture
def embed() -> PatchEmbed:
    return embedding("separate")


def test_whole_columns_and_rows_are_dropped() -> None:
    row, column = patchout(12, 99, Patchout(freq=4, time=40), batch=5, rng=rng())
    assert row.shape == (1, 8 * 59)
    lines, places = row.view(8, 59), column.view(8, 59)
    assert (lines == lines[:, :1]).all()  # one row number a line
    assert (places == places[:1]).all()


def test_the_draw_is_the_published_one() -> None:
    torch.manual_seed(0)
    row, column = patchout(12, 99, Patchout(freq=4, time=40), batch=1, rng=None)
    assert column[0, :10].tolist() == [0, 2, 3, 4, 5, 7, 10, 11, 12, 15]
    assert sorted(set(row[0].tolist())) == [1, 2, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("drop", "rows", "columns", "kept"),
    [
        (Patchout(freq=4, time=40), 12, 99, 472),
        (Patchout(patches=400), 12, 99, 788),
        (Patchout(freq=6, time=100), 12, 199, 594),
        (Patchout(freq=6, time=150), 12, 319, 1014),
        (Patchout(freq=2, time=20), 8, 62, 252),
        (Patchout(), 12, 99, 1188),
    ],
)
def test_the_published_sequence_lengths(drop: Patchout, rows: int, columns: int, kept: int) -> None:
    row, column = patchout(rows, columns, drop, batch=2, rng=rng())
    assert row.shape == column.shape == (1, kept)
    assert drop.num_kept(rows, columns) == kept
    flat = row[0] * columns + column[0]
    assert (flat.diff() > 0).all()  # ascending, nothing twice


def test_one_choice_serves_the_batch_unless_per_clip() -> None:
    row, _ = patchout(12, 9, Patchout(patches=50, per_clip=True), batch=3, rng=rng())
    assert row.shape == (3, 58)
    assert not torch.equal(row[0], row[1])


def test_the_generator_alone_decides() -> None:
    torch.manual_seed(1)
    first = patchout(12, 9, Patchout(2, 3, 4), batch=1, rng=rng(7))
    torch.manual_seed(2)
    again = patchout(12, 9, Patchout(2, 3, 4), batch=1, rng=rng(7))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


@pytest.mark.parametrize(
    "drop", [Patchout(freq=3, time=4), Patchout(patches=60), Patchout(2, 2, 10, per_clip=True)]
)
def test_dropping_first_equals_projecting_first(embed: PatchEmbed, drop: Patchout) -> None:
    mel = torch.randn(3, 128, 96, generator=rng())
    grid = patchout(12, 9, drop, batch=3, rng=rng(1))
    row, column = grid
    everything = embed(mel)
    expected = everything[torch.arange(3)[:, None], row * 9 + column]
    torch.testing.assert_close(embed(mel, grid), expected, atol=1e-5, rtol=0)


def test_the_embedding_is_a_convolution_plus_positions(embed: PatchEmbed) -> None:
    mel = torch.randn(2, 128, 96, generator=rng())
    grid = embed.proj(mel[:, None]) + embed.row_position.T[:, :, None] + embed.column_position.T[:, None, :]
    torch.testing.assert_close(embed(mel), grid.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)


def test_a_position_per_patch_is_added_to_its_patch() -> None:
    embed, mel = embedding("grid"), torch.randn(2, 128, 96, generator=rng())
    grid = embed.proj(mel[:, None]) + embed.grid_position.permute(2, 0, 1)
    torch.testing.assert_close(embed(mel), grid.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        embed(mel[..., :46], time_offset=5), embed_at(embed, mel[..., :46], 5), atol=1e-5, rtol=0
    )


def embed_at(embed: PatchEmbed, mel: torch.Tensor, offset: int) -> torch.Tensor:
    """Four columns at an offset, by the convolution."""
    grid = embed.proj(mel[:, None]) + embed.grid_position[:, offset : offset + 4].permute(2, 0, 1)
    return grid.flatten(2).transpose(1, 2)


def test_a_shorter_clip_reads_the_first_columns_or_those_from_the_offset(embed: PatchEmbed) -> None:
    mel = torch.randn(1, 128, 46, generator=rng())  # 4 columns
    shifted = embed(mel, time_offset=5) - embed(mel)
    row, column = whole_grid(12, 4, mel.device)
    torch.testing.assert_close(
        shifted[0], (embed.column_position[column + 5] - embed.column_position[column])[0]
    )
    assert row.shape == (1, 48)


@pytest.mark.parametrize(
    ("drop", "text"),
    [
        (Patchout(freq=12), "drop 12 of 12 rows"),
        (Patchout(time=9), "drop 9 of 9 columns.*lengthen the clip"),
        (Patchout(freq=11, time=8, patches=1), "drop 1 of 1 patches"),
    ],
)
def test_a_patchout_that_leaves_nothing_is_refused(drop: Patchout, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        patchout(12, 9, drop, batch=1, rng=rng())


def test_negative_amounts_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be negative"):
        Patchout(time=-1)

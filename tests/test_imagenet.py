"""Weights for images -> a model for sounds: the published conversion, on made-up files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_config
from torch import Tensor

from patchout.checkpoint import imagenet
from patchout.checkpoint.download import DownloadError
from patchout.checkpoint.imagenet import import_deit, import_vit, resized_patch
from patchout.errors import CheckpointError
from patchout.models.passt import PasstConfig


def image_file(side: int = 6, *, tokens: int = 2, width: int = 64, depth: int = 2) -> dict[str, Tensor]:
    """Random weights under the names of a DeiT (two tokens) or ViT (one)."""
    rng = torch.Generator().manual_seed(side)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens + side**2, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (1000, width),
        "head.bias": (1000,),
    }
    if tokens == 2:
        shapes |= {"dist_token": (1, 1, width), "head_dist.weight": (1000, width), "head_dist.bias": (1000,)}
    linear = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for block in range(depth):
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"blocks.{block}.{name}"] = (width,)
        for name, (out, into) in linear.items():
            shapes[f"blocks.{block}.{name}.weight"] = (out * width, into * width)
            shapes[f"blocks.{block}.{name}.bias"] = (out * width,)
    return {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}


def config(**changes: object) -> PasstConfig:
    return tiny_config(**({"width": 64, "heads": 1} | changes))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_positions_are_those_of_the_public_conversion() -> None:
    """Values of the public code for a 24 x 24 table of random numbers, resized to 12 x 99."""
    image = image_file(24)
    image["pos_embed"] = torch.zeros(1, 578, 64)
    values = np.random.RandomState(5).standard_normal((1, 578, 4))
    image["pos_embed"][..., :4] = torch.from_numpy(values)
    embed = import_deit(image, config(columns=99)).embed
    expected = {
        (0, 0): (0.078418, 0.151456, -0.104498, 0.127400),
        (0, 11): (-0.110884, 0.001323, -0.178419, -0.115462),
        (1, 0): (0.582801, -0.281010, -0.141653, -0.135707),
        (1, 98): (-0.037422, 0.071770, -0.242690, 0.156674),
    }
    for (table, place), numbers in expected.items():
        got = (embed.row_position, embed.column_position)[table][place, :4]
        torch.testing.assert_close(got, torch.tensor(numbers), atol=2e-6, rtol=0)


@pytest.mark.parametrize("side", [3, 14, 24])
def test_any_square_fits(side: int) -> None:
    embed = import_deit(image_file(side), config()).embed
    assert (embed.row_position.shape, embed.column_position.shape) == ((12, 64), (9, 64))
    torch.testing.assert_close(
        embed.row_position.mean(0), embed.column_position.mean(0)
    )  # both the mean of the image


def test_a_table_of_the_same_size_is_taken_as_it_is() -> None:
    image = image_file(9)
    model = import_deit(image, config(positions="grid", stride=(14, 10)))  # 9 x 9 patches
    torch.testing.assert_close(model.embed.grid_position, image["pos_embed"][0, 2:].view(9, 9, 64))


def test_separate_tables_are_the_means_of_the_grid() -> None:
    grid = import_deit(image_file(), config(positions="grid")).embed.grid_position
    embed = import_deit(image_file(), config()).embed
    torch.testing.assert_close(embed.row_position, grid.mean(1))
    torch.testing.assert_close(embed.column_position, grid.mean(0))


def test_the_colours_are_summed() -> None:
    image = image_file()
    weight = import_deit(image, config()).embed.proj.weight
    torch.testing.assert_close(weight[:, 0], image["patch_embed.proj.weight"].sum(1))


def test_encoder_and_tokens_are_taken_over() -> None:
    image = image_file()
    model = import_deit(image, config())
    own = model.state_dict()
    assert all(
        torch.equal(own[f"encoder.{name}"], image[name])
        for name in image
        if name.startswith(("blocks", "norm"))
    )
    assert torch.equal(model.tokens, torch.stack([image["cls_token"][0, 0], image["dist_token"][0, 0]]))
    assert torch.equal(model.token_position, image["pos_embed"][0, :2])


def test_a_model_without_d_takes_c_alone() -> None:
    image = image_file()
    model = import_deit(image, config(distilled=False))
    assert torch.equal(model.tokens, image["cls_token"][0])
    assert torch.equal(model.token_position, image["pos_embed"][0, :1])


def test_d_of_a_plain_vit_is_a_copy_of_c() -> None:
    image = image_file(tokens=1)
    model = import_vit(image, config())
    assert torch.equal(model.tokens, image["cls_token"][0].expand(2, -1))
    assert torch.equal(model.token_position, image["pos_embed"][0, :1].expand(2, -1))
    assert import_vit(image, config(distilled=False)).tokens.shape == (1, 64)


def test_the_head_is_new_and_drawn_from_the_generator() -> None:
    first, again, other = (
        import_deit(image_file(), config(), rng=rng(seed)).state_dict()["head.1.weight"] for seed in (1, 1, 2)
    )
    assert first.shape == (3, 64)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_weights_may_lie_under_the_key_model(tmp_path: Path) -> None:
    torch.save({"model": image_file()}, tmp_path / "deit.pth")
    inner, flat = (
        import_deit(tmp_path / "deit.pth", config(), rng=rng()),
        import_deit(image_file(), config(), rng=rng()),
    )
    assert all(torch.equal(flat.state_dict()[name], tensor) for name, tensor in inner.state_dict().items())


def test_a_deeper_file_keeps_every_other_block() -> None:
    image = image_file(depth=12)
    model = import_deit(image, config(depth=7))
    for index, block in enumerate((0, 1, 3, 5, 7, 9, 11)):
        own = model.state_dict()[f"encoder.blocks.{index}.mlp.fc1.weight"]
        assert torch.equal(own, image[f"blocks.{block}.mlp.fc1.weight"])
    with pytest.raises(ValueError, match="12 blocks do not become 6: set depth to 12 or 7"):
        import_deit(image, config(depth=6))


def test_of_32_blocks_half_may_be_kept_first_and_last_among_them() -> None:
    image = image_file(tokens=1, width=32, depth=32)
    own = import_vit(image, config(width=32, depth=16)).state_dict()
    kept = [0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31]
    for index, block in enumerate(kept):
        assert torch.equal(own[f"encoder.blocks.{index}.norm1.weight"], image[f"blocks.{block}.norm1.weight"])
    with pytest.raises(ValueError, match="32 blocks do not become 12: set depth to 32 or 17 or 16"):
        import_vit(image, config(width=32, depth=12))


def test_an_enlarged_patch_gives_the_token_of_the_patch() -> None:
    """As 14 pixels of ViT-huge become 16."""
    kernel, patch = torch.randn(5, 14, 14, generator=rng()), torch.randn(1, 1, 14, 14, generator=rng())
    larger = torch.nn.functional.interpolate(patch, (16, 16), mode="bilinear", align_corners=False)[0, 0]
    tokens = (resized_patch(kernel, 16) * larger).sum(dim=(1, 2))
    torch.testing.assert_close(tokens, (kernel * patch[0, 0]).sum(dim=(1, 2)), atol=1e-3, rtol=1e-3)
    assert resized_patch(kernel, 14) is kernel


def test_patches_of_another_size_are_resized() -> None:
    image = image_file()
    image["patch_embed.proj.weight"] = torch.randn(64, 3, 14, 14, generator=rng())
    assert import_deit(image, config()).embed.proj.weight.shape == (64, 1, 16, 16)
    assert import_deit(image, config(patch=14)).embed.proj.weight.shape == (64, 1, 14, 14)


def test_the_heads_of_vit_huge_are_known() -> None:
    """80 wide, not 64; its shapes do not say so."""
    with pytest.raises(
        ValueError, match=r"\(1280, 16, 16\) \(size huge\), the config asks for \(64, 1, 16\)"
    ):
        import_vit(image_file(1, tokens=1, width=1280, depth=0), config())


def test_names_of_imagenet_21k_are_files_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "from_hub", lambda repo: Path("/cache") / repo / "model.safetensors")
    path = imagenet.fetch("vit-huge-21k")
    assert path == Path("/cache/timm/vit_huge_patch14_224.orig_in21k/model.safetensors")
    assert all("in21k" in imagenet.FILES[name] for name in imagenet.FILES if name.endswith("-21k"))


def test_missing_and_unknown_names_are_named() -> None:
    image = image_file() | {"extra.weight": torch.zeros(1)}
    del image["blocks.1.norm1.bias"]
    with pytest.raises(
        CheckpointError, match=r"missing \['blocks.1.norm1.bias'\], unknown \['extra.weight'\]"
    ):
        import_deit(image, config())


def test_a_plain_vit_is_no_deit_and_the_other_way_round() -> None:
    with pytest.raises(CheckpointError, match=r"missing \['dist_token'\]"):
        import_deit(image_file(tokens=1), config())
    with pytest.raises(CheckpointError, match=r"unknown \['dist_token'\]"):
        import_vit(image_file(), config())


def test_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(192, 3, 16\) \(size tiny\), the config asks for \(64, 1, 16\)"):
        import_deit(image_file(width=192), config())


def test_positions_that_are_no_square_are_refused() -> None:
    image = image_file()
    image["pos_embed"] = image["pos_embed"][:, :-1]
    with pytest.raises(CheckpointError, match="35 positions beside the tokens', not a square"):
        import_deit(image, config())


def test_without_network_a_name_says_where_to_put_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        DownloadError, match=r"dl.fbaipublicfiles.com/deit/deit_tiny.*put it at .*patchout/deit_tiny"
    ):
        imagenet.fetch("deit-tiny")
    path = tmp_path / "patchout" / imagenet.FILES["deit-tiny"]
    path.parent.mkdir()
    torch.save({"model": image_file()}, path)
    assert imagenet.fetch("deit-tiny") == path

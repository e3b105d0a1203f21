"""DeiT and ViT weights for images as a start: positions resized, colours summed, a new head (PaSST, section 3)."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import constants
from jaxtyping import Float
from torch import Generator, Tensor

from patchout.checkpoint.download import by_hand, download
from patchout.checkpoint.public import Source, num_blocks, num_heads, read_public
from patchout.checkpoint.zoo import from_hub
from patchout.errors import CheckpointError
from patchout.files import cache_folder
from patchout.models.fill import check_names, fill
from patchout.models.passt import SIZES, Passt, PasstConfig, cut_depth

URL = "https://dl.fbaipublicfiles.com/deit/"
FILES = {  # a file at this address, or a repository of the hub
    # DeiT: ImageNet-1k alone, a convolutional teacher of the same pictures; the start of every published PaSST
    "deit-base-384": "deit_base_distilled_patch16_384-d0272ac0.pth",
    "deit-small": "deit_small_distilled_patch16_224-649709d9.pth",
    "deit-tiny": "deit_tiny_distilled_patch16_224-b40b3cf7.pth",
    # ViT: ImageNet-21k
    "vit-base-21k": "timm/vit_base_patch16_224.augreg_in21k",
    "vit-small-21k": "timm/vit_small_patch16_224.augreg_in21k",
    "vit-tiny-21k": "timm/vit_tiny_patch16_224.augreg_in21k",
    "vit-huge-21k": "timm/vit_huge_patch14_224.orig_in21k",
}
UNUSED = ("head.", "pre_logits.")  # what only images need


def fetch(name: str) -> Path:
    """The file of a name in `FILES`, brought into the zoo's or the hub's cache if need be; raises DownloadError."""
    if "/" in FILES[name]:
        return from_hub(FILES[name])
    url, path = URL + FILES[name], cache_folder() / FILES[name]
    if constants.HF_HUB_OFFLINE and not path.is_file():
        raise by_hand(url, path, "HF_HUB_OFFLINE is set")
    download(url, path)
    return path


def import_deit(source: Source, config: PasstConfig, *, rng: Generator | None = None) -> Passt:
    """A model of `config` from a distilled DeiT: a state dict or a file.

    Positions are resized (bicubic) to rows x columns; the table of rows is their mean over time, that of columns their
    mean over frequency. The kernels of the three colours are summed, a patch of another size is resized. The head is
    new, drawn from `rng`. A deeper encoder keeps every other block, or half of 32. A config without D takes C alone.
    ValueError: sizes that do not fit the config. CheckpointError: no such weights; it names what is missing or strange.
    """
    return _convert(source, config, ("cls_token", "dist_token"), rng)


def import_vit(source: Source, config: PasstConfig, *, rng: Generator | None = None) -> Passt:
    """A model of `config` from a plain ViT, as `import_deit`; D, which a ViT has not, starts as a copy of C."""
    return _convert(source, config, ("cls_token",), rng)


def _convert(source: Source, config: PasstConfig, tokens: tuple[str, ...], rng: Generator | None) -> Passt:
    _, public, where = read_public(source, "image")
    image = {name: tensor for name, tensor in public.items() if not name.startswith(UNUSED)}
    _check_sizes(image, config, where)
    model = Passt(replace(config, depth=num_blocks(image)), rng=rng)
    own = model.state_dict()
    encoder = {name.removeprefix("encoder."): name for name in own if name.startswith("encoder.")}
    check_names(
        image, (*tokens, "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", *encoder), where
    )
    kind = [min(index, len(tokens) - 1) for index in range(len(own["tokens"]))]  # D of a plain ViT is C again
    kernel = image["patch_embed.proj.weight"].sum(dim=1)
    weights = {
        **{encoder[name]: image[name] for name in encoder},
        **{name: own[name] for name in own if name.startswith("head.")},
        **_positions(image["pos_embed"][0, len(tokens) :], config, where),
        "embed.proj.weight": resized_patch(kernel, config.patch)[:, None],
        "embed.proj.bias": image["patch_embed.proj.bias"],
        "tokens": torch.cat([image[tokens[index]][0] for index in kind]),
        "token_position": image["pos_embed"][0, kind],
    }
    fill(model, weights, where)
    return cut_depth(model, config.depth)


def _check_sizes(image: Mapping[str, Tensor], config: PasstConfig, where: str) -> None:
    """Refuse a config that asks for another width or heads than the file has; patches are resized."""
    width, patch = image["cls_token"].shape[-1], image["patch_embed.proj.weight"].shape[-1]
    has, asked = (width, num_heads(width), patch), (config.width, config.heads, config.patch)
    if has[:2] != asked[:2]:
        size = next((f" (size {name})" for name, sizes in SIZES.items() if sizes == has[:2]), "")
        raise ValueError(
            f"{where} has width, heads and patch {has}{size}, the config asks for {asked}: choose the size that fits"
        )


def resized_patch(
    kernel: Float[Tensor, "width row column"], patch: int
) -> Float[Tensor, "width patch patch"]:
    """Kernels for patches of another size (14 of ViT-huge -> 16), by the pseudo-inverse of the bilinear resize.

    An enlarged patch then gives the token that the patch itself gave (FlexiViT, arXiv:2212.08013, section 3.4); a
    resized kernel would give more, as it sums over more pixels. The PaSST paper does not say what it did.
    """
    has = kernel.shape[-1]
    if has == patch:
        return kernel
    pixels = torch.eye(has**2, dtype=torch.float64).view(-1, 1, has, has)
    resize = F.interpolate(pixels, (patch, patch), mode="bilinear", align_corners=False).flatten(1)
    return (kernel.double().flatten(1) @ torch.linalg.pinv(resize).T).float().view(-1, patch, patch)


def _positions(
    square: Float[Tensor, "patch width"], config: PasstConfig, where: str
) -> dict[str, Float[Tensor, "..."]]:
    """Our tables of positions from those of a square image."""
    side = math.isqrt(len(square))
    if side**2 != len(square):
        raise CheckpointError(
            f"{where}: pos_embed has {len(square)} positions beside the tokens', not a square of them"
        )
    image = square.T.reshape(1, -1, side, side)  # (1, width, side, side)
    grid = F.interpolate(image, (config.rows, config.columns), mode="bicubic", align_corners=False)[
        0
    ].permute(1, 2, 0)
    if config.positions == "grid":
        return {"embed.grid_position": grid}
    return {"embed.row_position": grid.mean(dim=1), "embed.column_position": grid.mean(dim=0)}

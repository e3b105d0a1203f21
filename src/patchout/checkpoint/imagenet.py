"""ImageNet initialisation of PaSST from DeiT and ViT weights (PaSST, sections 3 and 3.2)."""

import math
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor

from patchout.checkpoint.download import download
from patchout.checkpoint.public import Source, num_blocks, num_heads, read_public
from patchout.checkpoint.zoo import from_hub
from patchout.errors import CheckpointError
from patchout.files import cache_folder
from patchout.models.fill import check_names, fill
from patchout.models.passt import SIZES, Passt, PasstConfig, cut_depth

URL = "https://dl.fbaipublicfiles.com/deit/"
FILES = {  # name -> file at `URL`, or repository of the hub
    # DeiT: ImageNet-1k alone, also for its convolutional teacher; the start of every published PaSST
    "deit-base-384": "deit_base_distilled_patch16_384-d0272ac0.pth",
    "deit-small": "deit_small_distilled_patch16_224-649709d9.pth",
    "deit-tiny": "deit_tiny_distilled_patch16_224-b40b3cf7.pth",
    # ViT: ImageNet-21k
    "vit-base-21k": "timm/vit_base_patch16_224.augreg_in21k",
    "vit-small-21k": "timm/vit_small_patch16_224.augreg_in21k",
    "vit-tiny-21k": "timm/vit_tiny_patch16_224.augreg_in21k",
    "vit-huge-21k": "timm/vit_huge_patch14_224.orig_in21k",
}
UNUSED = ("head.", "pre_logits.")  # the classifier of images


def fetch(name: str) -> Path:
    """The file of a name in `FILES`, downloaded into the cache if absent; raises DownloadError."""
    if "/" in FILES[name]:
        return from_hub(FILES[name])
    path = cache_folder() / FILES[name]
    download(URL + FILES[name], path)
    return path


def import_deit(source: Source, config: PasstConfig, *, rng: Generator | None = None) -> Passt:
    """A PaSST of `config` initialised from a distilled DeiT: a state dict or a file.

    Position embeddings are resized (bicubic) to rows x columns; frequency positions are their mean over time,
    time positions their mean over frequency. Patch kernels are summed over the colours, and resized to
    another size of patch. The head is new, drawn from `rng`. A deeper encoder keeps every other block, or
    half of 32; without D only C is taken. ValueError: sizes that do not fit. CheckpointError: other weights;
    missing and unknown names.
    """
    return _convert(source, config, ("cls_token", "dist_token"), rng)


def import_vit(source: Source, config: PasstConfig, *, rng: Generator | None = None) -> Passt:
    """A PaSST of `config` initialised from a plain ViT, as by `import_deit`; D starts as a copy of C."""
    return _convert(source, config, ("cls_token",), rng)


def _convert(source: Source, config: PasstConfig, tokens: tuple[str, ...], rng: Generator | None) -> Passt:
    _, public, where = read_public(source, "image")
    image = {name: tensor for name, tensor in public.items() if not name.startswith(UNUSED)}
    width, patch = image["cls_token"].shape[-1], image["patch_embed.proj.weight"].shape[-1]
    sizes, expected = (width, num_heads(width), patch), (config.width, config.heads, config.patch)
    if sizes[:2] != expected[:2]:
        size = next((f" (size {name})" for name, pair in SIZES.items() if pair == sizes[:2]), "")
        difference = f"has width, heads and patch {sizes}{size}, the config asks for {expected}"
        raise ValueError(f"{where} {difference}: choose the size that fits")
    model = Passt(replace(config, depth=num_blocks(image)), rng=rng)
    initial = model.state_dict()
    encoder = {name.removeprefix("encoder."): name for name in initial if name.startswith("encoder.")}
    projection = "patch_embed.proj.weight", "patch_embed.proj.bias"
    check_names(image, (*tokens, "pos_embed", *projection, *encoder), where)
    kinds = [min(index, len(tokens) - 1) for index in range(len(initial["tokens"]))]  # D of a plain ViT: C
    kernel, bias = (image[name] for name in projection)
    weights = {
        **{encoder[name]: image[name] for name in encoder},
        **{name: tensor for name, tensor in initial.items() if name.startswith("head.")},
        **_positions(image["pos_embed"][0, len(tokens) :], config, where),
        "embed.proj.weight": resized_patch(kernel.sum(dim=1), config.patch)[:, None],
        "embed.proj.bias": bias,
        "tokens": torch.cat([image[tokens[index]][0] for index in kinds]),
        "token_position": image["pos_embed"][0, kinds],
    }
    fill(model, weights, where)
    return cut_depth(model, config.depth)


def resized_patch(kernel: Float[Tensor, "width side side"], patch: int) -> Float[Tensor, "width patch patch"]:
    """Patch kernels of another size (14 of ViT-huge -> 16), by the pseudo-inverse of the bilinear resize.

    An enlarged patch then gives the token that the patch itself gave (FlexiViT, arXiv:2212.08013, section
    3.4); a resized kernel would give more, as it sums over more pixels. The paper does not say.
    """
    side = kernel.shape[-1]
    if side == patch:
        return kernel
    pixels = torch.eye(side**2, dtype=torch.float64).view(-1, 1, side, side)
    resize = F.interpolate(pixels, (patch, patch), mode="bilinear", align_corners=False).flatten(1)
    return (kernel.double().flatten(1) @ torch.linalg.pinv(resize).T).float().view(-1, patch, patch)


def _positions(
    square: Float[Tensor, "patch width"], config: PasstConfig, where: str
) -> dict[str, Float[Tensor, "..."]]:
    """Position tables of a PaSST from those of a square image (PaSST, section 3)."""
    side = math.isqrt(len(square))
    if side**2 != len(square):
        count = f"{len(square)} positions beside the tokens'"
        raise CheckpointError(f"{where}: pos_embed has {count}, not a square of them")
    image, size = square.T.reshape(1, -1, side, side), (config.rows, config.columns)
    grid = F.interpolate(image, size, mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
    if config.positions == "grid":
        return {"embed.grid_position": grid}
    return {"embed.row_position": grid.mean(dim=1), "embed.column_position": grid.mean(dim=0)}

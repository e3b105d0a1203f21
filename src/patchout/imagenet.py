"""DeiT and ViT weights for images as a start: positions resized, colours summed, a new head (PaSST, section 3)."""

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import constants
from jaxtyping import Float
from torch import Generator, Tensor

from patchout.download import by_hand, download
from patchout.passt import SIZES, Passt, PasstConfig, cut_depth
from patchout.weights import HEAD_WIDTH, CheckpointError, Path_, fill, public_weights, unpickle
from patchout.zoo import cache_folder

URL = "https://dl.fbaipublicfiles.com/deit/"
FILES = {
    "deit-base-384": "deit_base_distilled_patch16_384-d0272ac0.pth",
    "deit-small": "deit_small_distilled_patch16_224-649709d9.pth",
    "deit-tiny": "deit_tiny_distilled_patch16_224-b40b3cf7.pth",
}
UNUSED = ("head.", "pre_logits.")  # what only images need


def fetch(name: str) -> Path:
    """The file of a name in `FILES`, brought into the zoo's cache if need be; raises DownloadError."""
    url, path = URL + FILES[name], cache_folder() / FILES[name]
    if constants.HF_HUB_OFFLINE and not path.is_file():
        raise by_hand(url, path, "HF_HUB_OFFLINE is set")
    download(url, path)
    return path


def import_deit(source: Mapping[str, Tensor] | Path_, config: PasstConfig, *, rng: Generator | None = None) -> Passt:
    """A model of `config` from a distilled DeiT: a state dict or a .pth file, flat or under the key "model".

    Positions are resized (bicubic) to rows x columns; the table of rows is their mean over time, that of columns their
    mean over frequency. The kernels of the three colours are summed. The head is new, drawn from `rng`. A deeper
    encoder keeps every other block. A config without D takes C alone.
    ValueError: sizes that do not fit the config. CheckpointError: no such weights; it names what is missing or strange.
    """
    return _convert(source, config, ("cls_token", "dist_token"), rng)


def import_vit(source: Mapping[str, Tensor] | Path_, config: PasstConfig, *, rng: Generator | None = None) -> Passt:
    """A model of `config` from a plain ViT, as `import_deit`; D, which a ViT has not, starts as a copy of C."""
    return _convert(source, config, ("cls_token",), rng)


def image_weights(source: Mapping[str, Tensor] | Path_) -> tuple[dict[str, Tensor], str]:
    """The weights of a file by their names in it, without the head, and what to call their source."""
    where = "state dict" if isinstance(source, Mapping) else os.fspath(source)
    public = public_weights(source if isinstance(source, Mapping) else unpickle(source), where)
    return {name: tensor for name, tensor in public.items() if not name.startswith(UNUSED)}, where


def _convert(
    source: Mapping[str, Tensor] | Path_, config: PasstConfig, tokens: tuple[str, ...], rng: Generator | None
) -> Passt:
    image, where = image_weights(source)
    depth = len({name.split(".")[1] for name in image if name.startswith("blocks.")})
    model = Passt(replace(config, depth=max(1, depth)), rng=rng)
    own = model.state_dict()
    encoder = {name.removeprefix("encoder."): name for name in own if name.startswith("encoder.")}
    wanted = {*tokens, "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", *encoder}
    missing, unknown = sorted(wanted - image.keys()), sorted(image.keys() - wanted)
    if missing or unknown:
        raise CheckpointError(f"{where}: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")
    _check_sizes(image, config, where)
    kind = [min(index, len(tokens) - 1) for index in range(len(own["tokens"]))]  # D of a plain ViT is C again
    weights = {
        **{encoder[name]: image[name] for name in encoder},
        **{name: own[name] for name in own if name.startswith("head.")},
        **_positions(image["pos_embed"][0, len(tokens) :], config, where),
        "embed.proj.weight": image["patch_embed.proj.weight"].sum(dim=1, keepdim=True),
        "embed.proj.bias": image["patch_embed.proj.bias"],
        "tokens": torch.cat([image[tokens[index]][0] for index in kind]),
        "token_position": image["pos_embed"][0, kind],
    }
    fill(model, weights, where)
    return cut_depth(model, config.depth)


def _check_sizes(image: Mapping[str, Tensor], config: PasstConfig, where: str) -> None:
    """Refuse a config that asks for another width, head width or patch than the file has."""
    width, patch = image["cls_token"].shape[-1], image["patch_embed.proj.weight"].shape[-1]
    has, asked = (width, width // HEAD_WIDTH, patch), (config.width, config.heads, config.patch)
    if has != asked:
        size = next((f" (size {name})" for name, sizes in SIZES.items() if sizes == has[:2]), "")
        raise ValueError(
            f"{where} has width, heads and patch {has}{size}, the config asks for {asked}: choose the size that fits"
        )


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
    grid = F.interpolate(image, (config.rows, config.columns), mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
    if config.positions == "grid":
        return {"embed.grid_position": grid}
    return {"embed.row_position": grid.mean(dim=1), "embed.column_position": grid.mean(dim=0)}

"""Public weights as people have them: every wrapping read, everything else told as what it is,
at every door alike.
"""

import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from safetensors.torch import save_file
from test_imagenet import image_file
from torch import Tensor

import patchout
from patchout.checkpoint import zoo
from patchout.checkpoint.maskspec import export_maskspec, import_maskspec
from patchout.checkpoint.own import export_passt, import_passt, load, save
from patchout.checkpoint.public import read_public
from patchout.errors import CheckpointError
from patchout.models.maskspec_classifier import MaskSpecClassifier, MaskSpecClassifierConfig
from patchout.models.passt import Passt
from patchout.training.supervised.initial_weights import find, start

CPU = torch.device("cpu")
WEIGHTS = export_passt(Passt(tiny_config(heads=1), rng=torch.Generator().manual_seed(1)))
DOORS: dict[str, Callable[[Path], Any]] = {
    "--model and patchout.load": partial(zoo.load, device="cpu"),
    "--init": lambda path: find(str(path)).model,
    "import_passt": import_passt,
}


class Settings:
    """An object that a training tool keeps beside the weights."""


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def prefixed(prefix: str, weights: dict[str, Tensor] = WEIGHTS) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in weights.items()}


def doubled() -> dict[str, Tensor]:
    return {name: 2 * tensor for name, tensor in WEIGHTS.items()}


def maskspec() -> dict[str, Tensor]:
    config = MaskSpecClassifierConfig(labels=("a", "b"), width=32, heads=1, depth=1, columns=4)
    return export_maskspec(MaskSpecClassifier(config, rng=torch.Generator().manual_seed(0)))


# -- what tools put around them ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "model.",
        "model.net.",
        "net.",
        "net_swa.",
        "_orig_mod.",
        "module._orig_mod.model.net.",
        "backbone.",
    ],
)
def test_any_prefix_is_taken_off(prefix: str) -> None:
    assert same(read_public(prefixed(prefix)).weights, WEIGHTS)


@pytest.mark.parametrize(
    "container",
    ["state_dict", "model_state_dict", "model", "net", "weights", "ema", "model/state_dict", "anything"],
)
def test_any_container_is_opened(container: str) -> None:
    content: dict[str, Any] = prefixed("module.")
    for name in reversed(container.split("/")):
        content = {name: content, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}
    assert same(read_public(content).weights, WEIGHTS)


def test_averaged_weights_come_before_the_last_ones() -> None:
    assert same(
        read_public({"model": WEIGHTS, "ema": {"decay": 0.999, "shadow": doubled()}}).weights, doubled()
    )
    averaged = prefixed("module.", doubled()) | {
        "n_averaged": torch.tensor(7)
    }  # as torch's AveragedModel has it
    assert same(read_public(averaged).weights, doubled())


def test_unknown_containers_of_weights_are_listed() -> None:
    with pytest.raises(
        CheckpointError, match=r"several dictionaries of weights, \['left', 'right'\]: give one of"
    ):
        read_public({"left": WEIGHTS, "right": doubled()})


def test_what_stands_beside_a_prefix_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"unknown \['mel.window'\] beside the weights of net\.\*"):
        read_public(prefixed("net.") | {"mel.window": torch.zeros(2)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_numbers_of_any_width_become_float32(dtype: torch.dtype) -> None:
    model = import_passt({name: tensor.to(dtype) for name, tensor in WEIGHTS.items()})
    expected = WEIGHTS["head.1.weight"].to(dtype).float()
    assert torch.equal(export_passt(model)["head.1.weight"], expected)


def test_strided_tensors_are_read_and_integers_refused() -> None:
    strided = {
        name: tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor for name, tensor in WEIGHTS.items()
    }
    assert not strided["head.1.weight"].is_contiguous()
    assert same(export_passt(import_passt(strided)), WEIGHTS)
    with pytest.raises(CheckpointError, match=r"norm\.bias holds int8 numbers: give floating-point weights"):
        import_passt(WEIGHTS | {"norm.bias": torch.zeros(32, dtype=torch.int8)})


# -- one behaviour at every door -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("ending", ["pt", "pth", "bin", "ckpt", "safetensors"])
def test_a_file_is_read_by_what_it_holds_not_by_its_ending(ending: str, door: str, tmp_path: Path) -> None:
    for write in (torch.save, save_file):
        write({"x.module." + name: tensor for name, tensor in WEIGHTS.items()}, tmp_path / f"w.{ending}")
        assert same(export_passt(DOORS[door](tmp_path / f"w.{ending}")), WEIGHTS)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("write", [torch.save, save_file])
def test_weights_that_are_not_finite_are_refused(
    write: Callable[..., None], door: str, tmp_path: Path
) -> None:
    broken = {name: tensor.clone() for name, tensor in WEIGHTS.items()}
    broken["norm.bias"][3], broken["norm.weight"][0] = torch.nan, torch.inf
    write(broken, tmp_path / "w.pt")
    with pytest.raises(
        CheckpointError, match=r"w\.pt: norm\.\w+ holds NaN or infinity \(2 of \d+ tensors do\)"
    ):
        DOORS[door](tmp_path / "w.pt")


def test_our_own_and_other_families_are_held_to_it_too(tiny: Passt, tmp_path: Path) -> None:
    with torch.no_grad():
        tiny.get_parameter("head.1.bias").fill_(torch.nan)
    save(tiny, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=r"m.safetensors: head\.1\.bias holds NaN or infinity"):
        load(tmp_path / "m.safetensors")
    for weights in (maskspec(), image_file(width=32)):
        with pytest.raises(CheckpointError, match=r"cls_token holds NaN"):
            read_public(weights | {"cls_token": weights["cls_token"] * torch.nan})


def test_large_weights_whose_sum_overflows_are_finite() -> None:
    large = torch.full((32,), 3e38)
    assert torch.equal(read_public(WEIGHTS | {"norm.bias": large}).weights["norm.bias"], large)


def test_an_own_file_may_have_any_ending(tiny: Passt, tmp_path: Path) -> None:
    save(tiny, tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors").rename(tmp_path / "m.bin")
    assert patchout.load(tmp_path / "m.bin", "cpu").config == tiny.config
    with pytest.raises(
        CheckpointError, match=r"m.bin: no PaSST weights, it holds a model under the names of patchout"
    ):
        import_passt(tmp_path / "m.bin")


def test_weights_for_images_are_a_start_and_no_model(tmp_path: Path) -> None:
    torch.save(image_file(width=32), tmp_path / "deit.pth")
    for read in (zoo.load, zoo.load_pretrained):
        with pytest.raises(
            CheckpointError, match=r"deit.pth: weights for images know no sounds: give them to patchout"
        ):
            read(tmp_path / "deit.pth", "cpu")
    with pytest.raises(CheckpointError, match="no PaSST weights, it holds a ViT or DeiT for images"):
        import_passt(tmp_path / "deit.pth")
    with pytest.raises(CheckpointError, match="no MaskSpec weights, it holds a PaSST"):
        import_maskspec(WEIGHTS)


# -- without a head ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [("head.0.weight", "head.0.bias"), ()])
def test_a_passt_without_a_last_layer_is_an_encoder(left: tuple[str, ...], tmp_path: Path) -> None:
    bare = {name: tensor for name, tensor in WEIGHTS.items() if not name.startswith("head.") or name in left}
    torch.save(bare, tmp_path / "bare.pt")
    encoder, whole = zoo.load(tmp_path / "bare.pt", "cpu"), import_passt(WEIGHTS)
    mel = torch.randn(1, 128, 40, generator=torch.Generator().manual_seed(0))
    output = encoder(mel)
    assert encoder.config.labels == ()
    assert output.logits.shape == (1, 0)
    assert torch.equal(output.embedding, whole(mel).embedding)


def test_an_encoder_is_kept_embeds_and_tags_nothing(tmp_path: Path) -> None:
    encoder = import_passt({name: tensor for name, tensor in WEIGHTS.items() if not name.startswith("head.")})
    save(encoder, tmp_path / "bare.safetensors")
    assert load(tmp_path / "bare.safetensors").config == encoder.config
    sound, mid = (
        (np.zeros(6_000, np.float32), 32_000),
        patchout.EmbedConfig(levels=("mid",), scene_levels=("mid",)),
    )
    assert patchout.embed(encoder, sound, config=mid).scene.shape == (32,)
    with pytest.raises(ValueError, match="a PaSST without its last layer has no classes yet: fine-tune it"):
        patchout.tag(encoder, sound)


def test_training_starts_from_a_passt_without_a_head(tmp_path: Path) -> None:
    torch.save(
        {name: tensor for name, tensor in WEIGHTS.items() if not name.startswith("head.")},
        tmp_path / "bare.pt",
    )
    config = tiny_config(heads=1)
    model = start(config, find(str(tmp_path / "bare.pt")), rng=torch.Generator().manual_seed(3), device=CPU)
    assert isinstance(model, Passt)
    assert torch.equal(export_passt(model)["blocks.1.mlp.fc1.weight"], WEIGHTS["blocks.1.mlp.fc1.weight"])
    assert model.config == config


# -- what is no file of weights ------------------------------------------------------------------------------

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 345579424\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (bytes(600), "zeros alone"),
        (LFS, r"a Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b'<?xml version="1.0"?><Error>AccessDenied</Error>', "a web page"),
        (b'{"error": "Invalid username"}', 'a text of JSON.*"error": "Invalid username"'),
        (b"\x1f\x8b\x08\x00rest", "a compressed archive: unpack it"),
        (b"PK\x03\x04cut short", "its end is missing or damaged"),
    ],
)
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_what_stands_in_place_of_weights_is_told(
    content: bytes, told: str, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"w.{ending}"
    path.write_bytes(content)
    for door in DOORS.values():
        with pytest.raises(CheckpointError, match=rf"(?s)w\.{ending}: not a .*{told}"):
            door(path)


def test_a_header_as_long_as_a_bracket_is_no_web_page(tmp_path: Path) -> None:
    """The length of a .safetensors header may begin with any byte, "<" among them."""
    header = (
        json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
        .ljust(ord("<") + 256)
        .encode()
    )
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match=r"no PaSST.* weights, it holds \['a'\]"):
        read_public(tmp_path / "w.safetensors")


def test_an_archive_of_a_folder_is_told_from_torchs_own(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("run/model.pt", b"x")
    with pytest.raises(CheckpointError, match=r"a zip archive of run/model.pt: unpack it"):
        read_public(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "write", [torch.save, partial(torch.save, _use_new_zipfile_serialization=False), save_file]
)
def test_a_file_that_was_cut_is_refused(write: Callable[..., None], tmp_path: Path) -> None:
    write(WEIGHTS, tmp_path / "w.pt")
    content = (tmp_path / "w.pt").read_bytes()
    for length in (100, len(content) // 2, len(content) - 1):
        (tmp_path / "w.pt").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"w\.pt: not a"):
            read_public(tmp_path / "w.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_class_beside_the_weights_is_named_and_the_line_saves_them(zipped: bool, tmp_path: Path) -> None:
    content = {"state_dict": prefixed("net."), "hyper_parameters": Settings()}
    torch.save(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        CheckpointError, match=r"test_public\.Settings stands in it, and nothing in a file is run"
    ) as told:
        zoo.load(tmp_path / "last.ckpt", "cpu")
    exec(str(told.value).partition("that has it: ")[2])
    assert same(export_passt(zoo.load(tmp_path / "last.weights.pt", "cpu")), WEIGHTS)  # type: ignore[arg-type]


def test_numbers_of_numpy_may_stand_beside_the_weights(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "best": np.float64(0.476), "epoch": np.int64(3)}, tmp_path / "w.pt")
    assert same(read_public(tmp_path / "w.pt").weights, WEIGHTS)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("audio_spectrogram_transformer.embeddings.cls_token", "an AST of the transformers library"),
        ("module.v.pos_embed", "an AST as its authors wrote it"),
        ("vit.embeddings.cls_token", "a ViT of the transformers library.*timm"),
        ("conv_block1.conv1.weight", "a CNN of PANNs"),
        ("base_model.model.blocks.0.attn.qkv.lora_A.weight", "adapters"),
        ("something.weight", r"\['something.weight'\]"),
    ],
)
def test_weights_of_another_model_are_told_as_what_they_are(name: str, told: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(1)}, tmp_path / "w.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=rf"w.safetensors: no PaSST, MaskSpec or ViT.* weights, it holds {told}"
    ):
        zoo.load(tmp_path / "w.safetensors", "cpu")


def test_an_unpacked_pt_file_is_known(tmp_path: Path) -> None:
    (tmp_path / "data.pkl").write_text(json.dumps({}))
    with pytest.raises(
        ValueError, match=r"a folder without model.safetensors, but the parts of one: zip them again"
    ):
        zoo.load(tmp_path, "cpu")


# -- addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["https://example.org/passt.pt", "s3://bucket/passt.pt", "http://huggingface.co/a/b"]
)
def test_addresses_are_not_fetched(address: str) -> None:
    for read in (zoo.locate, find):
        with pytest.raises(
            ValueError, match=r"only names that .* are fetched: download the file and give its path"
        ):
            read(address)


def test_hf_addresses_are_hub_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "from_hub", lambda repo: Path("/cache") / repo)
    assert zoo.locate("hf://ada/barks") == Path("/cache/ada/barks")
    with pytest.raises(ValueError, match=r"hf://ada: .*give hf://owner/name"):
        zoo.locate("hf://ada")


def test_a_drive_is_no_address() -> None:
    with pytest.raises(FileNotFoundError, match=r"C:/models/w\.pt: no such file"):
        zoo.locate("C:/models/w.pt")

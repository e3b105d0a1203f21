"""Checkpoints: our file is whole or refused; public weights come in by shape and go out by name."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_config
from safetensors import SafetensorError
from safetensors.torch import save_file

from patchout.audio.mel import MelConfig
from patchout.checkpoint import own as checkpoint
from patchout.checkpoint.own import config_from_json, export_passt, import_passt, load, save
from patchout.errors import CheckpointError
from patchout.models.maskspec import MaskSpec, MaskSpecConfig
from patchout.models.maskspec_classifier import MaskSpecClassifier, MaskSpecClassifierConfig
from patchout.models.passt import Passt


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def public_of(width: int = 64, **changes: object) -> dict[str, torch.Tensor]:
    """Public weights of a small model: heads are 64 wide there."""
    model = Passt(
        tiny_config(width=width, heads=width // 64, **changes), rng=torch.Generator().manual_seed(1)
    )
    return export_passt(model)


# -- our own file --------------------------------------------------------------------------------------------


def test_a_saved_model_comes_back_whole(tiny: Passt, tmp_path: Path) -> None:
    tiny.config = replace(tiny.config, licence="CC0", provenance={"seed": 3, "scores": {"accuracy": 0.5}})
    save(tiny, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert again.config == tiny.config
    assert same(again, tiny)
    assert not again.training


def test_a_position_per_patch_is_saved_and_loaded(tmp_path: Path) -> None:
    model = Passt(tiny_config(positions="grid"), rng=torch.Generator().manual_seed(0))
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert isinstance(again, Passt)
    assert again.config.positions == "grid"
    assert same(again, model)
    with pytest.raises(ValueError, match="public format holds separate positions"):
        export_passt(again)


def test_a_config_from_before_the_choice_of_positions_loads(tiny: Passt) -> None:
    before = asdict(tiny.config)
    del before["positions"]
    assert config_from_json(json.dumps(before)) == tiny.config


@pytest.mark.slow
def test_half_precision_halves_the_file(tiny: Passt, tmp_path: Path) -> None:
    save(tiny, tmp_path / "full.safetensors")
    save(tiny, tmp_path / "half.safetensors", half=True)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    again = load(tmp_path / "half.safetensors")
    assert isinstance(again, Passt)
    assert all(weight.dtype == torch.float32 for weight in again.state_dict().values())
    torch.testing.assert_close(again.head[1].weight, tiny.head[1].weight, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("half", [False, True])
def test_a_load_draws_no_weights_and_keeps_none_in_its_file(half: bool, tiny: Passt, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(tiny, path, half=half)
    before = torch.get_rng_state()
    again = load(path)
    assert torch.equal(torch.get_rng_state(), before)
    path.write_bytes(bytes(path.stat().st_size))  # in place: a file that is mapped would change the model
    for name, weight in again.state_dict().items():
        assert weight.is_contiguous(), name
        torch.testing.assert_close(weight, tiny.state_dict()[name], atol=1e-3 * half, rtol=1e-3 * half)
    assert all(weight.requires_grad for weight in again.parameters())


def test_a_full_disk_is_told_in_one_line(
    tiny: Passt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tiny, tmp_path / "m.safetensors")
    before = (tmp_path / "m.safetensors").read_bytes()

    def fill_up(weights: object, path: Path, metadata: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", fill_up)
    with pytest.raises(OSError, match=r"No space left on device.*make room") as told:
        save(tiny, tmp_path / "m.safetensors")
    assert told.value.filename == str(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_truncated_file_is_refused(tiny: Passt, tmp_path: Path) -> None:
    save(tiny, tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    for length in (0, 7, 100, len(content) - 1):
        (tmp_path / "m.safetensors").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"m.safetensors: not a whole"):
            load(tmp_path / "m.safetensors")


def test_flipped_bytes_are_refused(tiny: Passt, tmp_path: Path) -> None:
    save(tiny, tmp_path / "m.safetensors")
    content = bytearray((tmp_path / "m.safetensors").read_bytes())
    rng = np.random.default_rng(0)
    for place in [len(content) - 5, *rng.integers(8, len(content), 60).tolist()]:
        flipped = bytearray(content)
        flipped[place] ^= 0x10
        (tmp_path / "m.safetensors").write_bytes(bytes(flipped))
        with pytest.raises(CheckpointError, match=r"m.safetensors"):
            load(tmp_path / "m.safetensors")


def test_a_file_of_another_tool_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="of another tool"):
        load(tmp_path / "other.safetensors")


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(tmp_path / "nowhere.safetensors")


# -- public weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stride": (12, 12)},
        {"stride": (14, 14)},
        {"stride": (16, 16)},
        {"depth": 7, "columns": 5},
        {"distilled": False},
        {"width": 128},
        {"labels": tuple(map(str, range(50)))},
    ],
)
def test_sizes_are_read_from_the_shapes(changes: dict[str, object]) -> None:
    public = public_of(**changes)  # type: ignore[arg-type]
    config = import_passt(public).config
    wanted = tiny_config(**({"width": 64} | changes))
    for name in ("width", "depth", "stride", "columns", "distilled", "rows"):
        assert getattr(config, name) == getattr(wanted, name), name
    assert config.heads == config.width // 64
    assert len(config.labels) == len(wanted.labels)


def test_the_way_back_gives_the_same_weights() -> None:
    public = public_of()
    again = export_passt(import_passt(public))
    assert again.keys() == public.keys()
    assert all(torch.equal(again[name], public[name]) for name in public)
    assert public["freq_new_pos_embed"].shape == (1, 64, 12, 1)
    assert public["time_new_pos_embed"].shape == (1, 64, 1, 9)


def test_strides_that_differ_need_the_override() -> None:
    public = public_of(stride=(10, 16))
    assert import_passt(public, stride=(10, 16)).config.stride == (10, 16)
    with pytest.raises(CheckpointError, match="12 rows of positions fit a frequency stride of 16"):
        import_passt(public, stride=16)


def test_the_front_end_is_given() -> None:
    assert import_passt(public_of(), mel=MelConfig(hop_length=100)).config.mel.hop_length == 100


def test_the_unused_head_is_dropped() -> None:
    public = public_of()
    assert same(import_passt(public | {"head_dist.weight": torch.ones(3, 64)}), import_passt(public))


def test_527_classes_are_audioset() -> None:
    labels = import_passt(public_of(labels=tuple(map(str, range(527))))).config.labels
    assert labels[0] == "Speech"
    assert len(labels) == 527


def test_other_classes_are_numbered_unless_named() -> None:
    assert import_passt(public_of()).config.labels == ("class 0", "class 1", "class 2")
    assert import_passt(public_of(), labels=("a", "b", "c")).config.labels == ("a", "b", "c")
    with pytest.raises(CheckpointError, match="3 classes, 2 labels"):
        import_passt(public_of(), labels=("a", "b"))


def test_averaged_weights_come_first_from_a_training_checkpoint(tmp_path: Path) -> None:
    last, averaged = public_of(), {name: 2 * tensor for name, tensor in public_of().items()}
    state = {f"net.{name}": tensor for name, tensor in last.items()}
    state |= {f"net_swa._orig_mod.{name}": tensor for name, tensor in averaged.items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    assert same(import_passt(tmp_path / "last.ckpt"), import_passt(averaged))


def test_an_outer_model_key_is_unwrapped(tmp_path: Path) -> None:
    torch.save({"model": public_of()}, tmp_path / "passt.pt")
    assert same(import_passt(tmp_path / "passt.pt"), import_passt(public_of()))


def test_unknown_and_missing_names_are_named() -> None:
    public = public_of()
    with pytest.raises(CheckpointError, match=r"unknown \['extra.weight'\]"):
        import_passt(public | {"extra.weight": torch.zeros(1)})
    del public["blocks.1.norm1.bias"]
    with pytest.raises(CheckpointError, match=r"missing \['blocks.1.norm1.bias'\]"):
        import_passt(public)


def test_a_wrong_shape_is_named() -> None:
    public = public_of()
    public["norm.weight"] = torch.zeros(65)
    with pytest.raises(CheckpointError, match=re.escape("encoder.norm.weight is (65,), the model has (64,)")):
        import_passt(public)


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    torch.save({"model": Path("x")}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"evil.pt: not a readable file of plain tensors"):
        import_passt(tmp_path / "evil.pt")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_files_that_are_no_checkpoint_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"x.pt: not a readable file"):
        import_passt(tmp_path / "x.pt")


def test_a_damaged_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(public_of(), tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    content = (tmp_path / "m.pt").read_bytes()
    key = re.findall(rb"\d{8,}", content)[-1]  # of a storage; torch.load asserts that it is there
    (tmp_path / "m.pt").write_bytes(content[::-1].replace(key[::-1], b"x" + key[:0:-1], 1)[::-1])
    with pytest.raises(CheckpointError, match=r"m.pt: not a readable file"):
        import_passt(tmp_path / "m.pt")


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(CheckpointError, match="no PaSST weights"):
        import_passt({"conv.weight": torch.zeros(3)})


def test_a_header_without_its_config_is_refused(tiny: Passt, tmp_path: Path) -> None:
    save(tiny, tmp_path / "m.safetensors")
    content = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(content.replace(b'"config"', b'"confih"', 1))  # one bit
    with pytest.raises(CheckpointError, match=r"m.safetensors: damaged"):
        load(tmp_path / "m.safetensors")


# -- MaskSpec ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MaskSpec, MaskSpecClassifier])
def test_both_kinds_of_maskspec_come_back_whole(
    kind: type[MaskSpec | MaskSpecClassifier], tmp_path: Path
) -> None:
    """Statistics of the bands and all: as tuples, which JSON does not know."""
    sizes: dict[str, Any] = {"width": 32, "heads": 2, "depth": 1, "columns": 4}
    sizes |= {"mel": MelConfig(mean=(0.5,) * 128, std=(2.0,) * 128)}
    model: MaskSpec | MaskSpecClassifier
    if kind is MaskSpec:
        model = MaskSpec(MaskSpecConfig(**sizes, decoder_width=16, decoder_heads=1, decoder_depth=1))
    else:
        model = MaskSpecClassifier(MaskSpecClassifierConfig(**sizes, labels=("a", "b"), pooling="token"))
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert type(again) is kind
    assert again.config == model.config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_a_kind_of_a_later_version_is_refused(tiny: Passt, tmp_path: Path) -> None:
    class Later(Passt):
        """Not known here."""

    save(Later(tiny.config), tmp_path / "m.safetensors")
    with pytest.raises(
        CheckpointError, match=r"holds a Later, here are Passt, MaskSpec, .*needs a newer patchout"
    ):
        load(tmp_path / "m.safetensors")


def test_statistics_of_another_number_of_bands_are_refused(tiny: Passt) -> None:
    values = asdict(tiny.config)
    values["mel"] |= {"mean": [0.5] * 64, "std": [1.0] * 64}
    with pytest.raises(ValueError, match="64 values of mean and 64 of std do not fit 128 bands"):
        config_from_json(json.dumps(values))

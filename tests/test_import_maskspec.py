"""Public MaskSpec weights: read by name and shape, refused by name, and a start for fine-tuning."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LABELS

from patchout.audio.mel import MelConfig, log_mel
from patchout.checkpoint import maskspec as import_maskspec_module
from patchout.checkpoint.maskspec import (
    TABLES,
    export_maskspec,
    import_maskspec,
    import_maskspec_classifier,
    public_mel,
    start_classifier,
)
from patchout.errors import CheckpointError
from patchout.models.masking import patchify, sincos_positions
from patchout.models.maskspec import MaskSpec, MaskSpecConfig
from patchout.models.maskspec_classifier import MaskSpecClassifier, MaskSpecClassifierConfig

WIDTH = 64  # one head, as wide as the public ones
HEAD = ("head.bias", "head.weight")
NORM = ("fc_norm.bias", "fc_norm.weight")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mel() -> torch.Tensor:
    return torch.randn(2, 128, 96, generator=rng())


def pretrained() -> dict[str, torch.Tensor]:
    """A pre-training file of the public layout: twelve thin blocks, eight in the decoder."""
    config = MaskSpecConfig(width=WIDTH, heads=1, decoder_width=32, columns=6)
    return {name: tensor.clone() for name, tensor in export_maskspec(MaskSpec(config, rng=rng())).items()}


def classifier_config(**changes: object) -> MaskSpecClassifierConfig:
    sizes: dict[str, object] = {"labels": LABELS, "width": WIDTH, "heads": 1, "columns": 6}
    return MaskSpecClassifierConfig(**(sizes | changes))  # type: ignore[arg-type]


def fine_tuned(**changes: object) -> dict[str, torch.Tensor]:
    return export_maskspec(MaskSpecClassifier(classifier_config(**changes), rng=rng(1)))


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_layout_is_the_published_one() -> None:
    public, tuned = pretrained(), fine_tuned()
    assert (len(public), len(tuned)) == (254, 152)
    shapes = {name: tuple(tensor.shape) for name, tensor in (public | tuned).items()}
    expected = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 49, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 1, 16, 16),
        "blocks.11.attn.qkv.weight": (3 * WIDTH, WIDTH),
        "norm.bias": (WIDTH,),
        "mask_token": (1, 1, 32),
        "decoder_pos_embed": (1, 49, 32),
        "decoder_embed.weight": (32, WIDTH),
        "decoder_blocks.7.mlp.fc2.weight": (32, 128),
        "decoder_norm.weight": (32,),
        "decoder_pred.weight": (256, 32),
        "fc_norm.weight": (WIDTH,),
        "head.weight": (3, WIDTH),
    }
    assert {name: shapes[name] for name in expected} == expected


def test_a_pre_trained_model_comes_in_and_goes_out() -> None:
    public = pretrained()
    model = import_maskspec(public, mel=MelConfig(), decoder_heads=16)
    assert (model.config.depth, model.config.decoder_depth, model.config.columns) == (12, 8, 6)
    assert not model.training
    assert same(export_maskspec(model), public)


@pytest.mark.parametrize("pooling", ["mean", "token"])
def test_a_fine_tuned_model_comes_in_and_goes_out(pooling: str) -> None:
    public = fine_tuned(pooling=pooling)
    model = import_maskspec_classifier(public, mel=MelConfig(), labels=LABELS, task="multi_class")
    assert (model.config.pooling, model.config.labels, model.config.task) == (pooling, LABELS, "multi_class")
    assert same(export_maskspec(model), public)


def test_527_classes_are_those_of_audioset() -> None:
    labels = tuple(map(str, range(527)))
    assert import_maskspec_classifier(fine_tuned(labels=labels), mel=MelConfig()).config.labels[0] == "Speech"
    assert import_maskspec_classifier(fine_tuned(), mel=MelConfig()).config.labels == (
        "class 0",
        "class 1",
        "class 2",
    )
    with pytest.raises(CheckpointError, match="has 3 classes, 2 labels were given"):
        import_maskspec_classifier(fine_tuned(), mel=MelConfig(), labels=("a", "b"))


def test_a_public_file_is_read_without_running_it(tmp_path: Path) -> None:
    """As the public code writes it: weights beside optimizer, epoch and the arguments of the training."""
    args = argparse.Namespace(blr=1e-3, mask_ratio=0.75, output_dir="runs")
    content = {"model": pretrained(), "optimizer": {"state": {}}, "epoch": 75, "scaler": {}, "args": args}
    torch.save(content, tmp_path / "checkpoint-75.pth")
    model = import_maskspec(tmp_path / "checkpoint-75.pth", mel=MelConfig(), decoder_heads=16)
    assert same(export_maskspec(model), pretrained())


def test_without_a_front_end_public_weights_hear_as_they_were_trained() -> None:
    """Rounded to float16 and low-passed: nothing above 11 kHz, and a noise floor that float32 has not."""
    for model in (import_maskspec_classifier(fine_tuned()), import_maskspec(pretrained(), decoder_heads=16)):
        assert model.config.mel == public_mel()
    sound = 0.1 * torch.randn(1, 3200, generator=rng())
    rounded, exact = log_mel(sound, public_mel()), log_mel(sound, public_mel(half_precision=False))
    assert rounded[:, 120:].abs().max() < 0.1
    assert 0 < (rounded - exact).abs().max() < 0.1
    assert (
        import_maskspec_classifier(
            fine_tuned(), mel=public_mel(half_precision=False)
        ).config.mel.half_precision
        is False
    )


def test_weights_are_copied_even_where_an_export_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not through views of what the exporter returns, which would leave random weights without a word."""
    copied = {name: tensor.clone() for name, tensor in fine_tuned().items()}
    monkeypatch.setattr(import_maskspec_module, "export_maskspec", lambda model: copied)
    model = import_maskspec_classifier(fine_tuned(), mel=MelConfig())
    monkeypatch.undo()
    assert same(export_maskspec(model), copied)


def test_the_decoder_of_own_comes_back_with_its_heads() -> None:
    """The weights of six heads and of sixteen have the same shapes."""
    decoder: dict[str, Any] = {"decoder_width": 384, "decoder_depth": 1, "decoder_heads": 6}
    model = MaskSpec(MaskSpecConfig(width=WIDTH, heads=1, depth=1, columns=6, **decoder), rng=rng()).eval()
    again = import_maskspec(export_maskspec(model), mel=MelConfig())
    noise = torch.rand(2, 48, generator=rng())
    torch.testing.assert_close(again(mel(), noise=noise).prediction, model(mel(), noise=noise).prediction)
    with pytest.raises(
        CheckpointError, match="does not tell the heads of a decoder of width 32: give decoder_heads"
    ):
        import_maskspec(pretrained(), mel=MelConfig())


def test_a_file_that_is_not_there_or_no_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.pth: no such file"):
        import_maskspec(tmp_path / "gone.pth", mel=MelConfig())
    (tmp_path / "noise.pth").write_bytes(b"noise")
    with pytest.raises(CheckpointError, match="not a readable file of plain tensors"):
        import_maskspec(tmp_path / "noise.pth", mel=MelConfig())
    with pytest.raises(CheckpointError, match=r"no MaskSpec weights, it holds \['a'\]"):
        import_maskspec({"a": torch.zeros(1)}, mel=MelConfig())


def test_each_kind_of_file_names_the_way_to_read_it() -> None:
    with pytest.raises(
        CheckpointError, match=r"no classes yet: fine-tune it .*, or read it with import_maskspec"
    ):
        import_maskspec_classifier(pretrained(), mel=MelConfig())
    with pytest.raises(CheckpointError, match="fine-tuned MaskSpec: read it with import_maskspec_classifier"):
        import_maskspec(fine_tuned(), mel=MelConfig())


@pytest.mark.parametrize("name", ["norm.weight", "decoder_pos_embed", "decoder_blocks.3.mlp.fc1.bias"])
def test_a_missing_name_is_named(name: str) -> None:
    public = pretrained()
    del public[name]
    with pytest.raises(CheckpointError, match=rf"missing \['{name}'\], unknown nothing"):
        import_maskspec(public, mel=MelConfig(), decoder_heads=16)


def test_an_unknown_name_and_a_wrong_shape_are_named() -> None:
    with pytest.raises(CheckpointError, match=r"unknown \['blocks.0.gamma'\]"):
        import_maskspec(pretrained() | {"blocks.0.gamma": torch.zeros(1)}, mel=MelConfig(), decoder_heads=16)
    with pytest.raises(CheckpointError, match=r"norm.weight is \(3,\), the model has \(64,\)"):
        import_maskspec(pretrained() | {"norm.weight": torch.zeros(3)}, mel=MelConfig(), decoder_heads=16)


@pytest.mark.parametrize("table", TABLES)
def test_positions_that_are_not_the_fixed_ones_are_refused(table: str) -> None:
    public = pretrained()
    public[table] = public[table].flip(1)
    with pytest.raises(CheckpointError, match=f"{table} is not the fixed table"):
        import_maskspec(public, mel=MelConfig(), decoder_heads=16)


def test_a_front_end_with_other_bands_is_refused() -> None:
    with pytest.raises(CheckpointError, match="not the fixed table of 4 rows: give its mel"):
        import_maskspec(pretrained(), mel=MelConfig(n_mels=64), decoder_heads=16)
    with pytest.raises(CheckpointError, match="48 positions do not divide into 5 rows of 80 mels"):
        import_maskspec_classifier(fine_tuned(), mel=MelConfig(n_mels=80))


def test_patches_in_order_of_time_are_no_maskspec() -> None:
    """AudioMAE has the same names and shapes, and would hear nonsense without a word."""
    by_time = sincos_positions(6, 8, WIDTH)[None] + 0.1 * torch.randn(1, 49, WIDTH, generator=rng())
    with pytest.raises(CheckpointError, match="its patches go by time, as AudioMAE's do"):
        import_maskspec_classifier(fine_tuned() | {"pos_embed": by_time})
    learnt = sincos_positions(8, 6, WIDTH)[None] + 0.1 * torch.randn(1, 49, WIDTH, generator=rng())
    assert import_maskspec_classifier(fine_tuned() | {"pos_embed": learnt}).config.columns == 6


# -- the start of fine-tuning --------------------------------------------------------------------------------


def test_from_pre_training_head_and_norm_are_new() -> None:
    start = start_classifier(pretrained(), classifier_config(), rng=rng())
    assert start.missing == tuple(sorted(HEAD + NORM))
    assert len(start.unexpected) == 106
    assert all(name.startswith(("decoder_", "mask_token", "norm.")) for name in start.unexpected)
    assert start.model.norm.weight.eq(1).all()


def test_from_a_tuned_model_only_the_head_is_new() -> None:
    public = fine_tuned(labels=tuple("abcde"))
    public["fc_norm.weight"] += 1
    start = start_classifier(public, classifier_config(), rng=rng())
    assert (start.missing, start.unexpected) == (HEAD, ())
    assert torch.equal(start.model.norm.weight, public["fc_norm.weight"])
    assert start.model.head is not None
    assert 0 < start.model.head.weight.abs().max() < 1e-4
    assert not start.model.head.bias.any()


def test_with_a_class_token_the_final_norm_stays() -> None:
    start = start_classifier(pretrained(), classifier_config(pooling="token"), rng=rng())
    assert start.missing == HEAD
    assert len(start.unexpected) == 104


def test_the_encoder_is_the_same_one() -> None:
    """Before any tuning the classifier's tokens, normed, are those of the pre-trained encoder."""
    model = import_maskspec(pretrained(), mel=MelConfig(), decoder_heads=16)
    start = start_classifier(export_maskspec(model), classifier_config(labels=()), rng=rng())
    assert start.missing == NORM
    whole = model.encoder(model.embed(patchify(mel(), 16), model.config.cells(mel())[None]))
    torch.testing.assert_close(model.encoder.norm(start.model(mel()).tokens), whole)


def test_an_encoder_of_another_size_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"is \(1, 1, 64\), the model has \(1, 1, 128\)"):
        start_classifier(pretrained(), classifier_config(width=128, heads=2))
    with pytest.raises(CheckpointError, match=r"pos_embed is \(1, 49, 64\), the model has \(1, 73, 64\)"):
        start_classifier(pretrained(), classifier_config(columns=9))


def test_the_source_is_left_alone() -> None:
    public = pretrained()
    start = start_classifier(public, classifier_config())
    with torch.no_grad():
        for weight in start.model.parameters():
            weight.zero_()
    assert same(public, pretrained())

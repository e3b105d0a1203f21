"""int8 inference: close to float32, the same whatever the batch, refused where it cannot be."""

from pathlib import Path

import jaxtyping
import pytest
import torch
from conftest import RATE, noise, tiny_config, tone

import patchout
from patchout import checkpoint
from patchout.models import kernels
from patchout.models.cnn import Cnn, CnnConfig
from patchout.models.int8 import ROWS, Int8Linear, at_precision, quantised
from patchout.models.passt import Passt


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_integers_and_scales_give_back_the_rows() -> None:
    x = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [1e-3, 2e-3, -4e-3]])
    integers, scale = kernels.quantise(x)
    assert integers.dtype == torch.int8
    assert integers.tolist() == [[64, -127, 32], [0, 0, 0], [32, 64, -127]]
    torch.testing.assert_close(integers * scale, x, atol=1e-2, rtol=0)


def test_a_linear_layer_is_within_the_rounding_of_its_operands() -> None:
    linear = torch.nn.Linear(64, 48)
    torch.nn.init.normal_(linear.weight, generator=rng())
    x = torch.randn(5, 7, 64, generator=rng(1))
    exact, rounded = linear(x), Int8Linear(linear)(x)
    assert rounded.shape == exact.shape
    assert float((rounded - exact).detach().std() / exact.detach().std()) < 0.02


def test_a_row_does_not_depend_on_the_others() -> None:
    """Also across the boundary between two products."""
    layer = Int8Linear(torch.nn.Linear(32, 32))
    x = torch.randn(2 * ROWS + 3, 32, generator=rng())
    x[0] *= 1000
    alone = torch.cat([layer(row[None]) for row in x[::97]])
    torch.testing.assert_close(layer(x)[::97], alone, atol=1e-6, rtol=0)


def test_logits_are_close_to_float32(tiny: Passt) -> None:
    mel = torch.randn(3, 128, 96, generator=rng())
    with torch.inference_mode():
        exact, rounded = tiny(mel), quantised(tiny)(mel)
    assert float((exact.logits - rounded.logits).abs().max()) < 0.05 * float(exact.logits.abs().max()) + 0.02
    assert float(torch.cosine_similarity(exact.embedding, rounded.embedding).min()) > 0.999


def test_the_model_itself_stays_as_it_is(tiny: Passt) -> None:
    before = {name: x.clone() for name, x in tiny.state_dict().items()}
    quantised(tiny)
    assert tiny.state_dict().keys() == before.keys()
    assert all(torch.equal(x, before[name]) for name, x in tiny.state_dict().items())


def test_a_quantised_model_is_not_quantised_again(tiny: Passt) -> None:
    model = quantised(tiny)
    assert quantised(model) is model
    assert at_precision(tiny, "bf16") == (tiny, "bf16")
    assert at_precision(model, "int8") == (model, "fp32")


def test_load_tag_and_embed_take_int8(tmp_path: Path, tiny: Passt) -> None:
    checkpoint.save(tiny, tmp_path / "tiny.safetensors")
    model = patchout.load(tmp_path / "tiny.safetensors", precision="int8")
    exact = patchout.load(tmp_path / "tiny.safetensors", "cpu")
    sound = (tone(1.0) + noise(1.0), RATE)
    by_load, by_option = patchout.tag(model, sound), patchout.tag(exact, sound, precision="int8")
    assert by_load == by_option
    assert by_load != patchout.tag(exact, sound)
    one, other = patchout.embed(model, sound).scene, patchout.embed(exact, sound, precision="int8").scene
    torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), atol=0, rtol=0)


def test_another_precision_than_those_of_load_is_refused(
    tmp_path: Path, tiny: Passt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it: types are not checked
    checkpoint.save(tiny, tmp_path / "tiny.safetensors")
    with pytest.raises(ValueError, match="in fp32 or int8, got 'INT8'"):
        patchout.load(tmp_path / "tiny.safetensors", precision="INT8")  # type: ignore[arg-type]


def test_an_int8_model_is_not_saved(tiny: Passt, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save the float32 model"):
        checkpoint.save(quantised(tiny), tmp_path / "int8.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_blocks_is_refused() -> None:
    model = Cnn(CnnConfig(labels=("a", "b")), rng=rng())
    with pytest.raises(ValueError, match="has no blocks: use fp32 or bf16"):
        quantised(model)


def test_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="this model is on meta: use bf16, or --device cpu"):
        quantised(Passt(tiny_config()).to("meta"))


def test_a_processor_on_which_it_is_slower_is_told(tiny: Passt, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = replace_speed(0.5)
    monkeypatch.setattr(kernels, "chosen", lambda: slow)
    with pytest.warns(UserWarning, match="int8 has 0.50 x the speed of fp32 on this processor"):
        quantised(tiny)


def replace_speed(speed: float) -> kernels.Kernels:
    return kernels.chosen()._replace(int8_speed=speed)


def test_attention_stays_in_float32_where_bfloat16_is_slower(
    tiny: Passt, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = kernels.chosen()._replace(bf16_attention=False)
    monkeypatch.setattr(kernels, "chosen", lambda: slow)
    layers = [part for part in quantised(tiny).modules() if isinstance(part, Int8Linear)]
    assert {layer.dtype for layer in layers} == {torch.float32}

"""A CPU's own products and attention against torch's, forwards and backwards."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from conftest import LABELS, tiny_config
from test_passt import mel, rng
from torch import nn

from patchout.models import kernels
from patchout.models.kernels import HeadwiseAttention, Kernels, attend, linear
from patchout.models.maskspec import GridConfig, MaskSpecConfig
from patchout.models.maskspec_classifier import MaskSpecClassifier, MaskSpecClassifierConfig
from patchout.models.passt import Passt
from patchout.training.masked.recipes import recipe
from patchout.training.masked.run import OBJECTIVES

needs_onednn = pytest.mark.skipif(not kernels.has_onednn(), reason="a torch without oneDNN")
OWN = Kernels(
    onednn=True, headwise=True, headwise_training=True, bf16_attention=True, bf16_speed=2.0, int8_speed=1.0
)
TORCHS = Kernels(
    onednn=False, headwise=False, headwise_training=False, bf16_attention=True, bf16_speed=0.5, int8_speed=1.0
)


@pytest.fixture(autouse=True)
def own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is not torch's."""
    monkeypatch.setattr(kernels, "chosen", lambda: OWN)


@needs_onednn
@pytest.mark.parametrize("shape", [(7,), (40, 7), (2, 20, 7)])
def test_a_linear_layer_by_onednn_is_that_of_torch(shape: tuple[int, ...]) -> None:
    x, weight, bias = (torch.randn(size, generator=rng(1)).requires_grad_() for size in (shape, (5, 7), (5,)))
    grad = torch.randn(5, generator=rng(2)).expand(*shape[:-1], 5)  # as of a sum: one row for all

    def outputs(function: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        out = function(x, weight, bias)
        return [out, *torch.autograd.grad(out, (x, weight, bias), grad)]

    for ours, theirs in zip(outputs(linear), outputs(F.linear), strict=True):
        torch.testing.assert_close(ours, theirs)


@needs_onednn
def test_what_needs_no_gradient_gets_none() -> None:
    x, weight, bias = torch.randn(3, 7), torch.randn(5, 7), torch.randn(5).requires_grad_()
    torch.autograd.backward(linear(x, weight, bias).sum())
    assert (x.grad, weight.grad) == (None, None)
    torch.testing.assert_close(bias.grad, torch.full((5,), 3.0))


@needs_onednn
def test_the_model_computes_the_same_by_torchs_own_kernels(
    tiny: Passt, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = tiny(mel()).logits
    monkeypatch.setattr(kernels, "chosen", lambda: TORCHS)
    torch.testing.assert_close(ours, tiny(mel()).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scores", [1, 2**20])
def test_headwise_attention_has_the_right_gradients(scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against finite differences in float64; one head at a time, and all at once."""
    monkeypatch.setattr(kernels, "CACHED_SCORES", scores)
    inputs = [
        torch.randn(3, 5, 4, generator=rng(seed), dtype=torch.float64).requires_grad_() for seed in range(3)
    ]
    assert torch.autograd.gradcheck(HeadwiseAttention.apply, inputs)


def test_attention_in_bf16_is_that_of_the_fused_kernel_in_fp32() -> None:
    x = [torch.randn(2, 3, 200, 16, generator=rng(seed)) for seed in range(4)]

    def outputs(dtype: torch.dtype) -> list[torch.Tensor]:
        q, k, v = (tensor.to(dtype).requires_grad_() for tensor in x[:3])
        out = attend(q, k, v)
        return [out, *torch.autograd.grad(out, (q, k, v), x[3].to(dtype))]

    for half, full in zip(outputs(torch.bfloat16), outputs(torch.float32), strict=True):
        assert half.dtype == torch.bfloat16
        torch.testing.assert_close(half.float(), full, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("headwise", [False, True])
@pytest.mark.parametrize("headwise_training", [False, True])
def test_attention_with_gradients_has_a_kernel_of_its_own(
    headwise: bool, headwise_training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some processors are fast in the fused kernel forwards, and slow backwards."""
    monkeypatch.setattr(
        kernels, "chosen", lambda: OWN._replace(headwise=headwise, headwise_training=headwise_training)
    )
    q, k, v = (torch.randn(1, 2, 9, 8, dtype=torch.bfloat16) for _ in range(3))

    def is_headwise(v: torch.Tensor) -> bool:
        with monkeypatch.context() as patch:
            calls = Mock(wraps=kernels._headwise)
            patch.setattr(kernels, "_headwise", calls)
            attend(q, k, v)
        return calls.called

    assert is_headwise(v) == headwise
    assert is_headwise(v.clone().requires_grad_()) == headwise_training
    with torch.no_grad():
        assert is_headwise(v.clone().requires_grad_()) == headwise


def test_attention_in_bf16_keeps_no_scores() -> None:
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    q, k, v = (torch.randn(1, 2, 300, 8, dtype=torch.bfloat16).requires_grad_() for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attend(q, k, v)
    assert kept == [2 * 300 * 8] * 3


# -- first weights -------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"width": 32, "depth": 1, "heads": 2, "columns": 6}


def pretrained(objective: str) -> nn.Module:
    """The model that a pre-training with that objective begins with."""
    config = recipe({"pixels": "maskspec"}.get(objective, objective) + "-tiny")[0]
    shape = MaskSpecConfig(**SMALL) if objective == "pixels" else GridConfig(**SMALL)
    return OBJECTIVES[objective].build(replace(config, data="sounds", out=Path("run")), shape)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "passt": lambda: Passt(tiny_config(), rng=rng(0)),
    "classifier": lambda: MaskSpecClassifier(MaskSpecClassifierConfig(labels=LABELS, **SMALL), rng=rng(0)),
    **{name: partial(pretrained, name) for name in OBJECTIVES},
}


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_of_a_model_is_drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The linear layers of a block draw none by themselves."""

    def blank(layer: nn.Linear) -> None:
        for parameter in layer.parameters():
            parameter.detach().fill_(torch.nan)

    monkeypatch.setattr(kernels.Linear, "reset_parameters", blank)
    model = MODELS[name]()
    assert any(isinstance(part, kernels.Linear) for part in model.modules())
    assert [key for key, parameter in model.named_parameters() if not parameter.isfinite().all()] == []

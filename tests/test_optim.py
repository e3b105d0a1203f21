import pytest
import torch
from torch import nn

from patchout.optim import cosine, parameter_groups
from patchout.passt import Passt

MATRICES = ("proj.weight", "qkv.weight", "fc1.weight", "fc2.weight", "head.1.weight")


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.5), (1, 1.0), (2, 1.0), (4, 0.8535534), (6, 0.5), (8, 0.1464466), (10, 0.0)]
)
def test_two_steps_up_then_half_a_cosine_down_to_ten(step: int, factor: float) -> None:
    assert cosine(step, steps=10, warm_up=2) == pytest.approx(factor, abs=1e-7)


def test_without_warm_up_the_first_step_has_the_peak_rate() -> None:
    assert cosine(0, steps=10, warm_up=0) == 1.0


def test_a_run_that_is_all_warm_up_ends_at_the_peak() -> None:
    assert [cosine(step, steps=4, warm_up=4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_the_rate_never_rises_after_the_warm_up() -> None:
    factors = [cosine(step, steps=50, warm_up=5) for step in range(5, 51)]
    assert factors == sorted(factors, reverse=True)


def test_every_parameter_is_in_exactly_one_group(tiny: Passt) -> None:
    grouped = [id(parameter) for group in parameter_groups(tiny, 0.05) for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in tiny.parameters())


def test_matrices_decay_and_nothing_else(tiny: Passt) -> None:
    names = {id(parameter): name for name, parameter in tiny.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in parameter_groups(tiny, 0.05) for p in group["params"]}
    assert decay == {name: 0.05 if name.endswith(MATRICES) else 0.0 for name in names.values()}


def test_no_decay_at_all_keeps_every_parameter() -> None:
    model = nn.Linear(2, 3)
    (group,) = parameter_groups(model, 0.0)
    assert group["weight_decay"] == 0.0
    assert {id(p) for p in group["params"]} == {id(model.weight), id(model.bias)}


def test_the_groups_are_what_an_optimizer_takes() -> None:
    """One step without a gradient of its own: the matrix shrinks by rate times decay, the bias stays."""
    model = nn.Linear(1, 1)
    nn.init.ones_(model.weight)
    nn.init.ones_(model.bias)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.5), lr=0.1)
    (0.0 * model(torch.ones(1, 1)).sum()).backward()
    optimizer.step()
    assert model.weight.item() == pytest.approx(0.95)
    assert model.bias.item() == 1.0

from fractions import Fraction

import pytest
import torch
from torch import nn

from patchout.models.passt import Passt
from patchout.training.optim import (
    adamw,
    cosine,
    exp_ramp,
    load_named_state,
    named_state,
    parameter_groups,
    state_bytes,
    swa_steps,
)

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
    decay = {
        names[id(p)]: group["weight_decay"] for group in parameter_groups(tiny, 0.05) for p in group["params"]
    }
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


# -- the published schedule ----------------------------------------------------------------------------------

AUDIOSET = {"warm_up": 5, "plateau_end": 50, "ramp": 50, "floor": 0.01}
FSD50K = {"warm_up": 5, "plateau_end": 10, "ramp": 10, "floor": 0.01}


@pytest.mark.parametrize(
    ("numbers", "epoch", "factor"),
    [
        *(
            (AUDIOSET, epoch, factor)
            for epoch, factor in enumerate((0.017422, 0.040762, 0.165299, 0.449329, 0.818731))
        ),
        *((AUDIOSET, epoch, 1.0) for epoch in (5, 6, 49, 50)),
        *((AUDIOSET, 51, 0.9802), (AUDIOSET, 60, 0.802), (AUDIOSET, 75, 0.505), (AUDIOSET, 99, 0.0298)),
        *((AUDIOSET, epoch, 0.01) for epoch in (100, 101, 129)),
        *(
            (FSD50K, 10, 1.0),
            (FSD50K, 11, 0.901),
            (FSD50K, 15, 0.505),
            (FSD50K, 19, 0.109),
            (FSD50K, 20, 0.01),
        ),
    ],
)
def test_the_published_factors(numbers: dict[str, float], epoch: int, factor: float) -> None:
    for step in (7 * epoch, 7 * epoch + 6):  # the first and last of its seven steps
        assert exp_ramp(step, steps_per_epoch=7, **numbers) == pytest.approx(factor, abs=1e-6)  # type: ignore[arg-type]


def test_an_epoch_need_not_be_whole_steps() -> None:
    """Of 100,000 clips in batches of 12: epoch 1 begins within step 8333, so 8334 is its first."""
    factors = [
        exp_ramp(step, steps_per_epoch=Fraction(100_000, 12), warm_up=5, plateau_end=50, ramp=50, floor=0.01)
        for step in (8333, 8334)
    ]
    assert factors == pytest.approx([0.017422, 0.040762], abs=1e-6)


@pytest.mark.parametrize(
    ("epochs", "start", "every", "snapshots"),
    [(130, 50, 5, range(49, 130, 5)), (10, 2, 1, range(1, 10)), (50, 10, 3, range(9, 49, 3))],
)
def test_the_published_snapshots(epochs: int, start: int, every: int, snapshots: range) -> None:
    """17 of AudioSet, 9 of ESC-50 and OpenMIC, 14 of FSD50K."""
    assert sorted(swa_steps(7, epochs, start=start, every=every)) == [7 * epoch for epoch in snapshots]
    assert len(snapshots) == {130: 17, 10: 9, 50: 14}[epochs]


def test_a_snapshot_comes_before_the_first_whole_step_of_its_epoch() -> None:
    assert swa_steps(Fraction(10, 4), 4, start=2, every=1) == {3, 5, 8}


# -- groups and state ----------------------------------------------------------------------------------------


def test_the_public_code_decays_everything(tiny: Passt) -> None:
    (group,) = parameter_groups(tiny, 0.05, decay_all=True)
    assert group["weight_decay"] == 0.05
    assert len(group["params"]) == len(list(tiny.parameters()))


class Classifier(nn.Module):
    """The names and sizes of the MaskSpec classifier: ViT-Base,
    496 patches and a class token, 527 classes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, 768))
        self.pos_embed = nn.Parameter(torch.empty(1, 497, 768))
        self.patch_embed = nn.Conv2d(1, 768, 16)
        self.blocks = nn.ModuleList(self.block() for _ in range(12))
        self.fc_norm = nn.LayerNorm(768)
        self.head = nn.Linear(768, 527)

    @staticmethod
    def block() -> nn.Module:
        layers = [nn.Linear(768, 2304), nn.Linear(768, 768), nn.Linear(768, 3072), nn.Linear(3072, 768)]
        return nn.Sequential(*layers, nn.LayerNorm(768), nn.LayerNorm(768))


def test_layer_decay_has_the_published_groups() -> None:
    """MaskSpec: 28 groups, 0.75 to the power of 13 for the first layer, of 12 for block 0,
    1 for norm and head.
    """
    with torch.device("meta"):
        groups = parameter_groups(Classifier(), 0.05, layer_decay=0.75)
    assert len(groups) == 28
    scales = sorted({group["scale"] for group in groups})
    assert scales[:3] == pytest.approx([0.02375726, 0.03167635, 0.04223514], abs=1e-8)
    assert scales[-2:] == [0.75, 1.0]
    sizes = {(group["scale"], group["weight_decay"]): group["params"] for group in groups}
    first = sizes[scales[0], 0.0]
    assert (len(first), sum(parameter.numel() for parameter in first)) == (3, 383_232)
    for scale in scales[1:-1]:
        assert (len(sizes[scale, 0.05]), sum(p.numel() for p in sizes[scale, 0.05])) == (4, 7_077_888)


def test_layer_decay_goes_through_a_passt(tiny: Passt) -> None:
    names = {id(parameter): name for name, parameter in tiny.named_parameters()}
    groups = parameter_groups(tiny, 0.05, layer_decay=0.5)
    scale = {names[id(p)]: group["scale"] for group in groups for p in group["params"]}
    assert scale["tokens"] == scale["embed.proj.weight"] == 0.125
    assert scale["encoder.blocks.0.attn.qkv.bias"] == 0.25
    assert scale["encoder.blocks.1.mlp.fc2.weight"] == 0.5
    assert scale["encoder.norm.weight"] == scale["head.1.bias"] == 1.0


def test_layer_decay_needs_layers() -> None:
    with pytest.raises(ValueError, match=r"layer_decay 0\.5 needs a model with blocks: leave it at 1"):
        parameter_groups(nn.Linear(2, 2), 0.05, layer_decay=0.5)


def test_adamw_is_fused_and_remembers_peak_rates(tiny: Passt) -> None:
    optimizer = adamw(parameter_groups(tiny, 0.05, layer_decay=0.5), 0.01, betas=(0.9, 0.95))
    assert {group["peak_lr"] for group in optimizer.param_groups} == {0.00125, 0.0025, 0.005, 0.01}
    assert all(group["fused"] and group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)


def stepped(model: nn.Linear, *, decay_all: bool) -> torch.optim.Optimizer:
    optimizer = adamw(parameter_groups(model, 0.5, decay_all=decay_all), 0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer


def test_the_optimizers_memory_survives_a_change_of_groups() -> None:
    """Weight and bias are in two groups before and in one after; their moments stay theirs."""
    model, other = nn.Linear(2, 3), nn.Linear(2, 3)
    before = named_state(model, stepped(model, decay_all=False))
    optimizer = adamw(parameter_groups(other, 0.5, decay_all=True), 0.2)
    load_named_state(other, optimizer, before)
    assert optimizer.state[other.weight]["exp_avg"].shape == (3, 2)
    assert torch.equal(optimizer.state[other.bias]["exp_avg"], before["bias"]["exp_avg"])
    assert [group["lr"] for group in optimizer.param_groups] == [0.2]


@pytest.mark.parametrize("average", [False, True])
def test_memory_is_what_torch_holds_after_a_step(average: bool) -> None:
    """A linear layer of 9 float32 weights: 36 bytes each of weights and gradients,
    two moments, an average.
    """
    model = nn.Linear(2, 3)
    optimizer = stepped(model, decay_all=True)
    moments = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    held = state_bytes(model, average=average)
    assert held.optimizer == sum(moment.numel() * moment.element_size() for moment in moments) == 72
    assert held == (36, 36, 72, 36 if average else 0)


def test_frozen_weights_have_no_gradient_and_no_moments() -> None:
    model = nn.Linear(2, 3)
    model.weight.requires_grad_(False)
    assert state_bytes(model, average=False) == (36, 12, 24, 0)

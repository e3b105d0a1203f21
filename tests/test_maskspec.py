"""MaskSpec: the numbers of its published model, its masks and targets, the classifier,
a look at what it fills in.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import LABELS
from golden_recipe import golden_wave, golden_weights
from mel_reference import hold

from patchout.audio.mel import MelConfig, log_mel
from patchout.audio.statistics import audioset_statistics
from patchout.checkpoint.maskspec import TABLES, export_maskspec, import_maskspec, import_maskspec_classifier
from patchout.inference.reconstruct import reconstruct
from patchout.models.fill import undrawn
from patchout.models.masking import (
    masked_error,
    num_kept,
    patch_scale,
    patchify,
    random_mask,
    sincos_positions,
    unpatchify,
)
from patchout.models.maskspec import MaskSpec, MaskSpecConfig
from patchout.models.maskspec_classifier import (
    MaskSpecClassifier,
    MaskSpecClassifierConfig,
    drop_path_factors,
)
from patchout.models.passt import SIZES
from patchout.models.patches import Patchout

GOLDEN = np.load(Path(__file__).parent / "golden" / "maskspec.npz")
RATIOS = (0.05, 0.15, 0.25, 0.5, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
KEPT = (471, 421, 372, 248, 173, 148, 124, 99, 74, 49, 24)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mel(frames: int = 96, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 128, frames, generator=rng())


def public_mel() -> MelConfig:
    """The front end of the public weights."""
    return replace(MelConfig(), **audioset_statistics()._asdict())


def tiny_config(**changes: object) -> MaskSpecConfig:
    """Two blocks of width 32 on a second, and a decoder of one: 8 x 6 patches."""
    decoder = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    return MaskSpecConfig(**({"width": 32, "depth": 2, "heads": 2, "columns": 6} | decoder | changes))  # type: ignore[arg-type]


def tiny_classifier(**changes: object) -> MaskSpecClassifier:
    sizes = {"width": 32, "depth": 2, "heads": 2, "columns": 6, "labels": LABELS}
    return MaskSpecClassifier(MaskSpecClassifierConfig(**(sizes | changes)), rng=rng()).eval()  # type: ignore[arg-type]


@pytest.fixture
def tiny() -> MaskSpec:
    return MaskSpec(tiny_config(), rng=rng()).eval()


# -- the published numbers -----------------------------------------------------------------------------------


def full_size(size: str, **changes: object) -> MaskSpecConfig:
    """A published size; heads are 64 wide."""
    width, heads = SIZES[size]
    return MaskSpecConfig(**({"width": width, "heads": heads, "mel": public_mel()} | changes))  # type: ignore[arg-type]


def exported(kind: type[MaskSpec] | type[MaskSpecClassifier], config: Any) -> dict[str, torch.Tensor]:
    """What a full size exports: fixed tables, and weights without values."""
    with undrawn():
        return export_maskspec(kind(config))


def golden_model(size: str) -> MaskSpec:
    """Imported from golden weights under public names."""
    own = exported(MaskSpec, full_size(size))
    drawn = golden_weights({name: tuple(tensor.shape) for name, tensor in own.items() if name not in TABLES})
    return import_maskspec(drawn | {name: own[name] for name in TABLES}, mel=public_mel())


def test_standardised_log_mel_equals_the_public_one() -> None:
    hold(golden_wave(10.0), public_mel())
    ours = log_mel(golden_wave(10.0), public_mel())[..., :992].numpy()
    std = np.array(public_mel().std)[:, None]  # to units of the plain log-mel
    np.testing.assert_allclose(std * ours, std * GOLDEN["mel"][:, 0], rtol=0, atol=3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "base"])
def test_encoder_decoder_and_losses_equal_the_public_ones(size: str) -> None:
    model, clips, noise = (
        golden_model(size),
        torch.from_numpy(GOLDEN["mel"][:, 0]),
        torch.from_numpy(GOLDEN["noise"]),
    )
    with torch.inference_mode():
        out = model(clips, 0.75, noise)
        model.config = replace(model.config, normalize_patches=False)
        raw = model(clips, 0.75, noise).loss
    latent = GOLDEN[f"{size}/latent"]
    np.testing.assert_array_equal(out.mask.numpy(), GOLDEN[f"{size}/mask"])
    np.testing.assert_allclose(out.latent[:, : latent.shape[1]].numpy(), latent, rtol=0, atol=2e-5)
    np.testing.assert_allclose(out.prediction[:, ::8].numpy(), GOLDEN[f"{size}/pred"], rtol=0, atol=2e-5)
    assert out.loss.item() == pytest.approx(float(GOLDEN[f"{size}/loss_norm"]), abs=2e-6)
    assert raw.item() == pytest.approx(float(GOLDEN[f"{size}/loss_raw"]), abs=2e-6)


def pair(seconds: float = 10.0) -> torch.Tensor:
    """The fact sheet's pair of sweeps, loud and quiet, zeros after `seconds`."""
    t = np.arange(320_000) / 32_000
    sweep = np.sin(2 * np.pi * (100 * t + 500 * t**2)) * (t < seconds)
    return torch.from_numpy(np.stack([0.25 * sweep, 0.05 * sweep]).astype(np.float32))


def formula_noise() -> torch.Tensor:
    """The fact sheet's noise of two clips."""
    return torch.from_numpy((0.6180339887498949 * np.arange(496) + 0.25 * np.arange(2)[:, None]) % 1).float()


def formula_weights(own: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The fact sheet's weights, from places in the sorted list of names."""
    weights = {name: own[name] for name in own if name in TABLES}
    for place, name in enumerate(sorted(own.keys() - TABLES)):
        is_gain = name.endswith(("norm.weight", "norm1.weight", "norm2.weight"))
        weights[name] = formula_values(place, own[name].numel(), is_gain).view(own[name].shape)
    return weights


@lru_cache(maxsize=152)  # tensors of a classifier: both are alike, but for the head
def formula_values(place: int, count: int, is_gain: bool) -> torch.Tensor:
    values = 43758.5453 * np.sin(12.9898 * np.arange(count) + 78.233 * place)
    values = 0.1 * (np.abs(np.fmod(values, 1)) - 0.5)
    return torch.from_numpy(values + is_gain).float()


@pytest.fixture(autouse=True, scope="module")
def forget_weights() -> Iterator[None]:
    """Other tests need their memory."""
    yield
    formula_values.cache_clear()


@pytest.mark.slow
def test_losses_from_sound_to_number_are_the_published_ones() -> None:
    own = exported(MaskSpec, full_size("small"))
    assert len(own) == 254
    model = import_maskspec(formula_weights(own), mel=public_mel())
    spectrogram = log_mel(pair(), public_mel())
    with torch.inference_mode():
        out = model(spectrogram, 0.75, formula_noise())
        assert out.loss.item() == pytest.approx(1.402789, abs=2e-6)
        model.config = replace(model.config, normalize_patches=False)
        assert model(spectrogram, 0.75, formula_noise()).loss.item() == pytest.approx(3.894873, abs=5e-6)
    np.testing.assert_allclose(
        out.prediction[0, 0, :3].numpy(), [0.601029, -0.744053, -0.590564], rtol=0, atol=2e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "seconds", "first", "last"),
    [
        (527, 10, (-0.750269, -1.014715, -1.831019), -0.368835),
        (35, 1, (-0.404697, -0.992247, -1.891179), 1.060869),
    ],
)
def test_the_classifier_gives_the_published_logits(
    classes: int, seconds: int, first: tuple[float, ...], last: float
) -> None:
    """The published one pads to 10 s, then cuts the columns of the clip: the same as a shorter clip here."""
    config = MaskSpecClassifierConfig(labels=tuple(map(str, range(classes))), mel=public_mel())
    own = exported(MaskSpecClassifier, config)
    assert len(own) == 152
    own["pos_embed"] = sincos_positions(8, 62, 768)[None]
    model = import_maskspec_classifier(formula_weights(own), mel=public_mel())
    with torch.inference_mode():
        logits = model(log_mel(pair(seconds)[:, : seconds * 32_000], public_mel())).logits
    np.testing.assert_allclose(logits[0, :3].numpy(), first, rtol=0, atol=2e-5)
    assert logits[1, -1].item() == pytest.approx(last, abs=2e-5)


@pytest.mark.parametrize(
    ("size", "encoder", "whole", "classifier"),
    [
        ("base", 85_254_144, 110_999_808, 86_041_103),
        ("small", 21_393_408, 46_942_464, 21_787_151),
        ("tiny", 5_388_288, 30_839_040, 5_585_423),
    ],
)
def test_parameters_are_counted_as_published(size: str, encoder: int, whole: int, classifier: int) -> None:
    def count(*parts: torch.nn.Module) -> int:
        return sum(parameter.numel() for part in parts for parameter in part.parameters())

    width, heads = SIZES[size]
    labels = tuple(map(str, range(527)))
    with torch.device("meta"):  # shapes without values
        model = MaskSpec(full_size(size))
        tagger = MaskSpecClassifier(MaskSpecClassifierConfig(labels=labels, width=width, heads=heads))
    assert (count(model.embed, model.encoder), count(model), count(tagger)) == (encoder, whole, classifier)


# -- the maths -----------------------------------------------------------------------------------------------


def test_positions_are_the_published_ones() -> None:
    table = sincos_positions(8, 62, 768)
    assert table.shape == (497, 768)
    assert not table[0].any()
    assert table.double().sum().item() == pytest.approx(166_182.2736, abs=2e-2)
    assert table[1].view(4, 192).mean(1).tolist() == [0.0, 1.0, 0.0, 1.0]
    np.testing.assert_allclose(table[2, [0, 1, 192]], [0.841471, 0.815251, 0.540302], atol=1e-6)
    np.testing.assert_allclose(table[1 + 62, [0, 384]], [0.0, 0.841471], atol=1e-6)
    np.testing.assert_allclose(table[-1, [0, 384]], [-0.966118, 0.656987], atol=1e-6)
    with pytest.raises(ValueError, match="30 is no multiple of 4"):
        sincos_positions(8, 62, 30)


def test_patches_are_ordered_as_published() -> None:
    image = torch.arange(128.0 * 992).view(1, 128, 992)
    pixels = patchify(image, 16)
    assert [pixels[0, token, pixel].item() for token, pixel in ((0, 16), (1, 0), (62, 0), (495, 255))] == [
        *(992, 16, 15_872, 126_975)
    ]
    assert torch.equal(unpatchify(pixels, 8), image)


@pytest.mark.parametrize(("ratio", "kept"), list(zip(RATIOS, KEPT, strict=True)))
def test_so_many_patches_stay(ratio: float, kept: int) -> None:
    assert num_kept(496, ratio) == kept


def test_rounding_of_the_ratio_never_costs_a_patch() -> None:
    assert 240 * (1 - 0.9) < 24
    assert num_kept(240, 0.9) == 24
    assert num_kept(8, 0.95) == 1


@pytest.mark.parametrize("ratio", [0.0, 0.04, 0.96, 1.0, -0.5, float("nan")])
def test_ratios_that_teach_nothing_are_refused(ratio: float, tiny: MaskSpec) -> None:
    with pytest.raises(ValueError, match=r"from 0\.05 to 0\.95, got"):
        tiny(mel(), ratio)


def test_the_mask_keeps_the_smallest_noise() -> None:
    mask = random_mask(formula_noise(), 0.75)
    assert mask.visible[0, :6].tolist() == [0, 233, 466, 89, 322, 178]
    assert mask.visible[1, :6].tolist() == [197, 430, 53, 286, 142, 375]
    assert mask.masked.sum(1).tolist() == [372, 372]
    assert not mask.masked.gather(1, mask.visible).any()


def test_a_ramp_and_a_constant_patch_are_normed_as_published() -> None:
    pixels = torch.stack([torch.arange(256.0), torch.full((256,), 3.0)])[None]
    mean, deviation = patch_scale(pixels)
    target = (pixels - mean) / deviation
    assert deviation[0, 0, 0].item() ** 2 == pytest.approx(5482.6667, rel=1e-5)
    assert target[0, 0, [0, -1]].tolist() == pytest.approx([-1.721925, 1.721925], abs=1e-5)
    assert target[0, 0].square().mean().item() == pytest.approx(0.99609375, abs=1e-6)
    assert not target[0, 1].any()


@pytest.mark.parametrize(("normalize", "loss"), [(True, 0.995321), (False, 3.387645)])
def test_predicting_nothing_costs_what_was_published(normalize: bool, loss: float) -> None:
    pixels = patchify(log_mel(pair(), public_mel()), 16)
    mean, deviation = patch_scale(pixels) if normalize else (0.0, 1.0)
    removed = random_mask(formula_noise(), 0.75).masked
    error = masked_error(torch.zeros_like(pixels), (pixels - mean) / deviation, removed)
    assert error.item() == pytest.approx(loss, abs=2e-5)


# -- pre-training --------------------------------------------------------------------------------------------


def test_shapes_of_a_step(tiny: MaskSpec) -> None:
    out = tiny(mel(105), rng=rng())
    assert out.loss.shape == ()
    assert out.prediction.shape == (2, 48, 256)
    assert out.latent.shape == (2, 1 + 12, 32)
    assert out.mask.sum(1).tolist() == [36, 36]


def test_the_latent_sees_only_what_is_visible(tiny: MaskSpec) -> None:
    clip, noise = mel(), torch.rand(2, 48, generator=rng(1))
    out = tiny(clip, 0.75, noise)
    hidden = unpatchify(out.mask[..., None].expand(-1, -1, 256), 8)
    changed = tiny(clip + 5 * hidden, 0.75, noise)
    torch.testing.assert_close(changed.latent, out.latent)
    torch.testing.assert_close(changed.prediction, out.prediction)
    assert not torch.allclose(tiny(clip + 5 * (1 - hidden), 0.75, noise).latent, out.latent)


def test_only_hidden_patches_cost(tiny: MaskSpec) -> None:
    model = MaskSpec(replace(tiny.config, normalize_patches=False), rng=rng())
    clip, noise = mel(), torch.rand(2, 48, generator=rng(1))
    out = model(clip, 0.5, noise)
    error = (out.prediction - patchify(clip, 16)).square().mean(-1)
    assert out.loss.item() == pytest.approx(error[out.mask > 0].mean().item(), rel=1e-6)


def test_the_mask_comes_from_the_generator(tiny: MaskSpec) -> None:
    first, again, other = (tiny(mel(), rng=rng(seed)).mask for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])


def test_a_short_clip_reads_the_first_columns(tiny: MaskSpec) -> None:
    longer = MaskSpec(replace(tiny.config, columns=9))
    longer.load_state_dict(tiny.state_dict())
    clip, noise = mel(80), torch.rand(2, 40, generator=rng(1))
    torch.testing.assert_close(longer(clip, 0.75, noise).prediction, tiny(clip, 0.75, noise).prediction)


def test_every_parameter_gets_a_gradient(tiny: MaskSpec) -> None:
    tiny(mel(), rng=rng()).loss.backward()
    assert [
        name for name, weight in tiny.named_parameters() if weight.grad is None or not weight.grad.any()
    ] == []


def test_a_step_never_asks_the_device() -> None:
    """On the meta device there is nothing to ask: a value read on the way,
    or an index by a mask, would raise.
    """
    model, clips = MaskSpec(tiny_config()).to("meta"), torch.empty(2, 128, 96, device="meta")
    model(clips).loss.backward()
    model(clips, rng=rng()).loss.backward()
    assert model.decoder.mask_token.grad is not None


def test_first_weights_are_drawn_as_published() -> None:
    model = MaskSpec(MaskSpecConfig(depth=1, decoder_depth=1), rng=rng())
    (block,) = model.encoder.blocks
    bounds = {model.embed.proj.weight: 0.07655, block.attn.qkv.weight: 0.04419, block.mlp.fc1.weight: 0.03953}  # type: ignore[union-attr]
    for weight, bound in bounds.items():
        assert isinstance(weight, torch.Tensor)
        assert weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert not model.decoder.head.bias.any()
    assert model.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.15)
    again = MaskSpec(model.config, rng=rng()).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_bf16_stays_near(tiny: MaskSpec) -> None:
    exact = tiny(mel(), rng=rng())
    with torch.autocast("cpu", torch.bfloat16):
        rough = tiny(mel(), rng=rng())
    assert rough.loss.dtype == torch.float32
    assert rough.loss.item() == pytest.approx(exact.loss.item(), rel=0.01)


def test_noise_is_one_value_a_patch(tiny: MaskSpec) -> None:
    with pytest.raises(ValueError, match=r"\(2, 48\), got \(2, 496\)"):
        tiny(mel(), 0.75, torch.rand(2, 496))


@pytest.mark.parametrize("model", [MaskSpec(tiny_config()), tiny_classifier()])
def test_clips_that_do_not_fit_say_what_would(model: MaskSpec | MaskSpecClassifier) -> None:
    with pytest.raises(ValueError, match="15 frames holds no patch of 16: pad it to 4801 samples"):
        model(mel(15))
    with pytest.raises(
        ValueError, match=r"at most 111 frames \(1.11 s\), got 112: cut the clip into windows"
    ):
        model(mel(112))
    with pytest.raises(ValueError, match=r"\(batch, 128, frames\), got \(2, 64, 96\)"):
        model(mel()[:, :64])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"columns": 0}, "at least 1"),
        ({"decoder_depth": 0}, "decoder must be at least 1"),
        ({"heads": 3}, "32 does not divide into 3 heads"),
        ({"patch": 24}, "128 mels do not divide into patches of 24"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        tiny_config(**changes)


# -- the classifier ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "token"])
def test_the_head_reads_what_the_pooling_says(pooling: str) -> None:
    model = tiny_classifier(pooling=pooling)
    out = model(mel())
    assert out.tokens.shape == (2, 49, 32)
    pooled = model.norm(out.tokens[:, 1:].mean(1)) if pooling == "mean" else out.tokens[:, 0]
    torch.testing.assert_close(out.embedding, pooled)
    assert model.head is not None
    torch.testing.assert_close(out.logits, model.head(pooled))


@pytest.mark.parametrize("pooling", ["mean", "token"])
def test_every_parameter_of_the_classifier_gets_a_gradient(pooling: str) -> None:
    model = tiny_classifier(pooling=pooling)
    model(mel()).logits.square().sum().backward()
    assert [
        name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()
    ] == []


def test_without_labels_it_only_embeds() -> None:
    out = tiny_classifier(labels=())(mel())
    assert out.logits.shape == (2, 0)
    assert out.embedding.shape == (2, 32)


def test_patchout_drops_the_same_single_patches_in_every_clip() -> None:
    model, clip = tiny_classifier(), mel(batch=1)
    twice = torch.cat([clip, clip])
    out = model(twice, patchout=Patchout(patches=20), rng=rng())
    assert out.tokens.shape == (2, 1 + 28, 32)
    torch.testing.assert_close(out.logits[0], out.logits[1])
    torch.testing.assert_close(model(twice, patchout=Patchout(), rng=rng()).logits, model(twice).logits)
    each = model(twice, patchout=Patchout(patches=20, per_clip=True), rng=rng()).logits
    assert not torch.allclose(each[0], each[1])


def test_drop_path_rises_to_its_rate_and_keeps_the_mean() -> None:
    factors = drop_path_factors(12, 20_000, 0.1, rng())
    rates = (factors == 0).float().mean(dim=(1, 2))
    np.testing.assert_allclose(rates, np.linspace(0, 0.1, 12), atol=0.005)
    np.testing.assert_allclose(factors.mean(dim=(1, 2)), np.ones(12), atol=0.01)
    with pytest.raises(ValueError, match="below 1, got 1"):
        drop_path_factors(12, 2, 1.0, rng())


def test_drop_path_skips_branches_only_when_asked_for() -> None:
    model = tiny_classifier()
    plain = model.train()(mel()).logits
    assert torch.equal(plain, model.eval()(mel()).logits)
    dropped = model(mel(), drop_path=0.9, rng=rng()).logits
    assert not torch.allclose(dropped, plain)
    assert torch.equal(dropped, model(mel(), drop_path=0.9, rng=rng()).logits)
    (_, second), tokens = model.blocks, torch.randn(2, 5, 32, generator=rng())
    assert torch.equal(second(tokens, torch.zeros(2, 2)), tokens)
    torch.testing.assert_close(second(tokens, torch.ones(2, 2)), second(tokens))


def test_a_class_has_one_name() -> None:
    with pytest.raises(ValueError, match="'bell' stands twice"):
        tiny_classifier(labels=("bell", "dog", "bell"))


def test_limits_are_those_of_the_published_ten_seconds() -> None:
    config = MaskSpecClassifierConfig(labels=LABELS)
    assert (config.rows, config.columns, config.max_frames, config.min_samples) == (8, 62, 1007, 4801)
    assert tiny_classifier()(mel(111)).tokens.shape[1] == 49  # frames that fill no further patch are left out


# -- reconstruction ------------------------------------------------------------------------------------------


def statistics_variants() -> Iterator[MelConfig]:
    yield MelConfig()
    yield MelConfig(mean=(-0.5,), std=(0.7,))
    yield public_mel()


@pytest.mark.slow
@pytest.mark.parametrize("front_end", list(statistics_variants()))
@pytest.mark.parametrize("normalize", [True, False])
def test_a_reconstruction_is_in_units_of_the_plain_log_mel(front_end: MelConfig, normalize: bool) -> None:
    wave = torch.from_numpy(golden_wave(1.0))[:1]
    model = MaskSpec(tiny_config(mel=front_end, normalize_patches=normalize), rng=rng()).eval()
    found = reconstruct(model, log_mel(wave, front_end)[0], mask_ratio=0.5, rng=rng())
    np.testing.assert_allclose(found.log_mel, log_mel(wave, MelConfig())[0, :, :96].numpy(), atol=1e-5)
    assert found.hidden.mean() == 0.5
    np.testing.assert_array_equal(found.filled[~found.hidden], found.log_mel[~found.hidden])
    assert not np.allclose(found.filled[found.hidden], found.log_mel[found.hidden])


def test_a_perfect_prediction_reconstructs_the_sound(tiny: MaskSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = mel(batch=1)
    mean, deviation = patch_scale(patchify(clip, 16))
    perfect = (patchify(clip, 16) - mean) / deviation
    monkeypatch.setattr(tiny.decoder, "forward", lambda *_: perfect)
    found = reconstruct(tiny, clip[0], rng=rng())
    np.testing.assert_allclose(found.filled, clip[0].numpy(), atol=1e-5)

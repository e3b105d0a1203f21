import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import RATE, tone
from torch import Generator, Tensor

from patchout.data import augment
from patchout.data.augment import (
    Labelled,
    Masks,
    Share,
    fit,
    gain,
    keyed,
    mel_band,
    mixing_weights,
    mixup,
    roll,
    spec_augment,
    speed,
    wave_mix,
)

RAMP = torch.arange(10.0)


def whole(clips: int) -> Share:
    """The share of a process that is alone."""
    return Share(0, clips, lambda tensor: tensor)


def parts(step: Tensor, processes: int) -> list[tuple[Tensor, Share]]:
    """The clips of every process of a step, and its share, for the tensors cut from `step` alone."""
    size = len(step) // processes
    return [
        (step[first : first + size], Share(first, len(step), lambda _: step))
        for first in range(0, len(step), size)
    ]


def rng(key: int = 0) -> Generator:
    return keyed("test", key)


def stretches(on: Tensor) -> int:
    """How many stretches of True a row holds."""
    return int((torch.diff(on.int(), prepend=torch.zeros(1, dtype=torch.int32)) == 1).sum())


# -- keys ----------------------------------------------------------------------------------------------------


def test_the_same_key_gives_the_same_stream() -> None:
    assert torch.equal(
        torch.rand(5, generator=keyed("clip", 1, 2)), torch.rand(5, generator=keyed("clip", 1, 2))
    )


def test_purpose_numbers_order_and_length_all_count() -> None:
    keys = [(1, 2), (2, 1), (1,), (1, 2, 0), (1, 3), ()]
    generators = [keyed(purpose, *key) for purpose in ("clip", "step") for key in keys]
    assert len({generator.initial_seed() for generator in generators}) == 12


def test_a_key_does_not_depend_on_torchs_own_seed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = torch.rand(3, generator=keyed("clip", 0))
        torch.manual_seed(2)
        assert torch.equal(first, torch.rand(3, generator=keyed("clip", 0)))


MEL = torch.zeros(3, 8, 20)
CLIP = Labelled(RAMP, torch.ones(2), torch.ones(2))
FUNCTIONS: dict[str, Callable[[Generator], object]] = {
    "keyed": lambda _: keyed("clip", 1),
    "uniform": lambda rng: augment.uniform(0.0, 1.0, rng),
    "gain": lambda rng: gain(RAMP, (-7, 6), rng),
    "roll": lambda rng: roll(RAMP, 3, rng),
    "speed": lambda _: speed(RAMP, 1.5),
    "fit": lambda rng: fit(RAMP, 4, rng),
    "mel_band": lambda rng: mel_band(15_000.0, rng),
    "spec_augment": lambda rng: spec_augment(MEL, Masks(4, 4), rng, share=whole(3)),
    "mixing_weights": lambda rng: mixing_weights(2.0, 3, rng),
    "wave_mix": lambda _: wave_mix(CLIP, CLIP, 0.5),
    "mixup": lambda rng: mixup(MEL, torch.eye(3), 0.3, rng, share=whole(3)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_function_touches_a_global_generator(name: str) -> None:
    def states() -> tuple[bytes, str, object]:
        numpy_state = np.random.get_state()  # noqa: NPY002  (the global state is what is watched)
        return torch.get_rng_state().numpy().tobytes(), repr(numpy_state), random.getstate()

    before = states()
    FUNCTIONS[name](rng())
    assert states() == before


# -- waveforms -----------------------------------------------------------------------------------------------


def test_gain_draws_every_whole_decibel_of_its_range_and_no_other() -> None:
    draws = rng()
    decibels = {round(20 * np.log10(float(gain(torch.ones(1), (-7, 6), draws))), 4) for _ in range(400)}
    assert decibels == set(range(-7, 7))


def test_gain_multiplies_the_whole_wave_by_one_factor() -> None:
    assert torch.allclose(gain(RAMP, (-6, -6), rng()), RAMP * 0.5011872)


def test_roll_shifts_in_a_circle_within_its_range() -> None:
    draws = rng()
    rolled = [roll(RAMP, 2, draws) for _ in range(100)]
    assert all(torch.equal(wave.sort().values, RAMP) for wave in rolled)
    firsts = [int(wave[0]) for wave in rolled]
    assert all(torch.equal(wave, RAMP.roll(-first)) for wave, first in zip(rolled, firsts, strict=True))
    assert set(firsts) == {8, 9, 0, 1, 2}


def test_roll_by_nothing_changes_nothing() -> None:
    assert torch.equal(roll(RAMP, 0, rng()), RAMP)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 2.0])
def test_speed_changes_length_and_pitch_alike(factor: float) -> None:
    """A second of 440 Hz keeps its 880 zero crossings and takes 1 / factor seconds."""
    fast = speed(torch.from_numpy(tone(1.0, 440.0)), factor)
    assert len(fast) == round(RATE / factor)
    assert abs(int((fast[1:].sign() != fast[:-1].sign()).sum()) - 880) <= 2


def test_speed_by_linear_interpolation_by_hand() -> None:
    assert speed(torch.tensor([0.0, 2.0, 4.0]), 0.6).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_fit_appends_zeros_to_a_shorter_wave() -> None:
    assert fit(torch.tensor([1.0, 2.0]), 4, rng()).tolist() == [1, 2, 0, 0]


def test_fit_leaves_a_wave_of_the_right_length_alone() -> None:
    assert torch.equal(fit(RAMP, 10, rng()), RAMP)


def test_fit_takes_the_beginning_without_a_generator() -> None:
    assert fit(RAMP, 4).tolist() == [0, 1, 2, 3]


def test_fit_crops_at_every_place_there_is() -> None:
    draws = rng()
    crops = [fit(RAMP, 7, draws) for _ in range(100)]
    assert {int(crop[0]) for crop in crops} == {0, 1, 2, 3}
    assert all(torch.equal(crop, crop[0] + torch.arange(7.0)) for crop in crops)


def test_a_mix_of_waves_by_hand() -> None:
    """Means 1 and 2 go; of the targets, those that are not known count as 0."""
    one = Labelled(
        torch.tensor([0.0, 2.0, 1.0, 1.0]), torch.tensor([1.0, 0.5, 0.5]), torch.tensor([1.0, 0.0, 0.0])
    )
    other = Labelled(
        torch.tensor([2.0, 2.0, 4.0, 0.0]), torch.tensor([0.0, 0.5, 0.5]), torch.tensor([1.0, 1.0, 0.0])
    )
    mixed = wave_mix(one, other, 0.75)
    assert mixed.wave.tolist() == [-0.75, 0.75, 0.5, -0.5]
    assert mixed.target.tolist() == [0.75, 0.125, 0.0]
    assert mixed.known.tolist() == [1.0, 1.0, 0.0]


def test_a_mix_of_waves_has_no_mean() -> None:
    wave = torch.from_numpy(tone(0.5)) + 0.3
    mixed = wave_mix(CLIP._replace(wave=wave), CLIP._replace(wave=wave**2), 0.6)
    assert abs(float(mixed.wave.mean())) < 1e-6


def test_mixing_weights_are_at_least_a_half_and_follow_the_beta_distribution() -> None:
    """With alpha 2 the larger share has the mean 11/16, with a wide Beta it nears a half."""
    shares = mixing_weights(2.0, 20_000, rng())
    assert shares.shape == (20_000,)
    assert float(shares.min()) >= 0.5
    assert float(shares.mean()) == pytest.approx(11 / 16, abs=0.003)
    assert float(mixing_weights(1000.0, 1000, rng()).mean()) == pytest.approx(0.5, abs=0.02)


# -- spectrograms --------------------------------------------------------------------------------------------


def test_mel_bands_end_at_half_the_sample_rate() -> None:
    draws = rng()
    highest = [mel_band(8_000.0, draws, nyquist=8_000.0)[1] for _ in range(200)]
    assert 6_000.0 < min(highest) < max(highest) <= 8_000.0


@pytest.mark.slow
def test_mel_bands_are_those_of_the_published_training() -> None:
    draws = rng()
    bands = [mel_band(15_000.0, draws) for _ in range(20_000)]
    lows, highs = {low for low, _ in bands}, {high for _, high in bands}
    assert lows == set(range(10))
    assert highs <= set(range(14_001, 16_001))
    assert {14_001, 16_000} <= highs


@pytest.mark.parametrize("key", range(5))
def test_spec_augment_masks_one_band_and_one_stretch_and_nothing_else(key: int) -> None:
    mel = torch.randn(8, 32, 50, generator=rng(key))
    out = spec_augment(mel, Masks(12, 20), rng(key), share=whole(8))
    masked = out != mel
    assert (out[masked] == 0.9).all()
    bands, times = masked.all(dim=2), masked.all(dim=1)
    assert torch.equal(masked, bands[:, :, None] | times[:, None, :])
    for clip in range(8):
        assert stretches(bands[clip]) <= 1
        assert stretches(times[clip]) <= 1
    assert bands.sum(dim=1).max() <= 12
    assert times.sum(dim=1).max() <= 20


def test_spec_augment_masks_every_clip_elsewhere() -> None:
    out = spec_augment(torch.zeros(8, 32, 50), Masks(12, 20), rng(), share=whole(8))
    assert len({clip.numpy().tobytes() for clip in out}) == 8


def test_spec_augment_without_widths_masks_nothing() -> None:
    mel = torch.randn(2, 8, 20, generator=rng())
    assert torch.equal(spec_augment(mel, Masks(0, 0), rng(), share=whole(2)), mel)


def test_one_mask_may_be_shared_by_all_clips() -> None:
    out = spec_augment(torch.zeros(8, 32, 50), Masks(12, 20, shared=True), rng(), share=whole(8))
    assert len({clip.numpy().tobytes() for clip in out}) == 1
    assert (out > 0).any()


def test_the_mask_may_be_filled_with_the_mean_of_the_step() -> None:
    mel = torch.arange(4.0)[:, None, None].expand(4, 32, 50)
    out = spec_augment(mel, Masks(12, 20, fill="mean"), rng(), share=whole(4))
    assert set(out.flatten().tolist()) == {0.0, 1.0, 1.5, 2.0, 3.0}


@pytest.mark.parametrize("masks", [Masks(12, 20), Masks(12, 20, shared=True)])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_mask_what_one_would(masks: Masks, processes: int) -> None:
    mel = torch.randn(8, 32, 50, generator=rng())
    alone = spec_augment(mel, masks, rng(1), share=whole(8))
    together = [spec_augment(mine, masks, rng(1), share=share) for mine, share in parts(mel, processes)]
    assert torch.equal(torch.cat(together), alone)


def test_processes_fill_with_the_mean_of_all() -> None:
    """`gather` brings the means of both processes: 0 and 2."""
    share = Share(1, 2, lambda mean: torch.cat([mean - 2.0, mean]))
    out = spec_augment(torch.full((1, 32, 50), 2.0), Masks(12, 20, fill="mean"), rng(), share=share)
    assert set(out.flatten().tolist()) == {1.0, 2.0}


def test_masks_are_narrower_than_their_width_and_lie_anywhere_but_on_the_last_place() -> None:
    """Both ends are rounded down, as published."""
    masks = augment.mask_span(6, 4, 2000, rng())
    assert set(masks.sum(dim=1).tolist()) == {0, 1, 2, 3}
    assert (masks.sum(dim=0) > 0).tolist() == [True] * 5 + [False]


def test_mixup_mixes_spectrograms_and_targets_alike() -> None:
    """Clip i is 1 in mel i alone, so the mixed spectrogram must read like the mixed target."""
    target = torch.eye(16)
    mel, mixed = mixup(target[:, :, None].clone(), target, 0.3, rng(), share=whole(16))
    assert torch.equal(mel[:, :, 0], mixed)


def test_a_mixed_target_still_sums_to_one_and_keeps_at_least_half_of_its_own() -> None:
    _, mixed = mixup(torch.zeros(64, 1, 1), torch.eye(64), 0.3, rng(), share=whole(64))
    assert torch.allclose(mixed.sum(dim=1), torch.ones(64))
    assert (mixed.diagonal() >= 0.5).all()


def test_mixup_draws_a_share_for_every_clip() -> None:
    _, mixed = mixup(torch.zeros(64, 1, 1), torch.eye(64), 1.0, rng(), share=whole(64))
    assert len(set(mixed.diagonal().tolist())) > 50


def test_shares_follow_the_beta_distribution() -> None:
    """With alpha 1 the larger share is uniform over 0.5 ... 1: mean 0.75."""
    _, mixed = mixup(torch.zeros(2000, 1, 1), torch.eye(2000), 1.0, rng(), share=whole(2000))
    assert float(mixed.diagonal().mean()) == pytest.approx(0.75, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_mix_what_one_would(processes: int) -> None:
    """Mel and target are the same numbers here, so one gathered tensor stands for both."""
    step = torch.randn(8, 5, generator=rng())
    alone, _ = mixup(step[:, :, None], step, 0.3, rng(1), share=whole(8))
    for mine, share in parts(step, processes):
        both = Share(share.first, share.total, lambda given: step.reshape(8, *given.shape[1:]))
        mel, target = mixup(mine[:, :, None], mine, 0.3, rng(1), share=both)
        torch.testing.assert_close(mel[:, :, 0], target)
        torch.testing.assert_close(mel, alone[share.first : share.first + len(mine)])

import gc
import shutil
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from conftest import RATE, noise, tone, write_wav
from prepared_set import write_prepared
from torch import Generator, Tensor

from patchout.data import augment
from patchout.data import batches as module
from patchout.data.augment import WaveMix, keyed
from patchout.data.batches import (
    Batch,
    StepSampler,
    Waves,
    balance_weights,
    batches,
    share,
    shared_memory_note,
)
from patchout.data.clips import ClipSet, DataError
from patchout.data.sets import scan, scan_sounds

Key = tuple[int, int]


def gain_and_roll(wave: Tensor, rng: Generator) -> Tensor:
    """Named, so that a spawned worker finds it."""
    return augment.roll(augment.gain(wave, (-7, 6), rng), 1600, rng)


@pytest.mark.slow
def test_a_clip_that_is_cut_short_is_used_and_told(tmp_path: Path) -> None:
    whole = write_wav(tmp_path / "dog" / "a.wav", tone(1.0)).read_bytes()
    (tmp_path / "dog" / "a.wav").write_bytes(whole[: len(whole) // 2])
    waves = Waves(scan(tmp_path), rate=RATE, num_samples=1600, seed=0)
    batch = next(iter(batches(waves, StepSampler(1, 2, seed=0, first=0, last=1), workers=0)))
    assert (batch.problems, batch.weight.min()) == ((), 1)
    assert [remark.partition(": ")[2][:15] for remark in batch.remarks] == ["is cut short, i"]


# -- steps ---------------------------------------------------------------------------------------------------


def steps(num_clips: int, batch: int, *, start: int = 0, last: int, seed: int = 0) -> list[list[Key]]:
    return list(StepSampler(num_clips, batch, seed=seed, first=start, last=last))


@pytest.mark.parametrize(("num_clips", "batch"), [(12, 4), (10, 4), (7, 7), (3, 5), (1, 2)])
def test_every_epoch_holds_every_clip_once(num_clips: int, batch: int) -> None:
    """Also where a batch crosses the border of two epochs, or holds several."""
    keys = [key for step in steps(num_clips, batch, last=3 * num_clips) for key in step]
    assert keys[: num_clips * 3] != sorted(keys[: num_clips * 3]) or num_clips == 1
    assert sorted(keys) == [(epoch, index) for epoch in range(3 * batch) for index in range(num_clips)]
    assert [epoch for epoch, _ in keys] == sorted(epoch for epoch, _ in keys)


def test_every_step_has_a_whole_batch() -> None:
    assert [len(step) for step in steps(10, 4, last=7)] == [4] * 7


@pytest.mark.parametrize("start", [1, 2, 3, 6])
def test_starting_later_gives_exactly_the_tail(start: int) -> None:
    assert steps(10, 4, start=start, last=7) == steps(10, 4, last=7)[start:]


def test_the_order_changes_with_epoch_and_seed() -> None:
    one, two = steps(20, 20, last=2)
    assert [index for _, index in one] != [index for _, index in two]
    assert steps(20, 20, last=2, seed=1)[0] != one


def test_the_length_is_the_number_of_steps_left() -> None:
    assert len(StepSampler(10, 4, seed=0, first=3, last=7)) == 4


def test_no_clips_give_no_steps() -> None:
    with pytest.raises(DataError, match="no clips to train on"):
        StepSampler(0, 4, seed=0, first=0, last=1)


# -- waves ---------------------------------------------------------------------------------------------------


def waves(folder: Path, *, seed: int = 0, augmented: bool = True, mix: WaveMix | None = None) -> Waves:
    change = gain_and_roll if augmented else None
    return Waves(scan(folder), rate=RATE, num_samples=16_000, seed=seed, augment=change, mix=mix)


def test_a_key_gives_the_same_samples_in_any_order(class_folder: Path) -> None:
    forward, backward = waves(class_folder), waves(class_folder)
    one = [forward[0, index][0] for index in range(12)]
    other = [backward[0, index][0] for index in reversed(range(12))]
    assert all(torch.equal(a, b) for a, b in zip(one, reversed(other), strict=True))


def test_another_epoch_or_seed_gives_other_samples(class_folder: Path) -> None:
    dog = waves(class_folder)[0, 5][0]
    assert not torch.equal(dog, waves(class_folder)[1, 5][0])
    assert not torch.equal(dog, waves(class_folder, seed=1)[0, 5][0])


def test_a_clip_comes_with_its_target_and_its_number(class_folder: Path) -> None:
    item = waves(class_folder)[0, 5]
    assert item.wave.shape == (16_000,)
    assert (item.target.tolist(), item.weight.tolist()) == ([0, 1, 0], [1, 1, 1])
    assert (item.clip, item.problem) == (5, "")


def test_without_augmentation_a_clip_is_its_beginning(class_folder: Path) -> None:
    write_wav(class_folder / "rain" / "0.wav", noise(1.0, 9))
    plain = Waves(scan(class_folder), rate=RATE, num_samples=1000, seed=0)
    expected = torch.from_numpy(noise(1.0, 9)[:1000])
    assert torch.allclose(plain[0, 8][0], expected, atol=1 / 32_768)
    assert torch.equal(plain[0, 8][0], plain[7, 8][0])


def test_a_clip_is_decoded_once(class_folder: Path) -> None:
    plain = waves(class_folder, augmented=False)
    before = plain[0, 0][0].clone()
    (class_folder / "bell" / "0.wav").unlink()
    assert torch.equal(plain[1, 0][0], before)


def test_a_set_beyond_the_cache_is_decoded_anew(class_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "patchout.data.batches.CACHE_HOURS", 1.5 / 3600
    )  # one of the clips of a second, not two
    plain = waves(class_folder, augmented=False)
    _ = plain[0, 0], plain[0, 1]
    for name in ("0.wav", "1.wav"):
        (class_folder / "bell" / name).unlink()
    assert plain[1, 0].problem == ""
    assert plain[1, 1].problem.endswith("1.wav: is not there; check the path")


def test_workers_share_what_may_be_kept(class_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchout.data.batches.CACHE_HOURS", 3.0 / 3600)
    monkeypatch.setattr("patchout.data.batches.get_worker_info", lambda: SimpleNamespace(num_workers=2))
    plain = waves(class_folder, augmented=False)
    _ = plain[0, 0], plain[0, 1]
    (class_folder / "bell" / "1.wav").unlink()
    assert plain[1, 1].problem


def test_an_unreadable_clip_is_silence_without_weight_and_class(class_folder: Path) -> None:
    (class_folder / "dog" / "1.wav").write_bytes(b"no sound")
    item = waves(class_folder)[0, 5]
    assert item.wave.tolist() == [0.0] * 16_000
    assert (item.target.tolist(), item.weight.tolist()) == ([0, 0, 0], [0, 0, 0])
    assert "1.wav: is not audio" in item.problem


def test_a_batch_names_its_unreadable_clips(class_folder: Path) -> None:
    for name in ("dog/1.wav", "rain/3.wav"):
        (class_folder / name).write_bytes(b"no sound")
    (batch,) = batches(waves(class_folder), StepSampler(12, 12, seed=0, first=0, last=1), workers=0)
    assert batch.clip[batch.weight.sum(dim=1) == 0].sort().values.tolist() == [5, 11]
    names = sorted(problem.partition(": ")[0] for problem in batch.problems)
    assert names == [str(class_folder / "dog" / "1.wav"), str(class_folder / "rain" / "3.wav")]


def test_without_classes_a_clip_has_one_weight(class_folder: Path) -> None:
    (class_folder / "dog" / "1.wav").write_bytes(b"no sound")
    sounds = Waves(scan_sounds(class_folder), rate=RATE, num_samples=1000, seed=0)
    (batch,) = batches(sounds, StepSampler(12, 12, seed=0, first=0, last=1), workers=0)
    assert batch.target.shape == (12, 0)
    assert batch.weight[batch.clip.argsort()].flatten().tolist() == [1.0] * 5 + [0.0] + [1.0] * 6


def test_what_is_not_known_has_no_weight(tmp_path: Path) -> None:
    more = {"probabilities": [0.25, 0.75], "known": [1.0, 0.0]}
    clips = scan(write_prepared(tmp_path / "set", [tone(0.02)], **more))
    item = Waves(clips, rate=RATE, num_samples=640, seed=0)[0, 0]
    assert (item.target.tolist(), item.weight.tolist()) == ([0.25, 0.75], [1.0, 0.0])


# -- batches -------------------------------------------------------------------------------------------------


def same(one: Batch, other: Batch) -> bool:
    return one.problems == other.problems and all(
        torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True)
    )


def test_batches_are_stacked_in_the_order_of_their_keys(class_folder: Path) -> None:
    sampler = StepSampler(12, 4, seed=0, first=1, last=2)
    (batch,) = batches(waves(class_folder), sampler, workers=0)
    assert (batch.wave.shape, batch.target.shape, batch.weight.shape) == ((4, 16_000), (4, 3), (4, 3))
    assert [(0, index) for index in batch.clip.tolist()] == next(iter(sampler))
    assert torch.equal(batch.wave[2], waves(class_folder)[0, int(batch.clip[2])].wave)


def own_memory(batch: Batch) -> Batch:
    wave, target, weight, clip = (part.clone() for part in batch[:4])
    return Batch(wave, target, weight, clip, batch.problems)


@pytest.mark.slow
def test_a_loader_that_is_left_early_ends_quietly(
    class_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A worker that is stopped while it copies a large batch would abort."""
    clips = Waves(scan(class_folder), rate=RATE, num_samples=320_000, seed=0)
    ready = iter(batches(clips, StepSampler(12, 12, seed=0, first=0, last=1000), workers=1))
    for _ in range(4):
        next(ready)
    del ready
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create"
)  # more workers than a small machine has cores
def test_workers_change_nothing_and_leave_no_file_open(class_folder: Path) -> None:
    (class_folder / "dog" / "1.wav").write_bytes(b"no sound")
    sampler = StepSampler(12, 5, seed=0, first=0, last=4)
    read, open_files = [], []
    for workers in (0, 1, 2):
        read.append(list(batches(waves(class_folder, mix=WaveMix()), sampler, workers=workers)))
        read[-1] = [own_memory(batch) for batch in read[-1]]
        gc.collect()
        open_files.append(psutil.Process().num_fds())
    assert [len(problem) > 0 for batch in read[0] for problem in batch.problems] == [True, True]
    for one, two, three in zip(*read, strict=True):
        assert same(one, two)
        assert same(one, three)
    assert open_files[1] == open_files[2]


def test_ranks_hold_the_batch_of_one_process_in_its_order(class_folder: Path) -> None:
    def of(rank: int, world: int) -> list[Batch]:
        sampler = StepSampler(12, 6, seed=0, first=1, last=4, rank=rank, world=world)
        return list(batches(waves(class_folder, mix=WaveMix()), sampler, workers=0))

    for whole, *parts in zip(of(0, 1), *(of(rank, 3) for rank in range(3)), strict=True):
        assert torch.equal(torch.cat([part.wave for part in parts]), whole.wave)
        assert torch.equal(torch.cat([part.target for part in parts]), whole.target)


def test_reading_does_not_depend_on_torchs_own_seed(class_folder: Path) -> None:
    read = []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            ((wave, *_),) = batches(
                waves(class_folder), StepSampler(12, 6, seed=0, first=0, last=1), workers=0
            )
            read.append(wave)
    assert torch.equal(*read)


def test_the_order_of_an_epoch_is_keyed_by_its_number() -> None:
    (step,) = steps(8, 8, last=1, seed=3)
    assert [index for _, index in step] == torch.randperm(8, generator=keyed("order", 3, 0)).tolist()


# -- waveform mixing -----------------------------------------------------------------------------------------

ALWAYS = WaveMix(1.0, 2.0)


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """Eight sounds, each a class of its own and off centre, so that a target tells what was mixed."""
    for index in range(8):
        write_wav(tmp_path / "apart" / f"class {index}" / "a.wav", 0.1 + noise(0.5, index))
    return tmp_path / "apart"


def test_a_mix_is_heard_as_its_target_says(apart: Path) -> None:
    plain, mixed = waves(apart, augmented=False), waves(apart, augmented=False, mix=ALWAYS)
    partners = set()
    for epoch, index in product(range(6), range(8)):
        item = mixed[epoch, index]
        own, other = float(item.target[index]), int((item.target * (torch.arange(8) != index)).argmax())
        assert own >= 0.5
        assert float(item.target.sum()) == pytest.approx(1.0)
        one, two = (plain[0, clip].wave - plain[0, clip].wave.mean() for clip in (index, other))
        assert own == 1.0 or torch.allclose(item.wave, own * one + (1 - own) * two, atol=1e-6)
        partners.add(other)
    assert partners == set(range(8))


@pytest.mark.slow
def test_so_many_clips_are_mixed_as_the_probability_says(apart: Path) -> None:
    none, half = waves(apart, mix=WaveMix(0.0, 2.0)), waves(apart, mix=WaveMix(0.5, 2.0))
    keys = list(product(range(25), range(8)))
    assert all(none[key].target.max() == 1.0 for key in keys)
    assert sum(float(half[key].target.max()) < 1.0 for key in keys) == pytest.approx(
        87.5, abs=20
    )  # 1 in 8 meets itself


def test_a_clip_that_is_not_mixed_sounds_as_without_mixing(apart: Path) -> None:
    plain, half = waves(apart), waves(apart, mix=WaveMix(0.5, 2.0))
    same = [torch.equal(plain[0, index].wave, half[0, index].wave) for index in range(8)]
    assert 0 < sum(same) < 8
    assert all(half[0, index].target[index] == 1.0 for index in range(8) if same[index])


def test_the_partner_is_augmented_too(apart: Path) -> None:
    """The same key: the same partner and share, and yet another sum."""
    quiet, changed = waves(apart, augmented=False, mix=ALWAYS), waves(apart, mix=ALWAYS)
    key = next((0, index) for index in range(8) if 0.5 < float(quiet[0, index].target.max()) < 0.9)
    assert torch.equal(quiet[key].target, changed[key].target)
    own = waves(apart)[key].wave
    share = float(quiet[key].target.max())
    rest = changed[key].wave - share * (own - own.mean())
    plain = quiet[key].wave - share * (waves(apart, augmented=False)[key].wave - 0.1)
    assert not torch.allclose(rest, plain, atol=1e-3)


def test_an_unreadable_partner_is_named_and_the_clip_stays_as_it_is(apart: Path) -> None:
    for index in range(1, 8):
        (apart / f"class {index}" / "a.wav").write_bytes(b"no sound")
    mixed = waves(apart, mix=ALWAYS)
    items = [mixed[epoch, 0] for epoch in range(20)]
    broken = [item for item in items if item.problem]
    assert 10 < len(broken) <= 20
    assert all(item.weight.tolist() == [1.0] * 8 and item.target[0] == 1.0 for item in items)
    assert all(item.wave.abs().sum() > 0 for item in items)


# -- balance -------------------------------------------------------------------------------------------------


def labelled(*labels: list[int], classes: int = 2) -> ClipSet:
    """Clips without sounds."""
    table = pa.table(
        {"id": [str(index) for index in range(len(labels))], "labels": pa.array(labels, pa.list_(pa.int32()))}
    )
    return ClipSet(Path("none"), tuple(map(str, range(classes))), "multi_label", table)


def test_the_published_example_of_a_weight() -> None:
    """Classes of 1000 and 50 clips: 1000 / 1100 + 1000 / 150."""
    clips = labelled([0, 1], *[[0]] * 999, *[[1]] * 49, [])
    weights = balance_weights(clips)
    assert weights[[0, 1, 1000, 1049]].tolist() == pytest.approx([7.5758, 0.9091, 6.6667, 0.0], abs=5e-5)


def drawn(world: int, *, draws: int = 40, steps: int = 10, seed: int = 0) -> list[list[Key]]:
    """The keys of every rank: 120 clips,
    of which the last 20 weigh ten times as much and the first nothing.
    """
    weights = torch.tensor([0.0] + [1.0] * 99 + [10.0] * 20)
    options: Any = {
        "seed": seed,
        "first": 0,
        "last": steps,
        "world": world,
        "draws": draws,
        "weights": weights,
    }
    return [
        [key for step in StepSampler(120, 12, rank=rank, **options) for key in step] for rank in range(world)
    ]


@pytest.mark.parametrize("world", [3, 5])
def test_ranks_draw_disjoint_clips_that_are_those_of_one_process(world: int) -> None:
    (alone,) = drawn(1)
    ranks = drawn(world)
    assert sorted(key for keys in ranks for key in keys) == sorted(alone)
    assert len(set(alone)) == len(alone) == 120  # three epochs of 40
    assert sum(len(set(keys)) for keys in ranks) == 120


@pytest.mark.parametrize("world", [3, 5])
def test_ranks_cover_every_clip_of_an_epoch_once_without_weights_too(world: int) -> None:
    ranks = [
        [key for step in StepSampler(36, 12, seed=0, first=0, last=3, rank=rank, world=world) for key in step]
        for rank in range(world)
    ]
    assert sorted(key for keys in ranks for key in keys) == [(0, index) for index in range(36)]


def test_an_epoch_draws_heavy_clips_more_often_and_weightless_ones_never() -> None:
    (keys,) = drawn(1, steps=1000)
    heavy = np.mean([index >= 100 for _, index in keys])
    assert 0 not in {index for _, index in keys}
    assert 0.4 < heavy < 0.5  # 20 of 40 at the most; with replacement it would be 200 / 299
    assert len({index for _, index in keys}) == 119


def test_heavy_clips_do_not_come_first() -> None:
    (keys,) = drawn(1, steps=1000)
    position = np.arange(len(keys)) % 40
    heavy = np.array([index >= 100 for _, index in keys])
    assert position[heavy].mean() == pytest.approx(19.5, abs=0.5)


def test_an_epoch_of_so_many_draws_is_keyed_by_seed_and_epoch() -> None:
    (one,), (other,) = drawn(1, steps=10), drawn(1, steps=10, seed=1)
    assert {epoch for epoch, _ in one} == {0, 1, 2}
    assert one[:40] != other[:40]
    assert [index for _, index in one[:40]] != [index for _, index in one[40:80]]


def test_draws_without_weights_are_a_part_of_the_clips() -> None:
    keys = [key for step in StepSampler(30, 5, seed=0, first=0, last=4, draws=10) for key in step]
    assert [epoch for epoch, _ in keys] == [0] * 10 + [1] * 10
    assert len(set(keys)) == 20


@pytest.mark.parametrize(("draws", "allowed"), [(120, "give 1 to 119"), (0, "give 1 to 119")])
def test_more_draws_than_clips_are_refused(draws: int, allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed):
        drawn(1, draws=draws)


def test_shares_differ_by_one_clip_at_most() -> None:
    assert [list(share(7, rank, 3)) for rank in range(3)] == [[0, 1], [2, 3], [4, 5, 6]]


def test_a_batch_with_fewer_clips_than_processes_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"2 clips at a time are too few for 3 .* raise --batch, .* or start at most 2"
    ):
        StepSampler(10, 2, seed=0, first=0, last=1, rank=0, world=3)


def test_memory_is_pinned_only_where_it_is_asked_for(
    class_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on the CPU of a machine with a GPU needs no CUDA context."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    sampler = StepSampler(12, 12, seed=0, first=0, last=1)
    assert not batches(waves(class_folder), sampler, workers=0).pin_memory
    assert batches(waves(class_folder), sampler, workers=0, pin_memory=True).pin_memory


@pytest.mark.parametrize(("batch_bytes", "ahead"), [(2**30, 2), (2**30 + 1, 1)])
def test_large_batches_wait_one_a_worker(class_folder: Path, batch_bytes: int, ahead: int) -> None:
    """Two workers fill 4 GiB of shared memory with two batches of 1 GiB each."""
    sampler = StepSampler(12, 12, seed=0, first=0, last=1)
    loader = batches(waves(class_folder), sampler, workers=2, batch_bytes=batch_bytes)
    assert loader.prefetch_factor == ahead


def test_a_clip_takes_the_memory_of_its_samples(class_folder: Path) -> None:
    sounds = waves(class_folder)
    assert sounds.clip_bytes == sounds[0, 0].wave.nbytes


def test_too_little_shared_memory_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "SHARED", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64e6))
    note = shared_memory_note(32_000_001, 2)
    assert "take up to 0.13 GB of shared memory" in note
    assert "has 0.06 free: give more (docker run --shm-size)" in note
    assert shared_memory_note(16_000_000, 2) == ""
    assert shared_memory_note(32_000_001, 0) == ""
    monkeypatch.setattr(module, "SHARED", tmp_path / "not there")
    assert shared_memory_note(32_000_001, 2) == ""

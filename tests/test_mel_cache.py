"""Log-mels kept on disk: what is kept, what is cropped from it, and who may share it."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import noise, write_wav
from prepared_set import write_prepared

from patchout.audio.mel import MelConfig, log_mel
from patchout.data import clips, mel_cache
from patchout.data.batches import StepSampler, batches
from patchout.data.mel_cache import MelCache
from patchout.data.sets import scan, scan_sounds
from patchout.errors import InputError

MEL = MelConfig()


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Three sounds of two seconds, one of a tenth."""
    for index in range(3):
        write_wav(tmp_path / "sounds" / f"{index}.wav", noise(2.0, index))
    write_wav(tmp_path / "sounds" / "short.wav", noise(0.1))
    return tmp_path / "sounds"


@pytest.fixture
def cache(sounds: Path, tmp_path: Path) -> MelCache:
    """Crops of half a second, 50 frames; its folder is made."""
    found = MelCache(scan_sounds(sounds), MEL, tmp_path / "mels", 16_000, 0)
    found.open(8.0)
    return found


def decoding(cache: MelCache, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The clips that are decoded from now on."""
    read: list[int] = []
    decode = type(cache.clips).decode

    def reading(self: object, clip: int, rate: int) -> tuple[torch.Tensor, str]:
        read.append(clip)
        return decode(cache.clips, clip, rate)

    monkeypatch.setattr(type(cache.clips), "decode", reading)
    return read


def test_a_crop_is_a_stretch_of_the_whole_clips_log_mel(cache: MelCache) -> None:
    crop = cache[3, 1].wave
    whole = log_mel(cache.clips.wave(1, 32_000)[None], MEL)[0].T.half()
    assert (crop.shape, crop.dtype) == ((50, 128), torch.float16)
    assert any(torch.equal(crop, whole[first : first + 50]) for first in range(151))


def test_a_key_gives_the_same_crop_new_or_kept_and_another_epoch_another(cache: MelCache) -> None:
    new, kept, other = (cache[epoch, 0].wave for epoch in (0, 0, 1))
    assert torch.equal(new, kept)
    assert not torch.equal(new, other)


def test_a_short_clip_is_padded_with_silence_as_its_waveform_would_be(cache: MelCache, sounds: Path) -> None:
    padded = torch.nn.functional.pad(cache.clips.wave(3, 32_000), (0, 12_800))
    assert torch.equal(cache[0, 3].wave, log_mel(padded[None], MEL)[0].T.half())


def test_a_clip_is_decoded_once_whoever_asks(cache: MelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    read = decoding(cache, monkeypatch)
    for one in (cache, replace(cache, seed=1)):
        _ = [one[epoch, index] for epoch in range(3) for index in range(4)]
    assert read == [0, 1, 2, 3]


def cut(path: Path) -> None:
    os.truncate(path, 1000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, empty, Path.unlink])
def test_what_is_damaged_is_made_anew(cache: MelCache, damage: Callable[[Path], None]) -> None:
    before = cache[0, 0].wave
    damage(cache.folder / "0" / "0.npy")
    assert torch.equal(cache[0, 0].wave, before)
    assert np.load(cache.folder / "0" / "0.npy").shape == (200, 128)


@pytest.mark.parametrize("modified_s", [1e9, 4e9], ids=["an older file", "a newer file"])
def test_a_sound_that_has_changed_is_heard_anew(cache: MelCache, sounds: Path, modified_s: float) -> None:
    before = cache[0, 0].wave
    write_wav(sounds / "0.wav", noise(2.0, 9))
    os.utime(sounds / "0.wav", (modified_s, modified_s))
    after = cache[0, 0].wave
    assert not torch.equal(before, after)
    (sounds / "0.wav").unlink()  # what is kept needs no sound
    assert torch.equal(cache[0, 0].wave, after)


def test_clips_of_a_shard_that_was_prepared_again_are_heard_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = scan(write_prepared(tmp_path / "set", [noise(1.0, seed) for seed in range(4)]))
    cache = MelCache(clips, MEL, tmp_path / "mels", 16_000, 0)
    cache.open(4.0)
    read = decoding(cache, monkeypatch)
    _ = [cache[0, clip] for clip in range(4)]
    os.utime(clips.file_on_disk(3), (4e9, 4e9))
    _ = [cache[0, clip] for clip in range(4)]
    assert read == [0, 1, 2, 3, 2, 3]


def test_a_cache_of_an_earlier_version_sees_newer_sounds(
    cache: MelCache, sounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = cache.folder / "about.json"
    about.write_text(about.read_text().replace("times_of_sounds", "nothing"))
    _ = cache[0, 0]
    os.utime(cache.folder / "0" / "0.npy")
    read = decoding(cache, monkeypatch)
    _ = cache[0, 0]
    assert read == []
    os.utime(sounds / "0.wav", (4e9, 4e9))
    _ = cache[0, 0]
    assert read == [0]


def test_a_long_clip_is_cropped_in_bounded_memory_and_not_kept(
    cache: MelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips, "LONG_S", 1.0)
    monkeypatch.setattr(mel_cache, "LONG_S", 1.0)
    one, other = cache[0, 0].wave, cache[1, 0].wave
    assert one.shape == (50, 128)
    assert not torch.equal(one, other)
    assert not (cache.folder / "0" / "0.npy").exists()


def test_a_crop_takes_the_memory_of_its_float16_values(cache: MelCache) -> None:
    assert cache.clip_bytes == cache[0, 0].wave.nbytes


def test_a_clip_that_cannot_be_read_has_no_weight_and_leaves_nothing(cache: MelCache, sounds: Path) -> None:
    (sounds / "1.wav").write_text("no sound")
    (batch,) = batches(cache, StepSampler(4, 4, seed=0, first=0, last=1), workers=0)
    assert batch.wave.shape == (4, 50, 128)
    assert batch.weight[batch.clip.argsort()].tolist() == [[1.0], [0.0], [1.0], [1.0]]
    assert "1.wav: is not audio" in batch.problems[0]
    assert sorted(path.name for path in (cache.folder / "0").iterdir()) == ["0.npy", "2.npy", "3.npy"]


@pytest.mark.slow
def test_workers_give_what_one_process_gives(cache: MelCache) -> None:
    one, two = (
        [
            batch.wave.clone()
            for batch in batches(cache, StepSampler(4, 2, seed=0, first=0, last=2), workers=workers)
        ]
        for workers in (0, 1)
    )
    for wave, other in zip(
        one, two, strict=True
    ):  # a worker has one thread, which may round in another order
        torch.testing.assert_close(wave, other)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mel": replace(MEL, f_max=14_000.0)}, "f_max"),
        ({"num_samples": 32_000}, "clip_samples"),
        ({"clips": "fewer"}, "ids_sha256"),
    ],
)
def test_a_cache_of_something_else_is_refused(cache: MelCache, change: dict[str, object], named: str) -> None:
    change = {name: cache.clips.take([0, 1]) if value == "fewer" else value for name, value in change.items()}
    with pytest.raises(ValueError, match=rf"caches other log-mels \(other {named}\): name another folder"):
        replace(cache, **change).open(8.0)  # type: ignore[arg-type]
    assert cache.open(8.0) == ""  # its own


def test_it_says_how_much_it_takes_and_refuses_what_the_disk_cannot_hold(
    cache: MelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = replace(cache, folder=tmp_path / "new")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=90e6))
    with pytest.raises(
        InputError, match=r"log-mels of 1\.0 hours take about 0\.09 GB in .*new, where 0\.09 are free"
    ):
        new.open(3600.0)
    assert "log-mels of 0.5 hours take about 0.05 GB" in new.open(1800.0)

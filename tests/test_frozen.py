"""Embeddings of a frozen encoder: of the right sounds, long ones as they are decoded, problems told."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RATE, noise, tiny_config, tone, write_wav
from prepared_set import write_prepared

from patchout.audio.stream import Stream
from patchout.data.augment import keyed
from patchout.data.clips import ClipSet
from patchout.data.sets import scan
from patchout.inference.embedding import Embedder, mid_level
from patchout.models.passt import Passt
from patchout.training.supervised.frozen import EmbeddedClips, embed_clips, encoder_hash

SOUNDS = [tone(1.0, 200.0 * (1 + index)) for index in range(4)]


@pytest.fixture
def encoder() -> Passt:
    return Passt(tiny_config(labels=("cat", "dog")), rng=keyed("encoder")).eval()


def embedded(encoder: Passt, clips: ClipSet, cache: Path | str = "") -> EmbeddedClips:
    return embed_clips(encoder, clips, "fp32", str(cache))


def test_other_sounds_under_the_same_ids_are_other_clips(encoder: Passt, tmp_path: Path) -> None:
    first = scan(write_prepared(tmp_path / "one", SOUNDS))
    second = scan(write_prepared(tmp_path / "two", SOUNDS[::-1]))
    for clips in (first, second):
        kept = embedded(encoder, clips, tmp_path / "cache")
        assert torch.equal(kept.values, embedded(encoder, clips).values)
    write_prepared(tmp_path / "one", [0.5 * sound for sound in SOUNDS])
    anew = scan(tmp_path / "one")
    values = embedded(encoder, anew, tmp_path / "cache").values
    assert torch.equal(values, embedded(encoder, anew).values)


def test_another_precision_is_another_cache(encoder: Passt) -> None:
    assert encoder_hash(encoder, "fp32") != encoder_hash(encoder, "bf16")


def test_a_truncated_cache_is_written_again(
    encoder: Passt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = scan(write_prepared(tmp_path / "set", SOUNDS))
    values = embedded(encoder, clips, tmp_path / "cache").values
    (cache,) = (tmp_path / "cache").iterdir()
    cache.write_bytes(cache.read_bytes()[:-40])
    assert torch.equal(embedded(encoder, clips, tmp_path / "cache").values, values)
    monkeypatch.setattr(Embedder, "scenes_of_each", None)  # nothing is embedded now
    assert torch.equal(embedded(encoder, clips, tmp_path / "cache").values, values)


def test_a_long_clip_is_embedded_as_it_is_decoded(
    encoder: Passt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_wav(tmp_path / "set" / "dog" / "long.wav", noise(30.0))
    write_wav(tmp_path / "set" / "cat" / "short.wav", noise(0.5, 1))
    expected = Embedder(encoder, mid_level(encoder.config)).scene_of(Stream(path, RATE))
    longest, embed = list[int](), Embedder.scenes_of_each

    def watched(self: Embedder, waves: list[np.ndarray]) -> list[np.ndarray]:
        longest.append(max(map(len, waves)))
        return embed(self, waves)

    monkeypatch.setattr(Embedder, "scenes_of_each", watched)
    clips = scan(tmp_path / "set")
    values = embedded(encoder, clips).values
    place = [Path(name).name for name in clips.names()].index("long.wav")
    torch.testing.assert_close(values[place], torch.from_numpy(expected))
    assert longest == [RATE // 2]


def test_what_is_wrong_with_a_clip_is_told_in_every_run(encoder: Passt, tmp_path: Path) -> None:
    for name in ("whole", "cut", "broken"):
        write_wav(tmp_path / "set" / "dog" / f"{name}.wav", tone(1.0))
    cut = tmp_path / "set" / "dog" / "cut.wav"
    cut.write_bytes(cut.read_bytes()[:RATE])
    (tmp_path / "set" / "dog" / "broken.wav").write_bytes(b"RIFF")
    clips = scan(tmp_path / "set")
    for _ in range(2):
        items = embedded(encoder, clips, tmp_path / "cache")
        by_name = {
            Path(clips.name(item.clip)).stem: item
            for item in map(items.__getitem__, ((0, 0), (0, 1), (0, 2)))
        }
        assert by_name["whole"].problem == ""
        assert by_name["whole"].remarks == ()
        assert by_name["cut"].weight.all()
        assert "is cut short" in by_name["cut"].remarks[0]
        assert "broken.wav" in by_name["broken"].problem
        assert not by_name["broken"].weight.any()

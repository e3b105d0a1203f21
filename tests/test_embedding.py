"""Embeddings: what stands where, which window belongs to which time,
and that no batch or block changes a value.
"""

import io
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, noise, tiny_config, tone, write_wav

import patchout
from patchout.audio import stream as audio
from patchout.audio.mel import MelConfig, log_mel
from patchout.inference import segments, token_budget
from patchout.inference.embedding import EmbedConfig, Embedder
from patchout.models.maskspec_classifier import MaskSpecClassifier, MaskSpecClassifierConfig
from patchout.models.passt import Passt, PasstConfig

FULL = 105 * 320  # samples of the tiny model's longest input
AUDIOSET = PasstConfig(labels=tuple(map(str, range(527))))
LOW = EmbedConfig(levels=("low",))
ALL = EmbedConfig(levels=("high", "low", "mid"), scene_levels=("low", "high", "mid"), scene_hop_ms=262.5)
CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-5}


def blocks(wave: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (wave[start : start + size] for start in range(0, len(wave), size))


def streamed(embedder: Embedder, wave: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    times, values = zip(*embedder.timestamps_of(blocks(wave, size)), strict=True)
    return np.concatenate(values), np.concatenate(times)


def run(model: Passt, wave: np.ndarray) -> dict[str, np.ndarray]:
    """Every level of one window, by itself."""
    with torch.inference_mode():
        mel = log_mel(wave[None], model.config.mel)
        out = model(mel)
    return {"high": out.logits[0].numpy(), "mid": out.embedding[0].numpy(), "mel": mel[0].numpy()}


def around(wave: np.ndarray, centre: int, size: int) -> np.ndarray:
    """`size` samples around a sample of a sound that is mirrored at its ends, one at a time."""
    last = len(wave) - 1
    index = np.abs(np.arange(centre - size // 2, centre + size // 2))
    return wave[last - np.abs(last - index)]


# -- what an embedding holds ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "fields", "parts"),
    [
        ("high mid", (160.0,), "high mid@160"),
        ("mid high", (160.0,), "mid high@160"),
        ("high mid", (160.0, 800.0), "high mid@160, high mid@800"),
        ("high mid", (800.0, 160.0), "high mid@800, high mid@160"),
        ("high mid low", (160.0, 640.0), "high mid@160, high mid@640, low@0"),
        ("low mid", (160.0, 640.0), "low@0, mid@160, mid@640"),
        ("high low mid", (160.0, 640.0), "high@160, high@640, low@0, mid@160, mid@640"),
        ("low", (160.0, 640.0), "low@0"),
    ],
)
def test_neighbouring_levels_repeat_for_every_field(
    levels: str, fields: tuple[float, ...], parts: str
) -> None:
    config = EmbedConfig(levels=tuple(levels.split()), fields_ms=fields)  # type: ignore[arg-type]
    assert ", ".join(f"{' '.join(run)}@{ms:g}" for run, ms in config.parts()) == parts


@pytest.mark.parametrize(
    ("levels", "fields", "sizes"),  # of the modes all, embed_only, logits
    [
        ("high mid", (160.0,), (1295, 768, 527)),
        ("high mid", (160.0, 800.0), (2590, 1536, 1054)),
        ("high mid low", (160.0, 640.0), (3358, 2304, 1822)),
        ("low mid", (160.0, 640.0), (2304, 2304, 768)),
    ],
)
def test_timestamp_sizes_of_the_published_modules(levels: str, fields: tuple[float, ...], sizes: Any) -> None:
    config = EmbedConfig(levels=tuple(levels.split()), fields_ms=fields)  # type: ignore[arg-type]
    modes = ("all", "embed_only", "logits")
    assert tuple(config.in_mode(mode).timestamp_size(AUDIOSET) for mode in modes) == sizes  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("levels", "size"),
    [("high mid", 527 + 768), ("mid", 768), ("low mid", 128 + 768), ("low", 128), ("high", 527)],
)
def test_scene_sizes(levels: str, size: int) -> None:
    config = EmbedConfig(scene_levels=tuple(levels.split()), fields_ms=(160.0, 800.0))  # type: ignore[arg-type]
    assert config.scene_size(AUDIOSET) == size


def test_other_models_have_other_sizes() -> None:
    config = EmbedConfig(levels=("high", "mid", "low"), scene_levels=("low", "mid", "high"))
    model = tiny_config(mel=MelConfig(n_mels=64))
    assert config.timestamp_size(model) == 3 + 32 + 6 * 64
    assert config.scene_size(model) == 64 + 32 + 3


def test_a_mode_keeps_everything_else() -> None:
    config = EmbedConfig(
        levels=("high", "mid", "low"), fields_ms=(160.0, 640.0), hop_ms=25.0, scene_hop_ms=1000.0
    )
    assert config.in_mode("all") == config
    assert config.in_mode("logits") == replace(config, levels=("high", "low"), scene_levels=("high",))
    assert config.in_mode("embed_only") == replace(config, levels=("mid", "low"), scene_levels=("mid",))


def test_an_unknown_mode_names_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # users have no type checks
    with pytest.raises(ValueError, match="all, embed_only or logits, got 'features'"):
        EmbedConfig().in_mode("features")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": ()}, r"low, mid, high, each once, got \(\)"),
        ({"levels": ("mid", "mid")}, "each once"),
        ({"scene_levels": ("logits",)}, r"low, mid, high, each once, got \('logits',\)"),
        ({"fields_ms": ()}, r"fields must be longer than 0 ms, got \(\)"),
        ({"fields_ms": (160.0, 0.0)}, r"fields must be longer than 0 ms, got \(160.0, 0.0\)"),
        ({"fields_ms": (float("nan"),)}, "fields must be longer than 0 ms"),
        ({"hop_ms": 0.0}, r"longer than 0 ms and finite, got .*hop_ms=0.0"),
        ({"scene_window_ms": float("inf")}, r"finite, got .*scene_window_ms=inf"),
        ({"scene_hop_ms": -1.0}, r"longer than 0 ms .*scene_hop_ms=-1.0"),
    ],
)
def test_a_config_of_nothing_is_refused(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        EmbedConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fields_ms": (160.0, 1100.0)}, "window of 1100 ms does not fit: the model takes 150 to 1050 ms"),
        ({"fields_ms": (100.0,)}, "window of 100 ms does not fit: the model takes 150 to 1050 ms"),
        ({"scene_window_ms": 100.0}, "window of 100 ms does not fit"),
        ({"hop_ms": 0.1}, "0.1 ms are 3.2 samples: choose a whole number"),
        ({"fields_ms": (160.01,)}, "samples: choose a whole number"),
        ({"fields_ms": (200.03125,)}, "window of 200.031 ms is 6401 samples: choose an even number"),
        ({"scene_window_ms": 500.03125}, "16001 samples: choose an even number"),
    ],
)
def test_windows_that_the_model_cannot_take_are_refused(
    tiny: Passt, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Embedder(tiny, EmbedConfig(**changes))


def test_a_field_that_no_level_uses_is_not_checked(tiny: Passt) -> None:
    assert Embedder(tiny, replace(LOW, fields_ms=(5000.0,))).timestamps(torch.zeros(1, 32000))[0].shape == (
        1,
        21,
        768,
    )


# -- timestamps: which samples belong to which time ----------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 1599, 1600, 1601, 2560, 2561, 31_999, 32_000])
def test_times_lie_every_50_ms_from_0(tiny: Passt, samples: int) -> None:
    values, times_ms = Embedder(tiny, LOW).timestamps(torch.zeros(2, samples))
    assert times_ms.tolist() == 2 * [[50.0 * index for index in range(samples // 1600 + 1)]]
    assert values.shape == (2, samples // 1600 + 1, 768)


def test_another_hop_gives_other_times(tiny: Passt) -> None:
    times_ms = Embedder(tiny, replace(LOW, hop_ms=3.125)).timestamps(torch.zeros(1, 1000))[1]
    assert times_ms.tolist() == [[3.125 * index for index in range(11)]]


@pytest.mark.slow
@pytest.mark.parametrize("samples", [10_241, 16_000, 20_003])
def test_every_time_sees_the_window_around_it(tiny: Passt, samples: int) -> None:
    config = EmbedConfig(levels=("mid", "low", "high"), fields_ms=(160.0, 640.0))
    wave = noise(samples / RATE)
    values = Embedder(tiny, config).timestamps(torch.from_numpy(wave)[None])[0][0].numpy()
    for index, value in enumerate(values):
        near, wide = (run(tiny, around(wave, 1600 * index, size)) for size in (5120, 20_480))
        low = log_mel(around(wave, 1600 * index, 1920)[None], tiny.config.mel)[0].numpy()  # 60 ms: six frames
        expected = [near["mid"], wide["mid"], low.reshape(-1), near["high"], wide["high"]]
        np.testing.assert_allclose(value, np.concatenate(expected), **CLOSE)


def test_low_of_a_time_is_six_frames_band_by_band(tiny: Passt) -> None:
    wave = noise(1.0)
    values = Embedder(tiny, LOW).timestamps(torch.from_numpy(wave)[None])[0]
    mel = log_mel(wave[None, 16_000 - 960 : 16_000 + 960], tiny.config.mel)[0]
    assert float(values[0, 10, 77 * 6 + 4]) == pytest.approx(float(mel[77, 4]), abs=1e-6)


def test_a_click_is_seen_by_the_times_whose_window_holds_it(tiny: Passt) -> None:
    wave = np.zeros(32_000, np.float32)
    silence = Embedder(tiny, EmbedConfig()).timestamps(torch.from_numpy(wave)[None])[0][0]
    wave[16_000] = 0.9
    click = Embedder(tiny, EmbedConfig()).timestamps(torch.from_numpy(wave)[None])[0][0]
    seen = (click - silence).abs().amax(dim=1) > 1e-4
    assert np.flatnonzero(seen.numpy()).tolist() == [
        9,
        10,
        11,
    ]  # 450 ... 550 ms; the window is 80 ms to each side


@pytest.mark.parametrize("samples", [1, 300, 1600, 2560])
def test_a_clip_of_half_a_window_or_less_gets_zeros_after_it(tiny: Passt, samples: int) -> None:
    wave = noise(samples / RATE)
    values = Embedder(tiny, EmbedConfig()).timestamps(torch.from_numpy(wave)[None])[0][0].numpy()
    assert len(values) == samples // 1600 + 1
    padded = np.pad(wave, (0, 2561 - samples))
    for index, value in enumerate(values):
        alone = run(tiny, around(padded, 1600 * index, 5120))
        np.testing.assert_allclose(value, np.concatenate([alone["high"], alone["mid"]]), **CLOSE)


# -- scenes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 513, 4801, 20_000, FULL - 1, FULL])
def test_a_scene_that_the_model_takes_is_one_pass(tiny: Passt, samples: int) -> None:
    wave = noise(samples / RATE)
    alone = run(tiny, np.pad(wave, (0, max(0, 4801 - samples))))  # zeros up to one patch
    expected = np.concatenate([alone["mel"].mean(axis=1), alone["high"], alone["mid"]])
    scene = Embedder(tiny, ALL).scenes(torch.from_numpy(wave)[None])
    np.testing.assert_allclose(scene[0].numpy(), expected, **CLOSE)


@pytest.mark.parametrize("samples", [FULL + 1, 2 * FULL, 80_003])
def test_a_longer_scene_is_the_mean_of_centred_windows(tiny: Passt, samples: int) -> None:
    wave = noise(samples / RATE)
    windows = [run(tiny, around(wave, centre, FULL)) for centre in range(0, samples + 1, 8400)]
    expected = np.mean(
        [np.concatenate([one["mel"].mean(axis=1), one["high"], one["mid"]]) for one in windows], axis=0
    )
    assert len(windows) == samples // 8400 + 1
    scene = Embedder(tiny, ALL).scenes(torch.from_numpy(wave)[None])
    np.testing.assert_allclose(scene[0].numpy(), expected, **CLOSE)


def test_scene_windows_may_be_shorter_than_the_model(tiny: Passt) -> None:
    config = EmbedConfig(scene_window_ms=500.0, scene_hop_ms=125.0)
    wave = noise(0.75)
    windows = [run(tiny, around(wave, centre, 16_000)) for centre in range(0, 24_001, 4000)]
    expected = np.mean([np.concatenate([one["high"], one["mid"]]) for one in windows], axis=0)
    np.testing.assert_allclose(
        Embedder(tiny, config).scenes(torch.from_numpy(wave)[None])[0].numpy(), expected, **CLOSE
    )


def test_low_of_a_scene_is_a_mean_even_of_six_frames() -> None:
    model = Passt(tiny_config(patch=4), rng=torch.Generator().manual_seed(0)).eval()
    wave = noise(1920 / RATE)
    scene = Embedder(model, EmbedConfig(scene_levels=("low",))).scenes(torch.from_numpy(wave)[None])
    np.testing.assert_allclose(
        scene[0].numpy(), log_mel(wave[None], model.config.mel)[0].mean(dim=1).numpy(), **CLOSE
    )


# -- batches and blocks change nothing -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_clip_has_the_same_embedding_in_every_batch(tiny: Passt) -> None:
    together = torch.from_numpy(np.stack([noise(1.3, 0), tone(1.3), 3 * noise(1.3, 2)]))
    embedder = Embedder(tiny, ALL)
    scenes, times = embedder.scenes(together), embedder.timestamps(together)[0]
    for index in range(3):
        alone = together[index : index + 1]
        np.testing.assert_allclose(scenes[index].numpy(), embedder.scenes(alone)[0].numpy(), **CLOSE)
        np.testing.assert_allclose(times[index].numpy(), embedder.timestamps(alone)[0][0].numpy(), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 100])
def test_the_memory_budget_changes_no_value(
    tiny: Passt, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = torch.from_numpy(np.stack([noise(1.3, 0), tone(1.3)]))
    embedder = Embedder(tiny, ALL)
    scenes, (values, _) = embedder.scenes(wave), embedder.timestamps(wave)
    sizes = []
    monkeypatch.setattr(token_budget, "CPU_TOKENS", tokens)
    tiny.embed.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    np.testing.assert_allclose(embedder.scenes(wave).numpy(), scenes.numpy(), **CLOSE)
    np.testing.assert_allclose(embedder.timestamps(wave)[0].numpy(), values.numpy(), **CLOSE)
    assert max(sizes) == max(1, tokens // 14)  # a window of 160 ms is 12 patches and two tokens


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 1600, 2560, 2561, 2562, 5119, 5120, 5121, 16_000, 20_479, 33_333])
def test_streamed_timestamps_equal_whole_ones(
    tiny: Passt, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder(tiny, ALL)
    wave = noise(samples / RATE)
    whole, times_ms = embedder.timestamps(torch.from_numpy(wave)[None])
    for segment in (1, 4 * 1600, 2**21):  # a piece of one time, of four, of all
        monkeypatch.setattr(segments, "MAX_SAMPLES", segment)
        for size in (777, 1600, 2561, 50_000):
            values, times = streamed(embedder, wave, size)
            np.testing.assert_array_equal(times, times_ms[0].numpy())
            np.testing.assert_allclose(values, whole[0].numpy(), **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 4800, FULL - 1, FULL, FULL + 1, 2 * FULL, 80_003, 200_000])
def test_streamed_scenes_equal_whole_ones(tiny: Passt, samples: int) -> None:
    embedder = Embedder(tiny, ALL)
    wave = noise(samples / RATE)
    whole = embedder.scenes(torch.from_numpy(wave)[None])[0].numpy()
    for size in (999, 8400, FULL + 1, 200_000):
        np.testing.assert_allclose(embedder.scene_of(blocks(wave, size)), whole, **CLOSE)


@pytest.mark.slow
def test_a_hop_longer_than_its_window_loses_no_place(tiny: Passt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "MAX_SAMPLES", 2 * 16_000)
    config = EmbedConfig(hop_ms=500.0, scene_window_ms=200.0, scene_hop_ms=1000.0)
    embedder = Embedder(tiny, config)
    wave = noise(9.3)
    whole = embedder.timestamps(torch.from_numpy(wave)[None])[0][0].numpy()
    scene = embedder.scenes(torch.from_numpy(wave)[None])[0].numpy()
    for size in (1600, 7000, 50_000):
        np.testing.assert_allclose(streamed(embedder, wave, size)[0], whole, **CLOSE)
        np.testing.assert_allclose(embedder.scene_of(blocks(wave, size)), scene, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["timestamps_of", "scene_of"])
def test_memory_does_not_grow_with_the_stream(tiny: Passt, what: str) -> None:
    config = replace(LOW, hop_ms=200.0, scene_levels=("low",), scene_window_ms=1000.0, scene_hop_ms=1000.0)
    embedder = Embedder(tiny, config)
    block = noise(5.0)

    def peak_bytes(seconds: int) -> int:
        tracemalloc.start()
        stream = (block.copy() for _ in range(seconds // 5))
        if what == "scene_of":
            embedder.scene_of(stream)
        else:
            assert sum(len(times) for times, _ in embedder.timestamps_of(stream)) == 5 * seconds + 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(80)  # imports
    assert peak_bytes(600) < 1.3 * peak_bytes(150)


@pytest.mark.parametrize("samples", [1, 100, 32_000, 100_000])
def test_silence_is_finite(tiny: Passt, samples: int) -> None:
    wave = torch.zeros(1, samples)
    assert bool(Embedder(tiny, ALL).scenes(wave).isfinite().all())
    assert bool(Embedder(tiny, ALL).timestamps(wave)[0].isfinite().all())


def test_a_probe_can_be_trained_on_embeddings(tiny: Passt) -> None:
    scenes = Embedder(tiny, EmbedConfig()).scenes(torch.from_numpy(noise(0.5))[None])
    probe = torch.nn.Linear(scenes.shape[1], 2)
    probe(scenes).sum().backward()
    assert probe.weight.grad is not None


def test_bf16_is_close_to_fp32(tiny: Passt) -> None:
    wave = torch.from_numpy(noise(1.0))[None]
    exact = Embedder(tiny, ALL).timestamps(wave)[0]
    half = Embedder(tiny, ALL, precision="bf16").timestamps(wave)[0]
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().max() < 0.05


# -- embed: one sound from anywhere --------------------------------------------------------------------------


def test_embed_gives_both_kinds_of_one_file(tiny: Passt, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", noise(2.03))
    wave = torch.from_numpy(audio.load(path))[None]
    scene, timestamps, times_ms = patchout.embed(tiny, path, config=ALL)
    embedder = Embedder(tiny, ALL)
    np.testing.assert_allclose(scene, embedder.scenes(wave)[0].numpy(), **CLOSE)
    np.testing.assert_allclose(timestamps, embedder.timestamps(wave)[0][0].numpy(), **CLOSE)
    np.testing.assert_array_equal(times_ms, 50.0 * np.arange(41))
    assert {scene.dtype, timestamps.dtype, times_ms.dtype} == {np.dtype(np.float32)}


def test_embed_without_a_config_is_the_hear_module_base(tiny: Passt) -> None:
    scene, timestamps, _ = patchout.embed(tiny, (noise(1.0), RATE))
    assert scene.shape == (3 + 32,)
    assert timestamps.shape == (21, 3 + 32)


def test_every_kind_of_source_gives_the_same(tiny: Passt, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", noise(0.7))
    content = path.read_bytes()
    expected = patchout.embed(tiny, path)
    for source in (str(path), content, io.BytesIO(content), (audio.load(path), RATE)):
        for ours, theirs in zip(patchout.embed(tiny, source), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
def test_other_rates_are_resampled(tiny: Passt, rate: int) -> None:
    wave = tone(1.0, rate=rate)
    resampled = audio.load((wave, rate), RATE)
    for ours, theirs in zip(
        patchout.embed(tiny, (wave, rate)), patchout.embed(tiny, (resampled, RATE)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 2048])
def test_sounds_of_any_lengths_together_equal_each_alone(
    tiny: Passt, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one sample to several windows; lengths that share patch columns, and some that share times."""
    monkeypatch.setattr(token_budget, "CPU_TOKENS", tokens)
    embedder = Embedder(tiny, ALL)
    samples = [16_000, 1, 16_003, 2_000, 33_600, 16_000, 40_000, 15_900, 70_000]
    waves = [noise(count / RATE, seed) for seed, count in enumerate(samples)]
    scenes, timestamps = embedder.scenes_of_each(waves), embedder.timestamps_of_each(waves)
    for wave, scene, (values, times_ms) in zip(waves, scenes, timestamps, strict=True):
        np.testing.assert_allclose(scene, embedder.scenes(torch.from_numpy(wave)[None])[0], **CLOSE)
        alone, alone_ms = embedder.timestamps(torch.from_numpy(wave)[None])
        np.testing.assert_allclose(values, alone[0], **CLOSE)
        np.testing.assert_array_equal(times_ms, alone_ms[0])
    assert embedder.scenes_of_each([]) == embedder.timestamps_of_each([]) == []


def test_sounds_of_nearly_one_length_share_a_forward_pass(tiny: Passt) -> None:
    passes: list[int] = []
    tiny.embed.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    embedder = Embedder(tiny, EmbedConfig(levels=("mid",), scene_levels=("mid",), fields_ms=(160.0,)))
    waves = [noise((8_100 + index) / RATE, index) for index in range(20)]
    embedder.scenes_of_each(waves)
    assert passes == [20]
    passes.clear()
    embedder.timestamps_of_each(waves)
    assert (len(passes) < 4, sum(passes)) == (True, 20 * 6)


def test_class_scores_of_an_encoder_without_classes_are_refused() -> None:
    config = MaskSpecClassifierConfig(labels=(), width=32, heads=2, depth=1, columns=6)
    encoder = MaskSpecClassifier(config, rng=torch.Generator().manual_seed(0)).eval()
    fields = EmbedConfig(scene_window_ms=500.0, scene_hop_ms=250.0)
    assert patchout.embed(encoder, (noise(0.5), RATE), config=fields).scene.shape == (32,)
    with pytest.raises(ValueError, match="a pre-trained MaskSpec has no classes yet"):
        patchout.embed(encoder, (noise(0.5), RATE), config=replace(fields, levels=("high",)))


def test_a_sound_of_one_sample_has_an_embedding(tiny: Passt) -> None:
    scene, timestamps, times_ms = patchout.embed(tiny, (np.array([0.5], np.float32), RATE))
    assert times_ms.tolist() == [0.0]
    assert np.isfinite(scene).all()
    assert np.isfinite(timestamps).all()


def test_errors_name_the_file(tiny: Passt, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.wav"):
        patchout.embed(tiny, tmp_path / "missing.wav")
    (tmp_path / "text.wav").write_text("this is no sound")
    with pytest.raises(audio.AudioError, match=r"text\.wav"):
        patchout.embed(tiny, tmp_path / "text.wav")


def test_a_damaged_file_is_embedded_with_a_warning(tiny: Passt, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.flac", noise(3.0), RATE)
    content = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(content[: len(content) // 2])
    with pytest.warns(audio.AudioWarning, match=r"cut\.flac: .* that can be decoded are used"):
        result = patchout.embed(tiny, tmp_path / "cut.flac")
    assert 1000 < result.times_ms[-1] < 2000


@pytest.mark.parametrize(
    ("free_gib", "cached_gib", "tokens"), [(130, 0, 131_072), (10, 2, 24_576), (1, 0, 8192)]
)
def test_a_pass_on_a_gpu_is_as_large_as_its_memory_allows(
    free_gib: int, cached_gib: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torch has reserved and does not use is free too."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free_gib * 2**30, 0))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: (3 + cached_gib) * 2**30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 * 2**30)
    assert token_budget.tokens_per_batch(torch.device("cuda")) == tokens
    assert token_budget.tokens_per_batch(torch.device("cpu")) == 2048

"""Encoders for the benchmarks of others: mteb's own contract test, and the contract of X-ARES."""

import io
import re
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, noise, tone
from torch import Tensor, nn
from torch.utils.data import DataLoader

import patchout
from patchout.checkpoint.own import save
from patchout.hear import subject
from patchout.models.passt import Passt
from patchout.suites import xares

DOCS = (Path(__file__).parent.parent / "docs" / "suites.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
MODEL = "sounds-tiny"


class Loudness(nn.Module):
    """A HEAR model without weights: mean and peak of a sound at 16 kHz, every tenth of a second."""

    sample_rate, scene_embedding_size, timestamp_embedding_size = 16_000, 2, 1


@pytest.fixture
def loudness(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Importable as `their.loudness`; the shapes of the waves that it is called with."""
    shapes: list[tuple[int, ...]] = []

    def scene(wave: Tensor, model: nn.Module) -> Tensor:
        shapes.append(tuple(wave.shape))
        return torch.stack([wave.abs().mean(dim=1), wave.abs().amax(dim=1)], dim=1)

    def timestamp(wave: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
        times_ms = torch.arange(0, wave.shape[1], 1600) / 16
        return torch.ones(len(wave), len(times_ms), 1), times_ms.repeat(len(wave), 1)

    module = ModuleType("their.loudness")
    vars(module).update(load_model=Loudness, get_scene_embeddings=scene, get_timestamp_embeddings=timestamp)
    monkeypatch.setitem(sys.modules, "their", ModuleType("their"))
    monkeypatch.setitem(sys.modules, "their.loudness", module)
    return shapes


# -- mteb ----------------------------------------------------------------------------------------------------


@pytest.fixture
def suite() -> ModuleType:
    """The adapter; it takes some seconds to import mteb."""
    pytest.importorskip("mteb", reason="the extra mteb, on Python 3.11 or newer")
    return import_module("patchout.suites.mteb")


class Wav:
    """A stand-in for torchcodec's encoder and decoder, whose wheels want one build of torch and FFmpeg."""

    def __init__(self, source: Any, **options: object) -> None:
        self.metadata = SimpleNamespace()
        if isinstance(source, Tensor):
            self.data, self.sample_rate = source, int(options["sample_rate"])  # type: ignore[call-overload]
        else:
            wave, self.sample_rate = soundfile.read(io.BytesIO(source), dtype="float32", always_2d=True)
            self.data = torch.from_numpy(wave.T)

    def to_file_like(self, file: io.BytesIO, **options: object) -> None:
        soundfile.write(file, self.data.numpy().T, self.sample_rate, "FLOAT", format="WAV")

    def get_all_samples(self) -> "Wav":
        return self

    def get_samples_played_in_range(self, start_s: float, stop_s: float) -> "Wav":
        return self


@pytest.fixture
def codec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sounds in data sets, without torchcodec."""
    import datasets

    monkeypatch.setattr(datasets.config, "TORCHCODEC_AVAILABLE", True)
    monkeypatch.delitem(sys.modules, "datasets.features._torchcodec", raising=False)
    for name in ("torchcodec", "torchcodec.encoders", "torchcodec.decoders"):
        module = ModuleType(name)
        vars(module).update(AudioEncoder=Wav, AudioDecoder=Wav, VideoDecoder=type(None))
        monkeypatch.setitem(sys.modules, name, module)


def encode(encoder: Any, sounds: list[tuple[np.ndarray, int]], *, batch_size: int = 4) -> np.ndarray:
    """As a task of mteb calls it."""
    rows = [{"audio": {"array": wave, "sampling_rate": rate}, "label": 0} for wave, rate in sounds]
    inputs: DataLoader[Any] = DataLoader(rows, batch_size=batch_size)  # type: ignore[arg-type]
    return encoder.encode(inputs, task_metadata=None, hf_split="test", hf_subset="default")


@pytest.mark.slow
def test_mteb_accepts_the_encoder(suite: ModuleType, codec: None) -> None:
    """All seven tasks on sounds: mteb counts one that lacks a dependency as passed."""
    import mteb

    results = mteb.mock_run(suite.Encoder(MODEL))
    run = {name: result for name, result in results.items() if result is not None}
    assert len(run) == 7
    assert {name for name, result in run.items() if not hasattr(result, "scores")} == set(), run


@pytest.mark.slow
def test_embeddings_are_those_of_embed_in_their_order(suite: ModuleType, tmp_path: Path) -> None:
    """Of any rate, channels and length: a fraction of a patch, one pass, several passes."""
    stereo = np.stack([tone(0.7, rate=44_100), tone(0.7, 600, rate=44_100)])
    sounds = [(noise(25.0), RATE), (stereo, 44_100), (noise(0.01, 1), RATE), (tone(1.0, rate=16_000), 16_000)]
    rows = encode(suite.Encoder(MODEL, device="cpu"), [*sounds, sounds[0]], batch_size=2)
    model = patchout.load(MODEL, "cpu")
    alone = [patchout.embed(model, (wave, rate)).scene for wave, rate in sounds]
    assert rows == pytest.approx(np.stack([*alone, alone[0]]), rel=1e-3, abs=1e-3)


@pytest.mark.slow
def test_a_hear_module_gets_sounds_of_one_length_together(
    suite: ModuleType, loudness: list[tuple[int, ...]]
) -> None:
    sounds = [(tone(1.0), RATE), (tone(0.5), RATE), (np.zeros(RATE, np.float32), RATE)]
    encoder = suite.Encoder("their.loudness")
    rows = encode(encoder, sounds)
    assert sorted(loudness) == [(1, 8_000), (2, 16_000)]
    assert rows[:, 1] == pytest.approx([0.2, 0.2, 0.0], abs=0.01)
    assert encoder.mteb_model_meta.name == "their/loudness"
    assert encoder.mteb_model_meta.embed_dim == 2


@pytest.mark.slow
def test_the_metadata_says_what_the_checkpoint_knows(suite: ModuleType) -> None:
    meta = suite.Encoder(MODEL).mteb_model_meta
    assert (meta.name, meta.embed_dim) == ("patchout/sounds-tiny", 225)
    assert (meta.training_datasets, meta.license, meta.modalities) == ({"ESC50"}, "cc-by-sa-4.0", ["audio"])
    assert meta.n_parameters == sum(weight.numel() for weight in patchout.load(MODEL).parameters())
    changed = suite.Encoder("me/mine", model=MODEL, license="mit").mteb_model_meta
    assert (changed.name, changed.license, changed.revision) == ("me/mine", "mit", meta.revision)
    assert (
        meta.loader("me/mine", revision=meta.revision, **meta.loader_kwargs).mteb_model_meta.embed_dim == 225
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "licence", "tasks"),
    [
        ("passt-s-ap476", "apache-2.0", {"AudioSet", "AudioSetMini"}),
        ("esc50-passt-s-n-fold1", "apache-2.0", {"AudioSet", "AudioSetMini", "ESC50"}),
        ("fsd50k-passt-s-ap655", "apache-2.0", {"AudioSet", "AudioSetMini", "FSD50K"}),
        ("maskspec-base", "multiple", {"AudioSet", "AudioSetMini"}),
    ],
)
def test_the_tasks_that_a_model_has_seen_are_named(
    suite: ModuleType, name: str, licence: str, tasks: set[str]
) -> None:
    entry = suite.MODELS[name]
    assert suite._licence(entry.licence) == licence
    assert suite._training_tasks(entry.name, entry.score) == tasks


@pytest.mark.slow
def test_another_revision_and_a_path_as_a_name_are_refused(suite: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has the revision \w{40}, not abc"):
        suite.Encoder(MODEL, "abc")
    with pytest.raises(ValueError, match=r"Encoder\('OWNER/NAME', model='.+'\)"):
        suite.Encoder(str(tmp_path))


@pytest.mark.slow
def test_the_python_of_the_page_works(
    suite: ModuleType, codec: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """With the built-in model, and one of mteb's tasks on random sounds in the place of the benchmark's."""
    import mteb
    from mteb.mocks.mock_tasks import MockAudioClassification

    monkeypatch.chdir(tmp_path)
    original = mteb.get_benchmark
    benchmark = Mock(return_value=SimpleNamespace(tasks=[MockAudioClassification()]))
    monkeypatch.setattr(mteb, "get_benchmark", benchmark)
    for block in BLOCKS:
        exec(compile(block.replace("passt-s", MODEL), "suites.md", "exec"), {})
    assert "32000 225 50.0" in capfd.readouterr().out
    assert len(original(*benchmark.call_args.args).tasks) == 19
    assert [*(tmp_path / "maeb").rglob("MockAudioClassification.json")]


def test_without_mteb_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("mteb.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.delitem(sys.modules, "patchout.suites.mteb", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'patchout\[mteb\]'"):
        import_module("patchout.suites.mteb")


# -- X-ARES --------------------------------------------------------------------------------------------------


@pytest.fixture
def encoder(tiny: Passt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> xares.PatchoutEncoder:
    save(tiny, tmp_path / "tiny.safetensors")
    monkeypatch.setattr(xares.PatchoutEncoder, "source", str(tmp_path / "tiny.safetensors"))
    return xares.PatchoutEncoder()


def test_the_module_has_one_class_that_is_an_encoder() -> None:
    assert [name for name in vars(xares) if name.endswith("Encoder")] == ["PatchoutEncoder"]


def test_xares_gets_a_track_of_embeddings_from_two_sounds(
    encoder: xares.PatchoutEncoder, tiny: Passt
) -> None:
    audio = torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0))
    values = encoder(audio)
    assert (encoder.sampling_rate, encoder.hop_size_in_ms) == (32_000, 50.0)
    assert values.shape == (2, 32, encoder.output_dim)
    alone = patchout.embed(tiny, (audio[1].numpy(), RATE)).timestamps
    assert values[1].numpy() == pytest.approx(alone, rel=1e-3, abs=1e-3)


def test_a_piece_shorter_than_a_patch_has_an_embedding(encoder: xares.PatchoutEncoder) -> None:
    values = encoder(torch.zeros(3, 100))
    assert values.shape == (3, 1, encoder.output_dim)
    assert bool(torch.isfinite(values).all())


def test_long_sounds_run_one_after_the_other(
    encoder: xares.PatchoutEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = torch.from_numpy(np.stack([noise(0.5, seed) for seed in range(3)]))
    together = encoder(audio)
    monkeypatch.setattr(xares, "MAX_SAMPLES", 20_000)
    timestamps = Mock(wraps=subject.timestamps)
    monkeypatch.setattr(xares, "timestamps", timestamps)
    assert encoder(audio).numpy() == pytest.approx(together.numpy(), rel=1e-3, abs=1e-3)
    assert [len(call.args[1]) for call in timestamps.call_args_list] == [1, 1, 1]


@pytest.mark.slow
def test_ten_minutes_are_allowed(encoder: xares.PatchoutEncoder) -> None:
    values = encoder(torch.from_numpy(noise(600.0))[None])
    assert values.shape == (1, 12_001, encoder.output_dim)


def test_any_hear_module_is_an_encoder(loudness: list[tuple[int, ...]]) -> None:
    class TheirEncoder(xares.PatchoutEncoder):
        source = "their.loudness"

    encoder = TheirEncoder()
    assert (encoder.sampling_rate, encoder.output_dim) == (16_000, 1)
    assert encoder.hop_size_in_ms == pytest.approx(100.0)
    assert encoder(torch.zeros(2, 4_800)).shape == (2, 3, 1)

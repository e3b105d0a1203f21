"""The HEAR modules: what the public validator checks, what a preset means, what is refused."""

import subprocess
import sys
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import noise, tiny_config
from torch import Tensor, nn

import patchout.hear
from patchout.audio.mel import MelConfig
from patchout.checkpoint import zoo
from patchout.checkpoint.own import export_passt, save
from patchout.hear import api
from patchout.hear.settings import Settings, settings_of
from patchout.hear.subject import open_subject
from patchout.inference.embedding import EmbedConfig
from patchout.models.passt import Passt

PRESETS = sorted(api.PRESETS)
PUBLISHED = {  # timestamp sizes with PaSST-S, of the modes all, embed_only, logits; scene sizes
    "base": ((1295, 768, 527), (1295, 768, 527)),
    "base2level": ((2590, 1536, 1054), (1295, 768, 527)),
    "base2levelmel": ((3358, 2304, 1822), (1295, 768, 527)),
    **{f"hop{hop}base": ((1295, 768, 527), (1295, 768, 527)) for hop in (100, 160)},
    **{f"hop{hop}base2lvl": ((2590, 1536, 1054), (1295, 768, 527)) for hop in (100, 160)},
    **{f"hop{hop}base2lvlmel": ((3358, 2304, 1822), (1295, 768, 527)) for hop in (100, 160)},
    "base20sec": ((1295, 768, 527), (1295, 768, 527)),
    "base30sec": ((1295, 768, 527), (1295, 768, 527)),
    "openmic2008": ((788, 768, 20), (788, 768, 20)),
    "best": ((2304, 2304, 768), (896, 896, 128)),
}


def module(name: str) -> ModuleType:
    return import_module(f"patchout.hear.{name}")


@cache
def small_model(hop: int, seconds: float = 1.05, classes: int = 3) -> Passt:
    """One block at any STFT hop, for clips of up to so many seconds."""
    mel = MelConfig(hop_length=hop)
    columns = (mel.num_frames(round(seconds * 32_000)) - 16) // 10 + 1
    config = tiny_config(mel=mel, columns=columns, depth=1, labels=tuple(map(str, range(classes))))
    return Passt(config, rng=torch.Generator().manual_seed(0)).eval()


def hop_of(name: str) -> int:
    return zoo.MODELS[api.PRESETS[name].zoo_name].hop_length


@pytest.fixture
def model_file(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A small model that fits the preset `name`."""
    name = request.node.callspec.params.get("name", "base") if hasattr(request.node, "callspec") else "base"
    long_s, classes = (
        {"base20sec": 20.0, "base30sec": 30.0}.get(name, 1.05),
        20 if name == "openmic2008" else 3,
    )
    save(small_model(hop_of(name), long_s, classes), tmp_path / "small.safetensors")
    return str(tmp_path / "small.safetensors")


# -- the public validator, rule by rule ----------------------------------------------------------------------


def validate(hear: Any, model_file_path: str) -> list[str]:
    """What hear-validator 2021.0.6 calls errors raises an AssertionError;
    what it calls warnings is returned.
    """
    model = hear.load_model(model_file_path) if model_file_path else hear.load_model()
    assert isinstance(model, nn.Module), "load_model gives no torch Module"
    assert model.sample_rate in (16_000, 22_050, 32_000, 44_100, 48_000), "sample rate"
    assert isinstance(model.scene_embedding_size, int), "scene_embedding_size is no int"
    assert isinstance(model.timestamp_embedding_size, int), "timestamp_embedding_size is no int"
    rng = torch.Generator().manual_seed(0)
    warnings = []
    for seconds in (1.07, 1.98, 4.0):
        audio = 2 * torch.rand(2, int(seconds * model.sample_rate), generator=rng) - 1
        values, times_ms = hear.get_timestamp_embeddings(audio, model)
        warnings += check_timestamps(values, times_ms, model.timestamp_embedding_size, 1000 * seconds)
    scenes = hear.get_scene_embeddings(
        2 * torch.rand(4, int(2.74 * model.sample_rate), generator=rng) - 1, model
    )
    assert scenes.dtype == torch.float32, "scene dtype"
    assert scenes.shape == (4, model.scene_embedding_size), "scene shape"
    return warnings


def check_timestamps(values: Tensor, times_ms: Tensor, size: int, length_ms: float) -> list[str]:
    assert values.dtype == torch.float32, "timestamp dtype"
    assert values.ndim == 3, "timestamp embeddings are not 3-D"
    assert times_ms.ndim == 2, "timestamps are not 2-D"
    assert len(values) == 2, "sounds"
    assert values.shape[:2] == times_ms.shape, "embeddings and timestamps differ"
    assert values.shape[2] == size, "timestamp_embedding_size"
    if times_ms.shape[1] < 2:
        return []
    gaps = times_ms.diff(dim=1)
    mean, last = float(gaps.mean()), float(times_ms[:, -1].max())
    assert float((gaps - mean).abs().max()) <= 1, "gaps differ by more than 1 ms"
    assert last <= length_ms, "a timestamp after the end"
    told = {
        "gap over 50 ms": float(gaps.max()) > 50,
        "starts late": float(times_ms[:, 0].max()) > mean,
        "ends early": float(times_ms[:, -1].min()) < length_ms - min(mean, 50),
    }
    return [warning for warning, is_so in told.items() if is_so]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_passes_the_public_validator(name: str, model_file: str) -> None:
    assert validate(module(name), model_file) == []


def test_the_package_itself_is_base(model_file: str) -> None:
    assert validate(patchout.hear, model_file) == []
    ours, base = patchout.hear.load_model(model_file), module("base").load_model(model_file)
    assert ours.embedder.config == base.embedder.config == EmbedConfig()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_rate": 8000}, "sample rate"),
        ({"scene_embedding_size": np.int64(8)}, "scene_embedding_size is no int"),
        ({"timestamp_embedding_size": 5}, "timestamp_embedding_size"),
        ({"scene_embedding_size": 5}, "scene shape"),
    ],
)
def test_the_rebuilt_validator_finds_faults(changes: dict[str, Any], message: str, model_file: str) -> None:
    base = module("base")

    def load_model(path: str) -> nn.Module:
        model = base.load_model(path)
        for name, value in changes.items():
            setattr(model, name, value)
        return model

    broken = SimpleNamespace(**(vars(base) | {"load_model": load_model}))
    with pytest.raises(AssertionError, match=message):
        validate(broken, model_file)


def test_the_rebuilt_validator_finds_wrong_times() -> None:
    values, times_ms = torch.zeros(2, 3, 8), torch.tensor([[0.0, 50.0, 100.0]]).expand(2, -1)
    assert check_timestamps(values, times_ms, 8, 120.0) == []
    assert check_timestamps(values, 2 * times_ms + 110, 8, 400.0) == [
        "gap over 50 ms",
        "starts late",
        "ends early",
    ]
    for wrong_ms in (torch.tensor([[0.0, 50.0, 103.0]]).expand(2, -1), times_ms + 21):
        with pytest.raises(AssertionError):
            check_timestamps(values, wrong_ms, 8, 120.0)


# -- presets -------------------------------------------------------------------------------------------------


def test_names_are_frozen() -> None:
    assert sorted(PUBLISHED) == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_sizes_are_the_published_ones_in_every_mode(name: str) -> None:
    preset = api.PRESETS[name]
    labels = tuple(map(str, range(20 if name == "openmic2008" else 527)))
    model = replace(tiny_config(), labels=labels, width=768, heads=12, mel=MelConfig(hop_length=hop_of(name)))
    configs = [preset.config.in_mode(mode) for mode in ("all", "embed_only", "logits")]
    sizes = (
        tuple(config.timestamp_size(model) for config in configs),
        tuple(c.scene_size(model) for c in configs),
    )
    assert sizes == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("base", (160.0,)),
        ("base2level", (160.0, 800.0)),
        ("base2levelmel", (160.0, 640.0)),
        ("hop160base2lvl", (160.0, 800.0)),
        ("hop100base2lvlmel", (160.0, 800.0)),
        ("best", (160.0, 640.0)),
    ],
)
def test_the_second_field_is_640_or_800_ms(name: str, fields: tuple[float, ...]) -> None:
    assert api.PRESETS[name].config.fields_ms == fields


@pytest.mark.parametrize("name", PRESETS)
def test_without_a_file_the_published_model_of_the_zoo_is_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(name_or_path: str, *, hop_length: int) -> Passt:
        assert hop_length == hop_of(name)
        asked.append(name_or_path)
        return small_model(hop_of(name))

    monkeypatch.setattr(api, "load", load)
    model = module(name).load_model()
    assert asked == [api.PRESETS[name].zoo_name]
    assert asked[0] in zoo.MODELS
    assert not model.training


@pytest.mark.parametrize(
    ("name", "zoo_name"),
    [
        ("base", "passt-s-ap476"),
        ("hop160base", "passt-s-hop160-ap473"),
        ("hop100base2lvlmel", "passt-s-hop100-ap473"),
        ("base20sec", "passt-s-20sec-ap474"),
        ("base30sec", "passt-s-30sec-ap473"),
        ("openmic2008", "openmic-passt-s-ap85"),
        ("best", "passt-s-hop160-ap473"),
    ],
)
def test_a_preset_means_its_published_model(name: str, zoo_name: str) -> None:
    assert api.PRESETS[name].zoo_name == zoo_name


@pytest.mark.parametrize(("name", "seconds"), [("base", 10.0), ("base20sec", 20.0), ("base30sec", 30.0)])
def test_scenes_up_to_the_presets_window_are_one_pass(name: str, seconds: float) -> None:
    long_model = Passt(tiny_config(columns=301)).eval()
    model = api.HearModel(long_model, api.PRESETS[name].config)
    assert model.embedder.scene_window == seconds * 32_000
    assert model.embedder.scene_hop == {"base": 80_000, "base20sec": 160_000, "base30sec": 320_000}[name]


@pytest.mark.slow
def test_modules_can_be_imported_in_every_way() -> None:
    code = (
        "import importlib; a = importlib.import_module('patchout.hear.base2level');"
        "import patchout.hear.base2level as b; from patchout.hear import base2level as c;"
        "from patchout.hear.base2level import load_model;"
        "assert a is b is c; assert a.load_model is load_model"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_module_is_imported_when_it_is_asked_for() -> None:
    assert patchout.hear.base2levelmel is module("base2levelmel")
    with pytest.raises(AttributeError, match="no attribute 'base3level'"):
        _ = patchout.hear.base3level


@pytest.mark.parametrize(
    ("name", "hop", "seconds", "wanted", "fits"),
    [
        ("hop160base", 320, 1.05, "log-mel frames every 5 ms, not 10 as ", "base, base2level, base2levelmel"),
        (
            "base2level",
            160,
            1.05,
            "log-mel frames every 10 ms, not 5 as ",
            "hop160base, hop160base2lvl, hop160base2lvl",
        ),
        ("best", 100, 1.05, "log-mel frames every 5 ms, not 3.125 as ", "hop100base, hop100base2lvl"),
        (
            "base20sec",
            320,
            10.0,
            "passes of 20 s, not of 10.05 at most as ",
            "base, base2level, base2levelmel",
        ),
        ("base30sec", 320, 20.0, "passes of 30 s, ", "base, base2level, base2levelmel, base20sec"),
        ("openmic2008", 320, 10.0, "20 classes, not 3 as ", "base, base2level, base2levelmel"),
    ],
)
def test_a_preset_of_another_front_end_is_refused(
    name: str, hop: int, seconds: float, wanted: str, fits: str, tmp_path: Path
) -> None:
    """Taken, it would equal `base` bit for bit and pass for the module that it names."""
    path = tmp_path / "own.safetensors"
    save(small_model(hop, seconds), path)
    for take in (module(name).load_model, lambda path: open_subject(path, config=EmbedConfig(), preset=name)):
        with pytest.raises(ValueError, match=f"preset {name} is for a model with {wanted}") as error:
            take(str(path))
        assert f"such as {api.PRESETS[name].zoo_name}, or a preset that fits {path}: {fits}" in str(
            error.value
        )


def test_presets_fit_by_hop_and_length_whatever_a_model_is_called() -> None:
    long_model = small_model(320, 30.0).config
    assert [name for name, preset in api.PRESETS.items() if not preset.misfit(long_model)] == [
        *("base", "base2level", "base2levelmel", "base20sec", "base30sec")
    ]


def test_a_public_file_is_read_at_the_hop_of_its_preset(tmp_path: Path) -> None:
    torch.save(export_passt(Passt(tiny_config(width=64, heads=1, depth=1))), tmp_path / "own.pt")
    subject = open_subject(str(tmp_path / "own.pt"), config=EmbedConfig(), preset="hop160base")
    assert settings_of(subject.model) == Settings(EmbedConfig(), mel_hop_ms=5.0)


@pytest.mark.slow
def test_modes_take_parts_away(model_file: str) -> None:
    base = module("base2levelmel")
    audio = torch.from_numpy(noise(0.8))[None]
    values = {}
    for mode in ("all", "embed_only", "logits"):
        model = base.load_model(model_file, mode=mode)
        values[mode] = base.get_timestamp_embeddings(audio, model)[0][0]
        assert values[mode].shape[1] == model.timestamp_embedding_size
        assert base.get_scene_embeddings(audio, model).shape == (1, model.scene_embedding_size)
    high, mid, wide_high, wide_mid, low = values["all"].split([3, 32, 3, 32, 768], dim=1)
    torch.testing.assert_close(values["embed_only"], torch.cat([mid, wide_mid, low], dim=1))
    torch.testing.assert_close(values["logits"], torch.cat([high, wide_high, low], dim=1))


def test_a_public_weight_file_is_taken(tmp_path: Path) -> None:
    wide = Passt(
        tiny_config(width=64, heads=1, depth=1), rng=torch.Generator().manual_seed(0)
    )  # public heads are 64 wide
    torch.save(export_passt(wide), tmp_path / "public.pt")
    for name, hop in (
        ("base", 320),
        ("hop160base", 160),
        ("hop100base", 100),
    ):  # the name of the file says nothing
        model = module(name).load_model(str(tmp_path / "public.pt"))
        assert model.model.config.mel.hop_length == hop
        assert model.scene_embedding_size == 3 + 64


# -- audio ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 320, 2560, 33_600, 33_601, 70_000])
@pytest.mark.parametrize("sounds", [1, 3])
def test_any_batch_and_length(sounds: int, samples: int, model_file: str) -> None:
    hear = module("base2levelmel")
    model = hear.load_model(model_file)
    audio = torch.from_numpy(np.stack([noise(samples / 32_000, seed) for seed in range(sounds)]))
    scenes = hear.get_scene_embeddings(audio, model)
    values, times_ms = hear.get_timestamp_embeddings(audio, model)
    assert scenes.shape == (sounds, model.scene_embedding_size)
    assert values.shape == (sounds, samples // 1600 + 1, model.timestamp_embedding_size)
    assert {scenes.dtype, values.dtype, times_ms.dtype} == {torch.float32}
    assert bool(scenes.isfinite().all())
    assert bool(values.isfinite().all())


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (
            torch.zeros(1, 32_000, dtype=torch.int16),
            "float32 tensor within -1 ... 1, got torch.int16: convert it",
        ),
        (torch.zeros(1, 32_000, dtype=torch.float64), "got torch.float64"),
        (np.zeros((1, 32_000), np.float32), "got ndarray"),
        (torch.zeros(32_000), r"\(sounds, samples\), got \(32000,\): use clip\[None\]"),
        (torch.zeros(1, 2, 32_000), r"got \(1, 2, 32000\)"),
        (torch.zeros(1, 0), r"got \(1, 0\)"),
        (torch.zeros(0, 32_000), r"got \(0, 32000\)"),
        (torch.full((1, 32_000), float("nan")), "NaN or infinite samples"),
        (torch.full((1, 32_000), float("inf")), "NaN or infinite samples"),
    ],
)
def test_what_the_rules_do_not_allow_is_refused_in_words(
    audio: Any, message: str, model_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # users have no type checks
    hear = module("base")
    model = hear.load_model(model_file)
    for get in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
        with pytest.raises(ValueError, match=message):
            get(audio, model)


# -- fusions -------------------------------------------------------------------------------------------------


def foreign(name: str, *, rate: int = 32_000, hop_ms: float = 50.0) -> ModuleType:
    """Someone else's HEAR module: one number a time."""
    made = ModuleType(name)

    def load_model(model_file_path: str = "") -> nn.Module:
        model = nn.Identity()
        model.sample_rate, model.scene_embedding_size, model.timestamp_embedding_size = rate, 1, 1  # type: ignore[assignment]
        return model

    def timestamps(audio: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
        times_ms = torch.arange(0, 1000 * audio.shape[1] / rate + 1, hop_ms).expand(len(audio), -1)
        return torch.full((*times_ms.shape, 1), 7.0), times_ms

    made.__dict__.update(
        load_model=load_model,
        get_scene_embeddings=lambda audio, model: torch.full((len(audio), 1), 7.0),
        get_timestamp_embeddings=timestamps,
    )
    return made


@pytest.mark.slow
def test_a_fusion_concatenates_its_members(model_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "load", lambda name, **_: small_model(320))
    monkeypatch.setitem(sys.modules, "theirs", foreign("theirs"))
    fused = api.fuse("patchout.hear.base2level", "theirs", "patchout.hear.base")
    assert validate(fused, "") == []
    model = fused.load_model()
    audio = torch.from_numpy(noise(1.0))[None]
    one, two = (module(name) for name in ("base2level", "base"))
    values, times_ms = fused.get_timestamp_embeddings(audio, model)
    first, first_ms = one.get_timestamp_embeddings(audio, one.load_model())
    last, _ = two.get_timestamp_embeddings(audio, two.load_model())
    torch.testing.assert_close(values, torch.cat([first, torch.full((1, 21, 1), 7.0), last], dim=-1))
    torch.testing.assert_close(times_ms, first_ms)
    scenes = fused.get_scene_embeddings(audio, model)
    assert scenes.shape == (1, model.scene_embedding_size) == (1, 35 + 1 + 35)
    assert float(scenes[0, 35]) == 7.0


def test_members_at_different_rates_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "load", lambda name, **_: small_model(320))
    monkeypatch.setitem(sys.modules, "theirs", foreign("theirs", rate=16_000))
    with pytest.raises(ValueError, match=r"different sample rates cannot be fused: \[16000, 32000\] Hz"):
        api.fuse("patchout.hear.base", "theirs").load_model()


@pytest.mark.parametrize("hop_ms", [20.0, 47.7])
def test_members_with_different_times_are_refused(hop_ms: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "load", lambda name, **_: small_model(320))
    monkeypatch.setitem(sys.modules, "theirs", foreign("theirs", hop_ms=hop_ms))
    fused = api.fuse("patchout.hear.base", "theirs")
    with pytest.raises(
        ValueError, match=r"patchout\.hear\.base\+theirs: the timestamps of its members differ"
    ):
        fused.get_timestamp_embeddings(torch.zeros(1, 32_000), fused.load_model())


def test_a_fusion_of_nothing_and_a_file_for_all_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one HEAR module"):
        api.fuse()
    with pytest.raises(ValueError, match="leave model_file_path empty"):
        api.fuse("patchout.hear.base").load_model("model.pt")

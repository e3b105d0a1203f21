"""The HEAR API, and the published modules of PaSST as presets ("Learning General Audio Representations with Large-Scale
Training of Patchout Audio Transformers", sections 3 and 4).
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchout.embedding import EmbedConfig, Embedder, Mode
from patchout.tagger import Tagger
from patchout.zoo import load


@dataclass(frozen=True)
class Preset:
    """A published HEAR module: the model of the zoo that it means, and what it embeds."""

    about: str
    zoo_name: str
    config: EmbedConfig


_BASE = EmbedConfig()
_TWO = EmbedConfig(fields_ms=(160.0, 800.0))
_TWO_MEL = EmbedConfig(levels=("high", "mid", "low"), fields_ms=(160.0, 800.0))
_SIZES = {"160": "passt-s-hop160-ap473", "100": "passt-s-hop100-ap473"}

PRESETS: dict[str, Preset] = {
    "base": Preset("160 ms", "passt-s-ap476", _BASE),
    "base2level": Preset("160 and 800 ms", "passt-s-ap476", _TWO),
    "base2levelmel": Preset(  # the one whose second field is 640 ms
        "160 and 640 ms and the log-mel",
        "passt-s-ap476",
        EmbedConfig(levels=("high", "mid", "low"), fields_ms=(160.0, 640.0)),
    ),
    **{f"hop{hop}base": Preset(f"160 ms, STFT hop {hop}", name, _BASE) for hop, name in _SIZES.items()},
    **{f"hop{hop}base2lvl": Preset(f"160 and 800 ms, STFT hop {hop}", name, _TWO) for hop, name in _SIZES.items()},
    **{
        f"hop{hop}base2lvlmel": Preset(f"160 and 800 ms and the log-mel, STFT hop {hop}", name, _TWO_MEL)
        for hop, name in _SIZES.items()
    },
    "base20sec": Preset(
        "160 ms; scenes of 20 s", "passt-s-20sec-ap474", EmbedConfig(scene_window_ms=20_000.0, scene_hop_ms=5_000.0)
    ),
    "base30sec": Preset(
        "160 ms; scenes of 30 s", "passt-s-30sec-ap473", EmbedConfig(scene_window_ms=30_000.0, scene_hop_ms=10_000.0)
    ),
    "openmic2008": Preset("160 ms, trained on OpenMIC", "openmic-passt-s-ap85", _BASE),
    "best": Preset(  # the paper's best setting, "L+M 2RF hop=5ms"
        "log-mel, then the tokens at 160 and 640 ms, STFT hop 160",
        _SIZES["160"],
        EmbedConfig(levels=("low", "mid"), scene_levels=("low", "mid"), fields_ms=(160.0, 640.0)),
    ),
}


class HearModel(nn.Module):
    """A model with the attributes that the HEAR rules ask for; in evaluation mode."""

    sample_rate: int
    scene_embedding_size: int
    timestamp_embedding_size: int

    def __init__(self, model: Tagger, config: EmbedConfig) -> None:
        super().__init__()
        self.model = model
        self.embedder = Embedder(model, config)
        self.sample_rate = model.config.mel.sample_rate
        self.scene_embedding_size = config.scene_size(model.config)
        self.timestamp_embedding_size = config.timestamp_size(model.config)
        self.eval()


def make_loader(preset: Preset) -> Callable[..., HearModel]:
    """The `load_model` of a preset."""

    def load_model(model_file_path: str = "", mode: Mode = "all") -> HearModel:
        """A HEAR model from one of our files, a public PaSST `.pt`, or nothing (the published model, downloaded once).

        Mode: "all", "embed_only" (without logits) or "logits" (without embeddings); the size attributes follow it.
        """
        return HearModel(load(model_file_path or preset.zoo_name), preset.config.in_mode(mode))

    return load_model


def get_scene_embeddings(audio: Float[Tensor, "sound sample"], model: HearModel) -> Float[Tensor, "sound value"]:
    """One embedding a sound: (sounds, samples) at the model's rate -> (sounds, scene_embedding_size), any length."""
    check_audio(audio)
    return model.embedder.scenes(audio).to(audio.device)


def get_timestamp_embeddings(
    audio: Float[Tensor, "sound sample"], model: HearModel
) -> tuple[Float[Tensor, "sound time value"], Float[Tensor, "sound time"]]:
    """An embedding every 50 ms: (sounds, samples) -> (sounds, times, timestamp_embedding_size) and centres in ms."""
    check_audio(audio)
    values, times_ms = model.embedder.timestamps(audio)
    return values.to(audio.device), times_ms.to(audio.device)


def check_audio(audio: Tensor) -> None:
    """Refuse what the HEAR rules do not allow, in a sentence."""
    if not isinstance(audio, Tensor) or audio.dtype != torch.float32:
        kind = str(audio.dtype) if isinstance(audio, Tensor) else type(audio).__name__
        raise ValueError(f"HEAR audio is a float32 tensor within -1 ... 1, got {kind}: divide int16 samples by 32768")
    if audio.ndim != 2 or 0 in audio.shape:
        raise ValueError(f"HEAR audio has the shape (sounds, samples), got {tuple(audio.shape)}: use clip[None]")
    if not bool(torch.isfinite(audio).all()):
        raise ValueError("HEAR audio has NaN or infinite samples: look at the clips")


class FusedModel(nn.Module):
    """Several HEAR models side by side."""

    def __init__(self, modules: list[ModuleType], models: list[nn.Module]) -> None:
        super().__init__()
        rates = {_number(model, "sample_rate") for model in models}
        if len(rates) > 1:
            raise ValueError(f"models at different sample rates cannot be fused: {sorted(rates)} Hz")
        self.modules_ = modules
        self.models = nn.ModuleList(models)
        self.sample_rate = rates.pop()
        self.scene_embedding_size = sum(_number(model, "scene_embedding_size") for model in models)
        self.timestamp_embedding_size = sum(_number(model, "timestamp_embedding_size") for model in models)


def _number(model: nn.Module, name: str) -> int:
    number = getattr(model, name)
    assert isinstance(number, int)  # a HEAR rule
    return number


def fuse(*names: str) -> ModuleType:
    """Concatenate HEAR modules, ours or anyone's, into one, as the challenge's fusions did.

    Their timestamps must be the same; `load_model` takes no file.
    """
    if not names:
        raise ValueError("a fusion needs at least one HEAR module: give names such as patchout.hear.base")
    modules = [import_module(name) for name in names]
    fused = ModuleType("+".join(names), f"HEAR modules {', '.join(names)}, concatenated.")

    def load_model(model_file_path: str = "") -> FusedModel:
        if model_file_path:
            raise ValueError("a fusion loads its members' own models: leave model_file_path empty")
        return FusedModel(modules, [module.load_model() for module in modules])

    def scene(audio: Tensor, model: FusedModel) -> Tensor:
        pairs = zip(model.modules_, model.models, strict=True)
        return torch.cat([module.get_scene_embeddings(audio, member) for module, member in pairs], dim=-1)

    def timestamp(audio: Tensor, model: FusedModel) -> tuple[Tensor, Tensor]:
        pairs = zip(model.modules_, model.models, strict=True)
        values, times = zip(*(module.get_timestamp_embeddings(audio, member) for module, member in pairs), strict=True)
        if any(other.shape != times[0].shape or bool((other - times[0]).abs().max() > 1) for other in times):
            raise ValueError(f"{fused.__name__}: the timestamps of its members differ and cannot be concatenated")
        return torch.cat(values, dim=-1), times[0]

    fused.__dict__.update(load_model=load_model, get_scene_embeddings=scene, get_timestamp_embeddings=timestamp)
    return fused

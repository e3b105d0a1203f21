"""The HEAR API, and the published PaSST modules as presets.

Sections 3 and 4 of "Learning General Audio Representations with Large-Scale Training of Patchout Audio
Transformers".
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchout.audio.mel import MelConfig
from patchout.audio.pcm import too_loud
from patchout.audio.stream import AudioWarning
from patchout.checkpoint.labels import label_names
from patchout.checkpoint.zoo import load
from patchout.checkpoint.zoo_list import MODELS
from patchout.errors import near
from patchout.inference.embedding import EmbedConfig, Embedder, Level, Mode
from patchout.models.device import Precision
from patchout.models.tagger import Tagger, TaggerConfig

Audio = Float[Tensor, "sound sample"]


@dataclass(frozen=True)
class Preset:
    """A published HEAR module: a model of the zoo, and the settings of its embeddings."""

    zoo_name: str
    config: EmbedConfig

    @property
    def hop_length(self) -> int:
        """STFT hop of the model in samples at 32 kHz."""
        return MODELS[self.zoo_name].hop_length

    @property
    def mel_hop_ms(self) -> float:
        """STFT hop of the model in ms."""
        return 1000 * self.hop_length / MelConfig.sample_rate

    def misfit(self, model: TaggerConfig) -> str:
        """The property that this preset needs and the model lacks, in words; empty if the model fits.

        Compared are the STFT hop, the input length (if the scene window is longer than the default of ten
        seconds) and the number of classes (if they are not AudioSet's).
        """
        hop_ms, longest_ms = mel_hop_ms(model), 1000 * model.max_samples / model.mel.sample_rate
        window_ms, classes = self.config.scene_window_ms, MODELS[self.zoo_name].labels
        if not math.isclose(self.mel_hop_ms, hop_ms):
            return f"log-mel frames every {self.mel_hop_ms:g} ms, not {hop_ms:g}"
        if window_ms > max(longest_ms, EmbedConfig.scene_window_ms):
            return f"passes of {window_ms / 1000:g} s, not of {longest_ms / 1000:.4g} at most"
        if classes != "audioset" and len(model.labels) != len(label_names(classes)):
            return f"{len(label_names(classes))} classes, not {len(model.labels)}"
        return ""


def mel_hop_ms(model: TaggerConfig) -> float:
    """STFT hop of a model in ms."""
    return 1000 * model.mel.hop_length / model.mel.sample_rate


_BASE = EmbedConfig()
_TWO = EmbedConfig(fields_ms=(160.0, 800.0))
_TWO_MEL = replace(_TWO, levels=("high", "mid", "low"))
_BEST = replace(_TWO, levels=("low", "mid"), scene_levels=("low", "mid"), fields_ms=(160.0, 640.0))
_HOPS = {"160": "passt-s-hop160-ap473", "100": "passt-s-hop100-ap473"}

PRESETS: dict[str, Preset] = {
    "base": Preset("passt-s-ap476", _BASE),
    "base2level": Preset("passt-s-ap476", _TWO),
    "base2levelmel": Preset("passt-s-ap476", replace(_TWO_MEL, fields_ms=(160.0, 640.0))),  # 640 here alone
    **{f"hop{hop}base": Preset(name, _BASE) for hop, name in _HOPS.items()},
    **{f"hop{hop}base2lvl": Preset(name, _TWO) for hop, name in _HOPS.items()},
    **{f"hop{hop}base2lvlmel": Preset(name, _TWO_MEL) for hop, name in _HOPS.items()},
    "base20sec": Preset("passt-s-20sec-ap474", EmbedConfig(scene_window_ms=20_000.0, scene_hop_ms=5_000.0)),
    "base30sec": Preset("passt-s-30sec-ap473", EmbedConfig(scene_window_ms=30_000.0, scene_hop_ms=10_000.0)),
    "openmic2008": Preset("openmic-passt-s-ap85", _BASE),
    "best": Preset(_HOPS["160"], _BEST),  # "L+M 2RF hop=5ms" of the paper
}


def embed_config(
    preset: str, levels: tuple[Level, ...], fields_ms: tuple[float, ...], *, plain: EmbedConfig
) -> EmbedConfig:
    """Embedding settings of a preset (unnamed: `plain`), with `levels` and `fields_ms` replaced if given."""
    if preset and preset not in PRESETS:
        raise ValueError(f"no preset {preset!r}{near(preset, PRESETS)}: presets are {', '.join(PRESETS)}")
    config = PRESETS[preset].config if preset else plain
    if levels:
        config = replace(config, levels=levels, scene_levels=levels)
    return replace(config, fields_ms=fields_ms) if fields_ms else config


def check_preset(preset: str, name: str, model: TaggerConfig) -> None:
    """Refuse (ValueError) a preset for a model with another front end, input length or set of classes."""
    if reason := PRESETS[preset].misfit(model):
        fitting = ", ".join(name for name, preset in PRESETS.items() if not preset.misfit(model)) or "none"
        todo = f"give one such as {PRESETS[preset].zoo_name}, or a preset that fits {name}: {fitting}"
        raise ValueError(f"the preset {preset} is for a model with {reason} as {name} has: {todo}")


class HearModel(nn.Module):
    """A model with the attributes that the HEAR API asks for; in evaluation mode."""

    sample_rate: int
    scene_embedding_size: int
    timestamp_embedding_size: int

    def __init__(self, model: Tagger, config: EmbedConfig, *, precision: Precision = "fp32") -> None:
        super().__init__()
        self.model = model
        self.embedder = Embedder(model, config, precision=precision)
        self.sample_rate = model.config.mel.sample_rate
        self.scene_embedding_size = config.scene_size(model.config)
        self.timestamp_embedding_size = config.timestamp_size(model.config)
        self.eval()


def get_scene_embeddings(audio: Audio, model: HearModel) -> Float[Tensor, "sound value"]:
    """One embedding a sound: (sounds, samples) at the model's rate -> (sounds, scene_embedding_size)."""
    check_audio(audio)
    return model.embedder.scenes(audio).to(audio.device)


def get_timestamp_embeddings(
    audio: Audio, model: HearModel
) -> tuple[Float[Tensor, "sound time value"], Float[Tensor, "sound time"]]:
    """Embeddings every 50 ms: (sounds, samples) -> (sounds, times, timestamp_embedding_size), times in ms."""
    check_audio(audio)
    values, times_ms = model.embedder.timestamps(audio)
    return values.to(audio.device), times_ms.to(audio.device)


def published(
    module: str,
) -> tuple[Callable[..., HearModel], Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]]]:
    """The three functions of the HEAR API for a published module, whose name ends in that of a preset."""
    name = module.rpartition(".")[2]
    preset = PRESETS[name]

    def load_model(model_file_path: str = "", mode: Mode = "all") -> HearModel:
        """Load a HEAR model from one of our files, a public PaSST `.pt`, or by default the published weights.

        A `.pt` that the zoo does not know by name is read at this module's hop; our files bring their own.
        Mode: "all", "embed_only" (no logits) or "logits" (no embeddings); the size attributes follow it.
        ValueError: the file's model has another hop, input length or set of classes than this module.
        """
        model = load(model_file_path or preset.zoo_name, hop_length=preset.hop_length)
        if model_file_path:
            check_preset(name, str(model_file_path), model.config)
        return HearModel(model, preset.config.in_mode(mode))

    return load_model, get_scene_embeddings, get_timestamp_embeddings


def check_audio(audio: Tensor) -> None:
    """Refuse (ValueError) audio that the HEAR API does not allow; warn of samples far above full scale."""
    if not isinstance(audio, Tensor) or audio.dtype != torch.float32:
        kind = str(audio.dtype) if isinstance(audio, Tensor) else type(audio).__name__
        wrong = f"is a float32 tensor within -1 ... 1, got {kind}: convert it (int16: divided by 32768)"
        raise ValueError(f"HEAR audio {wrong}")
    if audio.ndim != 2 or 0 in audio.shape:
        shape = tuple(audio.shape)
        raise ValueError(f"HEAR audio has the shape (sounds, samples), got {shape}: use clip[None]")
    peak = float(audio.abs().max())
    if not math.isfinite(peak):
        raise ValueError("HEAR audio has NaN or infinite samples: look at the clips")
    if remark := too_loud(peak):
        warnings.warn(f"HEAR audio {remark}", AudioWarning, stacklevel=3)


class Fusion(nn.Module):
    """A concatenation of HEAR models: the models, each with the module that embeds with it."""

    def __init__(self, modules: Sequence[ModuleType]) -> None:
        super().__init__()
        models = [module.load_model() for module in modules]
        rates = {model.sample_rate for model in models}
        if len(rates) > 1:
            raise ValueError(f"models at different sample rates cannot be fused: {sorted(rates)} Hz")
        self.members = modules
        self.models = nn.ModuleList(models)
        self.sample_rate = rates.pop()
        self.scene_embedding_size = sum(model.scene_embedding_size for model in models)
        self.timestamp_embedding_size = sum(model.timestamp_embedding_size for model in models)

    def outputs(self, function: str, audio: Tensor) -> list[Any]:
        """Outputs of a function of the HEAR API, one for each member."""
        pairs = zip(self.members, self.models, strict=True)
        return [getattr(module, function)(audio, model) for module, model in pairs]


def fuse(*names: str) -> ModuleType:
    """Concatenate the embeddings of HEAR modules with the same timestamps; its `load_model` takes no file."""
    if not names:
        raise ValueError("a fusion needs at least one HEAR module: give names such as patchout.hear.base")
    name, modules = "+".join(names), [import_module(member) for member in names]

    def load_model(model_file_path: str = "") -> Fusion:
        if model_file_path:
            raise ValueError("a fusion loads its members' own models: leave model_file_path empty")
        return Fusion(modules)

    def scene(audio: Tensor, model: Fusion) -> Tensor:
        return torch.cat(model.outputs("get_scene_embeddings", audio), dim=-1)

    def timestamp(audio: Tensor, model: Fusion) -> tuple[Tensor, Tensor]:
        values, (first, *more) = zip(*model.outputs("get_timestamp_embeddings", audio), strict=True)
        if any(times.shape != first.shape or bool((times - first).abs().max() > 1) for times in more):
            raise ValueError(f"{name}: the timestamps of its members differ and cannot be concatenated")
        return torch.cat(values, dim=-1), first

    fused = ModuleType(name, f"HEAR modules {', '.join(names)}, concatenated.")
    vars(fused).update(load_model=load_model, get_scene_embeddings=scene, get_timestamp_embeddings=timestamp)
    return fused

"""A model to be judged: one of ours or any HEAR module, held to the HEAR rules at every call."""

import hashlib
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchout import hear
from patchout.checkpoint import zoo
from patchout.checkpoint.download import file_sha256
from patchout.errors import InputError
from patchout.hear.api import PRESETS, check_preset, fuse
from patchout.hear.settings import SETTINGS, settings_of
from patchout.hear.wavs import RATES
from patchout.inference.embedding import MID, EmbedConfig

EVENNESS_MS = 1.0  # of timestamps, as the public validator has it
FUNCTIONS = ("load_model", "get_scene_embeddings", "get_timestamp_embeddings")


class ModuleError(InputError):
    """A model that breaks a HEAR rule: `<name>: <the rule>, <what was found>`."""


@dataclass(frozen=True)
class Subject:
    """A model to be judged: a HEAR module with its loaded model."""

    name: str
    module: Any  # has get_scene_embeddings and get_timestamp_embeddings
    model: nn.Module
    detail: str = ""  # the weights that a HEAR module was given

    @property
    def rate(self) -> int:
        """Hz."""
        return int(self.model.sample_rate)  # type: ignore[arg-type]  # checked by `open_module`

    def identity(self) -> dict[str, Any]:
        """Tells any two models apart, also two states of one file; with our settings, or the code of someone's file."""
        digest = hashlib.sha256()
        for name, value in self.model.state_dict().items():
            digest.update(name.encode())
            if isinstance(value, Tensor):
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file, settings = getattr(self.module, "__file__", None), settings_of(self.model)
        is_ours = getattr(self.module, "__name__", "").partition(".")[0] == "patchout"
        more: dict[str, Any] = {SETTINGS: settings.record()} if settings else {}
        more |= {"code_sha256": file_sha256(Path(file))} if file and not is_ours else {}
        return {"model": self.name, "detail": self.detail, "weights_sha256": digest.hexdigest(), **more}


def open_subject(
    name: str,
    *,
    config: EmbedConfig | None = None,
    preset: str = "",
    weights: str = "",
    progress: zoo.Progress | None = None,
) -> Subject:
    """One of our models (whatever `zoo.load` takes) with its `config`, or any importable HEAR module with `weights`.

    `a+b` are modules side by side. Without a config ours have that of `base`, an encoder without classes its tokens.
    With the `preset` that the config comes from, a model that it does not fit is a ValueError.
    """
    module = _module(name)
    if module is not None:
        if config is not None:
            raise ValueError(
                f"an embedding's settings are for our models, and {name} is a HEAR module: leave them out"
            )
        return open_module(name, module, weights=weights)
    if weights:
        raise ValueError(f"{name} is no HEAR module that can be imported: only such a one takes --weights")
    try:
        load = partial(zoo.load, hop_length=PRESETS[preset].hop_length) if preset else zoo.load
        model = load(name, progress=progress)
    except zoo.UnknownModelError as error:
        raise ValueError(f"{error}; so will a HEAR module that can be imported") from None
    if preset:
        check_preset(preset, name, model.config)
    if not model.config.labels and config and "high" in (*config.levels, *config.scene_levels):
        raise ValueError(f"{name} is an encoder without class scores: ask for --levels mid, or low mid")
    config = config or (EmbedConfig() if model.config.labels else MID)
    return Subject(str(Path(name)) if Path(name).exists() else name, hear, hear.HearModel(model, config))


def _module(name: str) -> Any:
    """A HEAR module, or None if there is none of this name."""
    is_file = Path(name).exists() and not (Path(name) / "__init__.py").exists()
    if is_file or not all(part.isidentifier() for part in name.replace("+", ".").split(".")):
        return None
    try:
        with _Told(f"{name}: cannot be imported"):
            return fuse(*name.split("+")) if "+" in name else import_module(name)
    except ModuleError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{name}.".startswith(f"{cause.name}."):
            return None
        raise


def open_module(name: str, module: Any, *, weights: str = "") -> Subject:
    """Load the model of a HEAR module and check its attributes."""
    if missing := [wanted for wanted in FUNCTIONS if not callable(getattr(module, wanted, None))]:
        raise ModuleError(f"{name}: a HEAR module has {', '.join(FUNCTIONS)}; {missing[0]} is not there")
    with _Told(f"{name}: load_model failed"):
        model = module.load_model(weights) if weights else module.load_model()
    if not isinstance(model, nn.Module):
        raise ModuleError(f"{name}: load_model must give a torch.nn.Module, got {type(model).__name__}")
    rate = getattr(model, "sample_rate", None)
    if rate not in RATES:
        raise ModuleError(f"{name}: sample_rate must be one of {', '.join(map(str, RATES))}, got {rate!r}")
    for size in ("scene_embedding_size", "timestamp_embedding_size"):
        if not isinstance(getattr(model, size, None), int):
            raise ModuleError(f"{name}: {size} must be an int, got {getattr(model, size, None)!r}")
    return Subject(name, module, model, weights)


def batch_size(duration_s: float | int | None, rate: int) -> int:
    """Clips a call, as the kit has them."""
    return 1 if duration_s is None else max(1, int(0.7 * (120 / duration_s) * (16000 / rate)))


def scenes(subject: Subject, wave: Float[Tensor, "clip sample"]) -> Float[Tensor, "clip value"]:
    """Scene embeddings on the CPU, checked against the HEAR rules."""
    values = _called(subject, "get_scene_embeddings", wave)
    return _checked(subject, "scene embeddings", values, (len(wave), subject.model.scene_embedding_size))


def timestamps(subject: Subject, wave: Float[Tensor, "clip sample"]) -> tuple[Tensor, Tensor]:
    """Embeddings (clip, time, value) and times in ms (clip, time) on the CPU, checked against the HEAR rules."""
    pair = _called(subject, "get_timestamp_embeddings", wave)
    if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], Tensor):
        raise ModuleError(
            f"{subject.name}: get_timestamp_embeddings must return two tensors: embeddings and times"
        )
    times_ms = pair[1].detach().cpu().double()
    num_times = times_ms.shape[-1] if times_ms.ndim else 0
    size = (len(wave), num_times, subject.model.timestamp_embedding_size)
    values = _checked(subject, "timestamp embeddings", pair[0], size)
    gaps, end_ms = times_ms.diff(dim=-1), 1000 * wave.shape[1] / subject.rate
    broken = {
        f"have the shape (clips, times), here ({len(wave)}, {num_times})": times_ms.shape == size[:2]
        and num_times > 0,
        "be finite": bool(torch.isfinite(times_ms).all()),
        "increase within a clip": bool((gaps > 0).all()),
        f"be evenly spaced within {EVENNESS_MS:g} ms": not gaps.numel()
        or bool(((gaps - gaps.mean(dim=-1, keepdim=True)).abs() <= EVENNESS_MS).all()),
        f"lie within the sound, 0 to {end_ms:g} ms": bool(((times_ms >= 0) & (times_ms <= end_ms)).all()),
        f"be milliseconds that reach its end at {end_ms:g} ms": bool((2 * times_ms[..., -1:] >= end_ms).all())
        or num_times == 1,
    }
    if rule := next((rule for rule, kept in broken.items() if not kept), ""):
        raise ModuleError(f"{subject.name}: the HEAR rules want timestamps to {rule}; these do not")
    return values, times_ms


def _called(subject: Subject, function: str, wave: Tensor) -> Any:
    """What the module gives."""
    with _Told(f"{subject.name}: {function} of waves {tuple(wave.shape)} failed"):
        return getattr(subject.module, function)(wave, subject.model)


class _Told:
    """Someone else's code may raise anything: whatever it is ends in a sentence, but for a stop and our own."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, InputError):
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ModuleError(f"{self.what} ({reason})") from error


def _checked(subject: Subject, what: str, values: Any, size: tuple[Any, ...]) -> Tensor:
    """On the CPU."""
    if not isinstance(values, Tensor) or values.dtype != torch.float32:
        kind = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
        raise ModuleError(f"{subject.name}: {what} must be a float32 tensor, got {kind}")
    if tuple(values.shape) != size:
        raise ModuleError(f"{subject.name}: {what} must have the shape {size}, got {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise ModuleError(f"{subject.name}: {what} have NaN or infinite values; every value must be finite")
    return values.detach().cpu()

"""A model under evaluation: one of ours or any HEAR module, whose outputs must follow the HEAR rules."""

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

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
from patchout.inference.embedding import EmbedConfig, mid_level

EVENNESS_MS = 1.0  # of timestamps, as the public validator has it
FUNCTIONS = ("load_model", "get_scene_embeddings", "get_timestamp_embeddings")


class ModuleError(InputError):
    """A model that breaks a HEAR rule: `<name>: <the rule>, <what it does>`."""


@dataclass(frozen=True)
class Subject:
    """A model under evaluation: a HEAR module and the model that it has loaded."""

    name: str
    module: Any  # has get_scene_embeddings and get_timestamp_embeddings
    model: nn.Module
    detail: str = ""  # the file of weights given to a HEAR module

    @property
    def rate(self) -> int:
        """Sample rate in Hz."""
        return int(self.model.sample_rate)  # type: ignore[arg-type]  # checked by `open_module`

    def identity(self) -> dict[str, Any]:
        """Record that identifies the model: name, hash of the weights, settings or hash of foreign code."""
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
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    progress: zoo.Progress | None = None,
) -> Subject:
    """Load one of our models (anything that `zoo.load` takes), or any importable HEAR module with `weights`.

    `a+b` concatenates modules. Our models take a `config`; its default is that of `base`, or the tokens of an
    encoder without classes; they compute in `precision`, which belongs to their identity.
    ValueError: the model does not fit the `preset` that the config comes from.
    """
    if module := _module(name):
        if config is not None:
            reason = f"an embedding's settings are for our models, and {name} is a HEAR module"
            raise ValueError(f"{reason}: leave them out")
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
    config = config or (EmbedConfig() if model.config.labels else mid_level(model.config))
    hear_model = hear.HearModel(model, config, precision=precision)
    return Subject(str(Path(name)) if Path(name).exists() else name, hear, hear_model)


def _module(name: str) -> Any:
    """Import a HEAR module; None if there is none of this name."""
    is_file = Path(name).exists() and not (Path(name) / "__init__.py").exists()
    if is_file or not all(part.isidentifier() for part in name.replace("+", ".").split(".")):
        return None
    try:
        with _Explained(f"{name}: cannot be imported"):
            return fuse(*name.split("+")) if "+" in name else import_module(name)
    except ModuleError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{name}.".startswith(f"{cause.name}."):
            return None
        raise


def open_module(name: str, module: Any, *, weights: str = "") -> Subject:
    """Load the model of a HEAR module, and check its attributes."""
    if missing := [function for function in FUNCTIONS if not callable(getattr(module, function, None))]:
        raise ModuleError(f"{name}: a HEAR module has {', '.join(FUNCTIONS)}; {missing[0]} is not there")
    with _Explained(f"{name}: load_model failed"):
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
    """Clips a call, as in the kit."""
    return 1 if duration_s is None else max(1, int(0.7 * (120 / duration_s) * (16000 / rate)))


def scenes(subject: Subject, wave: Float[Tensor, "clip sample"]) -> Float[Tensor, "clip value"]:
    """Scene embeddings on the CPU, checked against the HEAR rules."""
    values = _called(subject, "get_scene_embeddings", wave)
    return _checked(subject, "scene embeddings", values, (len(wave), subject.model.scene_embedding_size))


def timestamps(subject: Subject, wave: Float[Tensor, "clip sample"]) -> tuple[Tensor, Tensor]:
    """Embeddings (clip, time, value) and times in ms (clip, time) on the CPU, checked against the rules."""
    pair = _called(subject, "get_timestamp_embeddings", wave)
    if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], Tensor):
        rule = "get_timestamp_embeddings must return two tensors: embeddings and times"
        raise ModuleError(f"{subject.name}: {rule}")
    times_ms = pair[1].detach().cpu().double()
    num_times = times_ms.shape[-1] if times_ms.ndim else 0
    size = (len(wave), num_times, subject.model.timestamp_embedding_size)
    values = _checked(subject, "timestamp embeddings", pair[0], size)
    gaps, end_ms = times_ms.diff(dim=-1), 1000 * wave.shape[1] / subject.rate
    unevenness_ms = (gaps - gaps.mean(dim=-1, keepdim=True)).abs()
    reaches_end = (2 * times_ms[..., -1:] >= end_ms).all() or num_times == 1
    shape = f"({len(wave)}, {num_times})"
    rules = {
        f"have the shape (clips, times), here {shape}": times_ms.shape == size[:2] and num_times > 0,
        "be finite": torch.isfinite(times_ms).all(),
        "increase within a clip": (gaps > 0).all(),
        f"be evenly spaced within {EVENNESS_MS:g} ms": (unevenness_ms <= EVENNESS_MS).all(),
        f"lie within the sound, 0 to {end_ms:g} ms": ((times_ms >= 0) & (times_ms <= end_ms)).all(),
        f"be milliseconds that reach its end at {end_ms:g} ms": reaches_end,
    }
    if rule := next((rule for rule, is_followed in rules.items() if not is_followed), ""):
        raise ModuleError(f"{subject.name}: the HEAR rules want timestamps to {rule}; these do not")
    return values, times_ms


def _called(subject: Subject, function: str, wave: Tensor) -> Any:
    """Call a function of the HEAR module."""
    with _Explained(f"{subject.name}: {function} of waves {tuple(wave.shape)} failed"):
        return getattr(subject.module, function)(wave, subject.model)


@dataclass
class _Explained(AbstractContextManager[None]):
    """Turns any exception of foreign code into a ModuleError that says what failed."""

    action: str

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, InputError):
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ModuleError(f"{self.action} ({reason})") from error


def _checked(subject: Subject, output: str, values: Any, size: tuple[Any, ...]) -> Tensor:
    """Check type, shape and finiteness of embeddings, and move them to the CPU."""
    rule = ""
    if not isinstance(values, Tensor) or values.dtype != torch.float32:
        kind = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
        rule = f"must be a float32 tensor, got {kind}"
    elif tuple(values.shape) != size:
        rule = f"must have the shape {size}, got {tuple(values.shape)}"
    elif not bool(torch.isfinite(values).all()):
        rule = "have NaN or infinite values; every value must be finite"
    if rule:
        raise ModuleError(f"{subject.name}: {output} {rule}")
    return cast(Tensor, values).detach().cpu()

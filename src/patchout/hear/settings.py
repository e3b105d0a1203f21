"""The settings of an embedding of our models, as they are stored with embeddings and scores, from whatever version."""

import ast
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from patchout.hear.api import PRESETS, HearModel, mel_hop_ms
from patchout.inference.embedding import EmbedConfig

PACKAGES = ("patchout.hear", "hear21passt")  # that have the published modules
SETTINGS = "settings"  # their key in a record
_SAMPLES_A_MS = 32  # in records that have the STFT hop in samples


@dataclass(frozen=True)
class Settings:
    """What is embedded, and how far apart the log-mel frames of the model lie (None: an early record, without it)."""

    config: EmbedConfig
    mel_hop_ms: float | None

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        values = asdict(self.config) | {"mel_hop_ms": self.mel_hop_ms}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def describe(self) -> str:
        """In words."""
        config = self.config
        fields = " and ".join(f"{ms:g}" for ms in config.fields_ms)
        scenes = (
            "" if config.scene_levels == config.levels else f" (scenes: {' + '.join(config.scene_levels)})"
        )
        frames = f", log-mel frames every {self.mel_hop_ms:g} ms" if self.mel_hop_ms else ""
        return f"{' + '.join(config.levels)}{scenes}, fields of {fields} ms, a time every {config.hop_ms:g} ms{frames}"


def settings_of(model: object) -> Settings | None:
    """Of a loaded model, if it is one of ours; someone else's keeps them to itself."""
    return (
        Settings(model.embedder.config, mel_hop_ms(model.model.config))
        if isinstance(model, HearModel)
        else None
    )


def stored_settings(about: Mapping[str, Any], name: str) -> Settings | None:
    """Those that a record tells, or that its model has by its name (else `name`), as every published module does.

    ValueError, TypeError, KeyError: the record is damaged.
    """
    if values := current(about).get(SETTINGS):
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        hop_ms = fields.pop("mel_hop_ms")
        return Settings(EmbedConfig(**fields), hop_ms)
    package, _, module = str(about.get("model") or name).rpartition(".")
    if package in PACKAGES and module in PRESETS:
        return Settings(PRESETS[module].config, PRESETS[module].mel_hop_ms)
    return None


def current(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record in today's form: an earlier one has the settings as Python text, in `detail`."""
    settings = _from_text(str(about.get("detail", "")))
    return about if settings is None else {**about, "detail": "", SETTINGS: settings.record()}


def _from_text(detail: str) -> Settings | None:
    """`EmbedConfig(levels=('mid',), ...), hop_length=320`; the hop was not always there."""
    try:
        call = ast.parse(f"Settings({detail})", mode="eval").body
    except SyntaxError:
        return None
    if not (isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Call)):
        return None
    if ast.unparse(call.args[0].func) != EmbedConfig.__name__:
        return None
    fields, rest = (
        {word.arg: ast.literal_eval(word.value) for word in each.keywords if word.arg}
        for each in (call.args[0], call)
    )
    hop_length = rest.get("hop_length")
    return Settings(replace(EmbedConfig(), **fields), hop_length / _SAMPLES_A_MS if hop_length else None)

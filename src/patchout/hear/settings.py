"""Settings of our models' embeddings, as stored with embeddings and scores by any version."""

import ast
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from patchout.hear.api import PRESETS, HearModel, mel_hop_ms
from patchout.inference.embedding import EmbedConfig

PACKAGES = ("patchout.hear", "hear21passt")  # that have the published modules
SETTINGS = "settings"  # key in a record
PRECISION = "precision"  # key in settings
_SAMPLES_A_MS = 32  # in records that have the STFT hop in samples


@dataclass(frozen=True)
class Settings:
    """Settings and precision of an embedding, and the STFT hop of its model (None: an early record)."""

    config: EmbedConfig
    mel_hop_ms: float | None
    precision: str = "fp32"

    def record(self) -> dict[str, Any]:
        """The settings as JSON values; the precision only where it is not float32, as in early records."""
        values = asdict(self.config) | {"mel_hop_ms": self.mel_hop_ms}
        values |= {PRECISION: self.precision} if self.precision != "fp32" else {}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def describe(self) -> str:
        """The settings in words."""
        levels, scene_levels = (" + ".join(names) for names in (self.config.levels, self.config.scene_levels))
        fields = " and ".join(f"{ms:g}" for ms in self.config.fields_ms)
        parts = [levels if scene_levels == levels else f"{levels} (scenes: {scene_levels})"]
        parts += [f"fields of {fields} ms", f"a time every {self.config.hop_ms:g} ms"]
        parts += [f"log-mel frames every {self.mel_hop_ms:g} ms"] if self.mel_hop_ms else []
        parts += [f"in {self.precision}"] if self.precision != "fp32" else []
        return ", ".join(parts)


def settings_of(model: object) -> Settings | None:
    """Settings of a loaded model of ours; None for another HEAR model."""
    if not isinstance(model, HearModel):
        return None
    return Settings(model.embedder.config, mel_hop_ms(model.model.config), model.embedder.precision)


def stored_settings(record: Mapping[str, Any], name: str) -> Settings | None:
    """Settings in a record, or those of the published module that its model (else `name`) names.

    ValueError, TypeError, KeyError: the record is damaged.
    """
    if values := current(record).get(SETTINGS):
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        hop_ms, precision = fields.pop("mel_hop_ms"), fields.pop(PRECISION, "fp32")
        return Settings(EmbedConfig(**fields), hop_ms, precision)
    package, _, module = str(record.get("model") or name).rpartition(".")
    if package in PACKAGES and module in PRESETS:
        return Settings(PRESETS[module].config, PRESETS[module].mel_hop_ms)
    return None


def current(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert a record to the current format.

    Earlier versions have `EmbedConfig(levels=('mid',), ...), hop_length=320` in `detail`, or without the hop.
    """
    try:
        call = ast.parse(f"Settings({record.get('detail', '')})", mode="eval").body
    except SyntaxError:
        return record
    if not (isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Call)):
        return record
    if ast.unparse(call.args[0].func) != EmbedConfig.__name__:
        return record
    fields, outer = (
        {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg}
        for node in (call.args[0], call)
    )
    hop_length = outer.get("hop_length")
    settings = Settings(EmbedConfig(**fields), hop_length / _SAMPLES_A_MS if hop_length else None)
    return {**record, "detail": "", SETTINGS: settings.record()}

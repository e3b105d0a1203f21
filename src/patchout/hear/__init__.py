"""The HEAR API for PaSST: this package is `patchout.hear.base`; the other published modules have a name each.

A module has `load_model`, `get_scene_embeddings` and `get_timestamp_embeddings`, as the HEAR rules demand.
Audio is (sounds, samples), float32, at 32 kHz.
"""

from importlib import import_module
from types import ModuleType

from patchout.hear.api import PRESETS, HearModel, Preset, published

__all__ = ["PRESETS", "HearModel", "Preset", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

load_model, get_scene_embeddings, get_timestamp_embeddings = published("base")


def __getattr__(name: str) -> ModuleType:
    """Import a published module when it is first asked for as an attribute."""
    if name in PRESETS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

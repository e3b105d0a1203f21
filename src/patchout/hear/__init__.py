"""HEAR-API modules of PaSST: `patchout.hear.base` and the other published ones, each importable by its name.

Every module has `load_model`, `get_scene_embeddings` and `get_timestamp_embeddings` as the HEAR rules demand; so has
this package, which is `base`. Audio is (sounds, samples), float32, at 32 kHz.
"""

from importlib import import_module
from types import ModuleType

from patchout.hear.api import (
    PRESETS,
    HearModel,
    Preset,
    get_scene_embeddings,
    get_timestamp_embeddings,
    make_loader,
)

__all__ = ["PRESETS", "HearModel", "Preset", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

load_model = make_loader("base")


def __getattr__(name: str) -> ModuleType:
    """A published module that nothing has imported yet."""
    if name in PRESETS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

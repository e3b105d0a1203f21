"""HEAR-API modules of PaSST: `patchout.hear.base` and the other published ones, each importable by its name.

Every module has `load_model`, `get_scene_embeddings` and `get_timestamp_embeddings` as the HEAR rules demand; so has
this package, which is `base`. Audio is (sounds, samples), float32, at 32 kHz.
"""

import sys
from types import ModuleType

from patchout.hear.api import PRESETS, HearModel, Preset, get_scene_embeddings, get_timestamp_embeddings, make_loader

__all__ = ["PRESETS", "HearModel", "Preset", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

load_model = make_loader(PRESETS["base"])


def _module(name: str, preset: Preset) -> ModuleType:
    module = ModuleType(f"{__name__}.{name}", f"HEAR module {name}: {preset.zoo_name}, {preset.config}.")
    module.__dict__.update(
        load_model=make_loader(preset),
        get_scene_embeddings=get_scene_embeddings,
        get_timestamp_embeddings=get_timestamp_embeddings,
    )
    return module


for _name, _preset in PRESETS.items():  # one table instead of a dozen files that differ in a word
    globals()[_name] = sys.modules[f"{__name__}.{_name}"] = _module(_name, _preset)

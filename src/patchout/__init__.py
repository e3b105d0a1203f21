"""Audio spectrogram transformers for tagging, sound events and training.

PaSST (arXiv 2110.05069), general audio representations from PaSST (PMLR 166:65-89) and MaskSpec (arXiv 2204.12768).
Importing this package is light: torch is imported when a name that needs it is first used (PEP 562).
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "EmbedConfig": "embedding",
    "Embedding": "embedding",
    "embed": "embedding",
    "MelConfig": "mel",
    "log_mel": "mel",
    "Patchout": "patches",
    "Output": "family",
    "Passt": "passt",
    "PasstConfig": "passt",
    "load": "zoo",
    "Event": "events",
    "EventRule": "events",
    "Tags": "inference",
    "tag": "inference",
    "tag_many": "inference",
}

__all__ = [
    "EmbedConfig",
    "Embedding",
    "Event",
    "EventRule",
    "MelConfig",
    "Output",
    "Passt",
    "PasstConfig",
    "Patchout",
    "Tags",
    "__version__",
    "embed",
    "load",
    "log_mel",
    "tag",
    "tag_many",
]

if TYPE_CHECKING:
    from patchout.embedding import EmbedConfig, Embedding, embed
    from patchout.events import Event, EventRule
    from patchout.family import Output
    from patchout.inference import Tags, tag, tag_many
    from patchout.mel import MelConfig, log_mel
    from patchout.passt import Passt, PasstConfig
    from patchout.patches import Patchout
    from patchout.zoo import load


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"patchout.{_HOME[name]}"), name)
    if importlib.util.find_spec(f"patchout.{name}"):  # a module, as in patchout.audio.load
        return importlib.import_module(f"patchout.{name}")
    raise AttributeError(f"module 'patchout' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""Audio spectrogram transformers for tagging, sound events and training.

PaSST (arXiv 2110.05069), general audio representations from PaSST (PMLR 166:65-89) and MaskSpec (arXiv
2204.12768). Importing this package is light: torch is imported when a name that needs it is first used (PEP
562).
"""

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    **dict.fromkeys(("EmbedConfig", "Embedding", "embed"), "inference.embedding"),
    **dict.fromkeys(("Event", "EventRule"), "inference.events"),
    **dict.fromkeys(("MelConfig", "log_mel"), "audio.mel"),
    **dict.fromkeys(("Passt", "PasstConfig"), "models.passt"),
    **dict.fromkeys(("Tags", "tag", "tag_many"), "inference.tagging"),
    "Output": "models.family",
    "Patchout": "models.patches",
    "load": "checkpoint.zoo",
}
_MOVED = {"maskspec": "models.maskspec", "train": "training.supervised.run"}  # former names, of 0.1.0

__all__ = ["EmbedConfig", "Embedding", "Event", "EventRule", "MelConfig", "Output", "Passt", "PasstConfig"]
__all__ += ["Patchout", "Tags", "__version__", "embed", "load", "log_mel", "tag", "tag_many"]

if TYPE_CHECKING:
    from patchout.audio.mel import MelConfig, log_mel
    from patchout.checkpoint.zoo import load
    from patchout.inference.embedding import EmbedConfig, Embedding, embed
    from patchout.inference.events import Event, EventRule
    from patchout.inference.tagging import Tags, tag, tag_many
    from patchout.models.family import Output
    from patchout.models.passt import Passt, PasstConfig
    from patchout.models.patches import Patchout


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"patchout.{_HOME[name]}"), name)
    if importlib.util.find_spec(f"patchout.{name}"):  # a module, as in patchout.audio.load
        return importlib.import_module(f"patchout.{name}")
    raise AttributeError(f"module 'patchout' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Moved(MetaPathFinder, Loader):
    """Import hook for former module names: `import patchout.maskspec`."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        package, _, name = fullname.rpartition(".")
        return ModuleSpec(fullname, self) if package == __name__ and name in _MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self._module = importlib.import_module(f"{__name__}.{_MOVED[spec.name.rpartition('.')[2]]}")
        self._spec = self._module.__spec__
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has written the former name into it


sys.meta_path.append(_Moved())

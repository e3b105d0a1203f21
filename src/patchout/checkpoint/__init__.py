"""Model weights on disk and on the net: our checkpoints, public ones, the zoo."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchout.checkpoint.maskspec import import_maskspec, import_maskspec_classifier
    from patchout.checkpoint.own import Model, config_from_json, export_passt, import_passt, load, save
    from patchout.errors import CheckpointError

__all__ = ["CheckpointError", "Model", "config_from_json", "export_passt", "import_maskspec"]
__all__ += ["import_maskspec_classifier", "import_passt", "load", "save"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported when it is needed: `patchout models` lists without torch
        module = "maskspec" if name.startswith("import_maskspec") else "own"
        return getattr(importlib.import_module(f"patchout.checkpoint.{module}"), name)
    raise AttributeError(f"module 'patchout.checkpoint' has no attribute {name!r}")

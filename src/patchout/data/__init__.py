"""Folders, lists, sets of the hub, prepared sets -> clips -> batches."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patchout.data.clips import ClipSet
    from patchout.data.sets import scan, scan_sounds

__all__ = ["ClipSet", "scan", "scan_sounds"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # imported when it is needed: a light command lists a module of this room alone
        from patchout.data import sets

        return getattr(sets, name)
    raise AttributeError(f"module 'patchout.data' has no attribute {name!r}")

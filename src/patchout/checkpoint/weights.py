"""Files of weights, .safetensors or pickled: read without running code in them, or refused with a reason."""

import argparse
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from patchout.errors import CheckpointError

UNREADABLE = (  # raised by torch.load for damaged files
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError),
    *(TypeError, AttributeError, AssertionError),
)
_SCALAR = np.float64().__reduce__()[0]  # the function with which numpy pickles a number
# allowed beside tensors: arguments, and scores as numpy numbers (by the module names before and from 2.0)
HARMLESS: list[Any] = [
    *(argparse.Namespace, np.dtype, type(np.dtype("f8")), type(np.dtype("f4")), type(np.dtype("i8"))),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
BEGINNINGS = {  # first bytes of other files, without leading blanks, in lower case -> reason
    b"version https://git-lfs": "a Git LFS pointer, not the file it stands for: run `git lfs pull`",
    b"<": "a web page, not a file of weights: a login or an error stands in between, download it again",
    b"{": "a text of JSON, not a file of weights: ",
    b"[": "a text of JSON, not a file of weights: ",
    b"\x1f\x8b": "a compressed archive: unpack it, and give the file of weights in it",
    b"7z\xbc\xaf": "an archive: unpack it, and give the file of weights in it",
    b"rar!": "an archive: unpack it, and give the file of weights in it",
    b"\x89hdf": "an HDF5 file of another tool: save its weights with torch.save or safetensors",
}
SAVE_ALONE = (
    "import torch; c = torch.load({source!r}, map_location='cpu', weights_only=False); "
    "c = c.get('state_dict', c.get('model', c)) if isinstance(c, dict) else c; "
    "torch.save(c.state_dict() if hasattr(c, 'state_dict') else c, {target!r})"
)
Path_ = str | os.PathLike[str]


class Content(NamedTuple):
    """Content of a file of weights: metadata (of .safetensors alone) and a dictionary of tensors."""

    header: dict[str, str]
    tensors: Mapping[str, Any]


def read_file(path: Path_) -> Content:
    """Read a .safetensors or pickled file, whatever its name ends in; no code in it is run.

    Raises FileNotFoundError, or CheckpointError that says what the file is instead.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with Path(path).open("rb") as file:
        start = file.read(512)
    is_safetensors = _is_safetensors(start)
    if not is_safetensors and (reason := _other_format(start)):
        raise _unusable(path, reason)
    if start.startswith(b"PK"):
        _check_zip(path)
    elif is_safetensors or Path(path).suffix == ".safetensors":
        with _safetensors(path) as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            return Content(content.metadata() or {}, tensors)
    return Content({}, _unpickle(path))


def read_header(path: Path_) -> dict[str, str]:
    """Metadata in the header of a .safetensors file, {} of any other; its tensors are not read."""
    with Path(path).open("rb") as file:
        if not _is_safetensors(file.read(9)):
            return {}
    with _safetensors(path) as content:
        return content.metadata() or {}


def _is_safetensors(start: bytes) -> bool:
    """Whether a file begins with the 8-byte length of a header below 4 GiB, and JSON."""
    return start[4:9] == b"\0\0\0\0{"


def _other_format(start: bytes) -> str:
    """The format of a file with these first bytes if it cannot be weights, and a hint; else ""."""
    text = start.lstrip().lower()
    if not text.strip(b"\0"):
        return "it is empty or holds zeros alone: bring it again"
    for beginning, reason in BEGINNINGS.items():
        if text.startswith(beginning):
            return reason + start[:80].decode(errors="replace").strip() if reason.endswith(": ") else reason
    is_tar = start[257:262] == b"ustar"
    return "a tar archive: unpack it, and give the file of weights in it" if is_tar else ""


def _check_zip(path: Path_) -> None:
    """Refuse a zip archive that torch did not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        raise _unusable(path, "its end is missing or damaged: bring it again") from None
    if not any(name.endswith("/data.pkl") and name.count("/") == 1 for name in names):
        listed = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        raise _unusable(path, f"a zip archive of {listed}: unpack it, and give the file of weights in it")
    if any("/code/" in name for name in names):
        raise _unusable(path, "a TorchScript program: save the state_dict of its model instead")


@contextmanager
def _safetensors(path: Path_) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as content:
            yield content
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole .safetensors file ({error}): bring it again") from None


def _unpickle(path: Path_) -> Mapping[str, Any]:
    try:
        # a file object: torch.load would judge a path by its ending
        with torch.serialization.safe_globals(HARMLESS), Path(path).open("rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        if name := re.search(r"(?:unsupported|Unsupported) (?:global: )?GLOBAL (\S+)", str(error)):
            target = os.fspath(Path(path).with_suffix(".weights.pt"))
            line = SAVE_ALONE.format(source=os.fspath(path), target=target)
            reason = f"a {name[1]} stands in it, and nothing in a file is run"
            hint = f"if you trust it, paste into a Python that has it: {line}"
            raise _unusable(path, f"{reason}: {hint}") from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _unusable(path, f"damaged, or of another tool: {reason}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def _unusable(path: Path_, reason: str) -> CheckpointError:
    is_safetensors = Path(path).suffix == ".safetensors"
    expected = "a whole .safetensors file" if is_safetensors else "a readable file of plain tensors"
    return CheckpointError(f"{path}: not {expected}: {reason}")

"""A file of weights: read without running anything in it."""

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

UNREADABLE = (  # what torch.load raises for damaged files
    *(pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError),
    *(TypeError, AttributeError, AssertionError),
)
_SCALAR = np.float64().__reduce__()[0]  # as numpy pickles a number, by its name of today and of before 2.0
HARMLESS: list[
    Any
] = [  # beside tensors: arguments, and the scores that training tools store as numbers of numpy
    *(argparse.Namespace, np.dtype, type(np.dtype("f8")), type(np.dtype("f4")), type(np.dtype("i8"))),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
BEGINNINGS = {  # of files that are no weights; they are compared without leading blanks, in lower case
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
    """What a file of weights holds: the text in its header (of .safetensors alone), and a dictionary of tensors."""

    header: dict[str, str]
    tensors: Mapping[str, Any]


def read_file(path: Path_) -> Content:
    """The content of a .safetensors or pickled file, whatever its name ends in; nothing in it is run.

    Raises FileNotFoundError, or CheckpointError that says what the file is instead.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with Path(path).open("rb") as file:
        start = file.read(512)
    is_safetensors = _is_safetensors(start)
    if not is_safetensors and (reason := _not_weights(start)):
        raise _unusable(path, reason)
    if start.startswith(b"PK"):
        _check_zip(path)
    elif is_safetensors or Path(path).suffix == ".safetensors":
        with _safetensors(path) as content:
            return Content(
                content.metadata() or {}, {name: content.get_tensor(name) for name in content.keys()}
            )  # noqa: SIM118
    return Content({}, _unpickle(path))


def read_header(path: Path_) -> dict[str, str]:
    """The text in the header of a .safetensors file, {} of any other; its tensors are not read."""
    with Path(path).open("rb") as file:
        if not _is_safetensors(file.read(9)):
            return {}
    with _safetensors(path) as content:
        return content.metadata() or {}


def _is_safetensors(start: bytes) -> bool:
    """Whether a file begins with the length of a header, whose first bytes may be any, and the header."""
    return start[4:9] == b"\0\0\0\0{"


def _not_weights(start: bytes) -> str:
    """What a file is that begins so, where that is no file of weights; else ""."""
    text = start.lstrip().lower()
    if not text.strip(b"\0"):
        return "it is empty or holds zeros alone: bring it again"
    for beginning, reason in BEGINNINGS.items():
        if text.startswith(beginning):
            return reason + start[:80].decode(errors="replace").strip() if reason.endswith(": ") else reason
    return (
        "a tar archive: unpack it, and give the file of weights in it" if start[257:262] == b"ustar" else ""
    )


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
        raise CheckpointError(
            f"{path}: not a whole .safetensors file ({error}): bring the file again"
        ) from None


def _unpickle(path: Path_) -> Mapping[str, Any]:
    try:
        with (
            torch.serialization.safe_globals(HARMLESS),
            Path(path).open("rb") as file,
        ):  # a path's ending would count
            content = torch.load(file, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        if foreign := re.search(r"(?:unsupported|Unsupported) (?:global: )?GLOBAL (\S+)", str(error)):
            raise _unusable(path, _save_alone(path, foreign[1])) from None
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _unusable(path, f"damaged, or of another tool: {reason}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors")
    return content


def _save_alone(path: Path_, name: str) -> str:
    """How to get at the weights beside an object of this class."""
    line = SAVE_ALONE.format(source=os.fspath(path), target=os.fspath(Path(path).with_suffix(".weights.pt")))
    return f"a {name} stands in it, and nothing in a file is run: if you trust it, paste into a Python that has it: {line}"


def _unusable(path: Path_, reason: str) -> CheckpointError:
    whole = (
        "a whole .safetensors file"
        if Path(path).suffix == ".safetensors"
        else "a readable file of plain tensors"
    )
    return CheckpointError(f"{path}: not {whole}: {reason}")

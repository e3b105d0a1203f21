"""Published models: what there is, where it comes from, and how a name becomes a model that runs."""

import difflib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from patchout.checkpoint.labels import label_names
from patchout.checkpoint.zoo_list import ALIASES, Entry
from patchout.checkpoint.zoo_list import MODELS as MODELS
from patchout.files import cache_folder as cache_folder

if TYPE_CHECKING:
    from patchout.checkpoint.own import Model
    from patchout.checkpoint.public import Public
    from patchout.models.maskspec import MaskSpec
    from patchout.models.tagger import Tagger

Progress = Callable[[int, int | None], None]  # bytes done, and bytes in all where the server says so

PAPERS = {"passt": "arXiv:2110.05069", "maskspec": "arXiv:2204.12768"}
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


class UnknownModelError(ValueError):
    """A model name that is neither a file, nor in the zoo, nor a hub repository id."""


class Row(NamedTuple):
    """One line of `patchout models`."""

    name: str
    score: str
    licence: str
    size_bytes: int | None  # on this machine; None: not here yet
    note: str


def rows() -> list[Row]:
    """Every model of the zoo, with the size of its file where this machine has it."""
    alias = {name: short for short, name in ALIASES.items()}
    found = []
    for entry in MODELS.values():
        path = _local_path(entry)
        size_bytes = path.stat().st_size if path.is_file() else None
        note = f"also {alias[entry.name]}; {entry.note}" if entry.name in alias else entry.note
        if entry.file and size_bytes is None:
            note += f"; fetch {entry.url} with a browser and save it as {path}"
        found.append(Row(entry.name, entry.score, entry.licence, size_bytes, note))
    return found


def load(
    name_or_path: str | Path,
    device: str = "auto",
    *,
    labels: Sequence[str] | None = None,
    hop_length: int | None = None,
    half_precision: bool = True,
    progress: Progress | None = None,
) -> "Tagger":
    """A model, fp32 and in evaluation mode, from a file, a zoo name or a hub repository id ("owner/name", "hf://...").

    A name that is a file, a run folder, or ends like a weight file is a path; then the zoo is asked, then the hub.
    `device` "auto" is cuda, else mps, else cpu. `labels` replaces the class names. A public weight file whose
    name the zoo does not list is read with the default front end, or at this `hop_length` (samples): give a whole other
    one to `checkpoint.import_passt`. Of a pre-trained MaskSpec it is the encoder, which knows no classes.
    `half_precision=False` as for `whole`.
    Raises UnknownModelError, DownloadError, FileNotFoundError, or ValueError for a wrong device, file or label count.
    """
    from patchout.models.device import pick_device

    target = pick_device(device)
    model = tagger_of(locate(name_or_path, progress=progress), hop_length)
    if not half_precision:
        _hear_in_float32(model)
    if labels is not None:
        if len(labels) != len(model.config.labels):
            raise ValueError(
                f"{len(labels)} labels for the {len(model.config.labels)} classes of {name_or_path}"
            )
        model.config = replace(model.config, labels=tuple(labels))
    return model.to(target).eval()


def whole(
    name_or_path: str | Path, *, half_precision: bool = True, progress: Progress | None = None
) -> "Model":
    """The model of a name, on the CPU; of a pre-trained MaskSpec with its decoder. Raises what `load` raises.

    `half_precision=False` makes a model hear in float32 whose front end rounds to float16, as that of the public
    MaskSpec weights does; `checkpoint.save` keeps that.
    """
    model = _model_of(locate(name_or_path, progress=progress))
    if not half_precision:
        _hear_in_float32(model)
    return model


def _hear_in_float32(model: "Model") -> None:
    """Take the rounding out of a model's front end."""
    model.config = replace(model.config, mel=replace(model.config.mel, half_precision=False))


def load_pretrained(name_or_path: str | Path, device: str = "auto") -> "MaskSpec":
    """A pre-trained MaskSpec with its decoder, to go on pre-training or to look at; what is none is a ValueError."""
    from patchout.models.device import pick_device
    from patchout.models.maskspec import MaskSpec

    model = whole(name_or_path)
    if not isinstance(model, MaskSpec):
        raise ValueError(
            f"{name_or_path} is a tagger without a decoder: give the run folder or file of `patchout pretrain`, or the "
            "public pre-trained weights (maskspec-base)"
        )
    return model.to(pick_device(device)).eval()


def tagger_of(source: "Path | Public", hop_length: int | None = None) -> "Tagger":
    """The model in a file, on the CPU; of a pre-trained MaskSpec its encoder."""
    from patchout.checkpoint.maskspec import encoder_of
    from patchout.models.tagger import Tagger

    model = _model_of(source, hop_length)
    return model if isinstance(model, Tagger) else encoder_of(model)


def _model_of(source: "Path | Public", hop_length: int | None = None) -> "Model":
    """Our file or public weights; a file name that the zoo lists brings its front end, classes, licence and score."""
    from patchout.audio.mel import MelConfig
    from patchout.checkpoint import own as checkpoint
    from patchout.checkpoint.public import read_public
    from patchout.errors import CheckpointError

    if isinstance(source, Path) and checkpoint.is_own(source):
        return checkpoint.load(source)
    public = read_public(source)
    file = Path(public.where).name
    entry = next((entry for entry in MODELS.values() if entry.url and _local_path(entry).name == file), None)
    model: Model
    if public.family == "image":
        raise CheckpointError(
            f"{public.where}: weights for images know no sounds: give them to patchout train --init"
        )
    if public.family == "maskspec":
        tuned = "head.weight" in public.weights
        model = (checkpoint.import_maskspec_classifier if tuned else checkpoint.import_maskspec)(public)
    else:
        mel = MelConfig(hop_length=(entry.hop_length if entry else hop_length) or MelConfig.hop_length)
        labels = label_names(entry.labels) if entry and entry.labels else None
        model = checkpoint.import_passt(
            public, mel=mel, labels=labels, task=entry.task if entry else "multi_label"
        )
    if entry:
        provenance = {
            "name": entry.name,
            "url": entry.url,
            "score": entry.score,
            "paper": PAPERS[public.family],
        }
        model.config = replace(model.config, licence=entry.licence, provenance=provenance)
    return model


def locate(name_or_path: str | Path, *, progress: Progress | None = None) -> Path:
    """The file of a model on this machine, brought there if need be; `load` says what a name may be."""
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if scheme := re.match(r"(\w\w+):/", name):
        return _from_address(name, scheme[1].lower())
    if path.is_dir() and (path / "model.safetensors").is_file():  # a run folder
        return path / "model.safetensors"
    if path.suffix in SUFFIXES:
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such file; give an existing one, or a name that `patchout models` lists"
            )
        return path
    if path.is_file():
        raise ValueError(f"{path}: not a weight file: its name must end in {', '.join(SUFFIXES)}")
    if name in MODELS or name in ALIASES:
        return fetch(name, progress=progress)
    if path.is_dir():
        unpacked = (
            ", but the parts of one: zip them again, as NAME.pt" if (path / "data.pkl").is_file() else ""
        )
        raise ValueError(
            f"{path}: a folder without model.safetensors{unpacked}: give a weight file or a finished run"
        )
    if path.parent.is_dir() and "/" in name:
        raise FileNotFoundError(f"{path}: no such file or run folder")
    if name.count("/") == 1 and all(name.split("/")):
        return from_hub(name)
    raise _unknown(name)


def _from_address(address: str, scheme: str) -> Path:
    """The file of "hf://owner/name"; other addresses are not fetched."""
    owner, _, name = address.partition(":/")[2].strip("/").partition("/")
    if scheme == "hf" and name and "/" not in name:
        return from_hub(f"{owner}/{name}")
    hint = "give hf://owner/name" if scheme == "hf" else "download the file and give its path"
    raise ValueError(
        f"{address}: only names that `patchout models` lists and hub ids owner/name are fetched: {hint}"
    )


def from_hub(repo_id: str) -> Path:
    """`model.safetensors` of a hub repository, through huggingface_hub; from its cache alone if the hub is silent."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    from patchout.checkpoint.download import DownloadError, unreachable

    why_not = "HF_HUB_OFFLINE is set" if _offline() else unreachable(constants.ENDPOINT)
    try:
        return Path(hf_hub_download(repo_id, "model.safetensors", local_files_only=bool(why_not)))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        reason = str(error).split("\n\n")[-1].partition("\n")[0].rstrip(".")
        reason = f"not cached, and {why_not}" if why_not else reason
        raise DownloadError(
            f"{repo_id!r} is no file and no folder here, and the hub gave no model.safetensors for it ({reason}); "
            "give the path of a file, or a name that `patchout models` lists"
        ) from error


def _unknown(name: str) -> UnknownModelError:
    near = difflib.get_close_matches(name, [*MODELS, *ALIASES], n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return UnknownModelError(
        f"unknown model {name!r}: {hint}`patchout models` lists all; a weight file or a hub id owner/name will do too"
    )


def fetch(name: str, *, progress: Progress | None = None) -> Path:
    """The file of a zoo name: built in, cached, or downloaded into the cache now.

    Every call compares a cached file with the SHA-256 of the zoo, or with the one recorded at first use (0.2 s).
    HF_HUB_OFFLINE=1 keeps it off the network. Raises UnknownModelError and DownloadError.
    """
    from patchout.checkpoint.download import by_hand, download

    name = ALIASES.get(name, name)
    if name not in MODELS:
        raise _unknown(name)
    entry = MODELS[name]
    path = _local_path(entry)
    if not entry.url:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: the built-in model is missing: install patchout again")
        return path
    if not path.is_file() and (entry.file or _offline()):
        why = "a drive that only a browser can read" if entry.file else "HF_HUB_OFFLINE is set"
        raise by_hand(entry.url, path, why)
    download(entry.url, path, sha256=entry.sha256, progress=progress)
    return path


def _local_path(entry: Entry) -> Path:
    """Where a model's file is, or would be, on this machine."""
    if entry.url:
        return cache_folder() / (entry.file or entry.url.rpartition("/")[2])
    return Path(str(resources.files("patchout.checkpoint") / "built_in" / f"{entry.name}.safetensors"))


def _offline() -> bool:
    """Whether the user keeps the hub's tools off the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")

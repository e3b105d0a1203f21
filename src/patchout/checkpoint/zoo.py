"""Model zoo: published models by name, files and hub repositories, downloaded and loaded."""

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from patchout.checkpoint.labels import label_names
from patchout.checkpoint.zoo_list import ALIASES, Entry
from patchout.checkpoint.zoo_list import MODELS as MODELS
from patchout.files import cache_folder as cache_folder

if TYPE_CHECKING:
    from patchout.checkpoint.own import Model
    from patchout.checkpoint.public import Public
    from patchout.models.maskspec import MaskSpec
    from patchout.models.tagger import Tagger

Progress = Callable[[int, int | None], None]  # bytes so far, and in total if the server says

PAPERS = {"passt": "arXiv:2110.05069", "maskspec": "arXiv:2204.12768"}
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


class UnknownModelError(ValueError):
    """A model name that is neither a file, nor in the zoo, nor a hub repository id."""


class Row(NamedTuple):
    """A published model as `patchout models` lists it."""

    name: str
    score: str
    licence: str
    size_bytes: int | None  # on this machine; None: not downloaded
    note: str


def rows() -> list[Row]:
    """All models of the zoo, with the size of a file that is on this machine."""
    alias = {name: short for short, name in ALIASES.items()}
    listed = []
    for entry in MODELS.values():
        path = _local_path(entry)
        size_bytes = path.stat().st_size if path.is_file() else None
        note = f"also {alias[entry.name]}; {entry.note}" if entry.name in alias else entry.note
        if entry.file and size_bytes is None:
            note += f"; fetch {entry.url} with a browser and save it as {path}"
        listed.append(Row(entry.name, entry.score, entry.licence, size_bytes, note))
    return listed


def load(
    name_or_path: str | Path,
    device: str = "auto",
    *,
    labels: Sequence[str] | None = None,
    hop_length: int | None = None,
    precision: Literal["fp32", "int8"] = "fp32",
    progress: Progress | None = None,
) -> "Tagger":
    """Load a model in evaluation mode: from a file, a zoo name or a hub id ("owner/name@revision").

    A name that is a file, a run folder, or ends like a weight file is a path; then the zoo is asked, then the
    hub. `device` "auto" is cuda, else mps, else cpu. `labels` replaces the class names. A public weight file
    whose name the zoo does not list gets the default front end, or this `hop_length` (samples);
    `checkpoint.import_passt` takes any other. Of a pre-trained MaskSpec it is the encoder, without classes.
    `precision` "int8" computes the linear layers of the blocks in int8, on a CPU; "auto" is then the CPU.
    Raises UnknownModelError, DownloadError, FileNotFoundError, or ValueError: wrong device, file or label
    count.
    """
    from patchout.models.device import pick_device
    from patchout.models.int8 import at_precision

    if precision not in ("fp32", "int8"):
        raise ValueError(f"a model is loaded in fp32 or int8, got {precision!r}: tag and embed take bf16")
    target = pick_device("cpu" if precision == "int8" and device == "auto" else device)
    model = _tagger(whole(name_or_path, hop_length=hop_length, progress=progress))
    if labels is not None:
        if len(labels) != (count := len(model.config.labels)):
            raise ValueError(f"{len(labels)} labels for the {count} classes of {name_or_path}")
        model.config = replace(model.config, labels=tuple(labels))
    return at_precision(model.to(target).eval(), precision)[0]


def whole(
    name_or_path: str | Path,
    *,
    hop_length: int | None = None,
    half_precision: bool = True,
    progress: Progress | None = None,
) -> "Model":
    """Load a model as stored, on the CPU: a pre-trained MaskSpec with its decoder. Raises what `load` raises.

    `half_precision=False` turns off the rounding of waveforms to float16 in the front end of the public
    MaskSpec weights; `checkpoint.save` stores that.
    """
    model = _model_of(locate(name_or_path, progress=progress), hop_length)
    if not half_precision:
        model.config = replace(model.config, mel=replace(model.config.mel, half_precision=False))
    return model


def load_pretrained(name_or_path: str | Path, device: str = "auto") -> "MaskSpec":
    """Load a pre-trained MaskSpec with its decoder, for reconstruction; ValueError for any other model."""
    from patchout.models.device import pick_device
    from patchout.models.maskspec import MaskSpec

    model = whole(name_or_path)
    if not isinstance(model, MaskSpec):
        allowed = "a run of `patchout pretrain --objective pixels`, or the public weights (maskspec-base)"
        raise ValueError(f"{name_or_path} is a tagger or an encoder without a decoder: give {allowed}")
    return model.to(pick_device(device)).eval()


def tagger_of(source: "Path | Public") -> "Tagger":
    """Read a tagger from a file, on the CPU; of a pre-trained MaskSpec its encoder."""
    return _tagger(_model_of(source))


def _tagger(model: "Model") -> "Tagger":
    from patchout.checkpoint.maskspec import encoder_of
    from patchout.models.tagger import Tagger

    return model if isinstance(model, Tagger) else encoder_of(model)


def _model_of(source: "Path | Public", hop_length: int | None = None) -> "Model":
    """Read our checkpoint or public weights, with hop, classes and licence if the zoo lists the file name."""
    from patchout.audio.mel import MelConfig
    from patchout.checkpoint import own
    from patchout.checkpoint.maskspec import import_maskspec, import_maskspec_classifier
    from patchout.checkpoint.public import read_public
    from patchout.errors import CheckpointError

    if isinstance(source, Path) and own.is_own(source):
        return own.load(source)
    public = read_public(source)
    file = Path(public.where).name
    entry = next((entry for entry in MODELS.values() if entry.url and _local_path(entry).name == file), None)
    model: Model
    if public.family == "image":
        hint = "give them to patchout train --init"
        raise CheckpointError(f"{public.where}: weights for images know no sounds: {hint}")
    if public.family == "maskspec":
        is_tuned = "head.weight" in public.weights
        model = (import_maskspec_classifier if is_tuned else import_maskspec)(public)
    else:
        mel = MelConfig(hop_length=(entry.hop_length if entry else hop_length) or MelConfig.hop_length)
        labels = label_names(entry.labels) if entry and entry.labels else None
        task = entry.task if entry else "multi_label"
        model = own.import_passt(public, mel=mel, labels=labels, task=task)
    if entry:
        provenance = {"name": entry.name, "url": entry.url, "score": entry.score}
        provenance["paper"] = PAPERS[public.family]
        model.config = replace(model.config, licence=entry.licence, provenance=provenance)
    return model


def locate(name_or_path: str | Path, *, progress: Progress | None = None) -> Path:
    """The local file of a model, downloaded if absent; names as for `load`."""
    name, path = str(name_or_path), Path(name_or_path).expanduser()
    if scheme := re.match(r"(\w\w+):/", name):
        return _from_address(name, scheme[1].lower())
    if path.is_dir() and (path / "model.safetensors").is_file():  # a run folder
        return path / "model.safetensors"
    if path.suffix in SUFFIXES:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; give one, or a name that `patchout models` lists")
        return path
    if path.is_file():
        raise ValueError(f"{path}: not a weight file: its name must end in {', '.join(SUFFIXES)}")
    if name in MODELS or name in ALIASES:
        return fetch(name, progress=progress)
    if path.is_dir():
        is_unzipped = (path / "data.pkl").is_file()
        parts = ", but the parts of one: zip them again, as NAME.pt" if is_unzipped else ""
        reason = f"a folder without model.safetensors{parts}"
        raise ValueError(f"{path}: {reason}: give a weight file or a finished run")
    if path.parent.is_dir() and "/" in name:
        raise FileNotFoundError(f"{path}: no such file or run folder")
    repo_id = name.partition("@")[0]
    if repo_id.count("/") == 1 and all(repo_id.split("/")):
        return from_hub(name)
    raise _unknown(name)


def _from_address(address: str, scheme: str) -> Path:
    """The file of "hf://owner/name"; ValueError for any other address."""
    owner, _, name = address.partition(":/")[2].strip("/").partition("/")
    if scheme == "hf" and name and "/" not in name.partition("@")[0]:
        return from_hub(f"{owner}/{name}")
    hint = "give hf://owner/name" if scheme == "hf" else "download the file and give its path"
    allowed = "names that `patchout models` lists and hub ids owner/name"
    raise ValueError(f"{address}: only {allowed} are fetched: {hint}")


def from_hub(repo_id: str) -> Path:
    """`model.safetensors` of a hub repository, by huggingface_hub; from its cache if it is unreachable.

    "owner/name@revision" is a branch, tag or commit of it. Raises DownloadError.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError
    from huggingface_hub.errors import RepositoryNotFoundError as NotFoundError

    from patchout.checkpoint.download import DownloadError, hub_errors, is_offline, unreachable

    offline = "HF_HUB_OFFLINE is set" if is_offline() else unreachable(constants.ENDPOINT)
    name, _, revision = repo_id.partition("@")
    errors: tuple[type[Exception], ...] = (EntryNotFoundError, HFValidationError, *hub_errors())
    try:
        file = hf_hub_download(
            name, "model.safetensors", revision=revision or None, local_files_only=bool(offline)
        )
        return Path(file)
    except errors as error:
        reason = str(error).split("\n\n")[-1].partition("\n")[0].rstrip(".")
        if isinstance(error, NotFoundError):
            is_gated = isinstance(error, GatedRepoError)
            reason = "accept its terms on its page" if is_gated else "none of this name, or a private one"
            reason += ": `hf auth login`, or set HF_TOKEN"
        reason = f"not cached, and {offline}" if offline else reason
        raise DownloadError(
            f"{repo_id!r} is no file and no folder here, and the hub gave no model.safetensors for it "
            f"({reason}); give the path of a file, or a name that `patchout models` lists"
        ) from error


def _unknown(name: str) -> UnknownModelError:
    near = difflib.get_close_matches(name, [*MODELS, *ALIASES], n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    allowed = "`patchout models` lists all; a weight file or a hub id owner/name will do too"
    return UnknownModelError(f"unknown model {name!r}: {hint}{allowed}")


def fetch(name: str, *, progress: Progress | None = None) -> Path:
    """The file of a zoo name: built in, cached, or downloaded into the cache.

    Every call verifies a cached file by the SHA-256 of the zoo, or by the one recorded at first use (0.2 s).
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
    if entry.file and not path.is_file():
        raise by_hand(entry.url, path, "a drive that only a browser can read")
    download(entry.url, path, sha256=entry.sha256, progress=progress)
    return path


def _local_path(entry: Entry) -> Path:
    """The path of a model's file on this machine, present or not."""
    if entry.url:
        return cache_folder() / (entry.file or entry.url.rpartition("/")[2])
    return Path(str(resources.files("patchout.checkpoint") / "built_in" / f"{entry.name}.safetensors"))

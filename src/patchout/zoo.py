"""Published models: what there is, where it comes from, and how a name becomes a model that runs."""

import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from patchout.labels import label_names

if TYPE_CHECKING:
    from patchout.passt import Passt

Progress = Callable[[int, int | None], None]  # bytes done, and bytes in all where the server says so
Task = Literal["multi_class", "multi_label"]

BUILT_IN = "esc10-tiny"
SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")


class UnknownModelError(ValueError):
    """A model name that is neither a file, nor in the zoo, nor a hub repository id."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One published model: where it is, what it may be used for, and what its file does not say about itself."""

    name: str
    url: str  # "": ships inside the package
    licence: str
    score: str
    labels: str  # a list of `label_names`; "": names are in the file, or the note says where
    hop_length: int = 320  # samples at 32 kHz
    task: Task = "multi_label"
    note: str = ""
    sha256: str | None = None  # None: not published, so recorded at first use


_GONE = "reported missing at its address (HTTP 404)"

_AUDIOSET = (  # name, release file, mAP, note
    ("passt-s-ap476", "v0.0.1-audioset/passt-s-f128-p16-s10-ap.476-swa.pt", ".476", "the usual start of fine-tuning"),
    ("passt-s-ap4761", "v0.0.2-audioset/passt-s-f128-p16-s10-ap.4761-swa.pt", ".4761", "stride 10, averaged"),
    ("passt-s-ap472", "v0.0.2-audioset/passt-s-f128-p16-s10-ap.472.pt", ".472", "stride 10, not averaged"),
    ("passt-s-s12-ap470", "v0.0.2-audioset/passt-s-f128-p16-s12-ap.470.pt", ".470", "stride 12, not averaged"),
    ("passt-s-s12-ap473", "v0.0.2-audioset/passt-s-f128-p16-s12-ap.473-swa.pt", ".473", "stride 12, averaged"),
    ("passt-s-s14-ap469", "v0.0.2-audioset/passt-s-f128-p16-s14-ap.469.pt", ".469", "stride 14, not averaged"),
    ("passt-s-s14-ap471", "v0.0.2-audioset/passt-s-f128-p16-s14-ap.471-swa.pt", ".471", "stride 14, averaged"),
    ("passt-s-s16-ap468", "v0.0.2-audioset/passt-s-f128-p16-s16-ap.468.pt", ".468", "stride 16, not averaged"),
    ("passt-s-s16-ap473", "v0.0.2-audioset/passt-s-f128-p16-s16-ap.473-swa.pt", ".473", "stride 16, averaged"),
    ("passt-s-kd-ap486", "v.0.0.9/passt-s-kd-ap.486.pt", ".486", "distilled from an ensemble"),
    ("passt-l-kd-ap47", "v.0.0.10/passt-l-kd-ap.47.pt", ".4708", "distilled; 7 blocks instead of 12"),
    ("passt-s-20sec-ap474", "v0.0.5/passt-s-f128-20sec-p16-s10-ap.474-swa.pt", ".474", "20 s in one pass"),
    ("passt-s-30sec-ap473", "v0.0.5/passt-s-f128-30sec-p16-s10-ap.473-swa.pt", ".473", "30 s in one pass"),
    ("passt-b-ap459", "v.0.0.7-audioset/passt-b-f128-p16-s16-ap.459.pt", ".459", "trained without Patchout"),
    (
        "passt-u600-ap460",
        "v.0.0.7-audioset/passt-u600-f128-p16-s16-ap.460.pt",
        ".460",
        "600 single patches dropped",
    ),
)
_FINER = (  # name, release file, mAP, hop in samples
    ("passt-s-hop160-ap473", "v0.0.3-audioset/passt-s-f128-stfthop160-p16-s10-ap.473-swa.pt", ".473", 160),
    ("passt-s-hop100-ap473", "v0.0.3-audioset/passt-s-f128-stfthop100-p16-s10-ap.473-swa.pt", ".473", 100),
)
_OPENMIC = (  # name, release file, note
    ("openmic-passt-s-ap85", "v0.0.5/openmic-passt-s-f128-10sec-p16-s10-ap.85.pt", "20 instruments"),
    ("openmic-passt-u-ap85", "v0.0.4-openmic/openmic2008.passt-u-f128-p16-s10-ap.85.pt", _GONE),
    ("openmic-passt-u-swa-ap85", "v0.0.4-openmic/openmic2008.passt-u-f128-p16-s10-ap.85-swa.pt", _GONE),
)
_FSD50K = (  # name, release file, mAP
    ("fsd50k-passt-s-ap655", "v0.0.5/fsd50k-passt-s-f128-p16-s10-ap.655.pt", ".655"),
    ("fsd50k-passt-s-n-ap642", "v0.0.5/fsd50k-passt-s-n-f128-p16-s16-ap.642.pt", ".642"),
)
_ESC50 = ("967", "977", "959", "987", "962")  # accuracy on folds 1 to 5, each with the model that was not trained on it


def _passt(name: str, path: str, score: str, *, labels: str = "audioset", hop: int = 320, note: str) -> Entry:
    """A release file of PaSST's authors; strides, depth and position tables are read from its shapes at loading."""
    return Entry(
        name=name,
        url=f"https://github.com/kkoutini/PaSST/releases/download/{path}",
        licence="Apache-2.0",
        score=score,
        labels=labels,
        hop_length=hop,
        task="multi_class" if labels == "esc50" else "multi_label",
        note=note,
    )


def _entries() -> Iterator[Entry]:
    """The built-in model, then the releases by data set."""
    yield Entry(
        name=BUILT_IN,
        url="",
        licence="Apache-2.0; trained on CC BY 3.0 clips",
        score="ESC-10 fold 5 accuracy .825",
        labels="",
        task="multi_class",
        note="built in, 10 everyday sounds",
    )
    for name, path, score, note in _AUDIOSET:
        yield _passt(name, path, f"AudioSet mAP {score}", note=note)
    for name, path, score, hop in _FINER:
        yield _passt(name, path, f"AudioSet mAP {score}", hop=hop, note=f"{hop / 32:g} ms frames")
    for name, path, note in _OPENMIC:
        yield _passt(name, path, "OpenMIC mAP .85", labels="openmic2018", note=note)
    for name, path, score in _FSD50K:
        yield _passt(name, path, f"FSD50K mAP {score}", labels="", note="class names: vocabulary.csv of the data set")
    for fold, accuracy in enumerate(_ESC50, start=1):
        path = f"v.0.0.6/esc50-passt-s-n-f128-p16-s10-fold{fold}-acc.{accuracy}.pt"
        score = f"ESC-50 fold {fold} accuracy .{accuracy}"
        yield _passt(f"esc50-passt-s-n-fold{fold}", path, score, labels="esc50", note=f"all folds but {fold}")


MODELS: dict[str, Entry] = {entry.name: entry for entry in _entries()}
ALIASES = {"passt-s": "passt-s-ap476", "passt-s-kd": "passt-s-kd-ap486", "passt-l-kd": "passt-l-kd-ap47"}


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
        found.append(Row(entry.name, entry.score, entry.licence, size_bytes, note))
    return found


def load(
    name_or_path: str | Path,
    device: str = "auto",
    *,
    labels: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> "Passt":
    """A model, fp32 and in evaluation mode, from a file, a zoo name or a hub repository id ("owner/name").

    A name that is a file, a run folder, or ends like a weight file is a path; then the zoo is asked, then the hub.
    `device` "auto" is cuda, else mps, else cpu. `labels` replaces the class names. A public weight file that the zoo
    does not list is read with the default front end: give another one to `checkpoint.import_passt`.
    Raises UnknownModelError, DownloadError, FileNotFoundError, or ValueError for a wrong device, file or label count.
    """
    from patchout import checkpoint
    from patchout.device import pick_device

    target = pick_device(device)
    path = locate(name_or_path, progress=progress)
    model = checkpoint.load(path) if path.suffix == ".safetensors" else _import_public(path)
    if labels is not None:
        if len(labels) != len(model.config.labels):
            raise ValueError(f"{len(labels)} labels for the {len(model.config.labels)} classes of {name_or_path}")
        model.config = replace(model.config, labels=tuple(labels))
    return model.to(target).eval()


def _import_public(path: Path) -> "Passt":
    """A public weight file; a file name that the zoo lists brings its front end, class names, licence and score."""
    from patchout import checkpoint
    from patchout.mel import MelConfig

    entry = next((entry for entry in MODELS.values() if entry.url.endswith(f"/{path.name}")), None)
    if entry is None:
        return checkpoint.import_passt(path)
    labels = label_names(entry.labels) if entry.labels else None
    model = checkpoint.import_passt(path, mel=MelConfig(hop_length=entry.hop_length), labels=labels, task=entry.task)
    provenance = {"name": entry.name, "url": entry.url, "score": entry.score, "paper": "arXiv:2110.05069"}
    model.config = replace(model.config, licence=entry.licence, provenance=provenance)
    return model


def locate(name_or_path: str | Path, *, progress: Progress | None = None) -> Path:
    """The file of a model on this machine, brought there if need be; `load` says what a name may be."""
    name, path = str(name_or_path), Path(name_or_path).expanduser()
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
        raise ValueError(f"{path}: a folder without model.safetensors: give a weight file or a finished run")
    if path.parent.is_dir() and "/" in name:
        raise FileNotFoundError(f"{path}: no such file or run folder")
    if name.count("/") == 1 and all(name.split("/")):
        return _from_hub(name)
    raise _unknown(name)


def _from_hub(repo_id: str) -> Path:
    """`model.safetensors` of a hub repository, through huggingface_hub and its cache."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    from patchout.download import DownloadError

    try:
        return Path(hf_hub_download(repo_id, "model.safetensors", local_files_only=_offline()))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        reason = str(error).split("\n\n")[-1].partition("\n")[0].rstrip(".")
        reason = "not cached, and HF_HUB_OFFLINE is set" if _offline() else reason
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
    from patchout.download import by_hand, download

    name = ALIASES.get(name, name)
    if name not in MODELS:
        raise _unknown(name)
    entry = MODELS[name]
    path = _local_path(entry)
    if not entry.url:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: the built-in model is missing: install patchout again")
        return path
    if not path.is_file() and _offline():
        raise by_hand(entry.url, path, "HF_HUB_OFFLINE is set")
    download(entry.url, path, sha256=entry.sha256, progress=progress)
    return path


def cache_folder() -> Path:
    """Where downloads stay: `patchout` beside the hub's own cache (HF_HOME, XDG_CACHE_HOME), read at every call."""
    xdg = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{xdg}/huggingface")
    return Path(os.path.expandvars(home)).expanduser() / "patchout"


def _local_path(entry: Entry) -> Path:
    """Where a model's file is, or would be, on this machine."""
    if entry.url:
        return cache_folder() / entry.url.rpartition("/")[2]
    return Path(str(resources.files("patchout") / "models" / f"{entry.name}.safetensors"))


def _offline() -> bool:
    """Whether the user keeps the hub's tools off the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")

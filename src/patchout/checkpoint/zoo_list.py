"""The published models: name, address, licence, score, and what a file does not say about itself."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Task = Literal["multi_class", "multi_label"]

BUILT_IN = "esc10-tiny"


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
    file: str = ""  # its name in the cache, where a browser must bring it; "": the last part of the url
    sha256: str | None = None  # None: not published, so recorded at first use


_GONE = "reported missing at its address (HTTP 404)"

_AUDIOSET = (  # name, release file, mAP, note
    (
        "passt-s-ap476",
        "v0.0.1-audioset/passt-s-f128-p16-s10-ap.476-swa",
        ".476",
        "the usual start of fine-tuning",
    ),
    ("passt-s-ap4761", "v0.0.2-audioset/passt-s-f128-p16-s10-ap.4761-swa", ".4761", "stride 10, averaged"),
    ("passt-s-ap472", "v0.0.2-audioset/passt-s-f128-p16-s10-ap.472", ".472", "stride 10, not averaged"),
    ("passt-s-s12-ap470", "v0.0.2-audioset/passt-s-f128-p16-s12-ap.470", ".470", "stride 12, not averaged"),
    ("passt-s-s12-ap473", "v0.0.2-audioset/passt-s-f128-p16-s12-ap.473-swa", ".473", "stride 12, averaged"),
    ("passt-s-s14-ap469", "v0.0.2-audioset/passt-s-f128-p16-s14-ap.469", ".469", "stride 14, not averaged"),
    ("passt-s-s14-ap471", "v0.0.2-audioset/passt-s-f128-p16-s14-ap.471-swa", ".471", "stride 14, averaged"),
    ("passt-s-s16-ap468", "v0.0.2-audioset/passt-s-f128-p16-s16-ap.468", ".468", "stride 16, not averaged"),
    ("passt-s-s16-ap473", "v0.0.2-audioset/passt-s-f128-p16-s16-ap.473-swa", ".473", "stride 16, averaged"),
    ("passt-s-kd-ap486", "v.0.0.9/passt-s-kd-ap.486", ".486", "distilled from an ensemble"),
    ("passt-l-kd-ap47", "v.0.0.10/passt-l-kd-ap.47", ".4708", "distilled; 7 blocks instead of 12"),
    ("passt-s-20sec-ap474", "v0.0.5/passt-s-f128-20sec-p16-s10-ap.474-swa", ".474", "20 s in one pass"),
    ("passt-s-30sec-ap473", "v0.0.5/passt-s-f128-30sec-p16-s10-ap.473-swa", ".473", "30 s in one pass"),
    ("passt-b-ap459", "v.0.0.7-audioset/passt-b-f128-p16-s16-ap.459", ".459", "trained without Patchout"),
    (
        "passt-u600-ap460",
        "v.0.0.7-audioset/passt-u600-f128-p16-s16-ap.460",
        ".460",
        "600 single patches dropped",
    ),
    (
        "passt-s-hop160-ap473",
        "v0.0.3-audioset/passt-s-f128-stfthop160-p16-s10-ap.473-swa",
        ".473",
        "5 ms frames",
    ),
    (
        "passt-s-hop100-ap473",
        "v0.0.3-audioset/passt-s-f128-stfthop100-p16-s10-ap.473-swa",
        ".473",
        "3.125 ms frames",
    ),
)
_OPENMIC = (  # name, release file, note
    ("openmic-passt-s-ap85", "v0.0.5/openmic-passt-s-f128-10sec-p16-s10-ap.85", "20 instruments"),
    ("openmic-passt-u-ap85", "v0.0.4-openmic/openmic2008.passt-u-f128-p16-s10-ap.85", _GONE),
    ("openmic-passt-u-swa-ap85", "v0.0.4-openmic/openmic2008.passt-u-f128-p16-s10-ap.85-swa", _GONE),
)
_FSD50K = (  # name, release file, mAP
    ("fsd50k-passt-s-ap655", "v0.0.5/fsd50k-passt-s-f128-p16-s10-ap.655", ".655"),
    ("fsd50k-passt-s-n-ap642", "v0.0.5/fsd50k-passt-s-n-f128-p16-s16-ap.642", ".642"),
)
_MASKSPEC = (  # name, place on the authors' drive, file name, score, note
    (
        *("maskspec-ap471", "1TwP9JMq6EViaSXAhpNMuQW56RIbk-v-v", "AudioSet_Pretrained_Finetuned.pth"),
        *("AudioSet mAP .471", "MaskSpec Base, fine-tuned"),
    ),
    (
        *("maskspec-base", "1hmbsqmMEB7j5MNq8L9w_htOe7UW7QKwb", "AudioSet_Pretrained.pth"),
        *("-", "MaskSpec Base, pre-trained only: for embed, fine-tuning and pretrain --init"),
    ),
)
_ESC50 = (
    "967",
    "977",
    "959",
    "987",
    "962",
)  # accuracy on folds 1 to 5, each with the model that was not trained on it


def _passt(name: str, path: str, score: str, *, labels: str = "audioset", note: str) -> Entry:
    """A release file of PaSST's authors: its name says the hop; stride, depth, positions are read from its shapes."""
    hop = re.search(r"stfthop(\d+)", path)
    return Entry(
        name=name,
        url=f"https://github.com/kkoutini/PaSST/releases/download/{path}.pt",
        licence="Apache-2.0",
        score=score,
        labels=labels,
        hop_length=int(hop[1]) if hop else 320,
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
    for name, path, note in _OPENMIC:
        yield _passt(name, path, "OpenMIC mAP .85", labels="openmic2018", note=note)
    for name, path, score in _FSD50K:
        yield _passt(
            name, path, f"FSD50K mAP {score}", labels="", note="class names: vocabulary.csv of the data set"
        )
    for fold, accuracy in enumerate(_ESC50, start=1):
        path = f"v.0.0.6/esc50-passt-s-n-f128-p16-s10-fold{fold}-acc.{accuracy}"
        score = f"ESC-50 fold {fold} accuracy .{accuracy}"
        yield _passt(f"esc50-passt-s-n-fold{fold}", path, score, labels="esc50", note=f"all folds but {fold}")
    for name, place, file, score, note in _MASKSPEC:
        yield Entry(
            name=name,
            url=f"https://drive.google.com/file/d/{place}/view",
            licence="Apache-2.0, parts of its code CC BY-NC 4.0",
            score=score,
            labels="audioset",
            note=note,
            file=file,
        )


MODELS: dict[str, Entry] = {entry.name: entry for entry in _entries()}
ALIASES = {"passt-s": "passt-s-ap476", "passt-s-kd": "passt-s-kd-ap486", "passt-l-kd": "passt-l-kd-ap47"}

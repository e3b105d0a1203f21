"""The published models: name, URL, licence, score, and the hop and labels that are not in the files."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Task = Literal["multi_class", "multi_label"]

BUILT_IN = "sounds-tiny"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A published model: URL, licence, score, and the hop, task and labels that are not in its file."""

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
_VOCABULARY = "class names: vocabulary.csv of the data set"

_AUDIOSET = (  # name, release file, note
    ("passt-s-ap476", "v0.0.1-audioset/passt-s-f128-p16-s10-ap.476-swa", "the usual start of fine-tuning"),
    ("passt-s-ap4761", "v0.0.2-audioset/passt-s-f128-p16-s10-ap.4761-swa", "stride 10, averaged"),
    ("passt-s-ap472", "v0.0.2-audioset/passt-s-f128-p16-s10-ap.472", "stride 10, not averaged"),
    ("passt-s-s12-ap470", "v0.0.2-audioset/passt-s-f128-p16-s12-ap.470", "stride 12, not averaged"),
    ("passt-s-s12-ap473", "v0.0.2-audioset/passt-s-f128-p16-s12-ap.473-swa", "stride 12, averaged"),
    ("passt-s-s14-ap469", "v0.0.2-audioset/passt-s-f128-p16-s14-ap.469", "stride 14, not averaged"),
    ("passt-s-s14-ap471", "v0.0.2-audioset/passt-s-f128-p16-s14-ap.471-swa", "stride 14, averaged"),
    ("passt-s-s16-ap468", "v0.0.2-audioset/passt-s-f128-p16-s16-ap.468", "stride 16, not averaged"),
    ("passt-s-s16-ap473", "v0.0.2-audioset/passt-s-f128-p16-s16-ap.473-swa", "stride 16, averaged"),
    ("passt-s-kd-ap486", "v.0.0.9/passt-s-kd-ap.486", "distilled from an ensemble"),
    ("passt-l-kd-ap47", "v.0.0.10/passt-l-kd-ap.47", "distilled; 7 blocks instead of 12"),
    ("passt-s-20sec-ap474", "v0.0.5/passt-s-f128-20sec-p16-s10-ap.474-swa", "20 s in one pass"),
    ("passt-s-30sec-ap473", "v0.0.5/passt-s-f128-30sec-p16-s10-ap.473-swa", "30 s in one pass"),
    ("passt-b-ap459", "v.0.0.7-audioset/passt-b-f128-p16-s16-ap.459", "trained without Patchout"),
    ("passt-u600-ap460", "v.0.0.7-audioset/passt-u600-f128-p16-s16-ap.460", "600 single patches dropped"),
    ("passt-s-hop160-ap473", "v0.0.3-audioset/passt-s-f128-stfthop160-p16-s10-ap.473-swa", "5 ms frames"),
    ("passt-s-hop100-ap473", "v0.0.3-audioset/passt-s-f128-stfthop100-p16-s10-ap.473-swa", "3.125 ms frames"),
)
_OPENMIC = (
    ("openmic-passt-s-ap85", "v0.0.5/openmic-passt-s-f128-10sec-p16-s10-ap.85", "20 instruments"),
    ("openmic-passt-u-ap85", "v0.0.4-openmic/openmic2008.passt-u-f128-p16-s10-ap.85", _GONE),
    ("openmic-passt-u-swa-ap85", "v0.0.4-openmic/openmic2008.passt-u-f128-p16-s10-ap.85-swa", _GONE),
)
_FSD50K = (
    ("fsd50k-passt-s-ap655", "v0.0.5/fsd50k-passt-s-f128-p16-s10-ap.655", _VOCABULARY),
    ("fsd50k-passt-s-n-ap642", "v0.0.5/fsd50k-passt-s-n-f128-p16-s16-ap.642", _VOCABULARY),
)
_ESC50 = ("967", "977", "959", "987", "962")  # accuracy on folds 1 to 5, each of the model not trained on it
_SCORES = {"passt-l-kd-ap47": ".4708"}  # where the file name has fewer digits
_MASKSPEC = (  # name, id on the authors' drive, file name, score, note
    (
        *("maskspec-ap471", "1TwP9JMq6EViaSXAhpNMuQW56RIbk-v-v", "AudioSet_Pretrained_Finetuned.pth"),
        *("AudioSet mAP .471", "MaskSpec Base, fine-tuned"),
    ),
    (
        *("maskspec-base", "1hmbsqmMEB7j5MNq8L9w_htOe7UW7QKwb", "AudioSet_Pretrained.pth"),
        *("-", "MaskSpec Base, pre-trained only: for embed, fine-tuning and pretrain --init"),
    ),
)


def _passt(name: str, path: str, metric: str, *, labels: str, note: str) -> Entry:
    """A release of PaSST's authors; hop and score by its file name, the other sizes are in the shapes."""
    hop = re.search(r"stfthop(\d+)", path)
    return Entry(
        name=name,
        url=f"https://github.com/kkoutini/PaSST/releases/download/{path}.pt",
        licence="Apache-2.0",
        score=f"{metric} {_SCORES.get(name, re.findall('[.][0-9]+', path)[-1])}",
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
        licence="CC-BY-SA-4.0; trained on free sounds",
        score="ESC-10 fold 5 accuracy .888",
        labels="",
        note="built in: everyday sounds, speech, music, silent on others",
    )
    data_sets = (
        ("AudioSet", "audioset", _AUDIOSET),
        ("OpenMIC", "openmic2018", _OPENMIC),
        ("FSD50K", "", _FSD50K),
    )
    for title, labels, releases in data_sets:
        for name, path, note in releases:
            yield _passt(name, path, f"{title} mAP", labels=labels, note=note)
    for fold, accuracy in enumerate(_ESC50, start=1):
        path = f"v.0.0.6/esc50-passt-s-n-f128-p16-s10-fold{fold}-acc.{accuracy}"
        name, metric = f"esc50-passt-s-n-fold{fold}", f"ESC-50 fold {fold} accuracy"
        yield _passt(name, path, metric, labels="esc50", note=f"all folds but {fold}")
    for name, drive_id, file, score, note in _MASKSPEC:
        yield Entry(
            name=name,
            url=f"https://drive.google.com/file/d/{drive_id}/view",
            licence="Apache-2.0, parts of its code CC BY-NC 4.0",
            score=score,
            labels="audioset",
            note=note,
            file=file,
        )


MODELS: dict[str, Entry] = {entry.name: entry for entry in _entries()}
ALIASES = {"passt-s": "passt-s-ap476", "passt-s-kd": "passt-s-kd-ap486", "passt-l-kd": "passt-l-kd-ap47"}

"""The front end that sherpa-onnx feeds to its CED slot, and the labels that it reads."""

import csv
from dataclasses import fields
from importlib import resources
from pathlib import Path

from patchout.audio.mel import MelConfig
from patchout.errors import InputError
from patchout.files import write_aside
from patchout.models.tagger import TaggerConfig

MEL = MelConfig(  # sherpa-onnx, offline-stream.cc, CEDTag; its frames are centred half a hop later
    sample_rate=16_000,
    n_fft=512,
    win_length=512,
    hop_length=160,
    n_mels=64,
    f_max=8_000.0,
    pre_emphasis=0.0,
    periodic=True,
    scale="db",
)


def check_sherpa(config: TaggerConfig, seconds: float | None) -> None:
    """Refuse a model that heard another front end; mean and deviation are the file's own."""
    if seconds is not None:
        raise ValueError("--seconds is for waveforms: sherpa-onnx feeds log-mels of any length")
    names = [field.name for field in fields(MelConfig) if field.name not in ("mean", "std")]
    pairs = [(name, getattr(config.mel, name), getattr(MEL, name)) for name in names]
    if differences := [f"{name} {has} instead of {feeds}" for name, has, feeds in pairs if has != feeds]:
        raise InputError(
            f"the model hears another front end than sherpa-onnx feeds ({', '.join(differences)}): "
            "train one with patchout.export.sherpa.MEL"
        )


def write_labels(path: Path, labels: tuple[str, ...]) -> None:
    """Write index, AudioSet's identifier (else "class_" and the index) and name of every class as CSV."""
    table = resources.files("patchout.checkpoint") / "label_lists" / "audioset.csv"
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    mids = {row["display_name"]: row["mid"] for row in rows}
    with write_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        file.write("index,mid,display_name\n")
        for index, name in enumerate(labels):
            quoted = name.replace('"', '""')
            file.write(f'{index},{mids.get(name, f"class_{index}")},"{quoted}"\n')

"""Sounds to pre-train on, without labels and without any test split: python benchmarks/unlabelled.py DATA OUT

Streams of about six seconds, 32 kHz: spoken digits (takes 5-49, a stream per speaker), notes (training
instruments, a stream per instrument), piano pieces (training, in thirds), and the clips of ESC-10 outside
fold 5: 1.3 hours. Digits and notes last under a second, and padded to a crop they would be mostly silence; so
they follow one another.
"""

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from patchout.audio import stream as audio

RATE, STREAM_S = 32_000, 6.0
HELD_OUT = "5"  # fold of ESC-10


def digits_and_notes(data: Path) -> dict[str, list[Path]]:
    """Spoken digits by speaker (training takes) and single notes by program (training part)."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in sorted((data / "fsdd" / "recordings").glob("*.wav")):
        _, speaker, take = path.stem.split("_")
        if int(take) >= 5:
            groups[f"digits_{speaker}"].append(path)
    for row in csv.DictReader((data / "gm" / "pitch.csv").open()):
        if row["split"] == "train":
            groups[f"notes_{row['gm_program']}"].append(data / "gm" / "pitch" / row["file"])
    return groups


def sounds(data: Path) -> Iterator[tuple[str, list[Path]]]:
    """Name and sounds of each stream that is cut into files."""
    rng = np.random.default_rng(0)
    for name, paths in digits_and_notes(data).items():
        yield name, [paths[index] for index in rng.permutation(len(paths))]


def write(out: Path, name: str, waves: Iterable[np.ndarray], seconds: float = STREAM_S) -> None:
    """Join the waves, and begin a new file whenever `seconds` are reached."""
    held: list[np.ndarray] = []
    files = 0
    for wave in (*waves, None):
        if held and (wave is None or sum(map(len, held)) >= seconds * RATE):
            soundfile.write(out / f"{name}_{files:03d}.wav", np.concatenate(held), RATE, subtype="PCM_16")
            held, files = [], files + 1
        if wave is not None:
            held.append(wave)


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description="Unlabelled sounds for `patchout pretrain own`.")
    parser.add_argument("data", type=Path, help="folder with esc10, fsdd and gm")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    for name, paths in sounds(options.data):
        write(options.out, name, (audio.load(path, RATE) for path in paths))
    for file, piece in json.loads((options.data / "gm" / "piano.json").read_text()).items():
        if piece["split"] == "train":
            wave = audio.load(options.data / "gm" / "piano" / file, RATE)
            write(options.out, f"piano_{Path(file).stem}", np.array_split(wave, 3))
    esc10 = options.data / "esc10"
    for row in csv.DictReader((esc10 / "esc10.csv").open()):
        if row["fold"] != HELD_OUT:
            path = next(esc10.rglob(row["filename"]))
            write(options.out, f"esc10_{path.stem}", [audio.load(path, RATE)])
    print(f"{len(list(options.out.iterdir()))} files")


if __name__ == "__main__":
    main()

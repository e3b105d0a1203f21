"""What scene embeddings of the built-in model know: python benchmarks/probe.py DATA

DATA holds `esc10/` and `fsdd/recordings/`. A 5-nearest-neighbour and a logistic-regression probe on the
embeddings (`mid`), and on log-mel statistics (mean and deviation of every band over the clip). ESC-10:
trained on folds 1-4, as the model was, tested on fold 5. Spoken digits, which the model never heard: tested
on takes 0-4.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import patchout
from patchout.inference.embedding import EmbedConfig, Embedder
from patchout.inference.metrics import wilson_interval
from patchout.models.passt import Passt

Set = tuple[list[Path], list[str], np.ndarray]  # files, labels, is it a test clip?


def esc10(root: Path) -> Set:
    """ESC-10, fold 5 against the rest."""
    clips = patchout.data.scan(root)
    return (
        [Path(name) for name in clips.names()],
        [clips.labels(clip)[0] for clip in range(len(clips))],
        clips.column("fold") == "5",
    )


def digits(root: Path) -> Set:
    """Spoken digits, takes 0-4 against the rest: `{digit}_{speaker}_{take}.wav`."""
    files = sorted(root.glob("*.wav"))
    parts = [file.stem.split("_") for file in files]
    return files, [part[0] for part in parts], np.array([int(part[2]) < 5 for part in parts])


def embeddings(model: Passt, files: Sequence[Path]) -> np.ndarray:
    """The C and D tokens' mean, one row a clip."""
    embedder = Embedder(model, EmbedConfig(scene_levels=("mid",)))
    return np.stack([embedder.scene_of(patchout.audio.Stream(str(file), 32_000)) for file in files])


def statistics(model: Passt, files: Sequence[Path]) -> np.ndarray:
    """Mean and deviation of every band."""
    rows = []
    for file in files:
        mel = patchout.log_mel(patchout.audio.load(str(file))[None], model.config.mel)[0]
        rows.append(torch.cat([mel.mean(1), mel.std(1)]).numpy())
    return np.stack(rows)


def main() -> None:
    """Embed, probe, print."""
    parser = argparse.ArgumentParser(description="Probes on scene embeddings of the built-in model.")
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    model = patchout.load("sounds-tiny", device="cpu")
    assert isinstance(model, Passt)
    for name, (files, labels, test) in {
        "ESC-10": esc10(data / "esc10"),
        "digits": digits(data / "fsdd" / "recordings"),
    }.items():
        truth = np.array(labels)
        for what, make in (("embedding", embeddings), ("log-mel statistics", statistics)):
            values = make(model, files)
            for probe in (KNeighborsClassifier(5), LogisticRegression(max_iter=5000)):
                fitted = make_pipeline(StandardScaler(), probe).fit(values[~test], truth[~test])
                score = float((fitted.predict(values[test]) == truth[test]).mean())
                low, high = wilson_interval(score, int(test.sum()))
                method = type(probe).__name__
                print(
                    f"{name:<8}{what:<20}{method:<22}{score:.3f} ({low:.3f} - {high:.3f}), "
                    f"{test.sum()} clips",
                    flush=True,
                )


if __name__ == "__main__":
    main()

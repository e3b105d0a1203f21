"""How near int8 is to float32: python benchmarks/int8.py DATA --model sounds-tiny

DATA holds `esc10/` and `esc50/audio/`. Of the clips of ESC-10's fold 5 and of all of ESC-50: the share whose
top class stays, the largest difference of a logit beside the spread of all, and the lowest cosine of the
embeddings. `tests/test_golden.py` holds the difference on the golden clips.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

import patchout
from patchout.audio.mel import log_mel
from patchout.models.int8 import quantised
from patchout.models.tagger import Tagger, hear


def agreement(name: str, model: Tagger, files: Iterable[Path]) -> str:
    """A line of the table."""
    rounded = quantised(model)
    logits, cosines = [], []
    for file in files:
        with torch.inference_mode():
            wave = np.concatenate(list(hear(model.config, file)))[: model.config.max_samples]
            mel = log_mel(torch.from_numpy(wave)[None], model.config.mel)
            exact, near = model(mel), rounded(mel)
        logits.append(torch.stack((exact.logits[0], near.logits[0])).numpy())
        cosines.append(float(torch.cosine_similarity(exact.embedding, near.embedding)[0]))
    table = np.stack(logits)  # (clip, fp32 or int8, class)
    top = table.argmax(axis=2)
    same, largest = int((top[:, 0] == top[:, 1]).sum()), np.abs(table[:, 0] - table[:, 1]).max()
    spread, lowest = table[:, 0].std(), min(cosines)
    return f"{name:<22}{same} of {len(table)}   {largest:.3f} (spread {spread:.1f})   {lowest:.5f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="How near int8 is to float32.")
    parser.add_argument("data", type=Path, help="folder with esc10/ and esc50/")
    parser.add_argument("--model", default="sounds-tiny", help="as patchout.load takes it")
    options = parser.parse_args()
    model = patchout.load(options.model, "cpu")
    clips = patchout.data.scan(options.data / "esc10")
    fold5 = [
        Path(name) for name, fold in zip(clips.names(), clips.column("fold"), strict=True) if fold == "5"
    ]
    print("clips                 top class   largest difference of a logit   lowest cosine of embeddings")
    print(agreement("ESC-10, fold 5", model, fold5))
    print(agreement("ESC-50", model, sorted((options.data / "esc50" / "audio").iterdir())))


if __name__ == "__main__":
    main()

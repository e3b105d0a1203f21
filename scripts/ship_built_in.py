"""Make the built-in model from a finished run: half precision, with its history inside.

    PYTHONPATH=benchmarks python scripts/ship_built_in.py RUN DATA --commit HASH --pretraining "COMMAND"

Scores the very file that it writes (`benchmarks/open_set.py`) and stores the scores with their intervals.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from open_set import shares

import patchout
from patchout.checkpoint import own as checkpoint
from patchout.checkpoint.zoo_list import BUILT_IN
from patchout.models.tagger import Tagger

LICENCE = "CC-BY-SA-4.0"
DATA_LICENCE = (
    "ESC-10 CC BY 3.0; Free Spoken Digit Dataset CC BY-SA 4.0; free sounds under Apache-2.0, BSD, CC0, "
    "CC BY, CC BY-SA 3.0 and 4.0, and ODbL 1.0; notes and pieces rendered from a sound font"
)
TARGET = Path(patchout.__file__).parent / "checkpoint" / "built_in" / f"{BUILT_IN}.safetensors"


def main() -> None:
    """Read the arguments, write the model, print its scores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--commit", required=True, help="commit that trained it")
    parser.add_argument("--pretraining", required=True, help="command of the start weights")
    args = parser.parse_args()
    model = checkpoint.load(args.run / "model.safetensors")
    assert isinstance(model, Tagger)
    facts = model.config.provenance
    labels = tuple(label.replace(" ", "_") for label in model.config.labels)  # as ESC-50 writes them
    model.config = replace(model.config, labels=labels)
    checkpoint.save(model, TARGET, half=True)
    scores = shares(patchout.load(str(TARGET), "cpu"), args.data)  # of the very file, in half precision
    provenance = {
        **facts,
        "name": BUILT_IN,
        "init": "pre-trained on the same sounds",
        "pretraining": args.pretraining,
        "commit": args.commit,
        "data": facts["data"] | {"name": "ESC-10 and free sounds", "licence": DATA_LICENCE},
        "scores": {name: share.value for name, share in scores.items()},
        "intervals": {name: share.interval for name, share in scores.items()},
        "scored": "clips that it was not trained on",
    }
    model.config = replace(model.config, licence=LICENCE, provenance=provenance)
    checkpoint.save(model, TARGET, half=True)
    print(f"{TARGET}: {TARGET.stat().st_size / 1e6:.1f} MB")
    for name, share in scores.items():
        print(f"{name}: {share.value:.3f} of {share.clips}")


if __name__ == "__main__":
    main()

"""Make the built-in model from a finished run: half precision, with its history inside.

    python scripts/ship_esc10.py runs/esc10 --data ESC-10 --commit HASH

Evaluates the very file it writes on the run's held-out fold and stores the score and its confidence interval.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import patchout
from patchout.checkpoint import own as checkpoint
from patchout.data.sets import scan
from patchout.inference.evaluate import judge, predict
from patchout.models.passt import Passt

LICENCE = (
    "Apache-2.0; trained on ESC-10 (K. J. Piczak, 2015), CC BY 3.0, attribution per clip in that data set"
)
TARGET = Path(patchout.__file__).parent / "checkpoint" / "built_in" / "esc10-tiny.safetensors"


def main() -> None:
    """Read the arguments, write the model, print its score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="commit that trained it")
    args = parser.parse_args()
    model = checkpoint.load(args.run / "model.safetensors")
    config = json.loads((args.run / "config.json").read_text())
    assert isinstance(model, Passt)
    checkpoint.save(model, TARGET, half=True)
    model = checkpoint.load(TARGET)  # the very file, in half precision
    assert isinstance(model, Passt)
    fold = config["config"]["split"]
    held = scan(args.data).only(fold)
    found = predict(model, held, precision="fp32", batch_size=16)
    result = judge(found, held, labels=model.config.labels, task=model.config.task)
    provenance = {
        "name": "esc10-tiny",
        "command": f"patchout train esc10 --data ESC-10 --out {args.run}",
        "commit": args.commit,
        "seed": config["config"]["seed"],
        "versions": config["versions"],
        "test_fold": fold,
        "accuracy": result.scores["accuracy"],
        "accuracy_interval": result.intervals["accuracy"],
        "paper": "arXiv:2110.05069",
    }
    model.config = replace(model.config, licence=LICENCE, provenance=provenance)
    checkpoint.save(model, TARGET, half=True)
    print(
        f"{TARGET}: {TARGET.stat().st_size / 1e6:.1f} MB, "
        f"{result.clips} clips of fold {fold}, {result.scores}"
    )


if __name__ == "__main__":
    main()

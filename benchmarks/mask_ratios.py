"""The mask-ratio curve of MaskSpec (Figure 2) by one command:
python benchmarks/mask_ratios.py own --data SOUNDS --labelled LABELLED --out runs/ratios --pretrain "--epochs
100" --train "--epochs 100 --split 5"

For each ratio a pre-training of the recipe, then fine-tuning on the labelled set; all else is equal. The
score is the first that `patchout train` writes: accuracy, or mAP of several labels a clip; of the test clips
if there are any, else of those held out. Writes curve.json and curve.png into the folder; what stands in
curve.json with the same commands is not run again, and a run that was stopped goes on.
"""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from patchout.cli.main import run_command
from patchout.files import write_json

RATIOS = (0.05, 0.15, 0.25, 0.5, 0.65, 0.75, 0.85, 0.95)


def commands(ratio: float, options: argparse.Namespace) -> list[list[str]]:
    """Pre-training with that share hidden, then fine-tuning."""
    pre, tuned = (str(options.out / f"{name}-{ratio:g}") for name in ("pre", "tuned"))
    before = [
        "--data",
        options.data,
        "--out",
        pre,
        "--mask-ratio",
        str(ratio),
        *shlex.split(options.pretrain),
    ]
    after = ["--data", options.labelled, "--out", tuned, "--init", pre, *shlex.split(options.train)]
    return [["pretrain", options.recipe, *before], ["train", options.tune, *after]]


def point(ratio: float, options: argparse.Namespace, held: dict[str, Any]) -> dict[str, Any]:
    """What fine-tuning reached with these commands: as held from an earlier call, else by running them."""
    wanted = commands(ratio, options)
    if held.get("commands") == wanted:
        return held
    for command in wanted:
        if code := run_command(command):
            raise SystemExit(code)
        if not (options.out / f"pre-{ratio:g}" / "model.safetensors").exists():
            raise SystemExit(f"stopped at ratio {ratio:g}; the same command goes on")
    written = json.loads((options.out / f"tuned-{ratio:g}" / "scores.json").read_text())
    several = "runs" in written  # folds or seeds
    name, score = next(iter(written["mean" if several else "scores"].items()))
    where = f"mean of {len(written['runs'])} runs" if several else f"on the {written['clips']} clips"
    return {"score": score, "name": f"{name}, {where}", "commands": wanted}


def draw(path: Path, curve: dict[str, dict[str, Any]], title: str) -> None:
    """The curve, its axis named by what it shows."""
    (name,) = {one["name"] for one in curve.values()}
    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([float(ratio) for ratio in curve], [one["score"] for one in curve.values()], marker="o")
    axes.set(xlabel="mask ratio of the pre-training", ylabel=f"{name}, after fine-tuning", title=title)
    figure.savefig(path)


def main() -> None:
    """Run what is missing, print and draw the curve."""
    parser = argparse.ArgumentParser(
        description="Score after fine-tuning by the share hidden in pre-training."
    )
    parser.add_argument("recipe", help="of `patchout pretrain`")
    parser.add_argument("--data", required=True, help="sounds to pre-train on")
    parser.add_argument("--labelled", required=True, help="data set to fine-tune on and to score")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tune", default="folder", help="recipe of `patchout train` (default: folder)")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument(
        "--pretrain", default="", help="further options of `patchout pretrain`, in one string"
    )
    parser.add_argument("--train", default="", help="further options of `patchout train`, in one string")
    options = parser.parse_args()
    file = options.out / "curve.json"
    held = json.loads(file.read_text()) if file.exists() else {}
    curve = {}
    for ratio in sorted(options.ratios):
        curve[f"{ratio:g}"] = point(ratio, options, held.get(f"{ratio:g}", {}))
        write_json(file, held | curve)
    draw(options.out / "curve.png", curve, f"{options.recipe}, then {options.tune}")
    for ratio, one in curve.items():
        print(f"{float(ratio):.2f}  {one['score']:.4f}  {one['name']}")


if __name__ == "__main__":
    main()

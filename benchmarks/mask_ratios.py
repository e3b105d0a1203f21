"""The mask-ratio curve of MaskSpec (Figure 2) by one command: python benchmarks/mask_ratios.py own --data SOUNDS
--labelled LABELLED --out runs/ratios --pretrain "--epochs 100" --train "--epochs 100 --split 5"

For each ratio a pre-training of the recipe, then fine-tuning on the labelled set; all else is equal. Runs that are
finished are not done again. Writes curve.json and curve.png into the folder.
"""

import argparse
import json
import shlex
from pathlib import Path

from matplotlib.figure import Figure

from patchout.cli import run_command

RATIOS = (0.05, 0.15, 0.25, 0.5, 0.65, 0.75, 0.85, 0.95)


def one(ratio: float, options: argparse.Namespace) -> dict[str, float]:
    """The scores of a fine-tuned model whose pre-training hid that share."""
    pre, tuned = options.out / f"pre-{ratio:g}", options.out / f"tuned-{ratio:g}"
    before = ["--data", options.data, "--out", str(pre), "--mask-ratio", str(ratio), *shlex.split(options.pretrain)]
    after = ["--data", options.labelled, "--out", str(tuned), "--init", str(pre), *shlex.split(options.train)]
    if code := run_command(["pretrain", options.recipe, *before]) or run_command(["train", options.tune, *after]):
        raise SystemExit(code)
    scores: dict[str, float] = json.loads((tuned / "scores.json").read_text())["scores"]
    return scores


def main() -> None:
    """Run what is missing, print and draw the curve."""
    parser = argparse.ArgumentParser(description="Score after fine-tuning by the share hidden in pre-training.")
    parser.add_argument("recipe", help="of `patchout pretrain`")
    parser.add_argument("--data", required=True, help="sounds to pre-train on")
    parser.add_argument("--labelled", required=True, help="data set to fine-tune on and to score")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tune", default="folder", help="recipe of `patchout train` (default: folder)")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    parser.add_argument("--pretrain", default="", help="further options of `patchout pretrain`, in one string")
    parser.add_argument("--train", default="", help="further options of `patchout train`, in one string")
    options = parser.parse_args()
    scores = {ratio: one(ratio, options) for ratio in sorted(options.ratios)}
    (options.out / "curve.json").write_text(json.dumps(scores, indent=1))
    name = next(iter(scores[min(scores)]))
    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([*scores], [found[name] for found in scores.values()], marker="o")
    axes.set(xlabel="mask ratio", ylabel=name, title=f"{options.recipe}, then {options.tune}")
    figure.savefig(options.out / "curve.png")
    for ratio, found in scores.items():
        print(f"{ratio:.2f}  {name} {found[name]:.4f}")


if __name__ == "__main__":
    main()

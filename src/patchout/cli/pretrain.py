"""`patchout pretrain RECIPE`: self-supervised training; every field of the recipe's config is a flag."""

import sys
from collections.abc import Sequence

from patchout.cli import output
from patchout.cli.command import DONE, WRONG_USAGE
from patchout.cli.train import run_recipe
from patchout.training.masked.recipes import ABOUT, RECIPES, recipe

OF_WEIGHTS = frozenset({"size", "decoder", "normalize_patches"})  # settings that initial weights bring
USAGE = "usage: patchout pretrain RECIPE --data SOUNDS --out RUN [options]"
KINDS = "a folder, CSV or JSONL list, prepared set, or hub set (hf://owner/name)"


def main(args: Sequence[str]) -> int:
    """Run `patchout pretrain RECIPE`."""
    if not args or args[0] in ("-h", "--help"):
        page = (f"{USAGE}\n\nrecipes: {', '.join(RECIPES)}", *ABOUT.values())
        output.line("\n\n".join(page), sys.stdout if args else sys.stderr)
        return DONE if args else WRONG_USAGE
    config, summary = recipe(args[0])
    data = f"sounds without labels, or with: {KINDS}"
    return run_recipe("pretrain", args, config, description=summary, data_help=data, of_weights=OF_WEIGHTS)

"""`patchout train RECIPE`: every field of the recipe's config is a flag."""

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from patchout import output
from patchout.commands import DONE, WRONG_USAGE, near, say


def main(args: Sequence[str]) -> int:
    """Run `patchout train RECIPE`: every field of its config is a flag."""
    names = [module.name for module in pkgutil.iter_modules(importlib.import_module("patchout.recipes").__path__)]
    usage = f"usage: patchout train RECIPE --data DATA --out RUN [options]; recipes: {', '.join(names)}"
    if not args or args[0] in ("-h", "--help"):
        output.line(f"{usage}\n`patchout train RECIPE --help` shows its options.", sys.stdout if args else sys.stderr)
        return DONE if args else WRONG_USAGE
    if args[0] not in names:
        raise ValueError(f"unknown recipe {args[0]!r}{near(args[0], names)}: recipes are {', '.join(names)}")
    from patchout.train import TrainConfig, run

    recipe = importlib.import_module(f"patchout.recipes.{args[0]}")

    @dataclass(kw_only=True)
    class TrainOptions:
        data: Path
        """folder of class folders, or with one CSV on top"""
        out: Path
        """run folder; the same command continues the run in it"""
        config: tyro.conf.OmitArgPrefixes[TrainConfig] = field(default_factory=recipe.config)

    about = (recipe.__doc__ or "").strip()
    options = tyro.cli(TrainOptions, args=args[1:], prog=f"patchout train {args[0]}", description=about)
    with output.Bar("steps", None, sys.stderr) as advance:
        scores = run(options.config, options.data, options.out, on_progress=advance.training, on_problem=say)
    output.line(f"{options.out / 'model.safetensors'}  {output.scores_text(scores)}", sys.stdout)
    return DONE

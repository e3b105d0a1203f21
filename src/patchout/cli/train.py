"""`patchout train RECIPE`: supervised training; every field of the recipe's config is a flag."""

import importlib
import sys
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

import tyro

from patchout.cli import output
from patchout.cli.command import DONE, STOPPED, TERMINATED, WRONG_USAGE, say
from patchout.training.config import RunConfig

USAGE = "usage: patchout train RECIPE --data DATA --out RUN [options]"
RUNS = {"train": "patchout.training.supervised.run", "pretrain": "patchout.training.masked.run"}
DATA = "folder a class, CSV or JSONL list, prepared set, or hub set (hf://owner/name)"


def main(args: Sequence[str]) -> int:
    """Run `patchout train RECIPE`: every field of its config is a flag."""
    from patchout.training.recipes import recipe

    if not args or args[0] in ("-h", "--help"):
        output.line(_overview(), sys.stdout if args else sys.stderr)
        return DONE if args else WRONG_USAGE
    chosen = recipe(args[0])
    return run_recipe("train", args, chosen.config, description=chosen.description, data_help=DATA)


def run_recipe(
    kind: Literal["train", "pretrain"],
    args: Sequence[str],
    chosen: RunConfig,
    *,
    description: str,
    data_help: str,
    of_weights: AbstractSet[str] = frozenset(),
) -> int:
    """Run `patchout KIND RECIPE`; `of_weights` are the settings that initial weights bring with them."""

    @dataclass(kw_only=True)
    class Options:
        data: Annotated[str, tyro.conf.arg(help=data_help)]
        out: Path
        """run folder; the same command continues the run in it"""
        restart: bool = False
        """begin anew in a folder that holds a run"""
        accept_changes: bool = False
        """continue a run although the config has changed"""
        config: tyro.conf.OmitArgPrefixes[RunConfig] = field(default_factory=lambda: chosen)

    options = tyro.cli(Options, args=args[1:], prog=f"patchout {kind} {args[0]}", description=description)
    from patchout.training.run import Listener
    from patchout.training.run_folder import as_begun, saved_states
    from patchout.training.signals import Stopped, rank

    config = replace(options.config, data=options.data, out=options.out)
    if not (options.restart or options.accept_changes):
        config, begun = as_begun(config, chosen, options.out, of_weights=of_weights)
        if begun:
            hint = "--accept-changes takes the recipe's values of today"
            say(f"{options.out} goes on as it began ({begun}); {hint}")
    before = saved_states(options.out) if options.restart else set()  # of the run that is left
    with output.Bar("steps", None, sys.stderr) as bar:
        listener = Listener(
            on_plan=lambda plan: say(plan.describe()),
            on_progress=bar.training,
            on_problem=say,
            on_result=lambda table: output.line(table, sys.stdout),
        )
        run = importlib.import_module(RUNS[kind]).run
        try:
            scores = run(config, listener, restart=options.restart, accept_changes=options.accept_changes)
        except (Stopped, KeyboardInterrupt) as stop:
            if saved_states(options.out) - before:
                say("stopped, the state is saved: the same command, without --restart, continues")
            else:
                say("stopped before anything was saved: the same command begins anew")
            if isinstance(stop, KeyboardInterrupt):
                return STOPPED
            return DONE if rank() else TERMINATED  # torchrun would end the main one while it saves
    model = config.out / "model.safetensors"  # of several seeds, folds or channels each has its own
    output.line(f"{model if model.exists() else config.out}  {output.scores_text(scores)}", sys.stdout)
    return DONE


def _overview() -> str:
    """The help page of `patchout train`: all recipes, a data set a line."""
    from patchout.training.recipes import names

    rows = []
    for group, variants in groupby(names(), key=lambda name: name.partition("-")[0]):
        suffixes = [name.removeprefix(group) for name in variants if name != group]
        rows.append(f"  {group:<16}{'  '.join(suffixes)}")
    hint = "`patchout train RECIPE --help` shows its options."
    return "\n".join([USAGE, "", "recipes and their variants:", *rows, "", hint])

"""`patchout train RECIPE`: every field of the recipe's config is a flag."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import tyro

from patchout import output
from patchout.commands import DONE, WRONG_USAGE, say
from patchout.train_config import TrainConfig

USAGE = "usage: patchout train RECIPE --data DATA --out RUN [options]"


def main(args: Sequence[str]) -> int:
    """Run `patchout train RECIPE`: every field of its config is a flag."""
    from patchout.recipes import recipe

    if not args or args[0] in ("-h", "--help"):
        output.line(_overview(), sys.stdout if args else sys.stderr)
        return DONE if args else WRONG_USAGE
    chosen = recipe(args[0])

    @dataclass(kw_only=True)
    class TrainOptions:
        data: str
        """folder a class, CSV or JSONL list, prepared set, or hub set (hf://owner/name)"""
        out: Path
        """run folder; the same command continues the run in it"""
        restart: bool = False
        """begin anew in a folder that holds a run"""
        accept_changes: bool = False
        """continue a run although the config has changed"""
        config: tyro.conf.OmitArgPrefixes[TrainConfig] = field(default_factory=lambda: chosen.config)

    options = tyro.cli(TrainOptions, args=args[1:], prog=f"patchout train {args[0]}", description=chosen.about)
    from patchout.loop import Stopped
    from patchout.run_folder import as_begun
    from patchout.train import Listener, run

    config = replace(options.config, data=options.data, out=options.out)
    if not (options.restart or options.accept_changes):
        config, begun = as_begun(config, chosen.config, options.out)
        if begun:
            say(f"{options.out} goes on as it began ({begun}); --accept-changes takes the recipe's values of today")
    with output.Bar("steps", None, sys.stderr) as bar:
        listener = Listener(on_plan=lambda plan: say(plan.describe()), on_progress=bar.training, on_problem=say)
        try:
            scores = run(config, listener, restart=options.restart, accept_changes=options.accept_changes)
        except Stopped:
            say("stopped, the state is saved: the same command, without --restart, continues")
            return DONE
    several = config.folds or config.seeds > 1 or config.channel == "each"
    result = config.out if several else config.out / "model.safetensors"
    output.line(f"{result}  {output.scores_text(scores)}", sys.stdout)
    return DONE


def _overview() -> str:
    """All recipes, a data set a line."""
    from patchout.recipes import names

    rows = [f"  {group:<16}{'  '.join(found)}" for group, found in _grouped(names())]
    return "\n".join(
        (USAGE, "", "recipes and their variants:", *rows, "", "`patchout train RECIPE --help` shows its options.")
    )


def _grouped(names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Variants behind the data set they belong to."""
    return [
        (group, [name.removeprefix(group) for name in found if name != group])
        for group, found in groupby(names, key=lambda name: name.partition("-")[0])
    ]

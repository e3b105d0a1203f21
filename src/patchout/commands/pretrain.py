"""`patchout pretrain RECIPE`: every field of the recipe's config is a flag."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from patchout import output
from patchout.commands import DONE, WRONG_USAGE, say
from patchout.pretrain_config import ABOUT, RECIPES, PretrainConfig, recipe

OF_WEIGHTS = frozenset({"size", "decoder", "normalize_patches"})  # what start weights bring
USAGE = "usage: patchout pretrain RECIPE --data SOUNDS --out RUN [options]"


def main(args: Sequence[str]) -> int:
    """Run `patchout pretrain RECIPE`."""
    if not args or args[0] in ("-h", "--help"):
        page = (f"{USAGE}\n\nrecipes: {', '.join(RECIPES)}", *ABOUT.values())
        output.line("\n\n".join(page), sys.stdout if args else sys.stderr)
        return DONE if args else WRONG_USAGE
    chosen, about = recipe(args[0])

    @dataclass(kw_only=True)
    class PretrainOptions:
        data: str
        """sounds without labels, or with: a folder, CSV or JSONL list, prepared set, or hub set (hf://owner/name)"""
        out: Path
        """run folder; the same command continues the run in it"""
        restart: bool = False
        """begin anew in a folder that holds a run"""
        accept_changes: bool = False
        """continue a run although the config has changed"""
        config: tyro.conf.OmitArgPrefixes[PretrainConfig] = field(default_factory=lambda: chosen)

    options = tyro.cli(PretrainOptions, args=args[1:], prog=f"patchout pretrain {args[0]}", description=about)
    from patchout.loop import Stopped
    from patchout.pretrain import Listener, run
    from patchout.run_folder import as_begun

    config = replace(options.config, data=options.data, out=options.out)
    if not (options.restart or options.accept_changes):
        config, begun = as_begun(config, chosen, options.out, of_weights=OF_WEIGHTS)
        if begun:
            say(f"{options.out} goes on as it began ({begun}); --accept-changes takes the recipe's values of today")
    with output.Bar("steps", None, sys.stderr) as bar:
        listener = Listener(
            on_plan=lambda plan: say(plan.describe()),
            on_progress=bar.training,
            on_note=say,
            on_result=lambda table: output.line(table, sys.stdout),
        )
        try:
            scores = run(config, listener, restart=options.restart, accept_changes=options.accept_changes)
        except Stopped:
            say("stopped, the state is saved: the same command, without --restart, continues")
            return DONE
    output.line(f"{config.out / 'model.safetensors'}  {output.scores_text(scores)}", sys.stdout)
    return DONE

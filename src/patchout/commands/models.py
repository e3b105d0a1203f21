"""`patchout models`: the zoo."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import tyro

from patchout import output
from patchout.commands import DONE, say


@dataclass(kw_only=True)
class Options:
    """List the published models, their scores and licences, and which are on this machine."""

    format: Literal["table", "json"] = "table"


def main(args: Sequence[str]) -> int:
    """Run `patchout models`."""
    options = tyro.cli(Options, args=args, prog="patchout models")
    from patchout import zoo

    output.print_models(zoo.rows(), options.format, sys.stdout)
    say(f"downloads are kept in {zoo.cache_folder()}")
    return DONE

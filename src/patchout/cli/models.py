"""`patchout models`: the published models, listed or saved as our file."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from patchout.cli import output
from patchout.cli.command import DONE, check_parent, say


@dataclass(kw_only=True)
class Options:
    """List the published models, their scores and licences, and which are on this machine; or tell of one."""

    model: tyro.conf.Positional[str] = ""
    """a model whose card is wanted: what it knows, how well, from which data, and what it cannot do"""
    format: Literal["table", "json"] = "table"
    save: tuple[str, Path] | None = None
    """a model, and the .safetensors file to write it to, with its front end and classes"""
    half_precision: bool = True
    """of --save: round as the public MaskSpec weights heard it; --no-half-precision: hear in float32"""


def main(args: Sequence[str]) -> int:
    """Run `patchout models`."""
    options = tyro.cli(Options, args=args, prog="patchout models")
    from patchout.checkpoint import zoo

    if options.model:
        from patchout.checkpoint.hub.card import description
        from patchout.cli.command import load_model

        if options.save:
            raise ValueError(f"--save names its own model: leave {options.model} out, or --save")
        text = description(load_model(options.model, "cpu").config, name=options.model)
        output.line(text.rstrip(), sys.stdout)
        return DONE
    if not options.save:
        if not options.half_precision:
            raise ValueError("--no-half-precision is for --save: name a model and a file")
        output.print_models(zoo.rows(), options.format, sys.stdout)
        say(f"downloads are kept in {zoo.cache_folder()}")
        return DONE
    name, path = options.save
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: a model is saved as .safetensors")
    check_parent(path)
    from patchout.checkpoint import own

    with output.download_bar(sys.stderr) as progress:
        own.save(zoo.whole(name, half_precision=options.half_precision, progress=progress), path)
    output.line(str(path), sys.stdout)
    return DONE

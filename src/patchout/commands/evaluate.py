"""`patchout evaluate`: a model against labelled clips."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from patchout import output
from patchout.commands import DONE, FAILED, check_batch_size, load_model, say


@dataclass(kw_only=True)
class Options:
    """Score a model on labelled clips."""

    model: Annotated[str, tyro.conf.Positional]
    """a name from `patchout models`, a .safetensors file or a run folder"""
    data: Path
    """folder of class folders, or with one CSV on top"""
    split: str = ""
    """only the clips of this split or fold"""
    format: Literal["table", "json"] = "table"
    device: str = "auto"
    """cuda, mps or cpu"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 where the hardware computes it natively"""
    batch_size: int = 16
    """windows a forward pass"""


def main(args: Sequence[str]) -> int:
    """Run `patchout evaluate`."""
    options = tyro.cli(Options, args=args, prog="patchout evaluate")
    check_batch_size(options.batch_size)
    from patchout.data import scan
    from patchout.evaluate import evaluate

    clips = scan(options.data)
    clips = clips.only(options.split) if options.split else clips
    model = load_model(options.model, options.device)
    with output.Bar("clips", len(clips.clips), sys.stderr) as advance:
        result = evaluate(
            model, clips, precision=options.precision, batch_size=options.batch_size, on_clip=lambda: advance(1)
        )
    failed = (*clips.problems, *result.failed)
    for problem in failed:
        say(problem)
    about = {"model": options.model, "data": str(options.data), "split": options.split or None}
    output.print_evaluation(about, result, options.format, sys.stdout)
    return FAILED if failed else DONE

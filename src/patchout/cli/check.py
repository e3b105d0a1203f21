"""`patchout check`: what is wrong with a data set, before it costs a training."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from patchout.checkpoint.zoo_list import BUILT_IN
from patchout.cli import output
from patchout.cli.command import DONE, FAILED, say

if TYPE_CHECKING:
    from patchout.inference.check.run import Check


@dataclass(kw_only=True)
class Options:
    """Say what is wrong with a data set: its sounds, copies, splits, labels and classes."""

    data: Annotated[str, tyro.conf.Positional]
    """folder a class, CSV or JSONL list, prepared set, hub set (hf://owner/name), or sounds without labels"""
    model: str = BUILT_IN
    """whose embeddings find copies and doubtful labels: a name from `patchout models`, a weight file, a run
    folder, or a hub id owner/name"""
    out: Path | None = None
    """folder for findings.csv, report.html, and embeddings (a killed check goes on)"""
    group: str = ""
    """regular expression with one (...) around the recording, site or speaker in a file's path; known
    schemes of names are found without it"""
    format: Literal["table", "csv"] = "table"
    device: str = "auto"
    """cuda, mps or cpu"""


def main(args: Sequence[str]) -> int:
    """Run `patchout check`."""
    options = tyro.cli(Options, args=args, prog="patchout check")
    from patchout.inference.check.report import write_csv, write_report
    from patchout.inference.check.run import check

    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)  # refuses before the work what would fail after it
    with output.Bar("clips", None, sys.stderr) as bar:
        result = check(
            options.data,
            model=options.model,
            pattern=options.group,
            device=options.device,
            out=options.out / "embeddings" if options.out else None,
            on_progress=bar.sounds,
        )
    for note in result.notes:
        say(note)
    if options.format == "csv":
        write_csv(sys.stdout, result.findings)
    else:
        _print(result)
    if options.out:
        say(f"report: {write_report(options.out, result)}")
    return FAILED if any(finding.kind == "unreadable" for finding in result.findings) else DONE


def _print(result: "Check") -> None:
    """A line a kind, the worst first."""
    from patchout.inference.check.findings import summaries

    lines = summaries(result.findings)
    width = max((len(line.kind) for line in lines), default=0)
    for line in lines:
        output.line(f"{line.total:>6}  {line.kind:<{width}}  {line.names}", sys.stdout)
    kinds = f"{len(lines)} kinds of findings" if lines else "nothing found"
    output.line(f"{len(result.clips)} clips: {kinds}", sys.stdout)

"""`patchout judge`: generated audio measured by PaSST, by a named protocol."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from patchout.cli import output
from patchout.cli.command import DONE, FAILED, check_parent, say

if TYPE_CHECKING:
    from patchout.judge.run import Judgement
    from patchout.judge.sets import Settings


@dataclass(kw_only=True)
class Options:
    """Measure generated sounds by a reference: FD, KL, IS and KAD of PaSST, by the rules of a public tool."""

    sets: Annotated[tuple[str, ...], tyro.conf.Positional]
    """generated and reference: folders, patterns, lists, saved embeddings or statistics, with pairs by name;
    or one list with the columns generated and reference"""
    protocol: Literal["av-benchmark", "stable-audio", "audiocraft", "fastvideo", "kadtk"] = "av-benchmark"
    """whose rules: loading, windows, averaging, direction of KL, regularisation"""
    metrics: tuple[Literal["fd", "kl", "is", "kad", "fd-inf"], ...] = ()
    """those of the protocol if none is named; fd-inf extrapolates FD to infinitely many clips"""
    compare: tyro.conf.FlagCreatePairsOff[bool] = False
    """by all protocols, on one decoding"""
    cut_s: float | None = None
    """seconds to which av-benchmark cuts every clip: 8 unless said"""
    model: str = "passt-s"
    """a name from `patchout models`, a weight file, a run folder, or a hub id owner/name"""
    format: Literal["table", "json", "csv"] = "table"
    out: Path | None = None
    """folder for judge.json, files.csv, report.md with pictures, and embeddings (a killed job goes on)"""
    save_reference: Path | None = None
    """keep the statistics of the reference in NAME.npz: enough for a later FD"""
    device: str = "auto"
    """cuda, mps or cpu"""
    engine: Literal["local", "ray"] = "local"
    """ray: on all machines of a Ray cluster"""


def main(args: Sequence[str]) -> int:
    """Run `patchout judge`."""
    options = tyro.cli(Options, args=args, prog="patchout judge")
    _check(options)
    from dataclasses import replace

    from patchout.judge import run
    from patchout.judge.caches import save_reference
    from patchout.judge.measures import reference_statistics
    from patchout.judge.protocols import PROTOCOLS
    from patchout.judge.report import write_report

    names = [*PROTOCOLS] if options.compare else [options.protocol]
    protocols = [PROTOCOLS[name] for name in names]
    if options.cut_s is not None:
        cut = [each.name for each in protocols if each.clip.cut_s]
        if not cut:
            raise ValueError(f"{options.protocol} cuts no clips: leave --cut-s out, or add --compare")
        protocols = [
            replace(each, clip=replace(each.clip, cut_s=options.cut_s)) if each.name in cut else each
            for each in protocols
        ]
    with _settings(options) as settings:
        judgements = run.compare(
            *options.sets,
            protocols=protocols,
            metrics=options.metrics,
            model=options.model,
            settings=settings,
        )
    _print(judgements, options.format)
    if options.save_reference:
        first = judgements[0]
        statistics = reference_statistics(first.protocol, first.sets[1])
        save_reference(options.save_reference, statistics, first.protocol, first.model_sha256)
        say(f"statistics of the reference: {options.save_reference}")
    if options.out:
        say(f"report: {write_report(options.out, judgements)}")
    return FAILED if any(each.failed for each in judgements[0].sets) else DONE


def _check(options: Options) -> None:
    """Refuse what makes no sense before anything is loaded."""
    if not 1 <= len(options.sets) <= 2:
        raise ValueError(
            f"give the generated sounds and the reference, or one list of pairs, got {len(options.sets)}: "
            "e.g. `patchout judge generated/ reference/`"
        )
    if options.cut_s is not None and not 0 < options.cut_s <= 10:
        raise ValueError(f"--cut-s must be more than 0 and at most 10 seconds, got {options.cut_s:g}")
    if options.save_reference:
        if options.save_reference.suffix != ".npz" or options.compare:
            raise ValueError("--save-reference takes NAME.npz, and the statistics of one protocol")
        if options.metrics and not {"fd", "fd-inf"} & {*options.metrics}:
            raise ValueError("--save-reference keeps the statistics of FD: name it in --metrics too")
        check_parent(options.save_reference)


@contextmanager
def _settings(options: Options) -> "Iterator[Settings]":
    """Where to run, with a bar for each set."""
    from patchout.inference.bulk.run import Engine, run_here
    from patchout.judge.sets import Settings

    engine: Engine = run_here
    if options.engine == "ray":
        from patchout.inference.bulk.cluster import ray_engine

        engine = ray_engine()
    with output.Bar("files", None, sys.stderr) as bar:
        yield Settings(
            device=options.device,
            engine=engine,
            embeddings=options.out / "embeddings" if options.out else None,
            on_note=say,
            on_progress=bar.sounds,
        )


def _print(judgements: "Sequence[Judgement]", format: Literal["table", "json", "csv"]) -> None:
    if format == "json":
        records = [each.to_dict() for each in judgements]
        output.line(json.dumps(records if len(records) > 1 else records[0], indent=1), sys.stdout)
        return
    rows = [(each, metric, value) for each in judgements for metric, value in each.values.items()]
    if format == "csv":
        output.line("protocol,metric,value,low,high", sys.stdout)
        for each, metric, value in rows:
            output.line(
                f"{each.protocol.name},{metric},{value.value!r},{value.low!r},{value.high!r}", sys.stdout
            )
    else:
        for each, metric, value in rows:
            interval = f"95 % within {value.low:.5g} and {value.high:.5g}" if value.low <= value.high else ""
            output.line(
                f"{each.protocol.name:<13} {metric:<7} {value.value:<10.6g} {interval}".rstrip(), sys.stdout
            )
    notes = [text for each in judgements for text in each.warnings]
    notes += [
        f"{each.protocol.name} has no {m}: {why}" for each in judgements for m, why in each.left_out.items()
    ]
    for text in dict.fromkeys(notes):
        say(text)

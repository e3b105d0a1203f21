"""`patchout bench`: the papers' complexity tables for this machine."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from patchout.cli import output
from patchout.cli.command import DONE, FAILED
from patchout.files import write_json

if TYPE_CHECKING:
    from patchout.bench.measure import Row


@dataclass(kw_only=True)
class Options:
    """Measure the papers' models on this machine: cost, speed and memory, with random weights, beside what is cited."""

    device: str = "auto"
    """cuda, mps or cpu"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is the faster of fp32 and bf16 on this machine"""
    rows: tuple[str, ...] = ()
    """the rows to measure, e.g. B S S-N, or openmic-s; else all of ten seconds"""
    table: Literal["", "1", "2", "hear"] = ""
    """a whole table with the rows that are cited only: 1 or 2 of the Patchout paper, or hear (HEAR paper, Table 2)"""
    batch: int = 0
    """clips a step; 0: 64 on cuda, 8 on mps, 2 on cpu"""
    seconds: float = 3.0
    """at least so long are training and inference of a row timed; the best time counts"""
    out: Path | None = None
    """folder for bench.json and bench.png"""
    format: Literal["table", "json"] = "table"


def main(args: Sequence[str]) -> int:
    """Run `patchout bench`."""
    options = tyro.cli(Options, args=args, prog="patchout bench")
    if options.batch < 0 or options.seconds <= 0:
        raise ValueError(
            f"--batch counts clips and --seconds are more than 0, got {options.batch}, {options.seconds}"
        )
    if options.table and options.rows:
        raise ValueError(f"--table {options.table} is a whole table: leave --rows out")
    from patchout.bench import measure as bench
    from patchout.bench import rows as bench_rows
    from patchout.bench import tables as bench_tables
    from patchout.models.device import pick_device

    settings = bench.Settings(
        device=pick_device(options.device),
        precision=options.precision,
        batch=options.batch,
        seconds=options.seconds,
    )
    names = bench_rows.TABLES[options.table] if options.table else bench_rows.known(options.rows)
    peak_flops = bench.matrix_flops(settings)
    about = bench.machine(settings, peak_flops)
    is_text = options.format == "table"
    if is_text:
        output.line(
            "  ".join(f"{name} {value}" for name, value in about.items() if name != "auto"), sys.stdout
        )
        output.line(f"auto: {about['auto']}", sys.stdout)
    if is_text and not options.table:
        output.line(bench_tables.HEADER, sys.stdout)
    measured = []
    with output.Bar("rows", len(names), sys.stderr) as advance:
        for row in bench.rows(names, settings, peak_flops):
            measured.append(row)
            advance(1)
            if is_text and not options.table:
                output.line(bench_tables.text(row), sys.stdout)
    if is_text and options.table:
        output.line(bench_tables.table(options.table, measured), sys.stdout)
    record = {"machine": about, "rows": [asdict(row) for row in measured]}
    if options.format == "json":
        output.line(json.dumps(record, indent=1), sys.stdout)
    if options.out:
        _write(options.out, record, measured)
    return FAILED if any(row.problem for row in measured) else DONE


def _write(folder: Path, record: dict[str, Any], rows: "Sequence[Row]") -> None:
    """The JSON and, where a row has a speed and a score, the picture."""
    from patchout.bench.figure import Circle, speed_and_score

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "bench.json", record)
    first = {row.measured: row for row in reversed(rows)}  # one circle for rows that share a measurement
    scored = [(row.name, got, row.cited.mAP) for got, row in first.items() if got and row.cited.mAP]
    circles = [
        Circle(name, got.training_clips_per_s, score, got.activation_gb) for name, got, score in scored
    ]
    if circles:
        speed_and_score(folder / "bench.png", circles, title=record["machine"]["device"])

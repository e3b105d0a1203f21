"""`patchout bench`: the papers' complexity tables, measured on this machine."""

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
    """Measure the papers' models here: cost, speed and memory, with random weights, beside what is cited."""

    device: str = "auto"
    """cuda, mps or cpu"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto is the faster of fp32 and bf16 on this machine"""
    rows: tuple[str, ...] = ()
    """the rows to measure, e.g. B S S-N, or openmic-s; else all of ten seconds"""
    table: Literal["", "1", "2", "hear"] = ""
    """a whole table with the rows that are cited only: 1 or 2 of the Patchout paper, or hear (HEAR paper,
    Table 2)"""
    batch: int = 0
    """clips a step; 0: 64 on cuda, 8 on mps, 2 on cpu"""
    seconds: float = 3.0
    """at least so long are training and inference of a row timed; the best time counts"""
    compile: bool = False
    """compile the encoder of the training steps, as --compile of a run"""
    out: Path | None = None
    """folder for bench.json and bench.png"""
    format: Literal["table", "json"] = "table"


def main(args: Sequence[str]) -> int:
    """Run `patchout bench`."""
    options = tyro.cli(Options, args=args, prog="patchout bench")
    batch, seconds, name = options.batch, options.seconds, options.table
    if batch < 0 or seconds <= 0:
        raise ValueError(f"--batch counts clips and --seconds are more than 0, got {batch}, {seconds}")
    if name and options.rows:
        raise ValueError(f"--table {name} is a whole table: leave --rows out")
    from patchout.bench import measure, tables
    from patchout.bench.rows import TABLES, checked
    from patchout.models.device import pick_device

    device = pick_device(options.device)
    settings = measure.Settings(
        device=device,
        precision=options.precision,
        batch=batch,
        seconds=seconds,
        compile=options.compile,
    )
    names = TABLES[name] if name else checked(options.rows)
    peak_flops = measure.matrix_flops(settings)
    machine = measure.machine(settings, peak_flops)

    def say_text(text: str) -> None:
        if options.format == "table":
            output.line(text, sys.stdout)

    say_text("  ".join(f"{key} {value}" for key, value in machine.items() if key != "auto"))
    say_text(f"auto: {machine['auto']}")
    if not name:
        say_text(tables.HEADER)
    rows = []
    with output.Bar("rows", len(names), sys.stderr) as advance:
        for row in measure.rows(names, settings, peak_flops):
            rows.append(row)
            advance(1)
            if not name:
                say_text(tables.text(row))
    record = {"machine": machine, "rows": [asdict(row) for row in rows]}
    if name:
        say_text(tables.table(name, rows))
    else:
        speeds = list(measure.arithmetics(settings))
        say_text(tables.arithmetics(speeds))
        record["arithmetics"] = [speed._asdict() for speed in speeds]
    if options.format == "json":
        output.line(json.dumps(record, indent=1), sys.stdout)
    if options.out:
        _write(options.out, record, rows)
    return FAILED if any(row.problem for row in rows) else DONE


def _write(folder: Path, record: dict[str, Any], rows: "Sequence[Row]") -> None:
    """Write the JSON file and, if a row has a speed and a score, the figure."""
    from patchout.bench.figure import Circle, speed_and_score

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "bench.json", record)
    first = {row.measured: row for row in reversed(rows)}  # one circle for rows that share a measurement
    circles = [
        Circle(row.name, measured.training_clips_per_s, row.cited.mAP, measured.activation_gb)
        for measured, row in first.items()
        if measured and row.cited.mAP
    ]
    if circles:
        speed_and_score(folder / "bench.png", circles, title=record["machine"]["device"])

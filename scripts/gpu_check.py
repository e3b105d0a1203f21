"""What a GPU gives: the sections of `gpu_sections.py` within some minutes, written as JSON and Markdown."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from gpu_sections import SECTIONS
from gpu_setting import Setting

from patchout.models.autotune import processor
from patchout.models.device import pick_device

LIMIT_S = 180.0  # of one section
SHORTEST_S = 10.0  # that is worth beginning one


def run_apart(name: str, options: argparse.Namespace, limit_s: float) -> dict[str, Any]:
    """The record of a section that runs in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "rows.jsonl"
        record.touch()
        command = [
            sys.executable,
            __file__,
            "--device",
            options.device,
            "--section",
            name,
            "--out",
            str(record),
        ]
        started, problem = time.perf_counter(), ""
        try:
            done = subprocess.run(
                [*command, *(["--quick"] if options.quick else [])], timeout=limit_s, check=False
            )
            problem = f"exit code {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            problem = f"cut off after {limit_s:.0f} s"
        rows = [json.loads(line) for line in record.read_text().splitlines()]
    return {"rows": rows, "seconds": time.perf_counter() - started, "problem": problem}


def run_here(name: str, setting: Setting) -> dict[str, Any]:
    """The record of a section that runs in this process."""
    started = time.perf_counter()
    rows = [asdict(row) for row in SECTIONS[name](setting)]
    return {"rows": rows, "seconds": time.perf_counter() - started, "problem": ""}


def table(report: dict[str, Any]) -> str:
    """The report as a page for docs/results."""
    lines = [
        f"# {report['device']}",
        "",
        f"`scripts/gpu_check.sh`, torch {report['torch']}, precision {report['precision']}.",
        "",
    ]
    lines += ["Tiny sizes: only a trial of the script.", ""] if report["quick"] else []
    lines += ["| what | measured | asked |", "| --- | --- | --- |"]
    for name, section in report["sections"].items():
        lines += [
            f"| {row['what']} | {row['value']:.4g} {row['unit']} | {row['goal']} |" for row in section["rows"]
        ]
        lines += [f"| {name} | {section['problem']} | |"] if section["problem"] else []
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run all sections within the minutes, or one of them here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--out", default="gpu_check", help="OUT.json and OUT.md")
    parser.add_argument("--section", choices=SECTIONS, help="one alone, here, its rows appended to OUT")
    options = parser.parse_args()
    setting = Setting(pick_device(options.device), options.quick)
    if options.section:
        with Path(options.out).open("a") as file:
            for row in SECTIONS[options.section](setting):
                print(f"{row.what}: {row.value:.4g} {row.unit}", flush=True)
                file.write(json.dumps(asdict(row)) + "\n")
                file.flush()
        return 0
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "precision": setting.precision(),
        "quick": setting.quick,
        "sections": {},
    }
    report["device"] = torch.cuda.get_device_name() if setting.is_cuda else processor()
    until = time.perf_counter() + 60 * options.minutes
    for name in SECTIONS:
        limit_s = min(LIMIT_S, until - time.perf_counter())
        if not setting.is_cuda:
            record = run_here(name, setting)
        elif limit_s > SHORTEST_S:
            record = run_apart(name, options, limit_s)
        else:
            record = {"rows": [], "seconds": 0.0, "problem": "no time left"}
        report["sections"][name] = record
        Path(f"{options.out}.json").write_text(json.dumps(report, indent=1) + "\n")
        Path(f"{options.out}.md").write_text(table(report))
    return int(any(section["problem"] for section in report["sections"].values()))


if __name__ == "__main__":
    sys.exit(main())

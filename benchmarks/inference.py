"""Speed of PaSST-S against the plain baseline, both measured in this run: python benchmarks/inference.py

Random weights, clips of 10 s, on the CPU. One side is `baseline.clip_seconds`: fp32, one clip at a time; the
other is the package, one batch at a time. Both go from waveform to logits. Every round times each case once,
so that a slow minute of the machine hits all of them, and the best round of each counts. Run it on an
otherwise idle machine.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import baseline
import torch
from torch import Tensor

from patchout.audio.mel import MelConfig, log_mel
from patchout.bench.measure import auto
from patchout.models.autotune import processor
from patchout.models.device import Precision, autocast
from patchout.models.passt import Passt, PasstConfig

CLIP_S = 10
BATCHES = (1, 2, 4, 8)
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to time: `call` works on `batch` clips."""

    what: Literal["log-mel", "model fp32", "model bf16", "model auto"]
    batch: int
    is_baseline: bool = False
    call: Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One row of the result; `ratio` is to the baseline of the same run."""

    what: str
    batch: int
    clips_per_s: float
    ratio: float


def make_cases() -> list[Case]:
    """The baseline and the package, at every batch size and precision."""
    torch.manual_seed(0)
    wave = 0.1 * torch.randn(max(BATCHES), CLIP_S * MelConfig().sample_rate)
    plain = baseline.Baseline().eval()
    labels = tuple(f"class {index}" for index in range(527))
    model = Passt(PasstConfig(labels=labels)).eval()

    def infer(clips: Tensor, precision: Precision) -> Tensor:
        with torch.inference_mode(), autocast(CPU, precision):
            return model(log_mel(clips, model.config.mel)).logits

    cases = [
        Case(what="log-mel", batch=1, is_baseline=True, call=partial(baseline.log_mel, wave[:1])),
        Case(
            what="model fp32", batch=1, is_baseline=True, call=partial(baseline.clip_seconds, plain, wave[:1])
        ),
    ]
    for batch in BATCHES:
        clips = wave[:batch]
        cases.append(Case(what="log-mel", batch=batch, call=partial(log_mel, clips, model.config.mel)))
        cases.append(Case(what="model fp32", batch=batch, call=partial(infer, clips, "fp32")))
        cases.append(Case(what="model bf16", batch=batch, call=partial(infer, clips, "bf16")))
        cases.append(Case(what="model auto", batch=batch, call=partial(infer, clips, "auto")))
    return cases


def seconds_per_clip(cases: list[Case], rounds: int) -> list[float]:
    """Best time of each case over `rounds`, after one call that is not counted."""
    best = [float("inf")] * len(cases)
    for number in range(rounds + 1):
        for index, case in enumerate(cases):
            repeats = 10 if case.what == "log-mel" else 1
            start = time.perf_counter()
            for _ in range(repeats):
                case.call()
            spent = (time.perf_counter() - start) / (repeats * case.batch)
            if number > 0:
                best[index] = min(best[index], spent)
    return best


def compare(cases: list[Case], best: list[float]) -> tuple[list[Speed], list[Speed]]:
    """Rows of the baseline, and rows of the package with their ratio to it."""
    base = {case.what: spent for case, spent in zip(cases, best, strict=True) if case.is_baseline}
    base["model bf16"] = base["model auto"] = base["model fp32"]
    rows: tuple[list[Speed], list[Speed]] = ([], [])
    for case, spent in zip(cases, best, strict=True):
        speed = Speed(what=case.what, batch=case.batch, clips_per_s=1 / spent, ratio=base[case.what] / spent)
        rows[0 if case.is_baseline else 1].append(speed)
    return rows


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(
        description="Speed of PaSST-S on 10 s clips against the plain baseline (CPU)."
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="times each case is timed; the best counts (default: 5)"
    )
    parser.add_argument("--json", type=Path, help="file to write the same numbers to")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {options.rounds}")
    machine = {"torch": torch.__version__, "cpu": processor(), "threads": torch.get_num_threads()}
    print("  ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    print(f"auto: {auto(CPU)}", flush=True)
    cases = make_cases()
    plain, ours = compare(cases, seconds_per_clip(cases, options.rounds))
    print(f"{'':<22}{'batch':>6}{'clips/s':>10}{'ratio':>8}")
    for name, rows in (("baseline", plain), ("patchout", ours)):
        for row in sorted(rows, key=lambda row: (row.what, row.batch)):
            print(f"{name} {row.what:<13}{row.batch:>6}{row.clips_per_s:>10.2f}{row.ratio:>8.2f}")
    for what in sorted({row.what for row in ours}):
        top = max((row for row in ours if row.what == what), key=lambda row: row.ratio)
        one = next(row for row in ours if row.what == what and row.batch == 1)
        print(f"{what}: {one.ratio:.2f} x the baseline at batch 1, {top.ratio:.2f} x at batch {top.batch}")
    for batch in BATCHES:
        best, taken = (
            max(row.clips_per_s for row in ours if row.what in names and row.batch == batch)
            for names in (("model fp32", "model bf16"), ("model auto",))
        )
        print(f"auto at batch {batch}: {taken / best:.2f} x the better of fp32 and bf16")
    if options.json:
        record = {**machine, "rounds": options.rounds, "clip_s": CLIP_S}
        sides = {"baseline": [asdict(row) for row in plain], "patchout": [asdict(row) for row in ours]}
        options.json.write_text(json.dumps(record | sides, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Speed and memory of training PaSST-S, all measured in this run: python benchmarks/train_step.py

Random weights, clips of 10 s, on the CPU: log-mel, forward and backward pass, AdamW. The baseline is
`baseline.train_step` with Patchout (t40 f4): fp32, explicit attention, patches dropped after projection. The
rest is the package: without Patchout (B), with it (S), and without overlap (S-N). Every round times each case
once, so that a slow minute of the machine hits all of them, and the best round of each counts. Memory is what
autograd keeps for the backward pass of one more clip: every storage once, weights and their casts not
counted. Run it on an idle machine.
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

from patchout.audio.mel import MelConfig
from patchout.bench import measure as bench
from patchout.checkpoint.labels import label_names
from patchout.models.autotune import processor
from patchout.models.passt import SIZES, PasstConfig
from patchout.training import plan

CPU = torch.device("cpu")
BASELINE = "baseline S fp32"
ASKED = (  # faster case, slower case, least ratio that is asked for
    ("S fp32", BASELINE, 1.2),
    ("S bf16", BASELINE, 2.2),
    ("S fp32", "B fp32", 2.6),
    ("S bf16", "B bf16", 2.6),
    ("S-N fp32", "B fp32", 5.0),
    ("S-N bf16", "B bf16", 5.0),
)
MOST_MEMORY = 0.45  # of S, as a share of B


@dataclass(frozen=True)
class Case:
    """One thing to time, and what one more clip keeps in memory."""

    step: Callable[[], None]
    activation_mb: float


def make_cases(batch: int, size: str, depth: int) -> dict[str, Case]:
    """The baseline, and the package's rows at both precisions (bf16 only where the processor computes it)."""
    torch.manual_seed(0)
    width, heads = SIZES[size]
    base = PasstConfig(labels=label_names("audioset"), width=width, depth=depth, heads=heads)
    plain = baseline.Baseline(width, depth, heads)
    wave = 0.1 * torch.randn(max(2, batch), 10 * MelConfig().sample_rate)
    target = torch.zeros(batch, len(base.labels))
    optimizer = torch.optim.AdamW(plain.parameters(), 1e-5, fused=False)
    kept = plan.activation_bytes(lambda clips: plain(baseline.log_mel(wave[:clips]), 40, 4)[0])
    step = partial(baseline.train_step, plain, optimizer, wave[:batch], target)
    cases = {BASELINE: Case(step, kept / 1e6)}
    precisions: list[Literal["fp32", "bf16"]] = ["fp32", "bf16"]
    for name in ("B", "S", "S-N"):
        subject = bench.make(name, base)
        for precision in precisions:
            settings = bench.Settings(device=CPU, precision=precision, batch=batch, base=base)
            kept = plan.activation_bytes(bench.training_forward(subject, settings))
            cases[f"{name} {precision}"] = Case(bench.training_step(subject, settings), kept / 1e6)
    return cases


def seconds_per_step(cases: dict[str, Case], rounds: int) -> dict[str, float]:
    """Best time of each case over `rounds`, after one step that is not counted."""
    best = dict.fromkeys(cases, float("inf"))
    for number in range(rounds + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            case.step()
            if number > 0:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


@dataclass(frozen=True)
class Ratio:
    """One case against another; `limit` is the least speed-up, or the largest share of memory,
    that is asked for.
    """

    what: str
    ratio: float
    limit: float


def compare(cases: dict[str, Case], best: dict[str, float]) -> list[Ratio]:
    """Everything that is asked for and could be measured."""
    measured = [(fast, slow, least) for fast, slow, least in ASKED if fast in cases]
    speeds = [Ratio(f"{fast} x {slow}", best[slow] / best[fast], least) for fast, slow, least in measured]
    pairs = [
        (f"S {precision}", f"B {precision}") for precision in ("fp32", "bf16") if f"S {precision}" in cases
    ]
    shares = [
        (small, large, cases[small].activation_mb / cases[large].activation_mb) for small, large in pairs
    ]
    return speeds + [
        Ratio(f"memory of {small} / {large}", share, MOST_MEMORY) for small, large, share in shares
    ]


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(
        description="A training step of PaSST-S against the plain baseline (CPU)."
    )
    parser.add_argument("--batch", type=int, default=2, help="clips a step (default: 2)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="times each case is timed; the best counts (default: 5)"
    )
    parser.add_argument("--size", choices=SIZES, default="base", help="smaller ones only to try the script")
    parser.add_argument("--depth", type=int, default=12, help="blocks (default: 12)")
    parser.add_argument("--json", type=Path, help="file to write the same numbers to")
    options = parser.parse_args()
    if min(options.rounds, options.batch, options.depth) < 1:
        parser.error("--rounds, --batch and --depth must be at least 1")
    about = {"cpu": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    about |= {"batch": options.batch, "rounds": options.rounds, "size": options.size, "depth": options.depth}
    print("  ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    cases = make_cases(options.batch, options.size, options.depth)
    best = seconds_per_step(cases, options.rounds)
    print(f"{'':<18}{'s/step':>8}{'clips/s':>9}{'MB a clip':>11}")
    for name, case in cases.items():
        print(f"{name:<18}{best[name]:>8.3f}{options.batch / best[name]:>9.2f}{case.activation_mb:>11.0f}")
    ratios = compare(cases, best)
    for row in ratios:
        print(
            f"{row.what:<28}{row.ratio:>7.2f}   "
            f"asked: {'at most' if 'memory' in row.what else 'at least'} {row.limit}"
        )
    if options.json:
        rows = {name: {"s": best[name], "activation_mb": case.activation_mb} for name, case in cases.items()}
        options.json.write_text(
            json.dumps({**about, "cases": rows, "ratios": [asdict(row) for row in ratios]}, indent=1)
        )


if __name__ == "__main__":
    main()

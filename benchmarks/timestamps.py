"""Timestamp embeddings of PaSST-S against the plain loop, both measured in this run:
python benchmarks/timestamps.py

Random weights, one clip of 10 s, on the CPU. One side is `baseline.timestamps`: fp32, one window of 160 ms
after another; the other is the package. The log-mels of the windows are timed by themselves too: shared
between windows, as the package does it, against one `log_mel` of all of them. Every round times each case
once, and the best round counts. Run it on an otherwise idle machine.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import baseline
import torch

from patchout.audio.mel import MelConfig, log_mel
from patchout.audio.window_mels import window_mels
from patchout.hear.api import PRESETS
from patchout.inference.embedding import EmbedConfig, Embedder
from patchout.models.autotune import processor
from patchout.models.device import Precision
from patchout.models.passt import Passt, PasstConfig

SECONDS = 10
HOP = 1600  # samples between two times
Cases = dict[
    str, tuple[str, Callable[[], object]]
]  # name -> (name of what it is compared with, what to time)
TWO_FIELDS = EmbedConfig(fields_ms=(160.0, 640.0))


def plain_two_fields(model: baseline.Baseline, wave: torch.Tensor) -> None:
    """The loop at 160 ms, then at 640 ms."""
    baseline.timestamps(model, wave, 160)
    baseline.timestamps(model, wave, 640)


def unshared_mels(wave: torch.Tensor, config: MelConfig, *, size: int, hop: int) -> torch.Tensor:
    """Every window by itself, all in one batch."""
    return log_mel(wave.unfold(1, size, hop).flatten(0, 1), config)


def log_mel_cases() -> Cases:
    """The windows of one clip, shared against unshared."""
    cases: Cases = {}
    for hop_length in (320, 160, 100):
        for ms in (160, 640):
            size, name = 32 * ms, f"log-mel {ms} ms, STFT hop {hop_length}"
            wave = 0.1 * torch.randn(1, SECONDS * 32_000 + size)
            config = MelConfig(hop_length=hop_length)
            cases[f"{name}, unshared"] = ("", partial(unshared_mels, wave, config, size=size, hop=HOP))
            cases[f"{name}, shared"] = (
                f"{name}, unshared",
                partial(window_mels, wave, config, size=size, hop=HOP),
            )
    return cases


def model_cases() -> Cases:
    """The whole way from samples to embeddings."""
    wave = 0.1 * torch.randn(1, SECONDS * 32_000)
    plain = baseline.Baseline().eval()
    labels = tuple(f"class {index}" for index in range(527))
    coarse = Passt(PasstConfig(labels=labels)).eval()
    fine = Passt(PasstConfig(labels=labels, columns=200, mel=MelConfig(hop_length=160))).eval()
    cases: Cases = {
        "loop 160 ms": ("", partial(baseline.timestamps, plain, wave)),
        "loop 160 + 640 ms": ("", partial(plain_two_fields, plain, wave)),
    }
    precisions: list[Precision] = ["fp32", "bf16"]
    for precision in precisions:
        one, two, best = (
            Embedder(model, config, precision=precision)
            for model, config in (
                (coarse, EmbedConfig()),
                (coarse, TWO_FIELDS),
                (fine, PRESETS["best"].config),
            )
        )
        cases[f"base 160 ms, {precision}"] = ("loop 160 ms", partial(one.timestamps, wave))
        cases[f"160 + 640 ms, {precision}"] = ("loop 160 + 640 ms", partial(two.timestamps, wave))
        cases[f"best (low + mid, 160 + 640 ms, hop 160), {precision}"] = (
            "loop 160 + 640 ms",
            partial(best.timestamps, wave),
        )
    return cases


def best_times(cases: Cases, rounds: int) -> dict[str, float]:
    """Seconds of each case, the best of `rounds` after one call that is not counted."""
    best = dict.fromkeys(cases, float("inf"))
    for number in range(rounds + 1):
        for name, (_, call) in cases.items():
            start = time.perf_counter()
            call()
            if number > 0:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(
        description="Timestamp embeddings of PaSST-S against the plain loop (CPU)."
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="times each case is timed; the best counts (default: 3)"
    )
    parser.add_argument(
        "--log-mel", action="store_true", help="time the log-mels alone: seconds instead of minutes"
    )
    parser.add_argument("--json", type=Path, help="file to write the same numbers to")
    options = parser.parse_args()
    print(f"torch {torch.__version__}  {processor()}  threads {torch.get_num_threads()}", flush=True)
    torch.manual_seed(0)
    cases = log_mel_cases() if options.log_mel else log_mel_cases() | model_cases()
    best = best_times(cases, options.rounds)
    rows = []
    for name, (reference, _) in cases.items():
        ratio = best[reference] / best[name] if reference else 1.0
        rows.append({"what": name, "seconds": best[name], "real_time": SECONDS / best[name], "ratio": ratio})
        against = f"{ratio:5.2f} x {reference}" if reference else ""
        print(f"{name:<50}{best[name]:8.4f} s {SECONDS / best[name]:8.2f} x real time   {against}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

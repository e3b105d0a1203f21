"""Scoring of events and the training of probes against slower ways, measured in this run:
python benchmarks/hear.py

Made-up piano rolls of the size of a MAESTRO fold (37 files of 120 s). The other side compares every event of
a file with every other one and augments the matching path by path, as the HEAR kit's library does. The scores
must agree.

Then the eight probes of the kit's grid on made-up embeddings of 1295 values: all in one group, and one after
another.
"""

import argparse
import itertools
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator

from patchout.hear.probe import GRIDS, NUM_POINTS
from patchout.hear.probe_network import Check, Data, Point, Probe, train_group
from patchout.hear.scores import EventRow, event_scores

Rolls = dict[str, list[EventRow]]


def make_rolls(files: int, notes: int, rng: np.random.Generator) -> tuple[Rolls, Rolls]:
    """Notes of 120 s, and a detector that finds most of them up to 80 ms off, and as many others."""
    target, found = {}, {}
    for index in range(files):
        starts, pitches = rng.uniform(0, 119_000, notes).round(), rng.integers(0, 88, notes)
        rows = [
            EventRow(label=str(p), start=float(s), end=float(s) + 400)
            for p, s in zip(pitches, starts, strict=True)
        ]
        moved = starts + rng.uniform(-80, 80, notes).round()
        other = np.where(rng.random(notes) < 0.3, rng.integers(0, 88, notes), pitches)
        target[f"{index}.wav"] = rows
        found[f"{index}.wav"] = [
            EventRow(label=str(p), start=float(s), end=float(s) + 400)
            for p, s in zip(other, moved, strict=True)
        ]
    return target, found


def pairwise_onset_f(target: Rolls, found: Rolls, collar_s: float) -> float:
    """Onset F measure from a maximum matching over all pairs of a file."""
    hits = num_target = num_found = 0
    for file, rows in target.items():
        guesses = found[file]
        near = [
            [
                column
                for column, guess in enumerate(guesses)
                if row["label"] == guess["label"]
                and abs(row["start"] / 1e3 - guess["start"] / 1e3) <= collar_s
            ]
            for row in rows
        ]
        owner: dict[int, int] = {}

        def place(
            row: int, seen: set[int], near: list[list[int]] = near, owner: dict[int, int] = owner
        ) -> bool:
            for column in near[row]:
                if column not in seen:
                    seen.add(column)
                    if column not in owner or place(owner[column], seen):
                        owner[column] = row
                        return True
            return False

        hits += sum(place(row, set()) for row in range(len(rows)))
        num_target, num_found = num_target + len(rows), num_found + len(guesses)
    return 2 * hits / (num_target + num_found)


def train_s(points: Sequence[Point], data: Data, *, together: bool) -> float:
    """Seconds of all checks and epochs of these points, which differ in depth, start and rate."""
    device = data.values.device
    probes = [Probe(point, data, Generator().manual_seed(index)) for index, point in enumerate(points)]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for group in [probes] if together else [[probe] for probe in probes]:
        train_group(group, data, data.values, lambda logits: Check(0.0), Generator(device).manual_seed(0))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def probe_ratio(device: str, *, rows: int, epochs: int) -> None:
    """Print the times of the grid in one group and one after another, twice each in turn, and their ratio."""
    rng = torch.Generator().manual_seed(0)
    target = torch.nn.functional.one_hot(torch.randint(50, (rows,), generator=rng), 50).float()
    data = Data(torch.randn(rows, 1295, generator=rng).to(device), target.to(device), one_label=True)
    grid = {**GRIDS["full"], "max_epochs": (epochs,)}
    points = [Point(*row) for row in itertools.product(*grid.values())][::2][:NUM_POINTS]
    train_s(points[:1], data, together=True)  # the first use of a device is slow
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for together in (False, True) * 2:
        seconds[together].append(train_s(points, data, together=together))
    alone, grouped = min(seconds[False]), min(seconds[True])
    about = f"{device}, {rows} rows, {epochs} epochs of the probes"
    print(f"{about}: one after another {alone:.2f} s, in one group {grouped:.2f} s: {alone / grouped:.2f} x")


def main() -> None:
    """Print the times and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=37)
    parser.add_argument("--notes", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=1600, help="of the probes")
    parser.add_argument("--epochs", type=int, default=30, help="of the probes")
    parser.add_argument("--device", default="cpu", help="of the probes")
    options = parser.parse_args()
    target, found = make_rolls(options.files, options.notes, np.random.default_rng(0))
    start = time.process_time()  # of the processor: both use one thread, and others may use the machine
    slow = pairwise_onset_f(target, found, 0.05)
    middle = time.process_time()
    fast = event_scores(target, found, ["event_onset_50ms_fms"])["event_onset_50ms_fms"]
    slow_s, fast_s = middle - start, time.process_time() - middle
    print(f"pairwise {slow_s:.2f} s, event_scores {fast_s:.3f} s: {slow_s / fast_s:.0f} x")
    print(f"onset F {slow:.6f} and {fast:.6f}")
    assert abs(slow - fast) < 1e-9
    probe_ratio(options.device, rows=options.rows, epochs=options.epochs)


if __name__ == "__main__":
    main()

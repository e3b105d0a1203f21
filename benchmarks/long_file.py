"""Time and memory of `patchout tag` on one very long file: python benchmarks/long_file.py 10

Writes so many hours of synthetic sound (FLAC, 32 kHz, mono) into a temporary folder, block by block, tags the
file in a process of its own, and prints wall time, how many times faster than real time that is, and the peak
resident memory of that process. Needs a Unix system.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

RATE = 32_000
BLOCK_S = 10


def write_sound(path: Path, hours: float) -> None:
    """Noise whose level swells, under a tone that climbs and starts again, every block its own; 16 bit."""
    rng = np.random.default_rng(0)
    left = round(hours * 3600 * RATE)
    time_s = np.arange(BLOCK_S * RATE, dtype=np.float32) / RATE
    swell = 0.1 * np.sin(np.pi * time_s / BLOCK_S) ** 2
    with soundfile.SoundFile(path, "w", samplerate=RATE, channels=1, format="FLAC", subtype="PCM_16") as file:
        while left > 0:
            low_hz, climb_hz = rng.uniform(100, 2000), rng.uniform(0, 400)
            tone = 0.2 * np.sin(2 * np.pi * (low_hz + climb_hz * time_s / 2) * time_s)
            block = tone + swell * rng.standard_normal(len(time_s), dtype=np.float32)
            file.write(block[:left])
            left -= len(time_s)


def tag(path: Path, options: list[str]) -> tuple[float, float]:
    """Run `patchout tag`: wall time in seconds and peak resident memory in bytes."""
    code = "from patchout.cli.main import main; main()"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, "tag", str(path), *options], check=True)
    spent_s = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of the largest child; there was one
    return spent_s, peak * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Write, tag, print."""
    parser = argparse.ArgumentParser(description="Time and memory of `patchout tag` on one very long file.")
    parser.add_argument("hours", type=float, nargs="?", default=10.0, help="length of the file (default: 10)")
    parser.add_argument("--model", help="what `patchout tag --model` takes (default: the built-in model)")
    parser.add_argument("--events", action="store_true", help="find events too")
    parser.add_argument("--json", type=Path, help="file to write the same numbers to")
    options = parser.parse_args()
    if options.hours * 3600 * RATE < 1:
        parser.error(f"hours must be more than 0, got {options.hours}")
    extra = (["--model", options.model] if options.model else []) + (["--events"] if options.events else [])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.flac"
        start = time.perf_counter()
        write_sound(path, options.hours)
        made_s = time.perf_counter() - start
        print(f"made {options.hours:g} h, {path.stat().st_size / 1e6:.0f} MB, in {made_s:.0f} s", flush=True)
        spent_s, peak = tag(path, extra)
    faster = options.hours * 3600 / spent_s
    print(f"tagged in {spent_s:.1f} s: {faster:.0f} x real time, peak memory {peak / 1e6:.0f} MB")
    if options.json:
        record = {"hours": options.hours, "wall_s": spent_s, "times_real_time": faster, "peak_bytes": peak}
        record |= {"model": options.model, "events": options.events}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

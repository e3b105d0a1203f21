"""Live tagging against the recording: python benchmarks/listen.py DATA --hours 1

Joins clips of DATA/esc10 with pauses of noise to one long recording, pipes it to `patchout listen` as fast as
a microphone would, and compares its events with those of `patchout tag --events` on the recording. Prints how
many are the same, how late their lines were, and the memory of `listen`. Needs /proc.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import soundfile

RATE = 44_100
BLOCK = RATE // 10
PAUSE_S = 10  # at most, between two clips
PATCHOUT = [sys.executable, "-m", "patchout"]


def write_recording(path: Path, clips: list[Path], hours: float) -> None:
    """Clips in a random order, and weak noise between them; 16 bit."""
    rng = np.random.default_rng(0)
    left = round(hours * 3600 * RATE)
    with soundfile.SoundFile(path, "w", samplerate=RATE, channels=1, subtype="PCM_16") as file:
        while left > 0:
            clip, rate = soundfile.read(clips[rng.integers(len(clips))], dtype="float32")
            if rate != RATE or clip.ndim > 1:
                raise SystemExit(f"clips of {RATE} Hz in one channel are needed")
            pause = 1e-3 * rng.standard_normal(round(rng.uniform(0, PAUSE_S) * RATE), dtype=np.float32)
            block = np.concatenate([clip, pause])[:left]
            file.write(block)
            left -= len(block)


def resident_mib(pid: int) -> float:
    """Memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def send(path: Path, process: subprocess.Popen[bytes], resident: list[float]) -> None:
    """Raw samples by the clock, a block when it would have been heard; notes the memory every minute."""
    assert process.stdin
    begin = time.monotonic()
    with soundfile.SoundFile(path) as file:
        for index, block in enumerate(file.blocks(BLOCK, dtype="int16"), 1):
            time.sleep(max(0.0, begin + index * BLOCK / RATE - time.monotonic()))
            process.stdin.write(block.tobytes())
            if index % 600 == 0:
                resident.append(resident_mib(process.pid))
    process.stdin.close()


def main() -> None:
    """Record, listen, compare."""
    parser = argparse.ArgumentParser(description="Live tagging against the recording.")
    parser.add_argument("data", type=Path, help="the folder with real sounds")
    parser.add_argument("--hours", type=float, default=1.0, help="length of the recording (default: 1)")
    options = parser.parse_args()
    clips = sorted((options.data / "esc10" / "audio").glob("*.ogg"))
    resident: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        recording = Path(folder) / "recording.wav"
        write_recording(recording, clips, options.hours)
        command = [*PATCHOUT, "listen", "--input", "-", "--rate", str(RATE)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        sender = threading.Thread(target=send, args=(recording, process, resident))
        sender.start()
        assert process.stdout
        lines = [json.loads(line) for line in process.stdout]
        sender.join()
        command = [*PATCHOUT, "tag", str(recording), "--events", "--format", "json"]
        tagged = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    live = {(line["label"], line["start_s"], line["end_s"]) for line in lines if line["kind"] == "end"}
    recorded = {(event["label"], event["start_s"], event["end_s"]) for event in tagged[0]["events"]}
    skipped = sum(line["kind"] == "skipped" for line in lines)
    print(f"{len(live)} events live, {len(recorded)} in the recording, {len(live & recorded)} the same")
    print(f"sound was dropped {skipped} times; {json.dumps(lines[-1])}")
    for kind in ("begin", "end"):
        delays = np.array([line["delay_s"] for line in lines if line["kind"] == kind])
        if len(delays):
            median, late, latest = np.percentile(delays, (50, 99, 100))
            print(f"{kind} is told {median:.2f} s later (median; 99 %: {late:.2f} s, latest {latest:.2f} s)")
    if resident:
        first, last, most = resident[0], resident[-1], max(resident)
        print(f"{first:.0f} MiB after a minute, {last:.0f} at the end, {most:.0f} at most")


if __name__ == "__main__":
    main()

"""Bulk jobs of the commands: run here or on a Ray cluster, joined into one file, and reported."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from patchout.cli import output
from patchout.cli.command import device_for, say

if TYPE_CHECKING:
    from patchout.data.items import Item
    from patchout.inference.bulk.job import BulkJob
    from patchout.inference.bulk.join import Format
    from patchout.inference.bulk.run import Engine
    from patchout.models.device import InferencePrecision

Place = Literal["local", "ray"]
FILE_SUFFIXES = {  # what promises a file, so that no folder should be named so
    *(".parquet", ".feather", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".txt", ".xlsx", ".html"),
    *(".npy", ".npz", ".h5", ".hdf5", ".hdf", ".mat", ".pt", ".pth", ".pkl", ".pickle", ".safetensors"),
    *(".zip", ".tar", ".gz"),
}


def precision_of(
    precision: "InferencePrecision | Literal['auto']", device: str, engine: Place
) -> "InferencePrecision":
    """The precision that a job remembers."""
    from patchout.models.device import pick_device, pick_precision

    if precision == "int8":
        return precision
    chosen = pick_precision(precision, pick_device("auto" if engine == "ray" else device))
    if engine == "ray" and precision == "auto":  # this machine may have no GPU, and the cluster has
        say(f"precision {chosen}, the faster one on this machine: name the cluster's with --precision")
    return chosen


@dataclass(frozen=True, kw_only=True)
class Bulk:
    """A bulk job of a command, of items with the verb of what is done to them: embedded, tagged."""

    items: "list[Item]"
    job: "BulkJob"  # sized
    device: str
    engine: Place
    verb: str

    def into_shards(
        self, out: str, result: str = "", write: Callable[[int], object] = lambda failed: None
    ) -> int:
        """Run the job into shards in the folder `out`; returns how many items failed.

        `write` makes the `result` of the shards, and gets that number: what is reported is there.
        """
        from patchout.inference.bulk.run import run, run_here

        engine: Engine = run_here
        if self.engine == "ray":
            from patchout.inference.bulk.cluster import ray_engine

            engine = ray_engine()
        started = time.monotonic()
        with output.Bar("files", len(self.items), sys.stderr) as bar:
            device = device_for(self.device, self.job.precision)
            summary = run(self.items, self.job, out, device=device, on_progress=bar.sounds, engine=engine)
        seconds = time.monotonic() - started
        for reason in (*summary.failed, *summary.warnings, *summary.notes):
            say(reason)
        if summary.num_failed > len(summary.failed):
            say(f"... {summary.num_failed} in all: the column error has their reasons")
        speed = f"in {seconds:.1f} s ({summary.audio_s / seconds:.0f} x real time)"
        count = f"{summary.items - summary.num_failed} of {summary.items} files {self.verb}"
        write(summary.num_failed)
        say(f"{result or out}: {count}, {summary.rows} rows, {summary.audio_s:.0f} s of sound {speed}")
        return summary.num_failed

    def into_file(self, out: str, format: "Format") -> int:
        """Run into a folder beside `out`, and join the shards; a result that is up to date stays."""
        from patchout.data.job_folder import check_same
        from patchout.inference.bulk.join import job_of, join, reopen

        target, parts = Path(out), Path(f"{out}.parts")
        written = job_of(target, format)
        if written is not None:
            check_same(out, written, self.job.about(self.items))
            if stale := reopen(target, parts, self.items, self.job, format=format):
                failed = int(json.loads(written)["failed"])
                for note in stale.notes:
                    say(note)
                count = f"{len(self.items) - failed} of {len(self.items)} files {self.verb}"
                say(f"{out}: is there already, with {count}")
                return failed
        shards = self.job.num_shards(len(self.items))
        return self.into_shards(
            str(parts), out, lambda failed: join(parts, shards, target, format=format, failed=failed)
        )

"""One Arrow shard of a prepared set, written by a worker process, which imports nothing heavy."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from patchout.data.prepare.check import MAX_BYTES, Checked, Encoding, check
from patchout.data.prepare.listing import Clip
from patchout.files import without_stream, write_aside

BATCH_BYTES = 2**25  # of sound in a record batch
CHECKED = ".checked"  # folder of the results of checks, removed at the end
TEXTS = dict.fromkeys(("id", "file", "fold", "problem", "note"), pa.string())
NUMBERS = {"kept": pa.bool_(), "digest": pa.int64(), "rate": pa.int32(), "audio_s": pa.float64()}
CHECKS = pa.schema(TEXTS | NUMBERS)


class Shards(NamedTuple):
    """The shards of a set: their folder, number, columns and encoding."""

    out: Path
    num_shards: int
    schema: pa.Schema  # id, audio, labels, split or fold, and what else there is
    encoding: Encoding

    def path(self, number: int) -> Path:
        """File of a shard, named as `datasets` does."""
        return self.out / f"data-{number:05d}-of-{self.num_shards:05d}.arrow"

    def checks(self, number: int) -> Path:
        """File of the results of checking a shard's clips."""
        return self.out / CHECKED / f"{number:05d}.arrow"

    def is_written(self, number: int) -> bool:
        """Whether a shard is whole and the results of its checks are there."""
        return self.path(number).exists() and self.checks(number).exists()


def write_shard(shards: Shards, number: int, clips: Sequence[Clip]) -> tuple[int, float]:
    """Write one shard aside, in bounded memory, and rename it; the number of its clips and their seconds.

    A clip that cannot be used is left out; the file `Shards.checks` says why, and is there before the shard.
    """
    checks: list[dict[str, Any]] = []
    with write_aside(shards.path(number)) as path:
        with pa.ipc.new_stream(str(path), shards.schema) as writer:
            rows: list[dict[str, Any]] = []
            num_bytes = 0
            for clip, checked in _checked(clips, shards.encoding):
                result = checked._asdict()
                audio = result.pop("audio")
                file = os.fsencode(clip.file).decode("utf-8", "backslashreplace")  # that Arrow can hold
                checks.append({"id": clip.id, "file": file, "fold": clip.fold, "kept": bool(audio)} | result)
                if audio:
                    row = {"id": clip.id, "audio": audio, "labels": clip.labels}
                    rows.append(row | {"split": clip.fold, "fold": clip.fold} | clip.more)
                    num_bytes += len(audio)
                if num_bytes >= BATCH_BYTES:
                    writer.write_table(pa.Table.from_pylist(rows, shards.schema))
                    rows, num_bytes = [], 0
            writer.write_table(pa.Table.from_pylist(rows, shards.schema))
        with write_aside(shards.checks(number)) as aside, pa.ipc.new_stream(str(aside), CHECKS) as writer:
            writer.write_table(pa.Table.from_pylist(checks, CHECKS))
    return len(clips), sum(check["audio_s"] for check in checks)


def _checked(clips: Sequence[Clip], encoding: Encoding) -> Iterator[tuple[Clip, Checked]]:
    """The clips in their order, each with its result; those that cannot be read have a problem."""
    groups = lru_cache(maxsize=1)(_row_group)  # clips come in the order of their containers
    for clip in clips:
        try:
            source = _source(clip, groups)
        except FileNotFoundError:
            note = "no such file" if clip.file else "no file has its name"
            yield clip, Checked(problem="missing", note=note)
        except (OSError, pa.ArrowException, LookupError) as error:
            reason = getattr(error, "strerror", None) or error
            yield clip, Checked(problem="broken", note=f"cannot be read: {reason}")
        else:
            yield clip, check(source, encoding, start_s=clip.start_s, end_s=clip.end_s)


def _source(clip: Clip, groups: Callable[[str, int], pa.ChunkedArray]) -> bytes | str:
    """The bytes of a clip's file or of its row of a container; of one stream of a file, its name."""
    if not clip.file:
        raise FileNotFoundError
    if clip.row < 0:
        path, stream = without_stream(clip.file)
        with Path(path).open("rb") as file:
            return clip.file if stream else file.read(MAX_BYTES + 1)  # `check` refuses what is larger
    if clip.file.endswith(".parquet"):
        sound = groups(clip.file, clip.group)[clip.row].as_py()
        if not sound or sound["bytes"] is None:
            raise FileNotFoundError
        return sound["bytes"]
    import h5py

    with h5py.File(clip.file) as file:
        return file["mp3"][clip.row].tobytes()


def _row_group(file: str, group: int) -> pa.ChunkedArray:
    with pq.ParquetFile(file, pre_buffer=False) as opened:
        return opened.read_row_group(group, columns=["audio"], use_threads=False)["audio"]

"""One shard, made by a worker process: its clips are read, checked, encoded and written; nothing heavy is imported."""

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
CHECKED = ".checked"  # folder of what was found in the clips, removed at the end
TEXTS = dict.fromkeys(("id", "file", "fold", "problem", "note"), pa.string())
FOUND = pa.schema(
    TEXTS | {"kept": pa.bool_(), "digest": pa.int64(), "rate": pa.int32(), "audio_s": pa.float64()}
)


class Shards(NamedTuple):
    """Where the shards go, and what is in them."""

    out: Path
    num_shards: int
    schema: pa.Schema  # id, audio, labels, split or fold, and what else there is
    encoding: Encoding

    def path(self, number: int) -> Path:
        """A shard, named as `datasets` does."""
        return self.out / f"data-{number:05d}-of-{self.num_shards:05d}.arrow"

    def found(self, number: int) -> Path:
        """What was found in its clips."""
        return self.out / CHECKED / f"{number:05d}.arrow"


def write_shard(shards: Shards, number: int, clips: Sequence[Clip]) -> tuple[int, float]:
    """Write one shard aside and rename it when it is whole; clips done, and their seconds. Memory holds one batch.

    A clip that cannot be used is left out; why stands in the file that `Shards.found` names, which is there first.
    """
    found: list[dict[str, Any]] = []
    with write_aside(shards.path(number)) as path:
        with pa.ipc.new_stream(str(path), shards.schema) as writer:
            rows: list[dict[str, Any]] = []
            held = 0
            for clip, checked in _checked(clips, shards.encoding):
                about = {
                    "id": clip.id,
                    "file": _text(clip.file),
                    "fold": clip.fold,
                    "kept": bool(checked.audio),
                }
                found.append(about | checked._asdict())
                if checked.audio:
                    folds = {"split": clip.fold, "fold": clip.fold}
                    rows.append(
                        {"id": clip.id, "audio": checked.audio, "labels": clip.labels} | folds | clip.more
                    )
                    held += len(checked.audio)
                found[-1].pop("audio")
                if held >= BATCH_BYTES:
                    writer.write_table(pa.Table.from_pylist(rows, shards.schema))
                    rows, held = [], 0
            writer.write_table(pa.Table.from_pylist(rows, shards.schema))
        with write_aside(shards.found(number)) as aside, pa.ipc.new_stream(str(aside), FOUND) as writer:
            writer.write_table(pa.Table.from_pylist(found, FOUND))
    return len(clips), sum(row["audio_s"] for row in found)


def _checked(clips: Sequence[Clip], encoding: Encoding) -> Iterator[tuple[Clip, Checked]]:
    """The clips in their order with what was found; one that cannot be read is no reason to stop."""
    groups = lru_cache(maxsize=1)(_row_group)  # clips come in the order of their containers
    for clip in clips:
        try:
            source = _source(clip, groups)
        except FileNotFoundError:
            yield (
                clip,
                Checked(problem="missing", note="no such file" if clip.file else "no file has its name"),
            )
        except (OSError, pa.ArrowException, LookupError) as error:
            reason = getattr(error, "strerror", None) or error
            yield clip, Checked(problem="broken", note=f"cannot be read: {reason}")
        else:
            yield clip, check(source, encoding, start_s=clip.start_s, end_s=clip.end_s)


def _source(clip: Clip, groups: Callable[[str, int], pa.ChunkedArray]) -> bytes | str:
    """The bytes of a clip's file, or those in its row of a container; of a stream of a file its name."""
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


def _text(name: str) -> str:
    """A file name that Arrow can hold."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")

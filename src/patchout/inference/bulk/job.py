"""The settings of a bulk job, and what computes its rows."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa

import patchout
from patchout.audio.stream import Stream
from patchout.checkpoint.download import file_sha256
from patchout.checkpoint.zoo import locate
from patchout.data.items import Item, items_hash
from patchout.inference.bulk.ahead import Sound, open_stream
from patchout.inference.bulk.folder import storable
from patchout.models.device import InferencePrecision
from patchout.models.tagger import Tagger, TaggerConfig

MIN_ITEMS, MAX_ITEMS = 8, 256  # of a shard
SHARDS = 16  # of a job, or more
STATE_TYPES = {
    "file": pa.string(),
    "start_s": pa.float64(),
    "duration_s": pa.float64(),
    "error": pa.string(),
    "size_bytes": pa.int64(),  # of the file that was read; earlier versions did not keep it
    "modified_s": pa.float64(),
    "sample_rate": pa.int64(),  # Hz, of the file
}

J = TypeVar("J", bound="BulkJob")


@dataclass(frozen=True, kw_only=True)
class BulkJob:
    """The settings of a bulk job: the model (as `patchout.load` takes it), the precision.

    `shard_rows` counts the items of a shard; 0: a sixteenth of all, but 8 to 256.
    """

    model: str
    precision: InferencePrecision = "fp32"
    shard_rows: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that would mix values in one folder."""
        if self.precision not in ("fp32", "bf16", "int8"):
            allowed = "fp32, bf16 or int8, the same on every machine"
            raise ValueError(f"a job's precision is {allowed}, got {self.precision!r}")
        if self.shard_rows < 0:
            raise ValueError(f"shard_rows must be at least 1, or 0 for a choice, got {self.shard_rows}")

    def rows(self, device: str = "auto") -> "Rows":
        """The job's model on a device, which computes rows."""
        raise NotImplementedError

    def schema_of(self, written: pa.Schema) -> pa.Schema:
        """The columns of this job, for rows that an earlier version may have written."""
        raise NotImplementedError

    def notes(self, tables: Iterable[pa.Table], items: Sequence[Item]) -> list[str]:
        """What a user should know of all rows of the finished job, a sentence each."""
        return []

    def settings(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)

    def sized(self: J, items: int) -> J:
        """The job with a number of items a shard that suits so many items."""
        size = min(max(MIN_ITEMS, items // SHARDS), MAX_ITEMS)
        return self if self.shard_rows else replace(self, shard_rows=size)

    def num_shards(self, items: int) -> int:
        """Shards of so many items, of a job that is sized."""
        return -(-items // self.shard_rows)

    def items_of(self, items: Sequence[Item], shard: int) -> Sequence[Item]:
        """The items of a shard, of a job that is sized."""
        return items[shard * self.shard_rows : (shard + 1) * self.shard_rows]

    def open(self, item: Item, config: TaggerConfig) -> Stream:
        """The sound of an item, as a model of this config hears it."""
        return open_stream(item, config.mel.sample_rate, channel=config.channel)

    @cached_property
    def model_sha256(self) -> str:
        """SHA-256 of the model's file, computed once, also for other machines that the job is sent to."""
        return file_sha256(locate(self.model))

    @cached_property
    def hash(self) -> str:
        """Sixteen digits that change with every setting that changes values."""
        settings = self.about()
        for name in ("model", "shard_rows", "version"):
            del settings[name]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def about(self, items: Sequence[Item] = ()) -> dict[str, Any]:
        """All settings by name, as JSON holds them; with the items, what makes two jobs the same."""
        more: dict[str, Any] = {"model_sha256": self.model_sha256, "version": patchout.__version__}
        more |= {"items": len(items), "items_sha256": items_hash(items)} if items else {}
        return json.loads(json.dumps(self.settings() | more))

    def metadata(self, rate: int) -> dict[str, str]:
        """The settings, and the model's rate (Hz), in every Parquet header."""
        return {
            "patchout.model": self.model,
            "patchout.config_hash": self.hash,
            "patchout.version": patchout.__version__,
            "patchout.sample_rate": str(rate),
            "patchout.job": json.dumps(self.about()),
        }


class Rows:
    """Computes the results of sounds: chunks of them -> tables of a job's columns."""

    model: Tagger
    schema: pa.Schema
    bytes_per_s: float = 0.0  # of results, for a second of sound

    def of_chunk(self, sounds: list[Sound]) -> pa.Table:
        """The rows of sounds with waveforms, or errors."""
        raise NotImplementedError

    def of_long(self, sound: Sound) -> Iterator[pa.Table]:
        """The rows of a long sound, decoded again; if it cannot be, a row with an error ends it."""
        raise NotImplementedError


def model_rate(schema: pa.Schema) -> int:
    """The model's rate (Hz) that shards were computed at; 0: they do not say."""
    return int((schema.metadata or {}).get(b"patchout.sample_rate", 0))


def state_columns(sounds: Sequence[Sound]) -> dict[str, pa.Array]:
    """Columns of the names, times, reasons and file states of sounds, a row each."""
    cells = {
        "file": [storable(sound.item.file) for sound in sounds],
        "start_s": [sound.item.start_s for sound in sounds],
        "duration_s": [None if sound.error is not None else sound.duration_s for sound in sounds],
        "error": [storable(sound.error or sound.warning) for sound in sounds],
        "size_bytes": [sound.size_bytes for sound in sounds],
        "modified_s": [sound.modified_s for sound in sounds],
        "sample_rate": [sound.sample_rate for sound in sounds],
    }
    return {name: pa.array(cells[name], kind) for name, kind in STATE_TYPES.items()}

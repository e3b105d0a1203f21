"""Bulk job of embeddings, scenes or timestamps: its settings, and the rows of sounds."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from patchout.audio.stream import AudioError
from patchout.checkpoint.zoo import load
from patchout.data.items import Item
from patchout.inference.bulk.ahead import Sound
from patchout.inference.bulk.collapse import collapse_warnings
from patchout.inference.bulk.job import STATE_TYPES, BulkJob, Rows, model_rate, state_columns
from patchout.inference.embedding import EmbedConfig, Embedder

Kind = Literal["scene", "timestamp"]


@dataclass(frozen=True, kw_only=True)
class EmbedJob(BulkJob):
    """The settings of a job of embeddings: those of every bulk job, the kind, the embedding."""

    kind: Kind = "scene"
    config: EmbedConfig = field(default_factory=EmbedConfig)

    def __post_init__(self) -> None:
        """Refuse settings that would mix values in one folder."""
        if self.kind not in ("scene", "timestamp"):
            raise ValueError(f"kind is scene or timestamp, got {self.kind!r}")
        super().__post_init__()

    def embedder(self, device: str = "auto") -> Embedder:
        """The job's model on a device, with its config."""
        return Embedder(load(self.model, device), self.config, precision=self.precision)

    def rows(self, device: str = "auto") -> "EmbedRows":
        """The job's model on a device, which computes rows."""
        return EmbedRows(self.embedder(device), self)

    def notes(self, tables: Iterable[pa.Table], items: Sequence[Item]) -> list[str]:
        """Warnings about collapsed embeddings."""
        return collapse_warnings(tables, items)

    def settings(self) -> dict[str, Any]:
        """The fields by name, those of the embedding among them."""
        settings = super().settings()
        return settings.pop("config") | settings

    def schema(self, size: int, rate: int) -> pa.Schema:
        """The columns of shards of embeddings of `size` values, and the settings in every Parquet header."""
        columns = {name: STATE_TYPES[name] for name in ("file", "start_s", "duration_s")}
        columns |= {"time_ms": pa.float64()} if self.kind == "timestamp" else {}
        columns |= {"embedding": pa.list_(pa.float32(), size)}
        return pa.schema(columns | STATE_TYPES, metadata=self.metadata(rate))

    def schema_of(self, written: pa.Schema) -> pa.Schema:
        """The columns of this job, for rows that an earlier version may have written."""
        return self.schema(written.field("embedding").type.list_size, model_rate(written))


class EmbedRows(Rows):
    """Embeds sounds: chunks of them -> tables of a job's columns."""

    def __init__(self, embedder: Embedder, job: EmbedJob) -> None:
        config = embedder.model.config
        self.model, self.embedder, self.job = embedder.model, embedder, job
        self.is_scene = job.kind == "scene"
        sizes = embedder.config
        size = sizes.scene_size(config) if self.is_scene else sizes.timestamp_size(config)
        self.schema = job.schema(size, config.mel.sample_rate)
        self.bytes_per_s = 0.0 if self.is_scene else 4 * size * config.mel.sample_rate / embedder.hop
        self.no_rows = np.zeros((1, size), np.float32), np.zeros(1, np.float32)

    def of_chunk(self, sounds: list[Sound]) -> pa.Table:
        """The rows of sounds with waveforms, or errors."""
        waves = {place: sound.wave for place, sound in enumerate(sounds) if sound.wave is not None}
        if self.is_scene:
            scenes = self.embedder.scenes_of_each([*waves.values()])
            results = [(scene[None], np.zeros(1, np.float32)) for scene in scenes]
        else:
            results = self.embedder.timestamps_of_each([*waves.values()])
        by_place = dict(zip(waves, results, strict=True))
        return self._table(sounds, [by_place.get(place, self.no_rows) for place in range(len(sounds))])

    def of_long(self, sound: Sound) -> Iterator[pa.Table]:
        """The rows of a long sound, decoded again; if it cannot be, a row with an error ends it."""
        stream = self.job.open(sound.item, self.embedder.model.config)
        try:
            if self.is_scene:
                yield self._table([sound], [(self.embedder.scene_of(stream)[None], np.zeros(1, np.float32))])
            else:
                for times_ms, values in self.embedder.timestamps_of(stream):
                    yield self._table([sound], [(values, times_ms)])
        except (AudioError, OSError) as error:
            yield self._table([sound._replace(error=str(error))], [self.no_rows])

    def _table(self, sounds: list[Sound], results: list[tuple[np.ndarray, np.ndarray]]) -> pa.Table:
        """Every sound with as many rows as it has values (row, value) and times (row,)."""
        values, times_ms = (np.concatenate(parts) for parts in zip(*results, strict=True))
        sound_of = np.repeat(np.arange(len(sounds)), [len(times) for _, times in results])
        silent = [sound.silence and f"{sound.silence}, so its embedding says nothing" for sound in sounds]
        states = state_columns(
            [
                sound._replace(warning=sound.warning or reason)
                for sound, reason in zip(sounds, silent, strict=True)
            ]
        )
        columns = {name: column.take(sound_of) for name, column in states.items()}
        failed = np.array([sound.error is not None for sound in sounds])[sound_of]
        columns["time_ms"] = pa.array(times_ms.astype(np.float64), mask=failed)
        flat, kind = values.reshape(-1), self.schema.field("embedding").type
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(failed))
        return pa.table([columns[name] for name in self.schema.names], schema=self.schema)

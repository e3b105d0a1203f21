"""Bulk job of tags, events and scores over time: its settings, the rows of sounds, and tags from rows."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from patchout.audio.stream import Stream
from patchout.checkpoint.zoo import load
from patchout.data.items import Item
from patchout.inference.bulk.ahead import Sound
from patchout.inference.bulk.job import STATE_TYPES, BulkJob, Rows, model_rate, state_columns
from patchout.inference.events import Event, EventRule
from patchout.inference.tagging import Tags, in_file, to_tags
from patchout.inference.window_scores import SAYS_NOTHING, Scored, score
from patchout.models.int8 import at_precision
from patchout.models.tagger import Tagger, check_labels

TAG = {"label": pa.string(), "score": pa.float32(), "threshold": pa.float64()}
EVENT = {"label": pa.string(), "start_s": pa.float64(), "end_s": pa.float64(), "score": pa.float32()}
COLUMNS = ["start_s", "duration_s", "tags", "events", "error"]  # that tags are read from


@dataclass(frozen=True, kw_only=True)
class TagJob(BulkJob):
    """The settings of a job of tags: those of every bulk job, and what a row holds.

    `top` labels, above `threshold` if it is given; `events`; `over_time`: scores over time. `labels` are
    class names for a model that brings none.
    """

    top: int = 5
    threshold: float | None = None
    events: bool = False
    over_time: bool = False
    labels: tuple[str, ...] = ()

    @cached_property
    def rule(self) -> EventRule:
        """The detection rule."""
        return EventRule(on=self.threshold)

    def tagger(self, device: str = "auto") -> Tagger:
        """The job's model on a device."""
        model = load(self.model, device, labels=self.labels or None)
        check_labels(model.config)
        return model

    def rows(self, device: str = "auto") -> "TagRows":
        """The job's model on a device, which computes rows."""
        return TagRows(self.tagger(device), self)

    def schema(self, labels: Sequence[str], rate: int) -> pa.Schema:
        """The columns of shards, and settings and class names in every Parquet header.

        `scores` are those of all classes; `track` those at the `times_s`. Times are those of the file.
        """
        of_classes = pa.list_(pa.float32(), len(labels))
        columns = {name: STATE_TYPES[name] for name in ("file", "start_s", "duration_s")}
        columns |= {"tags": pa.list_(pa.struct(TAG)), "scores": of_classes}
        columns |= {"events": pa.list_(pa.struct(EVENT))} if self.events else {}
        columns |= (
            {"times_s": pa.list_(pa.float64()), "track": pa.list_(of_classes)} if self.over_time else {}
        )
        metadata = self.metadata(rate) | {"patchout.labels": json.dumps(labels)}
        return pa.schema(columns | STATE_TYPES, metadata=metadata)

    def schema_of(self, written: pa.Schema) -> pa.Schema:
        """The columns of this job, for rows that an earlier version may have written."""
        return self.schema(json.loads(written.metadata[b"patchout.labels"]), model_rate(written))


class TagRows(Rows):
    """Tags sounds: chunks of them -> tables of a job's columns, a row a sound."""

    def __init__(self, model: Tagger, job: TagJob) -> None:
        self.model, self.precision = at_precision(model, job.precision)
        self.job = job
        self.schema = job.schema(model.config.labels, model.config.mel.sample_rate)
        self.has_track = job.events or job.over_time
        self.bytes_per_s = 8 * len(model.config.labels) / job.rule.hop_s if self.has_track else 0.0

    def of_chunk(self, sounds: list[Sound]) -> pa.Table:
        """The rows of sounds with waveforms, or errors."""
        rate = self.model.config.mel.sample_rate
        waves = [(sound.wave, rate) for sound in sounds if sound.wave is not None]
        scores = self._scores([Stream(wave, rate) for wave in waves])
        failed = Scored("", error="")
        return self._table(sounds, [next(scores) if sound.wave is not None else failed for sound in sounds])

    def of_long(self, sound: Sound) -> Iterator[pa.Table]:
        """The row of a long sound, decoded again; with an error if it cannot be."""
        (scored,) = self._scores([self.job.open(sound.item, self.model.config)])
        yield self._table([sound._replace(error=scored.error)], [scored])

    def _scores(self, streams: list[Stream]) -> Iterator[Scored]:
        rule = self.job.rule if self.has_track else None
        return score(self.model, streams, events=rule, precision=self.precision, batch_size=None)

    def _table(self, sounds: list[Sound], results: list[Scored]) -> pa.Table:
        """A row a sound."""
        silent = [sound.silence and f"{sound.silence}, {SAYS_NOTHING}" for sound in sounds]
        sounds = [
            sound._replace(warning=sound.warning or reason)
            for sound, reason in zip(sounds, silent, strict=True)
        ]
        cells: dict[str, list[Any]] = {name: [] for name in ("tags", "scores", "events", "times_s", "track")}
        for sound, scored in zip(sounds, results, strict=True):
            row = dict.fromkeys(cells) if scored.scores is None else self._cells(sound, scored)
            for name, values in cells.items():
                values.append(row[name])
        columns: dict[str, Any] = state_columns(sounds)
        for field in self.schema:
            if field.name not in columns:
                columns[field.name] = pa.array(cells[field.name], field.type)
        return pa.table([columns[name] for name in self.schema.names], schema=self.schema)

    def _cells(self, sound: Sound, scored: Scored) -> dict[str, Any]:
        """The cells of a sound: lists, and arrays of scores."""
        job, config, start_s = self.job, self.model.config, sound.item.start_s
        scored = Scored(**(vars(scored) | {"duration_s": sound.duration_s}))  # that of the source
        tags = in_file(to_tags(scored, config, top=job.top, rule=job.rule, events=job.events), start_s)
        thresholds = tags.thresholds or (None,) * len(tags.labels)
        rows = zip(tags.labels, tags.scores, thresholds, strict=True)
        return {
            "tags": [dict(zip(TAG, row, strict=True)) for row in rows],
            "scores": scored.scores,
            "events": [{name: getattr(event, name) for name in EVENT} for event in tags.events],
            "times_s": scored.times_s.astype(np.float64) + start_s,
            "track": [*scored.track],
        }


def read_tags(tables: Iterable[pa.Table], items: Iterable[Item]) -> Iterator[Tags]:
    """The tags in the rows of a finished job, of its items in order."""
    rows = (row for table in tables for row in table.to_pylist())
    for row, item in zip(rows, items, strict=True):
        if row["duration_s"] is None:
            yield Tags(item.file, 0.0, (), (), error=row["error"] or "")
            continue
        start_s, duration_s = row["start_s"], row["duration_s"]
        labels, scores, thresholds = ([tag[name] for tag in row["tags"]] for name in TAG)
        yield Tags(
            item.file,
            duration_s,
            tuple(labels),
            tuple(scores),
            tuple(Event(**event) for event in row.get("events") or ()),
            row["error"],
            segment_s=None if item == Item(item.file) else (start_s, start_s + duration_s),
            thresholds=() if None in thresholds else tuple(thresholds),
        )

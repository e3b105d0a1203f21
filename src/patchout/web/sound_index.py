"""Index of the sounds of a folder and what a model has heard in them, kept in an SQLite file."""

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from patchout.data.folders import walk
from patchout.errors import InputError
from patchout.files import file_state

SCHEMA = """
CREATE TABLE IF NOT EXISTS sounds (file TEXT PRIMARY KEY, size_bytes INTEGER, modified_s REAL, summary TEXT,
  details TEXT, times BLOB, track BLOB, peaks BLOB, picture BLOB);
CREATE TABLE IF NOT EXISTS segments (file TEXT, start_s REAL, end_s REAL, embedding BLOB,
  PRIMARY KEY (file, start_s));
"""
VERSION = 1  # of the schema and of what the columns mean
CHUNK = 4096  # rows of embeddings at a time

Embeddings = Float[np.ndarray, "segment value"]


@dataclass(frozen=True, slots=True)
class Summary:
    """What the list shows of a tagged sound; `margin` is small where the model is least certain."""

    duration_s: float = 0.0
    label: str = ""
    score: float = 0.0
    margin: float = 1.0
    events: int = 0
    error: str = ""
    is_passed: bool = False  # the score reaches the threshold of its label
    is_provisional: bool = False  # of a new last layer on kept embeddings: nothing is known over time


@dataclass(frozen=True, slots=True)
class Sound:
    """A sound file of the folder, with its summary once it is tagged."""

    file: str  # path below the folder
    size_bytes: int
    modified_s: float
    summary: Summary | None = None


class Span(NamedTuple):
    """A part of a sound with its embedding."""

    start_s: float
    end_s: float
    embedding: Float[np.ndarray, "value"]


@dataclass(frozen=True)
class Analysis:
    """All that is kept of a sound: arrays are empty where it could not be read."""

    summary: Summary
    details: dict[str, Any]  # JSON: tags, events, warning, labels of the track
    times_s: Float[np.ndarray, "time"]
    track: Float[np.ndarray, "time class"]  # float16, of the classes that are highest somewhere
    peaks: np.ndarray  # (time,) uint8
    picture: np.ndarray  # (mel, time) uint8; empty of a short sound
    spans: Sequence[Span] = ()


class SoundIndex:
    """The sounds of `folder` in memory, and their analyses by one model in the file `store`.

    An analysis belongs to a file of a certain size and time; a changed file is a new one.
    """

    def __init__(self, folder: Path, store: Path) -> None:
        self.folder, self.store = folder, store
        self.problems: tuple[str, ...] = ()
        self.sounds: dict[str, Sound] = {}
        self._lock = threading.RLock()
        self._database = _opened(store)

    def close(self) -> None:
        """Close the store."""
        with self._lock:
            self._database.close()

    def scan(self) -> None:
        """Look through the folder; a folder that is gone keeps the list, and is a problem."""
        problems: list[str] = []
        if not self.folder.is_dir():
            self.problems = (f"{self.folder} is gone: plug it in or mount it again",)
            return
        stored = self._stored()
        sounds, odd = dict[str, Sound](), 0
        for path in walk(self.folder, problems.append):
            file = Path(os.path.relpath(path, self.folder)).as_posix()
            try:
                file.encode()
            except UnicodeEncodeError:
                odd += 1
                continue
            size_bytes, modified_s = file_state(path)
            if size_bytes is not None and modified_s is not None:
                state = (size_bytes, modified_s)
                former = stored.get(file)
                summary = former[1] if former and former[0] == state else None
                sounds[file] = Sound(file, *state, summary)
        if odd:
            problems.append(f"{odd} files whose names are no UTF-8 are left out: rename them")
        self.sounds, self.problems = sounds, tuple(problems)

    def _stored(self) -> dict[str, tuple[tuple[int, float], Summary]]:
        """State and summary of every file that was tagged."""
        with self._lock:
            rows = self._database.execute("SELECT file, size_bytes, modified_s, summary FROM sounds")
            return {
                file: ((size, time), Summary(**json.loads(summary))) for file, size, time, summary in rows
            }

    def path(self, file: str) -> Path:
        """The path of a sound of the list; FileNotFoundError for any other name, and for one that is gone."""
        path = self.folder / file
        if file not in self.sounds or not path.is_file():
            raise FileNotFoundError(2, "no such sound in the folder", file)
        return path

    def refreshed(self, file: str) -> Sound:
        """The sound as the disk has it now: without a summary if it has changed."""
        size_bytes, modified_s = file_state(str(self.path(file)))
        sound = self.sounds[file]
        if (size_bytes, modified_s) != (sound.size_bytes, sound.modified_s):
            sound = Sound(file, size_bytes or 0, modified_s or 0.0)
            self.sounds[file] = sound
        return sound

    def untagged(self) -> list[str]:
        """The sounds without an analysis, or with a provisional one, in their order."""
        return [file for file, sound in list(self.sounds.items()) if not is_tagged(sound)]

    def copy_spans(self, other: "SoundIndex") -> None:
        """Take over all embeddings of another index."""
        for spans, values in other.embeddings():
            rows = ((*span, value.tobytes()) for span, value in zip(spans, values, strict=True))
            with self._lock, self._database:
                self._database.executemany("REPLACE INTO segments VALUES (?, ?, ?, ?)", rows)

    def save(self, analyses: Iterable[tuple[Sound, Analysis]], *, keep_spans: bool = False) -> None:
        """Keep the analyses of sounds, each of the file as it was when it was read."""
        for sound, analysis in analyses:  # which may take their time
            texts = (json.dumps(asdict(analysis.summary)), json.dumps(analysis.details))
            arrays = (analysis.times_s, analysis.track, analysis.peaks, analysis.picture)
            row = (sound.file, sound.size_bytes, sound.modified_s, *texts)
            spans = [(sound.file, *span[:2], span.embedding.tobytes()) for span in analysis.spans]
            with self._lock, self._database as rows:
                values = (*row, *(array.tobytes() for array in arrays))
                rows.execute("REPLACE INTO sounds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
                if not keep_spans:
                    rows.execute("DELETE FROM segments WHERE file = ?", (sound.file,))
                rows.executemany("INSERT INTO segments VALUES (?, ?, ?, ?)", spans)
                current = self.sounds.get(sound.file)
                if current and replace(current, summary=None) == replace(sound, summary=None):
                    self.sounds[sound.file] = replace(sound, summary=analysis.summary)

    def analysis(self, file: str) -> Analysis | None:
        """What is kept of a sound, without its embeddings; None until it is tagged."""
        query = "SELECT summary, details, times, track, peaks, picture FROM sounds WHERE file = ?"
        with self._lock:
            row = self._database.execute(query, (file,)).fetchone()
        if row is None or self.sounds[file].summary is None:
            return None
        details = json.loads(row[1])
        times_s = np.frombuffer(row[2], np.float32)
        track = np.frombuffer(row[3], np.float16).reshape(len(times_s), len(details.get("track", ())))
        picture = np.frombuffer(row[5], np.uint8).reshape(details.get("mels", 0) or 1, -1)
        peaks = np.frombuffer(row[4], np.uint8)
        return Analysis(Summary(**json.loads(row[0])), details, times_s, track, peaks, picture)

    def embedding(self, file: str, start_s: float, end_s: float) -> Float[np.ndarray, "value"] | None:
        """Mean embedding of the spans that overlap a part of a sound; None where nothing is kept."""
        query = "SELECT embedding FROM segments WHERE file = ? AND start_s < ? AND end_s > ?"
        with self._lock:
            rows = self._database.execute(query, (file, end_s, start_s)).fetchall()
        values = [np.frombuffer(row[0], np.float32) for row in rows]
        return np.mean(values, axis=0) if values else None

    def embeddings(self) -> Iterator[tuple[list[tuple[str, float, float]], Embeddings]]:
        """All spans as (file, start, end) with their embeddings, some thousands at a time."""
        last = 0
        query = (
            "SELECT rowid, file, start_s, end_s, embedding FROM segments WHERE rowid > ? ORDER BY rowid "
            f"LIMIT {CHUNK}"
        )
        while True:
            with self._lock:
                rows = self._database.execute(query, (last,)).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            values = np.frombuffer(b"".join(row[4] for row in rows), np.float32).reshape(len(rows), -1)
            yield [row[1:4] for row in rows], values

    def nearest(self, file: str, start_s: float, end_s: float, count: int) -> list[tuple[str, float, float]]:
        """The spans of other places most similar (cosine) to a part of a sound: file, start, similarity."""
        query = self.embedding(file, start_s, end_s)
        if query is None:
            summary = self.sounds[file].summary
            reason = f"{file}: is not tagged yet, so nothing is known to be like it"
            raise InputError(summary.error if summary and summary.error else reason)
        best: list[tuple[str, float, float]] = []
        for spans, values in self.embeddings():
            norm = np.linalg.norm(values, axis=1) * np.linalg.norm(query)
            similarity = values @ query / np.maximum(norm, 1e-12)
            for place in np.argsort(-similarity)[: 2 * count].tolist():
                name, first, last = spans[place]
                is_same = name == file and first < end_s and last > start_s
                if name in self.sounds and not is_same:
                    best.append((name, first, float(similarity[place])))
            best = sorted(best, key=lambda hit: -hit[2])[:count]
        return best


def _opened(store: Path) -> sqlite3.Connection:
    """The store, made anew if it is damaged or of another version: all in it can be computed again."""
    store.parent.mkdir(parents=True, exist_ok=True)
    for attempt in (1, 2):
        database = sqlite3.connect(store, check_same_thread=False, timeout=30)
        with suppress(sqlite3.DatabaseError):
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version in (0, VERSION):
                database.executescript(f"PRAGMA synchronous = NORMAL; {SCHEMA}")
                database.execute(f"PRAGMA user_version = {VERSION}")
                database.execute("SELECT count(*) FROM sounds").fetchone()
                return database
        database.close()
        if attempt == 1:
            store.unlink()
    raise InputError(f"{store}: cannot be used as a store of results: delete it")


def is_tagged(sound: Sound) -> bool:
    """Whether the analysis of a sound is complete."""
    return sound.summary is not None and not sound.summary.is_provisional


SORTS: dict[str, Callable[[Sound, Sequence[str]], Any]] = {  # key of a sound with its labels
    "name": lambda sound, labels: sound.file.casefold(),
    "label": lambda sound, labels: (
        ", ".join(labels) or (sound.summary.label if sound.summary else "\uffff"),
        -_score(sound),
    ),
    "score": lambda sound, labels: -_score(sound),
    "uncertain": lambda sound, labels: (bool(labels), sound.summary.margin if sound.summary else 2.0),
}


def _score(sound: Sound) -> float:
    return sound.summary.score if sound.summary else -1.0


def ordered(sounds: Sequence[Sound], labels: dict[str, list[str]], sort: str, search: str) -> list[str]:
    """Files in the order of `SORTS`, those whose name or label holds all words of the search."""
    if sort not in SORTS:
        raise InputError(f"no order {sort!r}: give {', '.join(SORTS)}")
    words, key = search.casefold().split(), SORTS[sort]

    def matches(sound: Sound) -> bool:
        summary = sound.summary
        named = labels.get(sound.file) or ([summary.label] if summary else [])
        text = " ".join((sound.file, *named)).casefold()
        return all(word in text for word in words)

    chosen = [sound for sound in sounds if matches(sound)] if words else sounds
    return [sound.file for sound in sorted(chosen, key=lambda sound: key(sound, labels.get(sound.file, ())))]

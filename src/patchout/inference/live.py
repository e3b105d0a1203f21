"""Live tagging: sound that is still arriving -> scores and events, in bounded memory and delay."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from patchout.audio.stream import AudioError, Stream
from patchout.inference.events import Change, EventRule, EventTracker
from patchout.inference.window_batches import Batcher, ModelScores, Receiver, Wave
from patchout.inference.window_scores import Moments, moment_windows
from patchout.models.device import InferencePrecision
from patchout.models.tagger import Tagger, check_labels

STEP_S = 0.5  # of sound between two looks at the scores
RING_S = 10.0  # of sound that waits for the model
LATE_S = 1.0  # of sound that waits, from which the number of threads is chosen anew
TRIAL_LOOKS = 16  # of which one is computed by the number of threads that was slower
STALL_S = 5.0  # without sound, of which a message tells
PACE = 1.5  # times real time: a sender that is faster plays a recording, and can wait

Kind = Literal["start", "scores", "begin", "end", "skipped", "stalled", "summary"]


@dataclass(frozen=True)
class Message:
    """A change that live tagging tells of. Times are seconds of sound since it began.

    `delay_s` are the seconds from the arrival of the sound at the begin (or end) of the event to the message.
    """

    kind: Kind
    values: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, as `patchout listen` prints them."""
        digits = {name: 3 if name.endswith("_s") else 4 for name in self.values}
        values = {n: round(v, digits[n]) if isinstance(v, float) else v for n, v in self.values.items()}
        return {"kind": self.kind, **values}


class Piece(NamedTuple):
    """Sound that has arrived."""

    start: int  # in samples of the stream; more than the end of the last one: sound between was dropped
    samples: Wave
    arrived_s: float  # on the monotonic clock


class Ring:
    """Ring buffer of sound that waits for the model, filled by a thread that reads a stream.

    When it is full, a sender that has been faster than real time waits; else all that waits is dropped.
    """

    def __init__(self, stream: Stream, *, limit_s: float = RING_S) -> None:
        self.stream = stream
        self._limit = limit_s * stream.rate
        self._pieces: deque[Piece] = deque()
        self._change = threading.Condition()
        self._size = self._end = 0  # samples in it; samples that have arrived
        self.is_stopped = self._is_over = self._can_wait = False
        self._began_s = 0.0
        self._error: BaseException | None = None
        # A daemon: an interpreter that ends does not wait for a pipe
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def waiting_s(self) -> float:
        """Seconds of sound that wait for the model."""
        return self._size / self.stream.rate

    def stop(self) -> None:
        """End the sound here, as a signal's handler may."""
        with self._change:
            self.is_stopped = self._is_over = True
            self._pieces.clear()
            self._change.notify_all()

    def take(self, timeout_s: float) -> Piece | None:
        """The next piece; None at the end. `queue.Empty` if nothing arrives; raises what ended the stream."""
        with self._change:
            if not self._change.wait_for(lambda: bool(self._pieces) or self._is_over, timeout_s):
                raise queue.Empty
            if not self._pieces:
                if self._error is not None:
                    raise self._error
                return None
            piece = self._pieces.popleft()
            self._size -= len(piece.samples)
            self._change.notify_all()
            return piece

    def _read(self) -> None:
        with self:
            for samples in self.stream:
                self._put(samples)
                if self._is_over:
                    return

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        with self._change:
            self._error = error  # raised again by `take`: a thread has nobody else to tell
            self._is_over = True
            self._change.notify_all()
        return True

    def _has_room(self, size: int) -> bool:
        return not self._pieces or self._size + size <= self._limit

    def _put(self, samples: Wave) -> None:
        now_s = time.monotonic()
        with self._change:
            self._began_s = self._began_s or now_s - len(samples) / self.stream.rate
            piece = Piece(self._end, samples, now_s)
            self._end += len(samples)
            if not self._has_room(len(samples)):
                pace = self._end / self.stream.rate / max(now_s - self._began_s, 1e-9)
                self._can_wait = self._can_wait or pace > PACE
                if self._can_wait:
                    self._change.wait_for(lambda: self._is_over or self._has_room(len(samples)))
                else:
                    self._pieces.clear()
                    self._size = 0
            if self._is_over:  # stopped meanwhile
                return
            self._pieces.append(piece)
            self._size += len(samples)
            self._change.notify_all()


class Threads:
    """One thread while it keeps up; where sound waits, the faster of one and all.

    Threads of which one shares its core with another program wait for it at every layer (ten times slower).
    """

    def __init__(self) -> None:
        self._all, self._current, self._looks = torch.get_num_threads(), 1, 0
        self._seconds = dict.fromkeys((1, self._all), 0.0)  # of a look; 0: not yet measured

    @contextmanager
    def look(self, waiting_s: float) -> Iterator[None]:
        """Compute a look at the scores while so much sound waits."""
        if waiting_s >= LATE_S:
            self._looks += 1
            by_speed = sorted(self._seconds, key=self._seconds.__getitem__)
            self._current = by_speed[-1 if self._looks % TRIAL_LOOKS == 0 else 0]
        begin_s = time.monotonic()
        torch.set_num_threads(self._current)
        try:
            yield
        finally:
            torch.set_num_threads(self._all)
        self._seconds[self._current] = time.monotonic() - begin_s


class Listener(Receiver):
    """A model that hears a live stream, and tells of events as they begin and end.

    The events are those of `tag` on the recorded file. Where sound was dropped they end, and may begin again.
    """

    def __init__(
        self,
        model: Tagger,
        ring: Ring,
        on_message: Callable[[Message], object],
        *,
        rule: EventRule | None = None,
        precision: InferencePrecision = "fp32",
        top: int = 0,
    ) -> None:
        """`top`: labels of a message with scores every STEP_S; 0: none."""
        check_labels(model.config)
        self._batcher = Batcher([model], batch_size=None, precision=precision)
        self._config, self._rate = model.config, model.config.mel.sample_rate
        self._ring, self._on_message, self._top = ring, on_message, top
        self._rule, self._moments = rule or EventRule(), Moments(model.config)
        self._tracker = EventTracker(self._config.labels, self._rule, self._config.decision)
        self._first_s = self._heard_s = self._arrived_s = (
            0.0  # of the stretch without a gap; of the last piece
        )
        self._events, self._skipped_s, self._max_delay_s = 0, 0.0, 0.0
        self._threads = Threads()
        self._error: AudioError | OSError | None = None

    def run(self) -> None:
        """Hear the stream to its end, then raise what ended it: AudioError or OSError."""
        piece, stream = self._take(), self._ring.stream
        if piece is not None:
            self._tell("start", source=stream.name, rate=stream.source_rate, channels=stream.num_channels)
        while piece is not None:
            piece = self._hear(piece)
        counts = {"events": self._events, "skipped_s": self._skipped_s, "max_delay_s": self._max_delay_s}
        warning = stream.warning or stream.silence
        self._tell("summary", heard_s=self._heard_s, **counts, warning=warning)
        if self._error is not None:
            raise self._error

    def receive(self, is_clip: bool, centre: float, scores: ModelScores) -> None:
        """Take the scores of one window."""
        self.pending -= 1
        self._moments.add(centre, scores)

    def _hear(self, piece: Piece) -> Piece | None:
        """Hear a stretch without a gap from this piece on; returns the first piece of the next stretch."""
        self._first_s = piece.start / self._rate
        self._tracker = EventTracker(self._config.labels, self._rule, self._config.decision)
        following: list[Piece] = []
        for start, wave in moment_windows(self._stretch(piece, following), self._rule, self._config):
            self._batcher.add(self, False, start, wave)
        self._look()
        if not following and not self._ring.is_stopped and self._error is None:
            self._heard_s = self._ring.stream.duration_s  # in samples of the source, as `tag` has it
        self._report(self._tracker.finish(self._heard_s - self._first_s))
        if following:
            start_s, end_s = self._heard_s, following[0].start / self._rate
            self._skipped_s += end_s - start_s
            self._tell("skipped", start_s=start_s, end_s=end_s)
        return following[0] if following else None

    def _stretch(self, piece: Piece, following: list[Piece]) -> Iterator[Wave]:
        """The samples until the next gap, whose far side is put into `following`."""
        following.append(piece)
        while following:
            piece = following.pop()
            self._heard_s = (piece.start + len(piece.samples)) / self._rate
            self._arrived_s = piece.arrived_s
            yield piece.samples
            self._look()
            after = self._take()
            if after is not None:
                following.append(after)
                if after.start != piece.start + len(piece.samples):
                    return

    def _take(self) -> Piece | None:
        """The next piece of sound; None at the end."""
        is_reported = False
        while True:
            try:
                return self._ring.take(STALL_S)
            except queue.Empty:
                if not is_reported:
                    self._tell("stalled", heard_s=self._heard_s)
                is_reported = True
            except (AudioError, OSError) as error:
                self._error = error
                return None

    def _look(self) -> None:
        """Score the windows that wait, and tell what changes."""
        with self._threads.look(self._ring.waiting_s):
            self._batcher.flush()
        times_s, (track,) = self._moments.take()
        track = self._config.decision.calibrated(track, self._config.task)
        for time_s, scores in zip(times_s, track, strict=True):
            self._report(self._tracker.push(time_s, scores))
        if self._top and len(track):
            best = np.argsort(-track[-1], kind="stable")[: self._top].tolist()
            rows = {self._config.labels[index]: round(float(track[-1, index]), 4) for index in best}
            self._tell("scores", time_s=self._first_s + float(times_s[-1]), scores=rows)

    def _report(self, changes: Sequence[Change]) -> None:
        for label, start_s, score, event in changes:
            at_s = self._first_s + (event.end_s if event else start_s)
            delay_s = time.monotonic() - self._arrived_s + self._heard_s - at_s
            self._max_delay_s = max(self._max_delay_s, delay_s)
            values = {"label": label, "start_s": self._first_s + start_s}
            values |= {"end_s": at_s} if event else {}
            self._events += event is not None
            self._tell("end" if event else "begin", **values, score=score, delay_s=delay_s)

    def _tell(self, kind: Kind, **values: Any) -> None:
        self._on_message(Message(kind, values))

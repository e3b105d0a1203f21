"""Items -> decoded sounds, by threads that run ahead of the model."""

import os
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from patchout.audio import Stream
from patchout.items import Item

HELD_S = 60.0  # a longer sound is decoded again, block by block, when its turn comes
AHEAD_BYTES = 2**26  # decoded sounds that wait for the model
AHEAD_ITEMS = 512


@dataclass(frozen=True)
class Sound:
    """An item, decoded."""

    item: Item
    wave: np.ndarray | None = None  # (samples,) at the model's rate; None: failed, or longer than HELD_S
    duration_s: float = 0.0
    warning: str | None = None  # only a part could be decoded
    error: str | None = None  # nothing could

    @property
    def num_bytes(self) -> int:
        """Memory that the samples take."""
        return 0 if self.wave is None else self.wave.nbytes

    @property
    def is_long(self) -> bool:
        """Whether the samples have to be read again."""
        return self.wave is None and self.error is None


def decode(item: Item, rate: int) -> Sound:
    """Read an item to its end; up to HELD_S seconds of samples are kept. A failure is part of the result."""
    parts: list[np.ndarray] = []
    held = 0
    try:
        stream = open_stream(item, rate)
        for block in stream:
            held += len(block)
            parts.append(block)
            if held > HELD_S * rate:
                parts.clear()
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        return Sound(item, error=text)
    except ValueError as error:  # AudioError, and segments that make no sense
        return Sound(item, error=_named(item, error))
    wave = np.concatenate(parts) if held <= HELD_S * rate else None
    return Sound(item, wave, stream.duration_s, stream.warning)


def open_stream(item: Item, rate: int) -> Stream:
    """The sound of an item, in blocks."""
    return Stream(item.file, rate, start_s=item.start_s, end_s=item.end_s)


def _named(item: Item, error: ValueError) -> str:
    return str(error) if str(error).startswith(item.file) else f"{item.file}: {error}"


def decode_ahead(items: Iterable[Item], rate: int) -> Generator[Sound, None, None]:
    """`decode` all items in order, by threads that are up to AHEAD_BYTES ahead of the reader."""
    ahead = _Ahead(rate)
    source = enumerate(items)
    queue: deque[Future[Sound]] = deque()
    with ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 1)), "decode") as pool:
        try:
            while True:
                queue.extend(
                    pool.submit(ahead.decode, place, item) for place, item in islice(source, AHEAD_ITEMS - len(queue))
                )
                if not queue:
                    return
                sound = queue.popleft().result()
                ahead.taken(sound)
                yield sound
        finally:
            ahead.wanted_by(sys.maxsize)
            pool.shutdown(cancel_futures=True)


class _Ahead:
    """Lets a decoder start while there is room, or when the reader waits for its very item."""

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.changed = threading.Condition()
        self.held = 0  # bytes that are decoded and not taken
        self.wanted = 0  # the item that the reader takes next

    def decode(self, place: int, item: Item) -> Sound:
        with self.changed:
            self.changed.wait_for(lambda: self.held < AHEAD_BYTES or place <= self.wanted)
        sound = decode(item, self.rate)
        with self.changed:
            self.held += sound.num_bytes
        return sound

    def taken(self, sound: Sound) -> None:
        with self.changed:
            self.held -= sound.num_bytes
        self.wanted_by(self.wanted + 1)

    def wanted_by(self, place: int) -> None:
        with self.changed:
            self.wanted = place
            self.changed.notify_all()

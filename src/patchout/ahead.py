"""Items -> decoded sounds, by threads that run ahead of the model."""

import os
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np

from patchout.audio import Stream
from patchout.items import Item

HELD_S = 60.0  # a longer sound is decoded again, block by block, when its turn comes
AHEAD_BYTES = 2**26  # decoded sounds that wait for the model
AHEAD_ITEMS = 512


class Sound(NamedTuple):
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


def open_stream(item: Item, rate: int) -> Stream:
    """The sound of an item, in blocks."""
    return Stream(item.file, rate, start_s=item.start_s, end_s=item.end_s)


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
    except (OSError, ValueError) as error:  # AudioError too, and segments that make no sense
        text = str(getattr(error, "strerror", None) or error)
        return Sound(item, error=text if text.startswith(item.file) else f"{item.file}: {text}")
    wave = np.concatenate(parts) if held <= HELD_S * rate else None
    return Sound(item, wave, stream.duration_s, stream.warning)


def decode_ahead(items: Iterable[Item], rate: int) -> Generator[Sound, None, None]:
    """`decode` all items in order, by threads that are up to AHEAD_BYTES ahead of the reader."""
    changed = threading.Condition()
    held, wanted = 0, 0  # bytes that are decoded and not taken; the item that the reader takes next

    def decode_in_turn(place: int, item: Item) -> Sound:
        nonlocal held
        with changed:
            changed.wait_for(lambda: held < AHEAD_BYTES or place <= wanted)
        sound = decode(item, rate)
        with changed:
            held += sound.num_bytes
        return sound

    queue: deque[Future[Sound]] = deque()
    source = enumerate(items)
    with ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 1)), "decode") as pool:
        try:
            while True:
                queue.extend(pool.submit(decode_in_turn, *one) for one in islice(source, AHEAD_ITEMS - len(queue)))
                if not queue:
                    return
                sound = queue.popleft().result()
                with changed:
                    held, wanted = held - sound.num_bytes, wanted + 1
                    changed.notify_all()
                yield sound
        finally:
            with changed:
                wanted = sys.maxsize
                changed.notify_all()
            pool.shutdown(cancel_futures=True)

"""Items -> decoded sounds, by threads that run ahead of the model."""

import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Executor, Future
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np

from patchout.audio.stream import Channel, Stream
from patchout.data.items import Item
from patchout.files import file_state

HELD_S = 60.0  # a longer sound is decoded again, block by block, when its turn comes


class Sound(NamedTuple):
    """An item, decoded."""

    item: Item
    wave: np.ndarray | None = None  # (samples,) at the model's rate; None: failed, or longer than HELD_S
    duration_s: float = 0.0
    warning: str | None = None  # only a part could be decoded
    error: str | None = None  # nothing could
    size_bytes: int | None = None  # of the file, before it was read; of a sound that failed None
    modified_s: float | None = None

    @property
    def num_bytes(self) -> int:
        """Memory that the samples take."""
        return 0 if self.wave is None else self.wave.nbytes

    @property
    def is_long(self) -> bool:
        """Whether the samples have to be read again."""
        return self.wave is None and self.error is None


def open_stream(item: Item, rate: int, *, channel: Channel) -> Stream:
    """The sound of an item, in blocks; rate and channel are those of the model that hears it."""
    return Stream(item.file, rate, start_s=item.start_s, end_s=item.end_s, channel=channel)


def decode(
    item: Item, rate: int, is_over: threading.Event | None = None, *, channel: Channel = "mean"
) -> Sound:
    """Read an item to its end, or until `is_over`; up to HELD_S seconds are kept. A failure is part of the result."""
    parts: list[np.ndarray] = []
    held = 0
    if item.reason:
        return Sound(item, error=f"{item.file or 'a list'}: {item.reason}")
    state = file_state(item.file)  # what is written while it is read is seen the next time
    try:
        stream = open_stream(item, rate, channel=channel)
        for block in stream:
            if is_over and is_over.is_set():
                return Sound(item, error=f"{item.file}: was not read to its end")
            held += len(block)
            parts.append(block)
            if held > HELD_S * rate:
                parts.clear()
    except (OSError, ValueError) as error:  # AudioError too, and segments that make no sense
        text = str(getattr(error, "strerror", None) or error)
        return Sound(item, error=text if text.startswith(item.file) else f"{item.file}: {text}")
    wave = None if held > HELD_S * rate else parts[0] if len(parts) == 1 else np.concatenate(parts)
    return Sound(item, wave, stream.duration_s, stream.warning, None, *state)


def decode_ahead(
    items: Iterable[Item],
    rate: int,
    pool: Executor,
    ahead: int,
    is_over: threading.Event | None = None,
    *,
    channel: Channel = "mean",
) -> Generator[Sound, None, None]:
    """`decode` all items in order, by the threads of a pool that are up to `ahead` items ahead of the reader."""
    queue: deque[Future[Sound]] = deque()
    source = iter(items)
    read = partial(decode, channel=channel)
    try:
        while True:
            queue.extend(
                pool.submit(read, item, rate, is_over) for item in islice(source, ahead - len(queue))
            )
            if not queue:
                return
            yield queue.popleft().result()
    finally:
        for future in queue:
            future.cancel()

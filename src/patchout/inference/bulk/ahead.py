"""Decoding by threads that run ahead of the model: items -> sounds."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future
from itertools import islice
from typing import NamedTuple

import numpy as np

from patchout.audio.stream import Channel, Stream
from patchout.data.items import Item
from patchout.files import file_state

HELD_S = 60.0  # a longer sound is decoded again, block by block, when it is embedded


class Sound(NamedTuple):
    """A decoded item: its waveform, or the reason why there is none."""

    item: Item
    wave: np.ndarray | None = None  # (samples,) at the model's rate; None: failed, or longer than HELD_S
    duration_s: float = 0.0
    warning: str | None = None  # only a part could be decoded
    error: str | None = None  # nothing could
    size_bytes: int | None = None  # of the file before it was read; None if it failed
    modified_s: float | None = None
    silence: str | None = None  # why it is silent
    sample_rate: int | None = None  # Hz, of the file; None if it failed

    @property
    def num_bytes(self) -> int:
        """Memory that the samples take."""
        return 0 if self.wave is None else self.wave.nbytes

    @property
    def is_long(self) -> bool:
        """Whether the sound is too long to be kept, and has to be decoded again."""
        return self.wave is None and self.error is None


Opener = Callable[[Item], Stream]  # at the rate, and of the channel, of the model that hears it


def open_stream(item: Item, rate: int, *, channel: Channel) -> Stream:
    """The sound of an item, in blocks, at a model's rate and of its channel."""
    return Stream(item.file, rate, start_s=item.start_s, end_s=item.end_s, channel=channel)


def decode(item: Item, opener: Opener, is_over: threading.Event | None = None) -> Sound:
    """Decode an item to its end, or until `is_over`, and keep up to HELD_S seconds; errors are results."""
    if item.reason:
        return Sound(item, error=f"{item.file or 'a list'}: {item.reason}")
    blocks: list[np.ndarray] = []
    num_samples, limit = 0, 0.0
    state = file_state(item.file)  # what is written while it is read is seen the next time
    try:
        stream = opener(item)
        limit = HELD_S * stream.rate
        for block in stream:
            if is_over and is_over.is_set():
                return Sound(item, error=f"{item.file}: was not read to its end")
            num_samples += len(block)
            blocks.append(block)
            if num_samples > limit:
                blocks.clear()
    except (OSError, ValueError) as error:  # AudioError too, and segments that make no sense
        text = str(getattr(error, "strerror", None) or error)
        return Sound(item, error=text if text.startswith(item.file) else f"{item.file}: {text}")
    wave = None if num_samples > limit else blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    return Sound(
        item, wave, stream.duration_s, stream.warning, None, *state, stream.silence, stream.source_rate
    )


def decode_ahead(
    items: Iterable[Item],
    opener: Opener,
    pool: Executor,
    ahead: int,
    is_over: threading.Event | None = None,
) -> Generator[Sound, None, None]:
    """`decode` all items in order, in the threads of a pool, up to `ahead` items before the reader."""
    queue: deque[Future[Sound]] = deque()
    reader = iter(items)
    try:
        while True:
            queue.extend(
                pool.submit(decode, item, opener, is_over) for item in islice(reader, ahead - len(queue))
            )
            if not queue:
                return
            yield queue.popleft().result()
    finally:
        for future in queue:
            future.cancel()

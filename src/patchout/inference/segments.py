"""One long sound in segments with mirrored ends, for windows around evenly spaced times."""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float

MAX_SAMPLES = 2**21  # of a segment between its first and last time: about a minute
MAX_TIMES = 1024


def segments(
    blocks: Iterable[np.ndarray], margin: int, hop: int
) -> Iterator[tuple[Float[np.ndarray, "sample"], int]]:
    """Segments of a sound, each with its number of times, which lie at sample `margin` and every hop on.

    N samples have N // hop + 1 times, from sample 0 on; a sound not longer than `margin` gets zeros after it.
    """
    reader = iter(blocks)
    buffer = next(reader)
    while len(buffer) <= margin and (block := next(reader, None)) is not None:
        buffer = np.concatenate([buffer, block])
    total = len(buffer)
    buffer = np.pad(buffer, (0, max(0, margin + 1 - total)))
    tail = buffer[-margin - 1 :]  # what the mirror at the end needs
    buffer = np.concatenate([buffer[margin:0:-1], buffer])
    size, first = min(MAX_TIMES, max(1, MAX_SAMPLES // hop)), 0  # times of a segment; times before it
    span = (size - 1) * hop + 2 * margin
    for block in reader:
        total += len(block)
        tail = np.concatenate([tail, block])[-margin - 1 :]
        buffer = np.concatenate([buffer, block])
        while len(buffer) >= max(span, size * hop):  # a hop may be longer than its window
            yield buffer[:span], size
            buffer = buffer[size * hop :]
            first += size
    buffer = np.concatenate([buffer, tail[-2::-1]])
    while count := min(size, total // hop + 1 - first):
        yield buffer[: (count - 1) * hop + 2 * margin], count
        buffer = buffer[count * hop :]
        first += count

"""Streams decoded by threads ahead of their reader, a few at a time and in bounded memory."""

import os
import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator

import numpy as np

from patchout.audio.stream import Stream

MAX_THREADS = 8  # more wait for the interpreter
BLOCKS = 2  # of a stream that wait for its reader: of a long one the next twenty seconds


def read_ahead(streams: Iterable[Stream], *, threads: int = 0) -> Generator[Stream, None, None]:
    """The same streams in order, each decoded by a thread, as many ahead as `threads` (0: one a core).

    The iterable is read ahead too: what it gives must stay readable. Closing the generator ends the threads.
    """
    threads = threads or min(MAX_THREADS, os.cpu_count() or 1)
    readers, source = deque[_Reader](), iter(streams)
    try:
        while True:
            while len(readers) <= threads and (stream := next(source, None)) is not None:
                readers.append(_Reader(stream))
            if not readers:
                return
            yield readers[0].stream
            readers.popleft().end()
    finally:
        for reader in readers:
            reader.is_over = True
        for reader in readers:
            reader.end()


class _Reader:
    """A stream that a thread decodes into a queue, and whose iteration reads from there."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.is_over = False  # nobody reads on
        self._error: BaseException | None = None
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(BLOCKS)
        # A daemon: an interpreter that ends does not wait for the reader of a stream
        self._thread = threading.Thread(target=self._decode, args=(iter(stream),), daemon=True)
        self._thread.start()
        stream.replace_blocks(self._blocks())

    def _decode(self, blocks: Iterator[np.ndarray]) -> None:
        with self:
            for block in blocks:
                self._queue.put(block)
                if self.is_over:
                    break
        self._queue.put(None)

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self._error = error  # raised again by `_blocks`: a thread has nobody else to tell
        return True

    def _blocks(self) -> Iterator[np.ndarray]:
        """The decoded blocks, then the error that ended them, if one did."""
        while (block := self._queue.get()) is not None:
            yield block
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """End the thread's work on this stream, read to its end or not."""
        self.is_over = True
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.02)
            except queue.Empty:
                continue

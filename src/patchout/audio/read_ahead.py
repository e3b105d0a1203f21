"""Streams decoded by threads ahead of their reader, a few at a time and in bounded memory."""

import os
import queue
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from multiprocessing.pool import ThreadPool

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
    pool = ThreadPool(threads + 1)  # daemons: an interpreter that ends does not wait for them
    try:
        while True:
            while len(readers) <= threads and (stream := next(source, None)) is not None:
                readers.append(_Reader(stream, pool))
            if not readers:
                return
            yield readers[0].stream
            readers.popleft().end()
    finally:
        for reader in readers:
            reader.is_over = True
        for reader in readers:
            reader.end()
        pool.close()
        pool.join()


class _Reader:
    """A stream that a thread decodes into a queue, and whose iteration reads from there."""

    def __init__(self, stream: Stream, pool: ThreadPool) -> None:
        self.stream = stream
        self.is_over = False  # nobody reads on
        self._queue: queue.Queue[np.ndarray | None] = queue.Queue(BLOCKS)
        self._decoding = pool.apply_async(self._decode, (iter(stream),))
        stream.replace_blocks(self._blocks())

    def _decode(self, blocks: Iterator[np.ndarray]) -> None:
        try:
            for block in blocks:
                self._queue.put(block)
                if self.is_over:
                    break
        finally:
            self._queue.put(None)

    def _blocks(self) -> Iterator[np.ndarray]:
        """The decoded blocks, then the error that ended them, if one did."""
        while (block := self._queue.get()) is not None:
            yield block
        self._decoding.get()

    def end(self) -> None:
        """End the thread's work on this stream, read to its end or not."""
        self.is_over = True
        while not self._decoding.ready():
            try:
                self._queue.get(timeout=0.02)
            except queue.Empty:
                continue

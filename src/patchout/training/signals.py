"""SIGTERM and Ctrl-C, handled between steps; and rank and failure of the processes that torchrun started."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

PATIENCE_S = 30.0  # within which torchrun, when a process has failed and is gone, ends the others
INSIST_S = 3.0  # a second signal this long after the first does not wait for the step


class Stopped(Exception):  # noqa: N818  # no error
    """SIGTERM was received, and what steps the run has taken are saved; the same command resumes it."""


class Signals:
    """Signal handlers: SIGTERM raises Stopped, SIGINT KeyboardInterrupt; at once where `safe`, else noted.

    Only the main thread can handle signals.
    """

    def __init__(self) -> None:
        self.caught = 0  # the first signal's number
        self.safe = False  # nothing is half done
        self._caught_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT, signal.SIGTERM)
            self._before = {number: signal.signal(number, self._catch) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if not self.caught:
            self.caught, self._caught_at = number, time.monotonic()
            if self.safe:
                raise stop_by(number)
        elif time.monotonic() - self._caught_at > INSIST_S:
            raise stop_by(number)


def stop_by(number: int) -> Stopped | KeyboardInterrupt:
    """The exception that a signal raises."""
    return KeyboardInterrupt() if number == signal.SIGINT else Stopped()


# -- processes that torchrun started ------------------------------------------------------------------


def rank() -> int:
    """Rank of this process; 0 is the main one, and one that is alone."""
    return int(os.environ.get("RANK", "0")) if _are_several() else 0


def another_failed() -> bool:
    """Whether another process has failed: waits for the SIGTERM by which torchrun then ends the others.

    A process waits longer than those of lower rank, so that one alone tells of an error that several have.
    """
    if not _are_several():
        return False
    ended = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: ended.set())
    try:
        return ended.wait(PATIENCE_S + int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        signal.signal(signal.SIGTERM, before)


def _are_several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1

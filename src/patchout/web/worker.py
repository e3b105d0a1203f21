"""Background tagging: one thread that analyses the sounds of a folder, those that are looked at first."""

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from patchout.models.tagger import Tagger
from patchout.web.analysis import analyse
from patchout.web.sound_index import Sound, SoundIndex, is_tagged

GROUP = 16  # sounds whose windows share batches
GROUP_BYTES = 30e6  # a larger sound is tagged alone
RESCAN_S = 30.0


class _Stopped(Exception):  # noqa: N818  # no error
    """The server ends, or another model takes over."""


@dataclass
class Worker:
    """Tags what is not tagged yet. `load` gives the model, in the worker's thread unless there is one."""

    index: SoundIndex
    load: Callable[[], Tagger]
    model: Tagger | None = None
    error: str = ""  # why nothing is tagged
    current: str = ""  # the file that is read
    seconds: float = 0.0  # of it that were read
    _begun: set[str] = field(default_factory=set)  # files that were read at least in part, and are not saved
    _wanted: deque[str] = field(default_factory=deque)
    _wake: threading.Event = field(default_factory=threading.Event)
    _is_over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="tag", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the present block."""
        self._is_over.set()
        self._wake.set()
        if self._thread:
            self._thread.join(timeout=20)

    def want(self, file: str) -> None:
        """Tag this file before all others."""
        if file not in self._wanted:
            self._wanted.append(file)
            self._wake.set()

    def _run(self) -> None:
        try:
            if self.model is None:
                self.model = self.load()
            while not self._is_over.is_set():
                if not self.step():
                    self._wake.wait(RESCAN_S)
                    self._wake.clear()
                    if not self._is_over.is_set():
                        self.index.scan()
        except _Stopped:
            return
        except (ValueError, OSError, RuntimeError, sqlite3.Error) as error:  # also a full disk or GPU memory
            self.error = f"tagging has stopped ({error}): start the command again"

    def step(self) -> bool:
        """Tag some sounds, or return False if there are none."""
        if self._tag_wanted():
            return True
        files = self.index.untagged()
        group: list[Sound] = []
        for file in files[:GROUP]:
            sound = self.index.sounds.get(file)
            if sound and (not group or sound.size_bytes < GROUP_BYTES):
                group.append(sound)
            if sound and sound.size_bytes >= GROUP_BYTES:
                break
        self._tag(group)
        return bool(group)

    def _tag_wanted(self) -> bool:
        """Tag what somebody looks at."""
        is_any = False
        while self._wanted:
            file = self._wanted.popleft()
            sound = self.index.sounds.get(file)
            if sound and not is_tagged(sound) and file not in self._begun:
                before = self.current, self.seconds
                self._tag([sound])
                self.current, self.seconds = before
                is_any = True
        return is_any

    def _tag(self, group: list[Sound]) -> None:
        assert self.model is not None
        sounds: deque[Sound] = deque()

        def paths() -> Iterator[str]:
            for sound in group:
                if is_tagged(self.index.sounds.get(sound.file, sound)):
                    continue  # it was looked at meanwhile
                sounds.append(sound)
                self._begun.add(sound.file)
                self.current, self.seconds = sound.file, 0.0
                yield str(self.index.folder / sound.file)

        def on_block(seconds: float) -> None:
            self.seconds += seconds
            if self._is_over.is_set():
                raise _Stopped
            self._tag_wanted()  # a long sound does not delay what is looked at

        analyses = analyse(self.model, paths(), on_block)
        self.index.save((sounds.popleft(), analysis) for analysis in analyses)
        self._begun -= {sound.file for sound in group}
        self.current = ""

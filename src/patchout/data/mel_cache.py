"""A disk cache of whole clips' log-mels: written when a clip is first decoded, only cropped from then on."""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16
from torch import Generator
from torch.utils.data import Dataset

from patchout.audio.mel import MelConfig, log_mel
from patchout.data.augment import fit, keyed
from patchout.data.batches import Item, Key, silent
from patchout.data.clips import LONG_S, ClipSet, DataError
from patchout.data.job_folder import differences
from patchout.errors import InputError
from patchout.files import file_state, write_aside, write_json

ABOUT = "about.json"
HAS_TIMES = "times_of_sounds"  # in it: files have the modification times of their sounds
CLOCK_S = 2.0  # some disks keep no finer times
BYTES = 2  # of a value: float16 is exact to 0.02 dB, bfloat16 only to 0.2


@dataclass(frozen=True)
class MelCache(Dataset[Item]):
    """(epoch, index) -> a random stretch of a clip's log-mel (frames, mels) in float16, of that key alone.

    `mel` is a front end without statistics: they may change, and differ in the last digits from machine to
    machine. A clip is a file of the folder, written aside and renamed, so any number of workers and runs may
    share it; it has the time of modification of its sound (in a packed set, of its shard), and is made anew
    where that has changed or where it is damaged. Of clips longer than LONG_S nothing is kept. Crops begin at
    whole frames, and see the sound beside them where a crop of the waveform would be mirrored.
    """

    clips: ClipSet
    mel: MelConfig
    folder: Path
    num_samples: int  # of a stretch
    seed: int

    @property
    def clip_bytes(self) -> int:
        """Memory of a clip in a batch."""
        return BYTES * self.mel.n_mels * self.mel.num_frames(self.num_samples)

    def __getitem__(self, key: Key) -> Item:
        epoch, index = key
        frames = self.mel.num_frames(self.num_samples)
        rng = keyed("clip", self.seed, epoch, index)
        try:
            mel, remark = self._log_mel(index, rng)
        except DataError as error:
            return silent(torch.zeros(frames, self.mel.n_mels, dtype=torch.float16), self.clips, index, error)
        first = int(torch.randint(0, len(mel) - frames + 1, (), generator=rng))
        crop = torch.from_numpy(mel[first : first + frames].copy())
        weight = torch.full((1,), self.clips.weight(index))
        return Item(crop, self.clips.target(index), weight, index, "", (remark,) if remark else ())

    def _log_mel(self, index: int, rng: Generator) -> tuple[Float16[np.ndarray, "frame mel"], str]:
        """A clip's log-mel, from its file or computed, and a remark on what is missing in its sound.

        Frames come first, so that a crop is one piece of the file.
        """
        path = self.folder / str(index // 1000) / f"{index % 1000}.npy"
        modified_s = file_state(self.clips.file_on_disk(index)).modified_s
        with suppress(OSError, ValueError, EOFError):  # not there yet, or damaged
            if modified_s is None or self._is_current(path.stat().st_mtime, modified_s):
                return np.load(path, mmap_mode="r"), ""
        wave, remark = self.clips.decode(index, self.mel.sample_rate)
        if is_long := len(wave) >= LONG_S * self.mel.sample_rate:
            wave, remark = self.clips.decode(index, self.mel.sample_rate, rng)
        wave = fit(wave, max(len(wave), self.num_samples))
        computed = np.ascontiguousarray(log_mel(wave[None], self.mel)[0].T.half().numpy())
        if not is_long:
            path.parent.mkdir(exist_ok=True)
            with write_aside(path) as aside:
                np.save(aside, computed)
                if modified_s is not None:
                    os.utime(aside, (modified_s, modified_s))
        return computed, remark

    def _is_current(self, cached_s: float, modified_s: float) -> bool:
        """Whether a log-mel of this modification time is of the sound; earlier versions did not set it."""
        return abs(cached_s - modified_s) < CLOCK_S if self._has_times else cached_s >= modified_s

    @cached_property
    def _has_times(self) -> bool:
        with suppress(OSError, ValueError):
            return HAS_TIMES in json.loads((self.folder / ABOUT).read_text(encoding="utf-8"))
        return False

    def open(self, seconds: float) -> str:
        """Make the cache for so many seconds of sound, and return its size for the user; "" if it exists.

        ValueError for a cache of other clips or another front end, InputError for too little room on the
        disk.
        """
        path, mel = self.folder / ABOUT, self.mel
        identity = {"ids_sha256": self.clips.ids_sha256(), **asdict(mel), "clip_samples": self.num_samples}
        if path.exists():
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"{path}: is damaged ({error}): name another --mel-cache") from None
            if changes := ", ".join(differences(stored, identity)):
                raise ValueError(
                    f"{self.folder} caches other log-mels (other {changes}): name another folder"
                )
            return ""
        self.folder.mkdir(parents=True, exist_ok=True)
        needed, free = BYTES * mel.n_mels * seconds / mel.frame_s, shutil.disk_usage(self.folder).free
        size = f"log-mels of {seconds / 3600:.1f} hours take about {needed / 1e9:.2f} GB in {self.folder}"
        if needed > free:
            raise InputError(f"{size}, where {free / 1e9:.2f} are free: make room, or go without --mel-cache")
        write_json(path, identity | {HAS_TIMES: True})
        return size

"""Log-mels of whole clips kept on disk: written when a clip is first heard, only cropped from then on."""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16
from torch.utils.data import Dataset

from patchout.augment import fit, keyed
from patchout.batches import Item, Key, Waves, broken
from patchout.clips import ClipSet, DataError
from patchout.errors import InputError
from patchout.files import write_aside, write_json
from patchout.mel import MelConfig, log_mel
from patchout.pretrain_config import PretrainConfig

BYTES = 2  # of a value: float16 is exact to 0.02 dB, bfloat16 only to 0.2


def crops(clips: ClipSet, mel: MelConfig, config: PretrainConfig) -> "Waves | MelCache":
    """What a pre-training crops its clips from: their sounds, or log-mels that are kept."""
    size = round(config.clip_s * mel.sample_rate)
    if config.mel_cache:
        return MelCache(clips, replace(mel, mean=None, std=None), Path(config.mel_cache), size, config.seed)
    return Waves(clips, rate=mel.sample_rate, num_samples=size, seed=config.seed, crop=True)


@dataclass(frozen=True)
class MelCache(Dataset[Item]):
    """(epoch, index) -> a random stretch of a clip's log-mel (frames, mels) in float16, of that key alone.

    `mel` is a front end without statistics: they may change, and differ in the last digits from machine to machine.
    A clip is a file of the folder, written aside and renamed, so any number of workers and runs may share it; one that
    is damaged is made anew. Crops begin at whole frames, and see the sound beside them where a crop of the waveform
    would be mirrored.
    """

    clips: ClipSet
    mel: MelConfig
    folder: Path
    num_samples: int  # of a stretch
    seed: int

    def __getitem__(self, key: Key) -> Item:
        epoch, index = key
        frames = self.mel.num_frames(self.num_samples)
        try:
            held = self._held(index)
        except DataError as error:
            return broken(torch.zeros(frames, self.mel.n_mels, dtype=torch.float16), self.clips, index, error)
        rng = keyed("clip", self.seed, epoch, index)
        first = int(torch.randint(0, len(held) - frames + 1, (), generator=rng))
        crop = torch.from_numpy(held[first : first + frames].copy())
        return Item(crop, self.clips.target(index), torch.full((1,), self.clips.weight(index)), index, "")

    def _held(self, index: int) -> Float16[np.ndarray, "frame mel"]:
        """A clip's log-mel, mapped or new; frames come first, so that a crop is one piece of the file."""
        path = self.folder / str(index // 1000) / f"{index % 1000}.npy"
        try:
            return np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError):  # not there yet, or damaged
            wave = self.clips.wave(index, self.mel.sample_rate)
        wave = fit(wave, max(len(wave), self.num_samples))
        held = np.ascontiguousarray(log_mel(wave[None], self.mel)[0].T.half().numpy())
        path.parent.mkdir(exist_ok=True)
        with write_aside(path) as aside:
            np.save(aside, held)
        return held

    def open(self, seconds: float) -> str:
        """Make the folder for about so many seconds of sound, or enter it; returns what there is to tell.

        A cache of other clips or of another front end is a ValueError, too little room on the disk an InputError.
        """
        path, about = self.folder / "about.json", {"ids_sha256": self.clips.ids_sha256(), **asdict(self.mel)}
        about["clip_samples"] = self.num_samples
        if path.exists():
            try:
                held = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"{path}: is damaged ({error}): name another --mel-cache") from None
            if other := [name for name, value in about.items() if held.get(name) != value]:
                raise ValueError(f"{self.folder} caches other log-mels (other {', '.join(other)}): name another folder")
            return ""
        self.folder.mkdir(parents=True, exist_ok=True)
        needed, free = BYTES * self.mel.n_mels * seconds / self.mel.frame_s, shutil.disk_usage(self.folder).free
        told = f"log-mels of {seconds / 3600:.1f} hours take about {needed / 1e9:.2f} GB in {self.folder}"
        if needed > free:
            raise InputError(f"{told}, where {free / 1e9:.2f} are free: make room, or go without --mel-cache")
        write_json(path, about)
        return told

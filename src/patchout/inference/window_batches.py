"""Windows of many sounds in batches: one forward pass for those of equal patch columns."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchout.audio.mel import log_mel
from patchout.inference.token_budget import tokens_per_batch
from patchout.models.device import HostCopy, InferencePrecision, Precision, autocast, to_device
from patchout.models.int8 import at_precision
from patchout.models.tagger import Tagger, TaggerConfig

WAIT_BATCHES = 4  # a window runs at the latest when so many full batches were queued after it
ModelScores = Float[np.ndarray, "model class"]
Wave = Float[np.ndarray, "sample"]


class Receiver:
    """A sound whose windows wait in batches."""

    pending = 0  # windows without scores

    def receive(self, is_clip: bool, centre: float, scores: ModelScores) -> None:
        """Take the scores of one window by each model."""
        raise NotImplementedError


class _Window(NamedTuple):
    """A window that waits for its batch."""

    receiver: Receiver
    is_clip: bool
    centre: float  # samples
    wave: Tensor  # (samples,) with zeros after one that is too short
    number: int  # of windows before it
    is_heard: bool  # else its scores are zero: an event in digital silence


class Batcher:
    """Runs windows of any length in batches of equal patch columns, and hands the scores to their files."""

    def __init__(
        self, models: Sequence[Tagger], *, batch_size: int | None, precision: InferencePrecision
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        taggers, precisions = zip(*(at_precision(model, precision) for model in models), strict=True)
        self.models: tuple[Tagger, ...] = taggers
        self.precision: Precision = precisions[0]
        self.config = models[0].config
        self.batch_size = batch_size
        self.device = next(models[0].parameters()).device
        self.tokens = 0 if batch_size else tokens_per_batch(self.device)
        self.waiting: dict[int, list[_Window]] = {}  # by patch columns, oldest first
        self.count = 0  # windows so far
        self.running: tuple[list[_Window], HostCopy] | None = None  # a batch whose scores are on a GPU

    def add(self, receiver: Receiver, is_clip: bool, start: int, wave: Wave) -> None:
        """Queue one window; run a batch that is full, or has waited long: no result is delayed to the end."""
        config = self.config
        shortest = max(config.min_samples, round(config.pad_s * config.mel.sample_rate) if is_clip else 0)
        padded = torch.from_numpy(np.pad(wave, (0, max(0, shortest - len(wave)))))
        columns = config.num_columns(config.mel.num_frames(len(padded)))
        batch = self.waiting.setdefault(columns, [])
        is_heard = is_clip or config.knows_silence or bool(wave.any())
        batch.append(_Window(receiver, is_clip, start + len(wave) / 2, padded, self.count, is_heard))
        receiver.pending += 1
        self.count += 1
        if len(batch) >= self._most(columns):
            self._run(columns)
        oldest = next(iter(self.waiting), None)
        if oldest and self.count - self.waiting[oldest][0].number >= WAIT_BATCHES * self._most(oldest):
            self._run(oldest)

    def _most(self, columns: int) -> int:
        """Windows of so many patch columns in a batch."""
        return self.batch_size or max(1, self.tokens // (self.config.rows * columns + 2))

    def flush(self) -> None:
        """Run the windows that still wait."""
        while self.waiting:
            self._run(next(iter(self.waiting)))
        self._deliver()

    def _run(self, columns: int) -> None:
        """Queue a batch on the device, and hand out the scores of the one before; on a CPU its own."""
        windows = self.waiting.pop(columns)
        with torch.inference_mode():
            mels = window_mels([window.wave for window in windows], self.config, self.device)
            with autocast(self.device, self.precision):
                logits = torch.stack([model.predict(mels).logits for model in self.models], dim=1)
            scores = logits.softmax(2) if self.config.task == "multi_class" else logits.sigmoid()
            copy = HostCopy(scores)
        self._deliver()
        self.running = windows, copy
        if self.device.type == "cpu":
            self._deliver()

    def _deliver(self) -> None:
        """Hand out the scores of the batch that runs."""
        if self.running is None:
            return
        (windows, copy), self.running = self.running, None
        for window, rows in zip(windows, copy.read().numpy(), strict=True):
            window.receiver.receive(window.is_clip, window.centre, rows * window.is_heard)


def window_mels(
    waves: Sequence[Float[Tensor, "_"]], config: TaggerConfig, device: torch.device
) -> Float[Tensor, "window mel frame"]:
    """Log-mels of windows of equal patch columns, cut to whole patches.

    On a CPU one after the other, which stay in its caches; on a GPU those of one length together.
    """
    mels: dict[int, Tensor] = {}
    lengths = [len(wave) if device.type != "cpu" else (len(wave), place) for place, wave in enumerate(waves)]
    for length in dict.fromkeys(lengths):
        places = [place for place, other in enumerate(lengths) if other == length]
        batch = to_device(torch.stack([waves[place] for place in places]), device)
        mels |= zip(places, log_mel(batch, config.mel), strict=True)
    frames = config.num_frames(config.num_columns(mels[0].shape[-1]))
    return torch.stack([mels[place][:, :frames] for place in range(len(waves))])

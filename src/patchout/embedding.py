"""Scene and timestamp embeddings at three levels and any receptive fields ("Learning General Audio Representations with
Large-Scale Training of Patchout Audio Transformers", section 3).
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from patchout import audio
from patchout.device import Precision, autocast
from patchout.mel import log_mel
from patchout.passt import Passt, PasstConfig

Level = Literal["low", "mid", "high"]
Mode = Literal["all", "embed_only", "logits"]
LOW_FRAMES = 6  # of log-mel around a time
TOKENS_PER_BATCH = 8192  # the memory budget: 600 windows of 160 ms, or 7 of 10 s, in one forward pass
SEGMENT_SAMPLES = 2**21  # of a stream between two times, at most: about a minute


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """What an embedding holds, in order, and where its windows lie. The defaults are the HEAR module `base`.

    Levels: `low`, the log-mel (six frames around a time; of a scene its mean over the clip); `mid`, the mean of the C
    and D tokens; `high`, the logits. Neighbouring mid and high are repeated for every receptive field of `fields_ms`,
    so that ("high", "mid", "low") with two fields reads high, mid, high, mid, low. Times lie `hop_ms` apart. A scene
    longer than `scene_window_ms` (or than the model takes) is the mean over such windows every `scene_hop_ms`.
    """

    levels: tuple[Level, ...] = ("high", "mid")
    scene_levels: tuple[Level, ...] = ("high", "mid")
    fields_ms: tuple[float, ...] = (160.0,)
    hop_ms: float = 50.0
    scene_window_ms: float = 10_000.0
    scene_hop_ms: float = 2_500.0

    def __post_init__(self) -> None:
        """Refuse embeddings of nothing."""
        for levels in (self.levels, self.scene_levels):
            if not levels or len(set(levels)) != len(levels) or not set(levels) <= {"low", "mid", "high"}:
                raise ValueError(f"levels must be some of low, mid, high, each once, got {levels}")
        if not self.fields_ms or not all(0 < ms < math.inf for ms in self.fields_ms):
            raise ValueError(f"receptive fields must be longer than 0 ms, got {self.fields_ms}")
        if not all(0 < ms < math.inf for ms in (self.hop_ms, self.scene_window_ms, self.scene_hop_ms)):
            raise ValueError(f"hops and windows must be longer than 0 ms and finite, got {self}")

    def parts(self) -> list[tuple[tuple[Level, ...], float]]:
        """Runs of a timestamp's levels with their field in ms (0 for low), in the order of concatenation."""
        runs: list[tuple[Level, ...]] = []
        for level in self.levels:
            if level == "low" or not runs or runs[-1] == ("low",):
                runs.append((level,))
            else:
                runs[-1] = (*runs[-1], level)
        parts: list[tuple[tuple[Level, ...], float]] = []
        for run in runs:
            parts += [(run, 0.0)] if run == ("low",) else [(run, ms) for ms in self.fields_ms]
        return parts

    def timestamp_size(self, model: PasstConfig) -> int:
        """Values of one timestamp."""
        low = model.mel.n_mels * LOW_FRAMES
        return sum(low if ms == 0 else _size(run, model) for run, ms in self.parts())

    def scene_size(self, model: PasstConfig) -> int:
        """Values of one scene."""
        return _size(self.scene_levels, model)

    def in_mode(self, mode: Mode) -> "EmbedConfig":
        """The same without logits ("embed_only") or without embeddings ("logits"); low stays where it was."""
        if mode == "all":
            return self
        if mode not in ("embed_only", "logits"):
            raise ValueError(f"mode must be all, embed_only or logits, got {mode!r}")
        dropped = "high" if mode == "embed_only" else "mid"
        changes = {
            name: tuple(level for level in getattr(self, name) if level != dropped)
            for name in ("levels", "scene_levels")
        }
        return EmbedConfig(**(vars(self) | changes))


class Embedding(NamedTuple):
    """What `embed` returns."""

    scene: Float[np.ndarray, "value"]
    timestamps: Float[np.ndarray, "time value"]
    times_ms: Float[np.ndarray, "time"]  # centres of the windows, from 0


def embed(
    model: Passt, source: audio.Source, *, config: EmbedConfig | None = None, precision: Precision = "fp32"
) -> Embedding:
    """Scene and timestamp embeddings of one sound of any length, streamed: memory holds the result and one batch.

    Raises AudioError (a ValueError) or OSError that name the source; warns with AudioWarning if a part of it cannot be
    decoded.
    """
    embedder = Embedder(model, config or EmbedConfig(), precision=precision)
    rate = model.config.mel.sample_rate
    stream = audio.Stream(source, rate)
    scene = embedder.scene_of(stream)
    if stream.warning:
        warnings.warn(stream.warning, audio.AudioWarning, stacklevel=2)
    pieces = list(embedder.timestamps_of(audio.Stream(source, rate)))
    times_ms = np.concatenate([times for times, _ in pieces])
    return Embedding(scene, np.concatenate([values for _, values in pieces]), times_ms)


class Embedder:
    """A model with an EmbedConfig: waveforms at the model's rate -> float32 embeddings."""

    def __init__(self, model: Passt, config: EmbedConfig, *, precision: Precision = "fp32") -> None:
        """Refuse windows that the model cannot take, in ms and by name."""
        self.model = model
        self.config = config
        self.precision = precision
        rate, limit = model.config.mel.sample_rate, model.config.max_samples
        self.hop = self._samples(config.hop_ms)
        self.parts = [
            (run, self._window(ms) if ms else LOW_FRAMES * model.config.mel.hop_length) for run, ms in config.parts()
        ]
        self.margin = max(size for _, size in self.parts) // 2
        self.scene_window = min(self._window(config.scene_window_ms), limit - limit % 2)
        self.scene_hop = self._samples(config.scene_hop_ms)
        for size in (self.scene_window, *(size for run, size in self.parts if run != ("low",))):
            if not model.config.min_samples <= size <= limit:
                span = f"{1e3 * model.config.min_samples / rate:.4g} to {1e3 * limit / rate:.6g} ms"
                raise ValueError(f"a window of {1e3 * size / rate:g} ms does not fit: the model takes {span}")

    # -- whole batches: the HEAR API ----------------------------------------------------------------------------------

    def scenes(self, wave: Float[Tensor, "batch sample"]) -> Float[Tensor, "batch value"]:
        """One embedding a clip, on the CPU."""
        size = self.scene_window
        if wave.shape[1] <= size:
            padded = F.pad(wave, (0, max(0, self.model.config.min_samples - wave.shape[1])))
            return self._run_batches(padded[:, None], self.config.scene_levels)[:, 0]
        padded = F.pad(wave, (size // 2, size // 2), mode="reflect")
        return self._run_batches(padded.unfold(1, size, self.scene_hop), self.config.scene_levels).mean(dim=1)

    def timestamps(self, wave: Float[Tensor, "batch sample"]) -> tuple[Tensor, Tensor]:
        """(batch, time, value) and the times in ms (batch, time), on the CPU: samples // hop + 1 times, from 0 on."""
        count = wave.shape[1] // self.hop + 1
        if wave.shape[1] <= self.margin:  # too short to be mirrored: zeros after it
            wave = F.pad(wave, (0, self.margin + 1 - wave.shape[1]))
        values = self._centres(F.pad(wave, (self.margin, self.margin), mode="reflect"), count)
        return values, self._times_ms(0, count).expand(len(wave), -1).contiguous()

    # -- one sound, streamed ------------------------------------------------------------------------------------------

    def scene_of(self, blocks: Iterable[np.ndarray]) -> Float[np.ndarray, "value"]:
        """`scenes` of one sound that comes in blocks, in bounded memory."""
        reader, parts, held = iter(blocks), [], 0
        while held <= self.scene_window and (block := next(reader, None)) is not None:
            parts.append(block)
            held += len(block)
        if held <= self.scene_window:
            return self.scenes(torch.from_numpy(np.concatenate(parts))[None])[0].numpy()
        total, count = torch.zeros(self.config.scene_size(self.model.config), dtype=torch.float64), 0
        for padded, number in _segments(chain(parts, reader), self.scene_window // 2, self.scene_hop, 4):
            windows = torch.from_numpy(padded)[None].unfold(1, self.scene_window, self.scene_hop)[:, :number]
            total += self._run_batches(windows, self.config.scene_levels)[0].double().sum(dim=0)
            count += number
        return (total / count).float().numpy()

    def timestamps_of(self, blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`timestamps` of one sound that comes in blocks: pieces of (times in ms (time,), values (time, value))."""
        start, per_segment = 0, min(1024, max(1, SEGMENT_SAMPLES // self.hop))
        for padded, count in _segments(blocks, self.margin, self.hop, per_segment):
            values = self._centres(torch.from_numpy(padded)[None], count)[0]
            yield self._times_ms(start, count).numpy(), values.numpy()
            start += count

    # -- shared -------------------------------------------------------------------------------------------------------

    def _samples(self, ms: float) -> int:
        """Whole samples of a length in ms."""
        samples = ms * self.model.config.mel.sample_rate / 1000
        if samples != round(samples):
            raise ValueError(f"{ms:g} ms are {samples:g} samples: choose a whole number")
        return int(samples)

    def _window(self, ms: float) -> int:
        """Samples of a window; an even number, so that it has a centre."""
        samples = self._samples(ms)
        if samples % 2:
            raise ValueError(f"a window of {ms:g} ms is {samples} samples: choose an even number")
        return samples

    def _times_ms(self, start: int, count: int) -> Float[Tensor, "time"]:
        hop_ms = 1000 * self.hop / self.model.config.mel.sample_rate
        return hop_ms * torch.arange(start, start + count, dtype=torch.float32)

    def _centres(self, padded: Float[Tensor, "batch sample"], count: int) -> Float[Tensor, "batch time value"]:
        """Embeddings around the times that lie `margin` samples into `padded` and every hop from there."""
        values = []
        for levels, size in self.parts:
            first = self.margin - size // 2
            windows = padded[:, first:].unfold(1, size, self.hop)[:, :count]
            values.append(self._run_batches(windows, levels, flat=levels == ("low",)))
        return torch.cat(values, dim=-1)

    def _run_batches(
        self, windows: Float[Tensor, "batch time sample"], levels: tuple[Level, ...], *, flat: bool = False
    ) -> Tensor:
        """Run every window (a view: nothing is copied before its batch) -> (batch, time, value) on the CPU.

        `flat`: the whole log-mel instead of `levels`.
        """
        clips, count, size = windows.shape
        config = self.model.config
        tokens = config.rows * max(1, self.model.embed.columns(config.mel.num_frames(size))) + 2
        step = max(1, TOKENS_PER_BATCH // tokens)
        device = next(self.model.parameters()).device
        rows = []
        for start in range(0, clips * count, step):
            index = torch.arange(start, min(start + step, clips * count), device=windows.device)
            rows.append(self._forward(windows[index // count, index % count].to(device), levels, flat).cpu())
        return torch.cat(rows).view(clips, count, -1)

    def _forward(
        self, wave: Float[Tensor, "batch sample"], levels: tuple[Level, ...], flat: bool
    ) -> Float[Tensor, "batch value"]:
        """One batch of windows of one length."""
        with torch.inference_mode():
            mel = log_mel(wave, self.model.config.mel)
            if flat:
                return mel.flatten(1)  # band by band
            parts = {"low": mel.mean(dim=-1)}
            if levels != ("low",):
                with autocast(wave.device, self.precision):
                    out = self.model(mel)
                parts |= {"mid": out.embedding, "high": out.logits}
            return torch.cat([parts[level].float() for level in levels], dim=1)


def _size(levels: tuple[Level, ...], model: PasstConfig) -> int:
    """Values of model levels, and of a scene's low."""
    return sum({"low": model.mel.n_mels, "mid": model.width, "high": len(model.labels)}[level] for level in levels)


def _segments(
    blocks: Iterable[np.ndarray], margin: int, hop: int, per_segment: int
) -> Iterator[tuple[Float[np.ndarray, "sample"], int]]:
    """A stream mirrored at both ends, in pieces for `count` centres each: the first centre lies `margin` into a piece.

    A stream of N samples has N // hop + 1 centres, from sample 0 on; one not longer than `margin` gets zeros after it.
    """
    reader = iter(blocks)
    held = np.zeros(0, np.float32)
    while len(held) <= margin and (block := next(reader, None)) is not None:
        held = np.concatenate([held, block])
    total = len(held)
    if total <= margin:
        held = np.pad(held, (0, margin + 1 - total))
    tail = held[-margin - 1 :]  # what the mirror at the end needs
    held = np.concatenate([held[margin:0:-1], held])
    done, span = 0, (per_segment - 1) * hop + 2 * margin
    for block in reader:
        total += len(block)
        tail = np.concatenate([tail, block])[-margin - 1 :]
        held = np.concatenate([held, block])
        while len(held) >= max(span, per_segment * hop):  # a hop may be longer than its window
            yield held[:span], per_segment
            held = held[per_segment * hop :]
            done += per_segment
    held = np.concatenate([held, tail[-2::-1]])
    while left := min(per_segment, total // hop + 1 - done):
        yield held[: (left - 1) * hop + 2 * margin], left
        held = held[left * hop :]
        done += left

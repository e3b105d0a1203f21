"""Scene and timestamp embeddings at three levels and any receptive fields ("Learning General Audio Representations with
Large-Scale Training of Patchout Audio Transformers", section 3).
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchout.audio import stream as audio
from patchout.audio.window_mels import window_mels
from patchout.models.device import Precision, autocast
from patchout.models.tagger import Tagger, TaggerConfig, check_labels, hear

Level = Literal["low", "mid", "high"]
Mode = Literal["all", "embed_only", "logits"]
LOW_FRAMES = 6  # of log-mel around a time
TOKENS_PER_BATCH = 8192  # the memory budget: 600 windows of 160 ms, or 7 of 10 s, in one forward pass
CPU_TOKENS = 2048  # more leave the caches and take 8 to 13 % longer
NEAR = 1.25  # times as many times: sounds that run together, the shorter ones with zeros behind them
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
        parts: list[tuple[tuple[Level, ...], float]] = []
        for is_low, run in groupby(self.levels, lambda level: level == "low"):
            levels = tuple(run)
            parts += [(levels, 0.0)] if is_low else [(levels, ms) for ms in self.fields_ms]
        return parts

    def timestamp_size(self, model: TaggerConfig) -> int:
        """Values of one timestamp."""
        low = model.mel.n_mels * LOW_FRAMES
        return sum(low if ms == 0 else _size(run, model) for run, ms in self.parts())

    def scene_size(self, model: TaggerConfig) -> int:
        """Values of one scene."""
        return _size(self.scene_levels, model)

    def in_mode(self, mode: Mode) -> "EmbedConfig":
        """The same without logits ("embed_only") or without embeddings ("logits"); low stays where it was."""
        if mode == "all":
            return self
        if mode not in ("embed_only", "logits"):
            raise ValueError(f"mode must be all, embed_only or logits, got {mode!r}")
        dropped = "high" if mode == "embed_only" else "mid"
        levels, scene_levels = (
            tuple(level for level in every if level != dropped) for every in (self.levels, self.scene_levels)
        )
        return replace(self, levels=levels, scene_levels=scene_levels)


MID = EmbedConfig(
    levels=("mid",), scene_levels=("mid",)
)  # tokens alone: of any encoder, with classes or without


class Embedding(NamedTuple):
    """What `embed` returns."""

    scene: Float[np.ndarray, "value"]
    timestamps: Float[np.ndarray, "time value"]
    times_ms: Float[np.ndarray, "time"]  # centres of the windows, from 0


def embed(
    model: Tagger, source: audio.Source, *, config: EmbedConfig | None = None, precision: Precision = "fp32"
) -> Embedding:
    """Scene and timestamp embeddings of one sound of any length, streamed: memory holds the result and one batch.

    Raises AudioError (a ValueError) or OSError that name the source; warns with AudioWarning if a part of it cannot be
    decoded.
    """
    embedder = Embedder(model, config or EmbedConfig(), precision=precision)
    stream = hear(model.config, source)
    scene = embedder.scene_of(stream)
    if stream.warning:
        warnings.warn(stream.warning, audio.AudioWarning, stacklevel=2)
    pieces = list(embedder.timestamps_of(hear(model.config, source)))
    times_ms = np.concatenate([times for times, _ in pieces])
    return Embedding(scene, np.concatenate([values for _, values in pieces]), times_ms)


class Embedder:
    """A model with an EmbedConfig: waveforms at the model's rate -> float32 embeddings."""

    def __init__(self, model: Tagger, config: EmbedConfig, *, precision: Precision = "fp32") -> None:
        """Refuse windows that the model cannot take, in ms and by name."""
        self.model = model
        self.config = config
        self.precision = precision
        rate, limit = model.config.mel.sample_rate, model.config.max_samples
        if not min(config.scene_size(model.config), config.timestamp_size(model.config)):
            check_labels(model.config)  # class scores alone, of an encoder without classes
        self.hop = self._samples(config.hop_ms)
        self.parts = [  # levels (none: the log-mel's frames) and samples of a window
            (run, self._window(ms)) if ms else ((), LOW_FRAMES * model.config.mel.hop_length)
            for run, ms in config.parts()
        ]
        self.margin = max(size for _, size in self.parts) // 2
        self.scene_window = min(self._window(config.scene_window_ms), limit - limit % 2)
        self.scene_hop = self._samples(config.scene_hop_ms)
        for size in (self.scene_window, *(size for levels, size in self.parts if levels)):
            if not model.config.min_samples <= size <= limit:
                span = f"{1e3 * model.config.min_samples / rate:.4g} to {1e3 * limit / rate:.6g} ms"
                raise ValueError(f"a window of {1e3 * size / rate:g} ms does not fit: the model takes {span}")

    # -- sounds of any lengths, together ------------------------------------------------------------------------------

    def scenes_of_each(self, waves: Sequence[Float[np.ndarray, "_"]]) -> list[Float[np.ndarray, "value"]]:
        """One embedding a sound, on the CPU; those with as many patch columns run together."""
        config, found = self.model.config, dict[int, np.ndarray]()
        by_length: dict[int, list[int]] = {}
        for place, wave in enumerate(waves):
            if len(wave) > self.scene_window:
                found[place] = self.scene_of([wave])
            else:
                by_length.setdefault(max(len(wave), config.min_samples), []).append(place)
        by_columns: dict[int, dict[int, Tensor]] = {}
        for length, places in by_length.items():
            padded = np.stack([np.pad(waves[place], (0, length - len(waves[place]))) for place in places])
            held = by_columns.setdefault(config.num_columns(config.mel.num_frames(length)), {})
            held |= zip(places, self._mels(padded, size=length, hop=1), strict=True)
        for columns, mels in by_columns.items():
            frames, size = config.num_frames(columns), self._at_a_time(columns)
            for first in range(0, len(mels), size):
                places = list(mels)[first : first + size]
                low = torch.stack([mels[place].mean(dim=-1) for place in places])
                whole_patches = torch.stack([mels[place][:, :frames] for place in places])
                scenes = self._levels(whole_patches, low, self.config.scene_levels).numpy()
                found |= zip(places, scenes, strict=True)
        return [found[place] for place in range(len(waves))]

    def timestamps_of_each(
        self, waves: Sequence[Float[np.ndarray, "_"]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """(values (time, value), times in ms) of every sound; those with about as many times run together.

        A sound has samples // hop + 1 times, from 0 on.
        """
        pieces = [
            (place, *piece)
            for place, wave in enumerate(waves)
            for piece in _segments([wave], self.margin, self.hop)
        ]
        found: dict[int, np.ndarray] = {}
        rising = sorted(range(len(pieces)), key=lambda piece: pieces[piece][2])
        while rising:
            least = pieces[rising[0]][2]
            group = [piece for piece in rising if pieces[piece][2] <= NEAR * least]
            rising = rising[len(group) :]
            most = pieces[group[-1]][2]
            padded = np.zeros((len(group), (most - 1) * self.hop + 2 * self.margin), np.float32)
            for row, piece in zip(padded, group, strict=True):
                row[: len(pieces[piece][1])] = pieces[piece][1]
            values = self._centres(padded, most).numpy()
            found |= {piece: row[: pieces[piece][2]] for row, piece in zip(values, group, strict=True)}
        parts: list[list[np.ndarray]] = [[] for _ in waves]
        for piece, (place, *_) in enumerate(pieces):
            parts[place].append(found[piece])
        joined = map(np.concatenate, parts)
        return [(values, self._times_ms(0, len(values))) for values in joined]

    def scenes(self, wave: Float[Tensor, "batch sample"]) -> Float[Tensor, "batch value"]:
        """`scenes_of_each` of sounds of one length, for the HEAR API."""
        return torch.from_numpy(np.stack(self.scenes_of_each([*wave.detach().cpu().numpy()])))

    def timestamps(
        self, wave: Float[Tensor, "batch sample"]
    ) -> tuple[Float[Tensor, "batch time value"], Float[Tensor, "batch time"]]:
        """`timestamps_of_each` of sounds of one length, for the HEAR API."""
        values, times_ms = zip(*self.timestamps_of_each([*wave.detach().cpu().numpy()]), strict=True)
        return torch.from_numpy(np.stack(values)), torch.from_numpy(np.stack(times_ms))

    # -- one sound, streamed ------------------------------------------------------------------------------------------

    def scene_of(self, blocks: Iterable[np.ndarray]) -> Float[np.ndarray, "value"]:
        """The embedding of one sound that comes in blocks, in bounded memory: in one pass, or the mean over windows."""
        reader, parts, length = iter(blocks), [], 0
        while length <= self.scene_window and (block := next(reader, None)) is not None:
            parts.append(block)
            length += len(block)
        if length <= self.scene_window:
            return self.scenes_of_each([np.concatenate(parts)])[0]
        total, count, levels = torch.zeros(()), 0, self.config.scene_levels
        for padded, number in _segments(chain(parts, reader), self.scene_window // 2, self.scene_hop):
            scenes = self._run_windows(padded[None], levels, size=self.scene_window, hop=self.scene_hop)
            total = total + scenes[0].double().sum(dim=0)
            count += number
        return (total / count).float().numpy()

    def timestamps_of(self, blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Those of one sound that comes in blocks: pieces of (times in ms (time,), values (time, value))."""
        start = 0
        for padded, count in _segments(blocks, self.margin, self.hop):
            yield self._times_ms(start, count), self._centres(padded[None], count)[0].numpy()
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

    def _times_ms(self, start: int, count: int) -> Float[np.ndarray, "time"]:
        hop_ms = 1000 * self.hop / self.model.config.mel.sample_rate
        return (hop_ms * torch.arange(start, start + count, dtype=torch.float32)).numpy()

    def _centres(
        self, padded: Float[np.ndarray, "batch sample"], count: int
    ) -> Float[Tensor, "batch time value"]:
        """Embeddings around the times that lie `margin` samples into `padded` and every hop from there."""
        values = []
        for levels, size in self.parts:
            first = self.margin - size // 2
            wave = padded[:, first : first + (count - 1) * self.hop + size]
            values.append(self._run_windows(wave, levels, size=size, hop=self.hop))
        return torch.cat(values, dim=-1)

    def _run_windows(
        self, wave: Float[np.ndarray, "batch sample"], levels: tuple[Level, ...], *, size: int, hop: int
    ) -> Float[Tensor, "batch time value"]:
        """The levels of every window, on the CPU; a budget of tokens at a time, of several clips if they fit."""
        count = (wave.shape[1] - size) // hop + 1
        config = self.model.config
        at_a_time = self._at_a_time(config.num_columns(config.mel.num_frames(size)))
        num_clips, num_times = max(1, at_a_time // count), min(at_a_time, count)
        rows = []
        for clip in range(0, len(wave), num_clips):
            values = []
            for time in range(0, count, num_times):
                last = min(time + num_times, count) - 1
                part = wave[clip : clip + num_clips, time * hop : last * hop + size]
                found = self._forward(part, levels, size=size, hop=hop)
                values.append(found.view(len(part), -1, found.shape[1]))
            rows.append(torch.cat(values, dim=1))
        return torch.cat(rows)

    def _forward(
        self, wave: Float[np.ndarray, "batch sample"], levels: tuple[Level, ...], *, size: int, hop: int
    ) -> Float[Tensor, "window value"]:
        """One batch of windows; without levels the log-mel's frames, band by band."""
        mel = self._mels(wave, size=size, hop=hop)
        return self._levels(mel, mel.mean(dim=-1), levels) if levels else mel.flatten(1).cpu()

    def _at_a_time(self, columns: int) -> int:
        """Windows of so many patch columns that one forward pass takes."""
        on_cpu = next(self.model.parameters()).device.type == "cpu"
        return max(
            1, (CPU_TOKENS if on_cpu else TOKENS_PER_BATCH) // (self.model.config.rows * max(1, columns) + 2)
        )

    @torch.inference_mode()
    def _mels(
        self, wave: Float[np.ndarray, "batch sample"], *, size: int, hop: int
    ) -> Float[Tensor, "window mel frame"]:
        """Log-mels of all windows, on the model's device."""
        device = next(self.model.parameters()).device
        return window_mels(torch.from_numpy(wave).to(device), self.model.config.mel, size=size, hop=hop)

    @torch.inference_mode()
    def _levels(
        self,
        mel: Float[Tensor, "window mel frame"],
        low: Float[Tensor, "window mel"],
        levels: tuple[Level, ...],
    ) -> Float[Tensor, "window value"]:
        """What the model says of log-mels, beside their means, on the CPU."""
        parts = {"low": low}
        if levels != ("low",):
            with autocast(mel.device, self.precision):
                out = self.model(mel)
            parts |= {"mid": out.embedding, "high": out.logits}
        return torch.cat([parts[level].float() for level in levels], dim=1).cpu()


def _size(levels: tuple[Level, ...], model: TaggerConfig) -> int:
    """Values of model levels, and of a scene's low."""
    return sum(
        {"low": model.mel.n_mels, "mid": model.width, "high": len(model.labels)}[level] for level in levels
    )


def _segments(
    blocks: Iterable[np.ndarray], margin: int, hop: int
) -> Iterator[tuple[Float[np.ndarray, "sample"], int]]:
    """A sound mirrored at both ends, in pieces for `count` centres each: the first centre lies `margin` into a piece.

    N samples have N // hop + 1 centres, from sample 0 on; a sound not longer than `margin` gets zeros after it.
    """
    reader = iter(blocks)
    ahead = next(reader)
    while len(ahead) <= margin and (block := next(reader, None)) is not None:
        ahead = np.concatenate([ahead, block])
    total = len(ahead)
    ahead = np.pad(ahead, (0, max(0, margin + 1 - total)))
    tail = ahead[-margin - 1 :]  # what the mirror at the end needs
    ahead = np.concatenate([ahead[margin:0:-1], ahead])
    most = min(1024, max(1, SEGMENT_SAMPLES // hop))  # centres of a piece
    done, span = 0, (most - 1) * hop + 2 * margin
    for block in reader:
        total += len(block)
        tail = np.concatenate([tail, block])[-margin - 1 :]
        ahead = np.concatenate([ahead, block])
        while len(ahead) >= max(span, most * hop):  # a hop may be longer than its window
            yield ahead[:span], most
            ahead = ahead[most * hop :]
            done += most
    ahead = np.concatenate([ahead, tail[-2::-1]])
    while left := min(most, total // hop + 1 - done):
        yield ahead[: (left - 1) * hop + 2 * margin], left
        ahead = ahead[left * hop :]
        done += left

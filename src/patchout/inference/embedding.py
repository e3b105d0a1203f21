"""Scene and timestamp embeddings at three levels and any receptive fields (PaSST for HEAR, section 3)."""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from patchout.audio import stream as audio
from patchout.audio.window_mels import window_mels
from patchout.inference.segments import segments
from patchout.inference.token_budget import tokens_per_batch
from patchout.models.device import InferencePrecision, autocast, to_device
from patchout.models.int8 import at_precision
from patchout.models.tagger import Tagger, TaggerConfig, check_labels, hear

Level = Literal["low", "mid", "high"]
Mode = Literal["all", "embed_only", "logits"]
Waves = Sequence[Float[np.ndarray, "_"]]
Batch = Float[np.ndarray, "batch sample"]
LOW_FRAMES = 6  # of log-mel around a time
MAX_PADDING = 1.25  # longest to shortest of the sounds that run together, with zeros after the shorter


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """The parts of an embedding, in order, and its windows; by default those of the HEAR module `base`.

    Levels: `low`, the log-mel (six frames around a time; of a scene its mean); `mid`, the mean of the C and D
    tokens; `high`, the logits. Neighbouring mid and high are repeated for every field of `fields_ms`:
    ("high", "mid", "low") with two is high, mid, high, mid, low. Times lie `hop_ms` apart. A scene longer
    than `scene_window_ms` (or than the model takes) is the mean over such windows every `scene_hop_ms`.
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
        """The levels of a timestamp in groups, with their receptive field in ms (0 for low), in order."""
        groups = [(is_low, tuple(run)) for is_low, run in groupby(self.levels, lambda level: level == "low")]
        return [(levels, ms) for is_low, levels in groups for ms in ((0.0,) if is_low else self.fields_ms)]

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
        levels = tuple(level for level in self.levels if level != dropped)
        scene_levels = tuple(level for level in self.scene_levels if level != dropped)
        return replace(self, levels=levels, scene_levels=scene_levels)


MID = EmbedConfig(levels=("mid",), scene_levels=("mid",))  # of any encoder, with classes or without


def mid_level(model: TaggerConfig) -> EmbedConfig:
    """`MID` for this encoder: its receptive field is at least the shortest clip that fills a patch."""
    shortest_ms = 1e3 * model.min_samples / model.mel.sample_rate
    return replace(MID, fields_ms=tuple(max(ms, 10.0 * math.ceil(shortest_ms / 10)) for ms in MID.fields_ms))


class Embedding(NamedTuple):
    """Scene and timestamp embeddings of one sound."""

    scene: Float[np.ndarray, "value"]
    timestamps: Float[np.ndarray, "time value"]
    times_ms: Float[np.ndarray, "time"]  # centres of the windows, from 0


def embed(
    model: Tagger,
    source: audio.Source,
    *,
    config: EmbedConfig | None = None,
    precision: InferencePrecision = "fp32",
) -> Embedding:
    """Scene and timestamp embeddings of one sound of any length, streamed, in the memory of one batch.

    Raises AudioError (a ValueError) or OSError; warns (AudioWarning) if a part cannot be decoded.
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

    def __init__(self, model: Tagger, config: EmbedConfig, *, precision: InferencePrecision = "fp32") -> None:
        """Refuse windows that the model cannot take, in ms and by name."""
        self.model, self.precision = at_precision(model, precision)
        self.config = config
        rate, limit = model.config.mel.sample_rate, model.config.max_samples
        if not min(config.scene_size(model.config), config.timestamp_size(model.config)):
            check_labels(model.config)  # class scores alone, of an encoder without classes
        self.hop = self._samples(config.hop_ms)
        self.parts = [  # levels (none: the log-mel's frames) and samples of a window
            (run, self._samples(ms, even=True)) if ms else ((), LOW_FRAMES * model.config.mel.hop_length)
            for run, ms in config.parts()
        ]
        self.margin = max(size for _, size in self.parts) // 2
        self.scene_window = min(self._samples(config.scene_window_ms, even=True), limit - limit % 2)
        self.scene_hop = self._samples(config.scene_hop_ms)
        for size in (self.scene_window, *(size for levels, size in self.parts if levels)):
            if not model.config.min_samples <= size <= limit:
                span = f"{1e3 * model.config.min_samples / rate:.4g} to {1e3 * limit / rate:.6g} ms"
                todo = f"the model takes {span}: set fields_ms (--fields-ms) or scene_window_ms within that"
                raise ValueError(f"a window of {1e3 * size / rate:g} ms does not fit: {todo}")

    def scenes_of_each(self, waves: Waves) -> list[Float[np.ndarray, "value"]]:
        """Scene embeddings of sounds of any lengths; those with as many patch columns run together."""
        config, levels, scenes = self.model.config, self.config.scene_levels, dict[int, np.ndarray]()
        by_length: dict[int, list[int]] = {}
        for place, wave in enumerate(waves):
            if len(wave) > self.scene_window:
                scenes[place] = self.scene_of([wave])
            else:
                by_length.setdefault(max(len(wave), config.min_samples), []).append(place)
        by_columns: dict[int, dict[int, Tensor]] = {}
        for length, places in by_length.items():
            padded = np.stack([np.pad(waves[place], (0, length - len(waves[place]))) for place in places])
            mels = by_columns.setdefault(config.num_columns(config.mel.num_frames(length)), {})
            mels |= zip(places, self._mels(padded, size=length, hop=1), strict=True)
        rows: list[Tensor] = []
        for columns, mels in by_columns.items():
            frames, size = config.num_frames(columns), self._batch_size(columns)
            for first in range(0, len(mels), size):
                batch = [*islice(mels.values(), first, first + size)]
                whole_patches = torch.stack([mel[:, :frames] for mel in batch])
                low = torch.stack([mel.mean(dim=-1) for mel in batch]) if "low" in levels else None
                rows.append(self._levels(whole_patches, low, levels))
        if rows:  # read once all passes are queued
            scenes |= zip(chain(*by_columns.values()), torch.cat(rows).cpu().numpy(), strict=True)
        return [scenes[place] for place in range(len(waves))]

    def timestamps_of_each(self, waves: Waves) -> list[tuple[np.ndarray, np.ndarray]]:
        """(values (time, value), times in ms) of sounds of any lengths; similar ones run together.

        A sound has samples // hop + 1 times, from 0 on.
        """
        pieces = [[*segments([wave], self.margin, self.hop)] for wave in waves]
        flat, tracks = [*chain.from_iterable(pieces)], dict[int, np.ndarray]()
        rising = sorted(range(len(flat)), key=lambda place: flat[place][1])
        while rising:
            limit = MAX_PADDING * flat[rising[0]][1]
            group = [place for place in rising if flat[place][1] <= limit]
            rising = rising[len(group) :]
            count = flat[group[-1]][1]
            padded = np.zeros((len(group), (count - 1) * self.hop + 2 * self.margin), np.float32)
            for row, place in zip(padded, group, strict=True):
                row[: len(flat[place][0])] = flat[place][0]
            rows = self._centres(padded, count).cpu().numpy()
            tracks |= {place: row[: flat[place][1]] for row, place in zip(rows, group, strict=True)}
        in_order = iter([tracks[place] for place in range(len(flat))])
        joined = (np.concatenate([*islice(in_order, len(parts))]) for parts in pieces)
        return [(track, self._times_ms(0, len(track))) for track in joined]

    def scenes(self, wave: Float[Tensor, "batch sample"]) -> Float[Tensor, "batch value"]:
        """`scenes_of_each` of sounds of one length, for the HEAR API."""
        return torch.from_numpy(np.stack(self.scenes_of_each([*wave.detach().cpu().numpy()])))

    def timestamps(
        self, wave: Float[Tensor, "batch sample"]
    ) -> tuple[Float[Tensor, "batch time value"], Float[Tensor, "batch time"]]:
        """`timestamps_of_each` of sounds of one length, for the HEAR API."""
        values, times_ms = zip(*self.timestamps_of_each([*wave.detach().cpu().numpy()]), strict=True)
        return torch.from_numpy(np.stack(values)), torch.from_numpy(np.stack(times_ms))

    def scene_of(self, blocks: Iterable[np.ndarray]) -> Float[np.ndarray, "value"]:
        """Scene embedding of one sound that comes in blocks: in one pass, or the mean over windows."""
        reader, parts, length = iter(blocks), [], 0
        while length <= self.scene_window and (block := next(reader, None)) is not None:
            parts.append(block)
            length += len(block)
        if length <= self.scene_window:
            return self.scenes_of_each([np.concatenate(parts)])[0]
        total, count, levels = torch.zeros(()), 0, self.config.scene_levels
        for padded, number in segments(chain(parts, reader), self.scene_window // 2, self.scene_hop):
            scenes = self._run_windows(padded[None], levels, size=self.scene_window, hop=self.scene_hop)
            rows = scenes[0].cpu() if scenes.is_mps else scenes[0]  # MPS has no float64
            total = total + rows.double().sum(dim=0)
            count += number
        return (total / count).float().cpu().numpy()

    def timestamps_of(self, blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(times in ms (time,), values (time, value)) of one sound that comes in blocks, in pieces."""
        start = 0
        for padded, count in segments(blocks, self.margin, self.hop):
            yield self._times_ms(start, count), self._centres(padded[None], count)[0].cpu().numpy()
            start += count

    def _samples(self, ms: float, *, even: bool = False) -> int:
        """Whole samples of a length in ms; an even number for a window, so that it has a centre."""
        samples = ms * self.model.config.mel.sample_rate / 1000
        if samples != round(samples):
            raise ValueError(f"{ms:g} ms are {samples:g} samples: choose a whole number")
        if even and samples % 2:
            raise ValueError(f"a window of {ms:g} ms is {samples:.0f} samples: choose an even number")
        return int(samples)

    def _times_ms(self, start: int, count: int) -> Float[np.ndarray, "time"]:
        hop_ms = 1000 * self.hop / self.model.config.mel.sample_rate
        return (hop_ms * torch.arange(start, start + count, dtype=torch.float32)).numpy()

    def _centres(self, padded: Batch, count: int) -> Float[Tensor, "batch time value"]:
        """Embeddings around the times that lie `margin` samples into `padded` and every hop from there."""
        values = []
        for levels, size in self.parts:
            first = self.margin - size // 2
            wave = padded[:, first : first + (count - 1) * self.hop + size]
            values.append(self._run_windows(wave, levels, size=size, hop=self.hop))
        return torch.cat(values, dim=-1)

    def _run_windows(
        self, wave: Batch, levels: tuple[Level, ...], *, size: int, hop: int
    ) -> Float[Tensor, "batch time value"]:
        """The levels of every window (none: its log-mel, flattened), on the device, some tokens at a time."""
        config, count = self.model.config, (wave.shape[1] - size) // hop + 1
        batch_size = self._batch_size(config.num_columns(config.mel.num_frames(size)))
        num_clips, num_times = max(1, batch_size // count), min(batch_size, count)
        rows = []
        for clip in range(0, len(wave), num_clips):
            values = []
            for time in range(0, count, num_times):
                last = min(time + num_times, count) - 1
                part = wave[clip : clip + num_clips, time * hop : last * hop + size]
                mel = self._mels(part, size=size, hop=hop)
                low = mel.mean(dim=-1) if "low" in levels else None
                batch = self._levels(mel, low, levels) if levels else mel.flatten(1)
                values.append(batch.view(len(part), -1, batch.shape[1]))
            rows.append(torch.cat(values, dim=1))
        return torch.cat(rows)

    def _batch_size(self, columns: int) -> int:
        """Windows of so many patch columns that one forward pass takes."""
        device = next(self.model.parameters()).device
        return max(1, tokens_per_batch(device) // (self.model.config.rows * max(1, columns) + 2))

    @torch.inference_mode()
    def _mels(self, wave: Batch, *, size: int, hop: int) -> Float[Tensor, "window mel frame"]:
        """Log-mels of all windows, on the model's device."""
        waves = to_device(torch.from_numpy(wave), next(self.model.parameters()).device)
        return window_mels(waves, self.model.config.mel, size=size, hop=hop)

    @torch.inference_mode()
    def _levels(
        self,
        mel: Float[Tensor, "window mel frame"],
        low: Float[Tensor, "window mel"] | None,
        levels: tuple[Level, ...],
    ) -> Float[Tensor, "window value"]:
        """The model's embeddings and logits of log-mels, with their means (`low`), on the device."""
        parts = {} if low is None else {"low": low}
        if levels != ("low",):
            with autocast(mel.device, self.precision):
                out = self.model.predict(mel)
            parts |= {"mid": out.embedding, "high": out.logits}
        return torch.cat([parts[level].float() for level in levels], dim=1)


def _size(levels: tuple[Level, ...], model: TaggerConfig) -> int:
    """Values of a model's levels, and of a scene's low."""
    sizes = {"low": model.mel.n_mels, "mid": model.width, "high": len(model.labels)}
    return sum(sizes[level] for level in levels)

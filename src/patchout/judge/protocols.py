"""The five protocols by which PaSST judges generated audio, each a value of one config."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from patchout.errors import near
from patchout.judge.metrics import Direction

METRICS = ("fd", "kl", "is", "kad", "fd-inf")


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How a file becomes samples at the model's rate: the mean of its channels, resampled, levelled."""

    resampler: Literal["hann", "kaiser", "soxr", "julius"]
    remove_mean: bool = False
    peak_db: float | None = None  # of full scale, to which the peak is brought; silence stays silent
    pcm16: bool = False  # rounded to 16 bits


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Which windows of a sound the model hears.

    `first`: the first one, with zeros behind a shorter sound. `windows`: one at 0 and every `hop_s` before
    the sound's end less `hop_s`; a last one of more than 15 % is padded, a shorter one is used as it is.
    `pieces`: one after another, without padding; one of `least_s` or less is dropped. `scene`: the whole of a
    sound that fits, else windows centred every `hop_s` from start to end, mirrored there (PMLR 166:65-89).
    """

    policy: Literal["first", "windows", "pieces", "scene"]
    window_s: float = 10.0
    hop_s: float = 10.0
    cut_s: float | None = None  # to which a sound is cut before
    least_s: float = 0.0

    def scaled(self, longest_s: float) -> "Clip":
        """The same for a model that takes no more than so many seconds."""
        share = min(1.0, longest_s / self.window_s)
        cut_s = None if self.cut_s is None else min(self.cut_s, longest_s)
        return replace(self, window_s=self.window_s * share, hop_s=self.hop_s * share, cut_s=cut_s)

    def windows(self, length: int, rate: int) -> list[tuple[int, int, int]]:
        """Start, end and padded length of each window of a sound, all in samples."""
        if self.cut_s is not None:
            length = min(length, round(self.cut_s * rate))
        size, hop = round(self.window_s * rate), round(self.hop_s * rate)
        if self.policy == "first":
            return [(0, min(length, size), size)]
        if self.policy == "windows":
            ends = [(start, min(length, start + size)) for start in range(0, max(hop, length - hop), hop)]
            least = int(0.15 * size)
            return [(start, end, size if end - start > least else end - start) for start, end in ends]
        if self.policy == "pieces":
            ends = [(start, min(length, start + size)) for start in range(0, length, size)]
            return [(start, end, end - start) for start, end in ends if end - start > self.least_s * rate]
        if length <= size:
            return [(0, length, length)]
        return [(start - size // 2, start + size // 2, size) for start in range(0, length + 1, hop)]

    def cut(self, wave: Float[np.ndarray, "_"], rate: int) -> Iterator[tuple[float, Float[np.ndarray, "_"]]]:
        """A rising time in ms and the samples of each window of a sound."""
        spans = self.windows(len(wave), rate)
        margin = max(0, -min((start for start, _, _ in spans), default=0))
        mirrored = np.pad(wave, margin, mode="reflect") if margin else wave
        for start, end, padded in spans:
            window = mirrored[start + margin : end + margin]
            yield 1000 * (start + margin) / rate, np.pad(window, (0, padded - len(window)))


@dataclass(frozen=True, kw_only=True)
class View:
    """A loading with a clip policy: what the model hears of a set."""

    loading: Loading
    clip: Clip


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Every rule behind a number.

    `clip` is that of features, `logits_clip` (None: the same) that of class scores. `average` joins the
    windows of a clip; with "none" each is a row of its own. `features`: the embedding, or the model's whole
    row: logits and embedding. `diagonal` is added to both covariances. KL goes from the first set of
    `direction` to the second, in whose logarithm `inside` is added.
    """

    name: str
    source: str
    metrics: tuple[str, ...]
    loading: Loading
    clip: Clip
    logits_clip: Clip | None = None
    average: Literal["mean", "max", "none"] = "mean"
    features: Literal["embedding", "row"] = "embedding"
    half_precision: bool = False  # features are kept in float16
    diagonal: float = 0.0
    direction: Direction = "reference-generated"
    inside: float = 0.0
    sample_reference: bool = (
        True  # in FD-inf, both without replacement; else generated clips with replacement
    )

    def view(self, metric: str) -> View:
        """What the model hears for a metric."""
        of_logits = metric in ("kl", "is") and self.logits_clip is not None
        return View(
            loading=self.loading, clip=self.logits_clip if of_logits and self.logits_clip else self.clip
        )

    def scaled(self, longest_s: float) -> "Protocol":
        """The same for a model that takes no more than so many seconds."""
        logits_clip = self.logits_clip and self.logits_clip.scaled(longest_s)
        return replace(self, clip=self.clip.scaled(longest_s), logits_clip=logits_clip)

    def rules(self) -> dict[str, Any]:
        """All of them, as JSON holds them."""
        return asdict(self)


_LIBROSA = Loading(resampler="soxr", peak_db=-1.0)
_WINDOWS = Clip(policy="windows", hop_s=5.0)
_PROTOCOLS = (
    Protocol(
        name="av-benchmark",
        source="hkchengrex/av-benchmark 050a5cd",
        metrics=("fd", "kl", "is"),
        loading=Loading(resampler="hann", remove_mean=True),
        clip=Clip(policy="first", cut_s=8.0),
    ),
    Protocol(
        name="stable-audio",
        source="Stability-AI/stable-audio-metrics fd55536",
        metrics=("kl",),
        loading=_LIBROSA,
        clip=_WINDOWS,
        direction="generated-reference",
        inside=1e-6,
    ),
    Protocol(
        name="audiocraft",
        source="facebookresearch/audiocraft PR 213, 3971c5a",
        metrics=("kl",),
        loading=Loading(resampler="julius"),
        clip=Clip(policy="pieces", least_s=0.15),
        average="none",
        inside=1e-6,
    ),
    Protocol(
        name="fastvideo",
        source="FastVideo PR 1352",
        metrics=("fd", "kl"),
        loading=_LIBROSA,
        clip=Clip(policy="first"),
        logits_clip=_WINDOWS,
        diagonal=1e-6,
    ),
    Protocol(
        name="kadtk",
        source="kadtk 1.1.0, 8bda71d",
        metrics=("fd", "kad"),
        loading=Loading(resampler="kaiser", pcm16=True),
        clip=Clip(policy="first"),
        features="row",
        half_precision=True,
        sample_reference=False,
    ),
)
PROTOCOLS = {protocol.name: protocol for protocol in _PROTOCOLS}


def protocol_of(name: str) -> Protocol:
    """A protocol by its name; a ValueError names those that there are."""
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol {name!r}{near(name, PROTOCOLS)}: there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]

"""Objective: what a pre-training hides of a clip and what it predicts; the alarms of collapse."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from patchout.audio.mel import log_mel
from patchout.checkpoint.maskspec import encoder_of
from patchout.data import augment
from patchout.data.batches import Batch
from patchout.errors import InputError
from patchout.models.device import autocast, to_device
from patchout.models.maskspec import GridConfig, MaskedEncoder
from patchout.models.maskspec_classifier import MaskSpecClassifier
from patchout.training.masked.config import PretrainConfig
from patchout.training.masked.masks import SAMPLERS, sample
from patchout.training.optim import Teacher
from patchout.training.step import Place


class CollapseError(InputError):
    """The same answer for all clips, or a task without content: to go on teaches nothing."""


class Alarm(NamedTuple):
    """A value of an epoch that shows that nothing is learnt."""

    value: str
    rings: Callable[[float], bool]
    text: str  # what is seen, and what to change
    stops: bool = True  # the run, once the learning rate has peaked; else it is told
    patience: int = 0  # steps after the peak that it leaves a run to learn in


SILENT = Alarm(
    "silent",
    lambda share: share > 0.5,
    "more than half of what is hidden is silence: leave silent clips out",
    stops=False,
)
SPREAD = Alarm(
    "spread",
    lambda spread: spread < 0.01,
    "all clips look alike to the encoder, it has collapsed: lower --base-lr",
)
FORGOTTEN = Alarm(
    "probe",
    lambda share: False,  # only the earlier ones tell
    "nearest neighbours told the probe's classes apart twice as often before, that is being lost: lower "
    "--base-lr, or lengthen the warm-up",
)
STILL = 1e-4  # a patch whose bands change by less than this is silence


class Objective(ABC):
    """The loss of a step of pre-training; one file of `objectives/` each.

    Everything random in it is drawn from (seed, step, part), for the clips of all processes. What it sees
    beside the loss stays on the device until `seen` reads it.
    """

    alarms: ClassVar[tuple[Alarm, ...]] = (SILENT, SPREAD)

    def __init__(self, config: PretrainConfig, model: MaskedEncoder) -> None:
        self.config = config
        self.shape, device = model.config, model.embed.class_token.device
        self.step = -1  # the last one
        self.teacher: Teacher | None = None  # averaged weights that the loss asks
        mel = self.shape.mel
        statistics = mel.mean or (0.0,), mel.std or (1.0,)  # cached log-mels come without them
        self._mean, self._std = torch.tensor(statistics, device=device)[..., None]  # (1 or mels, 1) each
        self._sums: dict[str, Tensor] = {}  # by name: sum and count of a value

    @classmethod
    @abstractmethod
    def build(cls, config: PretrainConfig, shape: GridConfig) -> MaskedEncoder:
        """The model that is trained, with random weights."""

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch, place: Place) -> Tensor:
        """The loss, mean over the clips; one that could not be read adds none."""

    def begin(self, steps: int) -> None:
        """Forget the measured steps, on every process: a run of so many follows."""
        self.seen()

    def encoder(self, model: MaskedEncoder) -> MaskSpecClassifier:
        """What is kept of a model, for embeddings and for fine-tuning."""
        return encoder_of(model)

    def tokens(self, columns: int) -> int:
        """Tokens of a clip that the encoder computes in a step; masks that leave nothing are a ValueError."""
        return self.num_views * (1 + self.num_kept(columns, self.config.mask_ratio))

    @property
    def num_views(self) -> int:
        """How often the encoder sees a clip in a step."""
        return self.config.masks_per_clip

    def num_kept(self, columns: int, ratio: float, *, view: int = 0) -> int:
        """Patches that a mask leaves of a clip."""
        sampler = SAMPLERS[self.config.masks][view]
        return sample(sampler, self.shape.rows, columns, ratio, clips=1, rng=Generator()).shape[1]

    # -- what the objectives share ---------------------------------------------------------------------------

    def log_mel(self, batch: Batch, place: Place) -> Float[Tensor, "batch mel frame"]:
        """Standardised log-mels of a batch, of waveforms or from a cache."""
        self.step = place.step
        if batch.wave.ndim == 3:
            return (batch.wave.float().mT - self._mean) / self._std
        return log_mel(batch.wave, self.shape.mel, band=self.band(place))

    def band(self, place: Place) -> tuple[float, float] | None:
        """Edges of the mel bands in this step, None for those of the config."""
        mel = self.shape.mel
        if not self.config.mel_jitter:
            return None
        rng = augment.keyed("step", self.config.seed, place.step, place.part)
        return augment.mel_band(mel.f_max, rng, nyquist=mel.sample_rate / 2)

    def visible(
        self, place: Place, mel: Float[Tensor, "batch mel frame"], ratio: float, *, view: int = 0
    ) -> Int[Tensor, "masked kept"]:
        """Visible patches of every mask of this process's clips, those of a clip one after the other."""
        key = self.config.seed, place.step, place.part
        rng = augment.keyed("mask", *key, *[view] * bool(view))
        masks = self.config.masks_per_clip
        columns = self.shape.num_columns(mel.shape[-1])
        sampler = SAMPLERS[self.config.masks][view]
        drawn = sample(sampler, self.shape.rows, columns, ratio, clips=place.total * masks, rng=rng)
        mine = drawn[place.first * masks :][: len(mel) * masks]
        return to_device(mine, mel.device)

    def autocast(self, mel: Tensor) -> AbstractContextManager[object]:
        """The run's precision."""
        return autocast(mel.device, self.config.precision)

    # -- what it sees beside the loss ------------------------------------------------------------------------

    @torch.no_grad()
    def watch(self, name: str, value: Tensor, *, counts: bool = True) -> None:
        """Add a value to the mean of its name, unless it does not count."""
        added = torch.stack(
            [value.detach().float() * counts, torch.full_like(value, counts, dtype=torch.float32)]
        )
        self._sums[name] = self._sums.get(name, torch.zeros_like(added)) + added

    @torch.no_grad()
    def watch_silence(
        self, pixels: Float[Tensor, "batch token pixel"], hidden: Float[Tensor, "batch token"]
    ) -> None:
        """The share of the hidden patches that hold silence."""
        side = self.shape.patch
        moves = pixels.view(*pixels.shape[:2], side, side).diff(dim=-1).abs().amax(dim=(-2, -1))  # (B, N)
        self.watch("silent", ((moves < STILL) * hidden).sum() / hidden.sum())

    @torch.no_grad()
    def watch_spread(self, embedding: Float[Tensor, "batch width"]) -> None:
        """How much clips differ in an embedding; a clip alone does not differ from others."""
        clips = embedding.detach().float()
        spread = clips.var(dim=0, unbiased=False).mean().sqrt() / clips.square().mean().sqrt()
        self.watch("spread", spread, counts=len(clips) > 1)

    def seen(self) -> dict[str, float]:
        """Means since the last call."""
        pairs = {name: pair.tolist() for name, pair in self._sums.items()}
        self._sums.clear()
        return {name: total / count for name, (total, count) in pairs.items() if count}

    def ringing(self, values: Mapping[str, float]) -> list[Alarm]:
        """The alarms that these values of `seen` ring."""
        return [alarm for alarm in self.alarms if alarm.value in values and alarm.rings(values[alarm.value])]

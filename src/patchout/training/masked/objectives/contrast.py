"""`contrast`: two views of a clip are alike, those of others are not (AudioMosaic, arXiv 2605.14231).

A view is another augmentation of the waveform, of which structured Patchout drops columns (first view) or
rows (second view).
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from patchout.audio.mel import log_mel
from patchout.checkpoint.maskspec import encoder_of
from patchout.data import augment
from patchout.data.batches import Batch
from patchout.models.device import to_device
from patchout.models.masking import patchify
from patchout.models.maskspec import GridConfig, MaskedEncoder
from patchout.models.maskspec_classifier import MaskSpecClassifier
from patchout.training.masked.config import PretrainConfig
from patchout.training.masked.objective import SPREAD, Alarm, Objective
from patchout.training.step import Place

PROJECTOR = (512, 128)  # widths
FAR = -1e4  # a similarity that is none
CHANCE = 0.5  # of each augmentation
GAIN_DB, SPEED, SNR_DB = (-7.0, 6.0), (0.7, 1.3), (10.0, 40.0)
HIGH_PASS_HZ, BAND_STOP_HZ, BAND_STOP_OCTAVES = (20.0, 2_000.0), (200.0, 4_000.0), (0.2, 1.0)


# -- the views -----------------------------------------------------------------------------------------------


def augmented(
    wave: Float[Tensor, "batch sample"], draws: Float[Tensor, "batch 12"], rate: int, noise: Tensor
) -> Tensor:
    """Waveforms rolled and louder or softer, and by chance turned over, faster or slower, noisier, filtered.

    `draws` from [0, 1): what each clip gets; `noise` is white, as long as the waveforms. Published stretch
    and pitch shift are one change of speed here, in a circle as the roll is.
    """
    roll, gain, turn, is_fast, fast, is_noisy, snr, is_high, high, is_stopped, middle, octaves = draws.T[
        ..., None
    ]
    size = wave.shape[1]
    speed = torch.where(is_fast < CHANCE, _within(SPEED, fast), 1.0)
    place = (roll * size + speed * torch.arange(size, device=wave.device)) % size
    before, share = place.long().clamp(max=size - 1), place.frac()
    wave = (1 - share) * wave.gather(1, before) + share * wave.gather(1, (before + 1) % size)
    level = wave.square().mean(dim=1, keepdim=True).sqrt()
    wave = wave + (is_noisy < CHANCE) * level * 10 ** (-_within(SNR_DB, snr) / 20) * noise
    hertz = torch.linspace(0, rate / 2, size // 2 + 1, device=wave.device).clamp(min=1.0)
    lowest = torch.where(is_high < CHANCE, _within(HIGH_PASS_HZ, high, log=True), 0.0)
    passed = 1 / (1 + (lowest / hertz) ** 4)
    away = (hertz / _within(BAND_STOP_HZ, middle, log=True)).log2() / (
        _within(BAND_STOP_OCTAVES, octaves) / 2
    )
    stopped = torch.where(is_stopped < CHANCE, (-away.square()).exp(), 0.0)
    loudness = 10 ** (_within(GAIN_DB, gain) / 20) * torch.where(turn < CHANCE, -1.0, 1.0)
    spectrum = torch.fft.rfft(wave, size) * passed * (1 - stopped) * loudness
    return torch.fft.irfft(spectrum, size)


def _within(limits: tuple[float, float], draw: Tensor, *, log: bool = False) -> Tensor:
    """A draw from [0, 1) as one between limits, evenly or by octaves."""
    low, high = limits
    return low * (high / low) ** draw if log else low + (high - low) * draw


# -- the model -----------------------------------------------------------------------------------------------


class Contrasted(NamedTuple):
    """What `ContrastModel` returns."""

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]  # share of the views whose nearest other view is of the same clip
    chance: Float[Tensor, ""]
    embedding: Float[Tensor, "batch width"]  # of the first views


class ContrastModel(MaskedEncoder):
    """An encoder of views and a projector, which is thrown away; the final norm takes the patches' mean."""

    def __init__(self, config: PretrainConfig, shape: GridConfig) -> None:
        super().__init__(shape)
        inside, outside = PROJECTOR
        self.temperature = config.temperature
        self.projector = nn.Sequential(  # its norms are of all clips of a step, so they keep no statistics
            nn.Linear(shape.width, inside, bias=False),
            nn.BatchNorm1d(inside, track_running_stats=False),
            nn.ReLU(),
            nn.Linear(inside, outside, bias=False),
            nn.BatchNorm1d(outside, track_running_stats=False),
        )
        self.init_weights(augment.keyed("weights", config.seed))

    def embedding(
        self, mel: Float[Tensor, "batch mel frame"], visible: Int[Tensor, "batch index"]
    ) -> Float[Tensor, "batch width"]:
        """Norm of the mean of the visible patches."""
        cell, pixels = self.config.cells(mel), patchify(mel, self.config.patch)
        pixels = pixels.gather(1, visible[..., None].expand(-1, -1, pixels.shape[-1]))
        tokens = self.encoder.blocks(self.embed(pixels, cell[visible]))
        with torch.autocast(mel.device.type, enabled=False):
            return self.encoder.norm(tokens[:, 1:].float().mean(dim=1))

    def forward(
        self,
        views: tuple[Tensor, Tensor],
        visible: tuple[Tensor, Tensor],
        weight: Float[Tensor, "batch"],
        place: Place,
    ) -> Contrasted:
        """NT-Xent of both views of all clips of the step against all other views, in both directions."""
        embeddings = [self.embedding(view, index) for view, index in zip(views, visible, strict=True)]
        everyone = torch.cat([gather_with_gradient(rows, place) for rows in embeddings])  # (2 m, D)
        counted = place.gather(weight).repeat(2)
        with torch.autocast(everyone.device.type, enabled=False):
            points = F.normalize(self.projector(everyone), dim=-1)
            alike = points @ points.T / self.temperature
            alike = alike.masked_fill(torch.eye(len(alike), dtype=torch.bool, device=alike.device), FAR)
            alike = alike.masked_fill((counted == 0)[None], FAR)
            partner = torch.arange(len(alike), device=alike.device).roll(len(alike) // 2)
            loss = (F.cross_entropy(alike, partner, reduction="none") * counted).mean()
        accuracy = (alike.argmax(dim=1) == partner).float().mean()
        return Contrasted(loss, accuracy, accuracy.new_tensor(1 / (len(alike) - 1)), embeddings[0])


def gather_with_gradient(rows: Float[Tensor, "batch width"], place: Place) -> Float[Tensor, "total width"]:
    """The rows of all processes; only this process's have a gradient, of the loss of all that each process
    has.

    The mean over processes, by which gradients meet, then gives that of one process: hence the factor.
    """
    factor = place.total / len(rows)
    mine = rows.detach() + factor * (rows - rows.detach())
    everyone = place.gather(rows.detach())
    return torch.cat([everyone[: place.first], mine, everyone[place.first + len(rows) :]])


# -- the objective -------------------------------------------------------------------------------------------


class Contrast(Objective):
    """NT-Xent of two views of each clip."""

    alarms = (
        Alarm(
            "over_chance",
            lambda times: times < 1.5,
            "the views of a clip are found no better than by chance, the encoder has collapsed: lower "
            "--base-lr, or raise --batch",
            patience=20,  # the sums of an epoch of one step are those of the start weights
        ),
        SPREAD,
    )

    @classmethod
    def build(cls, config: PretrainConfig, shape: GridConfig) -> ContrastModel:
        """Encoder and projector."""
        return ContrastModel(config, shape)

    def encoder(self, model: MaskedEncoder) -> MaskSpecClassifier:
        """The mean of the patches, with the norm that was trained after it."""
        return encoder_of(model, norm_of_mean=True)

    @property
    def num_views(self) -> int:
        """Two, one mask each."""
        return len(self.config.view_ratios)

    def tokens(self, columns: int) -> int:
        """Of both views."""
        return sum(
            1 + self.num_kept(columns, ratio, view=view) for view, ratio in enumerate(self.config.view_ratios)
        )

    def __call__(self, model: nn.Module, batch: Batch, place: Place) -> Tensor:
        """Augmented waveforms, and of them what structured Patchout leaves."""
        self.step = place.step
        views = tuple(self._view(batch.wave, place, view) for view in (0, 1))
        ratios = self.config.view_ratios
        visible = tuple(self.visible(place, views[view], ratios[view], view=view) for view in (0, 1))
        with self.autocast(views[0]):
            out = model(views, visible, batch.weight[:, 0], place)
        self.watch_spread(out.embedding)
        self.watch("contrast_accuracy", out.accuracy, counts=place.total > 1)
        self.watch("over_chance", out.accuracy / out.chance, counts=place.total > 1)
        return cast(Tensor, out.loss)

    def _view(
        self, wave: Float[Tensor, "batch sample"], place: Place, view: int
    ) -> Float[Tensor, "batch mel frame"]:
        """Log-mels of an augmentation of its own."""
        key, mel = (self.config.seed, place.step, place.part, view), self.shape.mel
        drawn = torch.rand(place.total, 12, generator=augment.keyed("view", *key))[place.first :][: len(wave)]
        each = (augment.keyed("noise", *key, place.first + clip) for clip in range(len(wave)))
        noise = torch.stack([torch.randn(wave.shape[1], generator=rng) for rng in each])
        drawn, noise = to_device(drawn, wave.device), to_device(noise, wave.device)
        loud = augmented(wave, drawn, mel.sample_rate, noise)
        return log_mel(loud, mel, band=self.band(place))

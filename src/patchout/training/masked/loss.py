"""The loss of one step of masked pre-training, and what would show that nothing is learnt (MaskSpec, section 2)."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchout.audio.mel import log_mel
from patchout.data import augment
from patchout.data.batches import Batch
from patchout.models.device import autocast
from patchout.models.masking import patchify
from patchout.models.maskspec import MaskSpecConfig, Prediction
from patchout.training.masked.config import PretrainConfig
from patchout.training.step import Place

ALARMS: tuple[
    tuple[str, Callable[[float], bool], str], ...
] = (  # what is seen, when it is wrong, what to say
    (
        "silent",
        lambda share: share > 0.5,
        "more than half of what is hidden is silence: leave silent clips out",
    ),
    (
        "spread",
        lambda spread: spread < 0.01,
        "all clips look alike to the encoder, it has collapsed: lower --base-lr",
    ),
)
STILL = 1e-4  # a patch whose bands change by less than this is silence


class PretrainLoss:
    """Everything random in it is drawn from (seed, step, part), for the clips of all processes.

    What it sees beside the loss stays on the device until `seen` reads it.
    """

    def __init__(self, config: PretrainConfig, model: MaskSpecConfig, device: torch.device) -> None:
        self.config = config
        self.model = model
        self.step = -1  # the last one
        held = model.mel.mean or (0.0,), model.mel.std or (1.0,)  # cached log-mels come without them
        self._mean, self._std = torch.tensor(held, device=device)[..., None]  # (1 or mels, 1) each
        self._sum = torch.zeros(
            4, device=device
        )  # silent share of hidden patches, spread of embeddings, parts of each

    def __call__(self, model: nn.Module, batch: Batch, place: Place) -> Tensor:
        """Mean squared error of the hidden patches; a clip that could not be read adds none."""
        config, self.step = self.config, place.step
        rng = augment.keyed("step", config.seed, place.step, place.part)
        band = augment.mel_band(self.model.mel.f_max, rng) if config.mel_jitter else None
        if batch.wave.ndim == 3:
            mel = (batch.wave.float().mT - self._mean) / self._std
        else:
            mel = log_mel(batch.wave, self.model.mel, band=band)
        mel, weight = (
            one.repeat_interleave(config.masks_per_clip, dim=0) for one in (mel, batch.weight[:, 0])
        )
        drawn = torch.rand(
            place.total * config.masks_per_clip,
            self.model.rows * self.model.num_columns(mel.shape[-1]),
            generator=augment.keyed("mask", config.seed, place.step, place.part),
        )
        drawn = drawn.pin_memory() if mel.is_cuda else drawn  # or the device would be waited for
        first = place.first * config.masks_per_clip
        with autocast(mel.device, config.precision):
            out = model(mel, config.mask_ratio, drawn[first : first + len(mel)], weight=weight)
        self._watch(mel, out)
        return out.loss

    @torch.no_grad()
    def _watch(self, mel: Float[Tensor, "batch mel frame"], out: Prediction) -> None:
        """Add up the share of targets that hold silence, and how much clips differ in the mean of their latents."""
        patch = self.model.patch
        pixels = patchify(mel, patch)  # (B, N, patch * patch)
        moves = pixels.view(*pixels.shape[:2], patch, patch).diff(dim=-1).abs().amax(dim=(-2, -1))  # (B, N)
        silent = ((moves < STILL) * out.mask).sum() / out.mask.sum()
        latent = out.latent[:, 1:].float().mean(dim=1)  # (B, D)
        spread = latent.var(dim=0, unbiased=False).mean().sqrt() / latent.square().mean().sqrt()
        several = float(len(latent) > 1)  # a clip alone does not differ from others
        self._sum += torch.stack(
            [silent, spread * several, torch.ones_like(spread), torch.full_like(spread, several)]
        )

    def seen(self) -> dict[str, float]:
        """Means since the last call."""
        silent, spread, parts, several = self._sum.tolist()
        self._sum.zero_()
        found = {"silent": (silent, parts), "spread": (spread, several)}
        return {name: total / count for name, (total, count) in found.items() if count}


def alarms(seen: Mapping[str, float]) -> set[str]:
    """What to say of values that `PretrainLoss.seen` gave."""
    return {text for name, rings, text in ALARMS if name in seen and rings(seen[name])}

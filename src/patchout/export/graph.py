"""Graph of an exported file: the front end as one convolution and matrix products, a tagger, its scores.

ONNX has a transform (STFT), but ONNX Runtime's is hundreds of times slower than a convolution with its sines.
"""

import math
from copy import deepcopy

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from patchout.audio.mel import MelConfig, logarithm, mel_bank
from patchout.models.tagger import Tagger


class FrontEnd(nn.Module):
    """The log-mel of `audio.mel.log_mel`, its short-time transform a convolution with windowed sines."""

    basis: Tensor
    bank: Tensor

    def __init__(self, config: MelConfig) -> None:
        """Cosines and sines of the bins that the mel bank uses, times the window."""
        super().__init__()
        self.config = config
        bank = mel_bank(config)
        bank = bank[:, : int(bank.any(dim=0).nonzero().max()) + 1]
        sample = torch.arange(config.win_length, dtype=torch.float64)
        phase = 2 * math.pi / config.n_fft * torch.arange(bank.shape[1])[:, None] * sample
        window = torch.hann_window(config.win_length, periodic=config.periodic, dtype=torch.float64)
        self.register_buffer("basis", (torch.cat([phase.cos(), phase.sin()]) * window)[:, None].float())
        self.register_buffer("bank", bank)

    def forward(self, waveform: Float[Tensor, "batch sample"]) -> Float[Tensor, "batch mel frame"]:
        """(batch, samples) -> (batch, n_mels, frames), before mean and deviation."""
        config = self.config
        if config.half_precision:
            waveform = waveform.half().float()
        emphasised = (
            waveform[:, 1:] - config.pre_emphasis * waveform[:, :-1]
        )  # two roundings, as `log_mel` has
        if config.half_precision:
            emphasised = emphasised.half().float()
        before = config.n_fft // 2 - (config.n_fft - config.win_length) // 2
        mirrored = F.pad(emphasised[:, None], (before, config.win_length - before), mode="reflect")
        real, imaginary = F.conv1d(mirrored, self.basis, stride=config.hop_length).chunk(2, dim=1)
        return logarithm(self.bank @ (real * real + imaginary * imaginary), config)


Scores = tuple[Float[Tensor, "batch class"], Float[Tensor, "batch class"]]


class WaveformScores(nn.Module):
    """Waveform -> scores and logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Tagger, *, half: bool = False) -> None:
        """`half`: the encoder in float16, front end and head in float32."""
        super().__init__()
        self.config = model.config
        self.front_end = FrontEnd(model.config.mel)
        self.model = deepcopy(model).half() if half else model
        for name in ("norm", "head"):  # of a family those that compute in float32
            if half and isinstance(part := getattr(self.model, name, None), nn.Module):
                part.float()
        self.dtype = torch.float16 if half else torch.float32
        self.register_buffer("mean", torch.tensor(model.config.mel.mean or (0.0,))[:, None])
        self.register_buffer("std", torch.tensor(model.config.mel.std or (1.0,))[:, None])

    def forward(self, waveform: Float[Tensor, "batch sample"]) -> Scores:
        """(batch, samples) at the model's rate, full scale 1 -> scores and logits, each (batch, classes)."""
        return self.scores(self.front_end(waveform))

    def scores(self, mel: Float[Tensor, "batch mel frame"]) -> Scores:
        """Log-mel before mean and deviation -> calibrated scores, and logits as they are."""
        if self.config.mel.mean is not None:
            mel = (mel - self.mean) / self.std
        logits, decision = self.model.predict(mel.to(self.dtype)).logits, self.config.decision
        scaled = decision.slope * logits + decision.bias if decision.calibrates else logits
        return scaled.softmax(dim=1) if self.config.task == "multi_class" else scaled.sigmoid(), logits


class MelScores(WaveformScores):
    """Log-mel of any length -> scores and logits; frames beyond the table of positions are cut off."""

    def forward(self, mel: Float[Tensor, "batch mel frame"]) -> Scores:
        """(batch, n_mels, frames) -> scores and logits, each (batch, classes)."""
        frames = torch.sym_min(mel.shape[2], self.config.max_frames)  # type: ignore[no-untyped-call]
        return self.scores(mel[:, :, :frames])

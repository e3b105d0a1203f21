"""Audio taggers of patchout for transformers: waveform -> class logits (PaSST, MaskSpec, CNN).

Needs torch, numpy and transformers alone. For inference; patchout trains, and reads the same weights.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel, SequenceFeatureExtractor
from transformers.modeling_outputs import SequenceClassifierOutput

WINDOWS = 16  # of a long sound that are computed at a time


class PatchoutConfig(PretrainedConfig):
    """`tagger`: front end and sizes as patchout stores them; `thresholds`: label -> least score."""

    model_type = "patchout"

    def __init__(self, tagger: Any = None, thresholds: Any = None, **kwargs: Any) -> None:
        self.tagger = dict(tagger or {})
        self.thresholds = dict(thresholds or {})
        super().__init__(**kwargs)


class PatchoutFeatureExtractor(SequenceFeatureExtractor):
    """Checks a sound's rate and shape; the log-mel is computed by the model."""

    model_input_names = ["input_values", "attention_mask"]  # noqa: RUF012 (the name and type of transformers)

    def __init__(self, sampling_rate: int = 32_000, **kwargs: Any) -> None:
        super().__init__(
            **{"feature_size": 1, "padding_value": 0.0, "sampling_rate": sampling_rate, **kwargs}
        )

    def __call__(
        self, raw_speech: Any, sampling_rate: int | None = None, return_tensors: Any = None, **_: Any
    ) -> Any:
        """One sound (samples,), or a list of them, at the model's rate, full scale 1."""
        if sampling_rate != self.sampling_rate:
            heard = "no rate" if sampling_rate is None else f"{sampling_rate} Hz"
            todo = (
                f"resample it (soxr.resample(wave, rate, {self.sampling_rate})) and say so by sampling_rate="
            )
            raise ValueError(f"this model hears sounds of {self.sampling_rate} Hz, got {heard}: {todo}")
        is_single = isinstance(raw_speech, np.ndarray | Tensor) and raw_speech.ndim == 1
        waves = [np.asarray(wave, np.float32) for wave in ([raw_speech] if is_single else raw_speech)]
        if any(wave.ndim != 1 or not len(wave) for wave in waves):
            shapes = [wave.shape for wave in waves]
            raise ValueError(f"a sound is (samples,), one channel, not empty; got {shapes}: mix it to mono")
        padded = self.pad({"input_values": waves}, padding=True, return_attention_mask=True)
        return padded.convert_to_tensors(return_tensors)


class PatchoutModel(PreTrainedModel):
    """Base of the taggers: front end, windows of long sounds, calibration."""

    config_class = PatchoutConfig
    main_input_name = "input_values"
    base_model_prefix = ""
    stride: tuple[int, int]
    patch: int

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: all weights are read."""

    def network(self, mel: Tensor) -> Tensor:
        """Log-mel (batch, mel, frame) -> logits (batch, class)."""
        raise NotImplementedError

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None) -> SequenceClassifierOutput:
        """Waveforms (batch, samples), full scale 1 -> calibrated logits; the mask is 0 in padding."""
        lengths = [input_values.shape[1]] * len(input_values)
        if attention_mask is not None:
            lengths = attention_mask.long().sum(dim=1).tolist()
        logits = torch.empty(len(lengths), self.config.num_labels, device=input_values.device)
        for length in set(lengths):
            rows = [row for row, size in enumerate(lengths) if size == length]
            logits[rows] = self.clip_logits(input_values[rows, :length].float())
        decision = self.config.tagger["decision"]
        return SequenceClassifierOutput(logits=decision["slope"] * logits + decision["bias"])

    def clip_logits(self, wave: Tensor) -> Tensor:
        """Logits (batch, class) of whole clips; of long ones those of the mean score of windows."""
        tagger, mel = self.config.tagger, self.config.tagger["mel"]
        size = (self.patch + tagger["columns"] * self.stride[1] - 1) * mel["hop_length"]  # most samples
        least = max(mel["n_fft"] // 2 + 2, (self.patch - 1) * mel["hop_length"] + 1)
        least = max(least, round(tagger["pad_s"] * mel["sample_rate"]))
        wave = F.pad(wave, (0, max(0, least - wave.shape[1])))
        if wave.shape[1] <= size:
            return self.network(log_mel(wave, mel).to(self.dtype)).float()
        starts = list(range(0, wave.shape[1] - size + 1, size // 2))
        starts += [wave.shape[1] - size] if starts[-1] + size < wave.shape[1] else []
        is_single = self.config.problem_type == "single_label_classification"
        total = torch.zeros(len(wave), self.config.num_labels, device=wave.device, dtype=torch.float64)
        for first in range(0, len(starts), WINDOWS):
            some = [wave[:, start : start + size] for start in starts[first : first + WINDOWS]]
            logits = self.network(log_mel(torch.cat(some), mel).to(self.dtype)).float()
            scores = logits.softmax(dim=1) if is_single else logits.sigmoid()
            total += scores.view(len(some), len(wave), -1).double().sum(dim=0)
        mean = (total / len(starts)).clamp(torch.finfo(torch.float32).tiny, 1 - 2**-25)
        return (mean.log() if is_single else mean.logit()).float()


def log_mel(wave: Tensor, mel: dict[str, Any]) -> Tensor:
    """Normalised log-mel (batch, n_mels, frames) of waveforms (batch, samples)."""
    is_half, rate = mel["half_precision"], mel["sample_rate"]
    wave = wave.half().float() if is_half else wave
    wave = wave[:, 1:] - mel["pre_emphasis"] * wave[:, :-1]
    wave = wave.half().float() if is_half else wave
    window = torch.hann_window(mel["win_length"], periodic=mel["periodic"], device=wave.device)
    sizes = mel["n_fft"], mel["hop_length"], mel["win_length"]
    spectrum = torch.view_as_real(torch.stft(wave, *sizes, window, return_complex=True))
    low, high = (1127.0 * math.log(1.0 + hz / 700.0) for hz in (mel["f_min"], mel["f_max"]))
    step = (high - low) / (mel["n_mels"] + 1)
    number = torch.arange(mel["n_mels"]).unsqueeze(1)
    lower, centre, upper = (low + step * (number + edge) for edge in range(3))
    bins = 1127.0 * (1.0 + torch.arange(mel["n_fft"] // 2) * (rate / mel["n_fft"]) / 700.0).log()
    bank = torch.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)).clamp(min=0.0)
    if mel["low_pass_hz"] is not None:
        bank[:, math.floor(mel["low_pass_hz"] * mel["n_fft"] / rate) + 1 :] = 0.0
    power = bank.to(wave.device) @ spectrum.square().sum(dim=-1)[:, :-1]
    if mel["scale"] == "ln":
        scaled = ((power + 1e-5).log() + 4.5) / 5.0
    else:
        scaled = 10.0 * power.clamp(min=1e-10).log10()
        scaled = scaled.maximum(scaled.amax(dim=(1, 2), keepdim=True) - 120.0)
    if mel["mean"] is None:
        return scaled
    mean, std = (torch.tensor(mel[name], device=wave.device)[:, None] for name in ("mean", "std"))
    return (scaled - mean) / std


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, token, width) -> the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, token, width) -> the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, token, width) -> the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """Blocks and a final norm."""

    def __init__(self, tagger: dict[str, Any]) -> None:
        super().__init__()
        width, heads = tagger["width"], tagger["heads"]
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(tagger["depth"])))
        self.norm = nn.LayerNorm(width, eps=1e-6)


class PasstEmbed(nn.Module):
    """Patches and their positions, of frequency plus time or of a grid."""

    def __init__(self, tagger: dict[str, Any]) -> None:
        super().__init__()
        width, patch, stride = tagger["width"], tagger["patch"], tuple(tagger["stride"])
        rows, columns = (tagger["mel"]["n_mels"] - patch) // stride[0] + 1, tagger["columns"]
        self.proj = nn.Conv2d(1, width, patch, stride)
        self.is_separate = tagger["positions"] == "separate"
        if self.is_separate:
            self.row_position = nn.Parameter(torch.empty(rows, width))
            self.column_position = nn.Parameter(torch.empty(columns, width))
        else:
            self.grid_position = nn.Parameter(torch.empty(rows, columns, width))

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel (batch, mel, frame) -> (batch, patch, width)."""
        patches = self.proj(mel[:, None]).permute(0, 2, 3, 1)
        if self.is_separate:
            position = self.row_position[:, None] + self.column_position[: patches.shape[2]]
        else:
            position = self.grid_position[:, : patches.shape[2]]
        return (patches + position).flatten(1, 2)


class PasstForAudioClassification(PatchoutModel):
    """PaSST, the Patchout audio spectrogram transformer (arXiv 2110.05069)."""

    def __init__(self, config: PatchoutConfig) -> None:
        super().__init__(config)
        tagger = config.tagger
        self.patch, self.stride = tagger["patch"], tagger["stride"]
        width, prefix = tagger["width"], 2 if tagger["distilled"] else 1
        self.embed = PasstEmbed(tagger)
        self.tokens = nn.Parameter(torch.empty(prefix, width))
        self.token_position = nn.Parameter(torch.empty(prefix, width))
        self.encoder = Encoder(tagger)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.num_labels))
        self.post_init()

    def network(self, mel: Tensor) -> Tensor:
        """Log-mel (batch, mel, frame) -> logits (batch, class)."""
        prefix = (self.tokens + self.token_position).expand(len(mel), -1, -1)
        tokens = self.encoder.blocks(torch.cat([prefix, self.embed(mel)], dim=1))
        return self.head(self.encoder.norm(tokens[:, : len(self.tokens)]).mean(dim=1))


class MaskSpecEmbed(nn.Module):
    """Class token, patches without overlap, and their learnt positions."""

    def __init__(self, tagger: dict[str, Any]) -> None:
        super().__init__()
        width, patch, self.rows = tagger["width"], tagger["patch"], tagger["mel"]["n_mels"] // tagger["patch"]
        self.proj = nn.Conv2d(1, width, patch, patch)
        self.class_token = nn.Parameter(torch.empty(width))
        self.position = nn.Parameter(torch.empty(1 + self.rows * tagger["columns"], width))

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel (batch, mel, frame) -> (batch, 1 + patch, width)."""
        patches = self.proj(mel[:, None]).permute(0, 2, 3, 1)
        position = self.position[1:].reshape(self.rows, -1, patches.shape[3])[:, : patches.shape[2]]
        class_token = (self.class_token + self.position[0]).expand(len(mel), 1, -1)
        return torch.cat([class_token, (patches + position).flatten(1, 2)], dim=1)


class MaskSpecForAudioClassification(PatchoutModel):
    """MaskSpec, fine-tuned (arXiv 2204.12768)."""

    def __init__(self, config: PatchoutConfig) -> None:
        super().__init__(config)
        tagger = config.tagger
        self.patch, self.stride = tagger["patch"], (tagger["patch"], tagger["patch"])
        self.embed = MaskSpecEmbed(tagger)
        width, heads = tagger["width"], tagger["heads"]
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(tagger["depth"]))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, config.num_labels)
        self.post_init()

    def network(self, mel: Tensor) -> Tensor:
        """Log-mel (batch, mel, frame) -> logits (batch, class)."""
        tokens = self.embed(mel)
        for block in self.blocks:
            tokens = block(tokens)
        is_mean = self.config.tagger["pooling"] == "mean"
        return self.head(self.norm(tokens[:, 1:].mean(dim=1) if is_mean else tokens[:, 0]))


class CnnForAudioClassification(PatchoutModel):
    """Five convolutions, group norms and a mean over time and frequency."""

    widths = (24, 48, 96, 160, 256)
    patch, stride = 16, (32, 16)

    def __init__(self, config: PatchoutConfig) -> None:
        super().__init__(config)
        layers: list[nn.Module] = []
        for num_in, num_out in zip((1, *self.widths), self.widths, strict=False):
            stride = (2, 1 if num_out == self.widths[-1] else 2)
            layers += [nn.Conv2d(num_in, num_out, 3, stride=stride, padding=1, bias=False)]
            layers += [nn.GroupNorm(8, num_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(self.widths[-1], config.num_labels)
        self.post_init()

    def network(self, mel: Tensor) -> Tensor:
        """Log-mel (batch, mel, frame) -> logits (batch, class)."""
        frames = mel.shape[2] // self.patch * self.patch
        return self.head(self.layers(mel[:, None, :, :frames]).flatten(2).mean(dim=2))

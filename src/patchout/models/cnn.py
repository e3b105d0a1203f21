"""A small CNN baseline on the log-mel: five convolutions and global average pooling."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from patchout.audio.mel import MelConfig
from patchout.audio.pcm import Channel
from patchout.models.decision import NO_DECISION, Decision
from patchout.models.family import Output, Tagger, TaggerConfig
from patchout.models.transformer import init_linear

WIDTHS = (24, 48, 96, 160, 256)  # channels of the layers; each halves the mels, all but the last the frames
GROUPS = 8  # of channels that are normed together


@dataclass(frozen=True, kw_only=True)
class CnnConfig(TaggerConfig):
    """Front end and labels of a CNN; a `patch` is the input of one cell of its last layer."""

    labels: tuple[str, ...]
    task: Literal["multi_class", "multi_label"] = "multi_label"
    mel: MelConfig = field(default_factory=MelConfig)
    columns: int = 62
    pad_s: float = 0.0
    channel: Channel = "mean"
    licence: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    decision: Decision = NO_DECISION

    title = "CNN"
    recipe = "folder-cnn"
    width, patch, stride, num_class_tokens = WIDTHS[-1], 16, (32, 16), 0

    def __post_init__(self) -> None:
        """Check names and sizes."""
        self.check_names()
        if self.columns < 1 or self.mel.n_mels % self.stride[0]:
            raise ValueError(f"a CNN needs 1 column or more, a multiple of {self.stride[0]} mels, got {self}")


class Cnn(Tagger):
    """CNN baseline, 0.56 M weights; group norms, so that a score does not depend on the batch."""

    config: CnnConfig

    def __init__(self, config: CnnConfig, *, rng: Generator | None = None) -> None:
        """Random weights drawn from `rng` (a CPU generator; torch's own when None)."""
        super().__init__(config)
        layers: list[nn.Module] = []
        for num_in, num_out in zip((1, *WIDTHS), WIDTHS, strict=False):
            stride = (2, 1 if num_out == WIDTHS[-1] else 2)
            convolution = nn.Conv2d(num_in, num_out, 3, stride=stride, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu", generator=rng)
            layers += [convolution, nn.GroupNorm(GROUPS, num_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(WIDTHS[-1], len(config.labels)) if config.labels else None
        init_linear(self, rng)

    def forward(self, mel: Float[Tensor, "batch mel frame"], *, rng: Generator | None = None) -> Output:
        """Log-mel (batch, n_mels, frames) -> Output; frames beyond the last whole cell are cut."""
        frames = self.config.num_frames(self.config.check(mel))
        cells = self.layers(mel[:, None, :, :frames])  # (B, width, rows, columns)
        with torch.autocast(mel.device.type, enabled=False):
            tokens = cells.flatten(2).mT.float()
            embedding = tokens.mean(dim=1)
            logits = self.head(embedding) if self.head else embedding[:, :0]
        return Output(logits, embedding, tokens)

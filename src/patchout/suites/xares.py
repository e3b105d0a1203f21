"""Encoder for X-ARES, which reads a module with one class whose name ends in `Encoder`."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from patchout.hear.subject import open_subject, timestamps

MAX_SAMPLES = 1 << 21  # of one call: about a minute at 32 kHz


class PatchoutEncoder(nn.Module):
    """Timestamp embeddings of one of our models or of any HEAR module; a subclass names another `source`.

    `source`, `preset` and `weights` are those of `patchout hear run`.
    """

    source: ClassVar[str] = "passt-s"
    preset: ClassVar[str] = ""
    weights: ClassVar[str] = ""

    def __init__(self) -> None:
        """Load the model; its rate, size and hop become the attributes that X-ARES reads."""
        super().__init__()
        self.subject = open_subject(self.source, preset=self.preset, weights=self.weights)
        self.model = self.subject.model  # a submodule: `.to` moves it
        self.sampling_rate = self.subject.rate
        self.output_dim = int(self.model.timestamp_embedding_size)  # type: ignore[arg-type]
        device = next(self.model.parameters(), torch.empty(0)).device
        _, times_ms = timestamps(self.subject, torch.zeros(1, 2 * self.sampling_rate, device=device))
        self.hop_size_in_ms = float(times_ms.diff().mean())

    @torch.no_grad()
    def forward(self, audio: Float[Tensor, "sound sample"]) -> Float[Tensor, "sound time value"]:
        """Embeddings every `hop_size_in_ms` of sounds at `sampling_rate`, ten minutes and longer.

        Of many long sounds as many run together as make a minute; a HEAR module gets each sound whole.
        """
        device = next(self.model.parameters(), audio).device
        step = max(1, MAX_SAMPLES // max(1, audio.shape[-1]))
        batches = (audio[first : first + step] for first in range(0, len(audio), step))
        values = [timestamps(self.subject, batch.to(device))[0] for batch in batches]
        return torch.cat(values).to(audio.device)

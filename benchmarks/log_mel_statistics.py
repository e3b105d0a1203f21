"""A HEAR module without weights, the floor under every model: mean and deviation of each mel band.

With `benchmarks` on PYTHONPATH: `patchout hear run log_mel_statistics --tasks TASKS --out RESULTS`. Its
timestamps are the same statistics of the 160 ms around every 50 ms.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import patchout
from patchout.audio.mel import MelConfig

MEL = MelConfig()
FIELD, HOP = 16, 5  # frames of 10 ms


class Statistics(nn.Module):
    """What the HEAR rules ask of a model."""

    sample_rate = MEL.sample_rate
    scene_embedding_size = timestamp_embedding_size = 2 * MEL.n_mels


def load_model(model_file_path: str = "") -> Statistics:
    """There is nothing to load."""
    return Statistics()


def get_scene_embeddings(audio: Tensor, model: Statistics) -> Tensor:
    """(clip, sample) at 32 kHz -> (clip, 256): 128 means, 128 deviations."""
    return _statistics(patchout.log_mel(audio, MEL))


def get_timestamp_embeddings(audio: Tensor, model: Statistics) -> tuple[Tensor, Tensor]:
    """(clip, sample) at 32 kHz -> (clip, time, 256) and the times in ms (clip, time)."""
    half = FIELD // 2 * MEL.hop_length
    mel = patchout.log_mel(F.pad(audio[:, None], (half, half), mode="reflect")[:, 0], MEL)
    values = _statistics(mel.unfold(2, FIELD, HOP).permute(0, 2, 1, 3))
    times_ms = torch.arange(values.shape[1]) * HOP * MEL.frame_s * 1000
    return values, times_ms.expand(len(audio), -1)


def _statistics(mel: Tensor) -> Tensor:
    """Over the last dimension."""
    return torch.cat([mel.mean(-1), mel.std(-1, correction=0)], dim=-1)

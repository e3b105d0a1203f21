"""Log-mels of overlapping windows, equal to one `log_mel` each, but shared frames are computed once.

A frame that sees neither end of its window is a frame of the whole sound too. The few at its ends see the
reflection padding; they come from the window with its middle cut out. (Patches are not shared: the only
column of a 160-ms window sees both ends, and projecting is 0.2 % of a PaSST's multiplications.)
"""

import torch
from jaxtyping import Float
from torch import Tensor

from patchout.audio.mel import MelConfig, log_mel


def window_mels(
    wave: Float[Tensor, "batch sample"], config: MelConfig, *, size: int, hop: int
) -> Float[Tensor, "window mel frame"]:
    """Log-mels of windows of `size` samples every `hop` samples, those of the first sound first."""
    windows = wave.unfold(1, size, hop)  # (B, T, size), a view
    head, tail, start, cut = _ends(config, size)
    is_shared = hop % config.hop_length == 0 and config.scale == "ln"  # decibels depend on a window's loudest
    if not is_shared or cut <= hop or size - cut < config.min_samples:
        return log_mel(windows.flatten(0, 1), config)
    ends = torch.cat((windows[..., :start], windows[..., start + cut :]), dim=-1)
    end_mels = log_mel(ends.flatten(0, 1), config)
    shared = log_mel(wave, config)[:, :, head:]
    inner = shared.unfold(2, config.num_frames(size) - head - tail, hop // config.hop_length)
    inner = inner[:, :, : windows.shape[1]].transpose(1, 2).flatten(0, 1)  # (B * T, n_mels, inner frames)
    return torch.cat((end_mels[..., :head], inner, end_mels[..., end_mels.shape[-1] - tail :]), dim=-1)


def _ends(config: MelConfig, size: int) -> tuple[int, int, int, int]:
    """Frames that see a window's start, and its end; samples to keep at the start, and to cut behind them."""
    hop, reach = config.hop_length, (config.win_length + 1) // 2  # samples that a frame sees to each side
    frames = config.num_frames(size)
    head = -(-reach // hop)
    tail = frames - 1 - (size - 1 - reach) // hop
    start = (head - 1) * hop + reach + 1  # pre-emphasis loses one
    return head, tail, start, ((frames - tail) * hop - reach - start) // hop * hop

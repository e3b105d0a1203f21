"""Tokens that one forward pass takes: by the caches of a CPU, by the memory of a GPU."""

import torch

TOKENS_PER_BATCH = 8192  # the memory budget: 600 windows of 160 ms, or 7 of 10 s, in one forward pass
CUDA_TOKENS = 131_072  # of it on a GPU whose memory has room for them: fewer leave it waiting
CUDA_TOKEN_BYTES = 2**17  # of a token in a pass, log-mel included (estimated for width 768 in float32)
CUDA_SHARE = 0.25  # of the free memory for a pass, of which two may run side by side
CPU_TOKENS = 2048  # more leave the caches and take 8 to 13 % longer


def tokens_per_batch(device: torch.device) -> int:
    """Tokens of one forward pass: what the caches of a CPU hold, or the free memory of a GPU."""
    if device.type != "cuda":
        return CPU_TOKENS if device.type == "cpu" else TOKENS_PER_BATCH
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own reserve
    return max(TOKENS_PER_BATCH, min(CUDA_TOKENS, int(CUDA_SHARE * free) // CUDA_TOKEN_BYTES))

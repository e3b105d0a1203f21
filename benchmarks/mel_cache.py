"""What cached log-mels and several masks a clip save in pre-training:
python benchmarks/mel_cache.py --data SOUNDS

Reads a folder of sounds as `patchout pretrain` does, in batches of random crops, in this process on one
thread: decoded every time, with `--mel-cache` in its first epoch (decoded, turned into log-mels, written) and
in a later one. Then a step (log-mel, forward and backward pass) of `pretrain own` with and without the cache,
and with more masks a clip. All rates are clips (or masked clips) a second of processor time, the best of the
rounds.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import Dataset

from patchout.audio.mel import MelConfig
from patchout.data.batches import Batch, Item, StepSampler, Waves, batches
from patchout.data.mel_cache import MelCache
from patchout.data.sets import scan_sounds
from patchout.models.autotune import processor
from patchout.models.maskspec import MaskedEncoder
from patchout.training.masked.config import PretrainConfig
from patchout.training.masked.objectives.pixels import Pixels
from patchout.training.masked.recipes import recipe
from patchout.training.masked.run import start
from patchout.training.masked.survey import cut_long, survey
from patchout.training.step import Place

BATCH = 16
MASKS = (1, 4)
CPU = torch.device("cpu")


def best(work: Callable[[], object], rounds: int) -> float:
    """Least processor seconds of so many calls."""
    least = math.inf
    for _ in range(rounds):
        started = time.process_time()
        work()
        least = min(least, time.process_time() - started)
    return least


def epoch_of(source: Dataset[Item], clips: int) -> list[Batch]:
    """Every clip once; only the last batch is kept."""
    last: list[Batch] = []
    for batch in batches(source, StepSampler(clips, BATCH, seed=0, first=0, last=clips // BATCH), workers=0):
        last = [batch]
    return last


def step_of(model: MaskedEncoder, config: PretrainConfig, batch: Batch) -> Callable[[], None]:
    """Forward and backward pass of one batch."""
    loss, place = Pixels(config, model), Place(0, 0, 0, BATCH, lambda tensor: tensor)
    return lambda: torch.autograd.backward(loss(model, batch, place))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What cached log-mels and several masks a clip save.")
    parser.add_argument("--data", required=True, help="sounds to read")
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="tiny", help="of the encoder")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = replace(recipe("own")[0], init="", size=options.size, batch=BATCH, mel_jitter=False)
    clips = cut_long(scan_sounds(options.data), config.clip_s)
    model = start(config, survey(clips, MelConfig(), per_band=False, floor=0.3), device=CPU)
    mel, many = model.config.mel, len(clips) // BATCH * BATCH
    size = round(config.clip_s * mel.sample_rate)
    waves = Waves(clips, rate=mel.sample_rate, num_samples=size, seed=0, crop=True)
    waves.cache_samples = 0
    print(
        f"{processor()}, one thread, torch {torch.__version__}, {len(clips)} clips, "
        f"crops of {config.clip_s} s"
    )
    with tempfile.TemporaryDirectory() as folder:
        cache = MelCache(clips, MelConfig(), Path(folder) / "mels", size, 0)
        cache.open(0.0)
        rows: dict[str, Callable[[], object]] = {
            "decoded": lambda: epoch_of(waves, len(clips)),
            "cached, first epoch": lambda: epoch_of(cache, len(clips)),
            "cached, later": lambda: epoch_of(cache, len(clips)),
        }
        for name, work in rows.items():
            print(
                f"{name:<22}{many / best(work, 1 if 'first' in name else options.rounds):>9.1f} "
                "clips/s and core"
            )
        held = {"waveforms": epoch_of(waves, len(clips))[0], "cached": epoch_of(cache, len(clips))[0]}
    for masks in MASKS:
        for name, batch in held.items():
            seconds = best(step_of(model, replace(config, masks_per_clip=masks), batch), options.rounds)
            print(f"step, {masks} masks, {name:<11}{masks * BATCH / seconds:>8.1f} masked clips/s and core")


if __name__ == "__main__":
    main()

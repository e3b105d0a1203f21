"""A run of thirty steps on ten made-up clips, for as many processes as torchrun starts."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from patchout.data.augment import keyed
from patchout.data.batches import Batch, StepSampler
from patchout.models.device import pick_device
from patchout.training import loop, optim
from patchout.training.run_folder import open_run
from patchout.training.signals import Stopped
from patchout.training.step import Place

CLIPS, BATCH, STEPS = 10, 4, 30


def train_small(out: str, *options: str) -> None:
    """Run or go on; `options` are parts, pause_s (of each step), ema and result, as NAME=VALUE."""
    values = dict(option.split("=") for option in options)
    parts, pause_s = int(values.pop("parts", 1)), float(values.pop("pause_s", 0))
    average: dict[str, Any] = {name: float(text) if name == "ema" else text for name, text in values.items()}
    loop.FIRST_SAVE_S, loop.SAVE_EVERY_S = 0.05, 0.05
    device = pick_device("cpu")
    world = loop.engine(device, Path(out))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 2))

    def batches(first: int) -> Iterator[Batch]:
        rank = world.process_index
        keys_of_steps = StepSampler(
            CLIPS,
            BATCH // parts,
            seed=0,
            first=first * parts,
            last=STEPS * parts,
            rank=rank,
            world=world.num_processes,
        )
        for keys in keys_of_steps:
            with Path(f"{out}.{rank}").open("a") as file:
                file.write(json.dumps(keys) + "\n")
            rngs = [keyed("clip", *key) for key in keys]
            wave, target = (
                torch.stack([torch.randn(size, generator=rng) for rng in rngs]) for size in (3, 2)
            )
            yield Batch(wave, target, torch.ones_like(target), torch.tensor([key[1] for key in keys]), ())

    def loss(model: nn.Module, batch: Batch, place: Place) -> Tensor:
        assert len(place.gather(batch.wave)) == place.total
        noise = torch.randn(place.total, 2, generator=keyed("step", place.step, place.part))
        time.sleep(pause_s)
        part = noise[place.first : place.first + len(batch.wave)]
        error: Tensor = model(batch.wave) + part - batch.target
        return error.square().mean()

    def validate(models: Sequence[nn.Module]) -> list[dict[str, float]]:
        return [{"size": models[0].get_parameter("0.weight").square().sum().item()}]

    with open_run(Path(out), {}, {}, is_main=world.is_main_process) as folder:
        job = loop.Job(
            model=model,
            optimizer=optim.adamw(optim.parameter_groups(model, 0.01), 0.01),
            loss=loss,
            rate=lambda step: 1.0,
            batches=batches,
            steps=STEPS,
            batch=BATCH,
            parts=parts,
            epoch=CLIPS,
            clips=CLIPS,
            clip_name=str,
            save_model=lambda model, path, scores: save_file(model.state_dict(), path),
            folder=folder,
            validate=validate,
            clip_norm=1.0,
            **average,
        )
        try:
            loop.run(job, world)
        except Stopped:
            sys.exit(0)


if __name__ == "__main__":
    train_small(*sys.argv[1:])

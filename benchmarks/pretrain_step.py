"""What hiding patches saves in pre-training, all measured in this run: python benchmarks/pretrain_step.py

A step of MaskSpec (log-mel, forward and backward pass, AdamW) at mask ratio 0.75 against the same model whose
encoder takes all patches, hidden ones too; the decoder and its work are the same in both. Once with the
published decoder (8 x 512) and once with the light one (4 x 384). Every round times each case once, so that a
slow minute of the machine hits all of them, and the best round of each counts. Run it on an idle machine.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Generator, Tensor

from patchout.data.batches import Batch
from patchout.models.autotune import processor
from patchout.models.device import pick_device, pick_precision
from patchout.models.masking import masked_error, patchify, take
from patchout.models.maskspec import MaskSpec, MaskSpecConfig, Prediction
from patchout.models.passt import SIZES
from patchout.training import optim
from patchout.training.masked.config import PretrainConfig
from patchout.training.masked.objectives.pixels import Pixels
from patchout.training.masked.run import parameter_groups
from patchout.training.step import Place

DECODERS = {"8 x 512": (512, 8, 16), "4 x 384": (384, 4, 6)}
ASKED = {"8 x 512": 2.2, "4 x 384": 3.0}  # least ratio


class FullLength(MaskSpec):
    """The same weights, but the encoder takes every patch, and what was hidden is thrown away behind it."""

    def forward(
        self,
        mel: Tensor,
        mask_ratio: float = 0.75,
        noise: Tensor | None = None,
        rng: Generator | None = None,
        weight: Tensor | None = None,
    ) -> Prediction:
        """As `MaskSpec.forward`."""
        cell, pixels = self.config.cells(mel), patchify(mel, self.config.patch)
        mask = self._mask(pixels, mask_ratio, noise, rng)
        everything = self.encoder(self.embed(pixels, cell[None]))
        latent = torch.cat([everything[:, :1], take(everything[:, 1:], mask.visible)], dim=1)
        prediction = self.decoder(latent, mask.visible, cell).float()
        loss = masked_error(prediction, pixels, mask.masked, weight)
        return Prediction(loss, prediction, mask.masked, latent)


def step_of(kind: type[MaskSpec], config: PretrainConfig, device: torch.device) -> Callable[[], None]:
    """A whole training step of that model on made-up clips."""
    width, heads = SIZES[config.size]
    wide, deep, many = config.decoder
    rng = Generator().manual_seed(0)
    model = kind(
        MaskSpecConfig(width=width, heads=heads, decoder_width=wide, decoder_depth=deep, decoder_heads=many),
        rng=rng,
    ).to(device)
    optimizer = optim.adamw(parameter_groups(model, config.weight_decay), 1e-4, betas=config.betas)
    loss = Pixels(config, model)
    wave = 0.1 * torch.randn(config.batch, 10 * model.config.mel.sample_rate, generator=rng)
    ones = torch.ones(config.batch, 1, device=device)
    batch = Batch(wave.to(device), ones[:, :0], ones, torch.arange(config.batch), ())
    place = Place(0, 0, 0, config.batch, lambda tensor: tensor)

    def step() -> None:
        torch.autograd.backward(loss(model, batch, place))
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def best_times(cases: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Best seconds of each case over `rounds`, after one step that is not counted."""
    best = dict.fromkeys(cases, float("inf"))
    for number in range(rounds + 1):
        for name, step in cases.items():
            started = time.perf_counter()
            step()
            if number:
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description="A pre-training step with and without the hidden patches.")
    parser.add_argument("--batch", type=int, default=8, help="clips of 10 s a step (default: 8)")
    parser.add_argument(
        "--rounds", type=int, default=5, help="times each case is timed; the best counts (default: 5)"
    )
    parser.add_argument("--size", choices=SIZES, default="base", help="smaller ones only to try the script")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--json", type=Path, help="file to write the same numbers to")
    options = parser.parse_args()
    if min(options.rounds, options.batch) < 1:
        parser.error("--rounds and --batch must be at least 1")
    device = pick_device(options.device)
    make = partial(
        PretrainConfig, recipe="bench", size=options.size, batch=options.batch, precision=options.precision
    )
    cases = {
        f"{decoder}, {name}": step_of(kind, make(decoder=sizes), device)
        for decoder, sizes in DECODERS.items()
        for name, kind in (("visible patches", MaskSpec), ("all patches", FullLength))
    }
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    about = {"hardware": hardware, "threads": torch.get_num_threads(), "torch": torch.__version__}
    about |= {
        "precision": pick_precision(options.precision, device),
        "size": options.size,
        "batch": options.batch,
    }
    print("  ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    best = best_times(cases, options.rounds)
    for name, seconds in best.items():
        print(f"{name:<26}{seconds:>8.3f} s a step{options.batch / seconds:>9.2f} clips/s")
    ratios = {name: best[f"{name}, all patches"] / best[f"{name}, visible patches"] for name in DECODERS}
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f} times faster with visible patches alone   asked: at least {ASKED[name]}")
    if options.json:
        options.json.write_text(json.dumps({**about, "seconds": best, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()

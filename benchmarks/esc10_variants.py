"""Speed and memory of the five variants of recipe esc10, as they train:
python benchmarks/esc10_variants.py DATA/esc10

A step of the recipe's batch on real clips: log-mel, masks, mixup, forward and backward pass, clipping and
AdamW are in it; decoding and the augmentation of waveforms are not. Every round times each variant once; the
best round counts. Memory is what autograd keeps for the backward pass, a clip. Accuracies come from the runs
that `docs/results/training.md` names.
"""

import argparse
import time
from pathlib import Path

import torch

from patchout.data import augment
from patchout.data.batches import Batch
from patchout.data.clips import ClipSet
from patchout.data.sets import scan
from patchout.models.passt import Passt, PasstConfig
from patchout.training import optim
from patchout.training.plan import activation_bytes
from patchout.training.recipes import recipe
from patchout.training.step import Place
from patchout.training.supervised.loss import StepLoss
from patchout.training.supervised.model_config import model_config

VARIANTS = ("esc10-b", "esc10-u", "esc10-s", "esc10-s-l", "esc10-s-n")


class Subject:
    """One variant, ready to step."""

    def __init__(self, name: str, clips: ClipSet) -> None:
        self.config = recipe(name).config
        shape = model_config(self.config, clips, None)
        assert isinstance(shape, PasstConfig)
        self.model = Passt(shape, rng=augment.keyed("weights", 0))
        self.loss = StepLoss(self.config, shape, torch.ones(len(clips.classes)))
        self.optimizer = optim.adamw(
            optim.parameter_groups(self.model, self.config.weight_decay), self.config.lr
        )
        waves = [clips.wave(clip, shape.mel.sample_rate) for clip in range(self.config.batch)]
        length = round(self.config.clip_s * shape.mel.sample_rate)
        target = torch.stack([clips.target(clip) for clip in range(self.config.batch)])
        wave = torch.stack([augment.fit(wave, length) for wave in waves])
        self.batch = Batch(wave, target, torch.ones_like(target), torch.arange(len(target)), ())

    def forward(self, clips: int) -> torch.Tensor:
        """The loss of the first clips."""
        whole = self.batch
        few = Batch(
            whole.wave[:clips].clone(), whole.target[:clips], whole.weight[:clips], whole.clip[:clips], ()
        )
        return self.loss(self.model, few, Place(0, 0, 0, clips, lambda tensor: tensor))

    def step(self) -> None:
        """One training step."""
        torch.autograd.backward(self.forward(self.config.batch))
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description="The variants of the paper's Table 1 at Tiny size on ESC-10 (CPU)."
    )
    parser.add_argument("data", type=Path, help="the ESC-10 folder")
    parser.add_argument("--rounds", type=int, default=3, help="the best counts (default: 3)")
    options = parser.parse_args()
    clips = scan(options.data)
    subjects = {name: Subject(name, clips) for name in VARIANTS}
    best = dict.fromkeys(VARIANTS, float("inf"))
    for number in range(options.rounds + 1):
        for name, subject in subjects.items():
            started = time.perf_counter()
            subject.step()
            if number:
                best[name] = min(best[name], time.perf_counter() - started)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, best of {options.rounds} rounds")
    print(f"{'':<12}{'clips/s':>9}{'x B':>7}{'MB a clip':>11}{'of B':>7}")
    memory = {name: activation_bytes(subject.forward) / 1e6 for name, subject in subjects.items()}
    for name, subject in subjects.items():
        speed, share = subject.config.batch / best[name], memory[name] / memory["esc10-b"]
        print(
            f"{name:<12}{speed:>9.1f}{best['esc10-b'] / best[name]:>7.2f}{memory[name]:>11.1f}{share:>7.0%}"
        )


if __name__ == "__main__":
    main()

"""`patchout reconstruct`: figures of the masked patches that a pre-trained model reconstructs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from patchout.cli.command import DONE, say

RATIOS = (0.15, 0.35, 0.55, 0.75, 0.9)  # of the strip


@dataclass(kw_only=True)
class Options:
    """Hide patches of a sound and draw what a pre-trained model puts there; also at other mask ratios."""

    file: Annotated[str, tyro.conf.Positional]
    """a sound; its first seconds, as many as the model takes"""
    model: str
    """run folder or file of `patchout pretrain`, or the public pre-trained weights (maskspec-base)"""
    plot: Path
    """picture of original, masked sound, reconstruction and error; OUT-ratios beside it shows other mask
    ratios"""
    mask_ratio: float = 0.75
    """share of the patches that is hidden"""
    start_s: float = 0.0
    """where in the sound to begin"""
    seed: int = 0
    """of the mask"""
    device: str = "auto"
    """cuda, mps or cpu"""


def main(args: Sequence[str]) -> int:
    """Run `patchout reconstruct`."""
    options = tyro.cli(Options, args=args, prog="patchout reconstruct")
    from patchout.audio import stream as audio
    from patchout.audio.mel import log_mel
    from patchout.checkpoint.zoo import load_pretrained
    from patchout.data.augment import fit, keyed
    from patchout.figures import picture_format
    from patchout.inference.figures import reconstruction as figures
    from patchout.inference.reconstruct import reconstruct
    from patchout.models.masking import num_kept

    picture_format(options.plot)
    num_kept(1, options.mask_ratio)
    if options.seed < 0:
        raise ValueError(f"--seed must be 0 or more, got {options.seed}")
    model = load_pretrained(options.model, options.device)
    import torch

    config, mel = model.config, model.config.mel
    end_s = options.start_s + config.max_samples / mel.sample_rate
    wave = torch.from_numpy(audio.load(options.file, mel.sample_rate, start_s=options.start_s, end_s=end_s))
    wave = fit(wave, max(len(wave), config.min_samples)).to(next(model.parameters()).device)

    image = log_mel(wave[None], mel)[0]

    def at(ratio: float) -> figures.Reconstructed:
        return reconstruct(model, image, mask_ratio=ratio, rng=keyed("mask", options.seed))

    title = Path(options.file).name
    strip = options.plot.with_stem(f"{options.plot.stem}-ratios")
    figures.reconstruction(options.plot, at(options.mask_ratio), title=title)
    figures.reconstruction_strip(strip, [at(ratio) for ratio in RATIOS], title=title)
    say(f"pictures: {options.plot} and {strip}")
    return DONE

"""PaSST-Tiny from scratch on ESC-10: five-second clips, folds 1-4 to train on, fold 5 held out.

patchout train esc10 --data ESC-10 --out runs/esc10
"""

from patchout.train import TrainConfig


def config() -> TrainConfig:
    """Tiny, patches without overlap, half of them dropped; everything that makes 320 clips look like more."""
    return TrainConfig(
        recipe="esc10",
        split="5",
        size="tiny",
        stride=(16, 16),
        clip_s=5.0,
        patchout_freq=2,
        patchout_time=12,
        roll_s=5.0,
        speed=0.2,
        mask_time=96,
        epochs=500,
        batch=32,
    )

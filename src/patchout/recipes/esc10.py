"""PaSST-Tiny from scratch on ESC-10, folds 1-4 against 5."""

from patchout.train import TrainConfig


def config() -> TrainConfig:
    """Tiny, stride 16, half of the patches dropped."""
    return TrainConfig(
        recipe="esc10",
        split="5",
        size="tiny",
        stride=(16, 16),
        clip_s=5.0,
        patchout_freq=2,
        patchout_time=12,
        roll_s=5.0,
        mask_time=96,
        epochs=120,
        batch=32,
    )

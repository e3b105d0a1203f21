"""RunConfig: settings that supervised and masked training share; a recipe fills them, a flag changes them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import tyro

from patchout.models.device import Precision


@dataclass(frozen=True, kw_only=True)
class RunConfig(ABC):
    """Settings of a run of either kind; each kind redeclares what it names or defaults otherwise."""

    command: ClassVar[str]  # of `patchout`

    recipe: tyro.conf.Suppress[str]
    """name of the recipe, no flag"""
    data: tyro.conf.Suppress[str] = ""
    """folder, CSV or JSONL list, prepared set, or hub set (hf://owner/name); no flag of its own"""
    out: tyro.conf.Suppress[Path] = Path()
    """run folder; no flag of its own"""

    # the clips, and what is trained on them
    exclude: tuple[str, ...] = ()
    """folds or splits neither trained on nor looked at"""
    init: str = ""
    """start weights; "": random"""
    clip_s: float = 10.0
    """seconds a clip: longer ones are cropped at random, shorter ones padded with zeros"""
    mel_jitter: bool = True
    """draw new band edges of the mel bank for every batch"""

    # optimisation
    epochs: int
    """passes over the clips"""
    batch: int
    """clips a step, over all processes; 0: as many as fit"""
    parts: int = 1
    """parts that a step's clips are computed in, one after the other (gradient accumulation)"""
    weight_decay: float = 0.05
    """of matrices"""
    warm_up_epochs: float
    """epochs until the peak"""
    clip_norm: float
    """longest gradient; 0: any"""
    ema: float = 0.0
    """decay a step of averaged weights; 0: none"""

    # the machine
    seed: int = 0
    """of everything random"""
    workers: int = 0
    """processes that decode"""
    device: str = "auto"
    """cuda, mps or cpu"""
    precision: Precision = "auto"
    """bf16 where the hardware gains, fp32 elsewhere"""
    compile: bool = False
    """compile the model first: faster steps after a slow start"""
    trackers: tuple[str, ...] = ()
    """also log to tensorboard, wandb or trackio"""

    def __post_init__(self) -> None:
        """Refuse parts that differ in size."""
        if self.batch % self.parts:
            raise ValueError(f"a batch of {self.batch} cannot be cut into {self.parts} equal parts")

    @abstractmethod
    def peak_lr(self, batch: int) -> float:
        """Peak learning rate of AdamW for so many clips a step."""

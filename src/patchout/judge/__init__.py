"""Generated audio judged by PaSST: Fréchet distance, KL, Inception Score and kernel distance by protocol."""

from patchout.judge.gaussian import Statistics, frechet, frechet_infinite, frechet_interval, statistics
from patchout.judge.metrics import Estimate, inception, kernel, kl
from patchout.judge.protocols import PROTOCOLS, Clip, Loading, Protocol
from patchout.judge.run import Judgement, compare, judge
from patchout.judge.sets import Settings

__all__ = [
    "PROTOCOLS",
    "Clip",
    "Estimate",
    "Judgement",
    "Loading",
    "Protocol",
    "Settings",
    "Statistics",
    "compare",
    "frechet",
    "frechet_infinite",
    "frechet_interval",
    "inception",
    "judge",
    "kernel",
    "kl",
    "statistics",
]

"""PaSST on TAU Urban Acoustic Scenes 2019, task 1A: ten scenes (MaskSpec, Table 2).

`patchout prepare dcase2019 --source TAU-urban-acoustic-scenes-2019-development --out data/dcase2019`, then
`patchout train dcase2019 --data data/dcase2019 --out runs/dcase2019 --workers 4`; `--channel each` trains one model for
the left channel, one for the right and one for both, and scores their ensemble.

Cited accuracy: -tiny .763, -small .788, none for Base. No set-up was published for PaSST: this one is `dcase2020`'s,
ours, and we have not run it. -tiny and -small start from your runs of `audioset-tiny` and `audioset-small`.
"""

from dataclasses import replace

from patchout.recipes import dcase2020
from patchout.train_config import TrainConfig

S = replace(dcase2020.S, by="")

VARIANTS: dict[str, TrainConfig] = {
    "dcase2019": S,
    "dcase2019-tiny": replace(S, init="runs/audioset-tiny"),
    "dcase2019-small": replace(S, init="runs/audioset-small"),
}

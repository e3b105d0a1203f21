"""PaSST on TAU Urban Acoustic Scenes 2019, task 1A: ten scenes (MaskSpec, Table 2).

`patchout prepare dcase2019 --source TAU-urban-acoustic-scenes-2019-development --out data/dcase2019`, then
`patchout train dcase2019-ensemble --data data/dcase2019 --out runs/dcase2019 --workers 4` trains one model
for the left channel, one for the right and one for both, and scores their ensemble, as the paper did. The
recipes without -ensemble hear the down-mix alone: no score of theirs is cited.

Cited accuracy of three channels: -tiny-ensemble .763, -small-ensemble .788, none for Base. No set-up was
published for PaSST: this one is `dcase2020`'s, ours, and we have not run it; it reports averaged weights, the
paper does not say which. -tiny and -small start from your runs of `audioset-tiny` and `audioset-small`.
"""

from dataclasses import replace

from patchout.training.recipes import dcase2020

S = replace(dcase2020.S, by="")

MIXED = {
    "dcase2019": S,
    "dcase2019-tiny": replace(S, init="runs/audioset-tiny"),
    "dcase2019-small": replace(S, init="runs/audioset-small"),
}
VARIANTS = MIXED | {f"{name}-ensemble": replace(mixed, channel="each") for name, mixed in MIXED.items()}

"""PaSST on ESC-50: 50 everyday sounds of five seconds, five folds, the mean of their accuracies.

`patchout prepare esc50 --source ESC-50 --out data/esc50`, then `patchout train esc50-s --data data/esc50
--out runs/esc50-s --workers 4 --seeds 3`.

Cited accuracy, means of three runs: -b 96.3, -u 96.5, -s 96.8, -s-l 95.5, -s-n 96.4; cited cost: under 5
minutes on one GPU; -tiny 94.3, -small 96.3 (MaskSpec, Table 2). We have not run them. Of 588 patches U keeps
294, S and S-L 273 (the command in the published README; its code's default, 10 columns and 3 rows, keeps 351:
-code); S-N keeps 126 of 248. A run reports the average of the last epochs' weights; the published code
averages too, but scores the last weights under both names: the cited scores are theirs, and last.safetensors
has ours. No epoch is chosen by the fold that is scored. Clips are shuffled, which the published code forgot.
Starts, -kd and -paper as in `openmic`; five seconds take a random part of the ten-second table of positions.
"""

from dataclasses import replace

from patchout.training.recipes import openmic

FOLDS = replace(openmic.S, split="", folds=("1", "2", "3", "4", "5"), clip_s=5.0, batch=12)
S = replace(FOLDS, patchout_freq=5, patchout_time=10, wave_mix=0.0, mask_time=80)

VARIANTS = openmic.variants("esc50", S, patches=294, columns=10) | {
    "esc50-code": replace(S, patchout_freq=3),
    "esc50-kd": replace(S, init="passt-s-kd"),
    "esc50-paper": replace(S, gain_db=(-7, 7), roll_s=S.clip_s, result="last"),
    "esc50-tiny": replace(S, init="runs/audioset-tiny"),
    "esc50-small": replace(S, init="runs/audioset-small"),
}

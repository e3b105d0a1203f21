"""PaSST on FSD50K: 200 classes, clips up to 30 seconds; the validation split chooses, the evaluation split
reports.

`patchout prepare fsd50k --source FSD50K --out data/fsd50k`, then `patchout train fsd50k-s --data data/fsd50k
--out runs/fsd50k-s --workers 8 --seeds 3`.

Cited mAP, means of three runs: -b .649, -u .639, -s .653, -s-l .584, -s-n .637; cited cost on one GPU: S
under 2 hours, S-N under 1. We have not run them. Of 1188 patches U keeps 594, S and S-L 712 as in the
published code; the paper drops about half: -paper keeps 592. S-N keeps 252 of 496. The best epoch on the
validation split is reported: of averaged weights, as the published code averages; -paper averages none, as
the paper names none. Training takes a random ten seconds of a longer clip; evaluation hears all of it through
overlapping windows (the published code took a random crop there too). Starts and -kd as in `openmic`, and
-paper has its gain and roll.
"""

from dataclasses import replace

from patchout.training.recipes import openmic

CHOSEN = replace(openmic.S, split="val", test="eval", result="best", evaluate_every=3, batch=12)
AVERAGED = replace(CHOSEN, epochs=50, plateau_epochs=10, ramp_epochs=10, swa_start=10, swa_every=3)
S = replace(AVERAGED, patchout_time=10, mask_freq=0, mask_time=0)

VARIANTS = openmic.variants("fsd50k", S) | {
    "fsd50k-kd": replace(S, init="passt-s-kd"),
    "fsd50k-paper": replace(S, patchout_time=25, gain_db=(-7, 7), roll_s=S.clip_s, swa_start=0),
}

"""Your own sounds: a model that already knows sound is tuned to your classes, from ten clips a class on a CPU
upward.

`patchout train folder --data my_sounds --init passt-s --out runs/mine` where the network and a GPU are at
hand; `--init sounds-tiny` works offline and on two CPU cores in minutes (what it reaches:
`docs/results/training.md`). `--init ""` starts from random weights (say `--size tiny`). my_sounds is a folder
a class, a CSV or JSONL list, or a prepared set.

-cnn: a plain CNN of half a million weights, from random ones, to judge a transformer by.

A fifth of the clips, whole groups where the list has a `group` column, is held out for the scores, unless
`--split` names a split of the list; the weights reported are an average, chosen by nothing. Rare classes
weigh more in the loss. Sounds in a class called background, noise, none or _background are negatives, on
which every class is to be silent. On the clips held out scores are calibrated, and each class gets the
threshold that `patchout tag` uses, of the highest F1 or for a precision (`--precision-at 0.9`). The batch
size is chosen by memory (`--batch` to set it), and RUN/report/ shows where the model is wrong.
"""

from dataclasses import replace

from patchout.training.supervised.config import TrainConfig

HELD_OUT = TrainConfig(
    recipe="folder",
    background="auto",
    hold_out=0.2,
    evaluate_every=5,
    thresholds=True,
    head_bias="prior",
    balance="loss",
    clip_s=5.0,
    roll_s=5.0,
)
MASKED = replace(HELD_OUT, patchout_freq=2, patchout_time=0, mask_freq=24, mask_time=96)
AVERAGED = replace(MASKED, epochs=30, batch=0, ema=0.99, result="average")

VARIANTS = {
    "folder": replace(AVERAGED, init="sounds-tiny", lr=5e-4, mixup=0.0),
    "folder-cnn": replace(AVERAGED, model="cnn", patchout_freq=0, lr=3e-3),
}

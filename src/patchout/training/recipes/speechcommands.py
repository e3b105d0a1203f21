"""PaSST on Speech Commands v2: 35 words of one second (MaskSpec, Table 2).

`patchout prepare speechcommands --source speech_commands_v0.02 --out data/speechcommands`, then
`patchout train speechcommands --data data/speechcommands --out runs/speechcommands --workers 4`.

Cited accuracy: -tiny .953, -small .971, none for Base. No set-up was published for PaSST: this one is ours,
and we have not run it. A second is 108 patches: nothing is dropped (MaskSpec drops nothing here either), and
the word stands in the middle: it is not rolled. The validation split chooses among averaged weights, the test
split reports; the paper does not say which weights it scored. Starts as in `dcase2019`.
"""

from dataclasses import replace

from patchout.training.recipes import openmic

CHOSEN = replace(openmic.S, split="valid", test="test", result="best", evaluate_every=1, swa_start=6)
WORDS = replace(CHOSEN, clip_s=1.0, patchout_freq=0, patchout_time=0, roll_s=0.0, mask_time=20)
S = replace(WORDS, epochs=20, batch=64)

VARIANTS = {
    "speechcommands": S,
    "speechcommands-tiny": replace(S, init="runs/audioset-tiny"),
    "speechcommands-small": replace(S, init="runs/audioset-small"),
}

"""PaSST-Tiny from scratch on ESC-10: five-second clips, trained on folds 1-4, fold 5 held out.

`patchout train esc10 --data ESC-10 --out runs/esc10`: 50 minutes on 2 CPU cores with native bfloat16 (which
other work shared), 82.5 % on fold 5, 95 % confidence 72.7 - 89.3 % (cited, five folds: random forest 72.7 %,
people 95.7 %).

-b, -u, -s, -s-l and -s-n train 40 epochs each to compare the paper's variants at this size: of 588 patches
(stride 10) B keeps all, U 388, S and S-L 232; S-N keeps 126 of 248 (stride 16). Scores, speed and memory:
`docs/results/training.md`.
"""

from dataclasses import replace

from patchout.training.supervised.config import TrainConfig

FOLD = TrainConfig(recipe="esc10", split="5", size="tiny", clip_s=5.0, roll_s=5.0, speed=0.2, mask_time=96)
S = replace(FOLD, stride=(10, 10), patchout_freq=4, patchout_time=20, epochs=40)
B = replace(S, patchout_freq=0, patchout_time=0)

VARIANTS = {
    "esc10": replace(FOLD, stride=(16, 16), patchout_freq=2, patchout_time=12, epochs=500),
    "esc10-b": B,
    "esc10-u": replace(B, patchout_patches=200),
    "esc10-s": S,
    "esc10-s-l": replace(S, depth=7),
    "esc10-s-n": replace(S, stride=(16, 16), patchout_time=10, patchout_freq=2),
}

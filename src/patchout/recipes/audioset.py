"""PaSST on AudioSet: ten-second clips, 527 classes, started from ImageNet weights (PaSST, section 3 and Table 1).

`patchout prepare audioset --source AudioSet --out data/audioset`, then `patchout train audioset-s --data
data/audioset --out runs/audioset-s --workers 16`, with torchrun in front on several GPUs.

Cited cost: S takes 50 hours on one RTX 2080 Ti, S-L and S-N about 25; we have not run them. Cited mAP and tokens:
-b .462 (1190), -u .466 (790), -s .471 (474), -s-l .459 (474, 7 blocks), -s-n .466 (254), -s16 .468 (296), -s14 .469,
-grid .459 (1190, AST as its authors' rival ran it), -hop160 .473 (596), -hop100 .473 (1016), -20s .474, -30s .473;
-tiny .397, -small .431, and from random weights -tiny-scratch .354, -small-scratch .413, -scratch .421.

Numbers are those of the published code; -paper has the five in which the paper differs. S-N drops 20 columns and 2 rows
(254 tokens, the paper's), S16 20 columns and 1 row as the released stride-16 models. -20s and -30s train on ten-second
clips that take a random part of a longer table of positions, as their maintainer described.
"""

from dataclasses import replace

from patchout.train_config import TrainConfig

S = TrainConfig(
    recipe="audioset",
    split="eval",
    draws=100_000,
    balance="sampling",
    init="deit-base-384",
    size="base",
    gain_db=(-7, 6),
    roll_s=50 / 32_000,
    wave_mix=0.5,
    mask_shared=True,
    epochs=130,
    batch=12,
    lr=2e-5,
    weight_decay=1e-4,
    decay_all=True,
    schedule="exp_ramp",
    clip_norm=0.0,
    swa_start=50,
    swa_every=5,
    result="average",
    evaluate_every=5,
)
B = replace(S, patchout_freq=0, patchout_time=0)

VARIANTS = {
    "audioset": S,
    "audioset-s": S,
    "audioset-b": B,
    "audioset-u": replace(B, patchout_patches=400),
    "audioset-s-l": replace(S, depth=7),
    "audioset-s-n": replace(S, stride=(16, 16), patchout_time=20, patchout_freq=2),
    "audioset-s16": replace(S, stride=(16, 16), patchout_time=20, patchout_freq=1),
    "audioset-s14": replace(S, stride=(14, 14), patchout_time=30, patchout_freq=3),
    "audioset-grid": replace(B, positions="grid"),
    "audioset-hop160": replace(S, hop_length=160, patchout_time=100, patchout_freq=6),
    "audioset-hop100": replace(S, hop_length=100, patchout_time=150, patchout_freq=6),
    "audioset-20s": replace(S, table_s=20.0),
    "audioset-30s": replace(S, table_s=30.0),
    "audioset-paper": replace(S, lr=1e-5, draws=200_000, epochs=120, gain_db=(-7, 7), roll_s=10.0),
    "audioset-tiny": replace(S, size="tiny", init="deit-tiny"),
    "audioset-small": replace(S, size="small", init="deit-small"),
    "audioset-scratch": replace(S, init=""),
    "audioset-small-scratch": replace(S, size="small", init=""),
    "audioset-tiny-scratch": replace(S, size="tiny", init=""),
}

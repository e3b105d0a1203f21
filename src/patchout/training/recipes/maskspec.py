"""Fine-tuning MaskSpec on seven tasks (MaskSpec, section 3.2 and Table 2), each from three starts.

First `patchout pretrain maskspec --data data/audioset --out runs/maskspec` (or the public weights: `--init
maskspec-base`). Then `patchout prepare esc50 --source ESC-50 --out data/esc50` and
`patchout train maskspec-esc50 --data data/esc50 --out runs/maskspec-esc50 --workers 4`; -audioset (the whole
set, 100,000 weighted draws an epoch) and -audioset20k (its balanced part), -dcase2019 (three models, left,
right and mid, and their ensemble), -dcase2018, -openmic and -speechcommands (folder `patchout prepare` names)
likewise. -tuned starts from runs/maskspec-audioset, the run of `maskspec-audioset` or the public
`maskspec-ap471`; -scratch from random weights of `--size`, without layer decay, which would leave its first
block 3 % of the rate. Small and Tiny: `--init runs/maskspec-small`.

Cited, Base, pre-trained / -tuned: AudioSet mAP .471, -audioset20k .323, ESC-50 .896 / .982, DCASE2019 .801 /
.823, OpenMIC mAP .814 / .853, Speech Commands .977 / .976 (all sizes: docs/maskspec.md), of the best epoch on
the test set; no weights are averaged, theirs or ours. No cost was published, and we have not run them.

Numbers are those of the published code. -paper has those of the paper: rate .001, 100 epochs (AudioSet: 80),
both mixups everywhere, waves rolled over their whole length, layer decay, and nothing else: no SpecAugment,
Patchout, gain, band jitter or drop path (its own pre-training: `patchout pretrain maskspec-paper`, then
`--init` that run).

A start that knows AudioSet's labels knows those of AudioSet-20K: there is no -audioset20k-tuned.

Ours differ where the code erred or cannot be repeated: clips drawn once and not on every GPU, statistics of
the start weights instead of those of first seconds, masks filled with the mean (0.0 before standardising is
50 deviations in the bands that they left empty), no chain of third-party effects, a cosine to 0 instead of
1e-6; the last epoch or a validation split reports, where the code took the best epoch on the test set.
"""

from dataclasses import replace

from patchout.training.supervised.config import TrainConfig

CLIPS = TrainConfig(recipe="maskspec", split="eval", draws=100_000, balance="sampling", evaluate_every=5)
SET_UP = replace(  # what a PaSST has of it too
    CLIPS, roll_s=50 / 32_000, wave_mix=0.5, mask_shared=True, epochs=80, batch=512, lr=2e-3, clip_norm=0.0
)
ENCODER = replace(SET_UP, init="runs/maskspec", model="maskspec", layer_decay=0.75, drop_path=0.1)
AUDIOSET = replace(ENCODER, patchout_freq=0, patchout_time=0, patchout_patches=200, mask_fill="mean")
SMALL_SET = replace(AUDIOSET, split="", draws=0, balance="", batch=64, lr=2.5e-4, evaluate_every=0)
SCENES = replace(SMALL_SET, split="test")
WORDS = replace(SMALL_SET, split="valid", test="test", clip_s=1.0, patchout_patches=0, evaluate_every=5)

TASKS = {
    "maskspec-audioset": AUDIOSET,
    "maskspec-audioset20k": replace(AUDIOSET, draws=0, balance=""),
    "maskspec-esc50": replace(SMALL_SET, folds=("1", "2", "3", "4", "5"), clip_s=5.0, patchout_patches=100),
    "maskspec-dcase2019": replace(SCENES, channel="each", epochs=200, lr=1.25e-3, mixup=0.2),
    "maskspec-dcase2018": SCENES,  # no task of the paper
    "maskspec-openmic": replace(SMALL_SET, split="test", wave_mix=0.0, mixup=0.0),
    "maskspec-speechcommands": replace(WORDS, result="best"),
}


def _paper(task: TrainConfig) -> TrainConfig:
    """A task with the hyperparameters of the paper (section 3.2), else those of the published code."""
    epochs = 80 if task.split == "eval" else 100
    plain = replace(task, mel_jitter=False, mask_freq=0, mask_time=0, patchout_patches=0, drop_path=0.0)
    mixed = replace(plain, gain_db=(0, 0), roll_s=task.clip_s, wave_mix=0.5, mixup=task.mixup or 0.3)
    return replace(mixed, lr=1e-3, epochs=epochs)


VARIANTS = TASKS | {
    f"{name}-scratch": replace(task, init="", size="base", layer_decay=1.0) for name, task in TASKS.items()
}
VARIANTS |= {
    f"{name}-tuned": replace(task, init="runs/maskspec-audioset")
    for name, task in TASKS.items()
    if task.split != "eval"  # that start knows the labels
}
VARIANTS |= {f"{name}-paper": _paper(task) for name, task in TASKS.items() if task is not SCENES}

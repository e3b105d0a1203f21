"""PaSST on TAU Urban Acoustic Scenes 2020 Mobile: ten scenes, accuracy overall and per device, seen and
unseen.

`patchout prepare dcase2020 --source TAU-urban-acoustic-scenes-2020-mobile-development --out data/dcase2020`,
then `patchout train dcase2020-s --data data/dcase2020 --out runs/dcase2020-s --workers 4 --seeds 3`.

Cited accuracy, means of three runs: -b 76.3, -u 75.6, -s 75.6, -s-l 73.7, -s-n 73.9 (challenge winner 73.7);
cited cost: under an hour on one GPU. No set-up was published: this one is ours (OpenMIC's, 25 epochs), and we
have not run it. A run reports averaged weights, with the last ones beside them; the paper names no average.
Of 1188 patches U keeps 594, S and S-L 472 as OpenMIC's code (the paper drops about half); S-N keeps 252 of
496. Starts as in `openmic`.
"""

from dataclasses import replace

from patchout.training.recipes import openmic

S = replace(openmic.S, by="device", batch=12, epochs=25)

VARIANTS = openmic.variants("dcase2020", S)

"""One recipe, several runs: a fold held out in turn, other seeds; mean and spread of their scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from accelerate import PartialState

from patchout.files import finite, write_json
from patchout.training.supervised.config import TrainConfig

Scores = dict[str, float]


def runs(config: TrainConfig) -> list[TrainConfig]:
    """The single runs of a config, each in a folder of its own: out/seed-0/fold-1 ..."""
    single = []
    for seed in range(config.seed, config.seed + config.seeds):
        for fold in config.folds or ("",):
            out = config.out
            out = out / f"seed-{seed}" if config.seeds > 1 else out
            out = out / f"fold-{fold}" if fold else out
            single.append(replace(config, out=out, seed=seed, seeds=1, folds=(), split=fold or config.split))
    return single


def repeat(config: TrainConfig, run: Callable[[TrainConfig], Scores]) -> Scores:
    """Run them all; returns the mean of every score, and its standard deviation over seeds as `<score>_std`.

    A fold's scores are averaged over the folds first. Writes out/scores.json. A folder that holds a single
    run is a ValueError.
    """
    if (config.out / "config.json").exists():
        raise ValueError(f"{config.out} holds a single run: choose another --out for several seeds or folds")
    found: dict[int, list[Scores]] = {}
    by_run: dict[str, Scores] = {}
    for single in runs(config):
        scores = run(single)
        found.setdefault(single.seed, []).append(scores)
        by_run[str(single.out.relative_to(config.out))] = scores
    seeds = [_mean(of_seed) for of_seed in found.values()]
    result = _mean(seeds)
    if len(seeds) > 1:
        with np.errstate(invalid="ignore"):  # infinite scores have no spread: NaN is the answer
            result |= {
                f"{name}_std": float(np.std([seed[name] for seed in seeds], ddof=1)) for name in result
            }
    if PartialState().is_main_process:
        write_json(config.out / "scores.json", finite({"mean": result, "runs": by_run}))
    return result


def _mean(scores: Sequence[Mapping[str, float]]) -> Scores:
    """Mean of each score that all of them have."""
    names = [name for name in scores[0] if all(name in one for one in scores)]
    with np.errstate(invalid="ignore"):  # of infinite scores of both signs: NaN is the answer
        return {name: float(np.mean([one[name] for one in scores])) for name in names}

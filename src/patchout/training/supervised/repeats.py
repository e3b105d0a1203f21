"""Repeated runs of one config, over seeds and cross-validation folds; mean and spread of their scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

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
            out = config.out / (f"seed-{seed}" if config.seeds > 1 else "") / (f"fold-{fold}" if fold else "")
            cache = config.distill_cache and config.distill_cache + (f"/fold-{fold}" if fold else "")
            run = replace(config, seed=seed, seeds=1, folds=(), split=fold or config.split)
            single.append(replace(run, out=out, distill_cache=cache))
    return single


def refuse_single_run(out: Path) -> None:
    """ValueError for the folder of a single run, whose scores and report several would replace."""
    if (out / "config.json").exists():
        todo = "choose another --out for several seeds, folds or channels"
        raise ValueError(f"{out} holds a single run: {todo}")


def repeat(config: TrainConfig, run: Callable[[TrainConfig], Scores]) -> Scores:
    """Mean scores of the single runs, and their standard deviation over seeds as `<score>_std`.

    Scores are averaged over the folds first. Writes out/scores.json. A folder that holds a single run is a
    ValueError.
    """
    refuse_single_run(config.out)
    by_seed: dict[int, list[Scores]] = {}
    by_run: dict[str, Scores] = {}
    for single in runs(config):
        scores = by_run[str(single.out.relative_to(config.out))] = run(single)
        by_seed.setdefault(single.seed, []).append(scores)
    seeds = [_mean(folds) for folds in by_seed.values()]
    result = _mean(seeds)
    if len(seeds) > 1:
        with np.errstate(invalid="ignore"):  # infinite scores have no spread: NaN is the answer
            spread = {name: float(np.std([seed[name] for seed in seeds], ddof=1)) for name in result}
        result |= {f"{name}_std": deviation for name, deviation in spread.items()}
    if PartialState().is_main_process:
        write_json(config.out / "scores.json", finite({"mean": result, "runs": by_run}))
    return result


def _mean(scores: Sequence[Mapping[str, float]]) -> Scores:
    """Mean of each score that all of them have."""
    names = [name for name in scores[0] if all(name in single for single in scores)]
    with np.errstate(invalid="ignore"):  # of infinite scores of both signs: NaN is the answer
        return {name: float(np.mean([single[name] for single in scores])) for name in names}

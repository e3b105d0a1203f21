"""Folds and seeds: which runs there are, and what becomes of their scores."""

import json
from pathlib import Path

import numpy as np
import pytest

from patchout.training.supervised.channel_ensemble import each_channel
from patchout.training.supervised.config import TrainConfig
from patchout.training.supervised.repeats import repeat, runs


def config(out: Path, **changes: object) -> TrainConfig:
    return TrainConfig(recipe="any", out=out, **changes)  # type: ignore[arg-type]


def test_every_seed_holds_every_fold_out_in_a_folder_of_its_own(tmp_path: Path) -> None:
    single = runs(config(tmp_path, folds=("1", "2"), seeds=2, seed=5))
    assert [(run.seed, run.split, run.out.relative_to(tmp_path).as_posix()) for run in single] == [
        (5, "1", "seed-5/fold-1"),
        (5, "2", "seed-5/fold-2"),
        (6, "1", "seed-6/fold-1"),
        (6, "2", "seed-6/fold-2"),
    ]
    assert all(run.folds == () and run.seeds == 1 for run in single)


def test_seeds_alone_keep_the_split(tmp_path: Path) -> None:
    single = runs(config(tmp_path, seeds=2, split="val"))
    assert [(run.seed, run.split, run.out.name) for run in single] == [
        (0, "val", "seed-0"),
        (1, "val", "seed-1"),
    ]


def test_the_result_is_the_mean_over_folds_and_the_spread_over_seeds(tmp_path: Path) -> None:
    found = {(0, "1"): 0.2, (0, "2"): 0.4, (1, "1"): 0.6, (1, "2"): 0.8}
    scores = repeat(
        config(tmp_path, folds=("1", "2"), seeds=2),
        lambda single: {"accuracy": found[single.seed, single.split]},
    )
    assert scores == pytest.approx({"accuracy": 0.5, "accuracy_std": 0.2 * 2**0.5})  # 0.3 and 0.7
    stored = json.loads((tmp_path / "scores.json").read_text())
    assert stored["mean"] == scores
    assert stored["runs"]["seed-1/fold-2"] == {"accuracy": 0.8}


def test_the_folder_of_a_single_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for several, more in ((repeat, {"seeds": 2}), (each_channel, {"channel": "each"})):
        with pytest.raises(ValueError, match="holds a single run: choose another --out"):
            several(config(tmp_path, **more), lambda single: {})


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    assert repeat(config(tmp_path, folds=("1", "2")), lambda single: {"mAP": 0.5}) == {"mAP": 0.5}


def test_a_score_that_a_run_could_not_have_makes_the_mean_undefined(tmp_path: Path) -> None:
    scores = iter([{"mAP": float("nan"), "d_prime": float("inf")}, {"mAP": 0.7, "d_prime": 1.0}])
    mean = repeat(config(tmp_path, folds=("1", "2")), lambda single: next(scores))
    assert str(mean) == "{'mAP': nan, 'd_prime': inf}"
    assert json.loads((tmp_path / "scores.json").read_text())["mean"] == {"mAP": None, "d_prime": None}


def test_infinite_scores_of_both_signs_have_no_mean(tmp_path: Path) -> None:
    scores = iter([{"d_prime": float("inf")}, {"d_prime": float("-inf")}])
    assert np.isnan(repeat(config(tmp_path, folds=("1", "2")), lambda single: next(scores))["d_prime"])


def test_a_score_that_only_some_runs_have_is_left_out(tmp_path: Path) -> None:
    scores = iter([{"mAP": 0.5, "accuracy/device=a": 0.1}, {"mAP": 0.7}])
    assert repeat(config(tmp_path, folds=("1", "2")), lambda single: next(scores)) == {"mAP": 0.6}

"""What a checkpoint keeps of the run that made it."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import tiny_config

from patchout.data.sets import scan
from patchout.training.masked.recipes import RECIPES
from patchout.training.provenance import command_line, cost, data_of, licences_of
from patchout.training.recipes import recipe

FOLDER = replace(recipe("folder").config, data="/home/ada/barks", out=Path("runs/mine"))


def test_the_command_names_what_differs_from_the_recipe() -> None:
    config = replace(FOLDER, batch=8, epochs=3, mel_jitter=False, gain_db=(-3, 3), split="a b", workers=4)
    words = shlex.split(command_line(config, FOLDER))
    assert words[:7] == ["patchout", "train", "folder", "--data", "barks", "--out", "mine"]
    rest = " ".join(words[7:])
    options = ("--batch 8", "--epochs 3", "--no-mel-jitter", "--gain-db -3 3", "--split a b")
    assert [option for option in options if option not in rest] == []
    assert "--workers" not in rest


def test_the_batch_of_a_command_is_that_of_all_processes() -> None:
    published = replace(recipe("esc50-s").config, data="d", out=Path("o"))
    assert published.batch_per_process
    text = command_line(replace(published, batch=96), published)
    assert text.endswith("--batch 96 --no-batch-per-process")


def test_a_pre_training_has_its_own_command() -> None:
    config = replace(RECIPES["own"], data="hf://ada/barks", out=Path("pre"))
    assert command_line(config, RECIPES["own"]) == "patchout pretrain own --data hf://ada/barks --out pre"


def test_a_prepared_set_brings_its_licence(class_folder: Path) -> None:
    clips = replace(scan(class_folder), info={"licence": "CC0-1.0", "source": "https://example.org"})
    config = replace(FOLDER, data=str(class_folder))
    data = {"name": "sounds", "clips": 12, "licence": "CC0-1.0", "source": "https://example.org"}
    assert data_of(config, clips) == data


def test_licences_are_handed_on() -> None:
    provenance = {"data": {"licence": "CC BY-NC 3.0"}, "init_licence": "Apache-2.0"}
    config = tiny_config(licence="MIT", provenance=provenance)
    assert licences_of(config) == "MIT; CC BY-NC 3.0; Apache-2.0"
    assert licences_of(tiny_config()) == ""


def test_the_cost_is_the_time_of_the_log(tmp_path: Path) -> None:
    lines = [{"step": 1, "seconds": 1.25}, {"step": 2, "seconds": 2.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spent = cost(tmp_path, torch.device("cpu"), 2)
    assert spent["seconds"] == pytest.approx(3.25, abs=0.06)
    assert spent["device"].startswith("2 x ")

"""Every recipe trains a few steps on a small prepared set of its own layout, at Tiny size with one block."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import give_memory_back, noise, tiny_config, undrawn_report
from prepared_set import wav

from patchout.checkpoint import own as checkpoint
from patchout.checkpoint.labels import label_names
from patchout.models.passt import Passt
from patchout.training.recipes import names, recipe
from patchout.training.supervised import run as train
from patchout.training.supervised.config import TrainConfig


class Layout(NamedTuple):
    """What `patchout prepare` makes of a data set: classes, task,
    the splits or folds of six clips, further columns.
    """

    classes: int | str  # a number, or the name of a list
    task: str
    splits: tuple[str, ...]
    column: str = "split"
    more: tuple[str, ...] = ()


LAYOUTS = {
    "audioset": Layout("audioset", "multi_label", ("balanced_train", "unbalanced_train", "eval")),
    "audioset20k": Layout("audioset", "multi_label", ("balanced_train", "eval")),
    "openmic": Layout("openmic2018", "multi_label", ("train", "test"), more=("probabilities", "known")),
    "esc50": Layout("esc50", "multi_class", ("1", "2", "3", "4", "5"), column="fold", more=("group",)),
    "esc10": Layout(10, "multi_class", ("1", "2", "3", "4", "5"), column="fold", more=("group",)),
    "fsd50k": Layout(200, "multi_label", ("train", "val", "eval")),
    "dcase2018": Layout("dcase_scenes", "multi_class", ("train", "test"), more=("group", "device")),
    "dcase2019": Layout("dcase_scenes", "multi_class", ("train", "test"), more=("group", "device")),
    "dcase2020": Layout("dcase_scenes", "multi_class", ("train", "test"), more=("group", "device")),
    "speechcommands": Layout("speechcommands_v2", "multi_class", ("train", "valid", "test"), more=("group",)),
    "folder": Layout(3, "multi_class", ("",)),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one prepared set a data set: four clips of 0.3 s in every split,
    of the classes 0, 1, 0, 1.
    """
    import datasets

    datasets.disable_progress_bars()
    root = tmp_path_factory.mktemp("prepared")
    for name, layout in LAYOUTS.items():
        classes = (
            label_names(layout.classes)
            if isinstance(layout.classes, str)
            else tuple(f"class {index}" for index in range(layout.classes))
        )
        rows = [_row(split, index, layout, len(classes)) for split in layout.splits for index in range(4)]
        kinds: dict[str, Any] = {
            "audio": datasets.Value("binary"),
            "labels": datasets.List(datasets.Value("int32")),
        }
        kinds |= dict.fromkeys(("probabilities", "known"), datasets.List(datasets.Value("float32")))
        features = datasets.Features({key: kinds.get(key, datasets.Value("string")) for key in rows[0]})
        datasets.Dataset.from_list(rows, features=features).save_to_disk(root / name)
        about = {"format": 1, "name": name, "classes": classes, "task": layout.task}
        (root / name / "dataset.json").write_text(json.dumps(about))
    return root


def _row(split: str, index: int, layout: Layout, num_classes: int) -> dict[str, Any]:
    """One clip."""
    label = index % 2
    one_hot = [float(place == label) for place in range(num_classes)]
    known = [float(place < 2) for place in range(num_classes)]
    further = {"group": f"{split} {index}", "device": "ab"[label], "probabilities": one_hot, "known": known}
    row = {"id": f"{split} {index}", "audio": wav(noise(0.3, index)), "labels": [label]}
    return {**row, **({layout.column: split} if split else {}), **{key: further[key] for key in layout.more}}


def small(config: TrainConfig, data: Path, out: Path) -> TrainConfig:
    """The recipe with everything that is large made small; what makes it this recipe stays."""
    stride = (16, 16) if config.init in ("passt-s-s16-ap473", "sounds-tiny") else (10, 10)
    changes: dict[str, Any] = {"init": ""}
    if config.model != "cnn":
        changes |= {"size": "tiny", "depth": 1}
        changes |= {"stride": None if config.model == "maskspec" else config.stride or stride}
    changes |= {"epochs": 2, "batch": 2, "draws": min(config.draws, 6), "swa_start": min(config.swa_start, 2)}
    share = min(1.0, 1.0 / config.clip_s)  # of a clip, and of what Patchout drops of it
    changes |= {"clip_s": config.clip_s * share}
    changes |= {name: int(getattr(config, name) * share) for name in ("patchout_time", "patchout_patches")}
    changes |= {"plateau_epochs": 1, "ramp_epochs": 1, "evaluate_every": min(config.evaluate_every, 1)}
    changes |= {"device": "cpu", "precision": "fp32", "folds": config.folds[:1], "workers": 0}
    return replace(config, data=str(data), out=out, **changes)


@pytest.fixture(autouse=True)
def memory_of_a_recipe() -> Iterator[None]:
    """Given back before the next of so many."""
    yield
    give_memory_back()


def data_of(name: str) -> str:
    """The data set of a recipe."""
    return name.removeprefix("maskspec-").partition("-")[0]


def alike() -> Iterator[list[str]]:
    """Names of recipes that differ only in what is made small here, and so are one training."""
    runs: dict[tuple[str, str], list[str]] = {}
    for name in names():
        made_small = small(recipe(name).config, Path("data"), Path("run"))
        key = data_of(name), repr(replace(made_small, recipe="", distill=made_small.distill and ("teacher",)))
        runs.setdefault(key, []).append(name)
    yield from runs.values()


@pytest.mark.slow
@pytest.mark.parametrize("name", [group[0] for group in alike()], ids=[" ".join(group) for group in alike()])
def test_it_trains(name: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "write_report", undrawn_report)
    config = recipe(name).config
    if config.distill:
        config = replace(config, distill=(str(teacher(tmp_path)),))
    scores = train.run(small(config, prepared / data_of(name), tmp_path / "run"))
    assert set(scores) >= ({"accuracy", "mAP"} if "class" in LAYOUTS[data_of(name)].task else {"mAP", "AUC"})
    run = tmp_path / "run" / ("fold-1" if config.folds else "left" if config.channel == "each" else "")
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert (run / "model.safetensors").exists()
    if config.by:
        assert {"accuracy/device=a", "accuracy/device=b"} <= set(scores)


def teacher(folder: Path) -> Path:
    """A tiny model of AudioSet's classes, in the place of the published ones."""
    labels = label_names("audioset")
    model = Passt(tiny_config(labels=labels, task="multi_label", columns=30, depth=1))
    checkpoint.save(model, folder / "teacher.safetensors")
    return folder / "teacher.safetensors"

"""Background: classes without an output, whose clips are negatives of all others."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import noise, write_wav

from patchout.data.background import as_background, background_classes
from patchout.data.batches import balance_weights
from patchout.data.clips import ClipSet, DataError
from patchout.data.sets import scan
from patchout.models.passt import Passt, PasstConfig
from patchout.training.recipes import recipe
from patchout.training.supervised.config import TrainConfig
from patchout.training.supervised.data_split import choose
from patchout.training.supervised.model_config import begin_at_priors

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Write so many clips of each class."""

    def write(**counts: int) -> Path:
        for number, (label, count) in enumerate(counts.items()):
            for index in range(count):
                write_wav(tmp_path / "set" / label / f"{index}.wav", noise(0.05, 100 * number + index))
        return tmp_path / "set"

    return write


def config(data: Path, **changes: object) -> TrainConfig:
    return TrainConfig(**({"recipe": "any", "data": str(data), "batch": 2} | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["background", "Noise", "none", "_background"])
def test_a_class_of_this_name_has_no_output(name: str, folder: Folder) -> None:
    clips = scan(folder(dog=2, owl=1, **{name: 2}))
    silenced = as_background(clips, background_classes(clips, "auto"))
    assert (silenced.classes, silenced.task, silenced.background) == (("dog", "owl"), "multi_label", (name,))
    targets = dict(zip(map(Path, silenced.names()), silenced.targets().tolist(), strict=True))
    expected = {"dog": [1.0, 0.0], "owl": [0.0, 1.0], name: [0.0, 0.0]}
    assert all(target == expected[path.parent.name] for path, target in targets.items())
    assert silenced.knowns().all()
    assert silenced.notes == ()  # "none" means what it says


def test_any_class_can_be_the_background(folder: Folder) -> None:
    clips = scan(folder(dog=1, traffic=1, noise=1))
    assert background_classes(clips, "Traffic") == ("traffic",)
    assert background_classes(clips, "auto") == ("noise",)
    assert background_classes(clips, "") == ()


def test_the_plan_says_so(folder: Folder) -> None:
    split = choose(config(folder(dog=2, owl=1, noise=3), background="auto"), lambda problem: None)
    assert "3 clips of noise teach every class to be silent, so the task is multi-label" in (
        split.training.origin()
    )


def test_a_class_and_background_are_enough(folder: Folder) -> None:
    data = folder(dog=2, noise=2)
    assert choose(config(data, background="auto"), lambda problem: None).training.classes == ("dog",)


@pytest.mark.parametrize(
    ("counts", "name", "message"),
    [
        ({"noise": 3}, "auto", "background alone .noise.: add the sounds"),
        ({"noise": 1, "none": 1}, "auto", "background alone .noise, none."),
        ({"dog": 1, "owl": 1}, "cat", "no class cat to be the background: it has dog, owl"),
        ({"dog": 2}, "auto", "one class only"),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    counts: dict[str, int], name: str, message: str, folder: Folder
) -> None:
    with pytest.raises(DataError, match=message):
        choose(config(folder(**counts), background=name), lambda problem: None)


def test_background_is_held_out_like_a_class(folder: Folder) -> None:
    split = choose(
        config(folder(dog=10, owl=10, noise=10), hold_out=0.2, background="auto"), lambda text: None
    )
    assert [int(part.is_negative().sum()) for part in (split.training, split.validation)] == [8, 2]


def test_a_clip_that_has_another_class_is_no_negative() -> None:
    lists = [[0], [0, 1], [1]]
    columns = {"id": ["a", "b", "c"], "labels": pa.array(lists, pa.list_(pa.int32()))}
    more = {"probabilities": [[0.9, 0.1], [0.5, 0.5], [0.0, 1.0]], "known": [[1.0, 1.0]] * 2 + [[0.0, 1.0]]}
    clips = ClipSet(Path(), ("noise", "dog"), "multi_label", pa.table(columns | more))
    silenced = as_background(clips, ("noise",))
    assert silenced.is_negative().tolist() == [True, False, False]
    assert silenced.targets().ravel().tolist() == pytest.approx([0.1, 0.5, 1.0])
    assert silenced.knowns().ravel().tolist() == [1.0, 1.0, 1.0]


def test_background_is_drawn_like_a_class(folder: Folder) -> None:
    clips = scan(folder(dog=3, noise=50))
    weights = balance_weights(as_background(clips, ("noise",)))
    assert torch.unique(weights).tolist() == pytest.approx([1000 / 150, 1000 / 103])
    assert balance_weights(replace(as_background(clips, ("noise",)), background=())).min() == 0


def test_own_folders_have_background_and_published_sets_do_not() -> None:
    """AudioSet has a class called Noise."""
    assert recipe("folder").config.background == "auto"
    assert recipe("audioset").config.background == ""


def test_targets_are_split_and_batched_as_silence(folder: Folder) -> None:
    split = choose(config(folder(dog=2, owl=2, noise=2), background="auto"), lambda problem: None)
    targets = np.stack([split.training.target(clip).numpy() for clip in range(6)])
    assert targets.sum(axis=1).tolist() == [1, 1, 0, 0, 1, 1]


def test_a_new_head_begins_at_the_log_odds_of_its_classes() -> None:
    """From zero the first steps only teach that every class is rare."""
    lists = pa.array([[2], [1, 2], [2], [0]], pa.list_(pa.int32()))
    table = pa.table({"id": list("abcd"), "labels": lists})
    clips = ClipSet(Path(), ("bird", "cat", "dog"), "multi_label", table)
    model = Passt(PasstConfig(width=32, heads=2, depth=1, labels=clips.classes, task="multi_label"))
    begin_at_priors(model, clips)
    bias = model.head[-1].bias
    torch.testing.assert_close(bias.sigmoid(), torch.tensor([2 / 6, 2 / 6, 4 / 6]))
    assert recipe("folder").config.head_bias == "prior"
    assert recipe("audioset").config.head_bias == "zero"  # as published

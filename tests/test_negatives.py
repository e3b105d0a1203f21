"""Negative labels: `!dog` is no dog; nothing is known of its other classes."""

from pathlib import Path

import pytest
from conftest import noise, write_wav

from patchout.data.background import as_background, background_classes
from patchout.data.batches import balance_weights
from patchout.data.clips import DataError
from patchout.data.prepare.job import plan, prepare
from patchout.data.sets import scan
from patchout.training.supervised.config import TrainConfig
from patchout.training.supervised.data_split import choose


def write_list(folder: Path, *labels: str) -> Path:
    """A list of sounds a.wav, b.wav ... with these labels."""
    names = [f"{chr(ord('a') + number)}.wav" for number in range(len(labels))]
    for number, name in enumerate(names):
        write_wav(folder / name, noise(0.05, number))
    path = folder / "labels.csv"
    path.write_text(
        "file,labels\n" + "".join(f"{name},{label}\n" for name, label in zip(names, labels, strict=True))
    )
    return path


def test_a_negative_label_is_known_of_its_class_alone(tmp_path: Path) -> None:
    clips = scan(write_list(tmp_path, "cat", "dog;cow", "!cat", "!cat;!cow"))
    assert (clips.classes, clips.task) == (("cat", "cow", "dog"), "multi_label")
    assert clips.targets().tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert clips.knowns().tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert "2 clips are only said not to be of a class" in clips.notes[0]


def test_a_negative_label_beside_a_class_adds_nothing(tmp_path: Path) -> None:
    clips = scan(write_list(tmp_path, "cat", "dog;!cat"))
    assert clips.task == "multi_class"
    assert clips.knowns().all()


@pytest.mark.parametrize("text", ["dog;!dog", "cat;! dog;dog", "!dog;dog;cat"])
def test_labels_that_contradict_each_other_are_refused_by_name(text: str, tmp_path: Path) -> None:
    clips = scan(write_list(tmp_path, "cat", text, "dog"))
    todo = "leave one of them"
    assert clips.problems == (f"labels.csv line 3: b.wav: dog and !dog contradict each other: {todo}",)
    assert len(clips) == 2


def test_classes_that_a_model_adds_are_unknown_of_a_rejected_clip(tmp_path: Path) -> None:
    clips = scan(write_list(tmp_path, "cat", "dog", "!cat"))
    assert clips.knowns(("cat", "dog", "owl")).tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 0]]


def test_what_no_other_clip_is_is_left_out_and_told(tmp_path: Path) -> None:
    clips = scan(write_list(tmp_path, "cat", "dog", "!owl"))
    assert (len(clips), clips.task, "known" in clips.table.column_names) == (2, "multi_class", True)
    assert "1 clips are left out" in clips.notes[0]


def test_negative_labels_alone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="says only what its clips are not: label sounds"):
        scan(write_list(tmp_path, "!cat", "!dog"))


def test_a_prepared_set_keeps_them(tmp_path: Path) -> None:
    source = write_list(tmp_path / "sounds", "cat", "dog", "!cat").parent
    prepare(plan("folder", source, out=tmp_path / "set"), workers=1)
    assert scan(tmp_path / "set").knowns().tolist() == scan(source).knowns().tolist()


def test_a_folder_may_begin_with_the_sign(tmp_path: Path) -> None:
    for name in ("!todo", "cat"):
        write_wav(tmp_path / name / "a.wav", noise(0.05, 0))
    assert scan(tmp_path).classes == ("!todo", "cat")


def test_a_rejected_clip_is_no_background(tmp_path: Path) -> None:
    clips = scan(write_list(tmp_path, "cat", "dog", "background", "!cat"))
    silenced = as_background(clips, background_classes(clips, "auto"))
    assert silenced.knowns().tolist() == [[1, 1], [1, 1], [1, 1], [1, 0]]
    assert "1 clips of background" in silenced.origin()


def test_one_class_and_what_is_not_it_can_be_told_apart(tmp_path: Path) -> None:
    config = TrainConfig(recipe="any", data=str(write_list(tmp_path, "cat", "cat", "!cat")), batch=2)
    split = choose(config, lambda problem: None)
    assert (split.training.classes, split.training.task) == (("cat",), "multi_label")


def test_rejected_clips_are_drawn_like_a_class(tmp_path: Path) -> None:
    weights = balance_weights(scan(write_list(tmp_path, "cat", "dog", "!cat", "!cat")))
    assert weights.tolist() == pytest.approx([1000 / 101, 1000 / 101, 1000 / 102, 1000 / 102])

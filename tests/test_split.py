"""Clips trained on, watched, scored: no clip on two sides, groups whole, every class where it can be."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import noise, tone, write_wav

from patchout.data.sets import DataError, scan
from patchout.training.supervised.config import TrainConfig
from patchout.training.supervised.data_split import Split, choose, hold_out

Rows = list[dict[str, str]]


@pytest.fixture
def table(tmp_path: Path) -> Callable[[Rows], Path]:
    """Write a CSV data set; every row gets a file of its own."""

    def write(rows: Rows) -> Path:
        columns = list(rows[0])
        lines = [",".join(["filename", *columns])]
        for index, row in enumerate(rows):
            write_wav(tmp_path / "set" / f"{index}.wav", noise(0.05, index))
            lines.append(",".join([f"{index}.wav", *(row[column] for column in columns)]))
        (tmp_path / "set" / "list.csv").write_text("\n".join(lines))
        return tmp_path / "set"

    return write


def chosen(data: Path, **changes: object) -> tuple[Split, list[str]]:
    """The split, and what is told but for the size of the classes: here they are all small."""
    problems: list[str] = []
    settings: dict[str, object] = {"recipe": "any", "data": str(data), "batch": 2}
    split = choose(TrainConfig(**(settings | changes)), problems.append)  # type: ignore[arg-type]
    return split, [text for text in problems if not text.startswith(("small class", "`patchout check"))]


def test_validation_test_and_excluded_splits_are_not_trained_on(table: Callable[[Rows], Path]) -> None:
    data = table(
        [{"label": label, "split": split} for split in ("a", "b", "c", "d") for label in ("x", "y", "x")]
    )
    split, problems = chosen(data, split="b", test="c", exclude=("d",))
    assert [set(part.column("fold")) for part in split] == [{"a"}, {"b"}, {"c"}]
    assert [len(part) for part in split] == [3, 3, 3]
    assert problems == []


def test_a_share_of_every_class_is_held_out(table: Callable[[Rows], Path]) -> None:
    data = table([{"label": label} for label in ("x",) * 20 + ("y",) * 10])
    split, _ = chosen(data, hold_out=0.2)
    assert split.validation.class_counts().tolist() == [4, 2]
    assert split.training.class_counts().tolist() == [16, 8]
    assert not set(split.training.names()) & set(split.validation.names())


def test_the_same_clips_are_held_out_whatever_the_seed(table: Callable[[Rows], Path]) -> None:
    data = table([{"label": label} for label in ("x",) * 9 + ("y",) * 9])
    first, second = (chosen(data, hold_out=0.3, seed=seed)[0].validation.names() for seed in (0, 1))
    assert first == second


def test_groups_stay_whole(table: Callable[[Rows], Path]) -> None:
    rows = [
        {"label": label, "group": f"{label}{take}"}
        for label in ("x", "y")
        for take in range(5)
        for _ in range(3)
    ]
    split, problems = chosen(table(rows), hold_out=0.2)
    assert not set(split.training.column("group")) & set(split.validation.column("group"))
    assert split.validation.class_counts().tolist() == [3, 3]  # one group of three a class
    assert problems == []


def test_a_class_with_two_groups_has_one_on_either_side(table: Callable[[Rows], Path]) -> None:
    rows = [{"label": "x", "group": f"x{index}"} for index in range(10)]
    rows += [{"label": "y", "group": group} for group in ("y0", "y0", "y0", "y1", "y1", "y1")]
    held = hold_out(scan(table(rows)), 0.1)
    assert sorted(np.array([row["group"] for row in rows])[held])[-3:] in (["y0"] * 3, ["y1"] * 3)


def test_a_class_of_one_clip_is_trained_on(table: Callable[[Rows], Path]) -> None:
    split, _ = chosen(table([{"label": label} for label in ("x",) * 5 + ("y",)]), hold_out=0.4)
    assert split.training.class_counts().tolist() == [3, 1]


def test_a_class_missing_on_one_side_is_reported(table: Callable[[Rows], Path]) -> None:
    rows = [{"label": "x", "split": "a"}, {"label": "y", "split": "a"}, {"label": "x", "split": "b"}]
    rows += [{"label": "z", "split": "b"}]
    _, problems = chosen(table(rows), split="b")
    assert problems[0].startswith("missing in a split: 2 (y (none in validation), z (none in training))")


def test_a_recording_on_both_sides_is_reported(table: Callable[[Rows], Path]) -> None:
    rows = [{"label": label, "split": split, "group": "r1"} for label in ("x", "y") for split in ("a", "b")]
    _, problems = chosen(table(rows), split="b")
    assert problems[0].startswith("recording across splits: 1 (")
    assert problems[0].endswith("): the scores will be too good")


def test_the_command_that_looks_deeper_is_named(table: Callable[[Rows], Path]) -> None:
    told: list[str] = []
    data = table([{"label": label} for label in ("x", "x", "y")])
    choose(TrainConfig(recipe="any", data=str(data), batch=2), told.append)
    assert told[0] == "small class: 2 (x (2 clips), y (1 clips)): scores of them mean little"
    assert told[1] == f"`patchout check {data}` looks deeper"


def test_one_class_only_is_refused(tmp_path: Path) -> None:
    for index in range(3):
        write_wav(tmp_path / "set" / "bell" / f"{index}.wav", tone(0.1))
    with pytest.raises(DataError, match="one class only"):
        chosen(tmp_path / "set")


def test_a_batch_larger_than_the_data_is_refused(table: Callable[[Rows], Path]) -> None:
    data = table([{"label": label} for label in ("x", "y", "x")])
    with pytest.raises(DataError, match="a batch of 4 is larger than the 3 clips"):
        chosen(data, batch=4)


def test_a_split_that_does_not_exist_is_refused(table: Callable[[Rows], Path]) -> None:
    data = table([{"label": label, "split": "a"} for label in ("x", "y", "x")])
    with pytest.raises(DataError, match="no split or fold b"):
        chosen(data, split="b")


def test_segments_of_one_file_on_both_sides_are_reported(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(1.0))
    write_wav(tmp_path / "b.wav", tone(1.0))
    rows = [f"{name},{label},{start},{start + 1},{split}" for name, label in (("a.wav", "x"), ("b.wav", "y"))
            for start, split in ((0, "train"), (1, "train"), (2, "valid"))]  # fmt: skip
    text = "\n".join(["file,label,start,end,split", *rows]).replace("a.wav,x,2", "./a.wav,x,2")
    (tmp_path / "list.csv").write_text(text)
    _, problems = chosen(tmp_path / "list.csv", split="valid")
    names = f"{tmp_path}/a.wav, {tmp_path}/b.wav"
    assert problems[0] == f"recording across splits: 2 ({names}): the scores will be too good"


def test_a_file_is_held_out_whole_whatever_its_groups(tmp_path: Path) -> None:
    for name in "abcdef":
        write_wav(tmp_path / f"{name}.wav", tone(0.1))
    rows = [
        f"{name}.wav,{label},{start},{name}{start % 2}"
        for start in range(4)
        for name, label in zip("abcdef", "xyxyxy", strict=True)
    ]
    (tmp_path / "list.csv").write_text("\n".join(["file,label,start,group", *rows]))
    clips = scan(tmp_path / "list.csv")
    held = hold_out(clips, 0.3)
    assert held.any()
    assert not {*clips.take(np.flatnonzero(held)).files()} & {*clips.take(np.flatnonzero(~held)).files()}


@pytest.mark.parametrize(
    ("names", "watched", "scored"),
    [
        (("train", "test"), (), ("test",)),
        (("training", "val", "evaluation"), ("val",), ("evaluation",)),
        (("train", "dev", "eval"), ("dev",), ("eval",)),
        (("dev", "eval"), (), ("eval",)),  # a development set is trained on
        (("Train", "Valid"), ("Valid",), ()),
        (("1", "2", "3"), (), ()),
        (("test",), (), ()),
    ],
)
def test_splits_are_what_they_are_called(
    names: Sequence[str], watched: Sequence[str], scored: Sequence[str], table: Callable[[Rows], Path]
) -> None:
    data = table([{"label": label, "split": split} for split in names for label in ("x", "y", "x")])
    split, problems = chosen(data)
    assert {*split.validation.column("fold").tolist()} == {*watched}
    assert {*split.test.column("fold").tolist()} == {*scored}
    assert {*split.training.column("fold").tolist()} == {*names} - {*watched} - {*scored}
    assert len(problems) == len([*watched, *scored])


@pytest.mark.parametrize(
    ("names", "notes"),
    [
        (("train", "dev", "eval", "tset", "Evl", "holdout"), ["splits Evl, holdout, tset are trained on"]),
        (("a", "b"), ["splits a, b are trained on"]),
        (("training", "more"), ["split more is trained on"]),
        (("balanced_train", "unbalanced_train", "eval"), []),
        (("train", "1", "fold 2"), []),
        (("train", "dev", ""), ["clips that name no split are trained on: 3"]),
        (("all",), []),
        (("test", "val"), ["splits test, val are trained on"]),  # else nothing would be
    ],
)
def test_other_splits_that_are_trained_on_are_told(
    names: Sequence[str], notes: Sequence[str], table: Callable[[Rows], Path]
) -> None:
    data = table([{"label": label, "split": split} for split in names for label in ("x", "y", "x")])
    lines = [text for text in chosen(data)[1] if "is not trained on" not in text]
    assert len(lines) == len(notes)
    assert all(line.startswith(f"{note}: ") for line, note in zip(lines, notes, strict=True))


def test_folds_are_all_trained_on_without_a_word(table: Callable[[Rows], Path]) -> None:
    data = table([{"label": label, "fold": fold} for fold in ("A", "B", "") for label in ("x", "y", "x")])
    assert chosen(data)[1] == []


def test_a_flag_chooses_other_splits(table: Callable[[Rows], Path]) -> None:
    data = table(
        [{"label": label, "split": split} for split in ("train", "test") for label in ("x", "y", "x")]
    )
    split, problems = chosen(data, exclude=("test",))
    assert (len(split.training), len(split.test), problems) == (3, 0, [])


def test_a_flag_that_makes_the_other_splits_training_says_so(table: Callable[[Rows], Path]) -> None:
    names = ("train", "dev", "test", "more")
    data = table([{"label": label, "split": split} for split in names for label in ("x", "y", "x")])
    assert chosen(data, exclude=("more",))[1][0].startswith("splits dev, test are trained on: --split or")
    assert chosen(data, exclude=("more",), split="dev", test="test")[1] == []

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tone, write_wav
from datasets import Audio, ClassLabel, List, Value
from prepared_set import wav

from patchout.data.sets import ClipSet, DataError, scan

Rows = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder owner/name stands in for the set of that name,
    and what `datasets` makes of it stays in the test.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def hub_set(features: dict[str, Any], **splits: Rows) -> None:
    """Put a set of these splits where `datasets` finds it as owner/name."""
    for split, rows in splits.items():
        path = Path("owner/name") / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=datasets.Features(features).arrow_schema), path)


def sound(hz: float) -> dict[str, Any]:
    return {"bytes": wav(tone(0.02, hz)), "path": "made.wav"}


def labels(clips: ClipSet) -> list[list[str]]:
    return [clips.labels(clip) for clip in range(len(clips))]


CLASSES = {"audio": Audio(), "label": ClassLabel(names=["dog", "cat", "owl"]), "speaker": Value("string")}


def two_splits() -> None:
    train = [{"audio": sound(100.0 * hz), "label": hz % 3, "speaker": f"s{hz}"} for hz in range(1, 5)]
    hub_set(CLASSES, train=train, test=[{"audio": sound(900.0), "label": 1, "speaker": "s9"}])


def test_the_classes_of_a_set_and_their_order_are_its_own() -> None:
    two_splits()
    clips = scan("hf://owner/name")
    assert (clips.classes, clips.task) == (("dog", "cat", "owl"), "multi_class")
    assert labels(clips) == [["cat"], ["owl"], ["dog"], ["cat"], ["cat"]]
    assert str(clips.root) == "owner/name"


def test_the_splits_are_folds_and_every_clip_has_its_own_sound() -> None:
    two_splits()
    clips = scan("hf://owner/name")
    assert clips.column("fold").tolist() == ["train"] * 4 + ["test"]
    assert clips.column("speaker").tolist() == ["s1", "s2", "s3", "s4", "s9"]
    for clip, hz in enumerate((100.0, 200.0, 300.0, 400.0, 900.0)):
        assert clips.wave(clip, 32_000).numpy() == pytest.approx(tone(0.02, hz), abs=1 / 32_768)


def test_one_split_can_be_asked_for() -> None:
    two_splits()
    clips = scan("hf://owner/name:test")
    assert labels(clips) == [["cat"]]
    assert clips.wave(0, 32_000).numpy() == pytest.approx(tone(0.02, 900.0), abs=1 / 32_768)
    with pytest.raises(DataError, match="no split dev: it has train, test"):
        scan("hf://owner/name:dev")


def test_a_set_of_one_split_may_have_folds_of_its_own() -> None:
    features = {
        "audio": Audio(),
        "category": Value("string"),
        "fold": Value("int64"),
        "filename": Value("string"),
    }
    rows = [
        {"audio": sound(100.0), "category": "dog", "fold": fold, "filename": f"{fold}.wav"} for fold in (1, 2)
    ]
    hub_set(features, train=rows)
    clips = scan("hf://owner/name")
    assert clips.column("fold").tolist() == ["1", "2"]
    assert clips.names() == ["1.wav", "2.wav"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (List(ClassLabel(names=["owl", "cat", "dog"])), [[2], [1, 0]], [["dog"], ["cat", "owl"]]),
        (List(Value("string")), [["dog"], ["cat", "owl"]], [["dog"], ["cat", "owl"]]),
        (Value("string"), ["dog", "cat"], [["dog"], ["cat"]]),
        (Value("int32"), [7, 3], [["7"], ["3"]]),
    ],
)
def test_labels_are_classes_names_or_numbers(kind: Any, given: list[Any], expected: list[list[str]]) -> None:
    hub_set(
        {"audio": Audio(), "labels": kind},
        train=[{"audio": sound(100.0), "labels": label} for label in given],
    )
    clips = scan("hf://owner/name")
    assert labels(clips) == expected
    assert clips.task == ("multi_label" if isinstance(given[0], list) else "multi_class")


@pytest.mark.parametrize(("kind", "none"), [(ClassLabel(names=["cat", "dog"]), -1), (Value("string"), None)])
def test_clips_without_a_label_are_counted_and_left_out(kind: Any, none: object) -> None:
    given = [none, 1, none] if none else [none, "dog", none]
    rows = [{"audio": sound(100.0 * (index + 1)), "label": label} for index, label in enumerate(given)]
    hub_set({"audio": Audio(), "label": kind}, test=rows)
    clips = scan("hf://owner/name")
    assert clips.problems == ("2 clips have no label",)
    assert labels(clips) == [["dog"]]
    assert clips.wave(0, 32_000).numpy() == pytest.approx(tone(0.02, 200.0), abs=1 / 32_768)


def test_sounds_may_lie_in_files(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "far.wav", tone(0.02))
    hub_set(CLASSES, train=[{"audio": {"bytes": None, "path": str(path)}, "label": 0, "speaker": None}])
    clips = scan("hf://owner/name")
    assert clips.wave(0, 32_000).numpy() == pytest.approx(tone(0.02), abs=1 / 32_768)
    assert clips.column("speaker").tolist() == [""]


def test_a_set_without_sounds_or_labels_lists_its_columns() -> None:
    hub_set({"text": Value("string"), "label": ClassLabel(names=["a"])}, train=[{"text": "x", "label": 0}])
    with pytest.raises(DataError, match=r"needs a column of sounds, .*its columns are text, label"):
        scan("hf://owner/name")


def test_a_set_that_cannot_be_had_is_one_sentence() -> None:
    with pytest.raises(DataError, match=r"hf://nobody/nothing: cannot be loaded from the hub \("):
        scan("hf://nobody/nothing")


GENDER = {"audio": Audio(), "gender": ClassLabel(names=["f", "m"])}


def test_a_column_called_label_wins_over_other_classes() -> None:
    hub_set(
        GENDER | {"label": ClassLabel(names=["dog", "cat"])},
        train=[{"audio": sound(100.0), "gender": 0, "label": 1}],
    )
    assert scan("hf://owner/name").classes == ("dog", "cat")


def test_several_columns_of_classes_are_refused() -> None:
    hub_set(
        GENDER | {"breed": ClassLabel(names=["a"])}, train=[{"audio": sound(100.0), "gender": 0, "breed": 0}]
    )
    with pytest.raises(DataError, match=r"\(2 of classes: gender, breed: rename one of them to label\)"):
        scan("hf://owner/name")


def test_segments_and_several_labels_are_read_as_in_lists() -> None:
    kinds = {"labels": Value("string"), "onset": Value("float64"), "offset": Value("float64")}
    rows = [
        {"labels": text, "onset": start, "offset": 0.02}
        for text, start in (("dog;cat", 0.01), ("cow", 0.03), ("", 0.0))
    ]
    hub_set({"audio": Audio()} | kinds, train=[{"audio": sound(100.0)} | row for row in rows])
    clips = scan("hf://owner/name")
    assert labels(clips) == [["dog", "cat"]]
    assert len(clips.wave(0, 32_000)) == 320
    assert clips.problems == (
        "row 2: its sound cannot start at 0.03 s and end at 0.02 s",
        "1 clips have no label",
    )


def test_a_set_of_sound_files_is_its_folder() -> None:
    for split in ("train", "test"):
        write_wav(Path("owner/name") / split / "a.wav", tone(0.02))
        (Path("owner/name") / split / "metadata.csv").write_text("file_name,label\na.wav,dog\n")
    assert scan("hf://owner/name").names() == ["owner/name/test/a.wav", "owner/name/train/a.wav"]
    assert scan("hf://owner/name:test").column("fold").tolist() == ["test"]

"""Labels of the page: the list that they are kept in, several writers, edits by hand, kills."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tone, write_wav

from patchout.data.sets import scan
from patchout.errors import InputError
from patchout.web.labels import ConflictError, Labels, LabelsError, segment

pytest.importorskip("starlette", reason="the extra web")


def add(store: Labels, file: str, *labels: str, start_s: float = 0.0, end_s: float | None = None) -> None:
    store.change(None, segment(file, start_s, end_s, labels), by="ann")


def test_labels_are_a_list_that_training_reads(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_wav(tmp_path / f"{name}.wav", tone(1.0))
    store = Labels(tmp_path)
    add(store, "a.wav", "dog", "wind, strong")
    add(store, "b.wav", "rain", start_s=0.25, end_s=0.75)
    clips = scan(tmp_path / "labels.csv")
    assert clips.problems == clips.notes == ()
    assert [clips.labels(index) for index in range(2)] == [["dog", "wind, strong"], ["rain"]]
    assert clips.table["start_s"].to_pylist() == [0.0, 0.25]
    assert clips.table["end_s"].to_pylist() == [None, 0.75]


def test_a_row_says_who_and_when(tmp_path: Path) -> None:
    add(Labels(tmp_path), "a.wav", "dog")
    (row,) = Labels(tmp_path).segments()
    assert (row.by, row.when[:2]) == ("ann", "20")


def test_changing_a_segment_moves_its_row(tmp_path: Path) -> None:
    store = Labels(tmp_path)
    add(store, "a.wav", "dog", start_s=1.0, end_s=2.0)
    (row,) = store.segments()
    store.change(row, segment("a.wav", 1.5, 2.0, ["cat"]), by="bob")
    assert [(*row.key, row.labels, row.by) for row in store.of("a.wav")] == [
        ("a.wav", 1.5, 2.0, ("cat",), "bob")
    ]


def test_what_another_page_has_changed_is_not_overwritten(tmp_path: Path) -> None:
    first, second = Labels(tmp_path), Labels(tmp_path)
    add(first, "a.wav", "dog")
    (row,) = second.segments()
    first.change(row, segment("a.wav", 0.0, None, ["cat"]), by="ann")
    with pytest.raises(ConflictError, match="changed in the meantime, this segment is cat by ann"):
        second.change(row, segment("a.wav", 0.0, None, ["cow"]), by="bob")
    with pytest.raises(ConflictError):
        add(second, "a.wav", "cow")
    assert [row.labels for row in second.segments()] == [("cat",)]


def test_two_pages_that_label_different_sounds_lose_nothing(tmp_path: Path) -> None:
    first, second = Labels(tmp_path), Labels(tmp_path)
    for number in range(5):
        add(first, f"a{number}.wav", "dog")
        add(second, f"b{number}.wav", "cat")
    assert len(Labels(tmp_path).segments()) == 10


def test_edits_by_hand_are_read_and_their_columns_stay(tmp_path: Path) -> None:
    store = Labels(tmp_path)
    add(store, "a.wav", "dog")
    (tmp_path / "labels.csv").write_text("File;Label;note\nb.wav;cow;at night\n")
    assert [row.labels for row in store.segments()] == [("cow",)]
    add(store, "c.wav", "dog")
    text = (tmp_path / "labels.csv").read_text().splitlines()
    assert text[0].startswith("File,Label,note")
    assert text[1].startswith("b.wav,cow,at night")
    assert len(text) == 3


@pytest.mark.parametrize("labels", [["rain", "hail"], ["wind, strong"], ["rain"]])
def test_rows_that_commas_separate_keep_their_labels(labels: list[str], tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text('file,labels\na.wav,"dog,cat"\n')
    add(Labels(tmp_path), "b.wav", *labels)
    assert [row.labels for row in Labels(tmp_path).segments()] == [("dog", "cat"), tuple(labels)]


def test_a_comma_stays_in_a_label_when_the_last_row_with_a_semicolon_goes(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text('file,labels\na.wav,"wind, strong"\nb.wav,rain;hail\n')
    store = Labels(tmp_path)
    store.change(store.of("b.wav")[0], None, by="ann")
    assert [row.labels for row in Labels(tmp_path).segments()] == [("wind, strong",)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("file,labels\na.wav,dog\nb.wav\n", "line 3: a row needs a file and a label"),
        ("file,start,labels\na.wav,soon,dog\n", "line 2: the start 'soon' is no number"),
        ("file,labels\na.wav,dog\na.wav,cat\n", "line 3: a segment that was there before"),
        ("name,what\na,b\n", "needs the columns file and labels"),
        ("", "needs the columns"),
    ],
)
def test_a_broken_list_is_named_by_its_line_and_stays_as_it_is(
    text: str, problem: str, tmp_path: Path
) -> None:
    path, store = tmp_path / "labels.csv", Labels(tmp_path)
    add(store, "z.wav", "dog")
    path.write_text(text)
    with pytest.raises(LabelsError, match=problem):
        store.segments()
    with pytest.raises(LabelsError, match="nothing is written"):
        add(store, "c.wav", "dog")
    assert path.read_text() == text


@pytest.mark.parametrize("label", ["", " ", "a;b", "two\nlines", "x" * 101])
def test_labels_that_a_list_cannot_hold_are_refused(label: str) -> None:
    with pytest.raises(InputError, match="without a semicolon"):
        segment("a.wav", 0.0, None, [label])


@pytest.mark.parametrize("labels", [["!"], ["!dog", "dog"]])
def test_a_class_is_rejected_by_its_name_and_not_labelled_too(labels: list[str]) -> None:
    with pytest.raises(InputError, match="! stands before a class that the sound is not"):
        segment("a.wav", 0.0, None, labels)


def test_a_segment_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(InputError, match="cannot start at 2 s and end at 1 s"):
        segment("a.wav", 2.0, 1.0, ["dog"])


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
from patchout.web.labels import Labels, segment
folder, kills, number, lost = Path(sys.argv[1]), int(sys.argv[2]), 0, 0
random.seed(0)
for kill in range(kills):
    reader, writer = os.pipe()
    if not (child := os.fork()):
        store = Labels(folder)
        while True:
            number += 1
            store.change(None, segment(f"{kill}-{number}.wav", 0.0, None, ["dog"]), by="ann")
            os.write(writer, f"{kill}-{number}.wav\\n".encode())
    os.close(writer)
    acknowledged = os.read(reader, 65536)
    time.sleep(random.uniform(0.0, 0.03))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while piece := os.read(reader, 65536):
        acknowledged += piece
    os.close(reader)
    files = {row.file for row in Labels(folder).segments()}
    lost += len(set(acknowledged.decode().split()) - files)
Labels(folder).remove_halves()
print(lost, len(Labels(folder).segments()) >= kills, *os.listdir(folder))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="kills forked processes")
def test_a_killed_server_loses_no_label_that_it_has_confirmed(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", KILLS, str(tmp_path), "50"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lost, is_written, *names = done.stdout.split()
    assert (lost, is_written) == ("0", "True")
    assert sorted(names) == [".labels.csv.lock", "labels.csv"]

"""Sources of a bulk job: files, folders, patterns, lists."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import tone, write_wav

from patchout.data.items import Item, find_files, items_hash, read_items
from patchout.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two sounds, one of them in a sub-folder, and a text."""
    write_wav(tmp_path / "b.wav", tone(0.1))
    write_wav(tmp_path / "a" / "c.wav", tone(0.1))
    (tmp_path / "notes.txt").write_text("no sound")
    return tmp_path


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_folder_gives_its_sounds_in_order(folder: Path) -> None:
    assert list(read_items([str(folder)])) == [Item(str(folder / "b.wav")), Item(str(folder / "a" / "c.wav"))]


def test_a_pattern_gives_its_matches(folder: Path) -> None:
    assert list(read_items([f"{folder}/*.wav"])) == [Item(str(folder / "b.wav"))]


def test_sources_keep_their_order_and_duplicates(folder: Path) -> None:
    names = [str(folder / "b.wav"), str(folder / "a" / "c.wav"), str(folder / "b.wav")]
    assert [item.file for item in read_items(names)] == names


def test_a_pattern_and_a_list_may_name_an_audio_stream(folder: Path) -> None:
    table = write(folder / "list.csv", "file\nc.wav#a:1\n")
    (folder / "a").rename(folder / "audio")
    assert read_items([f"{folder}/*.wav#a:1", table]) == [
        Item(f"{folder / 'b.wav'}#a:1"),
        Item(f"{folder / 'audio' / 'c.wav'}#a:1"),
    ]


def test_a_file_that_is_missing_stays_an_item() -> None:
    assert list(read_items(["gone.wav"])) == [Item("gone.wav")]


@pytest.mark.parametrize("column", ["file", "filename", "path"])
def test_a_csv_lists_files_and_segments(folder: Path, column: str) -> None:
    table = write(folder / "list.csv", f"{column},start,end\nb.wav,0.5,2\nb.wav,,\n")
    assert list(read_items([table])) == [Item(str(folder / "b.wav"), 0.5, 2.0), Item(str(folder / "b.wav"))]


def test_the_files_of_a_list_may_lie_in_audio_beside_it(tmp_path: Path) -> None:
    write_wav(tmp_path / "audio" / "a.wav", tone(0.1))
    table = write(tmp_path / "list.csv", "filename\na.wav\ngone.wav\n")
    assert [item.file for item in read_items([table])] == [
        str(tmp_path / "audio" / name) for name in ("a.wav", "gone.wav")
    ]


def test_a_parquet_lists_files_and_segments(folder: Path) -> None:
    path = folder / "list.parquet"
    pq.write_table(pa.table({"path": ["b.wav", "b.wav"], "start": [0.5, None], "end": [None, 2.0]}), path)
    assert list(read_items([str(path)])) == [
        Item(str(folder / "b.wav"), 0.5),
        Item(str(folder / "b.wav"), 0.0, 2.0),
    ]


def test_a_column_without_a_name_says_no_times(tmp_path: Path) -> None:
    """As pandas writes its index."""
    table = write(tmp_path / "list.csv", ",file\n3,a.wav\n")
    assert list(read_items([table])) == [Item(str(tmp_path / "a.wav"))]


def test_rows_that_make_no_sense_stay_rows(tmp_path: Path) -> None:
    table = write(tmp_path / "list.csv", "file,start\na.wav,soon\n,1\n")
    first, second = read_items([table])
    assert (first.start_s != first.start_s, second.file) == (True, "")  # NaN


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("list.csv", "label\ndog\n", "needs a column filename, file, path, .*; its header is label"),
        ("list.csv", "file\n", "a list without rows"),
        ("list.csv", "", "its header is empty"),
        ("list.parquet", "PAR", "cannot be read as a table"),
    ],
)
def test_a_list_without_files_is_refused(tmp_path: Path, name: str, text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read_items([write(tmp_path / name, text)])


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"file\n\xff\xfe.wav\n")
    with pytest.raises(InputError, match=r"list\.csv: cannot be read as a table"):
        read_items([str(tmp_path / "list.csv")])


@pytest.mark.parametrize(
    ("source", "reason"), [("nothing", "a folder without sound files"), ("*.ogg", "no file matches")]
)
def test_a_source_that_leads_to_nothing_is_refused(tmp_path: Path, source: str, reason: str) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=reason):
        list(find_files(str(tmp_path / source)))
    with pytest.raises(InputError, match=reason):
        read_items([str(tmp_path / source)])


def test_a_pattern_matches_files_alone(folder: Path) -> None:
    assert list(find_files(f"{folder}/*")) == [str(folder / "b.wav"), str(folder / "notes.txt")]


@pytest.mark.parametrize("other", [Item("b"), Item("a", 1.0), Item("a", 0.0, 1.0)])
def test_the_hash_depends_on_everything(other: Item) -> None:
    assert items_hash([Item("a")]) == items_hash((Item("a"),))
    assert items_hash([Item("a")]) != items_hash([other])

"""Lists of sounds in the dialects that people have, folders as labels and splits:
what every reader makes of them.
"""

import csv
import io
import json
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patchout.data.columns import columns_of
from patchout.data.folders import is_sound, walk
from patchout.data.items import Item, find_files, read_items
from patchout.data.sets import ClipSet, DataError, scan, scan_sounds
from patchout.errors import InputError

Segment = tuple[str, float, float | None]
Form = Literal["NFC", "NFD"]


def table(root: Path, text: str, *files: str, name: str = "meta.csv") -> Path:
    """A list with this text, and empty files for its sounds."""
    for file in (name, *files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def labels(clips: ClipSet) -> list[list[str]]:
    return [clips.labels(clip) for clip in range(len(clips))]


def segments(clips: ClipSet) -> list[Segment]:
    """File, start and end of every clip."""
    spans = (clips.table[name].to_pylist() for name in ("start_s", "end_s"))
    return [(os.path.normpath(name), *span) for name, *span in zip(clips.names(), *spans, strict=True)]


# -- columns -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        "start,end",
        "start_s,end_s",
        "start_time,end_time",
        "onset,offset",
        "Begin Time (s),End Time (s)",
        " Start , END",
        "startTime,stopTime",
        "start,Duration",
    ],
)
def test_the_times_of_a_segment_have_many_names(header: str, tmp_path: Path) -> None:
    path = table(tmp_path, f"filename,label,{header}\na.wav,dog,1,2\n", "a.wav")
    end_s = 3.0 if "Duration" in header else 2.0
    assert segments(scan(path)) == segments(scan_sounds(path)) == [(str(tmp_path / "a.wav"), 1.0, end_s)]
    assert read_items([str(path)]) == [Item(str(tmp_path / "a.wav"), 1.0, end_s)]


@pytest.mark.parametrize("column", ["offset", "weight", "Weight (kg)", "start_ms", "time"])
def test_a_column_that_looks_like_a_time_or_a_weight_and_is_none_is_told(column: str, tmp_path: Path) -> None:
    path = table(tmp_path, f"file,label,{column}\na.wav,dog,1\n", "a.wav")
    notes: list[str] = []
    assert read_items([str(path)], on_note=notes.append) == [Item(str(tmp_path / "a.wav"))]
    assert scan(path).notes == scan_sounds(path).notes == tuple(notes)
    assert f"meta.csv: columns that are not used: {column}" in notes[0]
    assert scan(path).weight(0) == 1.0


def test_the_columns_that_are_read_are_named(tmp_path: Path) -> None:
    text = (
        "File_Name,label,onset,group,split,loss_weight,note\na.wav,dog,1,x,train,2,y\nb.wav,cat,1,x,test,,y\n"
    )
    clips = scan(table(tmp_path, text, "a.wav", "b.wav"))
    assert clips.origin() == (
        "file from File_Name, label from label, start from onset, split from split, group from group, "
        "loss_weight from loss_weight; classes: cat to dog (2)"
    )
    assert [clips.weight(clip) for clip in range(2)] == [2.0, 1.0]


@pytest.mark.parametrize("weight", ["-1", "nan", "inf", "12 kg"])
def test_a_weight_that_is_none_is_named_with_its_row(weight: str, tmp_path: Path) -> None:
    path = table(tmp_path, f"file,label,loss_weight\na.wav,dog,{weight}\nb.wav,cat,0\n", "a.wav", "b.wav")
    clips = scan(path)
    assert clips.problems == (f"meta.csv line 2: loss_weight '{weight}' is not a number from 0 upward",)
    assert (labels(clips), clips.weight(0)) == ([["cat"]], 0.0)


def test_a_column_that_stands_there_twice_is_refused() -> None:
    with pytest.raises(DataError, match="the columns label, Label say the same: leave one"):
        columns_of(["file", "label", "Label"])


def test_the_list_with_such_a_column_is_named(tmp_path: Path) -> None:
    path = table(tmp_path, "file,label,File\na.wav,dog,a.wav\n", "a.wav")
    for read in (scan, lambda path: read_items([str(path)])):
        with pytest.raises(DataError, match=r"meta\.csv: the columns file, File say the same: leave one"):
            read(path)


# -- dialects ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "file;label;start\na.wav;dog;0,5\n",
        "file\tlabel\tstart\na.wav\tdog\t0.5\n",
        "# made by hand\n\n file , Label,start\na.wav, dog ,0.5",
        "sep=;\nfile;label;start\n./a.wav;dog;0.5\n",
        'file, label, start\n"a.wav", "dog", "0.5"\n',
        "\ufefffile,label,start\r\na.wav,dog,0.5\r\n",
    ],
)
def test_separators_blanks_and_comments_make_no_difference(text: str, tmp_path: Path) -> None:
    clips = scan(table(tmp_path, text, "a.wav", name="list.tsv"))
    assert (segments(clips), labels(clips)) == ([(str(tmp_path / "a.wav"), 0.5, None)], [["dog"]])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('file,label,note\na.wav,dog,"near the house\nb.wav,dog,x\nc.wav,dog,y\n', 2),
        ('file,label,note\na.wav,dog,x\nb.wav,"dog,x\nc.wav,"dog,y\n', 3),
        ('file,label,note\na.wav,dog,"x\nb.wav,dog,y"\nc.wav,dog,z\n', 2),
        ('file,label\na.wav,dog\nb.wav,"dog', 3),
    ],
)
def test_a_quote_that_swallows_rows_is_an_error_with_its_line(text: str, line: int, tmp_path: Path) -> None:
    path = table(tmp_path, text, "a.wav", "b.wav", "c.wav")
    for read in (scan, scan_sounds, lambda path: read_items([str(path)])):
        with pytest.raises(InputError, match=rf"meta\.csv line {line}: a quote is opened here"):
            read(path)


def test_a_quoted_text_of_several_lines_is_a_cell(tmp_path: Path) -> None:
    clips = scan(
        table(tmp_path, 'file,label,note\na.wav,dog,"one, two,\nthree, 4"\nb.wav,cat,\n', "a.wav", "b.wav")
    )
    assert labels(clips) == [["dog"], ["cat"]]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            '{"file": "a.wav", "label": "dog", "start": [1]}',
            "the start '[1]' is no number: write seconds, or",
        ),
        (
            '{"file": "a.wav", "label": "dog", "start": 1, "end": NaN}',
            "a.wav cannot start at 1 s and end at nan s",
        ),
        ('{"file": "a.wav", "label": "dog", "loss_weight": NaN}', "loss_weight nan is not"),
        ('{"file": "a.wav", "label": NaN}', "no label for a.wav"),
        ('{"file": ["a.wav"], "label": "dog"}', "no file"),
        ('{"file": "a\\u0000.wav", "label": "dog"}', "embedded null"),
        ("[7]", "is not an object"),
    ],
)
def test_an_odd_first_row_ends_nothing(row: str, reason: str, tmp_path: Path) -> None:
    clips = scan(
        table(tmp_path, f'{row}\n{{"file": "b.wav", "label": "cat"}}\n', "a.wav", "b.wav", name="list.jsonl")
    )
    assert (len(clips), len(clips.problems)) == (1, 1)
    assert clips.problems[0].startswith(f"list.jsonl line 1: {reason}")


def test_a_locked_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, stat = table(tmp_path, "file,label\na.wav,dog\nlocked/b.wav,dog\n", "a.wav"), Path.stat

    def locked(self: Path, **options: bool) -> os.stat_result:
        if "locked" in self.parts:
            raise PermissionError(13, "Permission denied", str(self))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", locked)
    assert scan(path).problems == ("meta.csv line 3: locked/b.wav: Permission denied",)
    assert [item.file for item in read_items([str(path)])] == [
        str(tmp_path / "a.wav"),
        str(tmp_path / "locked/b.wav"),
    ]


@pytest.mark.parametrize(("on_disk", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_are_compared_composed(on_disk: Form, written: Form, tmp_path: Path) -> None:
    file, other = (unicodedata.normalize(form, "Vögel/é.wav") for form in (on_disk, written))
    text = f"file,label\n{other},{Path(other).parent}\nb.wav,{Path(file).parent}\n"
    path = table(tmp_path, text, file, "b.wav")
    assert read_items([str(path)])[0].file == scan(path).names()[0] == str(tmp_path / file)
    assert scan(path).classes == ("Vögel",)


@pytest.mark.parametrize("name", [r"sub\a.wav", "~/sub/a.wav", "./sub/a.wav"])
def test_a_file_may_be_written_in_other_ways(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = table(tmp_path, f"file,label\n{name},dog\n", "sub/a.wav")
    assert (
        scan(path).files() == [item.file for item in read_items([str(path)])] == [str(tmp_path / "sub/a.wav")]
    )


def test_a_text_names_a_file_a_line(tmp_path: Path) -> None:
    path = table(tmp_path, "# mine\na b.wav\n\nc.wav\n", "audio/a b.wav", "audio/c.wav", name="list.txt")
    assert [item.file for item in read_items([str(path)])] == [
        str(tmp_path / "audio" / name) for name in ("a b.wav", "c.wav")
    ]
    assert len(scan_sounds(path)) == 2


def test_a_first_row_that_is_missing_moves_no_file(tmp_path: Path) -> None:
    path = table(tmp_path, '{"path": "gone.wav"}\n{"path": "a.wav"}\n', "audio/a.wav", name="list.jsonl")
    assert [Path(item.file).parent.name for item in read_items([str(path)])] == ["audio", "audio"]


@pytest.mark.parametrize("source", ["https://x.org/a.wav", "s3://bucket/a.wav"])
def test_addresses_are_not_fetched(source: str) -> None:
    for read in (scan, scan_sounds, lambda source: read_items([source])):
        with pytest.raises(InputError, match=f"{source}: addresses are not fetched: download the file"):
            read(source)


# -- labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["Child speech, kid speaking;Speech", "Subway, metro, underground"], 3),
        (["Speech, Child speech, kid speaking", "Subway, metro, underground"], 3),
        (["Speech,Dog", "Dog"], 2),
        (["Clang,bang,Dog", "Dog"], 2),
    ],
)
def test_names_with_commas_are_not_cut(cells: list[str], expected: int, tmp_path: Path) -> None:
    text = "file,labels\n" + "".join(f'{place}.wav,"{cell}"\n' for place, cell in enumerate(cells))
    clips = scan(table(tmp_path, text, "0.wav", "1.wav"), classes=("Clang, bang",))
    assert len(clips.classes) == expected


def test_a_label_that_says_none_is_told(tmp_path: Path) -> None:
    clips = scan(table(tmp_path, "file,label\na.wav,nan\nb.wav,dog\n", "a.wav", "b.wav"))
    assert clips.classes == ("dog", "nan")
    todo = "leave the cell empty if the label is missing: such rows are left out"
    assert clips.notes == (f"the label 'nan' (1 clips) is a class: {todo}",)
    (tmp_path / "meta.csv").write_text("file,label\na.wav,\nb.wav,dog\n")
    assert scan(tmp_path).problems == ("meta.csv line 2: no label for a.wav",)


def test_classes_that_differ_in_case_alone_are_told(tmp_path: Path) -> None:
    names = ("dog", "Dog", "rain", "DOG", "Rains")
    rows = "".join(f"{number}.wav,{name}\n" for number, name in enumerate(names))
    clips = scan(table(tmp_path, f"file,label\n{rows}", *(f"{number}.wav" for number in range(5))))
    assert clips.notes == ("the classes DOG, Dog, dog differ in case alone: write one name if they are one",)


def test_a_name_with_a_semicolon_in_a_column_of_one_label_is_told(tmp_path: Path) -> None:
    clips = scan(table(tmp_path, "file,label\na.wav,dog;cat\nb.wav,dog\n", "a.wav", "b.wav"))
    assert clips.classes == ("dog", "dog;cat")
    todo = "call the column labels if they are several"
    assert clips.notes == (f"1 names with a semicolon are a class each, e.g. 'dog;cat': {todo}",)


# -- folders -------------------------------------------------------------------------------------------------


def sounds(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


@pytest.mark.parametrize(
    "layout",
    [
        "train/{}/a.wav test/{}/a.wav",
        "set/Valid/{}/x/a.wav set/train/{}/b.wav",
        "{}/dev/a.wav {}/train/a.wav",
    ],
)
def test_folders_of_splits_are_no_classes(layout: str, tmp_path: Path) -> None:
    paths = [path for name in ("rain", "dog") for path in layout.format(name, name).split()]
    clips = scan(sounds(tmp_path, *paths))
    assert clips.classes == ("dog", "rain")
    assert {fold.lower() for fold in clips.column("fold")} in (
        {"train", "test"},
        {"train", "valid"},
        {"train", "dev"},
    )
    assert clips.origin() == "label from the folders, split from the folders; classes: dog to rain (2)"


@pytest.mark.parametrize(
    "paths", [("train/a.wav", "test/b.wav"), ("train/dog/a.wav", "test/dog/a.wav", "noise/a.wav")]
)
def test_folders_that_may_be_splits_or_classes_are_refused(paths: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"folders called like splits \(test, train\) (hold|stand beside)"):
        scan(sounds(tmp_path, *paths))


@pytest.mark.parametrize("stray", ["dog/c.wav", "rain/a.wav", "dog/loud/c.wav"])
def test_a_sound_beside_the_splits_of_a_class_is_named(stray: str, tmp_path: Path) -> None:
    """Else all sounds, those of the test split too, would be trained on."""
    data = sounds(tmp_path, "dog/train/a.wav", "dog/test/b.wav", "frog/train/a.wav", stray)
    with pytest.raises(DataError, match=rf"{stray}: lies in no split, others do \(test, train\)"):
        scan(data)


def test_a_class_of_trains_may_have_a_folder_of_that_name(tmp_path: Path) -> None:
    data = sounds(tmp_path, "vehicle/train/a.wav", "vehicle/car/b.wav", "dog/a.wav")
    assert scan(data).origin() == "label from the folders; classes: dog to vehicle (2)"


def test_sounds_beside_the_classes_of_one_split_are_no_class(tmp_path: Path) -> None:
    data = sounds(tmp_path, "train/dog/a.wav", "train/rain/a.wav", "train/b.wav")
    with pytest.raises(
        DataError, match=r"folders called like splits \(train\) hold sounds that lie in no folder of a class"
    ):
        scan(data)
    (data / "train" / "b.wav").unlink()
    assert scan(data).classes == ("dog", "rain")


def test_a_list_that_is_none_ends_nothing(tmp_path: Path) -> None:
    table(tmp_path, "name,text\nx,y\n", "dog/a.wav", "cat/b.wav", name="README.csv")
    clips = scan(tmp_path)
    assert clips.classes == ("cat", "dog")
    assert "README.csv: needs the columns" in clips.problems[0]
    table(tmp_path, "file,label\ndog/a.wav,wolf\n")
    assert (scan(tmp_path).classes, scan(tmp_path).problems) == (("wolf",), ())


def test_metadata_beside_the_sounds_of_every_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        table(
            tmp_path, "file_name,label\na.wav,dog\n", f"data/{split}/a.wav", name=f"data/{split}/metadata.csv"
        )
    clips = scan(tmp_path)
    assert clips.names() == [str(tmp_path / f"data/{split}/a.wav") for split in ("test", "train")]
    assert clips.column("fold").tolist() == ["test", "train"]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    root = sounds(tmp_path, "in/a/1.wav", "out/2.wav") / "in"
    (root / "a" / "link").symlink_to(tmp_path / "out")
    (root / "a" / "loop").symlink_to(root)
    (root / "b").symlink_to(root / "a")
    (tmp_path / "out" / "up").symlink_to(tmp_path)
    assert list(walk(root, pytest.fail)) == [str(root / "a/1.wav"), str(root / "a/link/2.wav")]


def test_a_folder_that_cannot_be_read_is_named_and_the_rest_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, scandir = sounds(tmp_path, "a/1.wav", "locked/2.wav"), os.scandir

    def locked(path: str) -> object:
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    problems: list[str] = []
    assert list(find_files(str(root), problems.append)) == [str(root / "a/1.wav")]
    assert problems == [f"{root}/locked: cannot be read (Permission denied): the sounds in it are left out"]
    assert scan_sounds(root).problems == scan(root).problems[:1] == tuple(problems)


def test_whatever_can_be_decoded_is_a_sound_and_typescript_is_none(tmp_path: Path) -> None:
    suffixes = "w64 rf64 wv tta m4b aifc mp2 spx avi snd mpg mpeg vob flv m2ts dsf"
    assert [suffix for suffix in suffixes.split() if not is_sound(tmp_path / f"a.{suffix}")] == []
    (tmp_path / "stream.ts").write_bytes(b"\x47\x40")
    (tmp_path / "index.ts").write_text("export {}")
    assert list(walk(tmp_path, pytest.fail)) == [str(tmp_path / "stream.ts")]


# -- all readers ---------------------------------------------------------------------------------------------

FILES = {"a.wav": "a.wav", "./a.wav": "a.wav", "ü b.wav": "audio/ü b.wav", "gone.wav": "", "": ""}
LABELS = ("dog", "Child speech, kid speaking", "katzé", "")
TIMES = {
    ("", ""): (0.0, None),
    ("0.5", "1"): (0.5, 1.0),
    ("0.25", ""): (0.25, None),
    ("2", "1"): None,
    ("x", "1"): None,
}
HEADERS = (("file", "label", "start", "end"), ("File Name", "Category", "Begin Time (s)", "End Time (s)"))


def written(path: Path, header: Sequence[str], rows: list[tuple[str, ...]], dialect: str) -> Path:
    """The rows as a list of a dialect: a separator, "jsonl" or "parquet"."""
    path = path.with_suffix("." + (dialect if len(dialect) > 1 else "csv"))
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    if dialect == "jsonl":
        path.write_text("\n\n".join(map(json.dumps, cells)), encoding="utf-8")
    elif dialect == "parquet":
        pq.write_table(pa.Table.from_pylist(cells), path)
    else:
        text = io.StringIO()
        csv.writer(text, delimiter=dialect).writerows((header, *rows))
        path.write_text(f"\ufeff# a list\n\n{text.getvalue()}", encoding="utf-8")
    return path


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(*map(st.sampled_from, ([*FILES], LABELS, [*TIMES]))), min_size=1, max_size=6),
    header=st.sampled_from(HEADERS),
    dialect=st.sampled_from((",", ";", "\t", "jsonl", "parquet")),
)
def test_every_row_is_a_clip_or_a_reason_and_all_readers_agree(
    rows: list[tuple[str, str, tuple[str, str]]], header: tuple[str, ...], dialect: str, tmp_path: Path
) -> None:
    sounds(tmp_path, "a.wav", "audio/ü b.wav")
    path = written(tmp_path / "list", header, [(name, label, *times) for name, label, times in rows], dialect)
    found = [(FILES[name], label, TIMES[times]) for name, label, times in rows]
    usable = [((str(tmp_path / file), *span), label) for file, label, span in found if file and span]
    labelled: dict[Segment, str] = {}
    for segment, label in usable:
        if label:
            labelled.setdefault(segment, label)
    items = read_items([str(path)])
    assert len(items) == len(rows)
    assert [tuple(item)[:3] for item, (file, _, span) in zip(items, found, strict=True) if file and span] == [
        segment for segment, _ in usable
    ]
    for read, expected in ((scan_sounds, dict.fromkeys(segment for segment, _ in usable)), (scan, labelled)):
        if not expected:
            with pytest.raises(DataError, match=r"(line|row) \d"):
                read(path)
            continue
        clips = read(path)
        assert segments(clips) == list(expected)
        assert len(clips) + len(clips.problems) == len(rows)
    if labelled:
        assert labels(scan(path)) == [[label] for label in labelled.values()]

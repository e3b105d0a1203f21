import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import tone, write_wav
from prepared_set import write_prepared

from patchout.audio.stream import Channel
from patchout.data.sets import ClipSet, DataError, is_sound, scan, scan_sounds
from patchout.errors import InputError


def table(root: Path, text: str, *files: str, name: str = "meta.csv") -> ClipSet:
    """Scan a folder with this list and these sounds."""
    for file in files:
        write_wav(root / file, tone(0.02))
    (root / name).write_text(text, encoding="utf-8")
    return scan(root)


def labels(clips: ClipSet) -> list[list[str]]:
    return [clips.labels(clip) for clip in range(len(clips))]


# -- folders -------------------------------------------------------------------------------------------------


def test_every_sub_folder_is_a_class(class_folder: Path) -> None:
    clips = scan(class_folder)
    assert clips.classes == ("bell", "dog", "rain")
    assert clips.task == "multi_class"
    assert labels(clips) == [["bell"]] * 4 + [["dog"]] * 4 + [["rain"]] * 4
    assert clips.name(0) == str(class_folder / "bell" / "0.wav")
    assert clips.problems == ()


def test_class_folders_may_be_called_like_splits(tmp_path: Path) -> None:
    for name in ("train", "test_bench", "dog_test"):
        write_wav(tmp_path / name / "a.wav", tone(0.02))
    assert labels(scan(tmp_path)) == [["dog_test"], ["test_bench"], ["train"]]


def test_sounds_in_deeper_folders_belong_to_the_class_on_top(tmp_path: Path) -> None:
    write_wav(tmp_path / "dog" / "big" / "old" / "a.wav", tone(0.02))
    assert labels(scan(tmp_path)) == [["dog"]]


def test_hidden_folders_and_files_that_are_no_sound_do_not_count(tmp_path: Path) -> None:
    for name in ("dog/a.wav", ".cache/a.wav", "dog/._a.wav", "top.wav"):
        write_wav(tmp_path / name, tone(0.02))
    (tmp_path / "dog" / "notes.txt").touch()
    clips = scan(tmp_path)
    assert clips.names() == [str(tmp_path / "dog" / "a.wav")]
    assert clips.classes == ("dog",)


def test_sounds_beside_the_class_folders_are_told(tmp_path: Path) -> None:
    for name in ("dog/a.wav", "rain/a.wav", "b.wav", "a.mp3", ".b.wav", "notes.txt"):
        (tmp_path / "mix" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mix" / name).touch()
    clips = scan(tmp_path / "mix")
    (note,) = clips.notes
    assert (len(clips), clips.problems) == (2, ())
    assert note.startswith(
        f"sounds in {tmp_path / 'mix'} itself, in no folder of a class: 2 (a.mp3, b.wav): "
    )
    assert len(scan_sounds(tmp_path / "mix")) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="other systems store names as Unicode")
def test_a_file_whose_name_is_not_utf8_is_named_and_the_rest_is_used(tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "dog" / "a.wav", tone(0.02)).read_bytes()
    write_wav(tmp_path / "rain" / "a.wav", tone(0.02))
    for name in (b"dog/bad\xff.wav", b"bad\xfe/b.wav"):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(sound)
    reason = "its name is not UTF-8: rename it"
    expected = {f"dog/bad\\udcff.wav: {reason}", f"bad\\udcfe/b.wav: {reason}"}
    assert {*scan(tmp_path).problems} == {*scan_sounds(tmp_path).problems} == expected
    assert scan(tmp_path).classes == ("dog", "rain")
    rows = [{"file": "dog/bad\udcff.wav", "label": "dog"}, {"file": "dog/a.wav", "label": "dog"}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    clips = scan(tmp_path / "list.jsonl")
    assert (len(clips), clips.problems) == (1, (f"list.jsonl line 1: dog/bad\\udcff.wav: {reason}",))


def test_a_class_folder_without_sounds_is_named(tmp_path: Path) -> None:
    write_wav(tmp_path / "dog" / "a.wav", tone(0.02))
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "notes.txt").touch()
    clips = scan(tmp_path)
    assert clips.problems == ("cat: a class folder without sounds",)
    assert clips.classes == ("dog",)


@pytest.mark.parametrize("name", ["a.wav", "a.FLAC", "a b.opus", "é.m4a"])
def test_sounds_are_known_by_their_suffix(name: str) -> None:
    assert is_sound(Path(name))
    assert not is_sound(Path(name + ".txt"))


def test_a_missing_folder_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder: give a folder of class folders"):
        scan(tmp_path / "nowhere")


def test_a_file_that_is_no_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.wav: is none of these: give .*a list \(\.csv, .*\.jsonl, "):
        scan(write_wav(tmp_path / "a.wav", tone(0.02)))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class folders with sounds, and no CSV"):
        scan(tmp_path)


def test_a_data_error_is_a_fault_of_the_input() -> None:
    assert issubclass(DataError, InputError)
    assert issubclass(InputError, ValueError)


# -- tables --------------------------------------------------------------------------------------------------


def test_a_table_wins_over_class_folders(class_folder: Path) -> None:
    clips = table(class_folder, "filename,category\nbell/0.wav,ding\n")
    assert (clips.names(), labels(clips)) == ([str(class_folder / "bell" / "0.wav")], [["ding"]])


@pytest.mark.parametrize("label", ["category", "label", "labels"])
@pytest.mark.parametrize("file", ["filename", "file", "path"])
def test_every_name_of_the_two_columns_is_understood(file: str, label: str, tmp_path: Path) -> None:
    clips = table(tmp_path, f"id,{label},{file}\n7,dog,a.wav\n", "a.wav")
    assert (clips.names(), labels(clips)) == ([str(tmp_path / "a.wav")], [["dog"]])


def test_files_lie_beside_the_table_or_in_audio(tmp_path: Path) -> None:
    clips = table(tmp_path, "file,label\na.wav,dog\nb.wav,cat\n", "a.wav", "audio/b.wav")
    assert clips.names() == [str(tmp_path / "a.wav"), str(tmp_path / "audio" / "b.wav")]


def test_split_goes_before_fold(tmp_path: Path) -> None:
    text = "file,label,fold,split\na.wav,dog,1,test\nb.wav,dog,2,\n"
    assert table(tmp_path, text, "a.wav", "b.wav").column("fold").tolist() == ["test", "2"]


def test_segments_are_heard_as_they_are_listed(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.repeat(np.array([0.0, 0.5, 0.25], np.float32), 320))
    clips = table(tmp_path, "file,label,start,end\na.wav,dog,0.01,0.02\na.wav,cat,0.02,\na.wav,owl,,\n")
    assert [set(clips.wave(clip, 32_000).tolist()) for clip in range(3)] == [{0.5}, {0.25}, {0.0, 0.25, 0.5}]


def test_further_columns_are_kept(tmp_path: Path) -> None:
    text = "file,label,group,device,\na.wav,dog,tape 1,phone,x\nb.wav,dog\n"
    clips = table(tmp_path, text, "a.wav", "b.wav")
    assert clips.column("group").tolist() == ["tape 1", ""]
    assert clips.column("device").tolist() == ["phone", ""]


def test_columns_that_sound_like_ours_do_no_harm(tmp_path: Path) -> None:
    clips = table(tmp_path, "id,labels,category,file,row,known\n9,owl,dog,a.wav,5,never\n", "a.wav")
    assert clips.names() == [str(tmp_path / "a.wav")]
    assert labels(clips) == [["dog"]]
    assert len(clips.wave(0, 32_000)) == 640


@pytest.mark.parametrize("text", ["dog;cat", "dog, cat", "dog;cat;dog", '"dog,cat"'])
def test_labels_may_be_several(text: str, tmp_path: Path) -> None:
    quoted = text if text.startswith('"') else f'"{text}"'
    clips = table(tmp_path, f"file,labels\na.wav,{quoted}\n", "a.wav")
    assert sorted(clips.labels(0)) == ["cat", "dog"]
    assert clips.task == "multi_label"
    assert clips.classes == ("cat", "dog")


def test_a_column_for_one_label_is_not_split(tmp_path: Path) -> None:
    clips = table(tmp_path, 'file,label\na.wav,"speech, male"\n', "a.wav")
    assert clips.classes == ("speech, male",)
    assert clips.task == "multi_class"


def test_a_table_saved_with_a_byte_order_mark_is_understood(tmp_path: Path) -> None:
    assert labels(table(tmp_path, "\ufefffile,label\na.wav,dog\n", "a.wav")) == [["dog"]]


@pytest.mark.parametrize("header", ["name,label", "file,class", ""])
def test_a_wrong_header_names_what_is_needed(header: str, tmp_path: Path) -> None:
    expected = "one of filename, file, path, .* and one of category, label, labels, its header is "
    with pytest.raises(DataError, match=expected + (header.replace(",", ", ") or "empty")):
        table(tmp_path, f"{header}\n", "a.wav")


def test_two_tables_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("path,labels\n")
    with pytest.raises(DataError, match=r"2 lists on top \(meta.csv, other.csv\): leave one"):
        table(tmp_path, "file,label\n")


def test_a_table_in_another_encoding_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "meta.csv").write_bytes("file,label\na.wav,Vögel\n".encode("latin-1"))
    with pytest.raises(
        DataError, match=r"meta\.csv: cannot be read as a table .*save it as CSV or JSONL in UTF-8"
    ):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("gone.wav,dog,,", "no file 'gone.wav' in "),
        ("a.wav,dog,,,cat", "has 5 cells, the header has 4: quote what has a ',' in it"),
        ("https://x.org/a.wav,dog,,", "https://x.org/a.wav: addresses are not fetched: download the file"),
        ("x" * 300 + ".wav,dog,,", "x" * 300 + ".wav: File name too long"),
        (",dog,,", "no file ''"),
        ("a.wav,,,", "no label for a.wav"),
        ("a.wav", "no label for a.wav"),
        ("a.wav,dog,early,", "the start 'early' is no number: write seconds, or leave the cell empty"),
        ("a.wav,dog,2,1", "a.wav cannot start at 2 s and end at 1 s"),
        ("a.wav,dog,-1,", "a.wav cannot start at -1 s"),
        ("a.wav,dog,nan,", "a.wav cannot start at nan s"),
    ],
)
def test_an_unusable_row_is_named_by_its_line_and_the_rest_is_used(
    row: str, reason: str, tmp_path: Path
) -> None:
    clips = table(tmp_path, f"file,label,start,end\na.wav,dog,,\n\n{row}\nb.wav,cat,,\n", "a.wav", "b.wav")
    assert labels(clips) == [["dog"], ["cat"]]
    assert len(clips.problems) == 1
    assert clips.problems[0].startswith(f"meta.csv line 4: {reason}")  # line 3 is blank


def test_a_row_may_name_an_audio_stream_which_is_a_part_of_its_file(tmp_path: Path) -> None:
    rows = "a.wav#a:0,dog\na.wav#a:1,cat\ngone.wav#a:0,dog\na.wav#a:,cat\nb.wav#a:1,cat\n"
    write_wav(tmp_path / "audio" / "b.wav", tone(0.02)).rename(
        tmp_path / "audio" / "b.wav#a:1"
    )  # a file of that name
    clips = table(tmp_path, f"file,label\n{rows}", "a.wav")
    assert clips.names() == [str(tmp_path / name) for name in ("a.wav#a:0", "a.wav#a:1", "audio/b.wav#a:1")]
    assert len({*clips.groups()}) == 2
    assert [problem.partition(": ")[2] for problem in clips.problems] == [
        f"no file {name!r} in {tmp_path} or its audio/" for name in ("gone.wav#a:0", "a.wav#a:")
    ]


def test_a_separator_without_a_label_behind_names_none(tmp_path: Path) -> None:
    clips = table(tmp_path, "file,labels\na.wav,dog;\nb.wav,;\n", "a.wav", "b.wav")
    assert clips.problems == ("meta.csv line 3: no label for b.wav",)
    assert labels(clips) == [["dog"]]


def test_a_table_of_unusable_rows_gives_the_first_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no clips \(meta.csv line 2: no file 'gone.wav'"):
        table(tmp_path, "file,label\ngone.wav,dog\n")


def test_a_list_is_a_data_set_without_its_folder(tmp_path: Path) -> None:
    """So that two lists may lie side by side."""
    table(tmp_path, "file,label\na.wav,dog\n", "a.wav")
    (tmp_path / "other.csv").write_text("file,label\na.wav,cat\n")
    assert scan(tmp_path / "meta.csv").classes == ("dog",)
    assert scan(tmp_path / "other.csv").classes == ("cat",)
    assert scan(tmp_path / "other.csv").root == tmp_path / "other.csv"


def test_the_second_row_of_a_sound_is_named_and_left_out(tmp_path: Path) -> None:
    clips = table(
        tmp_path, "file,label\na.wav,dog\nb.wav,dog\naudio/a.wav,cat\na.wav,cat\n", "a.wav", "b.wav"
    )
    assert clips.problems == (
        f"meta.csv line 4: no file 'audio/a.wav' in {tmp_path} or its audio/",
        "meta.csv line 5: a.wav was there before: give each sound one row, with all its labels",
    )
    assert labels(clips) == [["dog"], ["dog"]]


def test_a_missing_file_of_a_list_is_named_and_the_rest_is_used(tmp_path: Path) -> None:
    clips = table(tmp_path, "file,label\na.wav,dog\ngone.wav,cat\n", "a.wav")
    assert clips.problems == (f"meta.csv line 3: no file 'gone.wav' in {tmp_path} or its audio/",)
    assert clips.classes == ("dog",)


def test_rows_beyond_one_chunk_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchout.data.columns.CHUNK_ROWS", 2)
    rows = "".join(
        f"{name}.wav,{name},{end}\n" for name, end in zip("abcde", ["", "", "", "0.01", ""], strict=True)
    )
    clips = table(tmp_path, "file,label,end\n" + rows, *(f"{name}.wav" for name in "abcde"))
    assert labels(clips) == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert [len(clips.wave(clip, 32_000)) for clip in (2, 3)] == [640, 320]


# -- lists of JSON -------------------------------------------------------------------------------------------


def test_json_lines_say_what_a_table_says(tmp_path: Path) -> None:
    rows = [
        {"path": "a.wav", "labels": ["dog", "speech, male"], "split": "train", "take": 7},
        {"path": "b.wav", "labels": "cat; dog", "start": 0.01},
    ]
    text = "\n\n".join(json.dumps(row) for row in rows)
    clips = table(tmp_path, text, "a.wav", "b.wav", name="clips.jsonl")
    assert labels(clips) == [["dog", "speech, male"], ["cat", "dog"]]
    assert clips.column("fold").tolist() == ["train", ""]
    assert clips.column("take").tolist() == ["7", ""]
    assert [len(clips.wave(clip, 32_000)) for clip in range(2)] == [640, 320]


def test_a_number_may_be_a_label(tmp_path: Path) -> None:
    text = '{"file": "a.wav", "label": 0}\n{"file": "b.wav", "label": 1}\n'
    assert table(tmp_path, text, "a.wav", "b.wav", name="c.jsonl").classes == ("0", "1")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting property name"),
        ("7", "is not an object with names and values"),
        ("{}", "no file ''"),
        ('{"file": "a.wav", "label": null}', "no label for a.wav"),
        ('{"file": "a.wav", "label": []}', "no label for a.wav"),
    ],
)
def test_an_unusable_line_is_named_by_its_number(line: str, reason: str, tmp_path: Path) -> None:
    clips = table(
        tmp_path, f'{{"file": "b.wav", "label": "dog"}}\n{line}\n', "a.wav", "b.wav", name="c.jsonl"
    )
    assert len(clips) == len(clips.problems) == 1
    assert clips.problems[0].startswith(f"c.jsonl line 2: {reason}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "its header is empty"), ("[1]", "its header is empty"), ("no", "cannot be read as a table")],
)
def test_a_first_line_that_is_no_object_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        table(tmp_path, text, name="c.jsonl")


# -- prepared sets -------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """Five tones of 0.02 s in two shards, as `datasets` itself writes them."""
    return write_prepared(tmp_path / "set", [tone(0.02, 200.0 * (index + 1)) for index in range(5)])


def test_a_prepared_set_is_what_was_put_into_it(prepared: Path) -> None:
    clips = scan(prepared)
    assert (clips.classes, clips.task, len(clips)) == (("cat", "dog"), "multi_label", 5)
    assert clips.names() == [f"clip {index}" for index in range(5)]
    assert labels(clips) == [["cat"], ["dog"], ["cat"], ["dog"], ["cat", "dog"]]
    assert clips.column("fold").tolist() == ["train", "test", "train", "test", "train"]
    assert clips.column("device").tolist() == ["a", "", "a", "", "a"]
    assert clips.info["name"] == "tones"
    for index in range(5):
        expected = tone(0.02, 200.0 * (index + 1))
        assert np.allclose(clips.wave(index, 32_000).numpy(), expected, atol=1 / 32_768)


def test_a_part_of_a_prepared_set_hears_its_own_sounds(prepared: Path) -> None:
    clips = scan(prepared)
    part = clips.only("test").take([1])
    assert part.names() == ["clip 3"]
    assert part.wave(0, 32_000).equal(clips.wave(3, 32_000))


def test_probabilities_and_what_is_known_come_from_the_set(tmp_path: Path) -> None:
    more = {"probabilities": [0.25, 0.75], "known": [1.0, 0.0]}
    clips = scan(write_prepared(tmp_path / "set", [tone(0.02)], **more))
    assert clips.target(0).tolist() == clips.targets()[0].tolist() == [0.25, 0.75]
    assert clips.known(0).tolist() == clips.knowns()[0].tolist() == [1.0, 0.0]
    assert clips.targets(("dog", "owl", "cat")).tolist() == [[0.75, 0.0, 0.25]]
    assert clips.knowns(("dog", "owl", "cat")).tolist() == [[0.0, 0.0, 1.0]]  # owl: not known either


def test_an_unreadable_shard_is_named(prepared: Path) -> None:
    shard = prepared / "data-00001-of-00002.arrow"
    shard.write_bytes(shard.read_bytes()[:400])
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow: a shard that cannot be read"):
        scan(prepared)


def test_a_missing_shard_is_named(prepared: Path) -> None:
    (prepared / "data-00000-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00000-of-00002\.arrow: a shard that cannot be read"):
        scan(prepared)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"classes": ["cat"]}, "has label 1, dataset.json names 1 classes: prepare it again"),
        ({"format": 2}, "is of format 2, this version reads 1: update patchout"),
        ({"classes": None}, "is not a whole prepared set"),
    ],
)
def test_a_prepared_set_that_contradicts_itself_is_refused(
    change: dict[str, object], reason: str, prepared: Path
) -> None:
    about = json.loads((prepared / "dataset.json").read_text())
    (prepared / "dataset.json").write_text(json.dumps(about | change))
    with pytest.raises(DataError, match=reason):
        scan(prepared)


def test_a_damaged_sound_of_a_prepared_set_is_named_by_its_id(tmp_path: Path) -> None:
    clips = scan(write_prepared(tmp_path / "set", [tone(0.02), b"no sound"]))
    with pytest.raises(DataError, match="clip 1: is not audio"):
        clips.wave(1, 32_000)


@pytest.mark.parametrize(("channel", "level"), [("mean", 0.375), ("left", 0.25), ("right", 0.5)])
def test_the_channel_is_chosen_when_a_clip_is_read(channel: Channel, level: float, tmp_path: Path) -> None:
    stereo = np.repeat(np.array([[0.25, 0.5]], np.float32), 640, axis=0)
    write_wav(tmp_path / "files" / "dog" / "a.wav", stereo)
    write_prepared(tmp_path / "set", [stereo])
    for folder in ("files", "set"):
        assert scan(tmp_path / folder, channel=channel).wave(0, 32_000).tolist() == [level] * 640


# -- without labels ------------------------------------------------------------------------------------------


def test_sounds_at_any_depth_need_no_labels(class_folder: Path) -> None:
    write_wav(class_folder / "deep" / "er" / "one.wav", tone(0.02))
    write_wav(class_folder / "top.wav", tone(0.02))
    (class_folder / "notes.csv").write_text("this,is\nno,list")
    clips = scan_sounds(class_folder)
    assert (len(clips), clips.classes, clips.target(0).shape) == (14, (), (0,))
    assert clips.names()[-1] == str(class_folder / "top.wav")
    assert len(clips.wave(13, 32_000)) == 640


def test_a_list_of_sounds_may_have_labels_and_need_not(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(1.0))
    for header, row in (("file,start,end", "a.wav,0.25,0.75"), ("file,label,start,end", "a.wav,,0.25,0.75")):
        (tmp_path / "list.csv").write_text(f"{header}\n{row}\ngone.wav\n")
        clips = scan_sounds(tmp_path / "list.csv")
        assert (len(clips), len(clips.wave(0, 32_000))) == (1, 16_000)
        assert clips.problems == (f"list.csv line 3: no file 'gone.wav' in {tmp_path} or its audio/",)


def test_a_prepared_set_is_heard_without_its_labels(prepared: Path) -> None:
    clips, labelled = scan_sounds(prepared), scan(prepared)
    assert clips.names() == labelled.names()
    assert clips.target(0).shape == (0,)
    assert clips.ids_sha256() == labelled.ids_sha256()


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("empty", "", "no sounds in it"),
        ("list.csv", "name\na.wav\n", "needs the columns one of filename, file, path,"),
    ],
)
def test_no_sounds_at_all_are_refused(name: str, text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text) if text else (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=reason):
        scan_sounds(tmp_path / name)

from pathlib import Path

import pytest

from patchout.checkpoint.labels import LISTS, label_names, read_labels


def names_in(path: Path, text: str) -> tuple[str, ...]:
    path.write_text(text, encoding="utf-8")
    return read_labels(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a user's class names stand."""
    return tmp_path / "names.csv"


@pytest.mark.parametrize("name", LISTS)
def test_every_list_has_distinct_names(name: str) -> None:
    names = label_names(name)
    assert len(set(names)) == len(names) > 1
    assert all(label == label.strip() != "" for label in names)


def test_quoted_names_keep_their_commas() -> None:
    assert label_names("audioset")[:2] == ("Speech", "Male speech, man speaking")


def test_an_unknown_list_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'audioset2': there are audioset, dcase_scenes, esc50"):
        label_names("audioset2")


def test_one_name_a_line(file: Path) -> None:
    assert names_in(file, "Bark\nMale speech, man speaking\nRain\n") == (
        "Bark",
        "Male speech, man speaking",
        "Rain",
    )


def test_blank_lines_and_spaces_around_names_do_not_count(file: Path) -> None:
    assert names_in(file, "\nBark \n   \n Rain\n\n") == ("Bark", "Rain")


def test_a_table_with_a_column_display_name(file: Path) -> None:
    assert names_in(file, "mid,display_name\n/m/1,Bark\n/m/2, Rain\n") == ("Bark", "Rain")


def test_the_vocabulary_of_fsd50k(file: Path) -> None:
    assert names_in(file, "0,Bark,/m/1\n1,Rain,/m/2\n") == ("Bark", "Rain")


def test_a_byte_order_mark_is_no_part_of_a_name(file: Path) -> None:
    assert names_in(file, "\ufeffBark\nRain\n") == ("Bark", "Rain")


@pytest.mark.parametrize("text", ["", "\n \n", "index,display_name\n"])
def test_a_file_without_names_is_refused(text: str, file: Path) -> None:
    with pytest.raises(ValueError, match="holds no class names: write one a line"):
        names_in(file, text)


def test_a_missing_file_is_named(file: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"names\.csv: no such file of class names"):
        read_labels(file)


def test_another_encoding_is_refused_with_the_fix(file: Path) -> None:
    file.write_bytes("Bellen über\n".encode("latin-1"))
    with pytest.raises(ValueError, match="save the class names as UTF-8"):
        read_labels(file)

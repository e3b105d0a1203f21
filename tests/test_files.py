import errno
from pathlib import Path

import pytest

from patchout.files import file_state, write_aside


def test_the_file_appears_whole_and_alone(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    with write_aside(target) as aside:
        aside.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_the_temporary_name_keeps_the_suffix_and_is_hidden(tmp_path: Path) -> None:
    with write_aside(tmp_path / "model.safetensors") as aside:
        assert aside.parent == tmp_path
        assert aside.suffix == ".safetensors"
        assert aside.name.startswith(".")


def test_a_failure_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    target.write_bytes(b"old")
    with pytest.raises(FileNotFoundError, match="nothing here"), write_aside(target) as aside:
        aside.write_bytes((tmp_path / "nothing here").read_bytes())
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_old_file_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "model.bin"
    target.write_bytes(b"old and longer")
    with write_aside(str(target)) as aside:
        aside.write_bytes(b"new")
    assert target.read_bytes() == b"new"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="cannot write into the folder") as caught:
        write_aside(tmp_path / "nowhere" / "model.bin").__enter__()
    assert caught.value.filename == str(tmp_path / "nowhere")


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as caught:
        write_aside(tmp_path / "file" / "model.bin").__enter__()
    assert caught.value.filename == str(tmp_path / "file")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_a_device_is_not_replaced_by_a_file() -> None:
    with pytest.raises(FileExistsError, match=r"is a device: name a file on a disk: '/dev/full'"):
        write_aside("/dev/full").__enter__()
    assert Path("/dev/full").is_char_device()


def test_an_unwritable_folder_keeps_its_kind_of_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(PermissionError, match="Permission denied") as caught:
        write_aside(tmp_path / "model.bin").__enter__()
    assert caught.value.filename == str(tmp_path)


def test_a_name_as_long_as_a_disk_takes_can_be_written(tmp_path: Path) -> None:
    with write_aside(tmp_path / f"{'ü' * 125}.png") as aside:
        aside.write_bytes(b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]


def test_an_audio_stream_of_a_file_has_the_state_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "talk.mkv"
    path.write_bytes(b"sound")
    assert file_state(f"{path}#a:1") == file_state(str(path)) != (None, None)
    assert file_state(f"{path}#a:one") == (None, None)

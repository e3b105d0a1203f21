import gc
import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch
from conftest import noise, tone, write_wav
from prepared_set import write_prepared

from patchout.audio import stream as audio
from patchout.data import clips as clips_module
from patchout.data.augment import keyed
from patchout.data.clips import ClipSet, DataError
from patchout.data.sets import scan


@pytest.fixture
def folds(tmp_path: Path) -> ClipSet:
    """Three clips of folds 1, 1 and 2."""
    for name in "abc":
        write_wav(tmp_path / f"{name}.wav", tone(0.02))
    (tmp_path / "meta.csv").write_text("file,label,fold\na.wav,dog,1\nb.wav,cat,1\nc.wav,owl,2\n")
    return scan(tmp_path)


def labels(clips: ClipSet) -> list[str]:
    return [clips.labels(clip)[0] for clip in range(len(clips))]


def many(count: int) -> ClipSet:
    """A large set of which no sound exists: clip i has the classes i % 500 and, every third, 500."""
    ids = pa.array([f"{index:011d}" for index in range(count)])
    table = pa.table(
        {"id": ids, "labels": [[i % 500, 500] if i % 3 == 0 else [i % 500] for i in range(count)]}
    )
    return ClipSet(Path("many"), tuple(f"class {index}" for index in range(501)), "multi_label", table)


# -- parts ---------------------------------------------------------------------------------------------------


def test_only_and_without_divide_the_clips(folds: ClipSet) -> None:
    assert labels(folds.only("2")) == ["owl"]
    assert labels(folds.without("2")) == ["dog", "cat"]
    assert labels(folds.only("1", "2")) == labels(folds.without()) == labels(folds)
    assert labels(folds.without("")) == labels(folds)  # as --exclude "" has it


def test_clips_are_taken_in_any_order(folds: ClipSet) -> None:
    assert labels(folds.take([2, 0])) == ["owl", "dog"]
    assert len(folds.take(np.arange(0))) == 0
    assert labels(folds.take(range(1, 3))) == ["cat", "owl"]


def test_a_part_keeps_the_classes_of_the_whole(folds: ClipSet) -> None:
    assert folds.only("2").classes == ("cat", "dog", "owl")
    assert folds.only("2").class_counts().tolist() == [0, 0, 1]


def test_an_unknown_fold_lists_the_known_ones(folds: ClipSet) -> None:
    with pytest.raises(DataError, match="no split or fold 3: it has 1, 2"):
        folds.only("1", "3")
    with pytest.raises(DataError, match="no split or fold 3: it has 1, 2"):
        folds.without("3")


def test_a_set_without_folds_says_how_to_name_them(class_folder: Path) -> None:
    with pytest.raises(DataError, match="its clips name none: add a CSV with a column split or fold"):
        scan(class_folder).only("5")


def test_a_column_that_is_not_there_is_empty(folds: ClipSet) -> None:
    assert folds.column("nothing").tolist() == ["", "", ""]


# -- labels --------------------------------------------------------------------------------------------------


def test_targets_by_hand(tmp_path: Path) -> None:
    for name in "ab":
        write_wav(tmp_path / f"{name}.wav", tone(0.02))
    (tmp_path / "meta.csv").write_text("file,labels\na.wav,dog\nb.wav,cat;owl\n")
    clips = scan(tmp_path)
    assert clips.targets().tolist() == [[0, 1, 0], [1, 0, 1]]
    assert [clips.target(clip).tolist() for clip in range(2)] == [[0, 1, 0], [1, 0, 1]]
    assert clips.targets(("owl", "dog", "fox", "cat")).tolist() == [[0, 1, 0, 0], [1, 0, 0, 1]]
    assert clips.class_counts().tolist() == [1, 1, 1]


def test_every_label_is_known_unless_the_set_says_otherwise(folds: ClipSet) -> None:
    assert folds.known(0).tolist() == [1, 1, 1]
    assert folds.knowns(("dog", "cat", "owl", "fox")).tolist() == [[1, 1, 1, 1]] * 3


def test_labels_that_a_model_does_not_know_are_named(folds: ClipSet) -> None:
    reason = r"labels \['cat', 'owl'\] are none of the model's: it knows dog, fox \(2 classes\)"
    with pytest.raises(DataError, match=reason):
        folds.targets(("dog", "fox"))


# -- ids -----------------------------------------------------------------------------------------------------


def test_the_hash_is_of_the_ids_one_a_line(folds: ClipSet) -> None:
    assert folds.ids_sha256() == hashlib.sha256(b"a.wav\nb.wav\nc.wav\n").hexdigest()
    assert folds.take([0, 2]).ids_sha256() == hashlib.sha256(b"a.wav\nc.wav\n").hexdigest()


def test_the_hash_tells_segments_apart(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", tone(1.0))
    (tmp_path / "meta.csv").write_text(
        "file,label,start,end\na.wav,dog,0.25,0.5\na.wav,cat,,\na.wav,owl,0.5,\n"
    )
    assert (
        scan(tmp_path).ids_sha256() == hashlib.sha256(b"a.wav#0.25-0.5\na.wav\na.wav#0.5-end\n").hexdigest()
    )


def test_a_set_that_was_moved_keeps_its_hash(class_folder: Path) -> None:
    before = scan(class_folder).ids_sha256()
    assert scan(class_folder.rename(class_folder.with_name("moved"))).ids_sha256() == before


# -- size ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_large_set_takes_some_bytes_a_clip_here_and_on_its_way_to_a_worker() -> None:
    """So that 2 million take some 80 MB."""
    clips = many(100_000)
    assert clips.table.nbytes < 40 * len(clips)
    sent = pickle.dumps(clips, protocol=pickle.HIGHEST_PROTOCOL)
    back = pickle.loads(sent)
    assert len(sent) < 45 * len(clips)
    assert (back.name(99_999), back.labels(99_999)) == ("00000099999", ["class 499", "class 500"])


@pytest.mark.slow
def test_a_part_of_a_large_set_is_sent_without_the_rest() -> None:
    assert len(pickle.dumps(many(100_000).take(range(100)))) < 20_000


@pytest.mark.slow
def test_packed_sounds_are_mapped_once_and_never_sent(tmp_path: Path) -> None:
    folder = write_prepared(tmp_path / "set", [np.zeros(320_000, np.float32)] * 6)
    clips = scan(folder)
    before = clips.wave(3, 32_000)
    sent = pickle.dumps(clips)
    assert len(sent) < 10_000
    for path in folder.glob("*.arrow"):
        path.unlink()  # what is mapped stays, what is not cannot be mapped any more
    assert clips.wave(3, 32_000).equal(before)
    with pytest.raises(DataError, match="a shard that cannot be read"):
        pickle.loads(sent).wave(3, 32_000)


def test_no_file_stays_open(class_folder: Path, tmp_path: Path) -> None:
    packed = scan(write_prepared(tmp_path / "set", [tone(0.02)] * 4))
    files = scan(class_folder)
    _ = packed.wave(0, 32_000), files.wave(0, 32_000)
    gc.collect()
    before = psutil.Process().num_fds()
    for clips in (packed, files):
        for clip in range(len(clips)):
            clips.wave(clip, 32_000)
    assert psutil.Process().num_fds() == before


@pytest.mark.slow
def test_a_process_that_read_shards_ends_well(tmp_path: Path) -> None:
    """The reader threads of pyarrow would abort it, with torch loaded."""
    folder = write_prepared(tmp_path / "set", [tone(0.02)] * 4)
    code = (
        "import torch; from patchout.data import scan;"
        f"c = scan({str(folder)!r}).only('test'); c.wave(1, 32_000)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_of_a_long_clip_a_part_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips_module, "LONG_S", 0.5)
    path = write_wav(tmp_path / "a.wav", noise(2.0))
    (tmp_path / "list.csv").write_text("file,label,start\na.wav,a,\na.wav,a,1.0\n")
    clips, whole = scan(tmp_path / "list.csv"), audio.load(path)
    assert torch.equal(clips.wave(0, 32_000), torch.from_numpy(whole[:16_000]))
    for clip, first in ((0, 0), (1, 32_000)):
        part = clips.wave(clip, 32_000, keyed("any", clip)).numpy()
        starts = [at for at in range(first, len(whole) - 16_000 + 1) if whole[at] == part[0]]
        assert any(np.array_equal(part, whole[at : at + 16_000]) for at in starts)

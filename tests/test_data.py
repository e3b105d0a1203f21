from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import noise, tone, write_wav

from patchout.augment import fit, keyed
from patchout.data import Clip, ClipSet, DataError, StepSampler, Waves, batches, is_sound, scan
from patchout.errors import InputError
from patchout.train import TrainConfig, wave_augment

Key = tuple[int, int]


def table(root: Path, text: str, *files: str) -> ClipSet:
    """Scan a folder with this CSV and these sounds."""
    for file in files:
        write_wav(root / file, tone(0.02))
    (root / "meta.csv").write_text(text, encoding="utf-8")
    return scan(root)


def first(clips: ClipSet) -> Clip:
    return clips.clips[0]


# -- folders ----------------------------------------------------------------------------------------------------------


def test_every_sub_folder_is_a_class(class_folder: Path) -> None:
    clips = scan(class_folder)
    assert clips.classes == ("bell", "dog", "rain")
    assert clips.task == "multi_class"
    assert [clip.labels for clip in clips.clips] == [("bell",)] * 4 + [("dog",)] * 4 + [("rain",)] * 4
    assert first(clips).file == class_folder / "bell" / "0.wav"
    assert clips.problems == ()


def test_class_folders_may_be_called_like_splits(tmp_path: Path) -> None:
    for name in ("train", "test_bench", "dog_test"):
        write_wav(tmp_path / name / "a.wav", tone(0.02))
    assert [clip.labels for clip in scan(tmp_path).clips] == [("dog_test",), ("test_bench",), ("train",)]


def test_sounds_in_deeper_folders_belong_to_the_class_on_top(tmp_path: Path) -> None:
    write_wav(tmp_path / "dog" / "big" / "old" / "a.wav", tone(0.02))
    assert [clip.labels for clip in scan(tmp_path).clips] == [("dog",)]


def test_hidden_folders_and_files_that_are_no_sound_do_not_count(tmp_path: Path) -> None:
    for name in ("dog/a.wav", ".cache/a.wav", "dog/._a.wav", "top.wav"):
        write_wav(tmp_path / name, tone(0.02))
    (tmp_path / "dog" / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    clips = scan(tmp_path)
    assert [clip.file for clip in clips.clips] == [tmp_path / "dog" / "a.wav"]
    assert clips.classes == ("dog",)


@pytest.mark.parametrize("name", ["a.wav", "a.FLAC", "a b.opus", "é.m4a"])
def test_sounds_are_known_by_their_suffix(name: str) -> None:
    assert is_sound(Path(name))
    assert not is_sound(Path(name + ".txt"))


def test_a_missing_folder_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder: give a folder of class folders"):
        scan(tmp_path / "nowhere")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class folders with sounds, and no CSV"):
        scan(tmp_path)


def test_a_data_error_is_a_fault_of_the_input() -> None:
    assert issubclass(DataError, InputError)
    assert issubclass(InputError, ValueError)


# -- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_wins_over_class_folders(class_folder: Path) -> None:
    clips = table(class_folder, "filename,category\nbell/0.wav,ding\n")
    assert [(clip.file, clip.labels) for clip in clips.clips] == [(class_folder / "bell" / "0.wav", ("ding",))]


@pytest.mark.parametrize("label", ["category", "label", "labels"])
@pytest.mark.parametrize("file", ["filename", "file", "path"])
def test_every_name_of_the_two_columns_is_understood(file: str, label: str, tmp_path: Path) -> None:
    clips = table(tmp_path, f"id,{label},{file}\n7,dog,a.wav\n", "a.wav")
    assert clips.clips == (Clip(tmp_path / "a.wav", ("dog",)),)


def test_files_lie_beside_the_table_or_in_audio(tmp_path: Path) -> None:
    clips = table(tmp_path, "file,label\na.wav,dog\nb.wav,cat\n", "a.wav", "audio/b.wav")
    assert [clip.file for clip in clips.clips] == [tmp_path / "a.wav", tmp_path / "audio" / "b.wav"]


def test_split_goes_before_fold(tmp_path: Path) -> None:
    text = "file,label,fold,split\na.wav,dog,1,test\na.wav,dog,2,\n"
    assert [clip.fold for clip in table(tmp_path, text, "a.wav").clips] == ["test", "2"]


def test_segments_and_groups_are_read(tmp_path: Path) -> None:
    text = "file,label,start,end,group\na.wav,dog,0.5,2,tape 1\na.wav,cat,,,\n"
    clips = table(tmp_path, text, "a.wav").clips
    assert [(clip.start_s, clip.end_s, clip.group) for clip in clips] == [(0.5, 2.0, "tape 1"), (0.0, None, "")]


@pytest.mark.parametrize("text", ["dog;cat", "dog, cat", "dog;cat;dog", '"dog,cat"'])
def test_labels_may_be_several(text: str, tmp_path: Path) -> None:
    quoted = text if text.startswith('"') else f'"{text}"'
    clips = table(tmp_path, f"file,labels\na.wav,{quoted}\n", "a.wav")
    assert first(clips).labels == ("dog", "cat")
    assert clips.task == "multi_label"
    assert clips.classes == ("cat", "dog")


def test_a_column_for_one_label_is_not_split(tmp_path: Path) -> None:
    clips = table(tmp_path, 'file,label\na.wav,"speech, male"\n', "a.wav")
    assert clips.classes == ("speech, male",)
    assert clips.task == "multi_class"


def test_a_table_saved_with_a_byte_order_mark_is_understood(tmp_path: Path) -> None:
    assert first(table(tmp_path, "\ufefffile,label\na.wav,dog\n", "a.wav")).labels == ("dog",)


@pytest.mark.parametrize("header", ["name,label", "file,class", ""])
def test_a_wrong_header_names_what_is_needed(header: str, tmp_path: Path) -> None:
    expected = "one of filename, file, path and one of category, label, labels, its header is "
    with pytest.raises(DataError, match=expected + (header.replace(",", ", ") or "empty")):
        table(tmp_path, f"{header}\n", "a.wav")


def test_two_tables_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "other.csv").touch()
    with pytest.raises(DataError, match=r"2 CSV files on top \(meta.csv, other.csv\): leave one"):
        table(tmp_path, "file,label\n")


def test_a_table_in_another_encoding_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "meta.csv").write_bytes("file,label\na.wav,Vögel\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"meta\.csv: cannot be read as a table .*save it as CSV in UTF-8"):
        scan(tmp_path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("gone.wav,dog,,", "no file 'gone.wav' beside it or in audio/"),
        (",dog,,", "no file ''"),
        ("a.wav,,,", "no label for a.wav"),
        ("a.wav", "no label for a.wav"),
        ("a.wav,dog,early,", "could not convert string to float: 'early'"),
        ("a.wav,dog,2,1", "a.wav cannot start at 2 s and end at 1 s"),
        ("a.wav,dog,-1,", "a.wav cannot start at -1 s"),
        ("a.wav,dog,nan,", "a.wav cannot start at nan s"),
    ],
)
def test_an_unusable_row_is_named_by_its_line_and_the_rest_is_used(row: str, reason: str, tmp_path: Path) -> None:
    clips = table(tmp_path, f"file,label,start,end\na.wav,dog,,\n\n{row}\na.wav,cat,,\n", "a.wav")
    assert [clip.labels for clip in clips.clips] == [("dog",), ("cat",)]
    assert len(clips.problems) == 1
    assert clips.problems[0].startswith(f"meta.csv line 4: {reason}")  # line 3 is blank


def test_a_missing_label_among_several_is_a_problem(tmp_path: Path) -> None:
    clips = table(tmp_path, "file,labels\na.wav,dog;\na.wav,cat\n", "a.wav")
    assert clips.problems == ("meta.csv line 2: no label for a.wav",)


def test_a_table_of_unusable_rows_gives_the_first_reason(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no clips \(meta.csv line 2: no file 'gone.wav'"):
        table(tmp_path, "file,label\ngone.wav,dog\n")


# -- folds and targets ------------------------------------------------------------------------------------------------


@pytest.fixture
def folds(tmp_path: Path) -> ClipSet:
    """Three clips of folds 1, 1 and 2."""
    return table(tmp_path, "file,label,fold\na.wav,dog,1\na.wav,cat,1\na.wav,owl,2\n", "a.wav")


def test_only_and_without_divide_the_clips(folds: ClipSet) -> None:
    assert [clip.labels for clip in folds.only("2").clips] == [("owl",)]
    assert [clip.labels for clip in folds.without("2").clips] == [("dog",), ("cat",)]
    assert folds.only("1", "2").clips == folds.without().clips == folds.clips


def test_a_part_keeps_the_classes_of_the_whole(folds: ClipSet) -> None:
    assert folds.only("2").classes == ("cat", "dog", "owl")


def test_an_unknown_fold_lists_the_known_ones(folds: ClipSet) -> None:
    with pytest.raises(DataError, match="no split or fold 3: it has 1, 2"):
        folds.only("1", "3")
    with pytest.raises(DataError, match="no split or fold 3: it has 1, 2"):
        folds.without("3")


def test_a_set_without_folds_says_how_to_name_them(class_folder: Path) -> None:
    with pytest.raises(DataError, match="its clips name none: add a CSV with a column split or fold"):
        scan(class_folder).only("5")


def test_targets_by_hand(tmp_path: Path) -> None:
    clips = table(tmp_path, "file,labels\na.wav,dog\na.wav,cat;owl\n", "a.wav")
    assert clips.targets().tolist() == [[0, 1, 0], [1, 0, 1]]
    assert clips.targets(("owl", "dog", "fox", "cat")).tolist() == [[0, 1, 0, 0], [1, 0, 0, 1]]


def test_labels_that_a_model_does_not_know_are_named(folds: ClipSet) -> None:
    reason = r"labels \['cat', 'owl'\] are none of the model's: it knows dog, fox \(2 classes\)"
    with pytest.raises(DataError, match=reason):
        folds.targets(("dog", "fox"))


# -- steps ------------------------------------------------------------------------------------------------------------


def steps(num_clips: int, batch: int, *, start: int = 0, last: int, seed: int = 0) -> list[list[Key]]:
    return list(StepSampler(num_clips, batch, seed=seed, first=start, last=last))


@pytest.mark.parametrize(("num_clips", "batch"), [(12, 4), (10, 4), (7, 7), (3, 5), (1, 2)])
def test_every_epoch_holds_every_clip_once(num_clips: int, batch: int) -> None:
    """Also where a batch crosses the border of two epochs, or holds several."""
    keys = [key for step in steps(num_clips, batch, last=3 * num_clips) for key in step]
    assert keys[: num_clips * 3] != sorted(keys[: num_clips * 3]) or num_clips == 1
    assert sorted(keys) == [(epoch, index) for epoch in range(3 * batch) for index in range(num_clips)]
    assert [epoch for epoch, _ in keys] == sorted(epoch for epoch, _ in keys)


def test_every_step_has_a_whole_batch() -> None:
    assert [len(step) for step in steps(10, 4, last=7)] == [4] * 7


@pytest.mark.parametrize("start", [1, 2, 3, 6])
def test_starting_later_gives_exactly_the_tail(start: int) -> None:
    assert steps(10, 4, start=start, last=7) == steps(10, 4, last=7)[start:]


def test_the_order_changes_with_epoch_and_seed() -> None:
    one, two = steps(20, 20, last=2)
    assert [index for _, index in one] != [index for _, index in two]
    assert steps(20, 20, last=2, seed=1)[0] != one


def test_the_length_is_the_number_of_steps_left() -> None:
    assert len(StepSampler(10, 4, seed=0, first=3, last=7)) == 4


def test_no_clips_give_no_steps() -> None:
    with pytest.raises(DataError, match="no clips to train on"):
        StepSampler(0, 4, seed=0, first=0, last=1)


# -- waves ------------------------------------------------------------------------------------------------------------

CHANGE = partial(wave_augment, config=TrainConfig(recipe="", speed=0.1, roll_s=0.1), rate=32_000)


def waves(folder: Path, *, seed: int = 0, augmented: bool = True, num_samples: int = 16_000) -> Waves:
    return Waves(scan(folder), rate=32_000, num_samples=num_samples, seed=seed, augment=CHANGE if augmented else None)


def test_a_key_gives_the_same_samples_in_any_order(class_folder: Path) -> None:
    forward, backward = waves(class_folder), waves(class_folder)
    one = [forward[0, index][0] for index in range(12)]
    other = [backward[0, index][0] for index in reversed(range(12))]
    assert all(torch.equal(a, b) for a, b in zip(one, reversed(other), strict=True))


def test_another_epoch_or_seed_gives_other_samples(class_folder: Path) -> None:
    dog = waves(class_folder)[0, 5][0]
    assert not torch.equal(dog, waves(class_folder)[1, 5][0])
    assert not torch.equal(dog, waves(class_folder, seed=1)[0, 5][0])


def test_a_clip_comes_with_its_target_and_its_number(class_folder: Path) -> None:
    wave, target, index = waves(class_folder)[0, 5]
    assert wave.shape == (16_000,)
    assert target.tolist() == [0, 1, 0]
    assert index == 5


def test_without_augmentation_a_clip_is_its_beginning(class_folder: Path) -> None:
    write_wav(class_folder / "rain" / "0.wav", noise(1.0, 9))
    plain = waves(class_folder, augmented=False, num_samples=1000)
    expected = torch.from_numpy(noise(1.0, 9)[:1000])
    assert torch.allclose(plain[0, 8][0], expected, atol=1 / 32_768)
    assert torch.equal(plain[0, 8][0], plain[7, 8][0])


def test_a_segment_of_a_row_is_what_is_heard(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.repeat(np.array([0.0, 0.5, 0.0], np.float32), 320))
    clips = table(tmp_path, "file,label,start,end\na.wav,dog,0.01,0.02\n")
    wave = Waves(clips, rate=32_000, num_samples=400, seed=0)[0, 0][0]
    assert torch.equal(wave, fit(torch.full((320,), 0.5), 400))


def test_a_clip_is_decoded_once(class_folder: Path) -> None:
    plain = waves(class_folder, augmented=False)
    before = plain[0, 0][0].clone()
    (class_folder / "bell" / "0.wav").unlink()
    assert torch.equal(plain[1, 0][0], before)


def test_a_set_beyond_the_cache_is_decoded_anew(class_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchout.data.CACHE_HOURS", 1.5 / 3600)  # one of the clips of a second, not two
    plain = waves(class_folder, augmented=False)
    _ = plain[0, 0], plain[0, 1]
    for name in ("0.wav", "1.wav"):
        (class_folder / "bell" / name).unlink()
    assert len(plain[1, 0][0]) == 16_000
    with pytest.raises(FileNotFoundError, match=r"1\.wav"):
        plain[1, 1]


def test_batches_are_stacked_in_the_order_of_their_keys(class_folder: Path) -> None:
    sampler = StepSampler(12, 4, seed=0, first=1, last=2)
    ((wave, target, clip),) = batches(waves(class_folder), sampler, workers=0)
    assert wave.shape == (4, 16_000)
    assert target.shape == (4, 3)
    assert [(0, index) for index in clip.tolist()] == next(iter(sampler))
    assert torch.equal(wave[2], waves(class_folder)[0, int(clip[2])][0])


def test_workers_do_not_change_the_batches(class_folder: Path) -> None:
    sampler = StepSampler(12, 5, seed=0, first=0, last=4)
    alone, together = (list(batches(waves(class_folder), sampler, workers=workers)) for workers in (0, 2))
    assert len(alone) == len(together) == 4
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_reading_does_not_depend_on_torchs_own_seed(class_folder: Path) -> None:
    read = []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            ((wave, *_),) = batches(waves(class_folder), StepSampler(12, 6, seed=0, first=0, last=1), workers=0)
            read.append(wave)
    assert torch.equal(*read)


def test_the_order_of_an_epoch_is_keyed_by_its_number() -> None:
    (step,) = steps(8, 8, last=1, seed=3)
    assert [index for _, index in step] == torch.randperm(8, generator=keyed("order", 3, 0)).tolist()

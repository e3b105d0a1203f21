"""Every published layout, copied in the small, as rows of the prepared set."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import tone, write_wav
from datasets import load_from_disk

from patchout.checkpoint.labels import label_names
from patchout.data.prepare.job import plan, prepare
from patchout.data.prepare.layouts import LAYOUTS, read_layout
from patchout.data.prepare.listing import LayoutError
from patchout.errors import InputError

Rows = dict[str, dict[str, Any]]

SPEECH, DOG, SILENCE = "/m/09x0r", "/m/0bt9lr", "/m/028v0c"
DOG_IDS = ("abcdefghijk", "Ylmnopqrstu", "-_345678901", "zzzzzzzzzzz")
AUDIOSET = label_names("audioset")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def prepared(name: str, source: Path) -> tuple[dict[str, Any], Rows]:
    """What dataset.json says, and the rows by id."""
    out = source.parent / "prepared"
    info = prepare(plan(name, source, out=out))
    assert info == json.loads((out / "dataset.json").read_text())
    rows = {row["id"]: row for row in load_from_disk(str(out))}
    for row in rows.values():
        soundfile.read(io.BytesIO(row["audio"]))
    return info, rows


def without_audio(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("id", "audio")}


# -- one class a clip ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["audio", "audio_32k"])
def test_esc50(tmp_path: Path, folder: str) -> None:
    root = tmp_path / "ESC-50-master"
    for name in ("1-100032-A-0", "5-9032-A-49"):
        write_wav(root / folder / f"{name}.wav", tone(0.1))
    rows = "1-100032-A-0.wav,1,0,dog,True,100032,A\n5-9032-A-49.wav,5,49,hand_saw,False,9032,A\n"
    write(root / "meta/esc50.csv", f"filename,fold,target,category,esc10,src_file,take\n{rows}")
    info, found = prepared("esc50", root)
    assert without_audio(found["1-100032-A-0"]) == {"labels": [0], "fold": "1", "group": "100032"}
    assert found["5-9032-A-49"]["labels"] == [49]
    assert (info["task"], len(info["classes"]), info["counts"]) == ("multi_class", 50, {"1": 1, "5": 1})
    assert found["1-100032-A-0"]["audio"] == (root / folder / "1-100032-A-0.wav").read_bytes()


@pytest.mark.parametrize(("year", "suffix"), [("2018", "txt"), ("2019", "csv"), ("2020", "csv")])
def test_dcase(tmp_path: Path, year: str, suffix: str) -> None:
    root = tmp_path / "development"
    names = [f"audio/{name}.wav" for name in ("airport-paris-7-1-a", "tram-oslo-2-3-s4", "bus-milan-1-1-a")]
    for name in names:
        write_wav(root / name, np.stack([tone(0.1), tone(0.1, 900)], axis=1))
    meta = ["airport\tparis-7\ta", "tram\toslo-2\ts4", "bus\tmilan-1\ta"]
    rows = "".join(f"{name}\t{about}\n" for name, about in zip(names, meta, strict=True))
    write(root / "meta.csv", f"filename\tscene_label\tidentifier\tsource_label\n{rows}")
    header = "" if year == "2018" else "filename\tscene_label\n"
    write(root / f"evaluation_setup/fold1_train.{suffix}", f"{header}{names[0]}\tairport\n")
    write(root / f"evaluation_setup/fold1_evaluate.{suffix}", f"{header}{names[1]}\ttram\n")
    info, found = prepared(f"dcase{year}", root)
    first, second = found["airport-paris-7-1-a"], found["tram-oslo-2-3-s4"]
    assert without_audio(first) == {"labels": [0], "split": "train", "group": "paris-7", "device": "a"}
    assert without_audio(second) == {"labels": [9], "split": "test", "group": "oslo-2", "device": "s4"}
    assert info["counts"] == {"train": 1, "test": 1}, "a clip that the set-up does not list is in no split"
    assert soundfile.info(io.BytesIO(first["audio"])).channels == 2


def test_speech_commands(tmp_path: Path) -> None:
    root = tmp_path / "speech"
    for name in ("yes/aa_nohash_0", "yes/aa_nohash_1", "zero/bb_nohash_0", "backward/cc_nohash_0"):
        write_wav(root / f"{name}.wav", tone(0.1, rate=16000), 16000)
    write_wav(root / "_background_noise_" / "pink_noise.wav", tone(0.1))
    write(root / "validation_list.txt", "yes/aa_nohash_1.wav\n")
    write(root / "testing_list.txt", "zero/bb_nohash_0.wav\n")
    info, found = prepared("speechcommands", root)
    assert info["classes"] == sorted(info["classes"])
    assert {
        id: (info["classes"][row["labels"][0]], row["split"], row["group"]) for id, row in found.items()
    } == {
        "yes/aa_nohash_0": ("yes", "train", "aa"),
        "yes/aa_nohash_1": ("yes", "valid", "aa"),
        "zero/bb_nohash_0": ("zero", "test", "bb"),
        "backward/cc_nohash_0": ("backward", "train", "cc"),
    }
    assert info["official"]["train"] == {"listed": 84_843, "present": 2}


# -- several classes a clip ----------------------------------------------------------------------------------


def test_fsd50k(tmp_path: Path) -> None:
    root = tmp_path / "FSD50K"
    for name in ("dev_audio/64760", "dev_audio/16399", "eval_audio/37199"):
        write_wav(root / f"FSD50K.{name}.wav", tone(0.1))
    tables = root / "FSD50K.ground_truth"
    write(tables / "vocabulary.csv", "0,Accordion,/m/0mkg\n1,Bark,/m/05tny_\n2,Dog,/m/0bt9lr\n")
    dev = '64760,"Bark,Dog","/m/05tny_,/m/0bt9lr",train\n16399,Dog,/m/0bt9lr,val\n'
    write(tables / "dev.csv", f"fname,labels,mids,split\n{dev}")
    write(tables / "eval.csv", "fname,labels,mids\n37199,Accordion,/m/0mkg\n")
    info, found = prepared("fsd50k", root)
    assert without_audio(found["64760"]) == {"labels": [1, 2], "split": "train"}
    assert without_audio(found["16399"]) == {"labels": [2], "split": "val"}
    assert without_audio(found["37199"]) == {"labels": [0], "split": "eval"}
    assert (info["classes"], info["task"]) == (["Accordion", "Bark", "Dog"], "multi_label")


def test_openmic(tmp_path: Path) -> None:
    root = tmp_path / "openmic-2018"
    for key in ("000046_3840", "155311_453120"):
        path = root / "audio" / key[:3] / f"{key}.ogg"
        path.parent.mkdir(parents=True)
        soundfile.write(path, tone(0.2), 44100)
    classes = label_names("openmic2018")
    write(root / "class-map.json", json.dumps({name: index for index, name in enumerate(classes)}))
    judged = "000046_3840,clarinet,0.17105,3\n000046_3840,flute,0.75,3\n155311_453120,voice,0.5,3\n"
    write(
        root / "openmic-2018-aggregated-labels.csv",
        f"sample_key,instrument,relevance,num_responses\n{judged}",
    )
    write(root / "partitions/split01_train.csv", "000046_3840\n")
    write(root / "partitions/split01_test.csv", "155311_453120\n")
    info, found = prepared("openmic", root)
    row = found["000046_3840"]
    clarinet, flute, voice = map(classes.index, ("clarinet", "flute", "voice"))
    assert (row["labels"], row["split"]) == ([flute], "train")
    assert {index: row["probabilities"][index] for index in np.flatnonzero(row["known"])} == pytest.approx(
        {clarinet: 0.17105, flute: 0.75}
    )
    assert sum(row["probabilities"]) == pytest.approx(0.92105)
    other = found["155311_453120"]
    assert (other["labels"], np.flatnonzero(other["known"]).tolist()) == ([], [voice]), (
        "0.5 is no label, but judged"
    )
    assert tuple(info["classes"]) == classes


# -- AudioSet ------------------------------------------------------------------------------------------------


def segments(*rows: str) -> str:
    head = "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=22160\n"
    return (
        head + "# YTID, start_seconds, end_seconds, positive_labels\n" + "".join(f"{row}\n" for row in rows)
    )


def lists(root: Path) -> Path:
    """Three lists; the sounds are called in three of the ways that there are."""
    write_wav(root / "balanced_train_segments" / f"Y{DOG_IDS[0]}.wav", tone(0.1))
    write_wav(root / "unbalanced_train_segments/part00" / f"{DOG_IDS[1]}_30.000.wav", tone(0.1, 500))
    write_wav(root / "eval" / f"{DOG_IDS[2]}.flac", tone(0.1, 600))
    write(root / "balanced_train_segments.csv", segments(f'{DOG_IDS[0]}, 0.000, 10.000, "{SPEECH},{DOG}"'))
    write(root / "unbalanced_train_segments.csv", segments(f'{DOG_IDS[1]}, 30.000, 40.000, "{DOG}"'))
    write(root / "eval_segments.csv", segments(f'{DOG_IDS[2]}, 0.000, 10.000, "{SILENCE}"'))
    return root


def hdf5(root: Path) -> Path:
    """The files of the public code: names of 20 bytes, sounds, targets packed into 66 bytes."""
    for split, (id, labels) in by_split().items():
        target = np.zeros(527, np.uint8)
        target[labels] = 1
        path = root / "audioset_hdf5s/mp3" / f"{split}_segments_mp3.hdf"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["audio_name"] = np.array([f"12/Y{id}.mp3".encode()], "S20")
            sounds = file.create_dataset("mp3", (1,), h5py.vlen_dtype(np.uint8))
            sounds[0] = np.frombuffer(wav_bytes(), np.uint8)
            octets = [target[first : first + 8] for first in range(0, 527, 8)]
            packed = np.array(
                [[sum(int(bit) << (7 - place) for place, bit in enumerate(octet)) for octet in octets]],
                np.uint8,
            )
            assert packed.shape == (1, 66)
            file["target"] = packed
    return root


def hub(root: Path, labels_as: Callable[[int], Any], *, names: bool = False) -> Path:
    """Parquet files, two row groups each."""
    for split, (id, labels) in by_split().items():
        folder = {"balanced_train": "bal_train", "unbalanced_train": "unbal_train", "eval": "eval"}[split]
        ids = [id, f"{id[:-1]}2"]
        sounds = [{"bytes": wav_bytes(), "path": f"{name}.flac"} for name in ids]
        columns = {"audio": sounds, "human_labels" if names else "labels": [list(map(labels_as, labels))] * 2}
        path = root / "data" / folder / "000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(columns if names else columns | {"video_id": ids}), path, row_group_size=1)
    return root


def by_split() -> dict[str, tuple[str, list[int]]]:
    dog = AUDIOSET.index("Dog")
    splits = ("balanced_train", "unbalanced_train", "eval")
    labels = ([0, dog], [dog], [AUDIOSET.index("Silence")])
    return dict(zip(splits, zip(DOG_IDS, labels, strict=False), strict=True))


def wav_bytes() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(0.1), 32000, format="WAV")
    return file.getvalue()


def mid(index: int) -> str:
    path = Path(__file__).parent.parent / "src/patchout/checkpoint/label_lists/audioset.csv"
    with path.open(encoding="utf-8") as file:
        return {int(row["index"]): row["mid"] for row in csv.DictReader(file)}[index]


WAYS: dict[str, Callable[[Path], Path]] = {
    "lists": lists,
    "hdf5": hdf5,
    "hub identifiers": lambda root: hub(root, mid),
    "hub numbers": lambda root: hub(root, int),
    "hub names": lambda root: hub(root, AUDIOSET.__getitem__, names=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_audioset(tmp_path: Path, way: str) -> None:
    info, found = prepared("audioset", WAYS[way](tmp_path / "AudioSet"))
    for split, (id, labels) in by_split().items():
        assert without_audio(found[id]) == {"labels": labels, "split": split}
    assert (len(info["classes"]), info["task"]) == (527, "multi_label")
    listed = 1 if way == "lists" else 20_371
    assert info["official"]["eval"] == {"listed": listed, "present": 2 if "hub" in way else 1}


def test_audioset20k_leaves_the_unbalanced_clips_out(tmp_path: Path) -> None:
    info, found = prepared("audioset20k", lists(tmp_path / "AudioSet"))
    assert info["counts"] == {"balanced_train": 1, "eval": 1}
    assert DOG_IDS[1] not in found


def test_a_listed_clip_without_a_sound_is_missing(tmp_path: Path) -> None:
    root = lists(tmp_path / "AudioSet")
    (root / "eval" / f"{DOG_IDS[2]}.flac").unlink()
    info, _ = prepared("audioset20k", root)
    assert info["official"]["eval"] == {"listed": 1, "present": 0}
    assert f"{DOG_IDS[2]},,missing," in (tmp_path / "prepared/report.csv").read_text().replace('"', "")


# -- a user's own --------------------------------------------------------------------------------------------


def test_class_folders(class_folder: Path) -> None:
    info, found = prepared("folder", class_folder)
    assert info["classes"] == ["bell", "dog", "rain"]
    assert len(found) == 12
    assert without_audio(found["dog/3.wav"]) == {"labels": [1]}
    assert (info["counts"], info["official"]) == ({"": 12}, {})


def test_a_list_with_columns(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_wav(tmp_path / "own" / f"{name}.wav", tone(0.1))
    write(
        tmp_path / "own/list.csv",
        "file,labels,split,group\na.wav,dog;cat,train,x\nb.wav,dog,test,y\nc.wav,dog,test,y\n",
    )
    info, found = prepared("folder", tmp_path / "own")
    assert without_audio(found["a.wav"]) == {"labels": [1, 0], "split": "train", "group": "x"}
    assert info["left_out"] == 1
    assert "c.wav" in (tmp_path / "prepared/report.csv").read_text()


def test_a_list_alone_will_do(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_wav(tmp_path / f"own/{name}.wav", tone(0.1))
    for name, label in (("one", "dog"), ("two", "cat")):
        write(tmp_path / f"own/{name}.csv", f"file,label\na.wav,{label}\n")
    info, found = prepared("folder", tmp_path / "own/two.csv")
    assert (info["classes"], list(found)) == (["cat"], ["a.wav"])


def test_a_prepared_set_is_not_prepared_again(class_folder: Path, tmp_path: Path) -> None:
    prepared("folder", class_folder)
    with pytest.raises(LayoutError, match="is packed already"):
        read_layout("folder", tmp_path / "prepared")


# -- wrong layouts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(LAYOUTS.keys() - {"folder"}))
def test_a_wrong_folder_says_what_is_needed_and_missing(tmp_path: Path, name: str) -> None:
    write_wav(tmp_path / "music" / "a.wav", tone(0.1))
    with pytest.raises(LayoutError, match=r"needs .*; missing: "):
        read_layout(name, tmp_path)


def test_only_what_is_missing_is_named_so(tmp_path: Path) -> None:
    write(tmp_path / "ESC-50/meta/esc50.csv", "")
    with pytest.raises(
        LayoutError, match=r"needs meta/esc50.csv, audio or audio_32k; missing: audio or audio_32k$"
    ):
        read_layout("esc50", tmp_path)


def test_a_label_that_is_no_class_is_named(tmp_path: Path) -> None:
    root = lists(tmp_path)
    write(root / "eval_segments.csv", segments(f'{DOG_IDS[2]}, 0.000, 10.000, "/m/nonsense"'))
    with pytest.raises(LayoutError, match="'/m/nonsense' is none of the 527 classes"):
        list(read_layout("audioset20k", root).clips)


def test_a_table_with_another_header_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "meta/esc50.csv", "file,class\na.wav,dog\n")
    (tmp_path / "audio").mkdir()
    with pytest.raises(LayoutError, match="has no column category, filename, fold, src_file"):
        read_layout("esc50", tmp_path)


def test_hdf5_without_h5py_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = read_layout("audioset", hdf5(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LayoutError, match=r"pip install 'patchout\[hdf5\]'"):
        list(listing.clips)


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder"):
        read_layout("esc50", tmp_path / "nowhere")

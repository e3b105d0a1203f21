"""Embeddings of tasks: what a model must keep to, what is kept on disk, how an interrupted run goes on."""

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RATE, tiny_config
from hear_folders import SECONDS, change, make_task, silence
from torch import Tensor, nn

from patchout.checkpoint.own import save
from patchout.hear.embeddings import (
    EmbeddingError,
    Rows,
    embed_task,
    embedding_s,
    newer_wavs,
    read_embeddings,
    read_rows,
)
from patchout.hear.settings import Settings, stored_settings
from patchout.hear.subject import ModuleError, Subject, batch_size, open_module, open_subject, timestamps
from patchout.hear.tasks import Task, TaskError, read_task
from patchout.inference.embedding import EmbedConfig
from patchout.models.maskspec_classifier import MaskSpecClassifier, MaskSpecClassifierConfig
from patchout.models.passt import Passt


class Loudness(nn.Module):
    """Two values per sound or per 100 ms; counts how many sounds it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.sample_rate, self.scene_embedding_size, self.timestamp_embedding_size = RATE, 2, 2
        self.seen: list[int] = []


def scene(wave: Tensor, model: Loudness) -> Tensor:
    model.seen.append(len(wave))
    return model.scale * torch.stack([wave.square().mean(1), wave.diff(dim=1).square().mean(1)], dim=1)


def timestamp(wave: Tensor, model: Loudness) -> tuple[Tensor, Tensor]:
    model.seen.append(len(wave))
    frames = wave.unfold(1, 3200, 3200)
    times_ms = (100.0 * torch.arange(frames.shape[1]) + 50).expand(len(wave), -1)
    return model.scale * torch.stack([frames.square().mean(2), frames.amax(2)], dim=2), times_ms


def module(**functions: object) -> ModuleType:
    made = ModuleType("loudness")
    made.__dict__.update(
        {"load_model": Loudness, "get_scene_embeddings": scene, "get_timestamp_embeddings": timestamp}
        | functions
    )
    return made


def loudness() -> Subject:
    return open_module("loudness", module())


def seen(subject: Subject) -> int:
    """How many sounds its model was given."""
    assert isinstance(subject.model, Loudness)
    return sum(subject.model.seen)


@pytest.fixture
def scene_task(tmp_path: Path) -> Task:
    return read_task(make_task(tmp_path / "tasks"))


@pytest.fixture
def event_task(tmp_path: Path) -> Task:
    return read_task(make_task(tmp_path / "tasks", kind="event"))


def same(ours: Rows, others: Rows) -> bool:
    return all(bool(np.all(np.asarray(a) == np.asarray(b))) for a, b in zip(ours, others, strict=True))


# -- what is kept --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["trainvaltest", "presplit_kfold", "new_split_kfold"])
def test_scenes_lie_in_the_order_of_training(tmp_path: Path, mode: str) -> None:
    task = read_task(make_task(tmp_path / "tasks", mode=mode))
    embedded = embed_task(loudness(), task, tmp_path / "out")
    for split, files in task.shuffled().items():
        rows = read_rows(embedded, split)
        assert rows.files == tuple(files)
        assert isinstance(rows.values, np.memmap)
        expected = [task.labels.index(task.annotations[split][file][0]) for file in files]
        assert rows.target.argmax(axis=1).tolist() == expected
        assert rows.offsets.tolist() == [0, 1, 2, 3]


def test_an_embedding_is_that_of_its_own_clip(tmp_path: Path, scene_task: Task) -> None:
    (scene_task.folder / "32000" / "train" / "train1.wav").unlink()
    silence(scene_task.folder / "32000" / "train" / "train1.wav", SECONDS)
    rows = read_rows(embed_task(loudness(), scene_task, tmp_path / "out"), "train")
    assert [file for file, value in zip(rows.files, rows.values, strict=True) if value[0] == 0] == [
        "train1.wav"
    ]


def test_frames_of_clips_of_any_length_are_kept_one_after_another(tmp_path: Path) -> None:
    task = read_task(make_task(tmp_path / "tasks", kind="event", sample_duration=None))
    silence(task.folder / "32000" / "test" / "test1.wav", 0.2)
    rows = read_rows(embed_task(loudness(), task, tmp_path / "out"), "test")
    lengths = dict(zip(rows.files, np.diff(rows.offsets).tolist(), strict=True))
    assert lengths == {"test0.wav": 5, "test1.wav": 2, "test2.wav": 5}
    first = rows.offsets[rows.files.index("test0.wav")]
    assert rows.times_ms[first : first + 5].tolist() == [50, 150, 250, 350, 450]
    assert rows.target[first : first + 5].tolist() == [
        [0, 0],
        [1, 0],
        [1, 0],
        [0, 0],
        [0, 0],
    ]  # 100 to 300 ms


def test_several_devices_and_workers_write_the_same(tmp_path: Path, event_task: Task) -> None:
    one = embed_task(loudness(), event_task, tmp_path / "one")
    two = embed_task(loudness(), event_task, tmp_path / "two", devices=("cpu", "cpu"))
    assert same(read_rows(one, "train"), read_rows(two, "train"))


def test_our_models_are_judged_with_their_settings(tmp_path: Path, event_task: Task) -> None:
    save(Passt(tiny_config(), rng=torch.Generator().manual_seed(0)), tmp_path / "tiny.safetensors")
    config = EmbedConfig(levels=("low", "mid"))
    subject = open_subject(str(tmp_path / "tiny.safetensors"), config=config)
    rows = read_rows(embed_task(subject, event_task, tmp_path / "out"), "train")
    assert rows.values.shape == (3 * 11, 6 * 128 + 32)
    assert rows.times_ms[:3].tolist() == [0, 50, 100]


@pytest.mark.parametrize(
    ("duration_s", "rate", "clips"),
    [
        (1, 32_000, 42),
        (0.81, 32_000, 51),
        (0.56, 32_000, 74),
        (120, 32_000, 1),
        (5, 16_000, 16),
        (None, 16_000, 1),
    ],
)
def test_a_call_has_as_many_clips_as_in_the_kit(duration_s: float | None, rate: int, clips: int) -> None:
    assert batch_size(duration_s, rate) == clips


# -- going on ------------------------------------------------------------------------------------------------


def test_a_task_that_is_done_is_not_embedded_again(tmp_path: Path, scene_task: Task) -> None:
    first = embed_task(loudness(), scene_task, tmp_path / "out")
    subject = loudness()
    again = embed_task(subject, scene_task, tmp_path / "out")
    assert seen(subject) == 0
    assert same(read_rows(first, "test"), read_rows(again, "test"))


def test_an_interrupted_run_goes_on_where_it_stopped(
    tmp_path: Path, event_task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchout.hear.embeddings.PART_S", SECONDS)  # one clip a part
    whole = embed_task(loudness(), event_task, tmp_path / "whole")
    done: list[int] = []

    def stop(clips: int) -> None:
        done.append(clips)
        if sum(done) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed_task(loudness(), event_task, tmp_path / "out", on_clips=stop)
    with pytest.raises(EmbeddingError, match="not all embeddings are there"):
        read_embeddings(tmp_path / "out" / event_task.folder.name)
    subject = loudness()
    embedded = embed_task(subject, event_task, tmp_path / "out")
    assert seen(subject) == 4
    assert all(same(read_rows(embedded, split), read_rows(whole, split)) for split in event_task.splits)


def test_rows_of_a_run_that_was_killed_while_writing_are_written_again(
    tmp_path: Path, event_task: Task
) -> None:
    """The sizes come last, and say how many of the values and the times count."""
    whole = embed_task(loudness(), event_task, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "out")
    folder = tmp_path / "out" / event_task.folder.name
    (folder / ".done.embeddings").unlink()
    (folder / "test.embedding-dimensions.json").write_text("[5, 2]")  # of three clips with five rows each
    with (folder / "test.embeddings.npy").open("ab") as file:
        file.write(b"half")
    subject = loudness()
    again = embed_task(subject, event_task, tmp_path / "out")
    assert seen(subject) == 2
    assert same(read_rows(again, "test"), read_rows(whole, "test"))


def test_the_seconds_of_the_model_add_up(tmp_path: Path, scene_task: Task) -> None:
    folder = embed_task(loudness(), scene_task, tmp_path / "out").folder
    seconds = json.loads((folder / "profile.embeddings.json").read_text())
    assert set(seconds) == {"train", "valid", "test"}
    assert embedding_s(folder) == {"embedding": sum(seconds.values())}
    assert min(seconds.values()) > 0
    assert embedding_s(scene_task.folder) == {}


def test_models_are_not_mixed_in_one_folder(tmp_path: Path, scene_task: Task) -> None:
    embed_task(loudness(), scene_task, tmp_path / "out")
    other = make_task(tmp_path / "tasks", task_name="other")
    with pytest.raises(
        EmbeddingError, match=r"made with model 'loudness', this is 'louder'; give another --out"
    ):
        embed_task(open_module("louder", module()), read_task(other), tmp_path / "out")
    trained = loudness()
    trained.model.load_state_dict({"scale": torch.tensor([2.0])})
    with pytest.raises(EmbeddingError, match="made with weights_sha256"):
        embed_task(trained, read_task(other), tmp_path / "out")


def test_a_task_of_another_model_copied_into_the_folder_is_refused(tmp_path: Path, scene_task: Task) -> None:
    embed_task(loudness(), scene_task, tmp_path / "out")
    louder = open_module("louder", module())
    embed_task(louder, read_task(make_task(tmp_path / "tasks", task_name="other")), tmp_path / "other")
    shutil.copytree(tmp_path / "out" / scene_task.folder.name, tmp_path / "other" / scene_task.folder.name)
    with pytest.raises(EmbeddingError, match="made with model 'loudness', this is 'louder'"):
        embed_task(louder, scene_task, tmp_path / "other")


def test_a_task_that_has_changed_is_not_taken_for_the_old_one(tmp_path: Path, scene_task: Task) -> None:
    embed_task(loudness(), scene_task, tmp_path / "out")
    change(scene_task.folder / "test.json", **{"test0.wav": ["low"]})
    with pytest.raises(EmbeddingError, match="task_sha256"):
        embed_task(loudness(), read_task(scene_task.folder), tmp_path / "out")


def test_wavs_that_are_newer_than_their_embeddings_are_listed(tmp_path: Path, scene_task: Task) -> None:
    folder = embed_task(loudness(), scene_task, tmp_path / "out").folder
    wavs = sorted((scene_task.folder / "32000" / "valid").iterdir())
    os.utime(folder / "valid.embeddings.npy", (1e9, 1e9))
    for wav, time_s in zip(wavs, (9e8, 1.1e9, 9e9), strict=True):  # older, newer, by a clock that was wrong
        os.utime(wav, (time_s, time_s))
    assert newer_wavs(scene_task, folder, RATE) == ["valid/valid1.wav"]
    wavs[1].unlink()  # embeddings need no wavs
    assert newer_wavs(scene_task, folder, RATE) == []


def test_a_missing_rate_and_a_broken_wav_are_refused(tmp_path: Path, scene_task: Task) -> None:
    subject = loudness()
    subject.model.sample_rate = 16_000  # type: ignore[assignment]
    with pytest.raises(TaskError, match=r"patchout hear resample --tasks \S+ --rate 16000"):
        embed_task(subject, scene_task, tmp_path / "out")
    silence(scene_task.folder / "32000" / "test" / "test1.wav", SECONDS, 16_000)
    with pytest.raises(TaskError, match=r"test1.wav: has 16000 Hz"):
        embed_task(loudness(), scene_task, tmp_path / "out")


# -- modules that break a rule -------------------------------------------------------------------------------


def moved(change_times: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Loudness], tuple[Tensor, Tensor]]:
    def broken(wave: Tensor, model: Loudness) -> tuple[Tensor, Tensor]:
        values, times_ms = timestamp(wave, model)
        return values, change_times(times_ms)

    return broken


@pytest.mark.parametrize(
    ("function", "rule"),
    [
        (moved(lambda times: times.flip(1)), "timestamps to increase within a clip"),
        (
            moved(lambda times: times + torch.tensor([0, 0, 5.0, 0, 0])),
            "timestamps to be evenly spaced within 1 ms",
        ),
        (moved(lambda times: times + 60), "timestamps to lie within the sound, 0 to 500 ms"),
        (moved(lambda times: times / 1000), "timestamps to be milliseconds that reach its end at 500 ms"),
        (moved(lambda times: times * torch.nan), "timestamps to be finite"),
        (moved(lambda times: times[0]), "timestamps to have the shape"),
        (lambda wave, model: timestamp(wave, model)[0], "must return two tensors"),
        (
            lambda wave, model: (timestamp(wave, model)[0] * torch.nan, timestamp(wave, model)[1]),
            "NaN or infinite",
        ),
        (
            lambda wave, model: (timestamp(wave, model)[0][:, :-1], timestamp(wave, model)[1]),
            r"shape \(2, 5, 2\)",
        ),
        (
            lambda wave, model: (timestamp(wave, model)[0].double(), timestamp(wave, model)[1]),
            "got torch.float64",
        ),
    ],
)
def test_timestamps_that_break_a_rule_are_refused_with_it(function: Any, rule: str) -> None:
    subject = open_module("bad", module(get_timestamp_embeddings=function))
    with pytest.raises(ModuleError, match=f"bad: .*{rule}"):
        timestamps(subject, torch.zeros(2, RATE // 2))


@pytest.mark.parametrize(
    ("function", "rule"),
    [
        (lambda wave, model: scene(wave, model) * torch.nan, "NaN or infinite"),
        (lambda wave, model: scene(wave, model)[:, :1], r"must have the shape \(3, 2\), got \(3, 1\)"),
        (lambda wave, model: scene(wave, model).numpy(), "must be a float32 tensor, got ndarray"),
        (
            lambda wave, model: wave.fail(),
            r"bad: get_scene_embeddings of waves .* failed \(AttributeError: .*fail",
        ),
    ],
)
def test_scenes_that_break_a_rule_leave_no_embeddings(
    tmp_path: Path, scene_task: Task, function: Any, rule: str
) -> None:
    def without_gradient(wave: Tensor, model: Loudness) -> Any:
        return function(wave, model)

    with pytest.raises(ModuleError, match=rule):
        embed_task(
            open_module("bad", module(get_scene_embeddings=without_gradient)), scene_task, tmp_path / "out"
        )
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.np*")) == 0


@pytest.mark.parametrize(
    ("attribute", "value", "rule"),
    [
        ("sample_rate", 8_000, "one of 16000"),
        ("scene_embedding_size", 2.0, "scene_embedding_size must be an int"),
    ],
)
def test_a_model_without_its_attributes_is_refused(attribute: str, value: object, rule: str) -> None:
    def load_model() -> Loudness:
        model = Loudness()
        setattr(model, attribute, value)
        return model

    with pytest.raises(ModuleError, match=rule):
        open_module("bad", module(load_model=load_model))


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ModuleError, match="get_scene_embeddings is not there"):
        open_module("bad", module(get_scene_embeddings=None))
    with pytest.raises(ModuleError, match=r"must give a torch.nn.Module, got dict"):
        open_module("bad", module(load_model=dict))
    for name in ("no.such.module", "./nowhere", "no_such+module"):
        with pytest.raises(
            (ValueError, FileNotFoundError), match=r"unknown model|no such file|cannot be imported"
        ):
            open_subject(name)


def test_any_importable_module_is_opened_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "someones.model", module())
    assert open_subject("someones.model").rate == RATE
    assert open_subject("someones.model+someones.model").model.scene_embedding_size == 4
    with pytest.raises(ValueError, match="settings are for our models"):
        open_subject("someones.model", config=EmbedConfig())


def test_a_module_that_lacks_something_says_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import not_installed")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ModuleError, match=r"needs_more: cannot be imported \(ModuleNotFoundError: .*not_installed"
    ):
        open_subject("needs_more")


@pytest.mark.parametrize("name", ["passt-s", "passt-s-ap476", "owner/model", "runs/one"])
def test_whatever_the_zoo_knows_is_one_of_ours(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def load(name: str, *, progress: object) -> Passt:
        asked.append(name)
        return Passt(tiny_config())

    (tmp_path / "runs" / "one").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("patchout.checkpoint.zoo.load", load)
    subject = open_subject(name)
    assert subject.identity().keys() == {"model", "detail", "settings", "weights_sha256"}
    assert stored_settings(json.loads(json.dumps(subject.identity())), "") == Settings(
        EmbedConfig(), mel_hop_ms=10.0
    )
    assert asked == [name]
    assert open_subject(f"./{name}").name == (
        name if "/one" in name else f"./{name}"
    )  # a folder has one name


def test_an_encoder_without_classes_has_no_high_level(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = MaskSpecClassifierConfig(labels=(), width=32, heads=2, depth=1, columns=64)
    monkeypatch.setattr("patchout.checkpoint.zoo.load", lambda name, *, progress: MaskSpecClassifier(shape))
    subject = open_subject("runs/pre")
    assert subject.model.scene_embedding_size == 32
    assert (
        subject.identity()["settings"]["levels"] == subject.identity()["settings"]["scene_levels"] == ["mid"]
    )
    with pytest.raises(ValueError, match="runs/pre is an encoder without class scores: ask for --levels mid"):
        open_subject("runs/pre", config=EmbedConfig())


@pytest.mark.parametrize("earlier", [{"detail": f"{EmbedConfig()!r}, hop_length=320"}, {"detail": ""}])
def test_what_an_earlier_version_embedded_is_the_same_model_s(
    earlier: dict[str, str], scene_task: Task, tmp_path: Path
) -> None:
    """The settings stood as Python text in `detail`, and nowhere if a module of the package was named."""
    save(Passt(tiny_config(), rng=torch.Generator().manual_seed(0)), tmp_path / "tiny.safetensors")
    subject = open_subject(str(tmp_path / "tiny.safetensors"))
    embed_task(subject, scene_task, tmp_path / "out")
    for path in (tmp_path / "out" / "model.json", tmp_path / "out" / scene_task.folder.name / "task.json"):
        record = json.loads(path.read_text())
        assert record.pop("settings") == subject.identity()["settings"]
        path.write_text(json.dumps(record | earlier))
    embed_task(subject, scene_task, tmp_path / "out")
    other = open_subject(str(tmp_path / "tiny.safetensors"), config=EmbedConfig(levels=("mid",)))
    if earlier["detail"]:
        with pytest.raises(EmbeddingError, match="was made with settings"):
            embed_task(other, scene_task, tmp_path / "out")


def test_code_of_this_package_is_no_part_of_a_model() -> None:
    """It changes with every version; what it makes of the weights does not."""
    assert (
        "code_sha256"
        not in open_module("x", module(__name__="patchout.hear.base", __file__=__file__)).identity()
    )


class OwnError(Exception):
    """Of someone else."""


@pytest.mark.parametrize("error", [OwnError("no weights"), KeyError("weights"), TypeError()])
def test_whatever_a_module_raises_is_a_sentence(error: Exception, scene_task: Task, tmp_path: Path) -> None:
    def fail(*args: object) -> Any:
        raise error

    with pytest.raises(ModuleError, match=f"bad: load_model failed \\({type(error).__name__}"):
        open_module("bad", module(load_model=fail))
    with pytest.raises(
        ModuleError, match=f"bad: get_scene_embeddings of waves .* failed \\({type(error).__name__}"
    ):
        embed_task(open_module("bad", module(get_scene_embeddings=fail)), scene_task, tmp_path / "out")


def test_a_module_that_cannot_be_imported_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_written.py").write_text("def load_model(")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleError, match=r"half_written: cannot be imported \(SyntaxError: "):
        open_subject("half_written")


def test_other_code_is_another_model(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("one")
    one = open_module("m", module(__file__=str(tmp_path / "m.py")))
    before = one.identity()
    (tmp_path / "m.py").write_text("two")
    assert one.identity() != before


# -- the kit's folders ---------------------------------------------------------------------------------------


def kit_folder(task: Task, labels: object, stamps: list[tuple[str, float]] | None) -> Path:
    """Write the embeddings of a task as the kit does: raw floats, shapes, pickled labels, times."""
    for split in task.splits:
        values = np.arange(12, dtype=np.float32).reshape(6, 2)
        values.tofile(task.folder / f"{split}.embeddings.npy")
        (task.folder / f"{split}.embedding-dimensions.json").write_text("[6, 2]")
        (task.folder / f"{split}.target-labels.pkl").write_bytes(pickle.dumps(labels))
        if stamps:
            (task.folder / f"{split}.filename-timestamps.json").write_text(json.dumps(stamps))
    return task.folder


def test_the_kits_scenes_are_read(scene_task: Task) -> None:
    folder = kit_folder(scene_task, [["low"], ["high"]] * 3, None)
    rows = read_rows(read_embeddings(folder), "valid")
    assert rows.values.tolist() == np.arange(12).reshape(6, 2).tolist()
    assert rows.target.tolist() == [[0, 1], [1, 0]] * 3
    assert rows.offsets.tolist() == list(range(7))


def test_the_kits_events_are_read_clip_by_clip(event_task: Task) -> None:
    stamps = [(f"emb/toy/train/{name}.wav", 50.0 * time) for name in "ab" for time in range(3)]
    rows = read_rows(
        read_embeddings(kit_folder(event_task, [[], ["high"], ["high", "low", "low"]] * 2, stamps)), "train"
    )
    assert (rows.files, rows.offsets.tolist()) == (("a.wav", "b.wav"), [0, 3, 6])
    assert rows.times_ms.tolist() == [0, 50, 100] * 2
    assert rows.target[:3].tolist() == [[0, 0], [1, 0], [1, 1]]


def test_a_pickle_that_could_run_code_is_refused(scene_task: Task) -> None:
    folder = kit_folder(scene_task, [Path("x")] * 6, None)
    with pytest.raises(EmbeddingError, match="not one of the kit's"):
        read_rows(read_embeddings(folder), "train")


def test_a_cut_file_of_the_kit_is_refused(scene_task: Task) -> None:
    folder = kit_folder(scene_task, [["low"]] * 6, None)
    (folder / "train.embeddings.npy").write_bytes(b"1234")
    with pytest.raises(EmbeddingError, match=r"train.embeddings.npy: has 4 bytes, 6 x 2 floats"):
        read_rows(read_embeddings(folder), "train")


def test_embeddings_that_are_not_finite_are_refused(scene_task: Task) -> None:
    folder = kit_folder(scene_task, [["low"]] * 6, None)
    np.full(12, np.inf, np.float32).tofile(folder / "test.embeddings.npy")
    with pytest.raises(EmbeddingError, match="test has NaN or infinite"):
        read_rows(read_embeddings(folder), "test")

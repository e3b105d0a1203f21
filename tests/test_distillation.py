"""Knowledge distillation: what the teachers hear, their part of the loss, their kept scores, whole runs."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import LABELS, noise, tiny_config, tone, undrawn_report, write_wav
from test_train import QUIET, batch_of, config, log, place_of, plain_logits, same, weights
from torch import Tensor, nn

import patchout
from patchout.checkpoint import own as checkpoint
from patchout.data import augment
from patchout.data.sets import ClipSet, scan
from patchout.errors import InputError
from patchout.inference.window_scores import score
from patchout.models.decision import Decision
from patchout.models.passt import Passt
from patchout.training import loop
from patchout.training.run import SILENT, Host
from patchout.training.supervised import run as train
from patchout.training.supervised import score_cache
from patchout.training.supervised.distillation import Distillation, Teacher, load_teachers
from patchout.training.supervised.loss import StepLoss
from patchout.training.supervised.run import Listener
from patchout.training.supervised.score_cache import ScoreCache, quantised

CPU = torch.device("cpu")


def model_of(seed: int = 0, **changes: Any) -> Passt:
    """A tiny model with random weights and a sharp head, so that scores differ."""
    model = Passt(tiny_config(**changes), rng=augment.keyed("teacher", seed)).eval()
    for name, parameter in model.named_parameters():
        if name.startswith("head.") and parameter.ndim == 2:
            parameter.data *= 30
    return model.requires_grad_(False)


def saved(path: Path, seed: int = 0, **changes: Any) -> str:
    checkpoint.save(model_of(seed, **changes), path)
    return str(path)


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    return saved(tmp_path / "teacher.safetensors")


def loss_with(student: Passt, *models: Passt, weight: float = 0.9, **changes: Any) -> StepLoss:
    """The loss of half a second with these teachers."""
    teachers = tuple(Teacher(f"teacher {number}", model, "") for number, model in enumerate(models))
    loss = StepLoss(
        config(clip_s=0.5, **changes),
        student.config,
        torch.ones(3),
        Distillation(weight, student.config, teachers),
    )
    loss.spare_columns = 0
    return loss


# -- the loss ------------------------------------------------------------------------------------------------


def test_one_class_a_clip_is_the_weighted_mean_of_two_cross_entropies(tiny: Passt) -> None:
    models = [model_of(seed) for seed in (1, 2)]
    mean = sum(plain_logits(model).softmax(1) for model in models) / 2
    assert isinstance(mean, Tensor)
    logits = plain_logits(tiny)
    entropy = nn.functional.cross_entropy
    expected = 0.3 * entropy(logits, torch.tensor([0, 1, 2, 0])) + 0.7 * entropy(logits, mean)
    loss = loss_with(tiny, *models, weight=0.7, **QUIET)(tiny, batch_of(), place_of(0))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_several_classes_a_clip_are_two_binary_cross_entropies() -> None:
    student, model = (model_of(seed, task="multi_label") for seed in (0, 1))
    logits, scores = plain_logits(student), plain_logits(model).sigmoid()
    entropy = nn.functional.binary_cross_entropy_with_logits
    expected = 0.3 * entropy(logits, batch_of().target) + 0.7 * entropy(logits, scores)
    loss = loss_with(student, model, weight=0.7, **QUIET)(student, batch_of(), place_of(0))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_smoothing_is_of_the_labels_alone(tiny: Passt) -> None:
    model = model_of(1)
    plain, smooth = (
        loss_with(tiny, model, weight=1.0, **QUIET, label_smoothing=share)(tiny, batch_of(), place_of(0))
        for share in (0.0, 0.5)
    )
    assert plain.item() == smooth.item()


def test_a_teacher_may_have_its_labels_in_another_order(tiny: Passt) -> None:
    model, turned = model_of(1), model_of(1, labels=LABELS[::-1])
    for name, parameter in turned.named_parameters():
        if parameter.shape[:1] == (3,):
            parameter.data = dict(model.named_parameters())[name].data.flip(0)
    one, other = (loss_with(tiny, each, **QUIET)(tiny, batch_of(), place_of(0)) for each in (model, turned))
    assert one.item() == pytest.approx(other.item(), abs=1e-6)


def test_where_a_label_is_not_known_the_teachers_answer(tiny: Passt) -> None:
    """But for a clip that could not be read, of which nothing is known."""
    model, whole = model_of(1, task="multi_label"), batch_of()
    student = model_of(0, task="multi_label")
    loss = loss_with(student, model, weight=1.0, **QUIET)
    one_known = torch.tensor([0.0, 0.0, 1.0]).expand(4, 3)
    full, partly, none = (
        loss(student, whole._replace(weight=weight), place_of(0)).item()
        for weight in (torch.ones(4, 3), one_known, torch.zeros(4, 3))
    )
    assert full == partly
    assert none == 0.0


def test_no_teacher_gets_a_gradient(tiny: Passt) -> None:
    model = model_of(1)
    torch.autograd.backward(loss_with(tiny, model)(tiny, batch_of(), place_of(0)))
    assert [parameter for parameter in model.parameters() if parameter.grad is not None] == []


# -- what the teachers hear ----------------------------------------------------------------------------------


def heard_by(model: Passt, log_mels: list[Tensor]) -> Callable[..., Any]:
    """A forward pass that notes its input."""
    forward = model.forward

    def noting(mel: Tensor, **options: Any) -> Any:
        log_mels.append(mel)
        return forward(mel, **options)

    return noting


@pytest.mark.parametrize("front_end", ["the same", "equal numbers under another name"])
def test_a_teacher_hears_the_jitter_masks_and_mix_of_its_student(
    front_end: str, tiny: Passt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher of another front end computes its own log-mel, by the same draws."""
    model, heard = model_of(1), [list[Tensor](), list[Tensor]()]
    if front_end != "the same":
        model.config = replace(model.config, mel=replace(model.config.mel, mean=(0.0,), std=(1.0,)))
    loss = loss_with(tiny, model, mixup=0.3, mask_freq=30, mask_time=20)
    for each, log_mels in zip((tiny, model), heard, strict=True):
        monkeypatch.setattr(each, "forward", heard_by(each, log_mels))
    loss(tiny, batch_of(), place_of(3))
    (student_mel,), (teacher_mel,) = heard
    assert torch.equal(student_mel, teacher_mel)
    assert not torch.equal(student_mel, patchout.log_mel(batch_of().wave, tiny.config.mel))


def test_masks_are_of_the_same_seconds_at_another_hop(tiny: Passt) -> None:
    loss = loss_with(tiny, mask_freq=30, mask_time=10)
    mel = tiny.config.mel
    own, fine = loss._masks(mel), loss._masks(replace(mel, hop_length=160))
    assert (own.freq, fine.freq) == (30, 30)
    assert (own.time, fine.time) == (10, 20)


def test_two_front_ends_share_the_mix_of_two_processes(tiny: Passt) -> None:
    """Each process's share of the loss needs what the other sends, in the same order."""
    other = model_of(1)
    other.config = replace(other.config, mel=replace(other.config.mel, mean=(0.1,), std=(1.0,)))
    loss, whole = loss_with(tiny, other), batch_of()
    alone = loss(tiny, whole, place_of(3)).item()
    sent: list[list[Tensor]] = [[], []]
    for rank in (0, 1):

        def send(tensor: Tensor, rank: int = rank) -> Tensor:
            sent[rank].append(tensor)
            return torch.cat([tensor, tensor])

        loss(tiny, _half(whole, rank), place_of(3)._replace(first=2 * rank, gather=send))
    pairs = [torch.cat(pair) for pair in zip(*sent, strict=True)]
    parts = []
    for rank in (0, 1):

        def receive(tensor: Tensor, answers: Iterator[Tensor] = iter(pairs)) -> Tensor:  # noqa: B008  # anew
            return next(answers)

        place = place_of(3)._replace(first=2 * rank, gather=receive)
        parts.append(loss(tiny, _half(whole, rank), place).item())
    assert sum(parts) / 2 == pytest.approx(alone, abs=1e-6)


def _half(batch: Any, rank: int) -> Any:
    part = slice(2 * rank, 2 * rank + 2)
    names = ("wave", "target", "weight", "clip")
    return batch._replace(**{name: getattr(batch, name)[part] for name in names})


# -- kept scores ---------------------------------------------------------------------------------------------


def host() -> Host:
    return Host(Accelerator(cpu=True), CPU, {}, SILENT)


def filled(
    folder: Path, clips: ClipSet, *names: str, on_problem: Callable[[str], None] = lambda problem: None
) -> ScoreCache:
    teachers = load_teachers(names, CPU)
    student = tiny_config(labels=clips.classes)
    cache = ScoreCache(folder, student, len(clips))
    on_problem(cache.bind(clips, teachers))
    cache.fill(clips, teachers, host()._replace(listener=Listener(on_problem=on_problem)), "fp32")
    return cache


def test_eight_bits_are_finer_where_scores_are_low() -> None:
    scores = np.array([[0.0, 0.001, 0.5, 1.0]])
    back = (quantised(scores).astype(np.float64) / 255) ** 2
    assert back[0] == pytest.approx(scores[0], abs=0.004)
    assert back[0, 1] == pytest.approx(0.001, abs=1e-4)
    assert quantised(scores).min() == 1  # 0 says that there is no score


def test_kept_scores_are_those_that_tag_gives(class_folder: Path, tmp_path: Path, teacher: str) -> None:
    clips = scan(class_folder)
    cache = filled(tmp_path / "kept", clips, teacher)
    model = patchout.load(teacher, "cpu")
    for clip in (0, 7):
        tags = patchout.tag(model, clips.name(clip), top=3)
        expected = [tags.scores[tags.labels.index(label)] for label in clips.classes]
        scores, is_scored = cache(clip)
        assert is_scored
        assert scores.tolist() == pytest.approx(expected, abs=0.01)


def test_a_clip_that_cannot_be_read_has_no_scores_until_it_is_repaired(
    class_folder: Path, tmp_path: Path, teacher: str
) -> None:
    broken, clips, says = class_folder / "dog" / "0.wav", scan(class_folder), list[str]()
    whole = broken.read_bytes()
    broken.write_text("this is no sound")
    for _ in range(2):  # told whenever a run begins
        cache = filled(tmp_path / "kept", clips, teacher, on_problem=says.append)
        assert [cache(clip)[1] for clip in range(3, 6)] == [True, False, True]
        assert says.pop().startswith("1 of 12 clips have no scores (they cannot be read, or")
    broken.write_bytes(whole)
    cache = filled(tmp_path / "kept", clips, teacher, on_problem=says.append)
    assert [cache(clip)[1] for clip in range(3, 6)] == [True, True, True]
    assert says[-1].startswith("1 teachers score 12 of 12 clips anew")


def test_scores_of_changed_sounds_are_computed_anew(
    class_folder: Path, tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_cache, "BLOCK", 4)
    clips, says = scan(class_folder), list[str]()
    before = filled(tmp_path / "kept", clips, teacher)
    old = [before(clip)[0] for clip in range(12)]
    write_wav(Path(clips.name(5)), noise(0.5, 9))
    after = filled(tmp_path / "kept", clips, teacher, on_problem=says.append)
    assert says[0].startswith("1 teachers score 4 of 12 clips anew")
    assert [clip for clip in range(12) if not torch.equal(old[clip], after(clip)[0])] == [5]
    identity = tmp_path / "kept" / "about.json"
    identity.write_text(identity.read_text().replace('"blocks"', '"of an earlier version"'))
    filled(tmp_path / "kept", clips, teacher, on_problem=says.append)
    assert "12 of 12 clips anew" in says[-1]
    filled(tmp_path / "kept", clips, teacher, on_problem=says.append)
    assert says[-1] == ""


@pytest.mark.slow
def test_scores_are_computed_once_and_go_on_after_a_stop(
    class_folder: Path, tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = filled(tmp_path / "whole", scan(class_folder), teacher)
    monkeypatch.setattr(score_cache, "BLOCK", 4)
    heard, stop_at = list[str](), [6]

    def counting(model: Passt, streams: Any, **options: Any) -> Any:
        for result in score(model, streams, **options):
            if len(heard) == stop_at[0]:
                raise KeyboardInterrupt
            heard.append(result.name)
            yield result

    monkeypatch.setattr(score_cache, "score", counting)
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path / "parts", scan(class_folder), teacher)
    (block,) = (tmp_path / "parts").glob("*.npy")
    assert block.name.startswith("block-000000-")
    stop_at[0] = 99
    filled(tmp_path / "parts", scan(class_folder), teacher)
    assert len(heard) == 6 + 8  # the two clips of the block that was cut short are heard again
    again = filled(tmp_path / "parts", scan(class_folder), teacher)
    assert len(heard) == 6 + 8
    assert all(torch.equal(whole(clip)[0], again(clip)[0]) for clip in range(12))
    assert {path.name for path in (tmp_path / "parts").glob("*.npy")} == {"scores.npy"}


def test_scores_of_other_data_or_other_teachers_are_refused(
    class_folder: Path, tmp_path: Path, teacher: str
) -> None:
    clips = scan(class_folder)
    filled(tmp_path / "kept", clips, teacher)
    with pytest.raises(InputError, match=r"kept: keeps scores of another run \(other clips\): name another"):
        filled(tmp_path / "kept", clips.take(range(6)), teacher)
    with pytest.raises(InputError, match=r"\(other teachers\)"):
        filled(tmp_path / "kept", clips, saved(tmp_path / "other.safetensors", 5))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(InputError, match="holds files, but no scores: name another distill_cache"):
        filled(tmp_path / "notes", clips, teacher)


@pytest.mark.parametrize("content", [b"", b"no array"])
def test_damaged_scores_are_refused(content: bytes, class_folder: Path, tmp_path: Path, teacher: str) -> None:
    filled(tmp_path / "kept", scan(class_folder), teacher)
    (tmp_path / "kept" / "scores.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"scores.npy: is damaged .*: delete .*kept, the scores are then"):
        filled(tmp_path / "kept", scan(class_folder), teacher)


# -- whole runs ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_an_interrupted_distillation_ends_with_the_bits_of_a_whole_one(
    cached: bool, class_folder: Path, tmp_path: Path, teacher: str
) -> None:
    def interrupt(progress: loop.Progress) -> None:
        if progress.step == 1:
            raise KeyboardInterrupt

    more: dict[str, Any] = {"distill": (teacher,), "wave_mix": 0.5, "workers": 0}
    cache = {"distill_cache": str(tmp_path / "kept")} if cached else {}
    train.run(config(class_folder, tmp_path / "whole", **more, **cache))
    settings = config(class_folder, tmp_path / "run", **more, **cache)
    with pytest.raises(KeyboardInterrupt):
        train.run(settings, Listener(on_progress=interrupt))
    train.run(settings)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("slope", [1.0, 0.2])
def test_kept_scores_of_clips_that_nothing_changes_are_those_of_the_step(
    slope: float, class_folder: Path, tmp_path: Path
) -> None:
    """Also of a teacher whose scores are calibrated."""
    teacher = saved(tmp_path / "teacher.safetensors", decision=Decision(slope=slope))
    still: dict[str, Any] = {**QUIET, "roll_s": 0.0, "gain_db": (0, 0), "epochs": 1, "distill": (teacher,)}
    train.run(config(class_folder, tmp_path / "live", **still))
    train.run(config(class_folder, tmp_path / "kept", **still, distill_cache=str(tmp_path / "scores")))
    live, kept = log(tmp_path / "live"), log(tmp_path / "kept")
    assert kept[0]["loss"] == pytest.approx(live[0]["loss"], abs=0.02)


@pytest.mark.slow
def test_a_resumed_run_has_the_teachers_of_its_beginning(
    class_folder: Path, tmp_path: Path, teacher: str
) -> None:
    settings = config(class_folder, tmp_path / "run", distill=(teacher,), epochs=1)
    train.run(settings)
    provenance = checkpoint.load(tmp_path / "run" / "model.safetensors").config.provenance
    assert provenance["teachers"] == [load_teachers([teacher], CPU)[0].sha256]
    saved(Path(teacher), 9)
    with pytest.raises(ValueError, match=r"holds a run on other data .*teachers"):
        train.run(settings)


@pytest.mark.slow
def test_every_fold_keeps_scores_of_its_own(
    class_folder: Path, tmp_path: Path, teacher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "write_report", undrawn_report)
    rows = [
        f"{path.relative_to(class_folder)},{path.parent.name},{1 + int(path.stem) // 2}"
        for path in sorted(class_folder.rglob("*.wav"))
    ]
    (class_folder / "meta.csv").write_text("\n".join(["filename,category,fold", *rows]))
    cache = str(tmp_path / "kept")
    train.run(
        config(
            class_folder,
            tmp_path / "run",
            folds=("1", "2"),
            epochs=1,
            distill=(teacher,),
            distill_cache=cache,
        )
    )
    assert np.load(tmp_path / "kept" / "fold-2" / "scores.npy").shape == (6, 3)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Twelve sounds in one folder, of which nothing is known."""
    for index in range(4):
        write_wav(tmp_path / "flat" / f"a{index}.wav", tone(1.0, 800 + 20 * index))
        write_wav(tmp_path / "flat" / f"b{index}.wav", tone(1.0, 150 + 5 * index))
        write_wav(tmp_path / "flat" / f"c{index}.wav", noise(1.0, index))
    return tmp_path / "flat"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["multi_class", "multi_label"])
def test_sounds_without_labels_have_the_classes_of_the_teachers(
    task: str, flat: Path, tmp_path: Path
) -> None:
    """Also by the settings of a recipe that balances classes and holds a split out."""
    name = saved(tmp_path / "teacher.safetensors", labels=("x", "y", "z"), task=task)
    texts: list[str] = []
    drawn = {"balance": "sampling", "draws": 12}
    settings = config(flat, tmp_path / "run", distill=(name,), split="eval", hold_out=0.2, **drawn)
    scores = train.run(settings, Listener(on_problem=texts.append))
    assert scores == {}
    shape = checkpoint.load(tmp_path / "run" / "model.safetensors").config
    assert isinstance(shape, type(tiny_config()))
    assert (shape.labels, shape.task) == (("x", "y", "z"), task)
    assert any(
        text.endswith("learns from the teachers alone, and no clip is held out to be scored")
        for text in texts
    )
    assert json.loads((tmp_path / "run" / "config.json").read_text())["data"]["clips"] == 12


@pytest.mark.slow
def test_folders_that_are_no_classes_of_the_teachers_are_sounds_at_full_weight(
    class_folder: Path, tmp_path: Path
) -> None:
    name = saved(tmp_path / "teacher.safetensors", labels=("x", "y"))
    settings = config(class_folder, tmp_path / "run", distill=(name,), epochs=1)
    with pytest.raises(ValueError, match=r"not both it and the teachers know bell, dog, .*distill_weight 1"):
        train.run(settings)
    train.run(replace(settings, distill_weight=1.0))
    assert patchout.load(tmp_path / "run", "cpu").config.labels == ("x", "y")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"labels": ("bell", "cat", "rain")},
            "not both it and the teachers know cat, dog: choose teachers of",
        ),
        ({"labels": ()}, "has no classes yet"),
        ({"columns": 3}, r"hears 0.15 to 0.45 s at a time, clip_s is 1: change clip_s"),
    ],
)
def test_teachers_that_cannot_teach_are_refused(
    other: dict[str, Any], message: str, class_folder: Path, tmp_path: Path
) -> None:
    name = saved(tmp_path / "teacher.safetensors", **other)
    with pytest.raises(ValueError, match=message):
        train.run(config(class_folder, tmp_path / "run", distill=(name,)))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_teacher_of_another_rate_is_refused_but_for_its_kept_scores(
    class_folder: Path, tmp_path: Path
) -> None:
    mel = replace(tiny_config().mel, sample_rate=16_000, f_max=7_000.0, hop_length=160)
    name = saved(tmp_path / "teacher.safetensors", mel=mel)
    settings = config(class_folder, tmp_path / "run", distill=(name,), epochs=1)
    with pytest.raises(ValueError, match=r"hears 16000 Hz, the student 32000 Hz: .*\(distill_cache\)"):
        train.run(settings)
    train.run(replace(settings, distill_cache=str(tmp_path / "kept")))
    assert np.load(tmp_path / "kept" / "scores.npy").shape == (12, 3)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"labels": ("bell", "cat", "rain")}, "teachers need the same labels: .* do not both know cat, dog"),
        ({"task": "multi_label"}, "teachers need one task: .* is multi_class, .* multi_label"),
    ],
)
def test_teachers_must_agree(other: dict[str, Any], message: str, tmp_path: Path, teacher: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_teachers([teacher, saved(tmp_path / "other.safetensors", 1, **other)], CPU)


def test_a_cache_without_teachers_is_refused() -> None:
    with pytest.raises(ValueError, match="distill_cache kept keeps teachers' scores: set distill"):
        config(distill_cache="kept")


# -- does it help? -------------------------------------------------------------------------------------------


def pitches(folder: Path, count: int, seed: int, *, labels: tuple[str, ...] = ("high", "low")) -> Path:
    """Half seconds of a tone in noise, of a class above 900 Hz and one below."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        hz = 900 * 4 ** float(rng.uniform(0.05, 1.0) * (1, -1)[index % 2])
        wave = tone(0.5, hz) + 0.3 * noise(0.5, seed + index)
        write_wav(folder / labels[index % 2] / f"{index}.wav", wave)
    return folder


@pytest.mark.slow
def test_a_student_with_few_labels_learns_from_a_good_teacher(tmp_path: Path) -> None:
    """Four labelled clips, against forty without labels and a teacher that has seen forty others."""
    heard: dict[str, Any] = {**QUIET, "roll_s": 0.0, "clip_s": 0.5, "warm_up_epochs": 0.0}
    many = pitches(tmp_path / "many", 40, 1000)
    train.run(config(many, tmp_path / "teacher", **heard, batch=10, epochs=15))
    pool = pitches(tmp_path / "pool", 40, 2000, labels=("sounds", "sounds"))
    few, unseen = pitches(tmp_path / "few", 4, 3000), scan(pitches(tmp_path / "unseen", 60, 4000))
    train.run(config(few, tmp_path / "alone", **heard, batch=4, epochs=60))
    taught = {"distill": (str(tmp_path / "teacher"),), "distill_weight": 1.0}
    train.run(config(pool, tmp_path / "taught", **heard, **taught, batch=10, epochs=15))

    def accuracy(run: str) -> float:
        model = patchout.load(tmp_path / run, "cpu")
        tags = patchout.tag_many(model, [unseen.name(clip) for clip in range(len(unseen))], top=1)
        hits = [tag.labels[0] == unseen.labels(clip)[0] for clip, tag in enumerate(tags)]
        return sum(hits) / len(hits)

    assert accuracy("taught") > accuracy("alone") + 0.1

"""Masked pre-training: the config, the start, the loss of a step, whole runs, and what comes of them."""

import json
import os
import shutil
import signal
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import noise, write_wav
from ranks import Ranks
from safetensors.torch import load_file
from torch import Tensor

import patchout
from patchout.audio.mel import MelConfig, log_mel
from patchout.audio.statistics import FrameStatistics, audioset_statistics
from patchout.checkpoint import own as checkpoint
from patchout.checkpoint import zoo
from patchout.checkpoint.maskspec import encoder_of
from patchout.data.batches import Batch, Waves
from patchout.data.clips import DataError
from patchout.models.maskspec import MaskedEncoder, MaskSpec, MaskSpecConfig
from patchout.models.passt import SIZES, Passt
from patchout.training import loop
from patchout.training import run as training
from patchout.training.masked import run as pretrain
from patchout.training.masked import survey
from patchout.training.masked.config import FRONT_ENDS, PretrainConfig
from patchout.training.masked.objectives.codes import CODE_WIDTH
from patchout.training.masked.objectives.contrast import PROJECTOR
from patchout.training.masked.objectives.latent import RAMP
from patchout.training.masked.objectives.pixels import Pixels
from patchout.training.masked.recipes import RECIPES, recipe
from patchout.training.masked.run import Listener, parameter_groups, start
from patchout.training.masked.survey import Survey, choose_start
from patchout.training.plan import Plan
from patchout.training.signals import Stopped
from patchout.training.step import Place

CPU = torch.device("cpu")
HEARD = Survey(1.0, FrameStatistics((0.5,), (2.0,)), ())


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve seconds of sound are enough here, and thin encoders."""
    monkeypatch.setattr(survey, "LEAST_S", 1.0)
    monkeypatch.setitem(SIZES, "tiny", (32, 2))
    monkeypatch.setitem(SIZES, "small", (48, 2))


def config(data: Path | str = "data", out: Path | str = "run", **changes: Any) -> PretrainConfig:
    """Two steps an epoch on the twelve sounds of `class_folder`; 8 x 3 patches."""
    sizes: dict[str, Any] = {"size": "tiny", "clip_s": 0.5, "statistics": "one"}
    sizes |= {} if changes.get("objective") == "contrast" else {"decoder": (32, 1, 2)}
    steps = {"epochs": 2, "batch": 6, "warm_up_epochs": 0.5}
    machine = {"device": "cpu", "precision": "fp32", "data": str(data), "out": Path(out)}
    return PretrainConfig(**({"recipe": "test", **sizes, **steps, **machine} | changes))


def begun(**changes: Any) -> MaskSpec:
    """A MaskSpec before its first step."""
    model = start(config(**changes), HEARD, device=CPU)
    assert isinstance(model, MaskSpec)
    return model


def batch_of(clips: int = 4) -> Batch:
    wave = torch.stack([torch.from_numpy(noise(0.5, index)) for index in range(clips)])
    return Batch(wave, torch.zeros(clips, 0), torch.ones(clips, 1), torch.arange(clips), ())


def place_of(step: int, *, first: int = 0, total: int = 4) -> Place:
    return Place(step, 0, first, total, lambda tensor: tensor)


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- the config ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mask_ratio": 0.0}, r"a mask ratio must be from 0\.05 to 0\.95, got 0"),
        ({"mask_ratio": 1.0}, r"a mask ratio must be from 0\.05 to 0\.95, got 1"),
        ({"masks_per_clip": 0}, "masks_per_clip must be at least 1, got 0"),
        ({"base_lr": float("nan")}, "base_lr must be a number from 0 on, got nan"),
        ({"workers": -1}, "workers must be a number from 0 on, got -1"),
        ({"clip_s": 0.0}, r"clip_s must be some seconds, got 0\.0"),
        ({"clip_s": float("inf")}, "clip_s must be some seconds, got inf"),
        ({"mel_cache": "mels"}, "a mel_cache has the bands of its first epoch: add --no-mel-jitter"),
        ({"ema": 1.0}, r"ema is a decay below 1, got 1\.0"),
        ({"batch": 6, "parts": 4}, "a batch of 6 cannot be cut into 4 equal parts"),
        ({"warm_up_epochs": 2.0}, "2 epochs with 2 of warm-up and a horizon of 2: end the warm-up before"),
        ({"horizon_epochs": 1}, "put that not before the last epoch"),
    ],
)
def test_values_that_train_nothing_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**wrong)


def test_the_recipe_has_the_published_numbers() -> None:
    found, about = recipe("maskspec")
    assert (found.epochs, found.batch, found.base_lr * found.batch / 256) == (80, 512, 2e-3)
    assert (found.betas, found.weight_decay, found.warm_up_epochs) == ((0.9, 0.95), 0.05, 40)
    assert (found.decoder, found.mask_ratio, found.clip_s, found.normalize_patches) == (
        (512, 8, 16),
        0.75,
        10.0,
        True,
    )
    assert "--horizon-epochs 400" in about
    assert [recipe(f"maskspec{size}")[0].size for size in ("", "-small", "-tiny")] == [
        "base",
        "small",
        "tiny",
    ]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_says_its_command(name: str) -> None:
    found, about = recipe(name)
    assert found.recipe == name
    assert f"pretrain {name.partition('-')[0]} --data" in about


def test_the_recipes_of_other_objectives_have_the_published_numbers() -> None:
    codes, latent, contrast = (recipe(name)[0] for name in ("codes", "latent", "contrast"))
    assert (codes.codes, CODE_WIDTH, codes.mask_ratio, codes.mask_ratio_to) == (8192, 16, 0.4, 0.6)
    assert (codes.peak_lr(codes.batch), codes.batch, codes.weight_decay) == (1e-4, 256, 0.05)
    assert codes.warm_up_epochs / codes.epochs == pytest.approx(0.05)
    mel = FRONT_ENDS[codes.front_end]
    assert (mel.sample_rate, mel.n_fft, mel.n_mels, mel.f_min, mel.f_max) == (16_000, 2048, 128, 0, 8000)
    assert (mel.win_length / 16, mel.hop_length / 16, mel.num_frames(160_000)) == (128, 39.0625, 256)
    assert latent.peak_lr(latent.batch) == pytest.approx(5e-4)
    assert (latent.batch, latent.betas, latent.weight_decay, latent.clip_norm) == (48, (0.9, 0.95), 0.05, 4)
    assert (latent.masks, latent.mask_ratio, latent.masks_per_clip) == ("inverse-blocks", 0.8, 16)
    assert (latent.decoder, latent.decoder_kind) == ((768, 6, 16), "convolutional")
    assert (latent.teacher_decay, RAMP, latent.utterance) == ((0.9998, 0.99999), 0.25, 1)
    assert latent.warm_up_epochs / latent.epochs == pytest.approx(0.13)
    assert contrast.peak_lr(contrast.batch) == pytest.approx(6e-4)
    assert (contrast.batch, contrast.epochs, contrast.weight_decay) == (6144, 400, 0.05)
    assert (contrast.masks, contrast.view_ratios, contrast.temperature) == ("structured", (0.6, 0.4), 0.1)
    assert PROJECTOR == (512, 128)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"unknown recipe 'owm' \(did you mean own\?\): recipes are maskspec"
    ):
        recipe("owm")


@pytest.mark.parametrize(("name", "parameters"), [("maskspec-tiny", 30_839_040)])
def test_the_recipes_build_the_published_models(
    name: str, parameters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the true sizes
    with torch.device("meta"), monkeypatch.context() as patched:
        patched.setattr(MaskSpec, "init_weights", lambda self, rng: None)
        model = start(recipe(name)[0], HEARD, device=torch.device("meta"))
    assert model.config.columns == 62
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


# -- the start -----------------------------------------------------------------------------------------------


def test_the_hours_decide_what_to_start_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert choose_start("auto", 100.0)[0] == ""
    init, told = choose_start("auto", 3.0)
    assert init == ""
    assert "put it at" in told  # how to bring the better start
    (tmp_path / "patchout").mkdir()
    (tmp_path / "patchout" / "AudioSet_Pretrained.pth").write_bytes(b"weights")
    assert choose_start("auto", 3.0)[0] == "maskspec-base"
    assert choose_start("auto", 100.0)[0] == ""
    assert choose_start("runs/mine", 3.0)[0] == "runs/mine"


def test_the_statistics_that_were_asked_for() -> None:
    def mel(**changes: Any) -> MelConfig:
        return start(config(**changes), HEARD, device=CPU).config.mel

    assert (mel().mean, mel().std) == ((0.5,), (2.0,))
    published = mel(statistics="audioset")
    assert published.mean == audioset_statistics().mean
    assert published.std is not None
    assert min(published.std) == 0.3  # the floor: full-band sound is not blown up


def test_a_clip_without_a_patch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"clip_s 0\.1 gives 10 frames, a patch needs 16: lengthen it"):
        start(config(clip_s=0.1), HEARD, device=CPU)


def test_longer_clips_than_the_start_heard_add_columns_by_the_formula(tmp_path: Path) -> None:
    short = begun()
    checkpoint.save(short, tmp_path / "m.safetensors")
    long = start(config(clip_s=2.0, init=str(tmp_path / "m.safetensors")), HEARD, device=CPU)
    assert (short.config.columns, long.config.columns) == (3, 12)
    assert same(short.state_dict(), long.state_dict())
    mel, noise = torch.randn(1, 128, 48), torch.rand(1, 24)
    torch.testing.assert_close(long.eval()(mel, noise=noise), short.eval()(mel, noise=noise))
    assert start(config(init=str(tmp_path / "m.safetensors")), HEARD, device=CPU).config.columns == 3


@pytest.mark.slow
def test_excluded_splits_are_not_heard(class_folder: Path, tmp_path: Path) -> None:
    """The recipe's own word for AudioSet's test clips need not be there, any other must."""
    sounds = sorted(class_folder.rglob("*.wav"))
    splits = ["train"] * 8 + ["eval"] * 4
    rows = [f"{path},{split}" for path, split in zip(sounds, splits, strict=True)]
    (tmp_path / "list.csv").write_text("\n".join(["filename,split", *rows]))
    heard: list[int] = []
    listener = Listener(on_plan=lambda plan: heard.append(plan.clips))
    pretrain.run(config(tmp_path / "list.csv", tmp_path / "out", exclude=("eval",), batch=4), listener)
    pretrain.run(config(class_folder, tmp_path / "all", exclude=("eval",)), listener)
    assert heard == [8, 12]
    with pytest.raises(DataError, match="no split or fold evil"):
        pretrain.run(config(class_folder, tmp_path / "x", exclude=("evil",)))
    with pytest.raises(DataError, match=r"all 12 clips are excluded \(train, eval\)"):
        pretrain.run(config(tmp_path / "list.csv", tmp_path / "x", exclude=("train", "eval")))


@pytest.mark.slow
def test_the_average_is_the_result_and_the_last_weights_are_kept(class_folder: Path, tmp_path: Path) -> None:
    pretrain.run(config(class_folder, tmp_path / "run", ema=0.5))
    pretrain.run(config(class_folder, tmp_path / "plain"))
    assert same(load_file(tmp_path / "run" / "last.safetensors"), weights(tmp_path / "plain"))
    assert not same(weights(tmp_path / "run"), weights(tmp_path / "plain"))


@pytest.mark.slow
def test_the_config_of_a_run_has_the_sizes_of_its_start(class_folder: Path, tmp_path: Path) -> None:
    checkpoint.save(begun(), tmp_path / "m.safetensors")
    changes: dict[str, Any] = {
        "init": str(tmp_path / "m.safetensors"),
        "size": "base",
        "decoder": (512, 8, 16),
    }
    changes["normalize_patches"] = False
    for _ in range(2):  # the same command goes on
        pretrain.run(config(class_folder, tmp_path / "run", **changes))
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert (stored["size"], stored["decoder"], stored["normalize_patches"]) == ("tiny", [32, 1, 2], True)


def test_a_tagger_is_no_start(tmp_path: Path, tiny: Passt) -> None:
    checkpoint.save(tiny, tmp_path / "tagger.safetensors")
    with pytest.raises(
        ValueError, match="is a tagger or an encoder without a decoder: give a run of `patchout pretrain"
    ):
        start(config(init=str(tmp_path / "tagger.safetensors")), HEARD, device=CPU)


def test_the_two_tokens_are_decayed_as_published() -> None:
    model = MaskSpec(MaskSpecConfig(width=16, heads=1, decoder_width=16, decoder_heads=1))
    decayed, rest = (group["params"] for group in parameter_groups(model, 0.05))
    assert (len(decayed), len(rest)) == (85, 167)  # tensors of the published model
    assert any(parameter is model.decoder.mask_token for parameter in decayed)


def test_without_decay_every_parameter_still_learns() -> None:
    model = MaskSpec(MaskSpecConfig(width=16, heads=1, decoder_width=16, decoder_heads=1))
    groups = parameter_groups(model, 0.0)
    assert sum(len(group["params"]) for group in groups) == 85 + 167


# -- every field does something ------------------------------------------------------------------------------

CHANGES: dict[str, tuple[Any, str]] = {  # field: another value, where it must show
    "recipe": ("other", "provenance"),
    "init": ("<model>", "weights"),
    "size": ("small", "model"),
    "decoder": ((32, 2, 2), "model"),
    "statistics": ("data", "model"),
    "std_floor": (50.0, "model"),
    "normalize_patches": (False, "loss"),
    "clip_s": (0.4, "waves"),
    "objective": ("contrast", "loss"),
    "codes": (32, "loss"),
    "teacher_decay": ((0.1, 0.2), "teacher"),
    "utterance": (0.0, "loss"),
    "temperature": (1.0, "loss"),
    "decoder_kind": ("convolutional", "loss"),
    "front_end": ("16khz", "waves"),
    "masks": ("inverse-blocks", "loss"),
    "mask_ratio": (0.5, "loss"),
    "mask_ratio_to": (0.25, "loss"),
    "view_ratios": ((0.4, 0.7), "loss"),
    "masks_per_clip": (2, "loss"),
    "mel_jitter": (False, "loss"),
    "mel_cache": ("<folder>", "waves"),
    "epochs": (3, "steps"),
    "batch": (4, "steps"),
    "parts": (2, "parts"),
    "base_lr": (1e-4, "lr"),
    "betas": ((0.9, 0.999), "betas"),
    "weight_decay": (0.0, "decay"),
    "warm_up_epochs": (1.0, "rate"),
    "horizon_epochs": (9, "rate"),
    "clip_norm": (0.0, "clip_norm"),
    "ema": (0.9, "ema"),
    "seed": (1, "weights"),
    "workers": (1, "workers"),
    "device": ("auto", "device"),
    "precision": ("bf16", "loss"),
    "compile": (True, "compile"),
    "trackers": (("tensorboard",), "trackers"),
}
OF_OBJECTIVE = {  # fields that another objective reads
    "codes": "codes",
    "mask_ratio_to": "codes",
    "decoder_kind": "codes",
    "teacher_decay": "latent",
    "utterance": "latent",
    "temperature": "contrast",
    "view_ratios": "contrast",
}
ELSEWHERE = {"data", "out", "exclude", "probe", "probe_every"}  # whole runs


def look(settings: PretrainConfig, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Everything a run is made of, without running it."""
    caught: dict[str, Any] = {}

    def stop(job: loop.Job, accelerator: Accelerator, **options: object) -> dict[str, float]:
        job.save_model(job.model, settings.out / "model.safetensors", {})
        job.folder.log({"step": 1, "loss": 0.0})
        loader: Any = job.batches(0)
        batch = loader.collate_fn([loader.dataset[key] for key in next(iter(loader.batch_sampler))])
        assert isinstance(job.model, MaskedEncoder)
        caught.update(
            teacher=[job.teacher.schedule(step) for step in range(job.steps)] if job.teacher else [],
            workers=loader.num_workers,
            model=replace(job.model.config, provenance={}),
            weights=job.model.state_dict()["embed.proj.weight"].tolist(),
            waves=batch.wave.tolist(),
            loss=job.loss(job.model, batch, place_of(1, total=len(batch.wave))).item(),
            rate=[job.rate(step) for step in range(job.steps)],
            lr=[group["peak_lr"] for group in job.optimizer.param_groups],
            betas=[group["betas"] for group in job.optimizer.param_groups],
            decay=[group["weight_decay"] for group in job.optimizer.param_groups],
            **{name: getattr(job, name) for name in ("steps", "parts", "compile", "clip_norm", "ema")},
        )
        return {}

    def device(name: str) -> torch.device:
        caught["device"] = name
        return CPU

    def engine(device: torch.device, out: Path, *, trackers: tuple[str, ...]) -> Accelerator:
        caught["trackers"] = trackers
        return Accelerator(cpu=True)

    monkeypatch.setattr(loop, "run", stop)
    monkeypatch.setattr(loop, "engine", engine)
    monkeypatch.setattr(training, "pick_device", device)
    pretrain.run(settings)
    model = checkpoint.load(settings.out / "model.safetensors")
    caught["provenance"] = model.config.provenance["recipe"]
    return caught


def test_every_field_is_tested() -> None:
    assert {field.name for field in fields(PretrainConfig)} == CHANGES.keys() | ELSEWHERE


@pytest.fixture(scope="module")
def unchanged() -> dict[str, dict[str, Any]]:
    """Runs that several fields start from, looked into once."""
    return {}


@pytest.mark.slow
def test_the_same_field_in_another_folder_changes_nothing(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = shutil.copytree(class_folder, tmp_path / "moved")
    one, other = (look(config(data, data.with_name("run")), monkeypatch) for data in (class_folder, moved))
    assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CHANGES))
def test_every_field_changes_what_it_says(
    name: str,
    unchanged: dict[str, dict[str, Any]],
    class_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    value, place = CHANGES[name]
    if value == "<model>":
        value = str(tmp_path / "start.safetensors")
        checkpoint.save(begun(seed=5), value)
    more: dict[str, Any] = {"objective": OF_OBJECTIVE[name]} if name in OF_OBJECTIVE else {}
    if value == "<folder>":
        value, more = str(tmp_path / "mels"), {"mel_jitter": False}
    if (key := repr(more)) not in unchanged:
        unchanged[key] = look(config(class_folder, tmp_path / "plain", **more), monkeypatch)
    before = unchanged[key]
    after = look(config(class_folder, tmp_path / "changed", **more | {name: value}), monkeypatch)
    assert after[place] != before[place]


# -- the loss ------------------------------------------------------------------------------------------------


def test_two_processes_have_the_mean_loss_of_one() -> None:
    settings = config(masks_per_clip=2)
    model = start(settings, HEARD, device=CPU)
    loss, whole = Pixels(settings, model), batch_of()
    halves = [
        Batch(whole.wave[half], whole.target[half], whole.weight[half], whole.clip[half], ())
        for half in (slice(0, 2), slice(2, 4))
    ]
    alone = loss(model, whole, place_of(3)).item()
    parts = [loss(model, half, place_of(3, first=2 * rank)).item() for rank, half in enumerate(halves)]
    assert sum(parts) / 2 == pytest.approx(alone, abs=1e-5)


def test_a_step_draws_from_its_number_alone() -> None:
    model = start(config(), HEARD, device=CPU)
    loss = Pixels(config(), model)
    one, two, again = (loss(model, batch_of(), place_of(step)).item() for step in (1, 2, 1))
    assert one == again != two


def test_a_clip_that_could_not_be_read_teaches_nothing() -> None:
    """The loss of three clips, as a share of four, whatever the fourth holds."""
    model = start(config(), HEARD, device=CPU)
    loss, whole = Pixels(config(), model), batch_of()
    weight = torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    broken = whole._replace(wave=torch.cat([whole.wave[:3], torch.zeros(1, 16_000)]), weight=weight)
    three = Batch(whole.wave[:3], whole.target[:3], whole.weight[:3], whole.clip[:3], ())
    found = loss(model, broken, place_of(0)).item()
    assert found == pytest.approx(0.75 * loss(model, three, place_of(0)).item(), rel=1e-5)
    assert found == pytest.approx(loss(model, whole._replace(weight=weight), place_of(0)).item(), rel=1e-6)
    assert loss(model, whole._replace(weight=0 * weight), place_of(0)).item() == 0.0


def test_cached_log_mels_have_the_loss_of_their_waveform() -> None:
    settings = config(mel_jitter=False)
    model = start(settings, HEARD, device=CPU)
    loss, whole = Pixels(settings, model), batch_of()
    mels = log_mel(whole.wave, MelConfig()).mT.half()
    cached = loss(model, whole._replace(wave=mels), place_of(0)).item()
    assert cached == pytest.approx(loss(model, whole, place_of(0)).item(), rel=1e-3)


def test_every_parameter_learns() -> None:
    model = start(config(), HEARD, device=CPU)
    torch.autograd.backward(Pixels(config(), model)(model, batch_of(), place_of(0)))
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ] == []


@pytest.mark.parametrize(
    "statistics", ["one", "audioset"]
)  # with those of every band silence is not one value
def test_silence_is_seen(statistics: str) -> None:
    settings = config(statistics=statistics)
    model = start(settings, HEARD, device=CPU)
    loss, half = Pixels(settings, model), batch_of()
    half.wave[:2] = 0.0
    loss(model, half, place_of(0))
    assert loss.seen()["silent"] == 0.5
    assert loss.seen() == {}  # told once


def test_a_clip_alone_says_nothing_of_the_spread() -> None:
    model = start(config(), HEARD, device=CPU)
    loss = Pixels(config(), model)
    loss(model, batch_of(1), place_of(0, total=1))
    assert loss.seen().keys() == {"silent"}


def test_an_encoder_that_hears_no_difference_has_no_spread() -> None:
    model = start(config(), HEARD, device=CPU)
    loss = Pixels(config(), model)
    loss(model, batch_of(), place_of(0))
    healthy = loss.seen()["spread"]
    torch.nn.init.zeros_(model.encoder.norm.weight)
    torch.nn.init.ones_(model.encoder.norm.bias)
    loss(model, batch_of(), place_of(0))
    assert loss.seen()["spread"] == pytest.approx(0.0, abs=1e-4)
    assert healthy > 0.01


# -- whole runs ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_bits_of_a_whole_one(class_folder: Path, tmp_path: Path) -> None:
    def interrupt(progress: loop.Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    pretrain.run(config(class_folder, tmp_path / "whole"))
    settings = config(class_folder, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        pretrain.run(settings, Listener(on_progress=interrupt))
    pretrain.run(settings)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.slow
def test_a_run_from_cached_log_mels_stops_and_goes_on(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(progress: loop.Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    def settings(out: str) -> PretrainConfig:
        return config(class_folder, tmp_path / out, mel_jitter=False, mel_cache=str(tmp_path / "mels"))

    notes: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        pretrain.run(settings("run"), Listener(on_progress=interrupt, on_problem=notes.append))
    assert "take about 0.00 GB in" in "\n".join(notes)
    pretrain.run(settings("run"))
    monkeypatch.setattr(Waves, "__getitem__", None)  # the cache is enough
    pretrain.run(settings("other"))
    assert same(weights(tmp_path / "run"), weights(tmp_path / "other"))


@pytest.mark.slow
def test_sigterm_before_the_first_step_stops_quietly(class_folder: Path, tmp_path: Path) -> None:
    def terminate(note: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped):
        pretrain.run(config(class_folder, tmp_path / "run"), Listener(on_problem=terminate))
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_a_long_recording_is_a_clip_a_stretch(tmp_path: Path) -> None:
    write_wav(tmp_path / "sounds" / "long.wav", noise(8.0))
    notes: list[str] = []
    pretrain.run(config(tmp_path / "sounds", tmp_path / "run", epochs=1), Listener(on_problem=notes.append))
    assert "1 recordings, the long ones cut: 8 clips" in notes
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["data"]["clips"] == 8


def rank_pretrains(data: str, out: str) -> None:
    survey.LEAST_S, SIZES["tiny"] = 1.0, (32, 2)
    pretrain.run(config(Path(data), Path(out), batch=4, probe=data))


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(ranks: Ranks, class_folder: Path, tmp_path: Path) -> None:
    pretrain.run(config(class_folder, tmp_path / "one", batch=4, probe=str(class_folder)))
    ranks.run(rank_pretrains, class_folder, tmp_path / "two")
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=2e-5)
    assert [line["step"] for line in two] == [line["step"] for line in one]


@pytest.mark.slow
def test_the_probe_watches_the_run_and_tells_at_the_end(class_folder: Path, tmp_path: Path) -> None:
    told: list[str] = []
    first = pretrain.run(config(class_folder, tmp_path / "first"))
    assert "probe" not in first
    settings = config(
        class_folder, tmp_path / "run", probe=str(class_folder), probe_every=1, init=str(tmp_path / "first")
    )
    scores = pretrain.run(settings, Listener(on_result=told.append))
    assert pretrain.run(settings) == scores  # a finished run says it again
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert ["probe" in line for line in lines] == [True, True]
    assert scores["loss"] == lines[-1]["loss"]
    written = json.loads((tmp_path / "run" / "scores.json").read_text())["probe"]
    assert list(written) == ["random weights", "starting weights", "pre-trained here"]
    assert written["pre-trained here"]["neighbours"] == scores["probe"]
    assert "pre-trained here against starting weights" in told[0]


@pytest.mark.slow
def test_what_auto_chose_is_kept_and_another_start_is_refused(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        pretrain, "choose_start", lambda init, hours: ("", "") if init == "auto" else (init, "")
    )
    settings = config(class_folder, tmp_path / "run", init="auto", epochs=1)
    pretrain.run(settings)
    monkeypatch.setattr(
        pretrain, "choose_start", lambda init, hours: ("better", "") if init == "auto" else (init, "")
    )
    pretrain.run(settings)
    with pytest.raises(ValueError, match=r"holds a run with another config \(init '' -> "):
        pretrain.run(replace(settings, init=str(tmp_path / "run")))


@pytest.mark.slow
def test_the_batch_that_was_found_is_kept(class_folder: Path, tmp_path: Path) -> None:
    plans: list[Plan] = []
    for _ in range(2):
        pretrain.run(
            config(class_folder, tmp_path / "run", batch=0, epochs=1), Listener(on_plan=plans.append)
        )
    assert [made.batch for made in plans] == [2, 2]
    assert (plans[0].training_tokens, plans[0].tokens) == (1 + 6, 1 + 24)
    assert "no labels" in plans[0].describe()


@pytest.mark.slow
def test_silence_is_told_once(class_folder: Path, tmp_path: Path) -> None:
    for path in sorted(class_folder.rglob("*.wav"))[1:]:
        write_wav(path, 0 * noise(1.0))
    notes: list[str] = []
    pretrain.run(config(class_folder, tmp_path / "run", clip_s=1.0), Listener(on_problem=notes.append))
    assert len([note for note in notes if "more than half of what is hidden is silence" in note]) == 1


@pytest.mark.slow
def test_rates_may_be_mixed_and_clips_shorter_than_a_patch(class_folder: Path, tmp_path: Path) -> None:
    write_wav(class_folder / "low.wav", noise(1.0), 8_000)
    write_wav(class_folder / "short.wav", noise(0.01))
    scores = pretrain.run(config(class_folder, tmp_path / "run", batch=7))
    assert scores["silent"] < 0.5


@pytest.mark.slow
def test_what_cannot_be_learnt_from_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wav(tmp_path / "sounds" / "a.wav", 0 * noise(5.0))
    with pytest.raises(DataError, match="5 clips, and only silence in them"):
        pretrain.run(config(tmp_path / "sounds", tmp_path / "run"))
    write_wav(tmp_path / "sounds" / "a.wav", noise(5.0))
    with pytest.raises(DataError, match="a batch of 6 is larger than the 5 clips: lower --batch"):
        pretrain.run(config(tmp_path / "sounds", tmp_path / "run"))
    monkeypatch.setattr(survey, "LEAST_S", 60.0)
    with pytest.raises(DataError, match="5 s of sound are too little to learn from"):
        pretrain.run(config(tmp_path / "sounds", tmp_path / "run"))
    (tmp_path / "sounds" / "a.wav").write_text("no sound")
    with pytest.raises(DataError, match="none of 1 clips could be read"):
        pretrain.run(config(tmp_path / "sounds", tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_the_run_of_a_tagger_is_not_continued(class_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    stored = {"config": {"recipe": "esc10", "init": "passt-s"}, "data": {}, "versions": {}, "changes": []}
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="run holds a run of `patchout train esc10`: choose another --out"):
        pretrain.run(config(class_folder, tmp_path / "run"))


# -- what comes of it ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_pre_trained_model_embeds_but_tags_nothing(tmp_path: Path) -> None:
    model = begun()
    checkpoint.save(model, tmp_path / "model.safetensors")
    encoder = patchout.load(str(tmp_path), "cpu")
    wave = write_wav(tmp_path / "a.wav", noise(1.0))
    assert patchout.embed(encoder, wave).scene.shape == (32,)
    with pytest.raises(ValueError, match="has no classes yet: fine-tune it"):
        patchout.tag(encoder, wave)
    assert same(dict(encoder.state_dict()), dict(encoder_of(model).state_dict()))


def test_a_pre_trained_model_is_loaded_with_its_decoder(tmp_path: Path) -> None:
    model = begun()
    checkpoint.save(model, tmp_path / "model.safetensors")
    again = zoo.load_pretrained(tmp_path, "cpu")
    assert again.config == model.config
    assert same(dict(again.state_dict()), dict(model.state_dict()))

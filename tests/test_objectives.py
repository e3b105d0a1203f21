"""The objectives of pre-training: what they predict, their alarms, whole runs, and what comes of them."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import noise, write_wav
from ranks import Ranks
from safetensors.torch import load_file
from test_pretrain import CPU, HEARD, batch_of, config, place_of, same, weights
from torch import Tensor

import patchout
from patchout.audio.statistics import FrameStatistics
from patchout.checkpoint import own as checkpoint
from patchout.data.batches import Batch
from patchout.data.clips import DataError
from patchout.hear.api import HearModel
from patchout.inference.embedding import mid_level
from patchout.models.maskspec_classifier import MaskSpecClassifier
from patchout.models.passt import SIZES, Passt
from patchout.training import loop, optim
from patchout.training.masked import run as pretrain
from patchout.training.masked import survey
from patchout.training.masked.config import READ_BY, PretrainConfig
from patchout.training.masked.objective import CollapseError, Objective
from patchout.training.masked.objectives.contrast import augmented
from patchout.training.masked.objectives.latent import LatentModel, teacher_decay
from patchout.training.masked.probe import Probe
from patchout.training.masked.recipes import recipe
from patchout.training.masked.run import OBJECTIVES, Listener, _prepare, start
from patchout.training.masked.survey import Survey
from patchout.training.run import SILENT, Host
from patchout.training.step import Place
from patchout.training.supervised import run as supervised
from patchout.training.supervised.config import TrainConfig

NEW: dict[str, dict[str, Any]] = {  # settings of the three new objectives, as small as `config`
    "codes": {"objective": "codes", "codes": 64, "mask_ratio": 0.4, "mask_ratio_to": 0.6},
    "latent": {
        "objective": "latent",
        "decoder": (32, 2, 4),
        "decoder_kind": "convolutional",
        "masks": "inverse-blocks",
        "mask_ratio": 0.8,
        "masks_per_clip": 3,
        "teacher_decay": (0.5, 0.9),
    },
    "contrast": {"objective": "contrast", "masks": "structured"},
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve seconds of sound are enough here, and thin encoders."""
    monkeypatch.setattr(survey, "LEAST_S", 1.0)
    monkeypatch.setitem(SIZES, "tiny", (32, 2))


def settings(name: str, *paths: Path, **changes: Any) -> PretrainConfig:
    return config(*paths, **NEW[name] | changes)


def objective(chosen: PretrainConfig) -> tuple[Objective, Any]:
    model = start(chosen, HEARD, device=CPU)
    return OBJECTIVES[chosen.objective](chosen, model), model


# -- what they predict ---------------------------------------------------------------------------------------


def test_a_code_is_the_nearest_random_vector_of_the_projected_patch() -> None:
    model: Any = start(settings("codes"), HEARD, device=CPU)
    patch = torch.randn(1, 1, 256)
    point = patch[0, 0] @ model.projection
    similarity = torch.stack([vector @ point / point.norm() for vector in model.book])
    assert model.codes(patch).item() == similarity.argmax().item()
    torch.testing.assert_close(model.book.norm(dim=1), torch.ones(64))
    assert model.codes(3 * patch).equal(model.codes(patch))
    assert not {"projection", "book"} & model.state_dict().keys()  # the seed says them


def test_the_loss_of_codes_begins_at_that_of_a_guess() -> None:
    codes, model = objective(settings("codes"))
    assert codes(model, batch_of(), place_of(0)).item() == pytest.approx(math.log(64), rel=0.15)


def test_codes_hide_another_share_in_every_step() -> None:
    chosen, model = objective(settings("codes", clip_s=1.0))
    counts: list[int] = []
    model.register_forward_hook(lambda module, given, out: counts.append(given[1].shape[1]))
    wave = torch.stack([torch.from_numpy(noise(1.0, index)) for index in range(4)])
    for step in range(8):
        chosen(model, batch_of()._replace(wave=wave), place_of(step))
    assert int(0.4 * 48) <= min(counts) < max(counts) <= 0.6 * 48
    assert len({*counts}) > 3


def test_a_target_is_the_mean_of_normalised_mlp_outputs() -> None:
    """Instance norm over the patches of a clip, mean over blocks, layer norm over channels (EAT)."""
    model: Any = start(settings("latent"), HEARD, device=CPU)
    pixels, cell = torch.randn(2, 24, 256), torch.arange(24)
    outputs: list[Tensor] = []
    for block in model.encoder.blocks:
        block.mlp.register_forward_hook(lambda module, given, out: outputs.append(out[:, 1:]))
    with torch.no_grad():
        target = model.targets(pixels, cell)
    each = [
        (out - out.mean(1, keepdim=True)) / (out.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        for out in outputs
    ]
    mean = torch.stack(each).mean(dim=0)
    expected = (mean - mean.mean(-1, keepdim=True)) / (
        mean.var(-1, keepdim=True, unbiased=False) + 1e-5
    ).sqrt()
    assert len(outputs) == 12
    torch.testing.assert_close(target, expected, atol=1e-4, rtol=1e-4)


def test_the_masks_of_a_clip_share_one_pass_of_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, model = objective(settings("latent"))
    clips: list[int] = []
    targets = LatentModel.targets

    def counted(self: LatentModel, pixels: Tensor, cell: Tensor) -> Tensor:
        clips.append(len(pixels))
        return targets(self, pixels, cell)

    monkeypatch.setattr(LatentModel, "targets", counted)
    chosen(model, batch_of(), place_of(0))
    assert clips == [4]


def test_the_decay_of_the_teacher_rises_over_the_first_quarter() -> None:
    decays = [teacher_decay(step, steps=400, first=0.9, last=0.99) for step in (0, 50, 100, 399)]
    assert decays == pytest.approx([0.9, 0.945, 0.99, 0.99])


def test_the_teacher_follows_with_its_own_decay() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    teacher = optim.Teacher(model, lambda updates: (0.9, 0.75)[updates])
    for weight in (1.0, 3.0):
        torch.nn.init.constant_(model.weight, weight)
        teacher.update(model)
    assert next(teacher.model.parameters()).item() == pytest.approx(0.75 * 1 + 0.25 * 3)


def test_nt_xent_is_that_of_the_paper() -> None:
    """2 m - 1 logits a row, those of the same view included."""
    chosen, model = objective(settings("contrast"))
    out: list[Any] = []
    model.register_forward_hook(lambda module, given, result: out.append((given, result)))
    chosen(model, batch_of(3), place_of(0, total=3))
    (views, kept, _, _), result = out[0]
    points = torch.cat([model.embedding(*pair) for pair in zip(views, kept, strict=True)])
    points = torch.nn.functional.normalize(model.projector(points), dim=-1)
    rows = []
    for row in range(6):
        logits = {other: points[row] @ points[other] / 0.1 for other in range(6) if other != row}
        rows.append(torch.stack([*logits.values()]).logsumexp(0) - logits[(row + 3) % 6])
    assert result.loss.item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-5)


def test_the_two_views_lose_columns_and_rows() -> None:
    chosen, model = objective(settings("contrast", view_ratios=(0.4, 0.5)))
    inputs: list[Any] = []
    model.register_forward_hook(lambda module, given, result: inputs.append(given[1]))
    chosen(model, batch_of(), place_of(0))
    columns, rows = inputs[0]
    width = model.config.columns
    assert {len({*(kept % width).tolist()}) for kept in columns} == {1}
    assert {len({*(kept // width).tolist()}) for kept in columns} == {8}
    assert {len({*(kept // width).tolist()}) for kept in rows} == {4}
    assert {len({*(kept % width).tolist()}) for kept in rows} == {width}


def test_a_view_is_another_waveform_as_loud_as_its_draws_say() -> None:
    wave = torch.from_numpy(np.stack([noise(0.5), noise(0.5, 1)]))
    still = torch.full((2, 12), 0.9)
    still[:, 1] = 7 / 13  # 0 dB
    still[:, 0] = 0.0
    torch.testing.assert_close(
        augmented(wave, still, 32_000, torch.zeros_like(wave)), wave, atol=1e-5, rtol=1e-4
    )
    rolled = still.clone()
    rolled[0, 0], rolled[1, 2] = 0.25, 0.0
    changed = augmented(wave, rolled, 32_000, torch.zeros_like(wave))
    torch.testing.assert_close(changed[0], wave[0].roll(-4000), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(changed[1], -wave[1], atol=1e-5, rtol=1e-4)


def test_a_high_pass_takes_low_tones_and_a_band_stop_a_band() -> None:
    time = torch.arange(32_000) / 32_000
    low, high = ((2 * torch.pi * hertz * time).sin()[None] for hertz in (30.0, 8_000.0))
    draws = torch.full((1, 12), 0.9)
    draws[:, 0], draws[:, 1] = 0.0, 7 / 13
    passed = draws.clone()
    passed[:, 7], passed[:, 8] = 0.0, 0.999  # high-pass at 2 kHz
    assert augmented(low, passed, 32_000, torch.zeros_like(low)).abs().max() < 1e-3
    assert augmented(high, passed, 32_000, torch.zeros_like(low)).abs().max() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", NEW)
def test_two_processes_have_the_mean_loss_and_gradient_of_one(name: str) -> None:
    """Negatives are those of all processes; a small share's rows weigh as much as others'."""
    chosen, model = objective(settings(name))
    whole = batch_of()
    alone = chosen(model, whole, place_of(3))
    torch.autograd.backward(alone)
    gradient = {key: weight.grad.clone() for key, weight in model.named_parameters()}
    model.zero_grad()
    losses = []
    for share in (slice(0, 1), slice(1, 4)):
        batch = Batch(whole.wave[share], whole.target[share], whole.weight[share], whole.clip[share], ())
        place = Place(3, 0, share.start, 4, Everyone(chosen, model, whole))
        loss = chosen(model, batch, place) * (share.stop - share.start) / 4
        torch.autograd.backward(loss)
        losses.append(loss.item())
    assert sum(losses) == pytest.approx(alone.item(), abs=1e-5)
    for key, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, gradient[key], atol=2e-4, rtol=1e-3, msg=key)


class Everyone:
    """What processes would gather: the rows of all clips as one process has them, in order of the calls."""

    def __init__(self, chosen: Objective, model: Any, whole: Batch) -> None:
        self.rows: list[Tensor] = []

        def keep(rows: Tensor) -> Tensor:
            self.rows.append(rows)
            return rows

        with torch.no_grad():
            chosen(model, whole, Place(3, 0, 0, 4, keep))
        chosen.seen()

    def __call__(self, mine: Tensor) -> Tensor:
        return self.rows.pop(0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEW)
def test_a_clip_that_could_not_be_read_teaches_nothing(name: str) -> None:
    chosen, model = objective(settings(name))
    whole = batch_of()
    weight = torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    assert chosen(model, whole._replace(weight=0 * weight), place_of(0)).item() == 0.0
    some = chosen(model, whole._replace(weight=weight), place_of(0)).item()
    assert 0 < some < chosen(model, whole, place_of(0)).item()


@pytest.mark.parametrize("name", NEW)
def test_every_parameter_learns(name: str) -> None:
    chosen, model = objective(settings(name))
    torch.autograd.backward(chosen(model, batch_of(), place_of(0)))
    unused = [key for key, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    expected = {"codes": [], "latent": [], "contrast": ["embed.class_token"]}
    assert unused == [] or unused == expected[name]


def test_the_convolutional_decoder_sees_its_neighbours_alone() -> None:
    """Two layers of 3 x 3 reach two patches."""
    model: Any = start(settings("latent", clip_s=1.0), HEARD, device=CPU)
    latents, kept, cell = torch.randn(1, 2, 32), torch.tensor([[0]]), torch.arange(72)
    before = model.decoder(latents, kept, cell)
    changed = (
        (model.decoder(latents + torch.tensor([0.0, 1.0])[None, :, None], kept, cell) - before).abs().sum(-1)
    )
    reached = changed[0].reshape(8, -1) > 1e-7
    assert reached[:3, :3].all()
    assert not reached[3:].any()
    assert not reached[:, 3:].any()


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        (
            "contrast",
            {"batch": 1},
            "contrast needs two clips or more at a time, got a batch of 1 in 1 parts: raise",
        ),
        (
            "contrast",
            {"batch": 4, "parts": 4},
            "contrast needs two clips or more at a time, got a batch of 4 in 4",
        ),
        ("contrast", {"masks_per_clip": 2}, "it has no mel_cache, and one mask a view"),
        ("contrast", {"mel_cache": "mels", "mel_jitter": False}, "it has no mel_cache, and one mask a view"),
        ("contrast", {"temperature": 0.0}, "temperature above 0"),
        ("latent", {"ema": 0.9}, r"latent averages its teacher \(--teacher-decay\): leave --ema at 0"),
        ("latent", {"teacher_decay": (0.9, 1.0)}, "teacher_decay are decays below 1"),
        ("codes", {"codes": 1}, "codes must be two or more"),
        ("codes", {"mask_ratio_to": 1.0}, r"a mask ratio must be from 0\.05 to 0\.95, got 1"),
        ("codes", {"front_end": "coarse", "statistics": "audioset"}, "add --statistics one"),
    ],
)
def test_values_that_an_objective_cannot_use_are_refused(
    name: str, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        settings(name, **wrong)


@pytest.mark.parametrize(
    ("name", "unread"),
    [
        ("contrast", {"decoder": (32, 1, 2), "mask_ratio": 0.5, "mask_ratio_to": 0.6}),
        ("contrast", {"decoder_kind": "convolutional", "codes": 9}),
        ("pixels", {"mask_ratio_to": 0.9}),
        ("latent", {"normalize_patches": False, "temperature": 0.2}),
    ],
)
def test_settings_that_an_objective_never_reads_are_refused_before_the_run(
    name: str, unread: dict[str, Any], class_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    chosen = config(class_folder, out, **NEW.get(name, {}) | {"recipe": "own"} | unread)
    names = ", ".join(sorted(unread, key=[*READ_BY].index))
    with pytest.raises(ValueError, match=f"^{name} does not read {names}: leave that out$"):
        pretrain.run(chosen)
    assert not (out / "config.json").exists()


def test_a_recipe_may_have_another_objective_and_an_old_run_what_it_began_with() -> None:
    codes = recipe("codes")[0]
    old: dict[str, Any] = {"objective": "pixels", "mask_ratio_to": 0.9}
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"objective": "pixels"}, {}),
        ({"objective": "contrast", "masks": "structured"}, {}),
        (old, old),
    ]
    for changes, stored in cases:
        chosen = replace(codes, data="missing", **changes)
        with pytest.raises(DataError, match="no such folder"):
            _prepare(chosen, Host(Accelerator(cpu=True), CPU, stored, SILENT))


def test_pixels_have_the_decoder_of_maskspec() -> None:
    with pytest.raises(ValueError, match="leave --decoder-kind at transformer"):
        config(decoder_kind="convolutional")


def test_groups_that_divide_no_decoder_are_refused() -> None:
    with pytest.raises(
        ValueError, match="5 groups do not divide a decoder of 32 channels on an encoder of 32"
    ):
        start(settings("latent", decoder=(32, 2, 5)), HEARD, device=CPU)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"view_ratios": (0.6, 0.9)}, "keeps 0 of 8 rows of the grid, nothing is left to see: change it"),
        ({"view_ratios": (0.0, 0.4)}, "keeps 3 of 3 columns of the grid, nothing is hidden"),
        ({"masks": "blocks"}, "cut a clip into 8 stretches, it has 3 columns of patches: lengthen clip_s"),
    ],
)
def test_masks_that_leave_nothing_are_refused_before_the_run(
    wrong: dict[str, Any], message: str, class_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        pretrain.run(settings("contrast", class_folder, tmp_path / "run", **wrong))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_run_folder_of_another_objective_is_refused(class_folder: Path, tmp_path: Path) -> None:
    pretrain.run(settings("codes", class_folder, tmp_path / "run", epochs=1))
    message = "run holds a run of --objective codes, not latent: choose another --out, or begin anew"
    with pytest.raises(ValueError, match=message):
        pretrain.run(settings("latent", class_folder, tmp_path / "run", epochs=1))


def test_a_passt_is_no_start(tmp_path: Path, tiny: Passt) -> None:
    checkpoint.save(tiny, tmp_path / "tagger.safetensors")
    with pytest.raises(ValueError, match="is a PaSST: give the run folder or file of a pre-training"):
        start(settings("codes", init=str(tmp_path / "tagger.safetensors")), HEARD, device=CPU)


# -- alarms --------------------------------------------------------------------------------------------------

WRONG_MEAN = Survey(1.0, FrameStatistics((-500.0,), (1.0,)), ())
DEAF = {"embed.proj.weight": 0.0}
COLLAPSES: dict[
    str, tuple[str, dict[str, float], str]
] = {  # objective, weights that never move, what is said
    "encoder": (
        "codes",
        {"encoder.norm.weight": 0.0, "encoder.norm.bias": 1.0},
        "all clips look alike to the encoder",
    ),
    "teacher": (
        "latent",
        DEAF,
        "the teacher gives all clips the same targets, it has collapsed: raise --teacher-decay",
    ),
    "prediction": (
        "latent",
        {"decoder.head.weight": 0.0},
        "all clips get the same predictions, the encoder has coll",
    ),
    "views": (
        "contrast",
        DEAF,
        "found no better than by chance, the encoder has collapsed: lower --base-lr, or raise",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", COLLAPSES)
def test_collapse_stops_the_run(
    case: str, class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, weights_of, message = COLLAPSES[case]

    def spoilt(*given: Any, **more: Any) -> torch.nn.Module:
        model = start(*given, **more)
        for key, value in weights_of.items():
            torch.nn.init.constant_(model.get_parameter(key), value)
        return model

    monkeypatch.setattr(pretrain, "start", spoilt)
    epochs = 12 if case == "views" else 2  # its alarm is patient
    with pytest.raises(CollapseError, match=message):
        pretrain.run(settings(name, class_folder, tmp_path / "run", base_lr=0.0, epochs=epochs))


def test_a_run_of_few_steps_may_find_views_by_chance(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of a small set says nothing about collapse."""
    monkeypatch.setattr(Objective, "ringing", lambda self, values: [self.alarms[0]])
    pretrain.run(settings("contrast", class_folder, tmp_path / "run", epochs=1))


@pytest.mark.slow
def test_codes_of_which_few_are_used_stop_the_run(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "survey", lambda *given, **more: WRONG_MEAN)
    with pytest.raises(
        CollapseError, match=r"code_entropy .* after 2 steps: nearly all patches have the same few"
    ):
        pretrain.run(settings("codes", class_folder, tmp_path / "run"))


@pytest.mark.slow
def test_a_probe_that_forgets_stops_the_run(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([np.ones(12, bool), np.zeros(12, bool)])
    monkeypatch.setattr(Probe, "neighbours", lambda probe, features: next(answers))
    chosen = settings("codes", class_folder, tmp_path / "run", probe=str(class_folder), probe_every=1)
    with pytest.raises(
        CollapseError, match="probe 0 after 4 steps: nearest neighbours told the probe's classes apart"
    ):
        pretrain.run(chosen)


def test_a_small_fall_of_the_probe_is_chance(class_folder: Path) -> None:
    probe = Probe(patchout.data.scan(class_folder))
    assert probe.is_lost(0.1, best=0.9)
    assert not probe.is_lost(0.5, best=0.9)
    assert not probe.is_lost(0.1, best=0.25)


@pytest.mark.slow
def test_nothing_stops_a_run_in_its_warm_up(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "survey", lambda *given, **more: WRONG_MEAN)
    scores = pretrain.run(
        settings("codes", class_folder, tmp_path / "run", epochs=1, horizon_epochs=2, warm_up_epochs=1.5)
    )
    assert scores["code_entropy"] < 0.25


# -- whole runs ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", NEW)
def test_a_stopped_run_ends_with_the_bits_of_a_whole_one(
    name: str, class_folder: Path, tmp_path: Path
) -> None:
    """The teacher's too."""

    def interrupt(progress: loop.Progress) -> None:
        if progress.step == 3:
            raise KeyboardInterrupt

    pretrain.run(settings(name, class_folder, tmp_path / "whole", warm_up_epochs=1.9))
    chosen = settings(name, class_folder, tmp_path / "run", warm_up_epochs=1.9)
    with pytest.raises(KeyboardInterrupt):
        pretrain.run(chosen, Listener(on_progress=interrupt))
    pretrain.run(chosen)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    if name == "latent":
        teachers = [load_file(tmp_path / out / "average.safetensors") for out in ("run", "whole")]
        assert same(*teachers)
        assert not same(teachers[0], weights(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NEW)
def test_a_run_in_bf16_says_its_tokens_a_second(name: str, class_folder: Path, tmp_path: Path) -> None:
    scores = pretrain.run(settings(name, class_folder, tmp_path / "run", precision="bf16", epochs=1))
    assert math.isfinite(scores["loss"])
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    visible = {"codes": 1 + 14, "latent": 3 * (1 + 4), "contrast": 1 + 8 + 1 + 12}[name]
    assert line["tokens_per_s"] == pytest.approx(visible * line["clips_per_s"], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEW)
def test_sounds_shorter_than_a_mask_are_padded(name: str, class_folder: Path, tmp_path: Path) -> None:
    write_wav(class_folder / "short.wav", noise(0.01))
    assert math.isfinite(
        pretrain.run(settings(name, class_folder, tmp_path / "run", batch=7, warm_up_epochs=1.9))["loss"]
    )


def pretrain_all(data: Path, out: Path) -> None:
    for name in NEW:
        pretrain.run(settings(name, data, out / name, batch=5, warm_up_epochs=1.9))


def rank_pretrains(data: str, out: str) -> None:
    survey.LEAST_S, SIZES["tiny"] = 1.0, (32, 2)
    pretrain_all(Path(data), Path(out))


@pytest.mark.slow
def test_two_processes_have_the_loss_curves_of_one(ranks: Ranks, class_folder: Path, tmp_path: Path) -> None:
    """Shares of two and three clips; negatives and the teacher are those of both."""
    pretrain_all(class_folder, tmp_path / "one")
    ranks.run(rank_pretrains, class_folder, tmp_path / "two")
    for name in NEW:
        logs = ((tmp_path / count / name / "metrics.jsonl").read_text() for count in ("one", "two"))
        one, two = ([json.loads(line)["loss"] for line in log.splitlines()] for log in logs)
        assert two == pytest.approx(one, abs=5e-5), name


# -- what comes of it ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", NEW)
def test_an_encoder_embeds_runs_in_hear_and_starts_other_runs(
    name: str, class_folder: Path, tmp_path: Path
) -> None:
    front: dict[str, Any] = {"front_end": "coarse", "clip_s": 1.5} if name == "codes" else {}
    pretrain.run(settings(name, class_folder, tmp_path / "run", epochs=1, **front))
    encoder = patchout.load(str(tmp_path / "run"), "cpu")
    assert isinstance(encoder, MaskSpecClassifier)
    config = mid_level(encoder.config)  # of the coarse front end a patch is longer than 160 ms
    sound = class_folder / "dog" / "0.wav"
    assert patchout.embed(encoder, sound, config=config).scene.shape == (32,)
    heard = HearModel(encoder, config)
    assert heard.scene_embedding_size == 32
    tuned = TrainConfig(
        recipe="test",
        data=str(class_folder),
        out=tmp_path / "tuned",
        init=str(tmp_path / "run"),
        epochs=1,
        batch=4,
        clip_s=front.get("clip_s", 0.5),
        lr=1e-3,
        patchout_freq=0,
        patchout_time=0,
        device="cpu",
        precision="fp32",
    )
    supervised.run(tuned)
    for other in NEW:
        begun = start(settings(other, init=str(tmp_path / "run"), **front), HEARD, device=CPU)
        blocks = begun.state_dict()["encoder.blocks.3.attn.qkv.weight"]
        assert torch.equal(blocks, encoder.state_dict()["blocks.3.attn.qkv.weight"])
        assert torch.equal(begun.embed.class_token, encoder.embed.class_token)


def test_the_encoder_of_contrast_gives_the_trained_embedding() -> None:
    chosen, model = objective(settings("contrast"))
    torch.nn.init.normal_(model.encoder.norm.weight)
    mel = torch.randn(2, 128, 48)
    with torch.no_grad():
        trained = model.embedding(mel, torch.arange(24).expand(2, -1))
        torch.testing.assert_close(chosen.encoder(model)(mel).embedding, trained, atol=1e-5, rtol=1e-4)

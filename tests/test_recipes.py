"""Every recipe's numbers against the published ones, and every recipe builds what it says."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from patchout.checkpoint.zoo_list import ALIASES, MODELS
from patchout.cli.main import run_command
from patchout.models.passt import SIZES
from patchout.models.patches import Patchout
from patchout.training.recipes import names, recipe
from patchout.training.supervised.config import TrainConfig

# Columns of the published table of recipes (code values): batch, epochs, peak rate, plateau end, ramp, epoch
# (from 1) at whose start the first snapshot is taken, epochs between snapshots, masks, chance of a waveform
# mix.
PUBLISHED: dict[str, tuple[Any, ...]] = {
    "audioset": (12, 130, 2e-5, 50, 50, 50, 5, (48, 192), 0.5),
    "esc50": (12, 10, 1e-5, 50, 50, 2, 1, (48, 80), 0.0),
    "openmic": (6, 10, 1e-5, 50, 50, 2, 1, (48, 192), 0.5),
    "fsd50k": (12, 50, 1e-5, 10, 10, 10, 3, (0, 0), 0.5),
}
# Tokens of a training step, C and D included: the paper's, the released models', or about half of what there
# is.
TOKENS = {
    "audioset-b": 1190,
    "audioset-u": 790,
    "audioset-s": 474,
    "audioset-s-l": 474,
    "audioset-s-n": 254,
    "audioset-s16": 296,
    "audioset-grid": 1190,
    "audioset-n": 498,
    "audioset-hop160": 596,
    "audioset-hop100": 1016,
    "openmic-s": 474,
    "openmic-paper": 594,
    "openmic-u": 596,
    "openmic-s-n": 254,
    "esc50-s": 275,
    "esc50-u": 296,
    "esc50-s-n": 128,
    "esc50-code": 353,
    "fsd50k-s": 714,
    "fsd50k-paper": 594,
    "fsd50k-u": 596,
    "fsd50k-s-n": 254,
    "dcase2020-s": 474,
    "dcase2020-s-n": 254,
    "speechcommands": 110,
    "esc10-b": 590,
    "esc10-u": 390,
    "esc10-s": 234,
    "esc10-s-l": 234,
    "esc10-s-n": 128,
}
STRIDE_16 = ("passt-s-s16-ap473",)  # start weights without overlap


def config(name: str) -> TrainConfig:
    return recipe(name).config


def tokens(config: TrainConfig) -> int:
    """Patches that a training step keeps, plus C and D."""
    stride = config.stride or ((16, 16) if config.init in STRIDE_16 else (10, 10))
    frames = 1 + (round(config.clip_s * 32_000) - 1) // (config.hop_length or 320)
    rows, columns = (128 - 16) // stride[0] + 1, (frames - 16) // stride[1] + 1
    return config.patchout.num_kept(rows, columns) + 2


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_published_numbers(name: str) -> None:
    found = config(name)
    masks = (found.mask_freq, found.mask_time)
    assert PUBLISHED[name] == (
        *(found.batch, found.epochs, found.lr, found.plateau_epochs, found.ramp_epochs),
        *(found.swa_start, found.swa_every, masks, found.wave_mix),
    )


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_what_all_published_recipes_share(name: str) -> None:
    found = config(name)
    assert (found.schedule, found.warm_up_epochs, found.floor) == ("exp_ramp", 5.0, 0.01)
    assert (found.weight_decay, found.decay_all, found.clip_norm) == (1e-4, True, 0.0)
    assert (found.mixup, found.gain_db, found.roll_s * 32_000) == (0.3, (-7, 6), 50)
    assert found.mel_jitter
    assert found.label_smoothing == 0.0


@pytest.mark.slow
def test_numbers_that_only_some_recipes_have() -> None:
    audioset = config("audioset")
    assert (audioset.draws, audioset.balance, audioset.init) == (100_000, "sampling", "deit-base-384")
    assert (audioset.wave_mix_alpha, audioset.mask_shared, audioset.mask_fill) == (2.0, True, "published")
    assert (config("audioset-s14").stride, config("audioset-s14").patchout) == (
        (14, 14),
        Patchout(freq=3, time=30),
    )
    for name, table_s in (("audioset-20s", 20.0), ("audioset-30s", 30.0)):
        assert (config(name).table_s, config(name).clip_s, config(name).patchout) == (
            table_s,
            10.0,
            Patchout(4, 40),
        )
    for name in ("openmic", "esc50", "fsd50k", "dcase2020"):
        assert (config(name).draws, config(name).balance) == (0, "")
        starts = {variant: config(f"{name}-{variant}").init for variant in ("b", "u", "s", "s-l", "s-n")}
        assert starts == {
            **dict.fromkeys(("b", "u", "s"), "passt-s"),
            "s-l": "passt-l-kd",
            "s-n": "passt-s-s16-ap473",
        }


def test_what_code_and_paper_say_otherwise_of_fine_tuning() -> None:
    for name in ("openmic", "esc50", "fsd50k"):
        paper = config(f"{name}-paper")
        assert config(f"{name}-kd").init == "passt-s-kd"
        assert (paper.gain_db, paper.roll_s) == ((-7, 7), paper.clip_s)
        assert paper.result == "last" or not paper.swa_start  # no paper names an average


def test_distilled_variants_differ_in_their_teachers_alone() -> None:
    for name in ("audioset", "audioset-s-l", "audioset-small", "audioset-tiny"):
        plain, distilled = config(name), config(f"{name}-kd")
        changed = {f.name for f in fields(plain) if getattr(plain, f.name) != getattr(distilled, f.name)}
        assert changed == {"recipe", "distill"}
        assert {*distilled.distill} <= {*MODELS, *ALIASES}


def test_what_the_paper_says_otherwise() -> None:
    paper, code = config("audioset-paper"), config("audioset")
    changed = {f.name for f in fields(paper) if getattr(paper, f.name) != getattr(code, f.name)} - {"recipe"}
    assert changed == {"lr", "draws", "epochs", "gain_db", "roll_s", "result"}
    assert (paper.lr, paper.draws, paper.epochs, paper.gain_db) == (1e-5, 200_000, 120, (-7, 7))
    assert paper.roll_s == paper.clip_s  # the whole clip
    assert (paper.result, code.result, paper.swa_start) == (
        "last",
        "average",
        code.swa_start,
    )  # Table 1; the SWA files


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TOKENS))
def test_tokens_of_a_training_step(name: str) -> None:
    assert tokens(config(name)) == TOKENS[name]


def test_names_say_the_data_set_and_the_variant() -> None:
    assert {"audioset-b", "audioset-u", "audioset-s", "audioset-s-l", "audioset-s-n", "audioset-s16"} <= set(
        names()
    )
    for data in ("openmic", "esc50", "fsd50k", "dcase2020"):
        assert {f"{data}-{variant}" for variant in ("b", "u", "s", "s-l", "s-n")} <= set(names())
    assert len(names()) == len(set(names()))


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_a_recipe_knows_its_name_and_its_docstring_its_command(name: str) -> None:
    found = recipe(name)
    assert found.config.recipe == name
    assert "`patchout train " in found.description
    assert len(found.description) > 300
    for word in name.split("-")[1:2]:
        assert word in found.description.lower().replace("s-l", "s-l s l").replace("s-n", "s-n s n")


def test_the_fifth_variant_has_the_papers_seven_blocks() -> None:
    assert config("audioset-s-l").depth == 7
    assert config("openmic-s-l").init == "passt-l-kd"  # seven blocks as published


def test_sizes_start_from_the_image_weights_of_their_width() -> None:
    for size, init in (("tiny", "deit-tiny"), ("small", "deit-small"), ("base", "deit-base-384")):
        name = "audioset" if size == "base" else f"audioset-{size}"
        assert (config(name).size, config(name).init) == (size, init)
        assert size in SIZES
        scratch = "audioset-scratch" if size == "base" else f"audioset-{size}-scratch"
        assert (config(scratch).size, config(scratch).init) == (size, "")


def test_scratch_has_the_set_up_of_the_paper_that_is_cited_for_it() -> None:
    found, cited = config("audioset-tiny-scratch"), config("maskspec-audioset")
    changed = {f.name for f in fields(found) if getattr(found, f.name) != getattr(cited, f.name)} - {"recipe"}
    own = {"patchout_freq", "patchout_time", "patchout_patches", "mask_fill", "layer_decay", "drop_path"}
    assert changed == {"init", "model", "size", *own}


def test_scores_of_three_channels_are_cited_for_three_channels() -> None:
    for name in ("dcase2019", "dcase2019-tiny", "dcase2019-small"):
        assert (config(name).channel, config(f"{name}-ensemble").channel) == ("mean", "each")


@pytest.mark.slow
def test_folds_and_test_splits_choose_no_epoch() -> None:
    assert config("esc50").folds == ("1", "2", "3", "4", "5")
    assert config("esc50").result == "average"
    assert (config("fsd50k").split, config("fsd50k").test, config("fsd50k").result) == ("val", "eval", "best")
    for name in names():
        found = config(name)
        assert found.result != "best" or (found.test and found.test != found.split)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"unknown recipe 'esc51' \(did you mean esc50\?\): recipes are audioset, dcase"
    ):
        recipe("esc51")


def test_the_command_goes_on_as_a_run_began_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    began = vars(replace(config("maskspec-esc50-paper"), lr=2.5e-4, split="1", folds=())) | {"out": ""}
    (tmp_path / "fold-1").mkdir()
    stored = {"config": began, "data": {}, "versions": {}, "changes": []}
    (tmp_path / "fold-1" / "config.json").write_text(json.dumps(stored))
    rates: list[float] = []

    def run(config: TrainConfig, *listener: object, **options: bool) -> dict[str, float]:
        rates.append(config.lr)
        return {}

    monkeypatch.setattr("patchout.training.supervised.run.run", run)
    command = ("train", "maskspec-esc50-paper", "--data", "x", "--out", str(tmp_path))
    for more in ((), ("--accept-changes",), ("--lr", "0.1")):
        assert run_command([*command, *more]) == 0
    assert rates == [2.5e-4, 1e-3, 0.1]
    assert "goes on as it began (lr 0.001 -> 0.00025)" in capfd.readouterr().err


# -- MaskSpec ------------------------------------------------------------------------------------------------

# Columns of the published table of fine-tuning (code values): epochs, batch, peak rate, patches dropped,
# patches of a clip, chance of a waveform mix, mixup.
MASKSPEC: dict[str, tuple[Any, ...]] = {
    "audioset": (80, 512, 2e-3, 200, 496, 0.5, 0.3),
    "audioset20k": (80, 512, 2e-3, 200, 496, 0.5, 0.3),
    "esc50": (80, 64, 2.5e-4, 100, 248, 0.5, 0.3),
    "dcase2018": (80, 64, 2.5e-4, 200, 496, 0.5, 0.3),
    "dcase2019": (200, 64, 1.25e-3, 200, 496, 0.5, 0.2),
    "openmic": (80, 64, 2.5e-4, 200, 496, 0.0, 0.0),
    "speechcommands": (80, 64, 2.5e-4, 0, 48, 0.5, 0.3),
}


@pytest.mark.parametrize("name", sorted(MASKSPEC))
def test_the_published_numbers_of_maskspec(name: str) -> None:
    found = config(f"maskspec-{name}")
    patches = 8 * ((1 + (round(found.clip_s * 32_000) - 1) // 320) // 16)
    assert MASKSPEC[name] == (
        *(found.epochs, found.batch, found.lr, found.patchout_patches, patches),
        *(found.wave_mix, found.mixup),
    )
    assert (found.layer_decay, found.drop_path, found.weight_decay, found.clip_norm) == (0.75, 0.1, 0.05, 0.0)
    assert (found.model, found.schedule, found.warm_up_epochs, found.decay_all) == (
        "maskspec",
        "cosine",
        5.0,
        False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MASKSPEC))
def test_the_three_starts_of_maskspec(name: str) -> None:
    scratch = config(f"maskspec-{name}-scratch")
    assert (scratch.init, scratch.layer_decay, scratch.model) == ("", 1.0, "maskspec")
    assert config(f"maskspec-{name}").init == "runs/maskspec"
    if "audioset" in name:  # a start that knows its labels
        assert f"maskspec-{name}-tuned" not in names()
    else:
        assert config(f"maskspec-{name}-tuned").init == "runs/maskspec-audioset"


@pytest.mark.parametrize("name", sorted({*MASKSPEC} - {"dcase2018"}))
def test_what_the_maskspec_paper_says_otherwise(name: str) -> None:
    paper = config(f"maskspec-{name}-paper")
    assert (paper.lr, paper.epochs) == (1e-3, 80 if "audioset" in name else 100)
    assert (paper.wave_mix, paper.mixup > 0, paper.roll_s) == (0.5, True, paper.clip_s)
    assert (paper.mask_freq, paper.mask_time, paper.patchout, paper.mel_jitter) == (0, 0, Patchout(), False)
    assert (paper.gain_db, paper.drop_path, paper.layer_decay) == ((0, 0), 0.0, 0.75)


def test_maskspec_is_chosen_by_no_test_split() -> None:
    assert (config("maskspec-dcase2019").channel, config("maskspec-dcase2019").result) == ("each", "last")
    assert config("maskspec-esc50").folds == ("1", "2", "3", "4", "5")
    words = config("maskspec-speechcommands")
    assert (words.split, words.test, words.result) == ("valid", "test", "best")

"""`patchout pretrain` and `patchout reconstruct` as a user runs them."""

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import noise, write_wav

from patchout.cli.main import run_command
from patchout.models import passt
from patchout.training.masked import survey
from patchout.training.masked.recipes import RECIPES

SMALL = (
    *(
        "--size",
        "tiny",
        "--decoder",
        "16",
        "1",
        "1",
        "--clip-s",
        "0.5",
        "--epochs",
        "1",
        "--warm-up-epochs",
        "0",
    ),
    *("--batch", "6", "--init", "", "--device", "cpu", "--precision", "fp32"),
)


def pretrain_own(sounds: Path, out: Path) -> list[str]:
    """By predicting pixels, so that there is a decoder to look at."""
    command = ["pretrain", "own", "--data", str(sounds), "--out", str(out), "--probe", str(sounds)]
    return [*command, "--objective", "pixels", "--masks", "random"]


@pytest.fixture
def run(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Path:
    """The run folder of a small pre-training on the sounds of `class_folder`,
    beside what it said and told.
    """
    monkeypatch.setattr(survey, "LEAST_S", 1.0)
    monkeypatch.setitem(passt.SIZES, "tiny", (32, 2))
    out = tmp_path / "run"
    command = pretrain_own(class_folder, out)
    assert run_command([*command, *SMALL]) == 0
    for name, text in zip(("told", "said"), capfd.readouterr(), strict=True):
        (out / name).write_text(text)
    return out


@pytest.mark.slow
def test_it_says_what_it_does_and_whether_it_helped(run: Path) -> None:
    said, told = (run / "said").read_text(), (run / "told").read_text()
    assert "about 0.0 hours of sound, start: random weights" in said
    assert "12 clips, no labels; batches of 6, 2 steps" in said
    assert "pre-trained here against random weights" in told
    assert told.splitlines()[-1].startswith(f"{run / 'model.safetensors'}  ")


@pytest.mark.slow
def test_it_goes_on_as_it_began_when_the_recipe_has_changed(
    run: Path, class_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RECIPES, "own", replace(RECIPES["own"], base_lr=2e-3))
    command = pretrain_own(class_folder, run)
    assert run_command([*command, *SMALL]) == 0
    assert "goes on as it began (base_lr 0.002 -> 0.004); --accept-changes takes" in capfd.readouterr().err


@pytest.mark.slow
def test_its_model_embeds_and_is_fine_tuned_but_tags_nothing(
    run: Path, class_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sound, out = str(class_folder / "dog" / "0.wav"), str(tmp_path / "e.parquet")
    assert run_command(["embed", sound, "--model", str(run), "--out", out, "--device", "cpu"]) == 0
    assert run_command(["tag", sound, "--model", str(run), "--device", "cpu"]) == 2
    assert "has no classes yet: fine-tune it" in capfd.readouterr().err
    assert run_command(["evaluate", str(run), "--data", str(class_folder), "--device", "cpu"]) == 2
    assert "has no classes yet: fine-tune it" in capfd.readouterr().err
    tuned = [
        "--out",
        str(tmp_path / "tuned"),
        "--init",
        str(run),
        "--epochs",
        "1",
        "--batch",
        "4",
        "--clip-s",
        "0.5",
    ]
    tuned += ["--roll-s", "0.1", "--precision", "fp32", "--device", "cpu"]
    assert run_command(["train", "folder", "--data", str(class_folder), *tuned]) == 0
    assert run_command(["tag", sound, "--model", str(tmp_path / "tuned"), "--device", "cpu"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [3.0, 0.01])
def test_the_pictures_of_a_long_sound_and_of_one_shorter_than_a_patch(
    seconds: float, run: Path, tmp_path: Path
) -> None:
    sound = write_wav(tmp_path / "long.wav", noise(seconds))
    picture = tmp_path / "look.png"
    assert (
        run_command(
            ["reconstruct", str(sound), "--model", str(run), "--plot", str(picture), "--device", "cpu"]
        )
        == 0
    )
    assert picture.stat().st_size > 20_000
    assert (tmp_path / "look-ratios.png").stat().st_size > 20_000
    sound.write_text("no sound " * 99)
    assert (
        run_command(
            ["reconstruct", str(sound), "--model", str(run), "--plot", str(picture), "--device", "cpu"]
        )
        == 1
    )


@pytest.mark.parametrize(
    ("command", "code", "reason"),
    [
        (
            ("pretrain",),
            2,
            "recipes: maskspec, maskspec-small, maskspec-tiny, maskspec-code, maskspec-paper, own",
        ),
        (("pretrain", "owm"), 2, "did you mean own"),
        (("pretrain", "own", "--data", "nowhere", "--out", "x"), 1, "nowhere: no such folder"),
        (
            ("pretrain", "own", "--data", "x", "--out", "y", "--mask-ratio", "1"),
            2,
            "from 0.05 to 0.95, got 1",
        ),
        (
            ("reconstruct", "a.wav", "--model", "sounds-tiny", "--plot", "a.png"),
            2,
            "is a tagger or an encoder without a decoder",
        ),
        (("reconstruct", "a.wav", "--model", "x", "--plot", "a.doc"), 2, "a.doc"),
        (
            ("reconstruct", "a.wav", "--model", "x", "--plot", "a.png", "--seed", "-1"),
            2,
            "--seed must be 0 or more",
        ),
        (
            ("reconstruct", "a.wav", "--model", "x", "--plot", "a.png", "--mask-ratio", "0"),
            2,
            "from 0.05 to 0.95, got 0",
        ),
    ],
)
def test_a_mistake_is_one_line(
    command: tuple[str, ...], code: int, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        found = run_command(list(command))
    except SystemExit as stop:  # the parser's own way out
        found = int(stop.code or 0)
    assert found == code
    assert reason in capfd.readouterr().err

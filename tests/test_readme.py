"""Every command and every line of Python in README and guide works as written
(make's own targets run in CI).
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import soundfile
from conftest import RATE, noise, tone

import patchout
from patchout.cli.main import run_command

ROOT = Path(__file__).parent.parent
README, GUIDE = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/guide.md"))
ENDLESS = "patchout web"  # runs until it is stopped
LINES = [
    line[2:] for block in re.findall(r"```console\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()
]
CELLS = re.findall(
    r"`(patchout [^`]+)`", README.partition("## I want to")[2].partition("\n\nEvery command")[0]
)
COMMANDS = [
    line
    for line in LINES
    if line.startswith("patchout ") and "passt-s" not in line  # needs a download
    if not line.startswith(ENDLESS)
]
SHORTER = {  # of what takes minutes to hours, or needs a download
    "train folder": ["--epochs", "1"],
    "train esc50-s": ["--epochs", "2", "--depth", "1", "--init", "", "--size", "tiny", "--folds", "1"],
    "train esc10": ["--epochs", "1", "--depth", "1"],
}
PYTHON = re.findall(r"```python\n(.*?)```", README + GUIDE, re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README speaks of."""
    soundfile.write(tmp_path / "dog.ogg", tone(2.0), RATE)
    soundfile.write(tmp_path / "song.mp3", tone(2.0, 600), RATE)
    soundfile.write(tmp_path / "street.wav", noise(3.0), RATE)
    write_m4a(tmp_path / "talk.m4a")
    (tmp_path / "my_sounds" / "rain").mkdir(parents=True)
    soundfile.write(tmp_path / "my_sounds" / "rain" / "1.wav", noise(1.0), RATE)
    for take in range(6):
        for name, hz in (("bell", 800), ("hum", 120)):
            path = tmp_path / "my_labelled_sounds" / name / f"{take}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, tone(0.5, hz + take), RATE)
    write_esc50(tmp_path / "ESC-50")
    rows = ["filename,fold,category"]
    (tmp_path / "ESC-10" / "audio").mkdir(parents=True)
    for fold in range(1, 6):
        for name in ("dog", "rain"):
            for take in range(4):
                file = f"{fold}-{name}-{take}.wav"
                soundfile.write(tmp_path / "ESC-10" / "audio" / file, noise(0.5, take), RATE)
                rows.append(f"{file},{fold},{name}")
    (tmp_path / "ESC-10" / "esc10.csv").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_esc50(root: Path) -> None:
    """Three short clips of two classes in every fold, in the layout of the official download."""
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    for fold in range(1, 6):
        for source in range(3):
            for target, name in ((0, "dog"), (49, "hand_saw")):
                file = f"{fold}-{fold}0{source}-A-{target}.wav"
                soundfile.write(root / "audio" / file, noise(0.5, 100 * fold + 10 * source + target), RATE)
                rows.append(f"{file},{fold},{target},{name},False,{fold}0{source},A")
    (root / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")


def write_m4a(path: Path) -> None:
    """A second of AAC in an MP4 container."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        for start in range(0, RATE, 1024):
            frame = av.AudioFrame.from_ndarray(
                tone(1.0)[None, start : start + 1024].copy(), format="fltp", layout="mono"
            )
            frame.sample_rate = RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(autouse=True)
def shape_checks() -> Iterator[None]:
    """As they were, after a test."""
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.slow
def test_the_commands_work_in_their_order(place: Path) -> None:
    assert len(COMMANDS) >= 10
    assert len(CELLS) >= 12
    here = [line for line in CELLS if not re.search(rf"passt-s|[A-Z]{{3}}|pretrain|bench|{ENDLESS}", line)]
    others = [line for line in here if not any(command.startswith(line) for command in COMMANDS)]
    for line in [*COMMANDS, *others]:
        args = shlex.split(line)[1:]
        args += SHORTER.get(" ".join(args[:2]), [])
        jaxtyping.config.update("jaxtyping_disable", args[0] == "export")  # it traces with symbols as sizes
        assert run_command(args) == 0, line
    assert (place / "street.png").exists()


def test_the_python_works(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for block in PYTHON:
        exec(compile(block, "README.md", "exec"), {})
    assert "(" in capfd.readouterr().out
    assert place.exists()


def test_every_public_function_is_shown() -> None:
    names = {"load", "tag", "embed", "log_mel", "EventRule", "Output"}
    assert names <= set(patchout.__all__)
    assert [name for name in names if not re.search(rf"\b{name}\(", README + GUIDE)] == []

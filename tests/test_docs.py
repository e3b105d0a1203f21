"""Every command and every line of Python in README and documentation works as written.

Lines of `console` blocks are run in the order of the site, but for those with `# not tested: REASON` behind
them (listed below) and the README's own (make's targets run in CI). Of what stands elsewhere, in prose or in
records of measurements, commands and options exist.
"""

import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import jaxtyping
import pytest
import soundfile
from conftest import RATE, noise, tone, write_wav
from test_structure import OPTIONS

import patchout
from patchout.cli.main import COMMANDS, run_command
from patchout.training.masked.config import PretrainConfig
from patchout.training.supervised.config import TrainConfig

ROOT = Path(__file__).parent.parent
NAV = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
WRITTEN = ("reference/", "notebooks/")  # from the code, and from notebooks that have their own test
SITE = [page for page in re.findall(r"([\w/.-]+\.md)$", NAV, re.MULTILINE) if not page.startswith(WRITTEN)]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page: (ROOT / "docs" / page).read_text(encoding="utf-8") for page in SITE}
BLOCKS = [
    (page, *block)  # its language, its lines
    for page, text in PAGES.items()
    for block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
]
LINES = [line for _, language, block in BLOCKS if language == "console" for line in block.splitlines()]
MARK = "  # not tested: "
UNTESTED = Counter(  # why, and how many lines
    {"network": 5, "runs until it is stopped": 1, "GPUs": 1, "cluster": 1}
)
CELLS = re.findall(
    r"`(patchout [^`]+)`", README.partition("## I want to")[2].partition("\n\nEvery command")[0]
)
SHORTER = {  # of what takes minutes to hours, or needs a download
    "train folder": "--epochs 1",
    "train esc50-s": "--epochs 2 --seeds 2 --depth 1 --init '' --size tiny --folds 1",
    "train esc10": "--epochs 1 --depth 1",
    "pretrain own": "--init '' --epochs 1 --warm-up-epochs 0 --size tiny --clip-s .5",
    "pretrain maskspec-tiny": "--batch 8 --epochs 1 --warm-up-epochs 0 --decoder 16 1 1 --clip-s .5",
}
PYTHON = [("README.md", block) for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)]
PYTHON += [  # that of other suites is run by tests/test_suites.py
    (page, block) for page, language, block in BLOCKS if language == "python" and page != "suites.md"
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the README speaks of."""
    soundfile.write(tmp_path / "dog.ogg", tone(2.0), RATE)
    soundfile.write(tmp_path / "song.mp3", tone(2.0, 600), RATE)
    soundfile.write(tmp_path / "street.wav", noise(3.0), RATE)
    write_m4a(tmp_path / "talk.m4a")
    for name, seconds in (("my_unlabelled_sounds", 16.0), ("generated", 0.6), ("reference", 0.6)):
        for take in range(4):
            write_wav(tmp_path / name / f"{take}.wav", noise(seconds, take))
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


def test_every_line_is_run_or_says_why_not() -> None:
    assert [line for line in LINES if not line.startswith("$ ")] == []
    assert Counter(line.partition(MARK)[2] for line in LINES if MARK in line) == UNTESTED
    others = [line for line in LINES if MARK not in line and not line.startswith("$ patchout ")]
    assert others == [], "only commands of patchout are run: others are marked"


@pytest.mark.slow
def test_the_commands_work_in_their_order(place: Path) -> None:
    commands = [line.removeprefix("$ ") for line in LINES if MARK not in line]
    assert len(commands) >= 15
    assert len(CELLS) >= 12
    here = [line for line in CELLS if not re.search(r"passt-s|[A-Z]{3}|pretrain|bench|web", line)]
    others = [line for line in here if not any(command.startswith(line) for command in commands)]
    for line in [*commands, *others]:
        args = shlex.split(line, comments=True)[1:]
        args += shlex.split(SHORTER.get(" ".join(args[:2]), ""))
        jaxtyping.config.update("jaxtyping_disable", args[0] == "export")  # it traces with symbols as sizes
        assert run_command(args) == 0, line
    assert (place / "street.png").exists()


@pytest.mark.slow
def test_the_python_works(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for page, block in PYTHON:
        exec(compile(block, page, "exec"), {})
    assert "(" in capfd.readouterr().out
    assert place.exists()


def named_commands() -> Iterator[tuple[str, str]]:
    """Page and line of every command of ours in blocks that are not run, and in prose."""
    for page, language, block in BLOCKS:
        if language in ("", "bash", "text"):
            lines = re.sub(r"\\\n\s*", "", block).splitlines()
            yield from ((page, line) for line in lines if line.startswith("patchout "))
    for page, text in [("README.md", README), *PAGES.items()]:
        prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        yield from ((page, " ".join(line.split())) for line in re.findall(r"`(patchout [^`]+)`", prose))


def test_commands_and_options_that_are_named_exist() -> None:
    options = {command: set(names.split()) | {"help"} for command, names in OPTIONS.items()}
    for command, config in (("train", TrainConfig), ("pretrain", PretrainConfig)):
        names = {field.name.replace("_", "-") for field in fields(config)}
        options[command] |= names | {f"no-{name}" for name in names}
    assert len(list(named_commands())) > 50
    wrong = []
    for page, line in named_commands():
        words = line.partition("  #")[0].split()[1:]
        command = " ".join(words[:2]) if " ".join(words[:2]) in options else words[0]
        given = {word.removeprefix("--").partition("=")[0] for word in words if word.startswith("--")}
        if words[0].isupper() or words[0].startswith("--") or command == "hear":
            continue
        if words[0] not in COMMANDS or given - options[command]:
            wrong.append((page, line))
    assert wrong == []


def test_every_public_function_is_shown() -> None:
    names = {"load", "tag", "embed", "log_mel", "EventRule", "Output"}
    assert names <= set(patchout.__all__)
    assert [name for name in names if not re.search(rf"\b{name}\(", "".join([README, *PAGES.values()]))] == []

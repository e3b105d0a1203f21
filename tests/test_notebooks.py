"""The notebooks run, offline and with the built-in model, and hold the outputs of such a run."""

import contextlib
import json
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
from conftest import module_of

from patchout.cli.main import run_command

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
SHORTER = {"own_sounds": ("--epochs 10", "--epochs 1")}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """What runs them."""
    return module_of("scripts/notebooks.py")


@pytest.fixture
def no_new_process(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of ours run here: a process of each would import for seconds."""
    shell = script.shell

    def run(command: str) -> None:
        program, *words = shlex.split(command)
        if program != "patchout":
            shell(command)
            return
        with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                code = run_command(words)
            output.seek(0)
            print(output.read(), end="")  # noqa: T201
        assert code == 0, command

    monkeypatch.setattr(script, "shell", run)


@pytest.mark.slow
@pytest.mark.usefixtures("no_new_process")
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_gives_the_kinds_of_outputs_it_holds(
    notebook: Path, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "notebooks" / notebook.name
    copy.parent.mkdir()
    text = notebook.read_text(encoding="utf-8")
    long, short = SHORTER.get(notebook.stem, ("", ""))
    assert long in text
    copy.write_text(text.replace(long, short), encoding="utf-8")
    shutil.copy(ROOT / "examples" / "demo_sounds.py", tmp_path)
    monkeypatch.chdir(tmp_path)  # and back again
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["notebooks.py", "--check", os.fspath(copy)])
    script.open_figures()  # closes those of other tests
    script.main()


def test_every_notebook_keeps_outputs_and_a_picture() -> None:
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        assert any("image/png" in output.get("data", ()) for output in outputs), path.name
        assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code"), path.name
        assert path.stat().st_size < 1e6, path.name

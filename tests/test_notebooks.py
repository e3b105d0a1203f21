"""The notebooks run, offline and with the built-in model, and hold the outputs of such a run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_gives_the_kinds_of_outputs_it_holds(notebook: Path, tmp_path: Path) -> None:
    copy = tmp_path / "notebooks" / notebook.name
    copy.parent.mkdir()
    shutil.copy(notebook, copy)
    shutil.copy(ROOT / "examples" / "demo_sounds.py", tmp_path)
    command = [sys.executable, str(ROOT / "scripts" / "notebooks.py"), "--check", str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"MPLBACKEND": "agg"})
    assert done.returncode == 0, done.stderr


def test_every_notebook_keeps_outputs_and_a_picture() -> None:
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        assert any("image/png" in output.get("data", ()) for output in outputs), path.name
        assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code"), path.name
        assert path.stat().st_size < 1e6, path.name

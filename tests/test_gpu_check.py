"""scripts/gpu_check.sh, tried on a CPU with tiny sizes: on a GPU it has ten minutes and no second chance."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from conftest import module_of

ROOT = Path(__file__).parent.parent
SECTIONS = ["machine", "tests", "bench", "training", "pretraining", "inference", "embeddings", "probes"]


@pytest.mark.slow
def test_the_check_runs_through_on_a_cpu(tmp_path: Path) -> None:
    script, out = str(ROOT / "scripts" / "gpu_check.sh"), str(tmp_path / "check")
    command = ["sh", script, "--device", "cpu", "--quick", "--out", out]
    subprocess.run(command, check=True, env=os.environ | {"PYTHON": sys.executable})
    report = json.loads((tmp_path / "check.json").read_text())
    assert list(report["sections"]) == SECTIONS
    rows = [row for section in report["sections"].values() for row in section["rows"]]
    assert len(rows) > 15
    assert all(row["value"] > 0 for row in rows)
    page = (tmp_path / "check.md").read_text()
    assert "Tiny sizes: only a trial of the script." in page
    assert all(f"| {row['what']} | " in page for row in rows)


@pytest.mark.slow
def test_a_section_that_is_cut_off_leaves_what_it_has_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each section has a process of its own."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    check: Any = module_of("scripts/gpu_check.py")
    options = Namespace(device="cpu", quick=True)
    whole = check.run_apart("machine", options, 120.0)
    assert (len(whole["rows"]), whole["problem"]) == (4, "")
    assert check.run_apart("machine", options, 0.2)["problem"] == "cut off after 0 s"

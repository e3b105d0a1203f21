"""What a release writes, and what an install gives to others: version, changelog, citation, types."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import patchout

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "scripts"))

from newest import differences  # noqa: E402
from release import CHANGELOG, CITATION, VERSION_FILE, released  # noqa: E402


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The three files that a release changes."""
    texts = {
        VERSION_FILE: '"""Package."""\n\n__version__ = "0.1.0"\n',
        CHANGELOG: "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A bell.\n\n## [0.1.0] - 2026-01-01\n",
        CITATION: "title: patchout\nversion: 0.1.0\ndate-released: 2026-01-01\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_release_has_its_version_everywhere(tree: Path) -> None:
    texts = released(tree, "0.2.0", "2026-12-01")
    assert '__version__ = "0.2.0"' in texts[VERSION_FILE]
    assert "## [Unreleased]\n\n## [0.2.0] - 2026-12-01\n\n### Added\n\n- A bell." in texts[CHANGELOG]
    assert texts[CITATION] == "title: patchout\nversion: 0.2.0\ndate-released: 2026-12-01\n"


@pytest.mark.parametrize(
    ("version", "reason"), [("0.1.0", "already"), ("0.0.9", "higher"), ("1.0", "three numbers")]
)
def test_a_version_that_is_no_step_forward_is_refused(tree: Path, version: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        released(tree, version, "2026-12-01")


def test_a_release_of_nothing_is_refused(tree: Path) -> None:
    (tree / CHANGELOG).write_text("# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - 2026-01-01\n\n- All.\n")
    with pytest.raises(ValueError, match="nothing under Unreleased"):
        released(tree, "0.2.0", "2026-12-01")


def test_the_files_of_this_project_can_be_released() -> None:
    major = int(patchout.__version__.partition(".")[0])
    texts = released(ROOT, f"{major + 1}.0.0", "2026-12-01")
    assert re.search(rf"^version: {major + 1}\.0\.0$", texts[CITATION], re.MULTILINE)


def test_the_citation_has_the_version_of_the_package() -> None:
    assert f"\nversion: {patchout.__version__}\n" in (ROOT / CITATION).read_text(encoding="utf-8")


def test_newer_versions_are_told() -> None:
    pins = 'numpy==2.2.6 ; python_version < "3.11"\nnumpy==2.4.6 ; python_version >= "3.11"\nav==18.1.0\n'
    assert differences("numpy==2.4.6\nav==18.2.0\nnew==1.0\n", pins) == ["av: 18.1.0 -> 18.2.0"]


@pytest.mark.slow
def test_a_type_checker_of_others_accepts_the_package(tmp_path: Path) -> None:
    """`py.typed` is there and the public names have types: without our settings, from another folder."""
    (tmp_path / "mypy.ini").write_text("[mypy]\n[mypy-torch.*]\nfollow_imports = skip\n")  # 11 s, not used
    command = [sys.executable, "-m", "mypy", "--strict", str(ROOT / "tests" / "downstream.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("Success"), done.stdout

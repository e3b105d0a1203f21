"""The documentation as a site: its pages are listed, its reference is written from the code."""

import re
from pathlib import Path
from types import ModuleType

import pytest
from conftest import module_of

import patchout

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The script that writes the reference."""
    return module_of("scripts/reference.py")


def test_the_site_lists_every_page() -> None:
    """But the decisions, which their own page lists; the site's builder checks links, not its list."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = set(re.findall(r"([\w/.-]+\.md)$", nav, re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    written = {page for page in listed | pages if page.startswith(("reference/", "notebooks/"))}
    index = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    decisions = {f"decisions/{page}" for page in re.findall(r"\]\(([\w.-]+\.md)\)", index)}
    assert (listed | decisions) - written == pages - written


@pytest.mark.slow
def test_the_reference_has_every_public_name(reference: ModuleType) -> None:
    pytest.importorskip("mteb", reason="the site needs Python 3.11 as mteb does")
    page = reference.python_page()
    names = [name for name in patchout.__all__ if not name.startswith("__")]
    assert [name for name in names if f"\n### {name}\n" not in page] == []
    assert "| `hop_ms` | `float` | `50.0` |" in page
    assert "tag(\n    model: Tagger," in page


def test_a_field_has_its_docstring_and_that_of_its_base(reference: ModuleType) -> None:
    from patchout.training.supervised.config import TrainConfig

    table = reference.fields_table(TrainConfig)
    assert "| `seeds` | `int` | `1` | runs with seeds seed, seed + 1, ...;" in table
    assert "| `epochs` | `int` | `120` | passes over the clips |" in table


def test_help_pages_are_taken_whole(reference: ModuleType) -> None:
    page = reference.help_of("hear", "list")
    assert page.startswith("usage: patchout hear list")
    assert "--tasks" in page

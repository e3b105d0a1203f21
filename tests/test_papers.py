"""docs/papers.md against the code: every name is there, every value is the code's,
every cited score the recipe's.
"""

import ast
import importlib
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from test_structure import OPTIONS

from patchout.data.prepare.layouts import LAYOUTS
from patchout.training.masked.config import PretrainConfig
from patchout.training.masked.recipes import RECIPES
from patchout.training.recipes import names, recipe
from patchout.training.supervised.config import TrainConfig

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ")
]
ELEMENTS = [row for row in ROWS if len(row) == 3 and row[0] not in ("element", "---")]
SCORES = [row for row in ROWS if len(row) > 3]
CITED = {  # recipe, and a score that stands beside it
    (name, cell)
    for row in SCORES
    for cells in ([row[1] + row[2]] if len(row) == 4 else row[1:])
    for cell in re.findall(r"^[\d.]+", cells)
    for name in re.findall(r"`([^`]+)`", cells)
}
SECTIONS = {part.partition("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
NAMES = re.findall(r"`([^`]+)`", "".join(SECTIONS.values()))


def resolve(dotted: str) -> Any:
    """A module of the package, or what lies in one; of a field without a default, its name."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(["patchout", *parts[:length]]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            thing = part if part in getattr(thing, "__annotations__", {}) else getattr(thing, part)
        return thing
    raise AssertionError(f"no module {parts[0]}")


def setting(subject: str, field: str) -> Any:
    """A field of a recipe; of a config class, its default."""
    if subject.startswith("pretrain "):
        return getattr(RECIPES[subject.removeprefix("pretrain ")], field)
    return getattr(recipe(subject).config if subject in names() else resolve(subject), field)


def check_command(command: str) -> None:
    """The command, what it is asked to do and its options exist."""
    words = command.split()[1:]
    name = " ".join(words[:2]) if " ".join(words[:2]) in OPTIONS else words[0]
    options = {*OPTIONS[name].split()}
    if name in ("train", "pretrain"):
        kind: type = TrainConfig if name == "train" else PretrainConfig
        options |= {field.name.replace("_", "-") for field in fields(kind)}
        assert words[1] in (names() if name == "train" else RECIPES), command
    assert name != "prepare" or words[1] in LAYOUTS, command
    assert {word[2:] for word in words if word.startswith("--")} <= options, command


def check(name: str) -> None:
    """A command, a value, a recipe, a file or something in the package."""
    if name.startswith("patchout "):
        check_command(name)
    elif fields_of := re.fullmatch(r"([\w.\- ]+): (\w+ = .+)", name):
        for field, value in (one.split(" = ") for one in fields_of[2].split("; ")):
            assert setting(fields_of[1], field) == ast.literal_eval(value), name
    elif " = " in name:
        assert resolve(name.partition(" = ")[0]) == ast.literal_eval(name.partition(" = ")[2]), name
    elif "/" in name:
        assert (ROOT / name).exists(), name
    elif not (name in names() or name.removeprefix("pretrain ") in RECIPES):
        resolve(name)


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_what_the_page_names_is_there_and_has_its_value(section: str) -> None:
    for name in re.findall(r"`([^`]+)`", SECTIONS[section]):
        check(name)


def test_every_element_is_equal_deviates_or_is_cited_and_says_where_it_is() -> None:
    assert len(ELEMENTS) > 100
    for element, here, state in ELEMENTS:
        assert re.match(r"(equal|deviates: |cited\b)", state), element
        assert "`" in here or state.startswith("cited") or here == "none", element


def test_every_recipe_stands_on_the_page() -> None:
    subjects = {name.partition(": ")[0] for name in NAMES}
    assert {*names(), *(f"pretrain {name}" for name in RECIPES)} - subjects == set()


@pytest.mark.slow
def test_a_cited_score_stands_in_its_recipes_text() -> None:
    assert len(CITED) > 60
    assert [(name, score) for name, score in sorted(CITED) if score not in recipe(name).description] == []


@pytest.mark.slow
def test_the_weights_of_a_cited_score_are_those_that_the_recipe_reports_or_are_said_to_be_others() -> None:
    for row in SCORES:
        for name in re.findall(r"`([^`]+)`", row[2]) if len(row) == 4 else ():
            reported = recipe(name).config.result
            if name.endswith("-paper") or name.startswith("maskspec"):
                assert {"last": "last", "best": "best on the validation split"}[reported] == row[3].partition(
                    ","
                )[0]
            elif row[3].startswith("last") and reported != "last":
                assert "last weights" in recipe(name).description

"""The shape of the package: who imports whom, what is public, what a command takes, what an install holds."""

import ast
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest

import patchout
from patchout.cli import main as cli
from patchout.training.masked.config import PretrainConfig
from patchout.training.supervised.run import TrainConfig

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "patchout"

ROOMS = {  # a room imports only rooms above it, and the nouns beside them; lines that it may have
    "audio": 1809,
    "models": 1993,
    "checkpoint": 2234,
    "data": 3305,
    "inference": 4645,
    "export": 552,
    "hear": 2801,
    "suites": 227,
    "judge": 1971,
    "training": 5836,
    "web": 1624,
    "bench": 691,
    "cli": 2513,
}
NOUNS = ("errors", "files", "figures")  # what every room may import, and which imports no room
DOORS = ("__init__", "__main__")  # of the package: they lead to every room

PUBLIC = [
    *(
        "EmbedConfig",
        "Embedding",
        "Event",
        "EventRule",
        "MelConfig",
        "Output",
        "Passt",
        "PasstConfig",
        "Patchout",
        "Tags",
    ),
    *("__version__", "embed", "load", "log_mel", "tag", "tag_many"),
]

MAX_FIRST_LEVEL = 18  # sixteen, the web page, and the encoders for other suites
MAX_OPTIONS = 12
OPTIONS = {
    "tag": "model top events threshold format out engine plot labels device precision batch-size",
    "listen": "input rate channels encoding model threshold scores labels device precision",
    "embed": "out model kind levels fields-ms preset format device precision engine plot project",
    "evaluate": "data split by format device precision batch-size",
    "check": "model out group format device",
    "prepare": "source out check encoding mp3-kbps workers",
    "hear list": "tasks format",
    "hear resample": "tasks rate task",
    "hear make-mini": "data out",
    "hear run": "tasks out task weights preset levels fields-ms grid seed device precision",
    "hear report": "out base best",
    "judge": "protocol metrics compare cut-s model format out save-reference device engine",
    "bench": "device precision rows table batch seconds compile no-compile out format",
    "web": "model port no-open device",
    "export": "out precision seconds front-end labels verify",
    "push": "format dry-run licence data-licence accept labels private overwrite",
    "models": "format save half-precision no-half-precision",
    "train": "data out restart accept-changes",
    "pretrain": "data out restart accept-changes",
    "reconstruct": "model plot mask-ratio start-s seed device",
}


def modules() -> Iterator[tuple[str, Path]]:
    """Room (or noun) and file of every module of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name not in DOORS:
            yield name, path


def imported(tree: ast.AST) -> set[str]:
    """The rooms of this package that a file imports from, also inside functions and for types alone."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the package: no leading dots"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("patchout.")}


@cache
def nodes() -> tuple[tuple[str, str, ast.AST], ...]:
    """Module, place and node of everything in the package."""
    return tuple(
        (path.stem, f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )


def nodes_of(*kinds: type[ast.AST]) -> Iterator[tuple[str, str, ast.AST]]:
    """Those of these kinds."""
    return (entry for entry in nodes() if isinstance(entry[2], kinds))


def run_python(code: str, *, env: dict[str, str] | None = None) -> str:
    """What a fresh interpreter prints; without the shape checks that this one has."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | (env or {}))
    return done.stdout


# -- modules -------------------------------------------------------------------------------------------------


def test_every_module_is_in_a_room() -> None:
    assert {name for name, _ in modules()} == {*ROOMS, *NOUNS}
    assert len({path.name for path in PACKAGE.iterdir()} - {"__pycache__", "py.typed"}) <= MAX_FIRST_LEVEL


def test_rooms_import_only_rooms_above_them() -> None:
    order = [*NOUNS, *ROOMS]
    upward = [
        f"{path.relative_to(PACKAGE)} imports {other}"
        for name, path in modules()
        for other in imported(ast.parse(path.read_text(encoding="utf-8")))
        if other in order
        and order.index(other) > order.index(name)
        and not (name in NOUNS and other in NOUNS)
    ]
    assert upward == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_keeps_to_its_lines(room: str) -> None:
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (PACKAGE / room).rglob("*.py"))
    assert lines <= ROOMS[room], f"{room} has {lines} lines: cut some, or decide here that it may grow"


def drawing() -> str:
    """The rooms and what they build on, as a Mermaid graph; an arrow that others imply is left out."""
    above: dict[str, set[str]] = {room: set() for room in ROOMS}
    for name, path in modules():
        if name in ROOMS:
            above[name] |= (imported(ast.parse(path.read_text(encoding="utf-8"))) & ROOMS.keys()) - {name}
    reached: dict[str, set[str]] = {}
    for room in ROOMS:  # each after those that it imports
        reached[room] = above[room].union(*(reached[other] for other in above[room]))
    arrows = [
        f"  {room} --> {other}"
        for room in ROOMS
        for other in ROOMS
        if other in above[room] and not any(other in reached[third] for third in above[room])
    ]
    return "\n".join(["```mermaid", "graph TD", *arrows, "```"])


def test_the_drawing_of_the_rooms_is_what_the_code_imports() -> None:
    assert drawing() in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_an_import_inside_a_function_counts() -> None:
    source = "from patchout import audio\ndef f():\n    from patchout.checkpoint.zoo import load\n"
    assert imported(ast.parse(source)) == {"audio", "checkpoint"}


def test_no_module_is_a_drawer() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    assert [path for path in PACKAGE.rglob("*") if path.stem in drawers] == []


# -- habits --------------------------------------------------------------------------------------------------


def test_only_the_command_prints() -> None:
    calls = [(name, place) for name, place, node in nodes_of(ast.Name) if getattr(node, "id", "") == "print"]
    assert [place for name, place in calls if name not in ("main", "output")] == []


def test_no_broad_except() -> None:
    def is_broad(caught: ast.expr | None) -> bool:
        kinds = caught.elts if isinstance(caught, ast.Tuple) else [caught]
        return any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds)

    handlers = nodes_of(ast.ExceptHandler)
    assert [
        place for _, place, node in handlers if isinstance(node, ast.ExceptHandler) and is_broad(node.type)
    ] == []


def test_no_global_state_and_no_star_imports() -> None:
    stars = nodes_of(ast.ImportFrom)
    found = [
        place for _, place, node in stars if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"
    ]
    assert found + [place for _, place, _ in nodes_of(ast.Global)] == []


MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 300, 60, 6


def test_no_file_is_long() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path: count for path, count in lines.items() if count > MAX_FILE} == {}


def test_no_function_is_long_and_no_callable_takes_many_arguments() -> None:
    too_much = []
    for _, place, node in nodes_of(ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        parameters = [argument.arg for argument in taken if argument.arg not in ("self", "cls")]
        if node.end_lineno - node.lineno >= MAX_FUNCTION or len(parameters) > MAX_PARAMETERS:  # type: ignore[operator]
            too_much.append(place)
    assert too_much == []


VAGUE = {"found", "held", "told", "kept", "made", "given", "said", "got", "about", "asked"}


def test_locals_are_named_after_what_they_are() -> None:
    """Not after how they came: `scores` and `segment` can be searched for, `found` and `held` cannot."""
    names = [
        (place, getattr(node, "id", None) or getattr(node, "arg", ""))
        for _, place, node in nodes_of(ast.Name, ast.arg)
        if not (isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    ]
    assert [(place, name) for place, name in names if name in VAGUE] == []


def test_links_of_the_documentation_lead_to_files() -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
    links = [
        (page, link)
        for page in pages
        for text in [
            re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        ]
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    ]
    local = [(page, link) for page, link in links if "://" not in link]
    missing = [link for page, link in local if not (page.parent / link).exists()]
    # `make docs` writes the reference, and checks the links into it
    missing = [link for link in missing if not link.startswith("../reference/")]
    assert len(links) > 50
    assert missing == []


# -- public names, light imports -----------------------------------------------------------------------------


def test_public_names_are_frozen_and_resolve() -> None:
    assert patchout.__all__ == PUBLIC
    assert [name for name in PUBLIC if getattr(patchout, name, None) is None] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = patchout.nonsense


@pytest.mark.parametrize(
    "code",
    [
        "import patchout",
        "from patchout.cli.main import run_command; run_command(['--help'])",
        "from patchout.cli.main import run_command; run_command(['models'])",
    ],
)
def test_light_commands_do_without_torch(code: str, tmp_path: Path) -> None:
    heavy = "{'torch', 'scipy', 'sklearn', 'matplotlib', 'accelerate'}"
    printed = run_python(
        f"import sys; {code}; print(sorted({heavy} & set(sys.modules)))", env={"HF_HOME": str(tmp_path)}
    )
    assert printed.splitlines()[-1] == "[]"


SLOW = ("scipy.signal", "scipy.stats", "sklearn", "pandas")  # half a second to one, as long as torch itself


def test_a_spawned_worker_imports_no_training_code_and_nothing_slow() -> None:
    """It imports the main module anew, and the modules of what it is sent: decoding, packing, bulk jobs."""
    modules = (
        "patchout.cli.main, patchout.data.batches, patchout.data.prepare.job, patchout.inference.bulk.run"
    )
    loaded = f"sorted(name for name in sys.modules if name.startswith(('patchout.training', *{SLOW})))"
    assert run_python(f"import sys, {modules}; print({loaded})").strip() == "[]"


def test_what_is_slow_to_import_waits_until_it_is_used() -> None:
    modules = ("inference.tagging", "inference.embedding", "training.supervised.run", "training.masked.run")
    imports = "".join(f"import patchout.{module}\n" for module in modules)
    printed = run_python(f"import sys\n{imports}print(sorted({{*{SLOW}}} & set(sys.modules)))")
    assert printed.strip() == "[]"


def test_help_takes_less_time_than_the_import_of_the_option_parser() -> None:
    """Processor time on both sides: a slow machine is slow at both."""
    bare = "import rich.console, rich.panel, tyro; print('usage: patchout')"
    own = "from patchout.cli.main import run_command; run_command(['--help'])"

    def seconds(code: str) -> float:
        before = os.times()
        assert "usage: patchout" in run_python(code)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds(own) for _ in range(3)) < min(seconds(bare) for _ in range(3))


# -- the command's options -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A help page breaks long options in a narrow one."""
    monkeypatch.setenv("COLUMNS", "120")


def options_of(capsys: pytest.CaptureFixture[str], *command: str) -> set[str]:
    """The options on a help page."""
    with pytest.raises(SystemExit):
        cli.run_command([*command, "--help"])
    page = capsys.readouterr().out
    return set(re.findall(r"(?<![\w-])--([a-z][a-z0-9-]*)", page)) - {"help"}


def test_every_command_is_frozen() -> None:
    assert set(cli.COMMANDS) == {command.partition(" ")[0] for command in OPTIONS}


@pytest.mark.parametrize("command", sorted(OPTIONS.keys() - {"train", "pretrain"}))
def test_options_are_frozen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert options_of(capsys, *command.split()) == set(OPTIONS[command].split())
    assert len(OPTIONS[command].split()) <= MAX_OPTIONS


@pytest.mark.parametrize(
    ("command", "recipe", "config"), [("train", "esc10", TrainConfig), ("pretrain", "own", PretrainConfig)]
)
def test_training_adds_only_the_fields_of_its_config(
    command: str, recipe: str, config: type, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {field.name.replace("_", "-") for field in fields(config)} - {
        "recipe"
    }  # the recipe is named already
    shown = {option for option in options_of(capsys, command, recipe) if not option.startswith("no-")}
    assert shown == known | set(OPTIONS[command].split())


# -- what an install brings ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_wheel_holds_code_types_and_data(tmp_path: Path) -> None:
    """Built for real: an ignore rule or a moved folder would lose the class names or the built-in model."""
    pytest.importorskip("hatchling", reason="the build backend: installed by the dev extra")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 20e6
    inside = set(zipfile.ZipFile(wheel).namelist())
    suffixes = {".py", ".csv", ".safetensors", ".typed", ".js", ".css", ".html"}
    files = {path for path in PACKAGE.rglob("*") if path.suffix in suffixes}
    wanted = {path.relative_to(PACKAGE.parent).as_posix() for path in (*files, *PACKAGE.rglob("LICENSE"))}
    assert {"patchout/py.typed", "patchout/checkpoint/label_lists/audioset.csv"} <= wanted
    assert wanted - inside == set()
    assert [name for name in inside if not name.startswith("patchout")] == []


def test_constraints_pin_what_the_project_asks_for() -> None:
    pins = dict(re.findall(r"^([a-z0-9-]+)==([^ \n]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    asked = re.findall(
        r'"([a-z_-]+)>=', (ROOT / "pyproject.toml").read_text().partition("[project.scripts]")[0]
    )
    assert len(asked) > 15
    assert [name for name in asked if name.replace("_", "-") not in pins] == []
    assert pins["torch"] == "2.13.0"

"""Write the reference pages of the documentation from the code itself: help pages, docstrings, fields.

    python scripts/reference.py docs/reference

Three pages: every command's `--help`, the recipes with their fields, and the public names of the package.
"""

import argparse
import ast
import contextlib
import importlib
import inspect
import io
import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import FunctionType

COLUMNS = "100"  # of a help page
MODULES: dict[str, tuple[str, ...]] = {  # module -> its public names; (): its `__all__`
    "patchout": (),
    "patchout.audio": (),
    "patchout.checkpoint": (),
    "patchout.data": (),
    "patchout.training.supervised.run": ("Listener", "run"),
    "patchout.training.masked.run": ("run",),
    "patchout.hear": (),
    "patchout.suites.mteb": ("Encoder",),
    "patchout.suites.xares": ("PatchoutEncoder",),
    "patchout.judge": (),
    "patchout.export.write": ("export",),
    "patchout.export.verify": ("verify",),
}
SUBCOMMANDS = {"hear": ("list", "resample", "make-mini", "run", "report")}
HEAD = "<!-- written by scripts/reference.py from the code: change it there -->\n\n"


def help_of(*command: str) -> str:
    """The help page of a command, as plain text."""
    from patchout.cli.main import run_command

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        run_command([*command, "--help"])
    assert text.getvalue().startswith("usage:"), f"{command} has no help page"
    return "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())


def commands_page() -> str:
    """Every command with its help page."""
    from patchout.cli.main import COMMANDS

    os.environ["COLUMNS"] = COLUMNS
    parts = [f"{HEAD}# Commands\n\n```text\n{help_of()}\n```"]
    for name, summary in COMMANDS.items():
        parts.append(f"## {name}\n\n{summary[0].upper()}{summary[1:]}.")
        pages = [(name,), *((name, sub) for sub in SUBCOMMANDS.get(name, ()))]
        parts += [f"```text\n{help_of(*page)}\n```" for page in pages]
    return "\n\n".join(parts) + "\n"


def recipes_page() -> str:
    """What each recipe says of itself, what its variants change, and all fields of both configs."""
    from patchout.training import recipes
    from patchout.training.masked.config import PretrainConfig
    from patchout.training.supervised.config import TrainConfig

    parts = [f"{HEAD}# Recipes\n\nA recipe fills a config; every field is a flag of its command."]
    by_text: dict[str, list[str]] = {}
    for name in recipes.names():
        by_text.setdefault(recipes.recipe(name).description, []).append(name)
    for text, names in by_text.items():
        parts += [f"## patchout train {names[0]}", prose(text)]
        rows = [f"| `{name}` | {changes(recipes.recipe(name).config)} |" for name in names]
        parts.append("\n".join(["| recipe | what it sets |", "| --- | --- |", *rows]))
    parts += ["## patchout pretrain", f"```text\n{help_of('pretrain')}\n```"]
    for config in (TrainConfig, PretrainConfig):
        parts += [f"## {config.__name__}", prose(inspect.getdoc(config) or ""), fields_table(config)]
    return "\n\n".join(parts) + "\n"


def changes(config: object) -> str:
    """The fields whose values are not those of the class."""
    named = ((field, getattr(config, field.name)) for field in fields(config))  # type: ignore[arg-type]
    changed = [
        f"`{field.name}={value!r}`"
        for field, value in named
        if field.name != "recipe" and value != field.default
    ]
    return ", ".join(changed) or "the defaults"


def python_page() -> str:
    """The public names of every module, with signature, docstring and fields."""
    parts = [f"{HEAD}# Python"]
    for name, names in MODULES.items():
        module = importlib.import_module(name)
        parts += [f"## {name}", prose(inspect.getdoc(module) or "")]
        public = names or [name for name in module.__all__ if not name.startswith("__")]
        for public_name in public:
            parts += described(public_name, getattr(module, public_name))
    return "\n\n".join(part for part in parts if part) + "\n"


def described(name: str, value: object) -> Iterator[str]:
    """Heading, signature, docstring, fields and methods of a public name."""
    yield f"### {name}"
    if isinstance(value, type):
        yield prose(inspect.getdoc(value) or "")
        yield fields_table(value)
        for method_name, method in vars(value).items():
            if method_name.startswith("_") or getattr(method, "__name__", "") != method_name:
                continue  # a default that is a function stands in the table
            if isinstance(method, FunctionType):
                yield signature(method, prefix=f"{name}.")
                yield prose(inspect.getdoc(method) or "")
    elif isinstance(value, FunctionType):
        yield signature(value)
        yield prose(inspect.getdoc(value) or "")
    elif isinstance(value, Mapping):
        yield f"A mapping with the keys {', '.join(f'`{key}`' for key in value)}."
    else:
        yield f"`{value!r}`"


def signature(function: FunctionType, *, prefix: str = "") -> str:
    """A code block with the arguments as the source has them, one a line where they are many."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    arguments = ast.unparse(node.args)
    line = f"{prefix}{function.__name__}({arguments}){returns}"
    if len(line) > 90:
        splits = re.split(r", (?=[\w*]+(?::|,|$)|\*)", arguments)
        line = f"{prefix}{function.__name__}(\n    " + ",\n    ".join(splits) + f",\n){returns}"
    return f"```python\n{line}\n```"


def fields_table(kind: type) -> str:
    """A row for every annotated field of a class and its bases: name, type, default, and its docstring."""
    rows: dict[str, str] = {}
    texts: dict[str, str] = {}
    for base in reversed([base for base in kind.__mro__ if base.__module__.startswith("patchout")]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for node, following in zip(tree.body, [*tree.body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or "ClassVar" in ast.unparse(node.annotation):
                continue
            name = ast.unparse(node.target)
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                texts[name] = " ".join(str(following.value.value).split())
            annotation = re.sub(r"tyro\.conf\.Suppress\[(.*)\]", r"\1", ast.unparse(node.annotation))
            default = f"`{ast.unparse(node.value)}`" if node.value else ""
            cells = (f"`{name}`", f"`{annotation}`", default, prose(texts.get(name, "")))
            rows[name] = f"| {' | '.join(cells)} |"
    head = ["| field | type | default | |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows.values()]) if rows else ""


def prose(text: str) -> str:
    """A docstring as Markdown: signs that Markdown would take for its own are escaped outside of code."""
    parts = re.split(r"(`[^`]*`|^ {4}.*$)", text, flags=re.MULTILINE)
    return "".join(
        part if index % 2 else re.sub(r"([*<\[|])", r"\\\1", part) for index, part in enumerate(parts)
    )


def main() -> None:
    """Write the pages into the folder given on the command line."""
    parser = argparse.ArgumentParser(description="Write the reference pages from the code.")
    parser.add_argument("out", type=Path, help="folder of the pages; made if missing")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, page in (("commands", commands_page), ("recipes", recipes_page), ("python", python_page)):
        (out / f"{name}.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()

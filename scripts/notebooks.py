"""Run the notebooks of `examples/notebooks` without Jupyter: keep or check their outputs, or write pages.

    python scripts/notebooks.py --keep               # run all, store their outputs in them
    python scripts/notebooks.py --check NOTEBOOK ... # run these; a cell gives outputs of the kinds it holds
    python scripts/notebooks.py --pages docs/notebooks

A cell is Python, in which a line that begins with `!` is a command; its last expression is shown, and so is
every open figure. A notebook runs in the folder where it lies. Values depend on the machine in their last
digits, so only the kinds of outputs are checked.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "examples" / "notebooks"
Output = dict[str, Any]  # of nbformat 4
PAGE_HEAD = "<!-- written by scripts/notebooks.py from examples/notebooks/{name}: change it there -->\n\n"


def shell(command: str) -> None:
    """Run a command with the programs of this Python's environment first, and print what it says."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        env=os.environ | {"PATH": path, "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout, end="")
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stdout[-500:]}")


def execute(source: str, names: dict[str, Any], number: int) -> list[Output]:
    """Run one cell; returns what it printed, drew and evaluated to."""
    tree = ast.parse(re.sub(r"^!(.*)$", r"shell(r'''\1''')", source, flags=re.MULTILINE))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
    data: dict[str, Any] = {"text/plain": [repr(value)]}
    outputs: list[Output] = []
    if text := printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)})
    for picture in open_figures():
        outputs.append({"data": {"image/png": picture}, "metadata": {}, "output_type": "display_data"})
    if value is not None:
        if hasattr(value, "_repr_png_"):  # a picture of PIL
            data = {"image/png": base64.b64encode(value._repr_png_()).decode(), "text/plain": ["<picture>"]}
        head = {"execution_count": number, "metadata": {}, "output_type": "execute_result"}
        outputs.append({"data": data} | head)
    return outputs


def open_figures() -> list[str]:
    """Every open figure of pyplot as PNG in base64; they are closed."""
    if "matplotlib.pyplot" not in sys.modules:
        return []
    from matplotlib import pyplot

    pictures = []
    for number in pyplot.get_fignums():
        file = io.BytesIO()
        pyplot.figure(number).savefig(file, dpi=80, bbox_inches="tight")
        pictures.append(base64.b64encode(file.getvalue()).decode())
    pyplot.close("all")
    return pictures


def run(path: Path) -> list[list[Output]]:
    """Run a notebook in its folder; returns the outputs of each code cell."""
    os.chdir(path.parent)
    names: dict[str, Any] = {"__name__": "__main__", "shell": shell}
    sources = ["".join(cell["source"]) for cell in code_cells(json.loads(path.read_text(encoding="utf-8")))]
    return [execute(source, names, number) for number, source in enumerate(sources, start=1)]


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells that are run."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds(outputs: list[Output]) -> list[str]:
    """What can be compared between machines: that something was printed, drawn, evaluated."""
    return [f"{output['output_type']} {' '.join(sorted(output.get('data', ())))}" for output in outputs]


def keep(path: Path) -> None:
    """Run a notebook and store its outputs in it."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for number, (cell, outputs) in enumerate(zip(code_cells(notebook), run(path), strict=True), start=1):
        cell |= {"outputs": outputs, "execution_count": number}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check(path: Path) -> None:
    """Run a notebook; a cell whose outputs are not of the kinds that it holds is an AssertionError."""
    cells = code_cells(json.loads(path.read_text(encoding="utf-8")))
    for cell, outputs in zip(cells, run(path), strict=True):
        source = "".join(cell["source"])
        assert kinds(outputs) == kinds(cell["outputs"]), f"{path.name}: other outputs than kept of\n{source}"


def write_page(path: Path, folder: Path) -> None:
    """A notebook as a Markdown page, its pictures beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", ())})
            if "image/png" in data:
                picture = folder / f"{path.stem}-{number}.png"
                picture.write_bytes(base64.b64decode(data["image/png"]))
                parts.append(f"![what the cell above draws]({picture.name})")
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    text = PAGE_HEAD.format(name=path.name) + "\n\n".join(parts) + "\n"
    (folder / f"{path.stem}.md").write_text(text, encoding="utf-8")


def main() -> None:
    """Run, check or convert the notebooks named on the command line."""
    parser = argparse.ArgumentParser(description="Run the notebooks without Jupyter.")
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(FOLDER.glob("*.ipynb")))
    doing = parser.add_mutually_exclusive_group(required=True)
    doing.add_argument("--keep", action="store_true", help="run them and store their outputs")
    doing.add_argument("--check", action="store_true", help="run them and compare the kinds of their outputs")
    doing.add_argument("--pages", type=Path, metavar="FOLDER", help="write them as Markdown pages, not run")
    options = parser.parse_args()
    for path in [path.resolve() for path in options.notebooks]:
        if options.pages:
            write_page(path, options.pages)
        else:
            (keep if options.keep else check)(path)


if __name__ == "__main__":
    main()

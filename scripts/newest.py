"""Run the fast tests against a wheel installed with the newest versions of everything that it allows.

    python scripts/newest.py                 # what `make fast` runs, without constraints.txt
    python scripts/newest.py --python python3.13 --keep build/newest

So that we see first what a new release of a dependency breaks. Torch comes from where pip's settings say; a
constraint for it alone (`--torch 'torch==2.13.0+cpu'`) saves gigabytes of CUDA. Prints which versions differ
from those of constraints.txt.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from release import ROOT, build, new_environment, run


def differences(frozen: str, pins: str) -> list[str]:
    """Lines `name: pinned -> installed` of the packages whose version is another than the pinned ones."""

    def versions(text: str) -> dict[str, set[str]]:
        table: dict[str, set[str]] = {}
        for name, version in re.findall(r"^([\w.-]+)==([^ ;+\n]+)", text, re.MULTILINE):
            table.setdefault(name.lower().replace("_", "-"), set()).add(version)
        return table

    pinned, installed = versions(pins), versions(frozen)
    return [
        f"{name}: {' or '.join(sorted(pinned[name]))} -> {' '.join(installed[name])}"
        for name in sorted(pinned.keys() & installed.keys())
        if not installed[name] <= pinned[name]
    ]


def main() -> None:
    """Install and test; exits with the code of pytest."""
    parser = argparse.ArgumentParser(description="Test a wheel with the newest versions of all dependencies.")
    parser.add_argument("--python", default=sys.executable, help="a supported Python; default: this one")
    parser.add_argument("--torch", default="", help="requirement of torch to keep to, e.g. a build for CPUs")
    parser.add_argument("--keep", type=Path, help="folder for the environment; default: a temporary one")
    parser.add_argument(
        "pytest", nargs="*", help="other arguments of pytest than those of `make fast`, after --"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (wheel,) = build(ROOT, Path(folder) / "dist", "wheel")
        python = new_environment(options.keep or Path(folder) / "venv", options.python)
        pins = Path(folder) / "torch.txt"
        pins.write_text(options.torch)
        command = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--upgrade",
            "--upgrade-strategy",
            "eager",
            "-c",
            str(pins),
        ]
        run(python, *command, f"{wheel}[dev]")
        changed = differences(
            run(python, "-m", "pip", "freeze"), (ROOT / "constraints.txt").read_text(encoding="utf-8")
        )
        print("\n".join(["other versions than in constraints.txt:", *(changed or ["none"])]), flush=True)
        tests = options.pytest or ["-n", "auto", "-m", "not slow"]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        sys.exit(subprocess.run([python, "-m", "pytest", *tests], cwd=ROOT, env=environment).returncode)


if __name__ == "__main__":
    main()

"""Make a release: version, changelog and citation; wheel and source archive, checked in clean environments.

    python scripts/release.py 0.2.0            # dry run: all of it on a copy, and what would be done
    python scripts/release.py 0.2.0 --apply    # the same, then the commit and the tag vX.Y.Z

Nothing is pushed or uploaded: the commands for that are printed at the end. A Python that is not on the PATH
is named by `--python`; pip's own settings (its index, its constraints) say where packages come from.
"""

import argparse
import datetime
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
MAX_WHEEL_MB = 20
VERSION_FILE, CHANGELOG, CITATION = "src/patchout/__init__.py", "CHANGELOG.md", "CITATION.cff"
CHECK = """
import sys, patchout
model = patchout.load("sounds-tiny", device="cpu")
tags = patchout.tag(model, sys.argv[1], top=1)
assert patchout.__version__ == sys.argv[2], patchout.__version__
assert tags.labels == ("rain",), tags
print("tagged", tags.labels, tags.scores)
"""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a program; returns what it prints. A failure ends the release with the program's own words."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def numbers(version: str) -> tuple[int, ...]:
    """A version as numbers; one that is not X.Y.Z is a ValueError."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"a version is three numbers such as 0.2.0, got {version!r}")
    return tuple(map(int, version.split(".")))


def released(root: Path, version: str, date: str) -> dict[str, str]:
    """The three files with the new version: name -> text. What does not allow a release is a ValueError."""
    texts = {name: (root / name).read_text(encoding="utf-8") for name in (VERSION_FILE, CHANGELOG, CITATION)}
    before = re.search(r'^__version__ = "(.+)"$', texts[VERSION_FILE], re.MULTILINE)
    assert before is not None
    is_first = f"## [{before[1]}]" not in texts[CHANGELOG]
    if numbers(version) < numbers(before[1]) or (numbers(version) == numbers(before[1]) and not is_first):
        raise ValueError(f"the version is {before[1]} already: give a higher one than that, not {version}")
    head, mark, rest = texts[CHANGELOG].partition("## [Unreleased]\n")
    if not mark or not rest.partition("\n## [")[0].strip():
        raise ValueError("CHANGELOG.md has nothing under Unreleased: write there what has changed")
    citation = re.sub(r"^(version|date-released): .*\n", "", texts[CITATION], flags=re.MULTILINE)
    return {
        VERSION_FILE: texts[VERSION_FILE].replace(before[0], f'__version__ = "{version}"'),
        CHANGELOG: f"{head}{mark}\n## [{version}] - {date}\n{rest}",
        CITATION: f"{citation.rstrip()}\nversion: {version}\ndate-released: {date}\n",
    }


def build(source: Path, out: Path, *targets: str) -> list[Path]:
    """Build these targets (wheel, sdist) of a source tree."""
    for target in targets:
        run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", out, cwd=source)
    return sorted(out.iterdir())


def check_wheel(wheel: Path) -> str:
    """Refuse a wheel that is too large or lacks its types; returns its size."""
    size_mb = wheel.stat().st_size / 1e6
    if size_mb > MAX_WHEEL_MB:
        raise ValueError(f"{wheel.name} has {size_mb:.1f} MB, more than {MAX_WHEEL_MB}: see what it holds")
    if "patchout/py.typed" not in zipfile.ZipFile(wheel).namelist():
        raise ValueError(f"{wheel.name} has no patchout/py.typed: type checkers would not read its types")
    return f"{wheel.name}: {size_mb:.2f} MB"


def pythons() -> list[str]:
    """The supported Pythons on the PATH that start."""
    names = [shutil.which(f"python{version}") for version in VERSIONS]
    return [
        name for name in names if name and not subprocess.run([name, "-V"], capture_output=True).returncode
    ]


def new_environment(folder: Path, python: str) -> Path:
    """A virtual environment of a Python; returns its interpreter."""
    run(python, "-m", "venv", folder)
    return folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def check_install(wheel: Path, python: str, version: str, pins: Path | None) -> str:
    """Install a wheel into a clean environment, tag a sound and check types there; returns a line on it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        own = new_environment(place / "venv", python)
        pinned: list[str | Path] = ["-c", pins] if pins else []
        run(own, "-m", "pip", "install", "--quiet", *pinned, wheel, "mypy", cwd=place)
        run(own, "-m", "pip", "check", cwd=place)
        run(own, ROOT / "examples" / "demo_sounds.py", place / "demo", cwd=place)
        tagged = run(own, "-c", CHECK, place / "demo" / "synthetic-rain.wav", version, cwd=place)
        run(own, "-m", "patchout", "models", cwd=place)
        run(own, "-m", "mypy", "--strict", ROOT / "tests" / "downstream.py", cwd=place)
        return f"{run(own, '-V').strip()}: {tagged.strip()}; types accepted"


def copy_of_head(folder: Path) -> Path:
    """The files of HEAD, as they are committed."""
    archive, tree = folder / "head.zip", folder / "tree"
    run("git", "archive", "--format=zip", "-o", archive, "HEAD")
    zipfile.ZipFile(archive).extractall(tree)
    return tree


def main(args: Sequence[str] | None = None) -> None:
    """Make or try a release."""
    parser = argparse.ArgumentParser(description="Make a release; a dry run unless --apply is given.")
    parser.add_argument("version", help="X.Y.Z")
    parser.add_argument(
        "--apply", action="store_true", help="write the files, commit and tag (nothing is pushed)"
    )
    parser.add_argument(
        "--python", nargs="*", default=None, help="Pythons to check with; default: all on the PATH"
    )
    parser.add_argument("--newest", action="store_true", help="check without the versions of constraints.txt")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of wheel and source archive")
    options = parser.parse_args(args)
    tag, today = f"v{options.version}", datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    try:
        texts = released(ROOT, options.version, today)
        if run("git", "status", "--porcelain"):
            raise ValueError(
                "the working tree has changes: commit them first, a release is what is committed"
            )
        if run("git", "tag", "--list", tag):
            raise ValueError(f"the tag {tag} exists")
        with tempfile.TemporaryDirectory() as folder:
            tree = copy_of_head(Path(folder))
            for name, text in texts.items():
                (tree / name).write_text(text, encoding="utf-8")
            files = build(tree, Path(folder) / "dist", "wheel", "sdist")
            (wheel,) = (path for path in files if path.suffix == ".whl")
            print(check_wheel(wheel))
            for python in pythons() if options.python is None else options.python:
                pins = None if options.newest else ROOT / "constraints.txt"
                print(check_install(wheel, python, options.version, pins), flush=True)
            options.out.mkdir(parents=True, exist_ok=True)
            for path in files:
                print(shutil.copy(path, options.out))
    except ValueError as error:
        sys.exit(f"release: {error}")
    if not options.apply:
        print(f"dry run: --apply would write {', '.join(texts)}, commit, and tag {tag}")
        return
    for name, text in texts.items():
        (ROOT / name).write_text(text, encoding="utf-8")
    run("git", "commit", "-q", "-m", f"Release {options.version}", *texts)
    run("git", "tag", "-a", tag, "-m", f"patchout {options.version}")
    print(f"committed and tagged {tag}; yours to do: git push origin HEAD {tag}, and upload {options.out}")


if __name__ == "__main__":
    main()

"""The command: parse, call, print. Results go to standard output, everything else to standard error."""

import difflib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

import patchout
from patchout import output
from patchout.errors import InputError

if TYPE_CHECKING:
    from patchout.inference import Scored
    from patchout.passt import Passt

BUILT_IN = "esc10-tiny"
DONE, FAILED, WRONG_USAGE, STOPPED = 0, 1, 2, 130


class UsageError(ValueError):
    """A command that cannot mean anything."""


# -- tag --------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class TagOptions:
    """Say what can be heard in sound files of any length and format."""

    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """sound files, folders (searched through), or patterns such as 'clips/*.wav'"""
    model: str = ""
    """a name from `patchout models`, a .safetensors or public .pt file, a run folder, or a hub id owner/name"""
    top: int = 5
    """labels a file"""
    events: tyro.conf.FlagCreatePairsOff[bool] = False
    """also say from when to when each label is on"""
    threshold: float = 0.5
    """score from which an event is on; it ends below 0.6 of it"""
    format: output.Format = "table"
    """audacity: labels of one file for import as a label track"""
    plot: Path | None = None
    """picture to write (.png, .pdf, .svg), or a folder for one picture a file"""
    labels: Path | None = None
    """class names for models that bring none, e.g. the vocabulary.csv of FSD50K"""
    device: str = "auto"
    """cuda, mps or cpu"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 where the hardware computes it natively"""
    batch_size: int = 16
    """windows a forward pass"""


def tag(options: TagOptions) -> int:
    """Run `patchout tag`."""
    if options.top < 1:
        raise UsageError(f"--top counts labels and must be at least 1, got {options.top}")
    if options.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {options.batch_size}")
    from patchout.events import EventRule

    rule = EventRule(on=options.threshold, off=0.6 * options.threshold)
    found = list(find_sounds(options.files))
    sounds = [path for path, error in found if error is None]
    if options.format == "audacity" and len(sounds) > 1:
        raise UsageError(f"an Audacity label track belongs to one file, {len(sounds)} were given: use --format csv")
    pictures = _picture_paths(options.plot, sounds)
    if not options.model:
        _say(f"using the built-in model {BUILT_IN} (10 classes); for the 527 of AudioSet: --model passt-s")
    model = _load(options.model or BUILT_IN, options.device, options.labels)
    wanted = rule if options.events or options.plot else None
    failed = 0
    with output.writer(options.format, sys.stdout) as write:
        for scored in _scored(model, found, wanted, options):
            result = _to_tags(scored, model, options, rule if options.events else None)
            write(result)
            for text in filter(None, (result.error, result.warning)):
                _say(text)
            failed += result.error is not None
            if result.error is None and scored.name in pictures:
                _draw(pictures[scored.name], scored, model, rule)
    return FAILED if failed else DONE


def _scored(model: "Passt", found: list[tuple[str, str | None]], rule: Any, options: TagOptions) -> "Iterator[Scored]":
    """What the model says of every file, in the order given, behind a progress bar."""
    from patchout.audio import Stream
    from patchout.inference import Scored, score

    streams = (Stream(path, model.config.mel.sample_rate) for path, error in found if error is None)
    scored = score(model, streams, events=rule, precision=options.precision, batch_size=options.batch_size)
    with _progress("files", len(found)) as advance:
        for path, error in found:
            one = Scored(path, error=error) if error is not None else next(scored)
            advance(1)
            yield one


def _to_tags(scored: "Scored", model: "Passt", options: TagOptions, rule: Any) -> Any:
    from patchout.inference import to_tags

    return to_tags(scored, model.config, top=options.top, events=rule)


def find_sounds(patterns: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Files named, below folders, or matching patterns; what leads to none comes with the reason."""
    import glob

    from patchout.data import is_sound

    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            inside = sorted(str(file) for file in path.rglob("*") if file.is_file() and is_sound(file))
            yield from ((file, None) for file in inside)
            if not inside:
                yield pattern, f"{pattern}: a folder without sound files"
        elif not path.exists() and glob.has_magic(pattern):
            matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
            yield from ((match, None) for match in matches)
            if not matches:
                yield pattern, f"{pattern}: no file matches"
        else:
            yield pattern, None


def _picture_paths(plot: Path | None, sounds: list[str]) -> dict[str, Path]:
    """Where each file's picture goes."""
    if plot is None:
        return {}
    from patchout.plots import FORMATS, picture_format

    if plot.suffix:
        picture_format(plot)
        if len(sounds) > 1:
            raise UsageError(f"one picture for {len(sounds)} files: give --plot a folder")
        _check_folder(plot.parent)
        return dict.fromkeys(sounds, plot)
    plot.mkdir(parents=True, exist_ok=True)
    stems = [Path(sound).stem for sound in sounds]
    names = [
        stem if stems.count(stem) == 1 else f"{stem}-{stems[: place + 1].count(stem)}"
        for place, stem in enumerate(stems)
    ]
    return {sound: plot / f"{name}.{FORMATS[0]}" for sound, name in zip(sounds, names, strict=True)}


def _draw(path: Path, scored: "Scored", model: "Passt", rule: Any) -> None:
    from patchout import plots
    from patchout.events import find_events
    from patchout.inference import overview

    log_mel, frame_s = overview(scored.name, model.config, duration_s=scored.duration_s, limit=plots.MAX_COLUMNS)
    track = plots.TagTrack(
        log_mel=log_mel,
        band_hz=model.config.mel.band_hz,
        frame_s=frame_s,
        times_s=scored.times_s,
        scores=scored.track,
        labels=model.config.labels,
        events=find_events(scored.track, scored.times_s, model.config.labels, rule=rule, duration_s=scored.duration_s),
    )
    plots.tags_over_time(path, track, title=Path(scored.name).name)
    _say(f"picture: {path}")


# -- models, evaluate, train ------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class ModelsOptions:
    """List the published models, their scores and licences, and which are on this machine."""

    format: Literal["table", "json"] = "table"


def models(options: ModelsOptions) -> int:
    """Run `patchout models`."""
    from patchout import zoo

    output.print_models(zoo.rows(), options.format, sys.stdout)
    _say(f"downloads are kept in {zoo.cache_folder()}")
    return DONE


@dataclass(kw_only=True)
class EvaluateOptions:
    """Score a model on labelled clips."""

    model: Annotated[str, tyro.conf.Positional]
    """a name from `patchout models`, a .safetensors file or a run folder"""
    data: Path
    """folder of class folders, or with one CSV on top"""
    split: str = ""
    """only the clips of this split or fold"""
    format: Literal["table", "json"] = "table"
    device: str = "auto"
    """cuda, mps or cpu"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 where the hardware computes it natively"""
    batch_size: int = 16
    """windows a forward pass"""


def evaluate(options: EvaluateOptions) -> int:
    """Run `patchout evaluate`."""
    if options.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {options.batch_size}")
    from patchout.data import scan
    from patchout.evaluate import evaluate as run

    clips = scan(options.data)
    clips = clips.only(options.split) if options.split else clips
    model = _load(options.model, options.device, None)
    with _progress("clips", len(clips.clips)) as advance:
        result = run(
            model, clips, precision=options.precision, batch_size=options.batch_size, on_clip=lambda: advance(1)
        )
    failed = (*clips.problems, *result.failed)
    for problem in failed:
        _say(problem)
    about = {"model": options.model, "data": str(options.data), "split": options.split or None}
    output.print_evaluation(about, result, options.format, sys.stdout)
    return FAILED if failed else DONE


def train(args: Sequence[str]) -> int:
    """Run `patchout train RECIPE`: every field of its config is a flag."""
    names = [module.name for module in pkgutil.iter_modules(importlib.import_module("patchout.recipes").__path__)]
    usage = f"usage: patchout train RECIPE --data DATA --out RUN [options]; recipes: {', '.join(names)}"
    if not args or args[0] in ("-h", "--help"):
        output.line(f"{usage}\n`patchout train RECIPE --help` shows its options.", sys.stdout if args else sys.stderr)
        return DONE if args else WRONG_USAGE
    if args[0] not in names:
        raise UsageError(f"unknown recipe {args[0]!r}{_near(args[0], names)}: recipes are {', '.join(names)}")
    from patchout.train import TrainConfig, run

    recipe = importlib.import_module(f"patchout.recipes.{args[0]}")

    @dataclass(kw_only=True)
    class TrainOptions:
        data: Path
        """folder of class folders, or with one CSV on top"""
        out: Path
        """run folder; the same command continues the run in it"""
        config: tyro.conf.OmitArgPrefixes[TrainConfig] = field(default_factory=recipe.config)

    about = (recipe.__doc__ or "").strip()
    options = tyro.cli(TrainOptions, args=args[1:], prog=f"patchout train {args[0]}", description=about)
    with _progress("steps", None) as advance:
        scores = run(options.config, options.data, options.out, on_progress=advance.training, on_problem=_say)
    output.line(f"{options.out / 'model.safetensors'}  {output.scores_text(scores)}", sys.stdout)
    return DONE


# -- shared -----------------------------------------------------------------------------------------------------------


def _load(name: str, device: str, labels: Path | None) -> "Passt":
    from patchout.labels import read_labels
    from patchout.zoo import load

    names = read_labels(labels) if labels else None
    with output.download_bar(sys.stderr) as progress:
        return load(name, device, labels=names, progress=progress)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder to write into: make it first")


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Any]:
    with output.Bar(what, total, sys.stderr) as bar:
        yield bar


def _say(text: str) -> None:
    """One line on standard error."""
    output.line(f"patchout: {text}", sys.stderr)


def _near(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _parsed(options: type[Any], call: Callable[[Any], int], name: str) -> Callable[[Sequence[str]], int]:
    return lambda args: call(tyro.cli(options, args=args, prog=f"patchout {name}"))


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "tag": ("say what can be heard in sound files", _parsed(TagOptions, tag, "tag")),
    "train": ("train a model on labelled sounds", train),
    "evaluate": ("score a model on labelled sounds", _parsed(EvaluateOptions, evaluate, "evaluate")),
    "models": ("list the published models", _parsed(ModelsOptions, models, "models")),
}


def main(args: Sequence[str] | None = None) -> None:
    """The console script: exits 0 when all is done, 1 when something failed, 2 on wrong usage."""
    sys.exit(run_command(list(sys.argv[1:] if args is None else args)))


def run_command(args: Sequence[str]) -> int:
    """Run one command line; a user's mistake is one line on standard error, never a traceback."""
    overview = "\n".join(f"  {name:<10}{text}" for name, (text, _) in COMMANDS.items())
    about = (patchout.__doc__ or "").partition("\n")[0]
    page = f"usage: patchout COMMAND ...\n\n{about}\n\n{overview}\n\n`patchout COMMAND --help` shows its options."
    if not args:
        output.line(page, sys.stderr)
        return WRONG_USAGE
    if args[0] in ("-h", "--help"):
        output.line(page, sys.stdout)
        return DONE
    if args[0] == "--version":
        output.line(f"patchout {patchout.__version__}", sys.stdout)
        return DONE
    if args[0] not in COMMANDS:
        _say(f"unknown command {args[0]!r}{_near(args[0], list(COMMANDS))}: commands are {', '.join(COMMANDS)}")
        return WRONG_USAGE
    return _guarded(COMMANDS[args[0]][1], args[1:])


def _guarded(command: Callable[[Sequence[str]], int], args: Sequence[str]) -> int:
    """Call a command; its expected failures become a line and an exit code."""
    try:
        return command(args)
    except KeyboardInterrupt:
        _say("stopped")
        return STOPPED
    except BrokenPipeError:  # the reader of our output has left
        sys.stdout = None  # nothing is left to flush at exit
        return FAILED
    except OSError as error:
        _say(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        return FAILED
    except ValueError as error:
        _say(str(error))
        return FAILED if isinstance(error, InputError) else WRONG_USAGE

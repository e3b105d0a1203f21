"""`patchout tag`: labels and sound events of audio files."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from patchout.checkpoint.zoo_list import BUILT_IN
from patchout.cli import output, tag_bulk
from patchout.cli.bulk import Place
from patchout.cli.command import DONE, FAILED, check_batch_size, check_parent, device_for, load_model, say
from patchout.errors import InputError
from patchout.files import distinct, shortened

if TYPE_CHECKING:
    from patchout.data.items import Item
    from patchout.inference.window_scores import Scored
    from patchout.models.tagger import Tagger

    Source = tuple[Item, str | None]  # a sound, and why it cannot be read


@dataclass(kw_only=True)
class Options:
    """Say what can be heard in sound files of any length and format."""

    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """sound files, folders (searched through), patterns such as 'clips/*.wav', or lists of files and
    segments"""
    model: str = ""
    """a name from `patchout models`, a .safetensors or public .pt file, a run folder, or a hub id
    owner/name"""
    top: int = 5
    """labels a file"""
    events: tyro.conf.FlagCreatePairsOff[bool] = False
    """also say from when to when each label is on"""
    threshold: float | None = None
    """score from which a label passes and an event is on (it ends below 0.6 of it); None: for each class the
    one that `patchout train` chose, else 0.5 for events alone"""
    format: output.Format = "table"
    """audacity: labels of one file for import as a label track; with --out a label track or a selection table
    of Raven for each file, or scores: those over time beside the others"""
    out: str = ""
    """NAME.parquet, NAME.csv, or a folder (or URL) of Parquet shards: a job of any size, which the same
    command goes on with where it was killed"""
    engine: Place = "local"
    """ray: on all machines of a Ray cluster, with --out"""
    plot: Path | None = None
    """picture to write (.png, .pdf, .svg), or a folder for one picture a file"""
    labels: Path | None = None
    """class names for models that bring none, e.g. the vocabulary.csv of FSD50K"""
    device: str = "auto"
    """cuda, mps or cpu"""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """auto: the faster of fp32 and bf16 on this machine; int8: linear layers, on a CPU"""
    batch_size: int = 16
    """windows a forward pass"""


def main(args: Sequence[str]) -> int:
    """Run `patchout tag`."""
    options = tyro.cli(Options, args=args, prog="patchout tag")
    if not options.files:
        raise ValueError("no files given: name sound files, folders or patterns, e.g. `patchout tag dog.ogg`")
    if options.top < 1:
        raise ValueError(f"--top counts labels and must be at least 1, got {options.top}")
    check_batch_size(options.batch_size)
    if not options.model:
        say(f"using the built-in model {BUILT_IN} (33 classes); for the 527 of AudioSet: --model passt-s")
    if options.out:
        return tag_bulk.main(options)
    if options.format in ("raven", "scores") or options.engine == "ray":
        raise ValueError(
            "--format raven, --format scores and --engine ray belong to a job: give --out FOLDER"
        )
    from patchout.audio.remarks import low_rate
    from patchout.data.items import Item
    from patchout.inference.events import EventRule
    from patchout.inference.tagging import in_file, to_tags

    rule = EventRule(on=options.threshold)
    sources = [source for name in options.files for source in _sounds_of(name)]
    sounds = [item.file for item, error in sources if error is None]
    if options.format == "audacity" and (num := len(sounds)) > 1:
        raise ValueError(f"an Audacity label track belongs to one file, {num} were given: use --format csv")
    if options.plot and any(item != Item(item.file) for item, _ in sources):
        raise ValueError("--plot draws whole files, and a list names segments: leave one of them out")
    pictures = _picture_paths(options.plot, sounds)
    device = device_for(options.device, options.precision)
    model = load_model(options.model or BUILT_IN, device, options.labels)
    track = rule if options.events or options.plot else None
    narrow: list[str] = []  # sounds whose file holds less than half of what the model hears
    failed = 0
    with output.writer(options.format, sys.stdout, events=options.events) as write:
        for (item, _), scored in zip(sources, _scored(model, sources, track, options), strict=True):
            result = to_tags(scored, model.config, top=options.top, rule=rule, events=options.events)
            if result.error is None and item != Item(item.file):
                result = in_file(result, item.start_s)
            write(result)
            if 0 < scored.source_rate < model.config.mel.sample_rate / 2:
                narrow.append(f"{result.file} ({scored.source_rate} Hz)")
            for text in filter(None, (result.error, result.warning)):
                say(text)
            failed += result.error is not None
            if result.error is None and scored.name in pictures:
                failed += not _is_drawn(pictures[scored.name], scored, model, rule)
    if narrow:
        say(low_rate(narrow, len(narrow), model.config.mel.sample_rate))
    return FAILED if failed else DONE


def _scored(model: "Tagger", sources: "list[Source]", rule: Any, options: Options) -> "Iterator[Scored]":
    """Score all files in the order given, behind a progress bar."""
    from patchout.audio.read_ahead import read_ahead
    from patchout.inference.bulk.ahead import open_stream
    from patchout.inference.window_scores import Scored, score

    rate, channel = model.config.mel.sample_rate, model.config.channel
    sounds = (open_stream(item, rate, channel=channel) for item, error in sources if error is None)
    streams = read_ahead(sounds)
    scores = score(model, streams, events=rule, precision=options.precision, batch_size=options.batch_size)
    with output.Bar("files", len(sources), sys.stderr) as bar:
        for item, error in sources:
            scored = Scored(item.file, error=error) if error is not None else next(scores)
            bar(1)
            with bar.hidden():
                yield scored


def _sounds_of(source: str) -> "Iterator[Source]":
    """Sounds of a file, folder, pattern or list, each with the reason if it cannot be read."""
    from patchout.data.items import Item, read_items

    problems: list[str] = []
    try:
        items = read_items([source], problems.append, say)
    except (InputError, OSError) as error:
        items, problems = [], [*problems, str(error)]
    for item in items:
        yield item, f"{item.file or source}: {item.reason}" if item.reason else None
    yield from ((Item(source), problem) for problem in problems)


def _picture_paths(plot: Path | None, sounds: list[str]) -> dict[str, Path]:
    """Path of each file's picture."""
    if plot is None:
        return {}
    from patchout.figures import FORMATS, picture_format

    if plot.suffix and not plot.is_dir():
        picture_format(plot)
        if len(sounds) > 1:
            raise ValueError(f"one picture for {len(sounds)} files: give --plot a folder")
        check_parent(plot)
        return dict.fromkeys(sounds, plot)
    plot.mkdir(parents=True, exist_ok=True)
    names = distinct([shortened(Path(sound).stem) for sound in sounds])
    return {sound: plot / f"{name}.{FORMATS[0]}" for sound, name in zip(sounds, names, strict=True)}


def _is_drawn(path: Path, scored: "Scored", model: "Tagger", rule: Any) -> bool:
    """Draw the scores and events of a file over time; says where the picture is, or why there is none."""
    from patchout.figures import MAX_COLUMNS
    from patchout.inference.events import find_events
    from patchout.inference.figures.tags import TagTrack, tags_over_time
    from patchout.inference.tagging import overview

    config, duration_s, title = model.config, scored.duration_s, Path(scored.name).name
    track = (scored.times_s, scored.track, config.labels)
    try:
        decision, scores = config.decision, (scored.track, scored.times_s, config.labels)
        events = find_events(*scores, rule=rule, duration_s=duration_s, decision=decision)
        log_mel, frame_s = overview(scored.name, config, duration_s=duration_s, limit=MAX_COLUMNS)
        drawing = TagTrack(log_mel, config.mel.band_hz, frame_s, *track, events)
        tags_over_time(path, drawing, title=title)
    except (OSError, ValueError, RuntimeError) as error:  # also matplotlib's
        say(f"{scored.name}: no picture {path} ({getattr(error, 'strerror', None) or error})")
        return False
    say(f"picture: {path}")
    return True

"""`patchout tag --out`: tags of many files as a bulk job, in Parquet, CSV, or a selection table a file."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from patchout.checkpoint.zoo_list import BUILT_IN
from patchout.cli import output
from patchout.cli.bulk import FILE_SUFFIXES, Bulk, precision_of
from patchout.cli.command import DONE, FAILED, check_parent, say
from patchout.files import distinct, shortened, write_aside

if TYPE_CHECKING:
    from patchout.cli.tag import Options
    from patchout.data.items import Item
    from patchout.inference.bulk.tag import TagJob
    from patchout.inference.tagging import Tags

ENDINGS = {"raven": ".selections.txt", "audacity": ".labels.txt"}  # of a file's table
FORMATS = {".parquet": ("table", "scores"), ".csv": ("table", "csv"), "": ("table", "scores", *ENDINGS)}


def main(options: "Options") -> int:
    """Run `patchout tag --out`."""
    _check(options)
    from patchout.checkpoint.labels import read_labels
    from patchout.checkpoint.zoo import locate
    from patchout.data.items import read_items
    from patchout.inference.bulk.tag import TagJob

    problems: list[str] = []
    items = read_items(options.files, problems.append, say)
    for problem in problems:
        say(problem)
    job = TagJob(
        model=options.model or BUILT_IN,
        precision=precision_of(options.precision, options.device, options.engine),
        top=options.top,
        threshold=options.threshold,
        events=options.events or options.format == "raven",
        over_time=options.format == "scores",
        labels=tuple(read_labels(options.labels)) if options.labels else (),
    ).sized(len(items))
    with output.download_bar(sys.stderr) as progress:
        locate(job.model, progress=progress)
    bulk = Bulk(items=items, job=job, device=options.device, engine=options.engine, verb="tagged")
    suffix = Path(options.out).suffix.lower()
    if suffix == ".parquet":
        failed = bulk.into_file(options.out, "parquet")
    elif suffix == ".csv":
        out, shards = options.out, f"{options.out}.parts"
        failed = bulk.into_shards(shards, out, lambda _: _write_csv(Path(out), _tags(shards, items, job)))
    else:
        failed = bulk.into_shards(options.out)
        if options.format in ENDINGS:
            _write_selections(options.out, items, job, options.format)
    return FAILED if failed or problems else DONE


def _check(options: "Options") -> None:
    """Refuse options that contradict each other, before anything is loaded."""
    suffix, out = Path(options.out).suffix.lower(), options.out
    allowed = FORMATS.get(suffix, FORMATS[""])
    is_file = suffix in FORMATS and suffix != ""
    place = f"a name that ends in {suffix}" if is_file else "a folder"
    named = "a folder, or a name that ends in .parquet or .csv"
    refusals = (
        (suffix in FILE_SUFFIXES.difference(FORMATS), f"--out takes {named}, got {out}"),
        (options.format not in allowed, f"--out {out} ({place}) takes --format {', '.join(allowed)}"),
        ("://" in out and is_file, f"a URL takes a folder, got {out}"),
        (options.plot, "--plot draws what is printed: leave --out out"),
        (options.batch_size != 16, "a job with --out chooses its batches: leave --batch-size out"),
    )
    if reason := next((reason for is_refused, reason in refusals if is_refused), None):
        raise ValueError(reason)
    if is_file:
        check_parent(Path(out))


def _tags(shards: str, items: "Sequence[Item]", job: "TagJob") -> "Iterator[Tags]":
    """The tags of all items, in order, from the shards of the finished job."""
    from patchout.inference.bulk.folder import read_tables, shard_name
    from patchout.inference.bulk.tag import COLUMNS, read_tags

    names = map(shard_name, range(job.num_shards(len(items))))
    return read_tags(read_tables(shards, names, columns=COLUMNS), items)


def _write_csv(out: Path, tags: "Iterator[Tags]") -> None:
    """Write the CSV that `--format csv` prints."""
    with write_aside(out) as aside, aside.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for text in chain([output.CSV_HEADER], map(output.csv_text, tags)):
            file.write(f"{text}\n")


def _write_selections(out: str, items: "Sequence[Item]", job: "TagJob", format: str) -> None:
    """Write one table for each file that could be read into the folder, beside the shards.

    A file whose segments lie apart in a list waits for its last one.
    """
    from patchout.data.job_folder import Folder

    if format == "raven":
        mel = job.tagger("cpu").config.mel
        band_hz = mel.f_min, mel.f_max
    last = {item.file: place for place, item in enumerate(items)}
    name_of = _names(list(last))
    folder = Folder(out)
    waiting: dict[str, list[Tags]] = {}
    for place, tags in enumerate(_tags(out, items, job)):
        if tags.error is None:
            waiting.setdefault(tags.file, []).append(tags)
        if place == last[tags.file] and (segments := waiting.pop(tags.file, None)):
            if format == "raven":
                text = output.raven_text(segments, band_hz)
            else:
                tracks = (output.audacity_text(tags, events=job.events) for tags in segments)
                text = "\n".join(filter(None, tracks))
            with folder.writing(f"{name_of[tags.file]}{ENDINGS[format]}") as file:
                file.write(f"{text}\n".encode(errors="backslashreplace") if text else b"")
    say(f"{out}: a table for each file, in names that end in {ENDINGS[format]}")


def _names(files: list[str]) -> dict[str, str]:
    """A name for each file: its stem, with the folder before it where others have the same, or a number."""
    stems = [Path(file).stem for file in files]
    times = Counter(stem.casefold() for stem in stems)
    names = [
        shortened(stem if times[stem.casefold()] == 1 else f"{Path(file).parent.name}-{stem}")
        for file, stem in zip(files, stems, strict=True)
    ]
    return dict(zip(files, distinct(names), strict=True))

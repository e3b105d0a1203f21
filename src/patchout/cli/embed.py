"""`patchout embed`: sound files -> embeddings in Parquet, .npy or HDF5."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from patchout.checkpoint.zoo_list import BUILT_IN
from patchout.cli import output
from patchout.cli.bulk import FILE_SUFFIXES, Bulk, Place, precision_of
from patchout.cli.command import DONE, FAILED, check_parent, say

if TYPE_CHECKING:
    from pyarrow import Table

    from patchout.inference.bulk.embed import EmbedJob

SUFFIXES = {"parquet": ("", ".parquet"), "npy": ("",), "hdf5": (".h5", ".hdf5")}  # of --out; "" is a folder


@dataclass(kw_only=True)
class Options:
    """Turn sound files into embeddings. The same command goes on where a killed one stopped."""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional]
    """sound files, folders, patterns, or lists (.csv, .tsv, .jsonl, .parquet, .txt) with a column file and
    perhaps start and end"""
    out: str
    """NAME.parquet for one file; else a folder (or URL) of Parquet shards; with --format npy a folder, hdf5 a
    file"""
    model: str = ""
    """a name from `patchout models`, a .safetensors or public .pt file, a run folder, or a hub id
    owner/name"""
    kind: Literal["scene", "timestamp"] = "scene"
    """one embedding a file, or one every 50 ms"""
    levels: tuple[Literal["low", "mid", "high"], ...] = ()
    """log-mel, tokens, class scores, in the order of concatenation; mid if none is named"""
    fields_ms: tuple[float, ...] = ()
    """receptive fields of a timestamp; 160 if none is given"""
    preset: str = ""
    """model, levels and fields of a published HEAR module, e.g. base2level"""
    format: Literal["parquet", "npy", "hdf5"] = "parquet"
    device: str = "auto"
    """cuda, mps or cpu"""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """auto: the faster of fp32 and bf16, which the job remembers; int8: linear layers, on a CPU"""
    engine: Place = "local"
    """ray: on all machines of a Ray cluster"""
    plot: Path | None = None
    """picture of one sound and its timestamps"""
    project: Path | None = None
    """picture of all scenes as points, coloured by class: the label in a data set's CSV, else the folder"""


def main(args: Sequence[str]) -> int:
    """Run `patchout embed`."""
    options = tyro.cli(Options, args=args, prog="patchout embed")
    _check(options)
    from patchout.checkpoint.zoo import load, locate
    from patchout.data.items import Item, read_items
    from patchout.hear.api import check_preset

    problems: list[str] = []
    items = read_items(options.paths, problems.append, say)
    for problem in problems:
        say(problem)
    if options.plot and list(items[:2]) != [Item(items[0].file)]:
        raise ValueError(f"--plot draws one whole file, {len(items)} files or segments were given")
    job = _job(options).sized(len(items))
    with output.download_bar(sys.stderr) as progress:
        locate(job.model, progress=progress)
    if options.model and options.preset:
        check_preset(options.preset, options.model, load(options.model, "cpu").config)
    bulk = Bulk(items=items, job=job, device=options.device, engine=options.engine, verb="embedded")
    is_folder = _is_folder(options)
    failed = bulk.into_shards(options.out) if is_folder else bulk.into_file(options.out, options.format)
    _draw(options, items[0].file, job)
    return FAILED if failed or problems else DONE


def _check(options: Options) -> None:
    """Refuse options that contradict each other, before anything is loaded."""
    format, out = options.format, options.out
    suffix, allowed = Path(out).suffix.lower(), SUFFIXES[format]
    is_wrong = suffix not in allowed and (suffix in FILE_SUFFIXES or "" not in allowed)
    names = " or ".join(f"a name that ends in {end}" if end else "a folder" for end in allowed)
    picture = options.plot or options.project
    example = "name sound files, folders, patterns or lists, e.g. `patchout embed clips/`"
    refusals = (
        (not options.paths, f"no files given: {example}"),
        (is_wrong, f"--format {format} writes {names}, got --out {out}"),
        ("://" in out and not _is_folder(options), f"a URL takes a folder of Parquet shards, got {out}"),
        (
            picture and format != "parquet",
            "--plot and --project draw what stands in Parquet: leave --format out",
        ),
        (options.plot and options.kind != "timestamp", "--plot draws timestamps: add --kind timestamp"),
        (options.project and options.kind != "scene", "--project draws scenes: leave --kind out"),
        (
            format == "hdf5" and not find_spec("h5py"),
            "--format hdf5 needs h5py: pip install 'patchout[hdf5]'",
        ),
    )
    if reason := next((reason for is_refused, reason in refusals if is_refused), None):
        raise ValueError(reason)
    if not _is_folder(options):
        check_parent(Path(out))
    if picture:
        from patchout.figures import picture_format

        picture_format(picture)
        check_parent(picture)


def _is_folder(options: Options) -> bool:
    """Whether the result is a folder of Parquet shards."""
    return options.format == "parquet" and Path(options.out).suffix.lower() != ".parquet"


def _job(options: Options) -> "EmbedJob":
    """The job: the preset's model and config, changed by the other options."""
    from patchout.hear.api import PRESETS, embed_config
    from patchout.inference.bulk.embed import EmbedJob
    from patchout.inference.embedding import MID

    config = embed_config(options.preset, options.levels, options.fields_ms, plain=MID)
    model = options.model or (PRESETS[options.preset].zoo_name if options.preset else BUILT_IN)
    if not options.model and not options.preset:
        say(f"using the built-in model {BUILT_IN} (225 values); for the public one (768): --model passt-s")
    precision = precision_of(options.precision, options.device, options.engine)
    return EmbedJob(model=model, kind=options.kind, config=config, precision=precision)


def _draw(options: Options, file: str, job: "EmbedJob") -> None:
    """Draw the timestamps of the one sound, or all scenes as points; nothing if all failed."""
    picture = options.plot or options.project
    if not picture:
        return
    from patchout.checkpoint.zoo import load
    from patchout.inference.bulk.folder import embeddings
    from patchout.inference.figures import embedding as figures
    from patchout.inference.tagging import overview

    rows = _read(options, 4 * figures.MAX_TIMES if options.plot else figures.MAX_POINTS)
    if not len(rows):
        return
    if options.plot:
        config = load(job.model, "cpu").config
        log_mel, frame_s = overview(file, config, duration_s=rows["duration_s"][0].as_py(), limit=2000)
        times_s = rows["time_ms"].to_numpy() / 1000
        track = figures.EmbeddingTrack(log_mel, config.mel.band_hz, frame_s, times_s, embeddings(rows))
        figures.embedding_over_time(picture, track, title=Path(file).name)
    else:
        classes = _classes(options.paths)
        names = [classes.get(file, Path(file).parent.name) for file in rows["file"].to_pylist()]
        figures.map_2d(picture, embeddings(rows), names, title=options.out)
    say(f"picture: {picture}")


def _classes(paths: Sequence[str]) -> dict[str, str]:
    """First class of each labelled file in the data sets (lists, folders of classes) among the paths."""
    from patchout.data.lists import SUFFIXES
    from patchout.data.sets import DataError, scan

    classes: dict[str, str] = {}
    for path in (Path(path).expanduser() for path in paths):
        if path.is_dir() or path.suffix.lower() in SUFFIXES:
            with suppress(DataError):  # it has no classes
                clips = scan(path)
                labels = ((clips.name(clip), clips.labels(clip)) for clip in range(len(clips)))
                classes |= {name: first for name, (first, *_) in filter(itemgetter(1), labels)}
    return classes


def _read(options: Options, limit: int) -> "Table":
    """Read about `limit` rows of the result at most, evenly spaced, without those that failed."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from patchout.data.job_folder import Folder
    from patchout.inference.bulk.folder import read_tables

    out, names = str(Path(options.out).parent), [Path(options.out).name]
    if _is_folder(options):
        out = options.out
        names = sorted(name for name in Folder(out).names() if name.startswith("part-"))
    step = max(1, sum(len(table) for table in read_tables(out, names, columns=["file"])) // limit)
    samples, first = [], 0
    for table in read_tables(out, names):
        samples.append(table.take(np.arange(-first % step, len(table), step)))
        first += len(table)
    rows = pa.concat_tables(samples, promote_options="default")  # earlier versions wrote fewer columns
    return rows.filter(pc.is_valid(rows["embedding"]))

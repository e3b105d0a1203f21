"""`patchout prepare`: pack a downloaded data set into a folder for training."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from patchout.cli import output
from patchout.cli.command import DONE, FAILED, say
from patchout.errors import near

if TYPE_CHECKING:
    from patchout.data.prepare.check import Encoding

LEFT_OUT = ("missing", "broken", "zero-length", "unusable row")


@dataclass(kw_only=True)
class Options:
    """Check a downloaded data set and pack it for training. The same command goes on where one stopped."""

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """audioset audioset20k esc50 openmic fsd50k dcase2018 dcase2019 dcase2020 speechcommands: an official
    download (`patchout prepare NAME --help` says where it is, its size, licence and layout); folder: your own
    sounds (class folders, a CSV or a JSONL)"""
    source: Path
    """folder of the download, unpacked"""
    out: Path | None = None
    """folder to fill"""
    check: tyro.conf.FlagCreatePairsOff[bool] = False
    """say which files of the download are missing, and pack nothing"""
    encoding: Literal["original", "flac", "mp3"] = "original"
    """keep the files' bytes, or encode all channels anew at 32 kHz; flac takes several times the space of Ogg
    or MP3, and is decoded in a fraction of their time"""
    mp3_kbps: int | None = None
    """rate of --encoding mp3 in kbit/s, 128 or more"""
    workers: int = os.cpu_count() or 1
    """processes that decode"""


def main(args: Sequence[str]) -> int:
    """Run `patchout prepare`."""
    from patchout.data.prepare.downloads import DOWNLOADS, describe

    about_set = describe(args[0]) if args and args[0] in DOWNLOADS else None
    options = tyro.cli(Options, args=args, prog="patchout prepare", description=about_set)
    if options.check:
        return _check(options)
    if (out := options.out) is None:
        raise ValueError("give --out, the folder to fill, or --check")
    if options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}")
    encoding = _encoding(options)
    from patchout.data.prepare.job import REPORT, newer_files, plan, prepare

    planned = plan(_known(options.dataset), options.source, out=out, encoding=encoding)
    for note in planned.listing.notes:
        say(note)
    try:
        with output.Bar("clips", planned.listed.total(), sys.stderr) as bar:
            info = prepare(planned, workers=options.workers, on_progress=bar.sounds)
    except KeyboardInterrupt:
        say(f"{out}: what is done stays: the same command goes on")
        raise
    _say_summary(out, info, REPORT)
    if files := newer_files(planned):
        reason = f"{len(files)} files are newer than what was packed of them ({files[0]} is one)"
        say(f"{out}: {reason}: if they were changed, give a new --out")
    return FAILED if info["left_out"] else DONE


def _known(name: str) -> str:
    """The name of a data set; ValueError for another word."""
    from patchout.data.prepare.layouts import LAYOUTS

    if name not in LAYOUTS:
        hint = near(name, LAYOUTS)
        raise ValueError(f"unknown data set {name!r}{hint}: data sets are {', '.join(LAYOUTS)}")
    return name


def _check(options: Options) -> int:
    """Say how many clips of each split are there, and name some that are not."""
    from patchout.data.prepare.presence import presence

    if options.out is not None:
        raise ValueError("--check packs nothing: leave --out out")
    splits, is_whole = presence(_known(options.dataset), options.source), True
    for split, clips in splits.items():
        name = f"{split}: " if split else ""
        output.line(f"{name}{clips.present} of {clips.listed} clips are there", sys.stdout)
        is_whole = is_whole and clips.present >= clips.listed
        for file in clips.missing:
            output.line(f"  missing: {file}", sys.stdout)
    return DONE if is_whole else FAILED


def _encoding(options: Options) -> "Encoding":
    """The encoding that the options choose; ValueError if they contradict each other."""
    from patchout.data.prepare.check import KBPS, Encoding

    if options.encoding != "mp3" and options.mp3_kbps is not None:
        raise ValueError(f"--mp3-kbps is for --encoding mp3, not for {options.encoding}")
    if options.encoding == "mp3" and options.mp3_kbps not in KBPS:
        value = "none was given" if options.mp3_kbps is None else f"got {options.mp3_kbps}"
        reason = "below 128 the top of the spectrum is cut off (48 leaves nothing above 11 kHz)"
        raise ValueError(f"--encoding mp3 needs --mp3-kbps {', '.join(map(str, KBPS))}; {value}: {reason}")
    return Encoding(options.encoding, options.mp3_kbps or 0)


def _say_summary(out: Path, info: dict[str, Any], report: str) -> None:
    """Print the number of clips, their share of the official list, and the problems."""
    total, hours = sum(info["counts"].values()), info["audio_s"] / 3600
    say(f"{out}: {total} clips, {hours:.1f} h, {len(info['classes'])} classes ({info['task']})")
    for split, cover in info["official"].items():
        present, listed = cover["present"], cover["listed"]
        share = f"{100 * present / listed:.1f} %"
        say(f"  {split}: {present} of the {listed} clips on the official list ({share})")
    for kind, count in info["problems"].items():
        say(f"  {count} {kind}, {'left out' if kind in LEFT_OUT else 'kept'}")
    if info["problems"]:
        say(f"  which ones: {out / report}")
    from patchout.data.sets import scan
    from patchout.inference.check.classes import findings
    from patchout.inference.check.findings import worst

    for line in worst(findings(scan(out)), str(out)):
        say(line)

"""`patchout prepare`: a downloaded data set -> a folder that training reads at random."""

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
    """Check a downloaded data set and pack it for training. The same command goes on where a stopped one was."""

    dataset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """audioset audioset20k esc50 openmic fsd50k dcase2018 dcase2019 dcase2020 speechcommands: an official download;
    folder: your own sounds (class folders, a CSV or a JSONL)"""
    source: Path
    """folder of the download, unpacked"""
    out: Path
    """folder to fill"""
    encoding: Literal["original", "flac", "mp3"] = "original"
    """keep the files' bytes, or encode all channels anew at 32 kHz"""
    mp3_kbps: int | None = None
    """rate of --encoding mp3 in kbit/s, 128 or more"""
    workers: int = os.cpu_count() or 1
    """processes that decode"""


def main(args: Sequence[str]) -> int:
    """Run `patchout prepare`."""
    options = tyro.cli(Options, args=args, prog="patchout prepare")
    if options.workers < 1:
        raise ValueError(f"--workers must be at least 1, got {options.workers}")
    encoding = _encoding(options)
    from patchout.data.prepare.job import REPORT, newer_files, plan, prepare
    from patchout.data.prepare.layouts import LAYOUTS

    name, known = options.dataset, list(LAYOUTS)
    if name not in known:
        raise ValueError(f"unknown data set {name!r}{near(name, known)}: data sets are {', '.join(known)}")
    planned = plan(name, options.source, out=options.out, encoding=encoding)
    for note in planned.listing.notes:
        say(note)
    try:
        with output.Bar("clips", planned.listed.total(), sys.stderr) as bar:
            info = prepare(planned, workers=options.workers, on_progress=bar.sounds)
    except KeyboardInterrupt:
        say(f"{options.out}: what is done stays: the same command goes on")
        raise
    _tell(options.out, info, REPORT)
    if files := newer_files(planned):
        what = f"{len(files)} files are newer than what was packed of them ({files[0]} is one)"
        say(f"{options.out}: {what}: if they were changed, give a new --out")
    return FAILED if info["left_out"] else DONE


def _encoding(options: Options) -> "Encoding":
    """What was asked for, if it can be stored and heard."""
    from patchout.data.prepare.check import KBPS, Encoding

    if options.encoding != "mp3" and options.mp3_kbps is not None:
        raise ValueError(f"--mp3-kbps is for --encoding mp3, not for {options.encoding}")
    if options.encoding == "mp3" and options.mp3_kbps not in KBPS:
        given = "none was given" if options.mp3_kbps is None else f"got {options.mp3_kbps}"
        why = "below 128 the top of the spectrum is cut off (48 leaves nothing above 11 kHz)"
        raise ValueError(f"--encoding mp3 needs --mp3-kbps {', '.join(map(str, KBPS))}; {given}: {why}")
    return Encoding(options.encoding, options.mp3_kbps or 0)


def _tell(out: Path, info: dict[str, Any], report: str) -> None:
    """Clips by split, how much of the official list that is, and what was found."""
    total = sum(info["counts"].values())
    say(
        f"{out}: {total} clips, {info['audio_s'] / 3600:.1f} h, {len(info['classes'])} classes ({info['task']})"
    )
    for fold, cover in info["official"].items():
        share = 100 * cover["present"] / cover["listed"]
        say(
            f"  {fold}: {cover['present']} of the {cover['listed']} clips on the official list ({share:.1f} %)"
        )
    for kind, count in info["problems"].items():
        say(f"  {count} {kind}, {'left out' if kind in LEFT_OUT else 'kept'}")
    if info["problems"]:
        say(f"  which ones: {out / report}")

"""`patchout export`: a model as an ONNX file, for programs without Python."""

import contextlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from patchout.cli import output
from patchout.cli.command import DONE, check_parent, load_model, say


@dataclass(kw_only=True)
class Options:
    """Write a model as ONNX: waveform in, scores out; labels, front end, licence and a self-test inside."""

    model: Annotated[str, tyro.conf.Positional] = ""
    """a name from `patchout models`, a .safetensors or public .pt file, a run folder, or a hub id"""
    out: Path | None = None
    """the .onnx file to write"""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """fp16 is half as large, for GPUs and browsers; int8 is a quarter, and faster on a CPU, where clips of a
    batch move each other's scores a little"""
    seconds: str = "any"
    """length of every clip, e.g. 10, or any"""
    front_end: Literal["waveform", "sherpa"] = "waveform"
    """sherpa: what sherpa-onnx feeds, for a model trained with its log-mels; labels beside it as .csv"""
    labels: Path | None = None
    """class names for models that bring none"""
    verify: Path | None = None
    """test an .onnx file that was written before, instead of writing one"""


def main(args: Sequence[str]) -> int:
    """Run `patchout export`."""
    options = tyro.cli(Options, args=args, prog="patchout export")
    if options.verify is not None:
        if options != Options(verify=options.verify):
            raise ValueError("--verify tests a file as it is: leave MODEL, --out and the other options away")
        return _verify(options.verify)
    if not options.model or options.out is None:
        raise ValueError("name a model and --out, e.g. `patchout export sounds-tiny --out model.onnx`")
    if options.out.suffix != ".onnx":
        raise ValueError(f"{options.out}: a model is exported as .onnx")
    if options.out.is_dir():
        raise IsADirectoryError(f"{options.out}: is a folder: name a file to write, e.g. model.onnx in it")
    seconds = _seconds(options.seconds)
    check_parent(options.out)
    from patchout.export.sherpa import write_labels
    from patchout.export.verify import check_extra
    from patchout.export.write import check, export

    check_extra()
    model = load_model(options.model, "cpu", options.labels)
    check(model, options.precision, seconds, options.front_end)
    say("exporting, and comparing the file with PyTorch")
    agreement = export(
        model, options.out, precision=options.precision, seconds=seconds, front_end=options.front_end
    )
    output.line(str(options.out), sys.stdout)
    if options.front_end == "sherpa":
        write_labels(options.out.with_suffix(".csv"), model.config.labels)
        output.line(str(options.out.with_suffix(".csv")), sys.stdout)
    say(f"{options.out.stat().st_size / 1e6:.1f} MB in {options.precision}; {agreement}")
    return DONE


def _seconds(text: str) -> float | None:
    """The length that was asked for; None for any."""
    if text == "any":
        return None
    with contextlib.suppress(ValueError):
        if math.isfinite(seconds := float(text)):
            return seconds
    raise ValueError(f"--seconds must be a number or any, got {text!r}")


def _verify(path: Path) -> int:
    """Run a file's self-test."""
    from patchout.export.verify import verify

    metadata, agreement = verify(path)
    what = f"{metadata['model']} in {metadata['precision']}, {metadata['input']} in"
    output.line(f"{path}: {what}; as it was exported: {agreement}", sys.stdout)
    return DONE

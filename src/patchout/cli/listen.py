"""`patchout listen`: live tagging of a pipe or a microphone."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from patchout.checkpoint.zoo_list import BUILT_IN
from patchout.cli import output
from patchout.cli.command import DONE, device_for, load_model, say
from patchout.errors import InputError

if TYPE_CHECKING:
    from patchout.audio.live import LiveSource

READ = os.O_RDONLY | getattr(os, "O_BINARY", 0)


@dataclass(kw_only=True)
class Options:
    """Tell what can be heard, as it is heard: a line of JSON where an event begins and where it ends.

    Events are those of `patchout tag` on the recording. Ctrl-C ends it.
    """

    input: str = ""
    """- for standard input, a FIFO, or a microphone by name; else the system's microphone"""
    rate: int = 0
    """Hz of raw samples in a pipe, which nothing can check; of a microphone that should not choose"""
    channels: int = 0
    """of raw samples (1 if not given), or of a microphone"""
    encoding: Literal["s16le", "s16be", "s24le", "s32le", "f32le", "u8", "mulaw", "alaw"] = "s16le"
    """of raw samples"""
    model: str = ""
    """a name from `patchout models`, a .safetensors or public .pt file, a run folder, or a hub id
    owner/name"""
    threshold: float | None = None
    """score from which an event is on (it ends below 0.6 of it); None: for each class the one that
    `patchout train` chose, else 0.5"""
    scores: int = 0
    """also a line with the scores of so many labels every half second"""
    labels: Path | None = None
    """class names for models that bring none"""
    device: str = "auto"
    """cuda, mps or cpu"""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """auto: the faster of fp32 and bf16 on this machine; int8: linear layers, on a CPU"""


def main(args: Sequence[str]) -> int:
    """Run `patchout listen`."""
    options = tyro.cli(Options, args=args, prog="patchout listen")
    if min(options.rate, options.channels, options.scores) < 0:
        raise ValueError("--rate, --channels and --scores count from 1, or are left out")
    from patchout.audio.stream import Stream
    from patchout.inference.events import EventRule
    from patchout.inference.live import STEP_S, Listener, Message, Ring

    rule = EventRule(on=options.threshold)
    source = _source(options)
    if not options.model:
        say(f"using the built-in model {BUILT_IN} (33 classes); for the 527 of AudioSet: --model passt-s")
    device = device_for(options.device, options.precision)
    model = load_model(options.model or BUILT_IN, device, options.labels)
    config = model.config

    def write(message: Message) -> None:
        output.line(json.dumps(message.to_dict(), ensure_ascii=False), sys.stdout)

    ring = Ring(Stream(source, config.mel.sample_rate, channel=config.channel, block_s=STEP_S))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(*_: object) -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # the next one ends at once
        ring.stop()

    for number in handlers:
        signal.signal(number, stop)
    try:
        Listener(model, ring, write, rule=rule, precision=options.precision, top=options.scores).run()
    finally:
        stop()
    return DONE


def _source(options: Options) -> "LiveSource":
    """The pipe or microphone that the options name."""
    from patchout.audio.live import microphone, microphones, pipe
    from patchout.data.folders import is_sound

    path = Path(options.input)
    if options.input and path.is_dir():
        raise InputError(f"{path}: is a folder: --input takes a pipe or a file; patchout tag takes folders")
    is_file = "/" in options.input or is_sound(path)
    if is_file and not path.exists() and options.input not in microphones():
        raise InputError(f"{path}: no such file: give one, - for standard input, or a microphone by name")
    if options.input == "-" or (options.input and path.exists()):
        if options.input == "-" and sys.stdin.isatty():
            raise ValueError("--input - reads a pipe, and this is a terminal: name a program before it")
        descriptor = sys.stdin.fileno() if options.input == "-" else os.open(options.input, READ)
        encoding = options.encoding if options.rate else ""
        channels = options.channels or 1
        return pipe(descriptor, options.input, encoding=encoding, rate=options.rate, channels=channels)
    settings = {"sample_rate": options.rate, "channels": options.channels}
    return microphone(
        options.input, options={name: str(number) for name, number in settings.items() if number}
    )

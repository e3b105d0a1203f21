"""The command line: dispatch to a command, and errors of the user as one line and an exit code."""

import contextlib
import ctypes
import importlib
import os
import platform
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import patchout
from patchout.cli import output
from patchout.cli.command import DONE, FAILED, STOPPED, WRONG_USAGE, in_the_way, say
from patchout.errors import InputError, near

COMMANDS = {  # module of patchout.cli -> its description
    "tag": "say what can be heard in sound files",
    "listen": "tell what a microphone or a pipe hears, as it is heard",
    "embed": "turn sound files into embeddings",
    "check": "say what is wrong with a data set",
    "prepare": "check a downloaded data set and pack it for training",
    "train": "train a model on labelled sounds",
    "pretrain": "learn from unlabelled sounds",
    "reconstruct": "draw what a pre-trained model makes of hidden patches",
    "evaluate": "score a model on labelled sounds",
    "judge": "measure generated sounds by a reference (FD, KL, IS)",
    "hear": "judge embeddings as the HEAR benchmark does",
    "web": "open a page to listen, label and retrain",
    "export": "write a model as ONNX, for programs without Python",
    "push": "put a model on the hub, with its card",
    "models": "list the published models",
    "bench": "measure the papers' models on this machine",
}
BATCH_OPTION = {"tag": "--batch-size", "evaluate": "--batch-size"}
BATCH_OPTION |= dict.fromkeys(("train", "pretrain", "bench"), "--batch")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc; bytes
SHARED = ("train", "pretrain")  # commands of several processes, of which the main one prints


def main(args: Sequence[str] | None = None) -> None:
    """The console script: exits 0 when all is done, 1 when something failed, 2 on wrong usage."""
    warnings.formatwarning = lambda message, *_: f"{message}\n"  # without Python's file and line
    _keep_memory()
    sys.exit(run_command(list(sys.argv[1:] if args is None else args)))


def run_command(args: Sequence[str]) -> int:
    """Run one command line; a user's mistake is one line on standard error, never a traceback."""
    if not args or args[0] in ("-h", "--help"):
        output.line(_overview(), sys.stdout if args else sys.stderr)
        return DONE if args else WRONG_USAGE
    if args[0] == "--version":
        output.line(f"patchout {patchout.__version__}", sys.stdout)
        return DONE
    if args[0] not in COMMANDS:
        say(f"unknown command {args[0]!r}{near(args[0], COMMANDS)}: commands are {', '.join(COMMANDS)}")
        return WRONG_USAGE
    signals = importlib.import_module("patchout.training.signals") if args[0] in SHARED else None
    process = signals.rank() if signals else 0
    try:
        with _muted() if process else contextlib.nullcontext():
            return importlib.import_module(f"patchout.cli.{args[0]}").main(args[1:])
    except SystemExit as stop:  # of the parser, to which a file may look like an option
        dashed = (arg for arg in args[1:] if arg.startswith("-") and os.path.exists(arg))  # noqa: PTH110
        if stop.code and (name := next(dashed, "")):
            say(f"{name}: is there, but begins like an option: give ./{name}")
        raise
    except KeyboardInterrupt:
        text, code = "stopped", STOPPED
    except BrokenPipeError:  # the reader of our output has closed it
        sys.stdout = None  # nothing to flush at exit
        return FAILED
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        if isinstance(error, FileExistsError | NotADirectoryError | FileNotFoundError):
            text = in_the_way(Path(error.filename or "")) or text
        code = FAILED
    except ValueError as error:
        text, code = str(error), FAILED if isinstance(error, InputError) else WRONG_USAGE
    except RuntimeError as error:  # perhaps of waiting for a process that has failed and said why
        if signals and signals.another_failed():
            return FAILED
        if type(error).__name__ == "OutOfMemoryError":  # torch's own, not imported for its name
            option = BATCH_OPTION.get(args[0], "")
            todo = f"give a smaller {option}" if option else "give --device cpu"
            text = f"the memory of the GPU is full: {todo}, or end what else runs on it"
        elif "DataLoader worker" in str(error):  # torch's words for one that died
            hint = "run the same command again, with fewer --workers if memory was short"
            text = f"a process that reads sounds was killed; {hint}"
        else:
            raise
        code = FAILED
    if not process:
        say(text)
    elif signals and code != STOPPED and not signals.another_failed():
        say(f"process {process}: {text}")
    return code


def _keep_memory() -> None:
    """Let glibc keep the memory of freed tensors: pages that it fetches anew are zeroed first."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """Discard all output of a process other than the main one."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _overview() -> str:
    """The help page of `patchout`."""
    summary = (patchout.__doc__ or "").partition("\n")[0]
    commands = "\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items())
    hint = "`patchout COMMAND --help` shows its options."
    return f"usage: patchout COMMAND ...\n\n{summary}\n\n{commands}\n\n{hint}"

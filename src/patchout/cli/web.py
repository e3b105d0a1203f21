"""`patchout web`: a page to look at the sounds of a folder, listen, label, and retrain."""

import secrets
import socket
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro

from patchout.cli import output
from patchout.cli.command import DONE, say
from patchout.errors import InputError


@dataclass(kw_only=True)
class Options:
    """Open a page in the browser: sounds and what a model hears in them, listened to, labelled, learnt from.

    Labels are kept in FOLDER/labels.csv, a list that `patchout train folder` takes. Nothing leaves this
    machine.
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """sounds, at any depth"""
    model: str = ""
    """a name from `patchout models`, a .safetensors or public .pt file, a run folder, or a hub id owner/name;
    else what the page has learnt last, or the built-in one"""
    port: int = 0
    """of this machine; 0: any that is free"""
    no_open: tyro.conf.FlagCreatePairsOff[bool] = False
    """only print the address"""
    device: str = "auto"
    """cuda, mps or cpu"""


def main(args: Sequence[str]) -> int:
    """Run `patchout web` until it is stopped."""
    options = tyro.cli(Options, args=args, prog="patchout web")
    if missing := [name for name in ("starlette", "uvicorn") if not find_spec(name)]:
        raise ValueError(f"the page needs {' and '.join(missing)}: pip install 'patchout[web]'")
    with _listening(options.port) as listener:
        _serve(options, listener)
    return DONE


def _serve(options: Options, listener: socket.socket) -> None:
    """Serve the page until it is stopped."""
    import uvicorn

    from patchout.web.server import application
    from patchout.web.session import Session

    session = Session(options.folder.expanduser().absolute(), options.model, options.device)
    token = secrets.token_urlsafe(16)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/{token}/"
    say(f"{len(session.index.sounds)} sounds in {session.folder}, heard by {session.model_name}")
    output.line(address, sys.stdout)
    say("Ctrl-C ends it; who has the address can listen and label")
    config = uvicorn.Config(
        application(session, token), log_level="warning", lifespan="off", timeout_graceful_shutdown=1
    )
    session.start()
    try:
        if not options.no_open:
            webbrowser.open(address)
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        session.close()


def _listening(port: int) -> socket.socket:
    """A socket that listens on this machine alone."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"port {port}: {reason}: give another --port, or none") from None
    listener.listen()
    return listener

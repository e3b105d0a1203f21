"""Processes as torchrun starts them (itself: `test_loop.py`), forked from one that has imported all."""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

IMPORTS = (  # what the first run of a process imports
    *("conftest", "torch._dynamo", "torch.utils.tensorboard"),
    *("patchout.training.masked.run", "patchout.training.supervised.run"),
)
HANG_S = 900  # a busy machine takes minutes


class Ranks:
    """Jobs of several processes, one job at a time; `server` is a process that runs this file."""

    def __init__(self, server: "subprocess.Popen[str]", output: Path) -> None:
        assert server.stdin is not None
        assert server.stdout is not None
        self._send, self._receive, self._output = server.stdin, server.stdout, output
        self.pids: list[int] = []  # of a job that is not waited for

    def start(self, function: Callable[..., None], *args: object, world: int = 2) -> None:
        """Call a function of a test file in `world` processes; the arguments get there as texts."""
        about = [str(self._output), world, function.__module__, function.__name__, *map(str, args)]
        self._send.write(f"{json.dumps(about)}\n")
        self._send.flush()
        self.pids = json.loads(self._receive.readline())

    def end(self) -> list[int]:
        """Exit codes of the processes, once all have ended."""
        if not select.select([self._receive], [], [], HANG_S)[0]:
            self.signal(signal.SIGKILL)
        self.pids = []
        codes: list[int] = json.loads(self._receive.readline())
        return codes

    def signal(self, number: int) -> None:
        """Send a signal to every process."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def output(self) -> str:
        """What the processes of the last job have printed."""
        return self._output.read_text(encoding="utf-8")

    def run(self, function: Callable[..., None], *args: object, world: int = 2) -> None:
        """Start and end a job in which no process fails."""
        self.start(function, *args, world=world)
        assert not any(self.end()), self.output()[-2000:]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Ranks]:
    """Start the process that forks, and end it; the output of jobs lies in `folder`."""
    command, env = [sys.executable, __file__], os.environ | {"ACCELERATE_USE_CPU": "true"}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env) as server:
        yield Ranks(server, folder / "output.txt")


def serve() -> None:
    """Fork the processes of each job that stdin tells of; print their ids, then their exit codes."""
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    for line in sys.stdin:
        output, world, module, name, *args = json.loads(line)
        function = getattr(importlib.import_module(module), name)
        Path(output).write_bytes(b"")
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        pids = []
        for rank in range(world):
            if not (pid := os.fork()):
                become(rank, world, port, output)
                call(function, args)
            pids.append(pid)
        tell(pids)
        tell([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids])


def tell(numbers: list[int]) -> None:
    """Write a line to the tests."""
    sys.stdout.write(f"{json.dumps(numbers)}\n")
    sys.stdout.flush()


def become(rank: int, world: int, port: int, output: str) -> None:
    """Take the environment of a rank, and print to a file."""
    values = {"MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
    if world > 1:
        os.environ |= {"MASTER_ADDR": "localhost", **{name: str(value) for name, value in values.items()}}
    with Path(output).open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())


def call(function: Callable[..., None], args: list[str]) -> None:
    """End this process with the exit code of a function."""
    code = 1
    try:
        function(*args)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
    os._exit(0)  # at once: nothing is left to end

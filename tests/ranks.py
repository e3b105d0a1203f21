"""Processes as torchrun starts them (itself: `test_loop.py`), forked from one that has imported all."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SCRIPT = """
import importlib, os, socket, sys
import torch._dynamo, torch.utils.tensorboard  # what the first run of a process imports

folder, world, module, name, *args = sys.argv[1:]
sys.path.insert(0, folder)
function = getattr(importlib.import_module(module), name)
with socket.create_server(("localhost", 0)) as free:
    master = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
children = []
for rank in range(int(world)):
    if not (child := os.fork()):
        os.environ |= {**master, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world}
        function(*args)
        os._exit(0)
    children.append(child)
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


def run_ranks(function: Callable[..., None], *args: Path, world: int = 2) -> None:
    """Call a function of a test file in `world` processes; none fails."""
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(world)]
    command += [function.__module__, function.__name__, *map(str, args)]
    env = os.environ | {"ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

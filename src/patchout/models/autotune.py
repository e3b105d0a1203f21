"""How fast the kernels of a machine are: measured once for a processor and a torch, then cached."""

import json
import math
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from patchout.files import cache_folder, write_json

Cases = Mapping[str, Callable[[], object]]  # by "what it computes/by which kernel"
Seconds = dict[str, float]  # by the same names

FEW, MANY = 8, 256  # tokens: of the first calls, and the most that are timed
ROUND_S, BUDGET_S = (
    0.06,
    0.2,
)  # one call of every case, and all rounds; more only where a single round takes longer
HOPELESS = 4.0  # so many times slower than another kernel at a few tokens, a kernel is not timed again
WAIT_S = 10.0  # for another process that measures


def measured(names: Collection[str], cases_of: Callable[[int], Cases]) -> Seconds:
    """Seconds of every named case, from the cache folder where this machine has been measured, else `measure`.

    Processes that start together measure one after the other: the first one's numbers serve all. A cache that is
    damaged or cannot be written is as none.
    """
    path, machine = cache_folder() / "kernels.json", describe()
    seconds = _stored(path, machine, names)
    if seconds is not None:
        return seconds
    with _alone(path):
        seconds = _stored(path, machine, names)
        if seconds is None:
            seconds = measure(cases_of)
            with suppress(OSError):
                write_json(path, _read(path) | {machine: seconds})
    return seconds


def measure(cases_of: Callable[[int], Cases]) -> Seconds:
    """Best seconds of every case that `cases_of` makes for a number of tokens, taken by turns.

    Of processor time on one core, which a busy machine leaves alone. In a thread of its own, which no autocast,
    inference mode or counter of the caller reaches.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(_measure, cases_of).result()
        finally:
            pool.submit(torch.set_num_threads, threads).result()  # what threads that start later will have


def describe() -> str:
    """The machine as far as the speed of its kernels depends on it."""
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{processor()}, {vectors}, torch {torch.__version__}"


def processor() -> str:
    """What the system calls its processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    arm = " ".join(f"{name} {fields[name]}" for name in ("CPU implementer", "CPU part") if name in fields)
    return fields.get("model name") or arm or platform.processor() or platform.machine()


def _measure(cases_of: Callable[[int], Cases]) -> Seconds:
    torch.set_num_threads(1)
    started = time.thread_time()
    _times(cases_of(FEW))  # first calls load and compile
    few = _times(cases_of(FEW))
    rivals = {name: min(few[other] for other in few if _what(other) == _what(name)) for name in few}
    close = [name for name in few if few[name] <= max(HOPELESS * rivals[name], ROUND_S / 10)]
    tokens = max(FEW, min(MANY, int(FEW * ROUND_S / sum(few[name] for name in close))))
    cases = {name: call for name, call in cases_of(tokens).items() if name in close}
    best = {name: seconds * tokens / FEW for name, seconds in few.items() if name not in close}
    rounds = 0
    while rounds < 2 or time.thread_time() - started < BUDGET_S:
        best |= {name: min(seconds, best.get(name, math.inf)) for name, seconds in _times(cases).items()}
        rounds += 1
    return best


def _times(cases: Cases) -> Seconds:
    """Seconds of one call each."""
    seconds = {}
    for name, call in cases.items():
        started = time.thread_time()
        call()
        seconds[name] = time.thread_time() - started
    return seconds


def _what(name: str) -> str:
    """What a case computes, whichever kernel does."""
    return name.partition("/")[0]


def _stored(path: Path, machine: str, names: Collection[str]) -> Seconds | None:
    """The numbers of a machine, None where they are not there, or not those asked for."""
    seconds = _read(path).get(machine)
    if not isinstance(seconds, dict) or seconds.keys() != set(names):
        return None
    return (
        seconds
        if all(isinstance(value, float) and 0 < value < math.inf for value in seconds.values())
        else None
    )


def _read(path: Path) -> dict[str, Any]:
    """What the cache holds, empty where it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Only one process at a time comes here, where the folder can hold a lock."""
    with ExitStack() as stack:
        with suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_suffix(".lock")).acquire(timeout=WAIT_S))
        yield

"""Autotuning: times the kernels of a processor once for each version of torch, and caches the seconds."""

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

Cases = Mapping[str, Callable[[], object]]  # by "operation/kernel"
Seconds = dict[str, float]  # by the same names

FEW, MANY = 8, 256  # tokens: of the first calls, and the most that are timed
ROUND_S, BUDGET_S = 0.06, 0.2  # one call of every case; all rounds, unless a single one takes longer
HOPELESS = 4.0  # a kernel so many times slower than another at a few tokens is not timed again
WAIT_S = 10.0  # for another process that measures


def measured(names: Collection[str], cases_of: Callable[[int], Cases]) -> Seconds:
    """Seconds of every named case: cached, or from `measure` on the first call on this machine.

    Of processes that start together the first measures for all. A damaged or read-only cache is ignored.
    """
    path, machine = cache_folder() / "kernels.json", describe()
    seconds = _stored(path, machine, names)
    if seconds is not None:
        return seconds
    with _locked(path):
        seconds = _stored(path, machine, names)
        if seconds is None:
            seconds = measure(cases_of)
            with suppress(OSError):
                write_json(path, _read(path) | {machine: seconds})
    return seconds


def measure(cases_of: Callable[[int], Cases]) -> Seconds:
    """Least processor seconds, on one core, of every case that `cases_of` makes for a number of tokens.

    In a separate thread: out of reach of the caller's autocast, inference mode and operation counters.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(_measure, cases_of).result()
        finally:
            pool.submit(torch.set_num_threads, threads).result()  # for threads that start later


def describe() -> str:
    """The key of the cache: processor, its vector instructions, and the version of torch."""
    return f"{processor()}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def processor() -> str:
    """The name of the processor by the operating system."""
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
    rivals = {name: min(few[other] for other in few if _operation(other) == _operation(name)) for name in few}
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


def _operation(name: str) -> str:
    return name.partition("/")[0]


def _stored(path: Path, machine: str, names: Collection[str]) -> Seconds | None:
    """The cached seconds of a machine; None if absent, invalid, or of other cases."""
    seconds = _read(path).get(machine)
    if not isinstance(seconds, dict) or seconds.keys() != set(names):
        return None
    is_valid = all(isinstance(value, float) and 0 < value < math.inf for value in seconds.values())
    return seconds if is_valid else None


def _read(path: Path) -> dict[str, Any]:
    """The cache by machine, empty if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time, on file systems that support locks."""
    with ExitStack() as stack:
        with suppress(OSError, NotImplementedError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_suffix(".lock")).acquire(timeout=WAIT_S))
        yield

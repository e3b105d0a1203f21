"""The engine of a bulk job on a Ray cluster: tasks decode, actors hold the models and write the shards."""

import importlib.util
import logging
import os
import pickle
import socket
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch

from patchout.checkpoint.download import file_sha256
from patchout.checkpoint.zoo import locate
from patchout.data.items import Item
from patchout.data.job_folder import Folder
from patchout.errors import InputError
from patchout.inference.bulk.ahead import Opener, Sound, decode
from patchout.inference.bulk.folder import HALVES, shard_name
from patchout.inference.bulk.job import Rows
from patchout.inference.bulk.run import Engine, Steps, Todo, open_threads, write_shards
from patchout.models.tagger import TaggerConfig

BLOCK_BYTES = 2**28  # decoded sounds that a task gives to an actor, which decodes the rest of the shard
CORES = 4  # where there is no GPU: one of them decodes, the others run one model
CONNECT_S = 5.0


class Actors(NamedTuple):
    """The models that run at a time, and the cores and GPUs of each."""

    models: int
    cores: int
    gpus: int


def ray_engine() -> Engine:
    """The engine on the Ray that is initialised here, on the cluster at RAY_ADDRESS, or on a local one.

    All machines must reach files, model and output under the names given. The device is auto, cpu or cuda;
    there is a model per GPU, or per CORES cores. What a killed worker held is done again by another one.
    ValueError without Ray; the engine raises OSError if no cluster answers, a worker cannot write, or Ray
    gives up.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("a job on a cluster needs Ray: pip install 'patchout[ray]'")
    return _run


def _run(todo: Todo) -> Steps:
    model = todo.job.rows("cpu").model.config  # refuses a job before Ray starts
    with _connected():
        for shard, seconds in _results(todo, model):
            yield len(todo.items_of(shard)), seconds
    folder = Folder(todo.out)
    if missing := sorted({shard_name(shard) for shard in todo.shards} - folder.names()):
        lost = f"{len(missing)} shards were written, but not here ({missing[0]} is one)"
        raise InputError(f"{todo.out}: {lost}: give a folder that all machines share, or a URL")
    for aside in folder.path.glob(HALVES) if folder.path else ():  # of killed workers
        aside.unlink()


@contextmanager
def _connected() -> Iterator[None]:
    """Use the Ray that is initialised, else connect to one or start one during the job."""
    import ray
    import ray.data

    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its news would break the progress bar
    is_own = not ray.is_initialized()
    if is_own:
        check_address(os.environ.get("RAY_ADDRESS", ""))
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a local cluster reports to nobody
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters arrives as an exception
        ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    try:
        yield
    finally:
        logger.setLevel(level)
        if is_own:
            ray.shutdown()


def check_address(address: str) -> None:
    """Check that a cluster's host:port answers: Ray itself waits for minutes, and then ends the process."""
    host, _, port = address.removeprefix("ray://").partition("/")[0].rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
        except (OSError, OverflowError) as error:
            todo = "start it, correct the address, or unset it to run on this machine alone"
            raise OSError(f"no Ray cluster answers at RAY_ADDRESS={address} ({error}): {todo}") from None


def plan_actors(cores: Sequence[int], gpus: int, *, device: str = "auto") -> Actors:
    """One model per GPU, or per CORES cores of each machine (of the largest, if all are smaller).

    At least one core of the cluster decodes; a cluster of one core is shared.
    """
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not gpus):
        allowed = f"auto, {'cuda, ' if gpus else ''}cpu"
        raise ValueError(f"no device {device!r} on this cluster: here are {allowed}")
    if gpus and device != "cpu":
        return Actors(gpus, cores=0, gpus=1)
    places = max(1, min(CORES, max(cores)))
    models = max(1, sum(number // places for number in cores))
    return Actors(models, cores=min(max(1, places - 1), max(0, sum(cores) - 1) // models), gpus=0)


def _results(todo: Todo, model: TaggerConfig) -> Iterator[tuple[int, float]]:
    """Run the shards: number and seconds of sound of each, once it is written."""
    import ray
    import ray.data

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [int(machine.get("CPU", 0)) for machine in machines]
    actors = plan_actors(cores, int(sum(machine.get("GPU", 0) for machine in machines)), device=todo.device)
    folder = str(Path.cwd())
    decoding = {"opener": partial(todo.job.open, config=model), "folder": folder}
    rows = ({"shard": [shard], "content": [pickle.dumps(todo.items_of(shard))]} for shard in todo.shards)
    shards = ray.data.from_arrow([pa.table(row) for row in rows])  # a shard is a block, a task, and a row
    shards.context.enable_progress_bars = False
    shards.context.print_on_execution_start = False
    shards.context.raise_original_map_exception = True
    written = shards.map_batches(
        decode_shard, batch_size=1, batch_format="pyarrow", fn_kwargs=decoding, num_cpus=1
    ).map_batches(
        Model,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors.models),
        fn_constructor_args=(todo._replace(items=()), actors, folder),
        num_cpus=actors.cores,
        num_gpus=actors.gpus,
    )
    try:
        for table in written.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in table.to_pylist():
                if row["problem"] is not None:
                    raise OSError(row["problem"])
                yield row["shard"], row["audio_s"]
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", error)
        reason = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
        hint = "finished shards stay: start the same job again to go on"
        raise OSError(f"Ray gave up ({reason}); {hint}") from error


def decode_shard(table: pa.Table, *, opener: Opener, folder: str) -> pa.Table:
    """Row (shard, items) -> (shard, sounds of the first items, up to BLOCK_BYTES, and the other items)."""
    _enter(folder)
    items: Sequence[Item] = pickle.loads(table["content"][0].as_py())
    sounds: list[Sound] = []
    while len(sounds) < len(items) and sum(sound.num_bytes for sound in sounds) < BLOCK_BYTES:
        sounds.append(decode(items[len(sounds)], opener))
    content = pickle.dumps((sounds, items[len(sounds) :]), protocol=5)
    return pa.table({"shard": table["shard"], "content": pa.array([content], pa.large_binary())})


class Model:
    """An actor: loads the job's model with its first shard, and writes shards."""

    def __init__(self, todo: Todo, actors: Actors, folder: str) -> None:
        _enter(folder)
        torch.set_num_threads(max(1, actors.cores))
        self._todo = todo._replace(device="cuda" if actors.gpus else "cpu")

    def __call__(self, table: pa.Table) -> pa.Table:
        """One row of `decode_shard` -> (shard, audio_s, problem: why it could not be written, or null)."""
        shard, audio_s, problem = table["shard"][0].as_py(), 0.0, None
        try:
            sounds, items = pickle.loads(table["content"][0].as_py())
            rows = self._rows
            opener = partial(self._todo.job.open, config=rows.model.config)
            with open_threads(rows.model) as threads, closing(threads.decoded(items, opener)) as late:
                steps = write_shards(rows, [(shard, chain(sounds, late))], self._todo, threads)
                audio_s = sum(seconds for _, seconds in steps)
        except (OSError, ValueError) as error:
            problem = f"{shard_name(shard)}: {error}"
        columns = {"shard": pa.int64(), "audio_s": pa.float64(), "problem": pa.string()}
        return pa.table([[shard], [audio_s], [problem]], schema=pa.schema(columns))

    @cached_property
    def _rows(self) -> Rows:
        """The job's model on this machine, if it is the very one."""
        job = self._todo.job
        path = locate(job.model)
        if file_sha256(path) != job.model_sha256:
            other = "is another model than on the machine that asked"
            raise InputError(f"{path}: {other}: copy it to all machines")
        return job.rows(self._todo.device)


def _enter(folder: str) -> None:
    """Work in the folder of the machine that asked, where it exists: file names may be relative."""
    with suppress(FileNotFoundError):
        os.chdir(folder)

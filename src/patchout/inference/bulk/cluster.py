"""The engine of a Ray cluster for `inference.bulk.run`: tasks decode, actors hold the models and write the shards."""

import importlib.util
import logging
import os
import pickle
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch

from patchout.audio.stream import Channel
from patchout.checkpoint.download import file_sha256
from patchout.checkpoint.zoo import locate
from patchout.data.items import Item
from patchout.errors import InputError
from patchout.inference.bulk.ahead import Sound, decode
from patchout.inference.bulk.folder import HALVES, EmbedJob, shard_name
from patchout.inference.bulk.run import (
    NO_PLACES,
    Engine,
    Steps,
    Todo,
    embed_shards,
    load_embedder,
    open_threads,
)
from patchout.inference.embedding import Embedder
from patchout.job_folder import Folder
from patchout.models.tagger import TaggerConfig

BLOCK_BYTES = (
    2**28
)  # decoded sounds that a task hands to an actor, which decodes the rest of the shard itself
CORES = 4  # where there is no GPU: one of them decodes, the others run one model
CONNECT_S = 5.0


class Actors(NamedTuple):
    """How many models run at a time, and what each of them takes of the cluster."""

    models: int
    cores: int
    gpus: int


def ray_engine() -> Engine:
    """The engine that runs on the Ray that is initialised here, on the cluster at RAY_ADDRESS, or on a local one.

    All machines must reach files, model and output under the names given. The device is auto, cpu or cuda; there is a
    model per GPU, or per CORES cores. What a killed worker held is done again by another one.
    Raises ValueError without Ray; the engine OSError if no cluster answers, a worker cannot write, or Ray gives up.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("a job on a cluster needs Ray: pip install 'patchout[ray]'")
    return _run


def _run(todo: Todo) -> Steps:
    model = load_embedder(todo.job, "cpu").model.config  # refuses a job before Ray starts
    with _connected():
        for shard, seconds in _results(todo, model, _actors_here(todo.device)):
            yield len(todo.items_of(shard)), seconds
    folder = Folder(todo.out)
    if missing := sorted({shard_name(shard) for shard in todo.shards} - folder.names()):
        raise InputError(
            f"{todo.out}: {len(missing)} shards were written, but not here ({missing[0]} is one): "
            "give a folder that all machines share, or a URL"
        )
    for aside in folder.path.glob(HALVES) if folder.path else ():  # of killed workers
        aside.unlink()


# -- on the machine that asks -----------------------------------------------------------------------------------------


@contextmanager
def _connected() -> Iterator[None]:
    """Use the Ray that is initialised, else connect to one or start one for the time of the job."""
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
    """Knock at a cluster's host:port: Ray itself waits for minutes, and then ends the process."""
    host, _, port = address.removeprefix("ray://").partition("/")[0].rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise OSError(
                f"no Ray cluster answers at RAY_ADDRESS={address} ({error}): "
                "start it, correct the address, or unset it to run on this machine alone"
            ) from None


def _actors_here(device: str) -> Actors:
    """`plan_actors` for the machines of this cluster."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [int(machine.get("CPU", 0)) for machine in machines]
    return plan_actors(cores, int(sum(machine.get("GPU", 0) for machine in machines)), device=device)


def plan_actors(cores: Sequence[int], gpus: int, *, device: str = "auto") -> Actors:
    """One model per GPU, or per CORES cores of each machine (of the largest, if all are smaller).

    At least one core of the cluster decodes; a cluster of one core is shared.
    """
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not gpus):
        raise ValueError(
            f"no device {device!r} on this cluster: here are auto, {'cuda, ' if gpus else ''}cpu"
        )
    if gpus and device != "cpu":
        return Actors(gpus, cores=0, gpus=1)
    places = max(1, min(CORES, max(cores)))
    models = max(1, sum(number // places for number in cores))
    return Actors(models, cores=min(max(1, places - 1), max(0, sum(cores) - 1) // models), gpus=0)


def _results(todo: Todo, model: TaggerConfig, actors: Actors) -> Iterator[tuple[int, float]]:
    """Run the shards: number and seconds of sound of each, once it is written."""
    import ray
    import ray.data

    folder = str(Path.cwd())
    heard = {"rate": model.mel.sample_rate, "channel": model.channel, "folder": folder}
    blocks = [
        pa.table({"shard": [shard], "content": [pickle.dumps(todo.items_of(shard))]}) for shard in todo.shards
    ]
    shards = ray.data.from_arrow(blocks)  # a shard is a block, a task, and a row
    shards.context.enable_progress_bars = False
    shards.context.print_on_execution_start = False
    shards.context.raise_original_map_exception = True
    written = shards.map_batches(
        decode_shard, batch_size=1, batch_format="pyarrow", fn_kwargs=heard, num_cpus=1
    ).map_batches(
        Model,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors.models),
        fn_constructor_args=(todo.job, todo.out, actors, folder, todo.places),
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
        raise OSError(
            f"Ray gave up ({type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}); "
            "finished shards stay: start the same job again to go on"
        ) from error


# -- on the workers ---------------------------------------------------------------------------------------------------


def decode_shard(table: pa.Table, *, rate: int, folder: str, channel: Channel = "mean") -> pa.Table:
    """One row (shard, its items) -> (shard, the first of them decoded, as many as BLOCK_BYTES hold, and the rest)."""
    _enter(folder)
    items: Sequence[Item] = pickle.loads(table["content"][0].as_py())
    sounds: list[Sound] = []
    held = 0
    while len(sounds) < len(items) and held < BLOCK_BYTES:
        sounds.append(decode(items[len(sounds)], rate, channel=channel))
        held += sounds[-1].num_bytes
    content = pickle.dumps((sounds, items[len(sounds) :]), protocol=5)
    return pa.table({"shard": table["shard"], "content": pa.array([content], pa.large_binary())})


class Model:
    """An actor: loads the job's model with its first shard, and writes the shards that it is given."""

    def __init__(
        self,
        job: EmbedJob,
        out: str,
        actors: Actors,
        folder: str,
        places: Mapping[int, Sequence[int]] = NO_PLACES,
    ) -> None:
        _enter(folder)
        torch.set_num_threads(max(1, actors.cores))
        self._job, self._out, self._places, self._device = job, out, places, "cuda" if actors.gpus else "cpu"

    def __call__(self, table: pa.Table) -> pa.Table:
        """One row of `decode_shard` -> (shard, audio_s, problem: why it could not be written, or null)."""
        shard, audio_s, problem = table["shard"][0].as_py(), 0.0, None
        try:
            sounds, rest = pickle.loads(table["content"][0].as_py())
            embedder = self._embedder
            with open_threads(embedder) as threads, closing(threads.decoded(rest, embedder)) as late:
                shards = [(shard, chain(sounds, late))]
                steps = embed_shards(embedder, shards, self._job, self._out, threads, places=self._places)
                audio_s = sum(seconds for _, seconds in steps)
        except (OSError, ValueError) as error:
            problem = f"{shard_name(shard)}: {error}"
        columns = {"shard": pa.int64(), "audio_s": pa.float64(), "problem": pa.string()}
        return pa.table([[shard], [audio_s], [problem]], schema=pa.schema(columns))

    @cached_property
    def _embedder(self) -> Embedder:
        """The job's model on this machine, if it is the very one."""
        path = locate(self._job.model)
        if file_sha256(path) != self._job.model_sha256:
            raise InputError(
                f"{path}: is another model than on the machine that asked: copy it to all machines"
            )
        return load_embedder(self._job, self._device)


def _enter(folder: str) -> None:
    """Give relative names their meaning, on machines that have the folder."""
    with suppress(FileNotFoundError):
        os.chdir(folder)

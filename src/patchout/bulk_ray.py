"""The bulk job on a Ray cluster: tasks decode, actors hold the models and write the same shards as `bulk.run`."""

import importlib.util
import logging
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch

from patchout import bulk
from patchout.download import file_sha256
from patchout.embedding import Embedder
from patchout.errors import InputError
from patchout.zoo import locate

BLOCK_BYTES = 2**28  # decoded sounds that a task hands to an actor, which decodes the rest of the shard itself
CORES = 4  # where there is no GPU: one of them decodes, the others run one model


class Actors(NamedTuple):
    """How many models run at a time, and what each of them takes of the cluster."""

    models: int
    cores: int
    gpus: int


def run_on_ray(
    items: Sequence[bulk.Item],
    job: bulk.EmbedJob,
    out: str,
    *,
    device: str = "auto",
    on_progress: bulk.Progress = lambda *_: None,
    model_actors: int | None = None,
) -> bulk.Summary:
    """`bulk.run` on the Ray that is initialised here, on the cluster at RAY_ADDRESS, or on a local one for this job.

    All machines must reach files, model and `out` under the names given. `device` is auto, cpu or cuda;
    `model_actors` is one per GPU, or one per CORES cores. What a killed worker held is done again by another one.
    Raises what `bulk.run` raises, ValueError without Ray, and OSError if a worker cannot write or Ray gives up.
    """
    if not has_ray():
        raise ValueError("a job on a cluster needs Ray: pip install 'patchout[ray]'")
    if not items:
        raise ValueError("no items to embed: name sound files, folders, patterns or lists")
    if model_actors is not None and model_actors < 1:
        raise ValueError(f"model_actors must be at least 1, got {model_actors}")
    count = bulk.num_shards(len(items), job)
    audio_s = 0.0
    with bulk.only_writer(out):
        items_sha256 = bulk.items_hash(items)
        finished = bulk.open_job(out, job, items_sha256, len(items))
        pending = {
            index: items[index * job.shard_rows : (index + 1) * job.shard_rows]
            for index in range(count)
            if index not in finished
        }
        on_progress(len(items) - sum(map(len, pending.values())), 0.0)
        if pending:
            rate = bulk.load_embedder(job, "cpu").model.config.mel.sample_rate  # refuses a job before Ray starts
            with _connected():
                actors = _actors_here(device, model_actors)
                for index, seconds in _results(pending, job, out, rate, actors):
                    audio_s += seconds
                    on_progress(len(pending[index]), seconds)
            _check_all_here(out, set(pending) - bulk.open_job(out, job, items_sha256, len(items)))
        return bulk.summarize(out, len(items), count, audio_s=audio_s)


def has_ray() -> bool:
    """Whether the extra `ray` is installed."""
    return importlib.util.find_spec("ray") is not None


# -- on the machine that asks -----------------------------------------------------------------------------------------


@contextmanager
def _connected() -> Iterator[None]:
    """Use the Ray that is initialised, else connect to one or start one for the time of the job."""
    import ray
    import ray.data

    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its news would break the progress bar
    try:
        if ray.is_initialized():
            yield
        else:
            with _own_session():
                yield
    finally:
        logger.setLevel(level)


@contextmanager
def _own_session() -> Iterator[None]:
    """A Ray that ends with the job. Its environment can be set from outside, to debug it."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a local cluster reports to nobody
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters arrives as an exception
    ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    try:
        yield
    finally:
        ray.shutdown()


def _actors_here(device: str, models: int | None) -> Actors:
    """`plan_actors` for the machines of this cluster."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [int(machine.get("CPU", 0)) for machine in machines]
    return plan_actors(cores, int(sum(machine.get("GPU", 0) for machine in machines)), device=device, models=models)


def plan_actors(cores: Sequence[int], gpus: int, *, device: str = "auto", models: int | None = None) -> Actors:
    """One model per GPU, or per CORES cores of each machine (of the largest, if all are smaller), or as many as asked.

    At least one core of the cluster decodes; a cluster of one core is shared.
    """
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not gpus):
        raise ValueError(f"no device {device!r} on this cluster: here are auto, {'cuda, ' if gpus else ''}cpu")
    if gpus and device != "cpu":
        return Actors(models or gpus, cores=0, gpus=1)
    places = max(1, min(CORES, max(cores)))
    models = models or max(1, sum(number // places for number in cores))
    return Actors(models, cores=min(max(1, places - 1), max(0, sum(cores) - 1) // models), gpus=0)


def _results(
    pending: Mapping[int, Sequence[bulk.Item]], job: bulk.EmbedJob, out: str, rate: int, actors: Actors
) -> Iterator[tuple[int, float]]:
    """Run the shards: number and seconds of sound of each, once it is written."""
    import ray
    import ray.data

    folder = str(Path.cwd())
    blocks = [pa.table({"index": [index], "content": [pickle.dumps(items)]}) for index, items in pending.items()]
    shards = ray.data.from_arrow(blocks)  # a shard is a block, a task, and a row
    shards.context.enable_progress_bars = False
    shards.context.print_on_execution_start = False
    shards.context.raise_original_map_exception = True
    written = shards.map_batches(
        decode_shards, batch_size=1, batch_format="pyarrow", fn_kwargs={"rate": rate, "folder": folder}, num_cpus=1
    ).map_batches(
        Model,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors.models),
        fn_constructor_args=(job, out, actors, folder),
        num_cpus=actors.cores,
        num_gpus=actors.gpus,
    )
    try:
        for table in written.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in table.to_pylist():
                if row["problem"] is not None:
                    raise OSError(row["problem"])
                yield row["index"], row["audio_s"]
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", error)
        raise OSError(
            f"Ray gave up ({type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}); "
            "finished shards stay: start the same job again to go on"
        ) from error


def _check_all_here(out: str, missing: set[int]) -> None:
    """Refuse a folder that the workers did not share, and remove what killed ones left in it."""
    if missing:
        raise InputError(
            f"{out}: {len(missing)} shards were written, but not here ({bulk.shard_name(min(missing))} is one): "
            "give a folder that all machines share, or a URL"
        )
    if "://" not in out:
        for aside in Path(out).glob(".part-*.parquet"):
            aside.unlink()


# -- on the workers ---------------------------------------------------------------------------------------------------


def decode_shards(table: pa.Table, *, rate: int, folder: str) -> pa.Table:
    """(index, items) -> (index, items and the first of them decoded), as many as BLOCK_BYTES hold."""
    _enter(folder)
    decoded = []
    for row in table.to_pylist():
        items = pickle.loads(row["content"])
        sounds, held = [], 0
        for item in items:
            if held >= BLOCK_BYTES:
                break
            sounds.append(bulk.decode(item, rate))
            held += sounds[-1].num_bytes
        decoded.append(pickle.dumps((items[len(sounds) :], sounds), protocol=5))
    return pa.table({"index": table["index"], "content": pa.array(decoded, pa.large_binary())})


class Model:
    """An actor: loads the job's model with its first shard, and writes the shards that it is given."""

    def __init__(self, job: bulk.EmbedJob, out: str, actors: Actors, folder: str) -> None:
        _enter(folder)
        torch.set_num_threads(max(1, actors.cores))
        self._job = job
        self._out = out
        self._device = "cuda" if actors.gpus else "cpu"

    def __call__(self, table: pa.Table) -> pa.Table:
        """(index, content of `decode_shards`) -> (index, audio_s, problem: why it could not be written, or null)."""
        seconds: list[float] = []
        problems: list[str | None] = []
        for row in table.to_pylist():
            durations: list[float] = []
            problem = None
            try:
                self._write(row["index"], row["content"], durations)
            except (OSError, ValueError) as error:
                problem = f"{bulk.shard_name(row['index'])}: {error}"
            seconds.append(sum(durations))
            problems.append(problem)
        audio_s, problem_column = pa.array(seconds, pa.float64()), pa.array(problems, pa.string())
        return pa.table({"index": table["index"], "audio_s": audio_s, "problem": problem_column})

    @cached_property
    def _embedder(self) -> Embedder:
        """The job's model on this machine, if it is the very one."""
        path = locate(self._job.model)
        if file_sha256(path) != self._job.model_sha256:
            raise InputError(f"{path}: is another model than on the machine that asked: copy it to all machines")
        return bulk.load_embedder(self._job, self._device)

    def _write(self, index: int, content: bytes, durations: list[float]) -> None:
        """Embed what is decoded, then what is not, and note the durations."""
        items, sounds = pickle.loads(content)
        rate = self._embedder.model.config.mel.sample_rate
        with closing(bulk.decode_ahead(items, rate)) as late:

            def noted() -> Iterator[bulk.Sound]:
                for sound in chain(sounds, late):
                    durations.append(sound.duration_s)
                    yield sound

            bulk.write_shard(bulk.embed_shard(self._embedder, noted(), self._job), self._out, index, self._job)


def _enter(folder: str) -> None:
    """Give relative names their meaning, on machines that have the folder."""
    with suppress(FileNotFoundError):
        os.chdir(folder)

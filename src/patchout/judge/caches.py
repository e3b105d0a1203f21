"""Embeddings and statistics kept before: ours, and those of av-benchmark and stable-audio-metrics."""

import io
import json
import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import patchout
from patchout.audio.remarks import Remark
from patchout.checkpoint.weights import read_file
from patchout.checkpoint.zoo import load
from patchout.data.job_folder import JOB
from patchout.errors import InputError
from patchout.files import write_aside
from patchout.inference.bulk.folder import embeddings
from patchout.judge.embed import Key, Rows, job_from, key_of, read
from patchout.judge.gaussian import Statistics
from patchout.judge.protocols import Protocol

AV_LOGITS, AV_FEATURES = "passt_logits.pth", "passt_features_embed.pth"
CACHES = (AV_LOGITS, AV_FEATURES)
PICKLES = (".pkl", ".pickle")
SUM_TOLERANCE = 0.01  # of probabilities that were kept in float16
_BUILDERS: tuple[Any, ...] = (  # what pickled arrays, numbers of numpy and tensors are made by
    *(np.zeros(1).__reduce__()[0], np.float32().__reduce__()[0], np.zeros(1).__reduce_ex__(5)[0]),
    *(np.ndarray, np.dtype, torch._utils._rebuild_tensor_v2),
)
_HARMLESS = {  # names in a pickle -> what they stand for
    ("collections", "OrderedDict"): dict,
    ("torch.storage", "_load_from_bytes"): lambda data: torch.load(io.BytesIO(data), weights_only=True),
    ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    **{
        (builder.__module__.replace("numpy._core", "numpy.core"), builder.__name__): builder
        for builder in _BUILDERS
    },
}


@dataclass(frozen=True, eq=False)
class Judged:
    """A set: its clips by id, and what a model says of them."""

    name: str
    ids: tuple[str, ...]
    tables: Mapping[Key | None, Rows]  # under None: by the rules of no protocol
    files: tuple[str, ...] = ()  # none, where the embeddings do not say
    remarks: Mapping[int, Remark] = field(default_factory=dict)
    durations_s: Mapping[int, float] = field(default_factory=dict)
    failed: Mapping[int, str] = field(default_factory=dict)
    statistics: Statistics | None = None  # of a saved reference, which has nothing else
    model_sha256: str = ""

    def rows(self, protocol: Protocol, metric: str) -> Rows:
        """What a protocol looks at for a metric."""
        key = key_of(protocol, metric)
        if key not in self.tables and None not in self.tables:
            raise InputError(f"{self.name}: {metric} was not asked for, so its windows were not embedded")
        return self.tables[key] if key in self.tables else self.tables[None]


def is_kept(path: Path) -> bool:
    """Whether a file or folder holds embeddings or statistics, by its name and what lies in it."""
    if path.suffix.lower() in (".npz", *PICKLES) or path.name in CACHES:
        return True
    return any((path / name).is_file() for name in CACHES) or _about(_shards(path)) is not None


def read_kept(path: Path, keys: Sequence[Key], protocols: Sequence[Protocol]) -> Judged:
    """The set in such a file or folder; nothing in it is run. InputError: rules or content do not fit."""
    if path.suffix.lower() == ".npz":
        return _saved(path, protocols)
    if path.suffix.lower() in PICKLES:
        return _probabilities(path)
    shards = _shards(path)
    if settings := _about(shards):
        _check_finished(path, len(shards))
        return _ours(path, shards, settings, keys)
    return _of_av_benchmark(path.parent if path.name in CACHES else path)


def _shards(path: Path) -> list[Path]:
    single = [path] if path.suffix == ".parquet" and path.is_file() else []
    return sorted(path.glob("part-*.parquet")) or single


def _about(shards: Sequence[Path]) -> dict[str, Any] | None:
    """What our shards say of their job."""
    try:
        text = (pq.read_schema(shards[0]).metadata or {}).get(b"patchout.job") if shards else None
    except pa.ArrowInvalid as error:
        raise InputError(f"{shards[0]}: is no Parquet file, or damaged ({error}): make it again") from None
    return json.loads(text) if text else None


def longest_s(paths: Sequence[Path]) -> float:
    """Seconds that the model of kept embeddings takes, by their windows; infinite where they do not say."""
    jobs = [settings for settings in map(_about, map(_shards, paths)) if settings and "views" in settings]
    return min((view["clip"]["window_s"] for job in jobs for view in job["views"]), default=math.inf)


# -- ours -------------------------------------------------------------------------------------------------


def _check_finished(path: Path, num_shards: int) -> None:
    """Refuse a part of a job's shards, which would be judged as if it were the whole set."""
    if (path / JOB).is_file():
        settings = json.loads((path / JOB).read_text(encoding="utf-8"))
        expected = -(-settings["items"] // settings["shard_rows"])
        if num_shards < expected:
            reason = f"holds {num_shards} of {expected} shards, its job was interrupted"
            raise InputError(f"{path}: {reason}: run the command that wrote it again")


def _ours(path: Path, shards: Sequence[Path], settings: dict[str, Any], keys: Sequence[Key]) -> Judged:
    """The shards of a judgement, or the scenes of `patchout embed`."""
    if "views" in settings:
        job = job_from(settings)
        if strange := [key for key in keys if key.view not in job.views]:
            raise InputError(
                f"{path}: was not made by the rules {strange[0].view}: give the sounds themselves"
            )
        reading = read(_tables(shards), job, keys)
        files = reading.files
        return Judged(
            str(path), _stems(files), reading.tables, files, reading.remarks, reading.durations_s,
            reading.failed, model_sha256=settings["model_sha256"],
        )  # fmt: skip
    levels = settings["scene_levels"]
    if settings["kind"] != "scene" or "low" in levels:
        raise InputError(
            f"{path}: holds {settings['kind']} embeddings of {levels}: embed scenes of mid and high"
        )
    table = pa.concat_tables(_tables(shards))
    table = table.filter(table["embedding"].is_valid())
    values, files = embeddings(table), tuple(table["file"].to_pylist())
    num_classes = len(load(settings["model"], "cpu").config.labels) if "high" in levels else 0
    if levels[0] == "mid":
        values = np.roll(values, num_classes, axis=1)
    rows = Rows(values, num_classes, np.arange(len(values)))
    return Judged(str(path), _stems(files), {None: rows}, files, model_sha256=settings["model_sha256"])


def _tables(shards: Sequence[Path]) -> Iterator[pa.Table]:
    for shard in shards:
        with pq.ParquetFile(shard) as file:
            yield from (file.read_row_group(group, use_threads=False) for group in range(file.num_row_groups))


def _stems(files: Sequence[str]) -> tuple[str, ...]:
    return tuple(Path(file).stem for file in files)


def save_reference(path: Path, statistics: Statistics, protocol: Protocol, model_sha256: str) -> None:
    """Write the statistics of a reference with the rules behind them (.npz)."""
    settings = {"rules": protocol.rules(), "model_sha256": model_sha256, "version": patchout.__version__}
    with write_aside(path) as aside, aside.open("wb") as file:
        count, text = np.array(statistics.count), np.array(json.dumps(settings))
        np.savez(file, settings=text, count=count, mean=statistics.mean, scatter=statistics.scatter)


def _saved(path: Path, protocols: Sequence[Protocol]) -> Judged:
    try:
        with np.load(path, allow_pickle=False) as content:
            settings = json.loads(str(content["settings"]))
            statistics = Statistics(int(content["count"]), content["mean"], content["scatter"])
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: no statistics that --save-reference wrote ({error})") from None
    for protocol in protocols:
        rules = json.loads(json.dumps(protocol.rules()))
        if different := [name for name, rule in rules.items() if settings["rules"].get(name) != rule]:
            raise InputError(
                f"{path}: was made by the protocol {settings['rules'].get('name')}, which differs from "
                f"{protocol.name} in {', '.join(different)}: give the sounds of the reference"
            )
    return Judged(str(path), (), {}, statistics=statistics, model_sha256=settings["model_sha256"])


# -- other tools' -----------------------------------------------------------------------------------------


def _of_av_benchmark(folder: Path) -> Judged:
    """Its caches: a dictionary from stems to tensors in each of two files."""
    parts: dict[str, dict[str, np.ndarray]] = {name: {} for name in CACHES}
    for name in filter(lambda name: (folder / name).is_file(), parts):
        content = read_file(folder / name).tensors
        parts[name] = {str(key): _vector(value, folder / name) for key, value in content.items()}
    return _of_vectors(str(folder), *parts.values())


class _Unpickler(pickle.Unpickler):
    """Builds dictionaries, arrays and tensors, and refuses the name of anything else."""

    def find_class(self, module: str, name: str) -> Any:
        address = (module.replace("numpy._core", "numpy.core"), name)  # numpy 2 has moved them
        if address not in _HARMLESS:
            raise pickle.UnpicklingError(f"a {module}.{name} stands in it")
        return _HARMLESS[address]


def _probabilities(path: Path) -> Judged:
    """The pickled dictionary of stable-audio-metrics, from ids to probabilities."""
    try:
        with path.open("rb") as file:
            content = _Unpickler(file).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(
            f"{path}: is no pickled dictionary of tensors ({error}), and nothing in a file is run"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a dictionary from ids to tensors")
    vectors, tiny = dict[str, np.ndarray](), np.finfo(np.float32).tiny
    for key, value in content.items():
        probabilities = _vector(value, path)
        if not (probabilities.min(initial=0.0) >= 0 and abs(probabilities.sum() - 1) < SUM_TOLERANCE):
            reason = f"the values of {key} are no probabilities, which are not negative and add up to 1"
            raise InputError(f"{path}: {reason}: store a softmax over the classes")
        vectors[str(key)] = np.log(np.maximum(probabilities, tiny))
    return _of_vectors(str(path), vectors, {})


def _vector(value: Any, path: Path) -> np.ndarray:
    if not isinstance(value, torch.Tensor | np.ndarray):
        raise InputError(f"{path}: holds a {type(value).__name__} where a tensor is expected")
    return np.asarray(value, np.float32).reshape(-1)


def _of_vectors(name: str, logits: Mapping[str, np.ndarray], features: Mapping[str, np.ndarray]) -> Judged:
    """A set of vectors by id, in the order of the first."""
    parts = [part for part in (logits, features) if part]
    sizes = [{len(vector) for vector in part.values()} for part in parts]
    if not parts or any(len(lengths) > 1 for lengths in sizes):
        raise InputError(f"{name}: needs vectors of one size by id, holds {sizes or 'none'}: make it anew")
    if parts[0].keys() != parts[-1].keys():
        raise InputError(f"{name}: has features and logits of different clips: make both anew")
    values = np.stack([np.concatenate([part[key] for part in parts]) for key in parts[0]])
    if not (is_finite := np.isfinite(values).all(axis=1)).all():
        strange = f"{(~is_finite).sum()} of {len(values)} clips hold NaN or infinite values"
        first = [*parts[0]][int(is_finite.argmin())]
        raise InputError(f"{name}: {strange} ({first} is one): make them anew, or leave them out")
    rows = Rows(values, len(next(iter(logits.values()))) if logits else 0, np.arange(len(values)))
    return Judged(name, tuple(parts[0]), {None: rows})

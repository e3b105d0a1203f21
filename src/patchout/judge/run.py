"""Generated audio judged by a reference: by one protocol, or by several on one decoding."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from patchout.checkpoint.labels import label_names
from patchout.checkpoint.zoo import load
from patchout.errors import InputError
from patchout.files import finite
from patchout.judge import caches
from patchout.judge.caches import Judged, is_kept, read_kept
from patchout.judge.embed import JudgeJob, Key, job_of, key_of, longest_s
from patchout.judge.measures import MEASURES, FileRecord, Sets, file_records, logits_of, remarks_on
from patchout.judge.metrics import Estimate
from patchout.judge.protocols import METRICS, PROTOCOLS, Protocol, protocol_of
from patchout.judge.sets import Settings, Sounds, embedded, pairs_in, sounds_of
from patchout.models.tagger import TaggerConfig

PUBLISHED = "passt-s"
PUBLISHED_SHA256 = "302903fa8c4aee817b11dc982da0b29aaf8d11a3e722420476d0a12c9db70c2c"  # of its file, 2026-08


@dataclass(frozen=True, eq=False)
class Judgement:
    """The numbers of one protocol, the rules behind them, and what a reader should know of them."""

    protocol: Protocol
    model: str
    model_sha256: str
    sets: Sets
    values: dict[str, Estimate]
    more: dict[str, float]
    left_out: dict[str, str]  # metric -> why
    warnings: tuple[str, ...]
    labels: tuple[str, ...] = field(repr=False)

    def files(self) -> list[FileRecord]:
        """A record of every generated clip."""
        return file_records(self.protocol, self.sets, self.labels)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "protocol": self.protocol.name,
            "values": {name: finite(value._asdict()) for name, value in self.values.items()},
            "more": self.more,
            "left_out": self.left_out,
            "warnings": list(self.warnings),
            "model": self.model,
            "model_sha256": self.model_sha256,
            **{name: _counts(each) for name, each in zip(("generated", "reference"), self.sets, strict=True)},
            "rules": self.protocol.rules(),
        }


def _counts(judged: Judged) -> dict[str, Any]:
    clips = judged.statistics.count if judged.statistics else len(judged.ids)
    return {"name": judged.name, "clips": clips, "failed": len(judged.failed)}


class _Call(NamedTuple):
    """What the judgements of one call share."""

    model: str
    model_sha256: str
    config: TaggerConfig | None  # None: nothing was embedded here
    metrics: tuple[str, ...]  # that were asked for; none: each protocol's


def judge(
    generated: str,
    reference: str = "",
    *,
    protocol: str | Protocol = "av-benchmark",
    metrics: Sequence[str] = (),
    model: str = PUBLISHED,
    settings: Settings | None = None,
) -> Judgement:
    """Judge a set by a reference: folders, lists, patterns, or what `caches.is_kept`.

    Without a reference `generated` is a list with the columns generated and reference. Without metrics those
    of the protocol; a metric that cannot be had is left out then, and an InputError where it was asked for.
    """
    return compare(
        generated, reference, protocols=[protocol], metrics=metrics, model=model, settings=settings
    )[0]


def compare(
    generated: str,
    reference: str = "",
    *,
    protocols: Sequence[str | Protocol] = tuple(PROTOCOLS),
    metrics: Sequence[str] = (),
    model: str = PUBLISHED,
    settings: Settings | None = None,
) -> list[Judgement]:
    """`judge` by several protocols; every sound is decoded once."""
    if unknown := [metric for metric in metrics if metric not in METRICS]:
        raise ValueError(f"no metric {unknown[0]!r}: there are {', '.join(METRICS)}")
    listener, names = settings or Settings(), [name for name in (generated, reference) if name]
    paths = [Path(name).expanduser() for name in names]
    config = None if len(paths) == 2 and all(map(is_kept, paths)) else load(model, "cpu").config
    chosen = [protocol_of(each) if isinstance(each, str) else each for each in protocols]
    seconds = longest_s(config) if config is not None else caches.longest_s(paths)
    chosen = [each.scaled(seconds) for each in chosen]
    keys = [*dict.fromkeys(key_of(each, metric) for each in chosen for metric in metrics or each.metrics)]
    job = job_of(model, config, keys) if config else None
    sets = _sets(names, chosen, job, keys, listener)
    sha256 = job.model_sha256 if job else sets[0].model_sha256
    call = _Call(model if job else "", sha256, config, tuple(metrics))
    judgements = [_judgement(each, sets, call) for each in chosen]
    if not any(each.values for each in judgements):
        reasons = dict.fromkeys(reason for each in judgements for reason in each.left_out.values())
        raise InputError("; ".join(reasons))
    return judgements


def _sets(
    names: Sequence[str],
    protocols: Sequence[Protocol],
    job: JudgeJob | None,
    keys: Sequence[Key],
    settings: Settings,
) -> Sets:
    """The sets of one list or two arguments, embedded where they are sounds (there is a job then)."""
    sources: list[Sounds | Path]
    if len(names) == 1:
        sources = [*pairs_in(names[0], settings.on_note)]
    else:
        paths = ((name, Path(name).expanduser()) for name in names)
        sources = [path if is_kept(path) else sounds_of(name, settings.on_note) for name, path in paths]
    embeddings = {each: read_kept(each, keys, protocols) for each in sources if isinstance(each, Path)}
    models = {each.model_sha256 for each in embeddings.values()} | {job.model_sha256 if job else ""}
    if len(models - {""}) > 1:
        raise InputError(
            f"{' and '.join(names)}: the embeddings are of different models: give the sounds of one of them"
        )
    sets: list[Judged] = []
    for each in sources:
        if isinstance(each, Path):
            sets.append(embeddings[each])
        else:
            assert job, "sounds need one"
            sets.append(embedded(each, job, keys, settings, is_reference=bool(sets)))
    return sets[0], sets[1]


def _judgement(protocol: Protocol, sets: Sets, call: _Call) -> Judgement:
    values, more, left_out = dict[str, Estimate](), dict[str, float](), dict[str, str]()
    for metric in call.metrics or protocol.metrics:
        try:
            values[metric], extra = MEASURES[metric](protocol, sets)
            more |= extra
        except InputError as error:
            if call.metrics:
                raise
            left_out[metric] = str(error)
    warnings = (*_on_model(protocol, call), *remarks_on(protocol, sets, [*values]))
    labels = _labels(sets, protocol, call)
    return Judgement(
        protocol, call.model, call.model_sha256, sets, values, more, left_out, warnings, labels
    )  # fmt: skip


def _on_model(protocol: Protocol, call: _Call) -> Iterator[str]:
    """Why the numbers of this model compare with no published ones."""
    if call.config is None:
        return
    if call.model != PUBLISHED:
        yield f"{call.model} is not {PUBLISHED}: these numbers compare with those of the same model alone"
    elif call.model_sha256 != PUBLISHED_SHA256:
        yield f"the SHA-256 of {PUBLISHED} is {call.model_sha256}, published is {PUBLISHED_SHA256}"
    original = PROTOCOLS.get(protocol.name, protocol)
    if protocol.clip.window_s < original.clip.window_s:
        yield f"{call.model} takes {protocol.clip.window_s:g} s at a time, not {original.clip.window_s:g}"


def _labels(sets: Sets, protocol: Protocol, call: _Call) -> tuple[str, ...]:
    """Names of the classes."""
    if call.config is not None:
        return call.config.labels
    try:
        num_classes = logits_of(sets[0], protocol)[0].shape[1]
    except InputError:
        return ()
    names = tuple(label_names("audioset"))
    return names if len(names) == num_classes else tuple(f"class {number}" for number in range(num_classes))

"""What a protocol says of two sets: its metrics, warnings about them, and a record of every file."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from patchout.errors import InputError
from patchout.judge.caches import Judged
from patchout.judge.embed import Rows
from patchout.judge.gaussian import Statistics, frechet_infinite, frechet_interval, statistics
from patchout.judge.metrics import (
    BLOCK,
    CHUNKS,
    MAX_KERNEL,
    Direction,
    Estimate,
    divergences,
    inception,
    kernel,
    mean_interval,
    nearest,
)
from patchout.judge.protocols import Protocol
from patchout.judge.sets import Pairs, pairs_of

MAX_DISTANCES = 10**9  # of the search for nearest clips
SMALL_CHUNK = 527  # clips of a chunk, whose number limits the score below that of the classes
MAX_NAMES = 3  # of files that a remark quotes
MAX_CLASSES = 8  # that a record names
RATE = 32_000  # Hz, of every PaSST

Sets = tuple[Judged, Judged]
Table = Float[np.ndarray, "_ _"]
Measured = tuple[Estimate, dict[str, float]]
REVERSE: dict[Direction, Direction] = {
    "reference-generated": "generated-reference",
    "generated-reference": "reference-generated",
}


class FileRecord(NamedTuple):
    """A generated clip beside its pair and the nearest clip of the reference."""

    id: str
    file: str
    pair: str = ""  # file, or id
    kl: float = np.nan
    nearest: str = ""
    distance: float = np.nan
    classes: tuple[tuple[str, float, float], ...] = ()  # that differ most, with both probabilities


# -- metrics ----------------------------------------------------------------------------------------------


def logits_of(judged: Judged, protocol: Protocol) -> tuple[Table, Rows]:
    """The logits of a set, and their rows; InputError: it has none."""
    if judged.statistics:
        raise InputError(f"{judged.name}: statistics alone have no class scores: give the reference's sounds")
    rows = judged.rows(protocol, "kl")
    if rows.logits is None:
        raise InputError(
            f"{judged.name}: comes of a model without logits: KL and IS need one that knows classes"
        )
    return rows.logits, rows


def features_of(judged: Judged, protocol: Protocol) -> Table:
    """The features of a set; InputError: it has none."""
    if judged.statistics:
        raise InputError(f"{judged.name}: statistics alone hold no clips: give the reference's sounds")
    rows = judged.rows(protocol, "fd")
    features = rows.values if protocol.features == "row" else rows.features
    if features is None or (protocol.features == "row" and rows.features is None):
        raise InputError(f"{judged.name}: holds logits alone: give embeddings with features, or the sounds")
    return features


def _size(features: Table | Statistics) -> tuple[int, int]:
    """Clips, and values of each."""
    if isinstance(features, Statistics):
        return features.count, len(features.mean)
    return len(features), features.shape[1]


def _compared(protocol: Protocol, sets: Sets) -> tuple[Table, Table | Statistics]:
    """The features of both sets, of one size and of enough clips."""
    generated = features_of(sets[0], protocol)
    reference = sets[1].statistics or features_of(sets[1], protocol)
    counts, widths = zip(_size(generated), _size(reference), strict=True)
    if widths[0] != widths[1]:
        names = " and ".join(each.name for each in sets)
        raise InputError(f"{names}: features of {widths[0]} and {widths[1]} values are of different models")
    if min(counts) < 2:
        raise InputError(f"{counts[0]} and {counts[1]} clips: a distance of sets needs 2 or more in each")
    return generated, reference


def _fd(protocol: Protocol, sets: Sets) -> Measured:
    return frechet_interval(*_compared(protocol, sets), diagonal=protocol.diagonal), {}


def _fd_infinite(protocol: Protocol, sets: Sets) -> Measured:
    generated, reference = _compared(protocol, sets)
    if len(generated) < 4:
        raise InputError(f"{sets[0].name}: FD-inf needs 4 clips or more, got {len(generated)}")
    is_kadtk = not protocol.sample_reference
    return frechet_infinite(generated, reference, diagonal=protocol.diagonal, replace=is_kadtk), {}


def _pair_divergences(protocol: Protocol, sets: Sets, pairs: Pairs) -> Float[np.ndarray, "pair"]:
    """KL of every pair, some thousand at a time."""
    generated, reference = (logits_of(each, protocol)[0] for each in sets)
    if generated.shape[1] != reference.shape[1]:
        raise InputError(f"{generated.shape[1]} and {reference.shape[1]} classes: the models differ")
    values = [
        divergences(
            generated[pairs.generated[first : first + BLOCK]],
            reference[pairs.reference[first : first + BLOCK]],
            direction=protocol.direction,
            inside=protocol.inside,
        )
        for first in range(0, len(pairs.generated), BLOCK)
    ]
    return np.concatenate(values)


def _kl(protocol: Protocol, sets: Sets) -> Measured:
    pairs = pairs_of(sets, (logits_of(sets[0], protocol)[1], logits_of(sets[1], protocol)[1]))
    values = _pair_divergences(protocol, sets, pairs)
    reverse = replace(protocol, direction=REVERSE[protocol.direction])
    back = float(_pair_divergences(reverse, sets, pairs).mean())
    more = {"kl_other_direction": back, "kl_both_directions": float(values.mean()) + back}
    return mean_interval(values), more


def _is(protocol: Protocol, sets: Sets) -> Measured:
    logits, _ = logits_of(sets[0], protocol)
    if len(logits) < CHUNKS:
        raise InputError(
            f"{sets[0].name}: an Inception Score needs {CHUNKS} clips or more, got {len(logits)}"
        )
    score = inception(logits)
    return score, {"is_deviation": score.deviation}


def _kad(protocol: Protocol, sets: Sets) -> Measured:
    generated, reference = _compared(protocol, sets)
    if isinstance(reference, Statistics):
        raise InputError(
            f"{sets[1].name}: statistics alone have no kernel distance: give the reference's sounds"
        )
    if max(len(generated), len(reference)) > MAX_KERNEL:
        raise InputError(f"a kernel distance looks at every pair: give at most {MAX_KERNEL} clips a set")
    return kernel(generated, reference), {}


MEASURES: dict[str, Callable[[Protocol, Sets], Measured]] = {
    "fd": _fd,
    "kl": _kl,
    "is": _is,
    "kad": _kad,
    "fd-inf": _fd_infinite,
}


def reference_statistics(protocol: Protocol, judged: Judged) -> Statistics:
    """What is saved of a reference."""
    return judged.statistics or statistics(features_of(judged, protocol))


def pairs_if(protocol: Protocol, sets: Sets) -> Pairs | None:
    """The pairs of two sets with logits; None where there are none."""
    try:
        return pairs_of(sets, (logits_of(sets[0], protocol)[1], logits_of(sets[1], protocol)[1]))
    except InputError:
        return None


# -- what a reader should know ----------------------------------------------------------------------------


def remarks_on(protocol: Protocol, sets: Sets, metrics: Sequence[str]) -> Iterator[str]:
    """What makes the numbers less than they seem, a sentence each."""
    for each in sets:
        yield from _of_files(each, protocol, metrics)
        if None in each.tables:
            yield f"{each.name}: embeddings made elsewhere, by loading rules that are not known here"
        if each.failed:
            yield f"{each.name}: {len(each.failed)} of {len(each.ids)} files cannot be read and do not count"
    if {"fd", "fd-inf"} & {*metrics}:
        yield from _of_size(*_compared(protocol, sets))
    if "is" in metrics and (count := len(logits_of(sets[0], protocol)[0])) < SMALL_CHUNK * CHUNKS:
        yield (
            f"{sets[0].name}: an Inception Score of {count} clips in {CHUNKS} chunks is at most "
            f"{count / CHUNKS:.3g}: compare it with those of as many clips alone"
        )
    digests = [
        {remark.digest: clip for clip, remark in each.remarks.items() if not remark.is_silent}
        for each in sets  # all silent sounds of one length are the same
    ]
    if same := digests[0].keys() & digests[1].keys():
        names = (each.files[of[min(same)]] for each, of in zip(sets, digests, strict=True))
        yield f"the sets overlap: {len(same)} sounds are in both ({' is '.join(names)})"
    if "kl" in metrics and (pairs := pairs_if(protocol, sets)):
        for each, count in zip(sets, (pairs.lone_generated, pairs.lone_reference), strict=True):
            if count:
                yield f"{each.name}: {count} of {len(each.ids)} clips have no pair and do not count in KL"


def _of_files(judged: Judged, protocol: Protocol, metrics: Sequence[str]) -> Iterator[str]:
    """How many files of a set were resampled, are silent, cut or padded."""
    total = len(judged.remarks)
    limit_s = min(protocol.clip.window_s, protocol.clip.cut_s or np.inf)
    is_first = protocol.clip.policy == "first"
    lengths_s = np.array([*judged.durations_s.values()])
    rows = judged.rows(protocol, metrics[0]) if total and metrics else None
    lost = total - len(np.unique(rows.clips)) if rows else 0
    silent = [clip for clip, remark in judged.remarks.items() if remark.is_silent]
    odd = [clip for clip, remark in judged.remarks.items() if remark.warning]
    numbers = {
        f"are not at {RATE} Hz and were resampled": sum(r.rate != RATE for r in judged.remarks.values()),
        f"are silent{_names(judged, silent)}": len(silent),
        f"are longer than {limit_s:g} s and were cut": is_first * np.sum(lengths_s > limit_s + 0.01),
        f"are shorter than {limit_s:g} s and were padded": is_first * np.sum(lengths_s < limit_s - 0.01),
        "are too short for this protocol and do not count": lost,
        f"are damaged or odd{_names(judged, odd)}": len(odd),
    }
    for sentence, number in numbers.items():
        if number:
            yield f"{judged.name}: {number} of {total} files {sentence}"


def _names(judged: Judged, clips: Sequence[int]) -> str:
    """The first of some clips by their files, in brackets."""
    names = ", ".join(judged.files[clip] for clip in clips[:MAX_NAMES]) if judged.files else ""
    return f" ({names}{' ...' if len(clips) > MAX_NAMES else ''})" if names else ""


def _of_size(generated: Table, reference: Table | Statistics) -> Iterator[str]:
    counts, (width, _) = zip(_size(generated), _size(reference), strict=True)
    sizes = f"{counts[0]} and {counts[1]} clips of {width} features"
    if min(counts) <= width:
        yield (
            f"{sizes} are too few: the covariances are not of full rank and FD is far too high; compare sets "
            "of the same sizes, or ask for --metrics fd-inf"
        )
    elif min(counts) < 10 * width:
        yield f"{sizes}: FD is too high, as of all finite sets; --metrics fd-inf extrapolates"


# -- files ------------------------------------------------------------------------------------------------


def file_records(protocol: Protocol, sets: Sets, labels: Sequence[str]) -> list[FileRecord]:
    """A record of every generated clip; the distance only where it is affordable and there are features."""
    generated, names = sets[0], [each.files or each.ids for each in sets]
    records = {
        clip: FileRecord(id, generated.files[clip] if generated.files else "")
        for clip, id in enumerate(generated.ids)
        if clip not in generated.failed
    }
    pairs = pairs_if(protocol, sets)
    if pairs:
        (logits, rows), (reference_logits, reference_rows) = (logits_of(each, protocol) for each in sets)
        values = _pair_divergences(protocol, sets, pairs)
        for row, partner, value in zip(
            pairs.generated.tolist(), pairs.reference.tolist(), values, strict=True
        ):
            clip = int(rows.clips[row])
            if not records[clip].kl >= value:  # of several windows the worst
                classes = _differing(logits[row], reference_logits[partner], labels)
                pair = names[1][reference_rows.clips[partner]]
                records[clip] = records[clip]._replace(pair=pair, kl=float(value), classes=classes)
    try:
        features, reference = _compared(protocol, sets)
    except InputError:
        return [*records.values()]
    if not isinstance(reference, Statistics) and len(features) * len(reference) <= MAX_DISTANCES:
        clips = [each.rows(protocol, "fd").clips.tolist() for each in sets]
        for clip, place, distance in zip(clips[0], *nearest(features, reference), strict=True):
            closest = names[1][clips[1][int(place)]]
            records[clip] = records[clip]._replace(nearest=closest, distance=float(distance))
    return [*records.values()]


def _differing(
    logits: Float[np.ndarray, "class"], reference: Float[np.ndarray, "class"], labels: Sequence[str]
) -> tuple[tuple[str, float, float], ...]:
    """The classes whose probabilities differ most, after a softmax."""
    p, q = (special.softmax(row.astype(np.float64)) for row in (logits, reference))
    order = np.argsort(-np.abs(p - q))[:MAX_CLASSES].tolist()
    return tuple((labels[place], float(p[place]), float(q[place])) for place in order)

"""KL divergence, Inception Score and kernel distance of embeddings, with intervals.

Everything is float64, and reads its arrays in blocks: they may be mapped from a disk.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

BLOCK = 4096  # rows that are float64 at a time
GROUPS = 20  # of clips, which the bootstrap of a kernel distance draws
DRAWS = 200
CHUNKS = 10  # of an Inception Score
MAX_KERNEL = 10_000  # clips of a kernel distance: it looks at every pair

Rows = Float[np.ndarray, "_ _"]
Logits = Float[np.ndarray, "_ _"]
Direction = Literal["reference-generated", "generated-reference"]


class Estimate(NamedTuple):
    """A number and its 95 % interval (NaN: none)."""

    value: float
    low: float = np.nan
    high: float = np.nan
    deviation: float = np.nan  # of an Inception Score's chunks


def around(value: float, *draws: Float[np.ndarray, "draw"], least: float = -np.inf) -> Estimate:
    """A number +- 1.96 of its bootstrap standard error; the variances of independent sets of draws add up.

    Not the draws' quantiles: a resampled set has fewer different clips, which moves a distance as a smaller
    set would.
    """
    half = 1.96 * float(np.sqrt(sum(every.var() for every in draws)))
    return Estimate(value, min(value, max(least, value - half)), value + half)  # rounding may pass `least`


def blocks(rows: Rows) -> Iterator[Rows]:
    """The rows as float64, BLOCK at a time."""
    for first in range(0, len(rows), BLOCK):
        yield np.asarray(rows[first : first + BLOCK], np.float64)


# -- KL divergence, Inception Score ------------------------------------------------------------------


def divergences(
    generated: Logits, reference: Logits, *, direction: Direction = "reference-generated", inside: float = 0.0
) -> Float[np.ndarray, "row"]:
    """KL divergence of each pair of rows after a softmax; `inside` the logarithm of the second one."""
    if generated.shape != reference.shape:
        raise ValueError(f"pairs need as many rows and classes: {generated.shape} and {reference.shape}")
    order = (reference, generated) if direction == "reference-generated" else (generated, reference)
    values = []
    for first, second in zip(*map(blocks, order), strict=True):
        p, log_p = special.softmax(first, axis=1), special.log_softmax(first, axis=1)
        log_q = special.log_softmax(second, axis=1)
        log_q = np.log(np.exp(log_q) + inside) if inside else log_q
        values.append((p * np.where(p > 0, log_p - log_q, 0.0)).sum(axis=1))
    return np.concatenate(values)


def kl(
    generated: Logits, reference: Logits, *, direction: Direction = "reference-generated", inside: float = 0.0
) -> float:
    """Mean KL divergence over pairs, row by row."""
    return float(divergences(generated, reference, direction=direction, inside=inside).mean())


def mean_interval(values: Float[np.ndarray, "row"]) -> Estimate:
    """A mean with its bootstrap interval over rows."""
    if len(values) < 2:
        return Estimate(float(values.mean()))
    rng = np.random.default_rng(0)
    draws = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(DRAWS)]
    return around(float(values.mean()), np.array(draws), least=0.0)


def inception(logits: Logits, *, chunks: int = CHUNKS, seed: int = 2020) -> Estimate:
    """Inception Score: the mean over chunks of exp(mean KL(p || mean p)), and the chunks' deviation.

    The clips are shuffled by `RandomState(seed)`; the bootstrap draws clips within each chunk.
    """
    if len(logits) < chunks:
        raise ValueError(f"an Inception Score of {chunks} chunks needs as many clips, got {len(logits)}")
    order, rng = np.random.RandomState(seed).permutation(len(logits)), np.random.default_rng(0)
    edges = [part * len(logits) // chunks for part in range(chunks + 1)]
    scores, draws = [], np.zeros(DRAWS)
    for first, end in pairwise(edges):
        rows = np.asarray(logits[np.sort(order[first:end])], np.float64)
        p = special.softmax(rows, axis=1)
        inner = (p * special.log_softmax(rows, axis=1)).sum(axis=1)
        scores.append(_inception_of(np.full((1, end - first), 1 / (end - first)), p, inner)[0])
        weights = (
            rng.multinomial(end - first, np.full(end - first, 1 / (end - first))) for _ in range(DRAWS)
        )
        draws += [_inception_of(row[None] / (end - first), p, inner)[0] / chunks for row in weights]
    interval = around(float(np.mean(scores)), draws, least=1.0)
    return interval._replace(deviation=float(np.std(scores)))


def _inception_of(
    weights: Float[np.ndarray, "draw row"], p: Logits, inner: Float[np.ndarray, "row"]
) -> Float[np.ndarray, "draw"]:
    mean = weights @ p
    return np.exp(weights @ inner - special.xlogy(mean, mean).sum(axis=1))


# -- kernel distance ------------------------------------------------------------------------------------


def kernel(generated: Rows, reference: Rows) -> Estimate:
    """Kernel Audio Distance: 100 times the unbiased squared Gaussian MMD, bootstrapped over groups of clips.

    The bandwidth s is the lower median distance within the generated set, gamma 1 / (2 s^2 + 1e-8).
    """
    sets = [np.asarray(rows, np.float64) for rows in (generated, reference)]
    if min(map(len, sets)) < 2 or max(map(len, sets)) > MAX_KERNEL:
        sizes = " and ".join(str(len(rows)) for rows in sets)
        raise ValueError(f"a kernel distance takes 2 to {MAX_KERNEL} clips, got {sizes}")
    among = _squares(sets[0], sets[0])[np.triu_indices(len(sets[0]), 1)]
    middle = (len(among) - 1) // 2
    gamma = 1 / (2 * np.partition(among, middle)[middle] + 1e-8)
    rng = np.random.default_rng(0)
    groups = [np.array_split(rng.permutation(len(rows)), min(GROUPS, len(rows))) for rows in sets]
    sums = {
        (a, b): _group_sums(sets[a], sets[b], gamma, (groups[a], groups[b]))
        for a, b in ((0, 0), (0, 1), (1, 1))
    }
    sizes_of = [np.array([len(group) for group in parts]) for parts in groups]

    def distance(weights: Sequence[Float[np.ndarray, "_"]]) -> float:
        totals = [weight @ count for weight, count in zip(weights, sizes_of, strict=True)]
        value = -2 * weights[0] @ sums[0, 1] @ weights[1] / (totals[0] * totals[1])
        for side, weight in enumerate(weights):
            copies = np.square(weight) @ sizes_of[side]  # pairs of a clip and itself
            value += weight @ sums[side, side] @ weight / (totals[side] ** 2 - copies)
        return float(100 * value)

    counts = [len(parts) for parts in groups]
    draws = []
    for _ in range(DRAWS):
        drawn = [rng.multinomial(count, np.full(count, 1 / count)).astype(float) for count in counts]
        if all(np.square(w) @ n < (w @ n) ** 2 for w, n in zip(drawn, sizes_of, strict=True)):
            draws.append(distance(drawn))
    value = distance([np.ones(count) for count in counts])
    return around(value, np.array(draws)) if draws else Estimate(value)


def _squares(x: Rows, y: Rows) -> Float[np.ndarray, "row other"]:
    """Squared distances of every pair."""
    sums = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)
    return np.maximum(sums - 2 * x @ y.T, 0.0)


def _group_sums(
    x: Rows, y: Rows, gamma: float, groups: tuple[list[np.ndarray], list[np.ndarray]]
) -> Float[np.ndarray, "group other"]:
    """Sums of the kernel over all pairs of a group and another, without those of a clip and itself."""
    sums = np.zeros((len(groups[0]), len(groups[1])))
    for (a, rows), (b, columns) in product(enumerate(groups[0]), enumerate(groups[1])):
        sums[a, b] = np.exp(-gamma * _squares(x[rows], y[columns])).sum()
        sums[a, b] -= len(rows) if x is y and a == b else 0
    return sums


def nearest(generated: Rows, reference: Rows) -> tuple[np.ndarray, np.ndarray]:
    """For each generated row the nearest of the reference: its place, and the distance."""
    places, distances = [], []
    for block in blocks(generated):
        best, place = np.full(len(block), np.inf), np.zeros(len(block), int)
        for number, candidates in enumerate(blocks(reference)):
            squares = _squares(block, candidates)
            closest = squares.argmin(axis=1)
            values = squares[np.arange(len(block)), closest]
            place = np.where(values < best, closest + number * BLOCK, place)
            best = np.minimum(best, values)
        places.append(place)
        distances.append(np.sqrt(best))
    return np.concatenate(places), np.concatenate(distances)

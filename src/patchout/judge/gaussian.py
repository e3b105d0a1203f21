"""Fréchet distance of embeddings, exact and in one pass; its interval, and that of infinitely many clips."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Float
from scipy import stats

from patchout.judge.metrics import Estimate, Rows, around, blocks

GROUPS, GROUP_DRAWS = 20, 24  # of clips, drawn by a bootstrap: single clips would cost too much
SIZES, FIRST_SIZE = 25, 500  # samples behind an FD-inf, and clips of the smallest
ROUNDING = 1e-12  # of the traces: a smaller distance is none


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and scatter (sum of outer products about the mean) of rows; `+` joins those of two sets."""

    count: int
    mean: Float[np.ndarray, "value"]
    scatter: Float[np.ndarray, "value value"]

    @property
    def covariance(self) -> Float[np.ndarray, "value value"]:
        """The unbiased one, over N - 1."""
        if self.count < 2:
            raise ValueError(f"a covariance needs 2 clips or more, got {self.count}")
        return self.scatter / (self.count - 1)

    def root(self, diagonal: float = 0.0) -> Float[np.ndarray, "value value"]:
        """A factor F of the covariance (plus a `diagonal`), F'F, from its symmetric eigenvalues."""
        values, vectors = np.linalg.eigh(self.covariance + diagonal * np.eye(len(self.mean)))
        return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T

    def __add__(self, other: "Statistics") -> "Statistics":
        """Of both sets together (Chan, Golub and LeVeque 1983)."""
        count, gap = self.count + other.count, other.mean - self.mean
        between = np.outer(gap, gap) * (self.count * other.count / count)
        return Statistics(
            count, self.mean + gap * (other.count / count), self.scatter + other.scatter + between
        )


def statistics(features: Rows) -> Statistics:
    """Mean and covariance of features, in one pass and bounded memory."""
    if not len(features):
        raise ValueError("statistics of no clips: give at least 2")
    return reduce(Statistics.__add__, map(_of_block, blocks(features)))


def _of_block(rows: Rows) -> Statistics:
    mean = rows.mean(axis=0)
    return Statistics(len(rows), mean, (rows - mean).T @ (rows - mean))


def frechet(generated: Rows | Statistics, reference: Rows | Statistics, *, diagonal: float = 0.0) -> float:
    """Fréchet distance between normal distributions: |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2).

    With S = F'F the last trace is the sum of the singular values of F1 F2', so nothing is iterated
    and nothing imaginary can appear. `diagonal` is added to both covariances. Equal sets have the distance 0.
    """
    normals = [*map(_statistics_of, (generated, reference))]
    widths = [len(normal.mean) for normal in normals]
    if widths[0] != widths[1]:
        raise ValueError(f"features of {widths[0]} and {widths[1]} values have no distance")
    first, second = (normal.root(diagonal) for normal in normals)
    traces = np.square(first).sum() + np.square(second).sum()
    shared = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    distance = float(np.square(normals[0].mean - normals[1].mean).sum() + traces - 2 * shared)
    return distance if distance > ROUNDING * traces else 0.0


def _statistics_of(features: Rows | Statistics) -> Statistics:
    return features if isinstance(features, Statistics) else statistics(features)


def frechet_interval(generated: Rows, reference: Rows | Statistics, *, diagonal: float = 0.0) -> Estimate:
    """The Fréchet distance with its interval: each set's bootstrap over GROUPS random groups of its clips.

    Statistics alone count as they are: the interval is then that of the generated clips.
    """
    rng = np.random.default_rng(0)
    sets = [
        [features] if isinstance(features, Statistics) else _groups(features, rng)
        for features in (generated, reference)
    ]
    wholes = [reduce(Statistics.__add__, groups) for groups in sets]
    draws = [
        _group_draws(groups, fixed, diagonal, rng)
        for groups, fixed in zip(sets, reversed(wholes), strict=True)
        if len(groups) > 1
    ]
    return around(frechet(*wholes, diagonal=diagonal), *draws, least=0.0)


def _group_draws(
    groups: Sequence[Statistics], fixed: Statistics, diagonal: float, rng: np.random.Generator
) -> Float[np.ndarray, "draw"]:
    """Distances of groups, drawn with replacement, from a set that stays."""
    root, more = fixed.root(diagonal), diagonal * len(fixed.mean)
    values = []
    for _ in range(GROUP_DRAWS):
        drawn = reduce(Statistics.__add__, (groups[at] for at in rng.integers(len(groups), size=len(groups))))
        inner = root @ drawn.covariance @ root.T + diagonal * root @ root.T
        shared = np.sqrt(np.maximum(np.linalg.eigvalsh(inner), 0.0)).sum()
        gap = np.square(drawn.mean - fixed.mean).sum()
        values.append(gap + np.trace(drawn.covariance) + more + np.square(root).sum() - 2 * shared)
    return np.array(values)


def _groups(rows: Rows, rng: np.random.Generator) -> list[Statistics]:
    """Statistics of random groups of equal size, in one pass."""
    groups: list[Statistics | None] = [None] * min(GROUPS, len(rows))
    for block in blocks(rows):
        order = rng.permutation(len(block))
        for group, chosen in enumerate(np.array_split(order, len(groups))):
            if len(chosen):
                fresh, old = _of_block(block[chosen]), groups[group]
                groups[group] = fresh if old is None else old + fresh
    return [group for group in groups if group is not None]


def frechet_infinite(
    generated: Rows, reference: Rows | Statistics, *, diagonal: float = 0.0, replace: bool = False
) -> Estimate:
    """FD-inf: the distance of infinitely many clips, where a line through those of 25 sizes meets 1/n = 0.

    The sizes go from half of the clips, or 500, to all. By default both sets are drawn, without replacement,
    in proportion; `replace` is the rule of kadtk: from 500, generated clips alone, with replacement, which
    leaves most of the bias in. The interval is that of the line's intercept (Student's t).
    """
    if len(generated) < 4:
        raise ValueError(f"FD-inf needs 4 clips or more, got {len(generated)}")
    rng, half_of_all = np.random.default_rng(0), len(generated) // 2
    least = FIRST_SIZE if replace and len(generated) > FIRST_SIZE else min(FIRST_SIZE, half_of_all)
    sizes = np.linspace(least, len(generated), SIZES).astype(int).tolist()

    def sample(rows: Rows, size: int) -> Statistics:
        return statistics(rows[np.sort(rng.choice(len(rows), size=max(2, size), replace=replace))])

    values = []
    for size in sizes:
        other = reference
        if not (replace or isinstance(reference, Statistics)):
            other = sample(reference, round(size * len(reference) / len(generated)))
        values.append(frechet(sample(generated, size), other, diagonal=diagonal))
    line = stats.linregress(1 / np.array(sizes), values)
    half = float(stats.t.ppf(0.975, SIZES - 2) * line.intercept_stderr)
    return Estimate(float(line.intercept), float(line.intercept) - half, float(line.intercept) + half)

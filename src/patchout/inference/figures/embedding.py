"""Figures of embeddings: self-similarity of one sound over time, and maps of many sounds."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colorbar import Colorbar
from matplotlib.image import AxesImage
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from patchout.figures import Floats, Spectrogram, draw_spectrogram, fonts, label_time, picture, plain

MAX_TIMES = 1000  # rows and columns of the self-similarity matrix
MAX_POINTS = 5000  # of a map: t-SNE takes a minute
MAX_CLASSES = 20  # with a colour and a line in the legend
COMPONENTS = 6
PERPLEXITY = 30.0  # t-SNE's idea of how many neighbours a point has; fewer for few points

_SIMILARITY_MAP = "viridis"
_COMPONENT_MAP = "RdBu_r"  # red against blue, white is the mean
_CLASS_COLOURS = [
    (0.1, 0.1, 0.1, 1.0) if index == 7 else colormaps["tab10"](index) for index in range(10)
]  # 7 is grey
_CLASS_MARKERS = "o^"  # the second ten
_OTHERS_COLOUR = "#c4c4c4"


@dataclass(frozen=True, eq=False)
class EmbeddingTrack(Spectrogram):
    """A sound and its embeddings over time."""

    times_s: Floats  # (times,) centres of the windows, evenly spaced
    values: Floats  # (times, values)

    def __post_init__(self) -> None:
        """Refuse arrays whose shapes do not belong together."""
        super().__post_init__()
        _check_values(self.values, len(self.times_s), "times")


def embedding_over_time(path: str | os.PathLike[str], track: EmbeddingTrack, *, title: str = "") -> None:
    """Draw the spectrogram, the strongest principal components over time and the self-similarity matrix.

    Similar moments have a similarity near 1: the cosine of their embeddings after the mean over time is
    subtracted. More than `MAX_TIMES` times are averaged in runs. `path` is treated as by `figures.picture`.
    """
    values, edges_s = _pool_times(track)
    similarity, components, shares = _self_similarity(values)
    heights = [2.3, 0.24 * max(len(components), 3), 6.0]
    with picture(path, (10, sum(heights) + 0.9), title=plain(title, 64)) as figure:
        grid = figure.add_gridspec(3, 2, height_ratios=heights, width_ratios=[60, 1])
        top = figure.add_subplot(grid[0, 0])
        middle, bottom = (figure.add_subplot(grid[row, 0], sharex=top) for row in (1, 2))
        draw_spectrogram(top, figure.add_subplot(grid[0, 1]), track)
        _draw_components(middle, figure.add_subplot(grid[1, 1]), components, shares, edges_s)
        _draw_similarity(bottom, figure.add_subplot(grid[2, 1]), similarity, edges_s)
        label_time(bottom, track.duration_s)
        bottom.set_yticks(bottom.get_xticks(), [label.get_text() for label in bottom.get_xticklabels()])
        bottom.set_ylim(track.duration_s, 0)  # time runs down as it runs right
        bottom.set_ylabel(bottom.get_xlabel())
        for axes in (top, middle):
            axes.tick_params(labelbottom=False)


def map_2d(path: str | os.PathLike[str], values: Floats, labels: Sequence[str], *, title: str = "") -> None:
    """Draw embeddings (points, values) in two dimensions, by PCA and by t-SNE, coloured by their `labels`.

    The `MAX_CLASSES` most frequent classes have a colour, the others are grey. At most `MAX_POINTS` points
    are drawn, taken evenly. The same values give the same picture. `path` is treated as by `figures.picture`.
    """
    _check_values(values, len(labels), "labels")
    chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), MAX_POINTS)).round().astype(int))
    points, names = values[chosen].astype(np.float64), [labels[index] for index in chosen]
    plane, shares = principal_plane(points)
    shown = f"{len(points)} of {len(values)} clips" if len(points) < len(values) else f"{len(values)} clips"
    with picture(path, (12, 5.4), title=f"{plain(title, 64)}  ({shown})" if title else shown) as figure:
        left, right = figure.subplots(1, 2)
        _draw_points(left, plane, names)
        left.set_title("PCA")
        left.set_aspect("equal", adjustable="datalim")
        left.set_xlabel(f"component 1 ({shares[0]:.0%} of the variance)")
        left.set_ylabel(f"component 2 ({shares[1]:.0%})")
        _draw_points(right, neighbour_plane(points), names)
        right.set_title("t-SNE")
        right.set_xlabel("neighbours stay neighbours; distances and directions mean little", fontsize="small")
        _draw_legend(right, names)


def principal_plane(values: Floats) -> tuple[Floats, Floats]:
    """The two strongest principal components of (points, values): (points, 2), and their variance shares.

    A component that the values do not have is 0.
    """
    plane, shares = np.zeros((len(values), 2)), np.zeros(2)
    if np.ptp(values, axis=0).max() > 0:
        pca = PCA(min(2, *values.shape), random_state=0).fit(values)
        plane[:, : pca.n_components_] = pca.transform(values)
        shares[: pca.n_components_] = pca.explained_variance_ratio_
    return plane, shares


def neighbour_plane(values: Floats) -> Floats:
    """t-SNE of (points, values) from the principal plane: (points, 2); under 4 points that plane."""
    start = principal_plane(values)[0]
    if len(values) < 4:
        return start
    start *= 1e-4 / max(start[:, 0].std(), 1e-12)
    start += 1e-6 * np.random.default_rng(0).standard_normal(start.shape)  # points that are equal may part
    perplexity = min(PERPLEXITY, (len(values) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init=start.astype(np.float32), random_state=0).fit_transform(values)


def _check_values(values: Floats, count: int, rows: str) -> None:
    if values.ndim != 2 or len(values) != count or values.size == 0:
        shape = f"({count} {rows}, at least 1 value)"
        raise ValueError(f"embeddings must be {shape} and not empty, got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("embeddings must be finite: leave out those with NaN or infinite values")


def _pool_times(track: EmbeddingTrack) -> tuple[Floats, tuple[float, float]]:
    """Mean-pooled times, (at most `MAX_TIMES`, values), and the start and end of all (s)."""
    count = len(track.times_s)
    run = -(-count // MAX_TIMES)
    starts = np.arange(0, count, run)
    sizes = np.diff(np.append(starts, count))[:, None]
    pooled = np.add.reduceat(track.values.astype(np.float64), starts, axis=0) / sizes
    hop_s = (track.times_s[-1] - track.times_s[0]) / (count - 1) if count > 1 else 2 * track.duration_s
    first_s = float(track.times_s[0] - hop_s / 2)
    return pooled, (first_s, first_s + len(pooled) * run * float(hop_s))


def _self_similarity(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Cosines (times, times), principal components (components, times) and their shares of the variance."""
    centred = values - values.mean(axis=0)
    products = centred @ centred.T
    norms = np.sqrt(np.diag(products))
    largest = max(np.sqrt((values**2).sum(axis=1)).max(), 1e-12)
    floor = 1e-6 * largest  # below lie rounding errors of equal embeddings
    similarity = products / np.maximum(np.outer(norms, norms), floor**2)
    variances, moments = np.linalg.eigh(products)
    order = np.argsort(-variances)[:COMPONENTS]
    total = max(float(variances.sum()), floor**2)
    components = moments[:, order].T * np.sqrt(np.maximum(variances[order], 0))[:, None]
    strongest = np.abs(components).argmax(axis=1)[:, None]
    signs = np.sign(np.take_along_axis(components, strongest, axis=1))
    return similarity, components * signs, variances[order] / total


def _draw_components(
    axes: Axes, bar: Axes, components: Floats, shares: Floats, edges_s: tuple[float, float]
) -> None:
    """Draw each component to its own scale, with its share of the variance beside it."""
    rows = components / np.maximum(np.percentile(np.abs(components), 99, axis=1, keepdims=True), 1e-12)
    image = _image(axes, rows, (*edges_s, len(rows) - 0.5, -0.5), _COMPONENT_MAP, low=-1)
    names = [f"{row + 1} ({share:.0%})" for row, share in enumerate(shares)]
    axes.set_yticks(range(len(rows)), names, fontsize="small")
    axes.hlines(np.arange(len(rows) - 1) + 0.5, *edges_s, color="white", linewidth=1.5)
    axes.tick_params(axis="y", length=0)
    axes.set_ylabel("component\n(variance)")
    Colorbar(bar, image).set_ticks([-1, 0, 1], labels=["\N{MINUS SIGN}", "0", "+"])


def _draw_similarity(axes: Axes, bar: Axes, similarity: Floats, edges_s: tuple[float, float]) -> None:
    image = _image(axes, similarity, (*edges_s, edges_s[1], edges_s[0]), _SIMILARITY_MAP, low=0)
    colour_bar = Colorbar(bar, image, label="similarity (cosine, mean removed)")
    colour_bar.set_ticks([0, 0.5, 1], labels=["0 or less", "0.5", "1"])


def _image(axes: Axes, values: Floats, extent: tuple[float, ...], cmap: str, *, low: int) -> AxesImage:
    options: dict[str, Any] = {"extent": extent, "aspect": "auto", "interpolation": "none"}
    return axes.imshow(values, cmap=cmap, vmin=low, vmax=1, **options)


def _classes(names: Sequence[str]) -> list[str]:
    """The most frequent classes, at most `MAX_CLASSES`, in alphabetical order."""
    return sorted(name for name, _ in Counter(names).most_common(MAX_CLASSES))


def _scatter(axes: Axes, points: Floats, place: int, size: float) -> PathCollection:
    """Draw points (count, 2) of the class at a place of `_classes`, or of all other classes at -1."""
    colour = _CLASS_COLOURS[place % 10] if place >= 0 else _OTHERS_COLOUR
    style: dict[str, Any] = {
        "marker": _CLASS_MARKERS[max(place, 0) // 10],
        "edgecolors": "white",
        "linewidths": 0.3,
    }
    return axes.scatter(points[:, 0], points[:, 1], s=size, color=colour, alpha=0.85, **style)


def _draw_points(axes: Axes, plane: Floats, names: Sequence[str]) -> None:
    place = {name: index for index, name in enumerate(_classes(names))}
    index = np.array([place.get(name, -1) for name in names])
    size = float(np.clip(6000 / len(names), 8, 45))
    for number in range(-1, len(place)):
        _scatter(axes, plane[index == number], number, size)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.06)


def _draw_legend(axes: Axes, names: Sequence[str]) -> None:
    """Classes with their counts, right of the axes."""
    counts, classes = Counter(names), _classes(names)
    handles = [_scatter(axes, np.zeros((0, 2)), place, 40.0) for place in range(len(classes))]
    texts = [f"{plain(name, 28)} ({counts[name]})" for name in classes]
    if others := counts.total() - sum(counts[name] for name in classes):
        handles.append(_scatter(axes, np.zeros((0, 2)), -1, 40.0))
        texts.append(f"{len(counts) - len(classes)} others ({others})")
    numbers = [str(place) for place in range(len(handles))]
    legend = axes.legend(handles, numbers, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    for label, text in zip(
        legend.get_texts(), texts, strict=True
    ):  # here: a name may begin with _ or hold a $
        label.set(text=text, parse_math=False, fontfamily=fonts())

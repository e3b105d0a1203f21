"""Pictures of embeddings: what they show, and that no values make them crash."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.figure import Figure

from patchout.figures import save
from patchout.inference.figures import embedding as embedding_figures
from patchout.inference.figures.embedding import (
    EmbeddingTrack,
    embedding_over_time,
    map_2d,
    neighbour_plane,
    principal_plane,
)


def track(values: np.ndarray, *, hop_s: float = 0.05) -> EmbeddingTrack:
    """A sound of silence with embeddings every `hop_s`."""
    duration_s = max(len(values) - 1, 1) * hop_s
    return EmbeddingTrack(
        log_mel=np.random.default_rng(0).normal(size=(16, 100)),
        band_hz=np.linspace(100, 9000, 16),
        frame_s=duration_s / 100,
        times_s=hop_s * np.arange(len(values)),
        values=values,
    )


def two_notes(times: int, *, width: int = 8) -> np.ndarray:
    """A note, another one, and the first again: a quarter, a half and a quarter of the times."""
    first, second = np.random.default_rng(1).normal(size=(2, width))
    is_second = np.abs(np.arange(times) - (times - 1) / 2) < times / 4
    return np.where(is_second[:, None], second, first)


def clouds(points: int, classes: int, *, width: int = 20) -> tuple[np.ndarray, list[str]]:
    """Points around a centre for every class, in turn."""
    rng = np.random.default_rng(2)
    centres = 5 * rng.normal(size=(classes, width))
    names = [f"class {index % classes}" for index in range(points)]
    return centres[np.arange(points) % classes] + 0.3 * rng.normal(size=(points, width)), names


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved."""
    figures: list[Figure] = []

    def keep(figure: Figure, path: Path, kind: str) -> None:
        figures.append(figure)
        save(figure, path, kind)

    monkeypatch.setattr("patchout.figures.save", keep)
    return figures


def matrix_of(figure: Figure) -> Any:
    return next(axes for axes in figure.axes if axes.get_ylabel().startswith("time")).get_images()[0]


def legend_of(figure: Figure) -> list[str]:
    legends = [legend for axes in figure.axes if (legend := axes.get_legend())]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


def points_of(drawn: Collection) -> np.ndarray:
    return np.ma.getdata(np.ma.asarray(drawn.get_offsets()))


def colour_of(drawn: Collection) -> bytes:
    return np.asarray(drawn.get_facecolor(), np.float64).tobytes()


# -- over time -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_moments_that_sound_alike_are_similar(tmp_path: Path, drawn: list[Figure]) -> None:
    embedding_over_time(tmp_path / "x.png", track(two_notes(80)), title="notes.wav")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    similarity = matrix_of(drawn[0]).get_array()
    assert similarity.shape == (80, 80)
    np.testing.assert_allclose(similarity[0, [0, 10, 40, 79]], [1, 1, -1, 1], atol=1e-6)
    np.testing.assert_allclose(similarity, similarity.T)


@pytest.mark.slow
def test_the_first_component_follows_the_notes(tmp_path: Path, drawn: list[Figure]) -> None:
    embedding_over_time(tmp_path / "x.png", track(two_notes(80)))
    axes = next(axes for axes in drawn[0].axes if axes.get_ylabel().startswith("component"))
    rows = axes.get_images()[0].get_array()
    assert rows is not None
    np.testing.assert_allclose(np.abs(rows[0]), 1, atol=1e-6)
    np.testing.assert_allclose(rows[0, [40, 79]], [-rows[0, 0], rows[0, 0]], atol=1e-6)
    assert [label.get_text() for label in axes.get_yticklabels()][:2] == ["1 (100%)", "2 (0%)"]


@pytest.mark.slow
def test_all_three_share_their_time_axis(tmp_path: Path, drawn: list[Figure]) -> None:
    embedding_over_time(tmp_path / "x.png", track(two_notes(81)))
    wide = [axes for axes in drawn[0].axes if axes.get_images() and axes.get_ylabel()]
    assert {axes.get_xlim() for axes in wide} == {(0.0, 4.0)}
    left, right, *_ = matrix_of(drawn[0]).get_extent()
    assert (left, right) == pytest.approx((-0.025, 4.025))  # every window stands around its centre


@pytest.mark.slow
@pytest.mark.parametrize(("times", "size"), [(1000, 1000), (1001, 501), (4500, 900)])
def test_the_matrix_is_bounded(times: int, size: int, tmp_path: Path, drawn: list[Figure]) -> None:
    embedding_over_time(tmp_path / "x.png", track(two_notes(times)))
    image = matrix_of(drawn[0])
    assert image.get_array().shape == (size, size)
    assert image.get_extent()[1] == pytest.approx(0.05 * times, rel=0.01)
    np.testing.assert_allclose(image.get_array()[0, [0, size // 2, -1]], [1, -1, 1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("values", [np.ones((1, 4)), np.ones((2, 1)), np.ones((30, 4)), np.zeros((30, 4))])
def test_embeddings_that_do_not_change_are_drawn(
    values: np.ndarray, tmp_path: Path, drawn: list[Figure]
) -> None:
    embedding_over_time(tmp_path / "x.png", track(values))
    assert not np.ma.getdata(matrix_of(drawn[0]).get_array()).any()


@pytest.mark.slow
def test_rounding_errors_are_no_pattern(tmp_path: Path, drawn: list[Figure]) -> None:
    values = 1 + 1e-8 * np.random.default_rng(0).normal(size=(30, 4))
    embedding_over_time(tmp_path / "x.png", track(values))
    assert np.abs(matrix_of(drawn[0]).get_array()).max() < 0.01


# -- maps ----------------------------------------------------------------------------------------------------


def spread(plane: np.ndarray, names: list[str]) -> float:
    """The largest distance of a point from the centre of its class,
    against the smallest between two centres.
    """
    classes = np.array(names)
    centres = {name: plane[classes == name].mean(axis=0) for name in set(names)}
    within = max(np.linalg.norm(point - centres[name]) for point, name in zip(plane, names, strict=True))
    between = [
        np.linalg.norm(a - b) for key, a in centres.items() for other, b in centres.items() if key < other
    ]
    return float(within / min(between))


def test_both_maps_keep_three_classes_apart() -> None:
    values, names = clouds(60, 3)
    assert spread(principal_plane(values)[0], names) < 0.5
    assert spread(neighbour_plane(values), names) < 0.5


def test_components_and_their_shares_by_hand() -> None:
    values = np.array([[3.0, 0.0, 7.0], [-3.0, 0.0, 7.0], [0.0, 1.0, 7.0], [0.0, -1.0, 7.0]])
    plane, shares = principal_plane(values)
    np.testing.assert_allclose(np.abs(plane), [[3, 0], [3, 0], [0, 1], [0, 1]], atol=1e-6)
    np.testing.assert_allclose(shares, [0.9, 0.1], atol=1e-6)


def test_the_same_values_give_the_same_map() -> None:
    values, _ = clouds(40, 4)
    np.testing.assert_array_equal(neighbour_plane(values), neighbour_plane(values.copy()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        np.ones((1, 5)),
        np.array([[1.0, 2.0], [3.0, 4.0]]),
        np.ones((3, 5)),
        np.ones((20, 5)),
        np.zeros((4, 1)),
        np.arange(12.0)[:, None],
        np.repeat(np.eye(3), 10, axis=0),
        np.eye(40)[[0] * 39 + [1]],
    ],
)
def test_few_equal_and_constant_embeddings_are_drawn(
    values: np.ndarray, tmp_path: Path, drawn: list[Figure]
) -> None:
    map_2d(tmp_path / "x.png", values, ["a"] * len(values))
    for axes in drawn[0].axes:
        assert sum(len(points_of(one)) for one in axes.collections) == len(values)
        assert all(np.isfinite(points_of(one)).all() for one in axes.collections)


@pytest.mark.slow
def test_the_legend_counts_each_class(tmp_path: Path, drawn: list[Figure]) -> None:
    values, names = clouds(25, 3)
    map_2d(tmp_path / "x.png", values, names, title="clouds")
    assert legend_of(drawn[0]) == ["class 0 (9)", "class 1 (8)", "class 2 (8)"]
    assert drawn[0].get_suptitle() == "clouds  (25 clips)"


@pytest.mark.slow
def test_classes_beyond_twenty_are_others(tmp_path: Path, drawn: list[Figure]) -> None:
    values, names = clouds(60, 30)
    names[:10] = ["class 0"] * 5 + ["class 29"] * 5
    map_2d(tmp_path / "x.png", values, names)
    legend = legend_of(drawn[0])
    assert len(legend) == 21
    assert {"class 0 (6)", "class 29 (7)"} < set(legend)
    assert legend[-1].startswith("10 others (")
    looks = {
        (colour_of(one), np.asarray(one.get_paths()[0].vertices).tobytes())
        for one in drawn[0].axes[0].collections
    }
    assert len(looks) == 21


def test_a_class_has_one_look_in_both_maps_and_the_legend(tmp_path: Path, drawn: list[Figure]) -> None:
    values, names = clouds(12, 3)
    map_2d(tmp_path / "x.png", values, names)

    def colours(axes: Axes) -> list[bytes]:
        return [colour_of(one) for one in axes.collections if len(points_of(one))]

    assert colours(drawn[0].axes[0]) == colours(drawn[0].axes[1])


def test_class_names_are_never_read_as_markup_or_left_out(tmp_path: Path, drawn: list[Figure]) -> None:
    values, _ = clouds(4, 4)
    map_2d(
        tmp_path / "x.png",
        values,
        ["_hidden", "$\\frac{$", "犬の鳴き声", "\udcff" + 20 * "long "],
        title="$\\nothing$",
    )
    assert [text.partition(" ")[0] for text in legend_of(drawn[0])][:2] == ["$\\frac{$", "_hidden"]
    assert max(map(len, legend_of(drawn[0]))) < 40


def test_a_large_folder_is_thinned_out(
    tmp_path: Path, drawn: list[Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_figures, "MAX_POINTS", 30)
    values, names = clouds(1000, 3)
    map_2d(tmp_path / "x.png", values, sorted(names))
    assert drawn[0].get_suptitle() == "30 of 1000 clips"
    assert len(legend_of(drawn[0])) == 3


# -- refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((79, 4)), r"80 times, at least 1 value\) and not empty, got \(79, 4\)"),
        (np.zeros((80, 0)), r"got \(80, 0\)"),
        (np.zeros(80), r"got \(80,\)"),
        (np.full((80, 2), np.nan), "must be finite"),
    ],
)
def test_arrays_that_do_not_belong_together(values: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(track(two_notes(80)), values=values)
    with pytest.raises(ValueError, match=message.replace("times", "labels")):
        map_2d("x.png", values, ["a"] * 80)


def test_nothing_is_no_map(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not empty, got \(0, 4\)"):
        map_2d(tmp_path / "x.png", np.zeros((0, 4)), [])


def test_other_suffix_names_the_allowed_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png, \.pdf, \.svg"):
        map_2d(tmp_path / "x.jpeg", np.ones((4, 2)), list("abcd"))
    with pytest.raises(ValueError, match=r"\.png, \.pdf, \.svg"):
        embedding_over_time(tmp_path / "x.jpeg", track(np.ones((4, 2))))
    assert list(tmp_path.iterdir()) == []

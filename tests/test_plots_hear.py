"""Pictures of a HEAR report: where boxes and bars stand, that cited is seen,
and that no word is cut or covered.
"""

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from patchout.hear import figures as hear_figures
from patchout.hear.figures import Line

WORDS = {"title": "made up", "score": "score"}
FOUR = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.8}
LINES = [Line("OpenL3", FOUR, is_cited=True), Line("ours", FOUR | {"e": 0.5}), Line("half", {"a": 0.4})]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is to be saved; nothing is."""
    figures: list[Figure] = []
    monkeypatch.setattr("patchout.figures.save", lambda figure, path, kind: figures.append(figure))
    return figures


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]


def bars_of(figure: Figure, panel: int = 0) -> list[Rectangle]:
    return [patch for patch in figure.axes[panel].patches if isinstance(patch, Rectangle)]


def test_a_box_runs_from_the_first_quartile_to_the_third(tmp_path: Path, drawn: list[Figure]) -> None:
    hear_figures.rows(tmp_path / "x.png", LINES[:1], {"music": list(FOUR)}, **WORDS)
    (box,) = bars_of(drawn[0])
    assert box.get_x() == pytest.approx(0.175)  # of 0.1, 0.2, 0.3, 0.8: 0.1 + 0.75 * 0.1
    assert box.get_x() + box.get_width() == pytest.approx(0.425)  # 0.3 + 0.25 * 0.5


def test_a_dot_beyond_the_whiskers_is_drawn_all_the_same(tmp_path: Path, drawn: list[Figure]) -> None:
    far = {str(number): 0.5 + number / 100 for number in range(8)} | {"far": 0.01}
    hear_figures.rows(tmp_path / "x.png", [Line("ours", far)], {"music": list(far)}, **WORDS)
    assert np.sort(drawn[0].axes[0].lines[0].get_xdata()).tolist() == sorted(far.values())
    whisker = drawn[0].axes[0].collections[0].get_paths()[0].vertices
    assert whisker[0, 0] == pytest.approx(0.5)  # type: ignore[index]


def test_a_missing_task_is_not_counted_as_zero(tmp_path: Path, drawn: list[Figure]) -> None:
    hear_figures.rows(tmp_path / "x.png", LINES, {"music": ["a", "b"], "speech": ["e", "f"]}, **WORDS)
    music, speech = drawn[0].axes
    assert [text.get_text() for text in music.texts] == ["2", "2", "1", "tasks"]
    assert [text.get_text() for text in speech.texts] == ["0", "1", "0", "tasks"]
    assert [np.asarray(dots.get_xdata()).tolist() for dots in speech.lines] == [[0.5]]


@pytest.mark.parametrize("draw", ["boxes", "bars"])
def test_cited_rows_have_hatch_colour_and_word(draw: str, tmp_path: Path, drawn: list[Figure]) -> None:
    if draw == "boxes":
        hear_figures.rows(tmp_path / "x.png", LINES[:2], {"music": list(FOUR)}, **WORDS)
    else:
        hear_figures.rows(tmp_path / "x.png", LINES[:2], {"a": ["a"]}, **WORDS)
    cited, ours = bars_of(drawn[0])
    assert [bool(bar.get_hatch()) for bar in (cited, ours)] == [True, False]
    assert cited.get_facecolor() != ours.get_facecolor()
    assert {"cited: official submission", "measured here"} <= set(texts_of(drawn[0]))


def test_bars_have_the_length_of_their_score_and_a_dash_where_there_is_none(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    hear_figures.rows(tmp_path / "x.png", LINES, {"a": ["a"], "e": ["e"]}, **WORDS)
    assert [bar.get_width() for bar in bars_of(drawn[0])] == [0.1, 0.1, 0.4]
    assert [text.get_text() for text in drawn[0].axes[1].texts] == ["-", "0.500", "-"]


def test_scores_above_the_best_one_are_inside(tmp_path: Path, drawn: list[Figure]) -> None:
    hear_figures.rows(tmp_path / "x.png", [Line("ours", {"a": 1.3})], {"a": ["a"]}, **WORDS)
    assert drawn[0].axes[0].get_xlim()[1] > 1.3


def test_a_pair_is_two_bars_a_task_with_the_cited_ones_as_marks(tmp_path: Path, drawn: list[Figure]) -> None:
    hear_figures.pair(tmp_path / "x.png", (LINES[1], LINES[2]), LINES[:1], ["a", "d"], **WORDS)
    assert [bar.get_width() for bar in bars_of(drawn[0])] == [0.1, 0.8, 0.4]  # ours at a and d, half at a
    (marks,) = drawn[0].axes[0].lines
    assert np.asarray(marks.get_xdata()).tolist() == [0.1, 0.8]
    assert {"OpenL3 (cited)", "ours (measured)", "half (measured)"} <= set(texts_of(drawn[0]))


@pytest.mark.slow
@pytest.mark.parametrize("draw", ["boxes", "bars", "pair"])
def test_no_word_is_cut_and_the_legend_is_off_the_data(
    draw: str, tmp_path: Path, drawn: list[Figure]
) -> None:
    long = [
        Line(f"a model with quite a long name, number $_{number}^", FOUR, number < 3) for number in range(8)
    ]
    if draw == "boxes":
        hear_figures.rows(
            tmp_path / "x.png", long, {"music": ["a", "b"], "speech": ["b"], "general": ["c", "d"]}, **WORDS
        )
    elif draw == "bars":
        hear_figures.rows(tmp_path / "x.png", long, {"a": ["a"], "b": ["b"]}, **WORDS)
    else:
        hear_figures.pair(tmp_path / "x.png", (long[3], long[4]), long[:3], list(FOUR), **WORDS)
    figure = drawn[0]
    FigureCanvasAgg(figure).print_figure(io.BytesIO())
    ticks = [
        text for axes in figure.axes for text in axes.get_xticklabels()
    ]  # also those beyond the axis, not drawn
    shown = [
        text
        for text in figure.findobj(Text)
        if isinstance(text, Text) and text.get_text() and text not in ticks
    ]
    spans = [(text.get_text(), text.get_window_extent()) for text in shown]
    assert [text for text, box in spans if min(box.x0, box.y0) < 0 or box.x1 > figure.bbox.x1] == []
    legend = figure.legends[0].get_window_extent()
    assert [axes for axes in figure.axes if axes.get_tightbbox().overlaps(legend)] == []  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_suffix_is_checked_and_the_picture_whole(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no picture format"):
        hear_figures.rows(tmp_path / "x.jpg", LINES, {"a": ["a"]}, **WORDS)
    hear_figures.rows(tmp_path / "x.png", LINES, {"a": ["a"]}, **WORDS)
    assert imread(tmp_path / "x.png").shape[1] == 1500
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]

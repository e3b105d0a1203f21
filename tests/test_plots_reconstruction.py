"""Pictures of reconstructions: what each panel shows, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from patchout.figures import save
from patchout.inference.figures.reconstruction import (
    DB_PER_UNIT,
    Reconstructed,
    reconstruction,
    reconstruction_strip,
)


def sound(ratio: float = 0.75) -> Reconstructed:
    """Noise on 32 bands, the first share of its frames hidden and predicted 0.1 too loud."""
    mel = np.random.default_rng(0).normal(size=(32, 80))
    hidden = np.broadcast_to(np.arange(80) < 80 * ratio, (32, 80))
    return Reconstructed(
        log_mel=mel,
        band_hz=np.linspace(100, 9000, 32),
        frame_s=0.01,
        hidden=hidden,
        filled=mel + 0.1 * hidden,
    )


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that is saved."""
    figures: list[Figure] = []

    def keep(figure: Figure, path: Path, kind: str) -> None:
        figures.append(figure)
        save(figure, path, kind)

    monkeypatch.setattr("patchout.figures.save", keep)
    return figures


def panel(figure: Figure, name: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title(loc="left") == name)


@pytest.mark.slow
def test_the_four_panels_show_what_they_say(tmp_path: Path, drawn: list[Figure]) -> None:
    one = sound()
    reconstruction(tmp_path / "x.png", one, title="dog.wav")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    seen, filled = panel(drawn[0], "what the model sees (grey: hidden)"), panel(drawn[0], "reconstruction")
    np.testing.assert_allclose(panel(drawn[0], "original").get_images()[0].get_array(), one.log_mel)  # type: ignore[arg-type]
    np.testing.assert_allclose(filled.get_images()[0].get_array(), one.filled)  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.ma.getmaskarray(seen.get_images()[1].get_array()), ~one.hidden)  # type: ignore[arg-type]
    assert filled.get_images()[0].get_clim() == panel(drawn[0], "original").get_images()[0].get_clim()
    error = panel(drawn[0], "error").get_images()[0].get_array()
    np.testing.assert_allclose(error[one.hidden], 0.1 * DB_PER_UNIT)  # type: ignore[index]
    np.testing.assert_allclose(error[~one.hidden], 0.0)  # type: ignore[index]


@pytest.mark.slow
def test_a_note_stands_over_the_reconstruction(tmp_path: Path, drawn: list[Figure]) -> None:
    one = replace(sound(), note="level given")
    reconstruction(tmp_path / "x.png", one)
    reconstruction_strip(tmp_path / "y.png", [one])
    assert panel(drawn[0], "reconstruction").get_title(loc="right") == "level given"
    assert drawn[1].get_supxlabel() == "level given"


@pytest.mark.slow
def test_the_title_counts_only_what_was_hidden(tmp_path: Path, drawn: list[Figure]) -> None:
    reconstruction(tmp_path / "x.png", sound(), title="dog.wav")
    assert drawn[0].get_suptitle() == "dog.wav  (75% hidden, mean error there 2.2 dB)"  # 0.1 of 21.7 dB


@pytest.mark.slow
def test_a_strip_has_a_row_for_every_ratio_and_one_scale_of_errors(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    louder = replace(sound(0.9), filled=sound(0.9).log_mel + 1.0)
    reconstruction_strip(tmp_path / "x.svg", [sound(0.25), sound(0.5), louder])
    rows = [axes.get_ylabel() for axes in drawn[0].axes if axes.get_ylabel().endswith("hidden")]
    assert rows == ["25% hidden", "50% hidden", "90% hidden"]
    limits = {axes.get_images()[0].get_clim() for axes in drawn[0].axes[2:9:3]}
    assert len(limits) == 1
    assert limits.pop() == pytest.approx((0.0, DB_PER_UNIT))


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png, \.pdf, \.svg"):
        reconstruction(tmp_path / "x.jpeg", sound())
    with pytest.raises(ValueError, match=r"\.png, \.pdf, \.svg"):
        reconstruction_strip(tmp_path / "x.jpeg", [sound()])
    assert list(tmp_path.iterdir()) == []

"""Figures of masked patches and their reconstruction: a clip in four panels, a strip over mask ratios."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from patchout.audio.mel import LOG_SCALE
from patchout.figures import Floats, Spectrogram, draw_spectrogram, label_time, picture, plain

PANELS = ("what the model sees (grey: hidden)", "reconstruction", "error")
DB_PER_UNIT = 10 * LOG_SCALE / math.log(10)  # of a log-mel: 21.7 dB

_ERROR_MAP = "viridis"
_HIDDEN_MAP = ListedColormap(["#b8b8b8"])  # no sound is drawn in grey


@dataclass(frozen=True, eq=False)
class Reconstructed(Spectrogram):
    """A sound, its mask, and its log-mel with the model's prediction at the masked places."""

    hidden: npt.NDArray[np.bool_]  # (n_mels, frames)
    filled: Floats  # (n_mels, frames)
    note: str = ""  # to the reconstruction

    @property
    def ratio(self) -> float:
        """Share of the log-mel that is masked."""
        return float(self.hidden.mean())

    @property
    def error_db(self) -> Floats:
        """Absolute error of the prediction in dB, 0 where nothing is masked."""
        return DB_PER_UNIT * np.abs(self.filled - self.log_mel)


def reconstruction(path: str | os.PathLike[str], sound: Reconstructed, *, title: str = "") -> None:
    """Draw original, masked sound, reconstruction and error as rows; `path` as in `figures.picture`."""
    error_db = sound.error_db[sound.hidden].mean()
    summary = f"{sound.ratio:.0%} hidden, mean error there {error_db:.1f} dB"
    with picture(path, (10, 9), title=f"{plain(title, 64)}  ({summary})".strip()) as figure:
        grid = figure.add_gridspec(4, 2, width_ratios=[60, 1])
        axes = [figure.add_subplot(grid[0, 0])]
        axes += [figure.add_subplot(grid[row, 0], sharex=axes[0], sharey=axes[0]) for row in (1, 2, 3)]
        draw_spectrogram(axes[0], figure.add_subplot(grid[0, 1]), sound)
        error = _draw(axes[1:], axes[0].get_images()[0], sound, limit_db=_limit_db([sound]))
        Colorbar(figure.add_subplot(grid[3, 1]), error, label="dB")
        for panel, name in zip(axes, ("original", *PANELS), strict=True):
            panel.set_title(name, loc="left", fontsize="medium")
            panel.tick_params(labelbottom=panel is axes[3])
        axes[2].set_title(sound.note, loc="right", fontsize="small")
        label_time(axes[3], sound.duration_s)


def reconstruction_strip(
    path: str | os.PathLike[str], sounds: Sequence[Reconstructed], *, title: str = ""
) -> None:
    """Draw one sound at rising mask ratios, a row each, errors on one scale; `path` as in `picture`."""
    with picture(path, (12, 1.6 * len(sounds) + 0.8), title=plain(title, 64)) as figure:
        grid = figure.subplots(len(sounds), 3, sharex=True, sharey=True, squeeze=False)
        for row, sound in zip(grid, sounds, strict=True):
            draw_spectrogram(row[0], Figure().add_subplot(), sound)  # for its colours: the panels share them
            error = _draw(list(row), row[0].get_images()[0], sound, limit_db=_limit_db(sounds))
            row[0].set_ylabel(f"{sound.ratio:.0%} hidden")
        for panel, name in zip(grid[0], PANELS, strict=True):
            panel.set_title(name, loc="left", fontsize="medium")
        for panel in grid[-1]:
            label_time(panel, sounds[0].duration_s)
        figure.supxlabel(sounds[0].note, fontsize="small")
        figure.colorbar(error, ax=grid[:, 2], label="error (dB)")


def _limit_db(sounds: Sequence[Reconstructed]) -> float:
    """Upper end of the error scale: single peaks do not eat the range."""
    return max(1.0, *(float(np.percentile(sound.error_db, 99.5)) for sound in sounds))


def _draw(axes: Sequence[Axes], original: AxesImage, sound: Reconstructed, *, limit_db: float) -> AxesImage:
    """The three `PANELS` in the colours and place of the original; returns the error."""
    place: dict[str, Any] = {"extent": original.get_extent(), "aspect": "auto", "origin": "lower"}
    masked, filled, error = axes
    for panel, values in ((masked, sound.log_mel), (filled, sound.filled)):
        panel.imshow(values, cmap=original.get_cmap(), norm=original.norm, **place)  # type: ignore[arg-type]
    masked.imshow(np.ma.masked_equal(sound.hidden, False), cmap=_HIDDEN_MAP, interpolation="none", **place)
    return error.imshow(sound.error_db, cmap=_ERROR_MAP, vmin=0.0, vmax=limit_db, **place)

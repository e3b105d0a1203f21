"""Figures as PNG, PDF or SVG files; spectrogram and time axis, which all figures of sounds have.

The figures are made with matplotlib's objects alone: no pyplot, no window, no setting that outlives a call.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from patchout.files import write_aside

FORMATS = ("png", "pdf", "svg")
MAX_COLUMNS = 2000  # more than ten inches show

_SOUND_MAP = "magma"  # rises evenly in lightness, so every kind of colour vision reads it
_TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000, 12000, 20000)
_TICKS_S = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
# matplotlib brings DejaVu Sans, which lacks the scripts of East and South Asia; systems have these for them
_FONTS = (
    *(
        "DejaVu Sans",
        "Noto Sans CJK JP",
        "Noto Sans CJK SC",
        "Noto Sans",
        "Arial Unicode MS",
        "Hiragino Sans",
    ),
    *("PingFang SC", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Nirmala UI"),
)

Size = tuple[float | int, float | int]  # inches
Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Spectrogram:
    """Log-mel of a sound to draw; that of a long one may be pooled, with its own `frame_s`."""

    log_mel: Floats  # (n_mels, frames)
    band_hz: Floats  # (n_mels,) centre of each band, rising
    frame_s: float  # seconds from one column of log_mel to the next

    def __post_init__(self) -> None:
        """Check that the shapes match."""
        bands = len(self.band_hz)
        if self.log_mel.ndim != 2 or len(self.log_mel) != bands or self.log_mel.size == 0:
            raise ValueError(f"log_mel must be ({bands} bands, at least 1 frame), got {self.log_mel.shape}")
        if not self.frame_s > 0:
            raise ValueError(f"frame_s must be more than 0 seconds, got {self.frame_s}")

    @property
    def duration_s(self) -> float:
        """Length of the sound."""
        return self.log_mel.shape[1] * self.frame_s


@contextmanager
def picture(path: str | os.PathLike[str], size: Size, *, title: str = "") -> Iterator[Figure]:
    """A figure of `size` (width, height in inches), saved with its title if the block raises nothing.

    The suffix of `path` is the format; ValueError, before anything is drawn, if it is none of `FORMATS`.
    OSError: the folder is missing or cannot be written. An older picture is replaced in one step, or stays on
    failure.
    """
    kind = picture_format(path)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    yield figure
    if title:
        figure.suptitle(title, x=0.01, ha="left", parse_math=False, fontfamily=fonts())
    with write_aside(path) as aside:
        save(figure, aside, kind)


def picture_format(path: str | os.PathLike[str]) -> str:
    """The picture format that the suffix of `path` names; ValueError if it is none of `FORMATS`."""
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"no picture format for {Path(path).name!r}: end the name in .{', .'.join(FORMATS)}")
    return kind


def pool_columns(x: Floats, limit: int) -> Floats:
    """Max-pool neighbouring columns: (rows, columns) -> (rows, at most `limit` columns).

    A pool has ceil(columns / limit) columns, the last one the remainder. The maximum, not the mean, so that a
    click in an hour still shows.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1 column, got {limit}")
    columns = x.shape[1]
    run = -(-columns // limit)
    return x if run <= 1 else np.maximum.reduceat(x, np.arange(0, columns, run), axis=1)


def draw_spectrogram(axes: Axes, bar: Axes, sound: Spectrogram) -> None:
    """Draw a log-mel with its colour bar; the time axis is in seconds and the caller's to label."""
    image = pool_columns(sound.log_mel, MAX_COLUMNS)
    bands, columns = image.shape
    run = -(-sound.log_mel.shape[1] // columns)
    low, high = np.percentile(image, (1, 99.9))  # single peaks and digital silence do not eat the range
    drawn = axes.imshow(
        image,
        cmap=_SOUND_MAP,
        aspect="auto",
        origin="lower",
        extent=(0, columns * run * sound.frame_s, -0.5, bands - 0.5),
        vmin=low,
        vmax=max(high, low + 1e-3),
    )
    ticks = [hz for hz in _TICKS_HZ if sound.band_hz[0] <= hz <= sound.band_hz[-1]]
    names = [f"{hz} Hz" if hz < 1000 else f"{hz // 1000} kHz" for hz in ticks]
    axes.set_yticks(np.interp(ticks, sound.band_hz, np.arange(bands)), names)
    axes.set_ylabel("frequency")
    Colorbar(bar, drawn).set_ticks(list(drawn.get_clim()), labels=["quiet", "loud"])
    bar.set_ylabel("log-mel", labelpad=-18)  # between the two words, not beyond them


def label_time(axes: Axes, duration_s: float) -> None:
    """Ticks at round times from 0 to the end, in seconds, minutes or hours."""
    size_s, unit = (1, "s") if duration_s < 180 else (60, "min") if duration_s < 10800 else (3600, "h")
    step_s = next((step for step in _TICKS_S if duration_s / step <= 12), duration_s / 10)
    ticks_s = np.arange(0, duration_s * 1.001, step_s)
    axes.set_xticks(ticks_s, [f"{tick / size_s:g}" for tick in ticks_s])
    axes.set_xlim(0, duration_s)
    axes.set_xlabel(f"time ({unit})")


def fonts() -> list[str]:
    """The installed fonts of `_FONTS`: matplotlib warns about each one that is missing."""
    names = set(fontManager.get_font_names())
    return [name for name in _FONTS if name in names]


def plain(text: str, limit: int) -> str:
    """One line of at most `limit` characters, its middle cut; unprintable ones are replaced."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    half = (limit - 1) // 2
    return line if len(line) <= limit else f"{line[:half]}\N{HORIZONTAL ELLIPSIS}{line[-half:]}"


def save(figure: Figure, path: Path, kind: str) -> None:
    """Save the figure; a character that no font has is drawn as a box, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings("ignore", message=r"Matplotlib currently does not", category=UserWarning)
        figure.savefig(path, format=kind)

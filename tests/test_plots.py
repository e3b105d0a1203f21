"""Pictures: what is drawn, what is refused, and what is left on the disk."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import module_of
from matplotlib.image import imread

from patchout.figures import pool_columns
from patchout.inference.events import Event
from patchout.inference.figures.tags import TagTrack, tags_over_time, top_rows


def track(
    *, frames: int = 300, windows: int = 6, labels: tuple[str, ...] = ("dog", "rain", "siren")
) -> TagTrack:
    rng = np.random.default_rng(0)
    return TagTrack(
        log_mel=rng.normal(size=(16, frames)).astype(np.float32),
        band_hz=np.linspace(100, 9000, 16),
        frame_s=0.01,
        times_s=(np.arange(windows) + 0.5) * frames * 0.01 / max(windows, 1),
        scores=rng.uniform(size=(windows, len(labels))).astype(np.float32),
        labels=labels,
    )


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_picture_is_a_png_of_ten_inches(tmp_path: Path) -> None:
    tags_over_time(tmp_path / "street.png", track(), title="street.wav")
    width, height = png_size(tmp_path / "street.png")
    assert width == 1500
    assert 500 < height < 1500
    assert [path.name for path in tmp_path.iterdir()] == ["street.png"]


@pytest.mark.slow
def test_more_labels_make_a_higher_picture_up_to_ten(tmp_path: Path) -> None:
    heights = []
    for count in (3, 10, 30):
        tags_over_time(tmp_path / "x.png", track(labels=tuple(f"label {i}" for i in range(count))))
        heights.append(png_size(tmp_path / "x.png")[1])
    assert heights[0] < heights[1] == heights[2]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "start"), [("x.pdf", b"%PDF"), ("x.svg", b"<?xml"), ("X.PNG", b"\x89PNG")])
def test_suffix_decides_the_format(tmp_path: Path, name: str, start: bytes) -> None:
    tags_over_time(str(tmp_path / name), track())
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["x.jpeg2", "x", ".png"])
def test_other_suffix_names_the_allowed_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"\.png, \.pdf, \.svg"):
        tags_over_time(tmp_path / name, track())
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="cannot write into the folder") as caught:
        tags_over_time(tmp_path / "file" / "x.png", track())
    assert str(tmp_path / "file") in str(caught.value)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_failure_while_saving_keeps_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(_figure: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    (tmp_path / "x.png").write_bytes(b"old")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", disk_full)
    with pytest.raises(OSError, match="disk full"):
        tags_over_time(tmp_path / "x.png", track())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x.png": b"old"}


@pytest.mark.slow
def test_events_and_scores_change_the_picture(tmp_path: Path) -> None:
    plain = track()
    louder = np.minimum(plain.scores + 0.3, 1)
    for name, variant in {
        "plain": plain,
        "events": replace(plain, events=[Event("dog", 0.5, 1.5, 0.9)]),
        "scores": replace(plain, scores=louder),
    }.items():
        tags_over_time(tmp_path / f"{name}.png", variant)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("windows", [8, 8000])
def test_scores_stand_at_their_time(tmp_path: Path, windows: int) -> None:
    given = track(windows=windows, labels=("dog",))
    last_quarter = (np.arange(windows) >= 0.75 * windows).astype(np.float32)
    tags_over_time(tmp_path / "x.png", replace(given, scores=last_quarter[:, None]))
    pixels = np.round(255 * imread(tmp_path / "x.png")[..., :3])
    dark, light = (
        (pixels == colour).all(axis=2) for colour in [(8, 48, 107), (247, 251, 255)]
    )  # 1 and 0 in Blues
    row = dark.sum(axis=1).argmax()
    assert dark[row].sum() / (dark[row] | light[row]).sum() == pytest.approx(0.25, abs=0.005)
    assert np.flatnonzero(light[row]).max() < np.flatnonzero(dark[row]).min()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (300, 1), (300, 0), (1, 0)])
def test_few_frames_and_few_windows(tmp_path: Path, shape: tuple[int, int]) -> None:
    tags_over_time(tmp_path / "x.png", track(frames=shape[0], windows=shape[1]))
    assert png_size(tmp_path / "x.png")[0] == 1500


@pytest.mark.slow
def test_no_labels_leave_the_spectrogram_alone(tmp_path: Path) -> None:
    tags_over_time(tmp_path / "with.png", track())
    tags_over_time(tmp_path / "without.png", track(labels=()))
    assert png_size(tmp_path / "without.png")[1] < png_size(tmp_path / "with.png")[1]


def test_silence_is_drawn(tmp_path: Path) -> None:
    tags_over_time(tmp_path / "x.png", replace(track(), log_mel=np.full((16, 300), -1.4)))
    assert png_size(tmp_path / "x.png")[0] == 1500


@pytest.mark.slow
def test_long_sound_makes_a_small_file(tmp_path: Path) -> None:
    tags_over_time(tmp_path / "x.svg", track(frames=200_000, windows=7_001))  # 33 minutes
    assert (tmp_path / "x.svg").stat().st_size < 3_000_000


@pytest.mark.slow
def test_a_click_in_a_long_sound_still_shows(tmp_path: Path) -> None:
    log_mel = np.repeat([0.0, 10.0], 8)[:, None] * np.ones(200_000)  # low bands quiet, high bands loud
    log_mel[3, 100_000] = 10
    tags_over_time(tmp_path / "x.png", replace(track(frames=200_000, labels=()), log_mel=log_mel))
    pixels = np.round(255 * imread(tmp_path / "x.png")[..., :3])
    quiet = pixels.max(axis=2) < 8  # the lowest colour of magma is nearly black
    rows = quiet.sum(axis=1) > 1000
    inside = slice(*np.flatnonzero(quiet[rows].mean(axis=0) > 0.9)[[0, -1]])
    assert pixels[rows, inside, 0].max() > 50


def test_text_is_never_read_as_markup_or_refused(tmp_path: Path) -> None:
    labels = ("$\\frac{$ äöü", "犬の鳴き声 \U0001f415", "\udcff\t\x07" + 50 * "long ")
    tags_over_time(
        tmp_path / "ü.png", track(labels=labels), title="$\\nothing$ 日本語 हिन्दी \udcff\n.wav" * 9
    )
    assert png_size(tmp_path / "ü.png")[0] == 1500


def test_pooling_keeps_the_largest_of_each_run() -> None:
    x = np.array([[1.0, 5.0, 2.0, 3.0, 4.0], [9.0, 0.0, 0.0, 0.0, -1.0]])
    np.testing.assert_array_equal(pool_columns(x, 3), [[5.0, 3.0, 4.0], [9.0, 0.0, -1.0]])


@pytest.mark.parametrize(
    ("columns", "pooled"), [(1, 1), (1999, 1999), (2000, 2000), (2001, 1001), (4001, 1334)]
)
def test_pooled_size_stays_below_the_limit(columns: int, pooled: int) -> None:
    assert pool_columns(np.zeros((4, columns)), 2000).shape == (4, pooled)


def test_pooling_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 column, got 0"):
        pool_columns(np.zeros((4, 9)), 0)


def test_rows_are_events_first_then_the_highest_peaks() -> None:
    scores = np.array([[0.1, 0.9, 0.3, 0.2], [0.2, 0.1, 0.6, 0.2]])
    given = replace(
        track(windows=2, labels=("a", "b", "c", "d")), scores=scores, events=[Event("d", 0.0, 1.0, 0.9)]
    )
    assert top_rows(given) == [3, 1, 2, 0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"log_mel": np.zeros((15, 300))}, r"16 bands.*\(15, 300\)"),
        ({"log_mel": np.zeros((16, 0))}, r"at least 1 frame.*\(16, 0\)"),
        ({"scores": np.zeros((3, 6))}, r"6 times, 3 labels.*\(3, 6\)"),
        ({"frame_s": 0.0}, "more than 0 seconds, got 0.0"),
    ],
)
def test_arrays_that_do_not_belong_together(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(track(), **wrong)


@pytest.fixture(scope="module")
def demo_sounds() -> ModuleType:
    return module_of("examples/demo_sounds.py")


@pytest.mark.slow
@pytest.mark.parametrize("rate", [32000, 44100])
def test_demo_sounds_are_whole_finite_and_repeatable(demo_sounds: ModuleType, rate: int) -> None:
    for sound in demo_sounds.SOUNDS:
        first, second = (sound(2.0, rate, np.random.default_rng(7)) for _ in range(2))
        assert first.shape == (2 * rate,)
        assert 0.2 < np.abs(first).max() <= 1, sound.__name__
        np.testing.assert_array_equal(first, second)


def test_demo_clock_ticks_twice_a_second(demo_sounds: ModuleType) -> None:
    wave = demo_sounds.clock_tick(5.0, 32000, np.random.default_rng(0))
    loud = np.abs(wave).reshape(-1, 320).max(axis=1) > 0.1  # 10 ms each
    assert np.flatnonzero(loud & ~np.roll(loud, 1)).tolist() == list(range(20, 500, 50))

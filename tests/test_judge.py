"""The numbers of `patchout judge`: golden cases of the public tools, their windows, their resamplers."""

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soxr
from conftest import noise, tone
from scipy import linalg

from patchout.judge import (
    PROTOCOLS,
    Clip,
    Loading,
    frechet,
    frechet_infinite,
    frechet_interval,
    inception,
    kernel,
    kl,
    statistics,
)
from patchout.judge import metrics as judge_metrics
from patchout.judge.loading import SINCS, loaded, resample
from patchout.judge.metrics import mean_interval, nearest
from patchout.judge.protocols import protocol_of

Array = np.ndarray


class Golden:
    """The arrays of the golden cases, drawn in their order."""

    def __init__(self) -> None:
        rng = np.random.RandomState(0)

        def features(n: int, d: int, shift: float, scale: float) -> Array:
            return (rng.standard_normal((n, d)) * scale + shift).astype(np.float32)

        self.generated, self.reference = features(200, 16, 0.1, 1.1), features(180, 16, 0.0, 1.0)
        self.few, self.few_reference = features(20, 64, 0.1, 1.0), features(24, 64, 0.0, 1.0)
        self.logits, self.reference_logits = (
            rng.standard_normal((50, 527)).astype(np.float32) * 3 - 5 for _ in range(2)
        )


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


# -- golden cases of the public functions -----------------------------------------------------------------


def test_the_golden_arrays_are_those_of_the_public_runs(golden: Golden) -> None:
    assert golden.generated.astype(np.float64).sum() == pytest.approx(214.68625237519154, rel=1e-12)
    assert golden.logits.astype(np.float64).sum() == pytest.approx(-131820.43265223503, rel=1e-12)


def test_fd_is_that_of_av_benchmark(golden: Golden) -> None:
    distance = frechet(golden.generated, golden.reference)
    assert distance == pytest.approx(1.1180766577814296, rel=1e-6)
    assert distance == pytest.approx(1.1180766630762236, rel=1e-12)  # all in float64


def test_fd_with_a_diagonal_is_that_of_fastvideo(golden: Golden) -> None:
    diagonal = PROTOCOLS["fastvideo"].diagonal
    distance = frechet(golden.generated, golden.reference, diagonal=diagonal)
    assert distance == pytest.approx(1.118075752115729, rel=1e-6)


def test_fd_of_fewer_clips_than_features(golden: Golden) -> None:
    assert frechet(golden.few, golden.few_reference) == pytest.approx(74.69601244253522, rel=1e-5)
    distance = frechet(golden.few, golden.few_reference, diagonal=1e-6)
    assert distance == pytest.approx(74.68500472408601, rel=1e-5)


def test_fd_is_that_of_the_iterated_root(golden: Golden) -> None:
    covariances = [np.cov(rows, rowvar=False) for rows in (golden.generated, golden.reference)]
    gap = golden.generated.mean(axis=0, dtype=np.float64) - golden.reference.mean(axis=0, dtype=np.float64)
    shared = np.trace(linalg.sqrtm(covariances[0] @ covariances[1]).real)
    expected = gap @ gap + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * shared
    assert frechet(golden.generated, golden.reference) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("av-benchmark", 7.303796291351318),
        ("stable-audio", 7.3292622566223145),
        ("audiocraft", 6.989685535430908),
        ("fastvideo", 7.303796291351318),
    ],
)
def test_kl_of_each_protocol(golden: Golden, name: str, expected: float) -> None:
    rules = PROTOCOLS[name]
    value = kl(golden.logits, golden.reference_logits, direction=rules.direction, inside=rules.inside)
    assert value == pytest.approx(expected, rel=1e-6)


def test_the_other_direction_of_audiocraft(golden: Golden) -> None:
    value = kl(golden.logits, golden.reference_logits, direction="generated-reference", inside=1e-6)
    assert value == pytest.approx(7.3292622566223145, rel=1e-6)


def test_inception_score_and_its_deviation(golden: Golden) -> None:
    score = inception(golden.logits)
    assert score.value == pytest.approx(3.9885414143750872, rel=1e-6)
    assert score.deviation == pytest.approx(0.18794894759677325, rel=1e-6)


# -- the exact form ---------------------------------------------------------------------------------------


def test_equal_sets_have_the_distance_zero(golden: Golden) -> None:
    assert frechet(golden.generated, golden.generated) == 0.0
    assert frechet(golden.few, golden.few[::-1]) == 0.0  # below full rank too
    assert kl(golden.logits, golden.logits) == 0.0


def test_statistics_in_blocks_are_those_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (np.random.default_rng(0).standard_normal((1000, 8)) + 1e4).astype(np.float32)
    monkeypatch.setattr(judge_metrics, "BLOCK", 64)
    streamed = statistics(rows)
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(streamed.mean, wide.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(streamed.covariance, np.cov(wide, rowvar=False), rtol=1e-9)


def test_statistics_take_no_more_memory_for_more_clips(tmp_path: Path) -> None:
    peaks = []
    for count in (10_000, 40_000):
        rows = np.memmap(tmp_path / "rows", np.float32, "w+", shape=(count, 32))
        tracemalloc.start()
        statistics(np.asarray(rows))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_statistics_of_two_parts_add_up(golden: Golden) -> None:
    joined = statistics(golden.generated[:50]) + statistics(golden.generated[50:])
    assert frechet(joined, golden.generated) == 0.0


def test_an_interval_holds_its_value_also_below_the_least() -> None:
    values = np.full(4, -1e-5)  # equal pairs by `stable-audio`, with 1e-6 inside the logarithm
    assert mean_interval(values) == pytest.approx((-1e-5, -1e-5, -1e-5, np.nan), nan_ok=True)


def test_the_interval_holds_the_distance_of_new_draws() -> None:
    rng = np.random.default_rng(1)
    draws = [rng.standard_normal((400, 4)) for _ in range(12)]
    interval = frechet_interval(draws[0] + 0.5, draws[1])
    others = [frechet(one + 0.5, two) for one, two in zip(draws[2::2], draws[3::2], strict=True)]
    assert interval.low < np.mean(others) < interval.high
    assert interval.high - interval.low < 1.0


@pytest.mark.slow
def test_fd_inf_takes_the_bias_of_few_clips_away() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal((600, 64)), rng.standard_normal((600, 64)) * 1.1
    truth = 64 * 0.01
    biased, extrapolated = frechet(one, two), frechet_infinite(one, two)
    assert biased > 4 * truth
    assert abs(extrapolated.value - truth) < 0.25 * (biased - truth)
    by_kadtk = frechet_infinite(one, two, replace=True)
    assert abs(by_kadtk.value - biased) < 0.2 * biased  # drawn with replacement, most of the bias stays


def test_kernel_distance_is_the_unbiased_mmd_of_every_pair() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((7, 3)), rng.standard_normal((5, 3)) + 1.0
    among = sorted(np.linalg.norm(x[i] - x[j]) for i in range(7) for j in range(i))
    gamma = 1 / (2 * among[(len(among) - 1) // 2] ** 2 + 1e-8)

    def k(a: Array, b: Array) -> float:
        return float(np.exp(-gamma * np.sum((a - b) ** 2)))

    within_x = np.mean([k(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    within_y = np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    between = np.mean([k(a, b) for a in x for b in y])
    assert kernel(x, y).value == pytest.approx(100 * (within_x + within_y - 2 * between), rel=1e-9)


def test_nearest_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_metrics, "BLOCK", 4)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((9, 3)), rng.standard_normal((11, 3))
    places, distances = nearest(x, y)
    table = np.linalg.norm(x[:, None] - y[None], axis=-1)
    np.testing.assert_array_equal(places, table.argmin(axis=1))
    np.testing.assert_allclose(distances, table.min(axis=1), rtol=1e-9)


@pytest.mark.parametrize("count", [1, 9])
def test_too_few_clips_are_refused(count: int) -> None:
    rows = np.zeros((count, 3))
    with pytest.raises(ValueError, match="10 chunks needs as many clips"):
        inception(rows)
    if count == 1:
        with pytest.raises(ValueError, match="2 clips or more"):
            frechet(rows, rows)


# -- windows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "starts", "last_s", "is_padded"),
    [
        (0.1, [0], 0.1, False),
        (1.4, [0], 1.4, False),
        (1.6, [0], 1.6, True),
        (5, [0], 5, True),
        (9.99, [0], 9.99, True),
        (10, [0], 10, True),
        (10.01, [0, 5], 5.01, True),
        (12.5, [0, 5], 7.5, True),
        (14.99, [0, 5], 9.99, True),
        (15, [0, 5], 10, True),
        (15.01, [0, 5, 10], 5.01, True),
        (20, [0, 5, 10], 10, True),
        (20.01, [0, 5, 10, 15], 5.01, True),
        (31, [0, 5, 10, 15, 20, 25], 6, True),
    ],
)
def test_windows_of_stable_audio(seconds: float, starts: list[int], last_s: float, is_padded: bool) -> None:
    spans = PROTOCOLS["stable-audio"].clip.windows(round(32000 * seconds), 32000)
    assert [start / 32000 for start, _, _ in spans] == starts
    assert all(end - start == 320_000 for start, end, _ in spans[:-1])
    start, end, padded = spans[-1]
    assert end - start == round(32000 * last_s)
    assert padded == (320_000 if is_padded else end - start)


@pytest.mark.parametrize(
    ("seconds", "lengths"), [(0.15, []), (0.16, [0.16]), (10, [10]), (10.1, [10]), (25, [10, 10, 5])]
)
def test_pieces_of_audiocraft(seconds: float, lengths: list[float]) -> None:
    spans = PROTOCOLS["audiocraft"].clip.windows(round(32000 * seconds), 32000)
    assert [(end - start) / 32000 for start, end, _ in spans] == lengths
    assert [padded for _, _, padded in spans] == [end - start for start, end, _ in spans]


def test_av_benchmark_hears_eight_seconds_and_zeros() -> None:
    wave = np.ones(12 * 100, np.float32)
    ((_, window),) = PROTOCOLS["av-benchmark"].clip.cut(wave, 100)
    assert (len(window), window.sum(), window[:800].min()) == (1000, 800.0, 1.0)


def test_a_scene_is_mirrored_at_both_ends() -> None:
    clip = Clip(policy="scene", hop_s=2.5)
    wave = np.arange(2000, dtype=np.float32)
    windows = [window for _, window in clip.cut(wave, 100)]
    assert [len(window) for window in windows] == [1000] * 9  # centres at 0, 2.5, ..., 20 s
    np.testing.assert_array_equal(windows[0][:500], wave[500:0:-1])
    np.testing.assert_array_equal(windows[4], wave[500:1500])
    assert len([*clip.cut(wave[:900], 100)]) == 1


def test_windows_shrink_with_the_model() -> None:
    clip = PROTOCOLS["av-benchmark"].scaled(5.0).clip
    assert (clip.window_s, clip.cut_s) == (5.0, 5.0)
    assert PROTOCOLS["stable-audio"].scaled(5.0).clip.hop_s == 2.5
    assert PROTOCOLS["av-benchmark"].scaled(20.0) == PROTOCOLS["av-benchmark"]


def test_an_unknown_protocol_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"did you mean kadtk\?.*av-benchmark"):
        protocol_of("kadtkk")


# -- loading ----------------------------------------------------------------------------------------------


def by_formula(wave: Array, rate: int, new_rate: int, method: str) -> Array:
    """One output sample after another, as the documentation of torchaudio and julius gives the sum."""
    zeros, rolloff, beta, is_normalised = SINCS[method]
    cutoff = rolloff * min(rate, new_rate)
    length = (math.floor if is_normalised else math.ceil)(new_rate * len(wave) / rate)
    out = []
    for m in range(length):
        first = math.ceil((m / new_rate - zeros / cutoff) * rate)
        n = np.arange(first, math.floor((m / new_rate + zeros / cutoff) * rate) + 1)
        t = (n / rate - m / new_rate) * cutoff
        ratio = np.clip(t / zeros, -1, 1)
        if beta is None:
            window = np.cos(ratio * np.pi / 2) ** 2
        else:
            window = np.i0(beta * np.sqrt(1 - ratio**2)) / np.i0(beta)
        h = np.sinc(t) * window
        x = wave[np.clip(n, 0, len(wave) - 1)].astype(np.float64)
        x = x if is_normalised else np.where((n >= 0) & (n < len(wave)), x, 0.0)
        out.append(h @ x / (h.sum() if is_normalised else rate / cutoff))
    return np.array(out)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hann", "kaiser", "julius"])
@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 44_100, 48_000])
def test_resamplers_are_the_documented_formula(method: str, rate: int) -> None:
    wave = noise(0.02)[:331] + tone(0.02)[:331]
    np.testing.assert_allclose(
        resample(wave, rate, 32_000, method=method), by_formula(wave, rate, 32_000, method), atol=1e-6
    )


def test_soxr_is_one_call_in_high_quality_of_librosa_s_length() -> None:
    wave = noise(0.1)[:3001]
    fresh = resample(wave, 44_100, 32_000, method="soxr")
    assert len(fresh) == math.ceil(3001 * 32_000 / 44_100)
    whole = soxr.resample(wave, 44_100, 32_000, quality="HQ")
    np.testing.assert_array_equal(fresh[: len(whole)], whole[: len(fresh)])


@pytest.mark.parametrize("method", ["hann", "kaiser", "julius", "soxr"])
def test_a_tone_keeps_its_level(method: str) -> None:
    fresh = resample(tone(0.5, 1000, rate=44_100), 44_100, 32_000, method=method)
    assert np.abs(fresh[2000:-2000]).max() == pytest.approx(0.2, rel=2e-3)
    assert resample(tone(0.1), 32_000, 32_000, method=method) is not None


def test_each_field_of_a_loading_counts() -> None:
    wave = noise(0.1) + np.float32(0.3)
    plain = loaded(wave, 32_000, 32_000, Loading(resampler="soxr"))
    np.testing.assert_array_equal(plain, wave)
    centred = loaded(wave, 32_000, 32_000, Loading(resampler="soxr", remove_mean=True))
    assert abs(centred.mean()) < 1e-6
    levelled = loaded(wave, 32_000, 32_000, Loading(resampler="soxr", peak_db=-1.0))
    assert np.abs(levelled).max() == pytest.approx(10 ** (-1 / 20), rel=1e-6)
    rounded = loaded(wave, 32_000, 32_000, Loading(resampler="soxr", pcm16=True))
    np.testing.assert_array_equal(rounded * 2**15, np.round(rounded * 2**15))
    assert np.abs(rounded - wave).max() <= 2**-16


def test_silence_stays_silent_where_its_peak_is_divided_by() -> None:
    silent = loaded(np.zeros(100, np.float32), 32_000, 32_000, Loading(resampler="soxr", peak_db=-1.0))
    np.testing.assert_array_equal(silent, 0)

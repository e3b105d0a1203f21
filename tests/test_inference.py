"""Tagging: any length, any mixture of lengths, any failure, in order."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RATE, noise, tiny_config, tone, write_wav

import patchout
from patchout.audio.mel import log_mel
from patchout.audio.read_ahead import read_ahead
from patchout.audio.stream import AudioError, Stream
from patchout.checkpoint.own import save
from patchout.data.augment import keyed
from patchout.inference.events import EventRule
from patchout.inference.tagging import overview, tag, tag_many
from patchout.inference.window_scores import score, score_each
from patchout.models.decision import Decision
from patchout.models.passt import Passt

FULL = 105 * 320  # samples of the tiny model's longest input


def model_scores(model: Passt, wave: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(log_mel(wave[None], model.config.mel)).logits.softmax(1)[0].numpy()


def test_a_clip_up_to_the_models_length_is_one_forward_pass(tiny: Passt) -> None:
    wave = noise(FULL / RATE)
    tags = tag(tiny, (wave, RATE), top=3)
    expected = model_scores(tiny, wave)
    assert tags.labels == tuple(np.array(tiny.config.labels)[np.argsort(-expected)])
    np.testing.assert_allclose(tags.scores, np.sort(expected)[::-1], atol=1e-6)
    assert tags.duration_s == pytest.approx(1.05)
    assert tags.events == ()


def test_a_longer_clip_is_the_mean_of_windows_that_overlap_by_half(tiny: Passt) -> None:
    wave = noise(2.5)
    starts = [0, FULL // 2, FULL, len(wave) - FULL]  # the last one ends with the sound
    expected = np.mean([model_scores(tiny, wave[start : start + FULL]) for start in starts], axis=0)
    tags = tag(tiny, (wave, RATE), top=3)
    np.testing.assert_allclose(tags.scores, np.sort(expected)[::-1], atol=1e-6)


def test_multi_label_scores_are_sigmoids() -> None:
    model = Passt(tiny_config(task="multi_label"), rng=torch.Generator().manual_seed(0)).eval()
    wave = noise(1.0)
    with torch.inference_mode():
        expected = model(log_mel(wave[None], model.config.mel)).logits.sigmoid()[0].numpy()
    np.testing.assert_allclose(tag(model, (wave, RATE)).scores, np.sort(expected)[::-1], atol=1e-6)


@pytest.mark.parametrize("samples", [1, 2, 320, 513, 4800])
def test_a_clip_too_short_for_a_patch_gets_zeros_after_it(tiny: Passt, samples: int) -> None:
    wave = noise(samples / RATE)
    padded = np.pad(wave, (0, 4801 - samples))
    np.testing.assert_allclose(tag(tiny, (wave, RATE)).scores[0], model_scores(tiny, padded).max(), atol=1e-6)
    assert tag(tiny, (wave, RATE)).duration_s == samples / RATE


def test_a_sound_shorter_than_the_training_clips_gets_silence_as_they_did(tiny: Passt) -> None:
    """The windows of events stay what they are."""
    wave = noise(0.5)
    rule = EventRule(window_s=0.25)
    alone = next(score(tiny, [Stream((wave, RATE))], events=rule))
    tiny.config = replace(tiny.config, pad_s=1.0)
    padded = next(score(tiny, [Stream((wave, RATE))], events=rule))
    assert padded.scores is not None
    assert alone.scores is not None
    np.testing.assert_allclose(padded.scores, model_scores(tiny, np.pad(wave, (0, RATE // 2))), atol=1e-6)
    np.testing.assert_array_equal(padded.track, alone.track)
    assert np.abs(padded.scores - alone.scores).max() > 1e-4
    longer = noise(1.03)
    np.testing.assert_allclose(
        tag(tiny, (longer, RATE)).scores[0], model_scores(tiny, longer).max(), atol=1e-6
    )


def test_batches_mix_lengths_and_files_without_changing_a_score(tiny: Passt) -> None:
    waves = [noise(seconds, seed) for seed, seconds in enumerate([0.3, 2.2, 0.31, 1.0, 0.7, 3.0, 0.3])]
    together = list(
        tag_many(tiny, [(wave, RATE) for wave in waves], batch_size=4, events=EventRule(window_s=0.4))
    )
    for wave, tags in zip(waves, together, strict=True):
        alone = tag(tiny, (wave, RATE), batch_size=1, events=EventRule(window_s=0.4))
        assert tags.labels == alone.labels
        np.testing.assert_allclose(tags.scores, alone.scores, atol=1e-6)
        assert [event.label for event in tags.events] == [event.label for event in alone.events]


def test_a_source_that_fails_is_named_and_the_rest_is_done(tiny: Passt, tmp_path: Path) -> None:
    good = write_wav(tmp_path / "good.wav", noise(0.5))
    (tmp_path / "text.wav").write_text("this is no sound")
    sources = [str(good), str(tmp_path / "text.wav"), str(tmp_path / "missing.wav"), str(good)]
    results = list(tag_many(tiny, sources))
    assert [result.file for result in results] == sources
    assert [result.error is None for result in results] == [True, False, False, True]
    assert "text.wav" in (results[1].error or "")
    assert results[1].labels == ()
    assert results[0].scores == pytest.approx(results[3].scores)


def test_one_source_raises(tiny: Passt, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing.wav"):
        tag(tiny, str(tmp_path / "missing.wav"))
    with pytest.raises(AudioError, match="NaN"):
        tag(tiny, (np.full(RATE, np.nan, np.float32), RATE))


def test_silence_is_said_to_be_silent(tiny: Passt) -> None:
    assert "silent" in (tag(tiny, (np.zeros(RATE, np.float32), RATE)).warning or "")
    assert tag(tiny, (noise(1.0), RATE)).warning is None


@pytest.mark.parametrize("slope", [1.0, 0.2])
@pytest.mark.parametrize(("last", "is_named"), [("rain", False), ("Silence", True)])
def test_nothing_is_heard_in_digital_silence_unless_it_is_a_class(
    last: str, is_named: bool, slope: float
) -> None:
    """Neither in a sound nor at the end of one: a model that knows no silence gives it some class."""
    decision = Decision(slope=slope)  # softmax scores that are calibrated add up to 1, those of silence too
    model = Passt(tiny_config(labels=("bell", "dog", last), decision=decision), rng=keyed("silence")).eval()
    rule, silence = EventRule(on=0.01, median=1), np.zeros(2 * RATE, np.float32)
    tags = tag(model, (silence, RATE), events=rule)
    assert (any(tags.scores), any(tags.passed), bool(tags.events)) == (is_named,) * 3
    tags = tag(model, (np.concatenate([noise(2.0), silence]), RATE), events=rule)
    assert len(tags.events) == 3
    assert all(tags.scores)
    ends_s = {event.end_s for event in tags.events}
    assert (ends_s == {4.0}) if is_named else (max(ends_s) < 2.6)


def test_other_rates_are_resampled(tiny: Passt) -> None:
    low = tag(tiny, (tone(1.0, 440, rate=16_000), 16_000), top=3)
    full = tag(tiny, (tone(1.0, 440), RATE), top=3)
    np.testing.assert_allclose(low.scores, full.scores, atol=0.02)


def test_events_follow_the_sound() -> None:
    """A model that can tell loud from quiet finds the loud second."""
    model = Passt(tiny_config(labels=("loud", "quiet")), rng=torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        probe = [
            model(log_mel(wave[None], model.config.mel)).embedding[0]
            for wave in (noise(0.5), 1e-4 * noise(0.5))
        ]
        model.head[0].weight.fill_(1.0)
        direction = torch.nn.functional.layer_norm(probe[0], (32,)) - torch.nn.functional.layer_norm(
            probe[1], (32,)
        )
        model.head[1].weight.copy_(torch.stack([direction, -direction]))
        middle = sum(torch.nn.functional.layer_norm(one, (32,)) for one in probe) / 2
        model.head[1].bias.copy_(-model.head[1].weight @ middle)
    wave = np.concatenate([1e-4 * noise(2.0), noise(1.0, 1), 1e-4 * noise(2.0, 2)])
    tags = tag(model, (wave, RATE), events=EventRule(window_s=0.25, hop_s=0.125, median=1))
    loud = [event for event in tags.events if event.label == "loud"]
    assert len(loud) == 1
    assert loud[0].start_s == pytest.approx(2.0, abs=0.2)
    assert loud[0].end_s == pytest.approx(3.0, abs=0.2)


@pytest.mark.parametrize(("field", "value"), [("top", 0), ("batch_size", 0)])
def test_nonsense_numbers_are_refused(tiny: Passt, field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{field}.* at least 1, got 0"):
        tag(tiny, (noise(0.5), RATE), **{field: value})  # type: ignore[arg-type]


def test_to_dict_is_plain_and_complete(tiny: Passt) -> None:
    record = tag(tiny, (noise(0.5), RATE), top=2).to_dict()
    assert list(record) == ["file", "duration_s", "tags", "events", "warning", "error"]
    assert list(record["tags"][0]) == ["label", "score", "threshold", "passed"]
    assert len(record["tags"]) == 2
    assert record["error"] is None


def test_the_overview_covers_the_whole_sound_in_bounded_columns(tiny: Passt) -> None:
    config = replace(tiny.config, labels=("a", "b"))
    quiet, clicks = np.zeros(85 * RATE, np.float32), (11.5, 39.5, 78.0)
    for click in clicks:
        quiet[round(click * RATE) :][:100] = 0.5
    picture, column_s = overview((quiet, RATE), config, duration_s=85.0, limit=1000)
    assert picture.shape[0] == 128
    assert picture.shape[1] * column_s == pytest.approx(85.0, abs=0.1)
    assert picture.shape[1] <= 1001
    loudest = np.sort(np.argsort(picture.max(0))[-3:])
    np.testing.assert_allclose(loudest * column_s, clicks, atol=0.1)


def test_a_stream_is_scored_in_order_of_its_files(tiny: Passt) -> None:
    streams = (Stream((noise(seconds), RATE), RATE) for seconds in (2.0, 0.2, 1.0))
    durations = [one.duration_s for one in score(tiny, streams, batch_size=2)]
    assert durations == pytest.approx([2.0, 0.2, 1.0])


MEASURE = """
import sys
from pathlib import Path
import patchout
model = patchout.load(sys.argv[1], device="cpu")
patchout.tag(model, sys.argv[2], events=patchout.EventRule())
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(peak.split()[1])  # KiB, of this program alone: getrusage counts what the forking parent held, too
"""
LEAN = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}  # many cores have a heap each


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's /proc")
def test_ten_minutes_take_no_more_memory_than_one(tiny: Passt, tmp_path: Path) -> None:
    save(tiny, tmp_path / "m.safetensors")
    peaks = []
    for minutes in (1, 10):
        path = write_wav(tmp_path / f"{minutes}.wav", np.tile(noise(60.0), minutes))
        run = [sys.executable, "-c", MEASURE, str(tmp_path / "m.safetensors"), str(path)]
        peaks.append(int(subprocess.run(run, check=True, capture_output=True, env=LEAN).stdout))
    assert peaks[1] - peaks[0] < 40_000  # KiB; ten minutes of samples are 77 MB


@pytest.mark.slow
def test_a_result_does_not_wait_for_the_end_of_a_longer_file(tiny: Passt, tmp_path: Path) -> None:
    """The short clip's batch never fills, the long file has 100 windows of another length."""
    long = Stream(write_wav(tmp_path / "long.wav", noise(60.0)), RATE)
    scored = score(tiny, [Stream((noise(0.3), RATE), RATE), long], batch_size=4)
    assert next(scored).name == "<array>"
    assert long.duration_s < 30
    assert [one.error for one in scored] == [None]


# -- decoding ahead ------------------------------------------------------------------------------------------


def test_streams_are_decoded_ahead_in_order_with_their_errors(tmp_path: Path) -> None:
    """Threads run ahead of the reader: the blocks are those of the streams, an error comes at its stream."""
    paths = [write_wav(tmp_path / f"{seed}.wav", noise(0.3 + 0.1 * seed, seed)) for seed in range(5)]
    paths.insert(2, tmp_path / "missing.wav")
    lengths: list[int | str] = []
    for stream in read_ahead([Stream(path) for path in paths], threads=2):
        try:
            lengths.append(sum(len(block) for block in stream))
        except OSError:
            lengths.append(Path(stream.name).name)
    assert lengths == [9600, 12800, "missing.wav", 16000, 19200, 22400]


def test_reading_ahead_ends_with_its_reader(tmp_path: Path) -> None:
    """Also where a long stream is left in its middle, and its thread waits for room."""
    path = write_wav(tmp_path / "long.wav", noise(70.0))
    before = threading.active_count()
    streams = read_ahead([Stream(path) for _ in range(4)], threads=2)
    first = next(streams)
    assert len(next(iter(first))) >= 10 * RATE
    assert threading.active_count() > before
    streams.close()
    assert threading.active_count() == before


def test_a_source_of_a_generator_is_asked_for_when_the_one_before_was_read(tiny: Passt) -> None:
    """A file that its generator closes, or a buffer that it fills again, must be read before it goes on."""
    buffer = np.zeros(RATE, np.float32)

    def refilled() -> Iterator[tuple[np.ndarray, int]]:
        for seed in range(3):
            buffer[:] = noise(1.0, seed)
            yield buffer, RATE

    wanted = patchout.tag_many(tiny, [(noise(1.0, seed), RATE) for seed in range(3)])
    assert [tags.scores for tags in patchout.tag_many(tiny, refilled())] == [tags.scores for tags in wanted]


def test_several_models_score_a_stream_that_is_decoded_once(tiny: Passt) -> None:
    other = Passt(tiny.config, rng=torch.Generator().manual_seed(1)).eval()
    waves = [(noise(seconds, 1), RATE) for seconds in (1.0, 2.5)]
    both = [*score_each([tiny, other], map(Stream, waves))]
    for place, model in enumerate((tiny, other)):
        alone = [scored.scores for scored in score(model, map(Stream, waves))]
        assert [scored[place].scores.tolist() for scored in both] == [row.tolist() for row in alone]  # type: ignore[union-attr]

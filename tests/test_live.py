"""Live tagging: the events of `tag` on the recorded file, in bounded memory, whatever the sender does."""

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, noise, tone, write_wav
from hypothesis import given, settings
from hypothesis import strategies as st

import patchout
from patchout.audio.live import pipe
from patchout.audio.stream import AudioError, Stream
from patchout.checkpoint.own import save
from patchout.cli import output
from patchout.cli.main import run_command
from patchout.inference import live
from patchout.inference.events import Event, EventRule, EventTracker, find_events
from patchout.inference.live import Listener, Message, Ring
from patchout.models.decision import NO_DECISION
from patchout.models.passt import Passt

SCENE = np.concatenate([tone(2.0, 3000), noise(1.7), tone(1.3), noise(2.05, 1), tone(0.9)])


def send(content: bytes, *, sizes: Sequence[int] = (999,), bytes_per_s: float = 0.0) -> int:
    """The reading end of a pipe into which a thread writes blocks of odd sizes, perhaps at a pace."""
    reading, writing = os.pipe()

    def write() -> None:
        began, place, number = time.monotonic(), 0, 0
        while place < len(content):
            size = sizes[number % len(sizes)]
            os.write(writing, content[place : place + size])
            place, number = place + size, number + 1
            if bytes_per_s:
                time.sleep(max(0.0, began + place / bytes_per_s - time.monotonic()))
        os.close(writing)

    threading.Thread(target=write, daemon=True).start()
    return reading


def pcm(wave: np.ndarray) -> bytes:
    return (np.round(wave * 32768).clip(-32768, 32767)).astype("<i2").tobytes()


def hear(
    model: Passt, source: Any, *, on_message: Callable[[Message], object] = id, **changes: Any
) -> list[Message]:
    """The messages of a live source."""
    messages: list[Message] = []

    def keep(message: Message) -> None:
        messages.append(message)
        on_message(message)

    stream = Stream(source, RATE, channel=model.config.channel, block_s=live.STEP_S)
    Listener(model, Ring(stream), keep, **changes).run()
    return messages


def events_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The events that have ended, as `tag` gives them."""
    rows = [message.to_dict() for message in messages if message.kind == "end"]
    names = ("label", "start_s", "end_s", "score")
    return sorted(({name: row[name] for name in names} for row in rows), key=lambda row: row["start_s"])


def of_file(model: Passt, source: Any) -> list[dict[str, Any]]:
    return [event.to_dict() for event in patchout.tag(model, source, events=EventRule()).events]


# -- the events of the recorded file -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "channels", "sizes"), [(32_000, 1, (1, 7777, 333)), (44_100, 2, (999,)), (8_000, 1, (64_000,))]
)
def test_a_pipe_of_raw_samples_has_the_events_of_the_file(
    decisive: Passt, tmp_path: Path, rate: int, channels: int, sizes: tuple[int, ...]
) -> None:
    """At any rate and in blocks of any size: windows, resampling and thresholds are those of `tag`."""
    wave = np.stack([SCENE, np.roll(SCENE, 5)][:channels], axis=1)
    soundfile.write(tmp_path / "x.wav", wave, rate)  # other rates: another pitch and tempo
    raw = soundfile.read(tmp_path / "x.wav", dtype="int16", always_2d=True)[0].astype("<i2").tobytes()
    source = pipe(send(raw, sizes=sizes), "pipe", encoding="s16le", rate=rate, channels=channels)
    expected = of_file(decisive, tmp_path / "x.wav")
    assert events_of(hear(decisive, source)) == expected
    assert len(expected) >= 3


@pytest.mark.parametrize("format", ["WAV", "FLAC"])
def test_a_format_with_a_header_needs_no_options(decisive: Passt, format: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, SCENE, RATE, format=format, subtype="PCM_16")
    messages = hear(decisive, pipe(send(file.getvalue()), "pipe"))
    assert events_of(messages) == of_file(decisive, file.getvalue())
    assert messages[0].to_dict() == {"kind": "start", "source": "pipe", "rate": RATE, "channels": 1}


@pytest.mark.slow
def test_at_real_time_events_are_told_once_and_soon(decisive: Passt) -> None:
    """Begun at most 0.875 s of windows, a step and the computing after their start, and once."""
    source = pipe(send(pcm(SCENE), bytes_per_s=2 * RATE), "pipe", encoding="s16le", rate=RATE)
    messages = hear(decisive, source)
    assert events_of(messages) == of_file(decisive, (np.frombuffer(pcm(SCENE), "<i2"), RATE))
    begun = [message.to_dict() for message in messages if message.kind == "begin"]
    assert [row["start_s"] for row in begun] == [row["start_s"] for row in events_of(messages)]
    assert all(row["delay_s"] > 0.8 for row in begun[1:-1])  # the windows take that long
    assert messages[-1].values["skipped_s"] == 0


def test_a_sound_shorter_than_a_window_is_heard(decisive: Passt) -> None:
    source = pipe(send(pcm(noise(0.4))), "pipe", encoding="s16le", rate=RATE)
    assert events_of(hear(decisive, source)) == of_file(
        decisive, (np.frombuffer(pcm(noise(0.4)), "<i2"), RATE)
    )


SCORES = st.lists(st.lists(st.sampled_from([0.0, 0.2, 0.31, 0.5, 0.8]), min_size=2, max_size=2), max_size=12)


@settings(max_examples=200, deadline=None)
@given(SCORES, st.sampled_from([1, 3, 5]))
def test_the_tracker_finds_the_events_of_the_whole_track(rows: list[list[float]], median: int) -> None:
    rule, labels = EventRule(median=median), ("a", "b")
    track, times_s = (
        np.array(rows, np.float32).reshape(-1, 2),
        np.arange(len(rows), dtype=np.float32) / 3 + 0.5,
    )
    tracker = EventTracker(labels, rule, NO_DECISION)
    changes = [
        change for time_s, row in zip(times_s, track, strict=True) for change in tracker.push(time_s, row)
    ]
    changes += tracker.finish(9.0)
    events: list[Event] = [change.event for change in changes if change.event]
    assert sorted(events, key=lambda event: (event.start_s, event.label)) == list(
        find_events(track, times_s, labels, rule=rule, duration_s=9.0)
    )
    assert len(changes) == 2 * len(events)  # each is told twice


def test_scores_are_told_every_half_second(decisive: Passt) -> None:
    source = pipe(send(pcm(SCENE)), "pipe", encoding="s16le", rate=RATE)
    scores = [message for message in hear(decisive, source, top=2) if message.kind == "scores"]
    assert len(scores) == pytest.approx(len(SCENE) / RATE / 0.5, abs=2)
    assert all(len(message.values["scores"]) == 2 for message in scores)


# -- senders and models that do not keep up ------------------------------------------------------------------


def blocks_of(seconds: float, *, pause_s: float = 0.0) -> Iterator[np.ndarray]:
    for _ in range(round(2 * seconds)):
        time.sleep(pause_s)
        yield noise(0.5)


def ring_of(blocks: Iterator[np.ndarray], **options: Any) -> Ring:
    stream = Stream(b"", RATE)
    stream.replace_blocks(blocks)
    return Ring(stream, **options)


def test_a_slow_model_skips_what_a_live_sender_sends_and_says_so(
    decisive: Passt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the pace of real time; the clock runs faster here. Open events end where sound was dropped."""
    monkeypatch.setattr(live, "PACE", 1e9)
    messages: list[Message] = []

    def be_slow(message: Message) -> None:
        messages.append(message)
        time.sleep(0.2)

    ring = ring_of(blocks_of(20, pause_s=0.01), limit_s=2.0)
    Listener(decisive, ring, be_slow, top=1).run()
    skipped = [message.values for message in messages if message.kind == "skipped"]
    assert skipped
    assert all(values["start_s"] < values["end_s"] for values in skipped)
    assert messages[-1].values["skipped_s"] == pytest.approx(
        sum(values["end_s"] - values["start_s"] for values in skipped)
    )
    ends = [message.values["end_s"] for message in messages if message.kind == "end"]
    assert {values["start_s"] for values in skipped} <= set(ends)


def test_a_recording_waits_for_a_slow_model(decisive: Passt) -> None:
    messages: list[Message] = []

    def be_slow(message: Message) -> None:
        messages.append(message)
        time.sleep(0.02)

    ring = ring_of(blocks_of(20), limit_s=2.0)
    Listener(decisive, ring, be_slow, top=1).run()
    assert (messages[-1].values["skipped_s"], [m for m in messages if m.kind == "skipped"]) == (0, [])
    assert [row["end_s"] for row in events_of(messages)] == [0.0 + ring.stream.duration_s]


def test_a_sender_that_pauses_is_told_once(decisive: Passt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "STALL_S", 0.1)
    kinds: list[str] = []
    Listener(decisive, ring_of(blocks_of(1, pause_s=0.5)), lambda message: kinds.append(message.kind)).run()
    assert kinds.count("stalled") == 2


def test_stopping_ends_open_events_and_sums_up(decisive: Passt) -> None:
    ring = ring_of(blocks_of(1000, pause_s=0.02))
    messages: list[Message] = []

    def stop_at_an_event(message: Message) -> None:
        messages.append(message)
        if message.kind == "begin":
            ring.stop()

    Listener(decisive, ring, stop_at_an_event).run()
    assert [message.kind for message in messages] == ["start", "begin", "end", "summary"]
    assert messages[2].values["end_s"] == messages[3].values["heard_s"] < 1000


def test_samples_that_are_no_sound_end_it_after_the_summary(decisive: Passt) -> None:
    content = np.concatenate([SCENE, [np.nan]]).astype("<f4").tobytes()
    source = pipe(send(content), "pipe", encoding="f32le", rate=RATE)
    kinds: list[str] = []
    with pytest.raises(AudioError, match="pipe: has samples that are NaN"):
        hear(decisive, source, on_message=lambda message: kinds.append(message.kind))
    assert kinds[-1] == "summary"
    assert kinds.count("begin") == kinds.count("end")


# -- the command ---------------------------------------------------------------------------------------------


@pytest.fixture
def model(decisive: Passt, tmp_path: Path) -> str:
    save(decisive, tmp_path / "tiny.safetensors")
    return str(tmp_path / "tiny.safetensors")


def test_the_command_prints_lines_of_json(
    model: str, decisive: Passt, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_wav(tmp_path / "x.wav", SCENE)
    assert (
        run_command(
            ["listen", "--input", str(path), "--model", model, "--device", "cpu", "--precision", "fp32"]
        )
        == 0
    )
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["kind"] for line in lines[:2]] == ["start", "begin"]
    assert lines[-1]["events"] == len(of_file(decisive, path))
    assert lines[-1]["heard_s"] == pytest.approx(len(SCENE) / RATE, abs=1e-3)


@pytest.mark.parametrize(
    ("args", "code", "reason"),
    [
        (["--input", "microphone that is not there"], 1, "or let another program record: ffmpeg"),
        (["--rate", "-1"], 2, "count from 1"),
        (["--threshold", "2"], 2, "thresholds must be"),
    ],
)
def test_what_cannot_be_heard_is_refused(
    model: str, capfd: pytest.CaptureFixture[str], args: list[str], code: int, reason: str
) -> None:
    assert run_command(["listen", "--model", model, "--device", "cpu", *args]) == code
    assert reason in capfd.readouterr().err


@pytest.mark.parametrize("name", ["nothere.wav", "no/such/pipe"])
def test_a_file_that_is_missing_is_no_microphone(
    model: str, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    assert run_command(["listen", "--input", name, "--model", model]) == 1
    message = capfd.readouterr().err
    assert f"{name}: no such file" in message
    assert "microphones here" not in message


def test_a_folder_is_no_pipe(model: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_command(["listen", "--input", str(tmp_path), "--model", model]) == 1
    assert "is a folder: --input takes a pipe or a file" in capfd.readouterr().err


def test_a_file_that_may_not_be_read_says_so(
    model: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = write_wav(tmp_path / "x.wav", noise(0.1)), os.open

    def refuse(name: str, *more: Any, **options: Any) -> int:
        if name == str(path):
            raise PermissionError(13, "Permission denied", name)
        return opened(name, *more, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert run_command(["listen", "--input", str(path), "--model", model]) == 1
    assert f"{path}: Permission denied" in capfd.readouterr().err


def test_a_pipe_without_a_header_and_without_options_says_what_to_name(decisive: Passt) -> None:
    with pytest.raises(AudioError, match="name --rate, --channels and --encoding"):
        hear(decisive, pipe(send(b"no sound" * 1000), "pipe"))


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_it_with_a_summary(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    kinds: list[str] = []

    def interrupt(text: str, out: object) -> None:
        if text.startswith("{"):
            kinds.append(json.loads(text)["kind"])
            if kinds[-1] == "begin":
                signal.raise_signal(getattr(signal, number))

    monkeypatch.setattr(output, "line", interrupt)
    before = signal.getsignal(getattr(signal, number))
    path = write_wav(tmp_path / "x.wav", np.tile(noise(10.0), 12))
    assert run_command(["listen", "--input", str(path), "--model", model, "--device", "cpu"]) == 0
    assert kinds == ["start", "begin", "end", "summary"]
    assert signal.getsignal(getattr(signal, number)) == before


def test_a_reader_that_has_gone_ends_it_in_silence(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(text: str, out: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(output, "line", refuse)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back what the command takes away
    path = write_wav(tmp_path / "x.wav", SCENE)
    assert run_command(["listen", "--input", str(path), "--model", model, "--device", "cpu"]) == 1


def test_one_thread_while_it_keeps_up_then_the_faster_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four threads that wait for a busy core are dropped again; where they are faster they stay."""
    clock, current, chosen = [0.0], [4], []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: current.__setitem__(0, number))
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def look(threads: live.Threads, waiting_s: float, seconds: dict[int, float]) -> None:
        with threads.look(waiting_s):
            chosen.append(current[0])
            clock[0] += seconds[current[0]]
        assert current == [4]

    def looks(waiting_s: Sequence[float], seconds: dict[int, float]) -> list[int]:
        chosen.clear()
        threads = live.Threads()
        for wait_s in waiting_s:
            look(threads, wait_s, seconds)
        return list(chosen)

    assert looks([0.0] * 40, {1: 0.1, 4: 0.02}) == [1] * 40
    assert looks([2.0] * 6 + [0.0] * 2, {1: 0.1, 4: 0.02}) == [1, *[4] * 7]
    assert looks([2.0] * 5, {1: 0.1, 4: 2.0}) == [1, 4, 1, 1, 1]
    assert looks([2.0] * 18, {1: 0.1, 4: 0.02}).count(1) == 2  # the slower one is tried again

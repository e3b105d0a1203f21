"""Odd files: what can be heard in them is heard at its time, and what is missing is said."""

import io
import struct
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import soundfile
import torch
from conftest import muxed
from hypothesis import given, settings
from hypothesis import strategies as st

from patchout.audio.containers import read_header
from patchout.audio.libav import MAX_SILENCE_S
from patchout.audio.stream import AudioError, AudioWarning, Source, Stream, load

RATE = 8000


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def written(samples: np.ndarray, kind: str, subtype: str | None = None, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def heard(source: Source, rate: int = RATE, **segment: Any) -> tuple[np.ndarray, str]:
    """The samples of a source, and what is said of it."""
    stream = Stream(source, rate, **segment)
    return np.concatenate(list(stream)), stream.warning or ""


@pytest.fixture
def as_users_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the type checks that only the tests have."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def put(content: bytes, place: int, new: bytes) -> bytes:
    return content[:place] + new + content[place + len(new) :]


# ---- lengths that headers do not tell

SOUND = noise(2000)


def rf64(*, size: int) -> bytes:
    """RF64 with this size of its sound."""
    wav = written(SOUND, "WAV", "FLOAT")
    start = wav.index(b"data")
    sizes = b"ds64" + struct.pack("<IQQQI", 28, 0, size, 0, 0)
    return b"RF64" + b"\xff" * 4 + b"WAVE" + sizes + wav[12:start] + b"data" + b"\xff" * 4 + wav[start + 8 :]


def left_open(kind: str, size: bytes) -> bytes:
    """A file whose writer did not come back to fill in the size of the sound."""
    content = written(SOUND, kind, "PCM_16")
    place = {"AU": 8}.get(kind) or content.index(b"SSND" if kind == "AIFF" else b"data") + 4
    return put(content, place + (12 if kind == "W64" else 0), size)


@pytest.mark.parametrize(
    "content",
    [
        rf64(size=0),
        rf64(size=2**64 - 1),
        left_open("WAV", bytes(4)),
        left_open("WAV", b"\xff" * 4),
        left_open("AU", bytes(4)),
        left_open("AU", b"\xff" * 4),
        left_open("W64", bytes(8)),
        left_open("W64", b"\xff" * 8),
        left_open("CAF", bytes(8)),
        left_open("CAF", b"\xff" * 8),
        left_open("AIFF", bytes(4)),
        left_open("AIFF", struct.pack(">I", 8)),
    ],
)
def test_a_file_that_was_never_closed_is_read_to_its_end(content: bytes) -> None:
    samples, said = heard(content)
    assert (len(samples), said) == (2000, "")
    assert np.abs(samples - SOUND).max() < 1e-4


def test_a_wav_of_no_samples_with_text_behind_stays_empty() -> None:
    wav = written(np.zeros(0), "WAV") + b"LIST" + struct.pack("<I", 4) + b"INFO"
    with pytest.raises(AudioError, match="holds no samples"):
        load(wav)


@pytest.mark.parametrize("stated", [0, 40_000, 2**31, 2**32 - 1])
@pytest.mark.parametrize("kind", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT", "WAVEX", "RIFX"])
def test_a_wav_over_4_gb_is_read_to_its_end(kind: str, stated: int, tmp_path: Path) -> None:
    """32 bits hold nothing, anything, or the rest of a division; the file is sparse."""
    if kind == "RIFX":
        file = io.BytesIO()
        soundfile.write(file, SOUND, RATE, format="WAV", subtype="PCM_16", endian="BIG")
        wav = file.getvalue()
    else:
        wav = written(SOUND, "WAVEX" if kind == "WAVEX" else "WAV", "FLOAT" if kind == "WAVEX" else kind)
    start = wav.index(b"data") + 8
    head = put(wav[:start], start - 4, struct.pack(">I" if kind == "RIFX" else "<I", stated))
    place = start + 2**32 // 12 * 12 + 12  # a whole number of samples
    path = tmp_path / "long.wav"
    with path.open("wb") as sparse:
        sparse.write(head)
        sparse.seek(place)
        sparse.write(wav[start:])
    sample_bytes = {"PCM_U8": 1, "PCM_24": 3, "FLOAT": 4, "WAVEX": 4}.get(kind, 2)
    samples, said = heard(str(path), start_s=(place - start) / sample_bytes / RATE)
    assert (len(samples), said) == (2000, "")
    assert np.abs(samples - SOUND).max() < 1 / 120


def test_a_compressed_wav_over_4_gb_is_left_to_libav(tmp_path: Path) -> None:
    with (tmp_path / "long.wav").open("wb+") as file:
        file.write(written(SOUND, "WAV", "IMA_ADPCM"))
        file.truncate(2**32 + 5000)
        assert read_header(file, 2**32 + 5000).needs_libav


def test_bw64_is_read_as_rf64() -> None:
    samples, said = heard(b"BW64" + rf64(size=4 * 2000)[4:])
    assert (len(samples), said) == (2000, "")


@pytest.mark.parametrize("kind", ["RF64", "W64", "CAF", "AU", "VORBIS", "OPUS", "ogg flac", "avi"])
def test_a_cut_file_says_so(kind: str) -> None:
    if kind == "RF64":
        content = rf64(size=4 * 2000)
    elif kind in ("VORBIS", "OPUS"):
        content = written(noise(3 * RATE), "OGG", kind)
    elif " " in kind or kind == "avi":
        content = muxed(
            *{"avi": ("avi", "pcm_s16le"), "ogg flac": ("ogg", "flac")}[kind], [n / 4 for n in range(8)]
        )
    else:
        content = written(SOUND, kind)
    whole, said = heard(content)
    assert said == ""
    part, said = heard(content[: len(content) * 7 // 10])
    assert "<bytes>: is cut short" in said
    assert f"the {len(part) / RATE:.2f} s that can be decoded are used" in said
    assert len(part) < len(whole)


def test_a_part_of_a_flac_is_sought_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each seek searches the file: ten seconds at the end of an hour took a hundred times as long."""
    seek, places = soundfile.SoundFile.seek, list[int]()

    def counted(sound: soundfile.SoundFile, place: int, whence: int = 0) -> int:
        places.append(place)
        return seek(sound, place, whence)

    monkeypatch.setattr(soundfile.SoundFile, "seek", counted)
    assert len(heard(written(noise(20 * RATE), "FLAC"), start_s=15.0)[0]) == 5 * RATE
    assert places == [15 * RATE]


def test_a_cut_segment_is_told_too() -> None:
    """What is damaged inside of it, and nothing that is not."""
    flac = written(noise(8 * RATE), "FLAC")
    place = len(flac) // 2
    damaged = put(flac, place, bytes(100))
    assert heard(damaged, start_s=0.0, end_s=1.0)[1] == ""
    samples, said = heard(damaged, start_s=3.0, end_s=6.0)
    assert len(samples) == 3 * RATE
    assert "is damaged" in said


# ---- the rest of a damaged stream


def test_behind_damage_a_flac_goes_on_at_its_time() -> None:
    sound = noise(8 * RATE)
    flac = written(sound, "FLAC")
    samples, said = heard(put(flac, len(flac) // 2, bytes(100)))
    assert len(samples) == 8 * RATE
    assert np.abs(samples[: 3 * RATE] - sound[: 3 * RATE]).max() < 1e-4
    assert np.abs(samples[5 * RATE :] - sound[5 * RATE :]).max() < 1e-4
    assert "is damaged (at 3." in said


def test_a_lost_page_of_an_ogg_is_silence() -> None:
    ogg = written(noise(20 * RATE), "OGG", "VORBIS")
    samples, said = heard(put(ogg, len(ogg) // 2, bytes(100)))
    assert len(samples) == pytest.approx(20 * RATE, abs=1100)
    assert "is damaged" in said
    assert "which is silent here" in said


def test_links_of_a_chained_ogg_may_have_other_rates() -> None:
    first = written(noise(RATE), "OGG", "VORBIS")
    second = written(np.stack([noise(32000)] * 2, axis=1), "OGG", "VORBIS", 16000)
    samples, said = heard(first + second)
    assert len(samples) == pytest.approx(3 * RATE, abs=2)
    assert said == "<bytes>: changes to 16000 Hz (at 1.00 s)"


@pytest.mark.parametrize(("kind", "subtype"), [("FLAC", "PCM_16"), ("OGG", "VORBIS")])
def test_two_files_in_one_are_two_sounds(kind: str, subtype: str) -> None:
    """They may share their serial number, too."""
    content = written(noise(RATE), kind, subtype)
    assert len(load(content + content, RATE)) == pytest.approx(2 * RATE, abs=300)


# ---- Opus


def with_input_rate(opus: bytes, rate: int) -> bytes:
    """The same stream with another remark in its header; the checksum bit by bit, as RFC 3533 has it."""
    size = 28 + opus[27]
    page = bytearray(put(put(opus[:size], 40, struct.pack("<I", rate)), 22, bytes(4)))
    remainder = 0
    for byte in page:
        remainder ^= byte << 24
        for _ in range(8):
            remainder = (remainder << 1 ^ (0x04C11DB7 if remainder >> 31 else 0)) & 0xFFFFFFFF
    page[22:26] = struct.pack("<I", remainder)
    return bytes(page) + opus[size:]


@pytest.mark.parametrize("rate", [0, 8000, 16000, 44100, 96000])
def test_opus_is_decoded_at_48_khz_whatever_its_header_remembers(rate: int) -> None:
    opus = written(noise(24000), "OGG", "OPUS", 48000)
    stream = Stream(with_input_rate(opus, rate), 48000)
    assert np.array_equal(np.concatenate(list(stream)), load(opus, 48000))
    assert (stream.source_rate, stream.duration_s) == (48000, 0.5)


# ---- times


def test_a_gap_in_the_time_stamps_is_silence() -> None:
    samples, said = heard(muxed("matroska", "pcm_s16le", [0, 0.25, 2.5]))
    assert len(samples) == 2.75 * RATE
    assert not samples[RATE // 2 : 5 * RATE // 2].any()
    assert np.abs(samples[-RATE // 4 :] - noise(RATE // 4, 2)).max() < 1e-4
    assert (
        said
        == "<bytes>: has no sound where its time stamps leave a gap, which is silent here (2.00 s at 0.50 s)"
    )


def test_a_segment_behind_a_gap_is_where_a_player_shows_it() -> None:
    mkv = muxed("matroska", "pcm_s16le", [0, 2.5])
    samples, said = heard(mkv, start_s=2.5)
    assert np.abs(samples - noise(RATE // 4, 1)).max() < 1e-4
    assert said == ""


def test_sound_that_begins_after_the_picture_does_so() -> None:
    samples, said = heard(muxed("matroska", "pcm_s16le", [1.5], picture_s=2.0))
    assert (len(samples), said) == (1.75 * RATE, "")
    assert not samples[: 3 * RATE // 2].any()


def test_a_sound_alone_begins_at_once() -> None:
    samples, said = heard(muxed("matroska", "pcm_s16le", [1.5]))
    assert (len(samples), said) == (RATE // 4, "")


def test_damaged_time_stamps_ask_for_no_hours() -> None:
    """The last one names a moment three years away, and the header another end."""
    mkv = muxed("matroska", "pcm_s16le", [0, 1e8])
    place = mkv.index(b"\x44\x89\x88") + 3  # Duration, a float of 8 bytes
    samples, said = heard(put(mkv, place, struct.pack(">d", 500.0)))
    assert len(samples) / RATE < MAX_SILENCE_S
    assert "too far to be filled" in said


# ---- several streams


def test_another_audio_stream_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "talk.mkv"
    path.write_bytes(muxed("matroska", "pcm_s16le", [0], num_streams=2))
    assert "holds 2 audio streams: a:0 is used" in heard(path)[1]
    assert heard(f"{path}#a:1")[1] == ""
    with pytest.raises(AudioError, match=r"talk.mkv#a:2: has no audio stream a:2; it has a:0, a:1"):
        load(f"{path}#a:2")


def test_a_file_may_be_called_like_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "x.wav#a:1"
    path.write_bytes(written(SOUND, "WAV"))
    assert len(load(path, RATE)) == 2000


# ---- arrays and scales


@pytest.mark.parametrize(
    "source",
    [
        ([0.5, -0.5], RATE),
        ([[0.5, -0.5], [0.5, -0.5]], RATE),
        (torch.tensor([[0.5, -0.5]], requires_grad=True), RATE),
        (torch.tensor([0.5, -0.5], dtype=torch.bfloat16), RATE),
        (np.array([0.5, -0.5]), float(RATE)),
        (np.array([0.5, -0.5]), np.float32(RATE)),
        (np.array([16384, -16384], np.int16), np.int64(RATE)),
    ],
)
def test_arrays_come_in_many_kinds(source: Source) -> None:
    assert load(source, RATE).tolist() == [0.5, -0.5]


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_bytes_come_in_many_kinds(kind: Callable[[bytes], Source]) -> None:
    wav = written(SOUND, "WAV")
    assert np.array_equal(load(kind(wav)), load(wav))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((RATE, np.zeros((9, 2))), r"comes as \(rate, array\); give \(array, rate\)"),
        ((np.int64(RATE), np.zeros(9)), r"comes as \(rate, array\)"),
        (torch.zeros(9), "comes without its rate"),
        ([0.5, 0.5], "comes without its rate"),
        (([[0.5], [0.5, 0.5]], RATE), "cannot become one"),
        ((np.array([100, -32768]), RATE), "int64.*8, 16 or 32 bits"),
        (([100, -32768], RATE), "int64"),
        (
            (np.array([100, -32768], np.int32), RATE),
            "span no more than 32868; give those of 16 bits as int16",
        ),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_arrays_of_another_kind_or_scale_are_refused(source: Source, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        load(source, RATE)


@pytest.mark.parametrize("is_file", [False, True])
def test_floats_far_above_full_scale_are_told(is_file: bool) -> None:
    loud = (noise(100) * 1e5).astype(np.float32)
    source = written(loud, "WAV", "FLOAT") if is_file else (loud, RATE)
    with pytest.warns(
        AudioWarning, match="times full scale: if its numbers are those of 16 bits, divide by 32768"
    ):
        load(source, RATE)


def test_a_loud_mix_is_no_wrong_scale() -> None:
    load((np.array([4.0, -4.0]), RATE), RATE)  # warnings are errors here


@pytest.mark.slow
def test_hear_tells_of_a_wrong_scale_too() -> None:
    from patchout.hear.api import check_audio

    with pytest.warns(AudioWarning, match="divide by 32768"):
        check_audio(torch.full((1, 9), 20000.0))


@pytest.mark.parametrize("kind", ["WAV", "MP3"])
def test_channels_that_cancel_are_no_zeros(kind: str) -> None:
    sound = noise(RATE)
    stream = Stream(written(np.stack([sound, -sound], axis=1), kind), RATE)
    list(stream)
    reason = "is silent because its channels cancel in their mean: give one alone (channel='left' in Python)"
    assert stream.silence == f"<bytes>: {reason}"
    assert stream.warning == stream.silence
    assert load(written(np.stack([sound, -sound], axis=1), kind), RATE, channel="left").any()


@pytest.mark.parametrize(
    ("level", "reason"), [(0.0, "every sample is zero"), (1e-6, "its peak is 1e-06 of full")]
)
def test_silence_says_why(level: float, reason: str) -> None:
    stream = Stream((np.full(100, level), RATE), RATE)
    list(stream)
    assert reason in (stream.silence or "")
    assert stream.warning is None


# ---- any container, any damage


LOSSLESS = ("WAV", "W64", "AU", "AIFF", "CAF", "FLAC", "mkv")


@cache
def whole(kind: str) -> tuple[bytes, np.ndarray]:
    if kind in ("mkv", "mpegts", "avi", "ogg flac"):
        container = {"mkv": "matroska", "ogg flac": "ogg"}.get(kind, kind)
        codec = {"mkv": "pcm_s16le", "mpegts": "mp2", "avi": "pcm_s16le", "ogg flac": "flac"}[kind]
        content = muxed(container, codec, [n / 4 for n in range(6)], rate=16000)
    else:
        format_, _, subtype = kind.partition(" ")
        content = written(noise(12000), format_, subtype or None)
    return content, load(content, RATE)


@pytest.mark.slow
@given(
    st.sampled_from((*LOSSLESS, "OGG VORBIS", "OGG OPUS", "ogg flac", "MP3", "mpegts", "avi")),
    st.sampled_from(("cut", "zero", "flip", "splice", "drop")),
    st.floats(0.05, 0.95),
    st.integers(1, 600),
)
@settings(max_examples=60, deadline=None)
def test_damage_leaves_what_came_before(kind: str, action: str, place: float, size: int) -> None:
    """Samples and a sentence, or a named refusal: of bounded length,
    and the same until shortly before the damage.
    """
    content, samples = whole(kind)
    at = int(place * len(content))
    damaged = {
        "cut": content[:at],
        "zero": put(content, at, bytes(min(size, len(content) - at))),
        "flip": put(content, at, bytes(byte ^ 0x55 for byte in content[at : at + size])),
        "splice": content[:at] + content[:at][-size:] + content[at:],
        "drop": content[:at] + content[at + size :],
    }[action]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)
        try:
            part = load(damaged, RATE)
        except (AudioError, OSError) as error:
            assert str(error).startswith("<bytes>: ")  # noqa: PT017 - either outcome is right
            return
    assert np.isfinite(part).all()
    assert 0 < len(part) < 3 * len(samples) + MAX_SILENCE_S * RATE
    if kind in LOSSLESS:
        good = min(len(part), max(0, int(0.9 * place * len(samples)) - 4096))  # a FLAC loses such a frame
        assert np.abs(part[:good] - samples[:good]).max(initial=0.0) < 1e-4

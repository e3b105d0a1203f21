import gc
import io
import os
import struct
import tracemalloc
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import av
import jaxtyping
import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from patchout.audio import stream as audio
from patchout.audio.decode import decode
from patchout.audio.stream import AudioError, AudioWarning, Channel, Source, Stream, load, name_of, windows


def sine(seconds: float = 1.0, rate: int = 32000, hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def written(samples: np.ndarray, rate: int = 32000, kind: str = "WAV", subtype: str | None = None) -> bytes:
    """A file of `(samples,)` or `(samples, channels)` written by libsndfile."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def encoded(
    samples: np.ndarray,
    rate: int,
    container: str,
    codec: str,
    *,
    picture: bool = False,
    **container_options: str,
) -> bytes:
    """A file of `(samples,)` written by libav, as stereo with the same sound in both channels."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, container_options=container_options) as output:
        variable = {"flags": "+qscale"} if codec == "libmp3lame" else {}
        stream = output.add_stream(codec, rate=rate, options=variable)
        stream.layout, stream.bit_rate = "stereo", 128000
        if picture:
            video = output.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
            output.mux(
                video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24"))
            )
            output.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(np.stack([samples, samples]), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = rate, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def mp3_without_count(samples: np.ndarray, rate: int) -> bytes:
    return encoded(samples, rate, "mp3", "libmp3lame", write_xing="0", id3v2_version="0")


COMPRESSED: dict[str, Callable[[np.ndarray, int], bytes]] = {
    "m4a": lambda samples, rate: encoded(samples, rate, "ipod", "aac"),
    "aac": lambda samples, rate: encoded(samples, rate, "adts", "aac"),
    "mp4 with a picture": lambda samples, rate: encoded(samples, rate, "mp4", "aac", picture=True),
    "mkv with flac": lambda samples, rate: encoded(samples, rate, "matroska", "flac"),
    "webm": lambda samples, rate: encoded(samples, rate, "webm", "libopus"),
    "wma": lambda samples, rate: encoded(samples, rate, "asf", "wmav2"),
    "ac3": lambda samples, rate: encoded(samples, rate, "ac3", "ac3"),
    "ogg vorbis": lambda samples, rate: written(samples, rate, "OGG", "VORBIS"),
    "opus": lambda samples, rate: written(samples, rate, "OGG", "OPUS"),
    "mp3": lambda samples, rate: written(samples, rate, "MP3"),
    "mp3 without a frame count": mp3_without_count,
}


def difference(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float(np.abs(one - other).max())


def quietly(source: Source, rate: int = 32000) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)
        return load(source, rate)


def check_outcome(content: bytes) -> None:
    """Fail unless the bytes give finite samples or a refusal that names them."""
    try:
        samples = quietly(content)
    except (AudioError, OSError) as error:
        assert str(error).startswith("<bytes>: ")  # noqa: PT017 - either outcome is right
        return
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert len(samples) > 0
    assert np.isfinite(samples).all()


@pytest.fixture
def as_users_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the type checks that only the tests have."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


# ---- formats


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 1 / 100),
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "FLOAT", 0),
        ("FLAC", "PCM_16", 1e-4),
        ("AIFF", "PCM_24", 1e-6),
    ],
)
def test_lossless_files_give_their_samples(kind: str, subtype: str, tolerance: float) -> None:
    samples = sine()
    assert difference(load(written(samples, 32000, kind, subtype)), samples) <= tolerance


@pytest.mark.parametrize("kind", COMPRESSED)
def test_compressed_files_give_their_sound(kind: str) -> None:
    samples = load(COMPRESSED[kind](sine(2, 48000), 48000), 48000)
    assert len(samples) == pytest.approx(2 * 48000, abs=0.06 * 48000)  # some keep the encoder's padding
    middle = samples[24000:72000]  # 1 s, so that a bin is 1 Hz
    assert np.abs(np.fft.rfft(middle)).argmax() == 440
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


@pytest.mark.slow
def test_mp3_with_misleading_first_frames_is_read_to_its_end() -> None:
    loud_then_silent = np.concatenate([noise(320000), np.zeros(320000, np.float32)])
    assert len(load(mp3_without_count(loud_then_silent, 32000))) >= 640000


def test_every_link_of_a_chained_ogg_is_read() -> None:
    first = encoded(sine(1, 48000), 48000, "ogg", "libopus", serial_offset="1")
    second = encoded(sine(2, 48000), 48000, "ogg", "libopus", serial_offset="2")
    assert len(load(first + second)) == pytest.approx(3 * 32000, abs=1500)


def test_flac_of_unknown_length_is_read() -> None:
    flac = bytearray(written(noise(32000), 32000, "FLAC"))
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    assert len(load(bytes(flac))) == 32000


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_downmix_is_the_mean_of_all_channels(channels: int) -> None:
    frames = np.stack([sine(hz=100.0 * (i + 1)) for i in range(channels)], axis=1)
    assert difference(load(written(frames, subtype="FLOAT")), frames.mean(axis=1)) < 1e-6


def test_libav_downmix_is_the_mean_of_all_channels() -> None:
    frames = np.stack([sine(rate=48000), np.zeros(48000, np.float32)], axis=1)
    samples = load(written(frames, 48000, "MP3"), 48000)
    assert np.abs(samples).max() == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(("channel", "level"), [("left", 0.5), ("right", 0.25), ("mean", 0.25)])
@pytest.mark.parametrize("kind", ["wav", "array", "mp3"])
def test_one_channel_can_be_chosen(kind: str, channel: Channel, level: float) -> None:
    """Three channels of 0.5, 0.25 and 0 (mp3: two, which libav decodes, without the third)."""
    frames = np.outer(sine() * 2, [0.5, 0.25, 0.0]).astype(np.float32)
    sources: dict[str, Source] = {"wav": written(frames, subtype="FLOAT"), "array": (frames.T, 32000)}
    if kind == "mp3":
        level = 0.375 if channel == "mean" else level
    source = sources.get(kind) or written(frames[:, :2], 32000, "MP3")
    samples = np.concatenate(list(Stream(source, channel=channel)))
    assert np.abs(samples[1000:-1000]).max() == pytest.approx(level, abs=0.02 if kind == "mp3" else 1e-4)


@pytest.mark.parametrize("channel", ["left", "right", "mean"])
@pytest.mark.parametrize("kind", ["WAV", "MP3"])
def test_every_channel_of_a_mono_sound_is_the_sound(kind: str, channel: Channel) -> None:
    source = written(sine(), kind=kind)
    assert np.array_equal(np.concatenate(list(Stream(source, channel=channel))), load(source))


@pytest.mark.usefixtures("as_users_call")
def test_an_unknown_channel_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="channel='middle' is not allowed: give mean, left, right"):
        Stream((sine(), 32000), channel="middle")  # type: ignore[arg-type]


def test_short_frames_of_libav_are_joined() -> None:
    """An MP3 frame holds 1152 samples; nothing is lost between the joined ones."""
    source = written(noise(300_000), 32000, "MP3")
    blocks = list(decode(source))
    assert [block.start for block in blocks] == np.cumsum(
        [0, *(len(block.samples) for block in blocks[:-1])]
    ).tolist()
    assert all(len(block.samples) >= 65536 for block in blocks[:-1])
    assert len(blocks) == 5
    assert (
        difference(np.concatenate([block.samples for block in blocks]), soundfile.read(io.BytesIO(source))[0])
        < 1e-5
    )


def test_192_khz_comes_down_to_the_rate() -> None:
    assert difference(load(written(sine(0.5, 192000), 192000))[100:-100], sine(0.5)[100:-100]) < 1e-3


@pytest.mark.parametrize(("samples", "rate", "expected"), [(1, 32000, 1), (1, 192000, 1), (320, 32000, 320)])
def test_tiny_clips_are_sounds(samples: int, rate: int, expected: int) -> None:
    assert load(written(np.full(samples, 0.25), rate)) == pytest.approx(np.full(expected, 0.25), abs=1e-4)


# ---- sources


def test_path_bytes_file_object_and_array_agree(tmp_path: Path) -> None:
    path = tmp_path / "мой звук – ä.wav"
    path.write_bytes(written(sine(), subtype="FLOAT"))
    with path.open("rb") as file:
        file.read(99)  # read from its start wherever it stands
        from_file = load(file)
        assert not file.closed
    for samples in (load(path), load(str(path)), load(path.read_bytes()), from_file, load((sine(), 32000))):
        assert np.array_equal(samples, sine())


def test_integer_arrays_are_scaled_to_full_scale_one() -> None:
    assert load((np.array([-32768, 0, 16384], np.int16), 32000)).tolist() == [-1, 0, 0.5]
    assert load((np.array([0, 128, 192], np.uint8), 32000)).tolist() == [-1, 0, 0.5]
    assert load((np.array([-(2**31), 0, 2**30], np.int32), 32000)).tolist() == [-1, 0, 0.5]


def test_array_channels_come_first() -> None:
    assert load((np.array([[1.0, 1.0], [0.0, 0.5]]), 32000)).tolist() == [0.5, 0.75]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(10), r"\(array, rate\)"),
        ((np.zeros((1000, 2)), 32000), "1000 channels.*array.T"),
        ((np.zeros((1, 2, 3)), 32000), "not sound"),
        ((np.zeros(10, complex), 32000), "complex128"),
        ((np.zeros(10), 44100.5), "44100.5 Hz"),
        ((np.zeros(0), 32000), "no samples"),
        ((["dog"], 32000), "not sound"),
        (7, "int that cannot be read"),
        (None, "NoneType that cannot be read"),
        (io.StringIO("text"), "StringIO"),
    ],
)
@pytest.mark.usefixtures("as_users_call")
def test_what_is_no_source_is_refused(array: Source, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        load(array)


def test_name_of_tells_sources_apart() -> None:
    with Path(__file__).open("rb") as file:
        names = [
            name_of(source)
            for source in ("a/b.wav", Path("c.wav"), b"x", file, io.BytesIO(), (np.zeros(1), 8000))
        ]
    assert names == ["a/b.wav", "c.wav", "<bytes>", __file__, "<file>", "<array>"]


# ---- rate, stream, segment


@pytest.mark.parametrize("rate", [0, 999, 768001, -32000, 32000.0, "32000", True])
@pytest.mark.usefixtures("as_users_call")
def test_rates_out_of_range_are_refused(rate: int) -> None:
    with pytest.raises(ValueError, match="1000 to 768000"):
        Stream(b"", rate)


@pytest.mark.parametrize(
    ("source_rate", "rate"), [(44100, 32000), (8000, 32000), (192000, 16000), (22050, 32001)]
)
@pytest.mark.parametrize("block_s", [0.001, 0.7, 60.0])
def test_blocks_do_not_change_the_samples(
    source_rate: int, rate: int, block_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "BLOCK_S", block_s)
    samples = noise(3 * source_rate + 17)
    once = soxr.resample(samples, source_rate, rate)
    streamed = np.concatenate(list(Stream((samples, source_rate), rate)))
    assert abs(len(streamed) - len(once)) <= 1
    shared = min(len(streamed), len(once))
    assert difference(streamed[:shared], once[:shared]) <= 1e-6


def test_stream_describes_what_it_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "BLOCK_S", 1.0)
    stream = Stream(written(sine(2.5, 44100), 44100), 32000)
    lengths = [len(block) for block in stream]
    assert len(lengths) >= 3
    assert (stream.name, stream.rate, stream.source_rate) == ("<bytes>", 32000, 44100)
    assert (stream.num_samples, stream.duration_s, stream.warning) == (sum(lengths), 2.5, None)


def test_stream_is_read_once() -> None:
    stream = Stream((sine(), 32000))
    list(stream)
    with pytest.raises(RuntimeError, match="new Stream"):
        iter(stream)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "array"])
def test_segment_is_a_part_of_the_whole(kind: str) -> None:
    source: Source = (noise(96000), 32000) if kind == "array" else written(noise(96000), 32000, kind)
    whole = load(source)
    assert np.array_equal(load(source, start_s=1.25, end_s=2.5), whole[40000:80000])
    assert np.array_equal(load(source, start_s=2.5), whole[80000:])
    assert np.array_equal(load(source, end_s=99.0), whole)


def test_segment_beyond_the_end_is_refused() -> None:
    for source in (written(sine()), written(sine(), kind="OGG"), (sine(), 32000)):
        with pytest.raises(AudioError, match=r"start_s=1.0 is not before its end at 1.00 s"):
            load(source, start_s=1.0)


@pytest.mark.parametrize(
    ("start_s", "end_s"), [(-1.0, None), (float("nan"), None), (1.0, 1.0), (2.0, 1.0), (0.0, float("nan"))]
)
def test_impossible_segments_are_refused(start_s: float, end_s: float | None) -> None:
    with pytest.raises(ValueError, match="is not allowed"):
        Stream((sine(), 32000), start_s=start_s, end_s=end_s)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["WAV", "MP3"])
def test_memory_does_not_grow_with_length(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "BLOCK_S", 2.0)

    def peak_bytes(seconds: int) -> int:
        source = written(np.zeros(seconds * 8000, np.float32), 8000, kind)
        tracemalloc.start()
        for _ in Stream(source, 8000):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(1)  # imports
    assert peak_bytes(200) < 1.3 * peak_bytes(20)


@pytest.mark.parametrize("kind", ["WAV", "OGG"])
def test_stopping_early_closes_the_file(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "BLOCK_S", 0.1)
    path = tmp_path / "long"
    path.write_bytes(written(noise(320000), 32000, kind))
    for _ in Stream(path):
        break
    gc.collect()
    path.rename(
        tmp_path / "renamed"
    )  # Windows refuses while it is open; elsewhere a ResourceWarning fails the test


# ---- bad input


def test_standard_input_is_no_missing_file() -> None:
    with pytest.raises(FileNotFoundError, match="-: standard input is not read; copy what it gives into a"):
        load("-")


def test_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"no/such file.wav: is not there"):
        load("no/such file.wav")


def test_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=f"{tmp_path.name}: is a folder"):
        load(tmp_path)


def test_forbidden_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.wav").write_bytes(written(sine()))

    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"x.wav: may not be read"):
        load(tmp_path / "x.wav")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(AudioError, match="pipe: is not a regular file"):
        load(tmp_path / "pipe")


@pytest.mark.parametrize("good_bytes", [0, 20000])
@pytest.mark.parametrize("kind", ["WAV", "OGG"])
def test_failing_disk_is_named(kind: str, good_bytes: int) -> None:
    class FailingDisk(io.BytesIO):
        name = "disk.wav"

        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > good_bytes:
                raise OSError("no answer")
            return super().read(size)

    with pytest.raises(OSError, match=r"disk.wav: reading failed \(no answer\)"):
        load(FailingDisk(written(noise(96000), 32000, kind)))


def png() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="image2pipe") as output:
        video = output.add_stream("png", rate=1)
        video.width, video.height, video.pix_fmt = 8, 8, "rgb24"
        output.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((8, 8, 3), np.uint8), format="rgb24")))
        output.mux(video.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is an empty file"),
        (b"these words are not a sound\n" * 50, "is not audio"),
        (bytes(5000), "is not audio"),
        (b"RIFF", "is not audio"),
        (b"\xff", "is not audio"),
        (noise(5000).tobytes(), "is not audio"),
        (png(), "has no audio stream"),
        (written(np.zeros(0)), "holds no samples"),
        (written(np.array([0.5, np.nan, 0.5]), subtype="FLOAT"), "NaN"),
        (written(np.array([[np.inf, -np.inf]]), subtype="FLOAT"), "infinite"),
        (written(np.full((9, 2), 3e38), subtype="FLOAT"), "infinite"),
        (written(np.full(9, 1e300), subtype="DOUBLE"), "infinite"),
    ],
)
def test_files_without_sound_are_refused_by_name(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(AudioError, match=f"bad.wav: .*{reason}.*; "):
        load(tmp_path / "bad.wav")


def test_nan_late_in_a_long_file_is_found() -> None:
    samples = noise(320000)
    samples[300000] = np.nan
    with pytest.raises(AudioError, match="NaN"):
        load(written(samples, subtype="FLOAT"))


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{path}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile '{path}'\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 96\n"
        "a=rtpmap:96 opus/48000\n",
    ],
)
@pytest.mark.parametrize("ending", ["m3u8", "wav"])
def test_playlists_cannot_reach_other_files(playlist: str, ending: str, tmp_path: Path) -> None:
    (tmp_path / "secret.aac").write_bytes(COMPRESSED["aac"](sine(), 32000))
    for path in (tmp_path / "secret.aac", "secret.aac", (tmp_path / "secret.aac").as_uri()):
        (tmp_path / f"list.{ending}").write_text(playlist.format(path=path))
        with pytest.raises(AudioError, match="is not audio"):
            load(tmp_path / f"list.{ending}")


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.95])
@pytest.mark.parametrize("kind", ["MP3", "FLAC", "mkv"])
def test_truncated_files_give_what_decodes_and_say_so(kind: str, share: float) -> None:
    samples = noise(320000)
    if kind == "mkv":
        whole = encoded(samples, 32000, "matroska", "aac")
    else:
        whole = written(samples, 32000, kind)
    with pytest.warns(
        AudioWarning, match=r"<bytes>: is (cut short|damaged).* s that can be decoded are used"
    ):
        part = load(whole[: int(share * len(whole))])
    assert share - 0.1 < len(part) / len(samples) < share + 0.05


@pytest.mark.parametrize(
    ("kind", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAVEX", "PCM_24"), ("AIFF", None)]
)
def test_a_cut_file_of_plain_samples_says_how_long_it_was(kind: str, subtype: str | None) -> None:
    """libsndfile gives such a file the length that is left, and no error."""
    whole = written(noise(32000), kind=kind, subtype=subtype)
    with pytest.warns(AudioWarning, match=r"<bytes>: is cut short, its header promises 1\.00 s"):
        assert 15900 < len(load(whole[: len(whole) // 2])) < 16000


@pytest.mark.parametrize("size", [2**32 - 1, 2**31 - 1, 2**31 - 4096])
def test_a_wav_from_a_pipe_is_whole(size: int) -> None:
    """Its header was written before its length was known; warnings are errors here."""
    wav = bytearray(written(noise(1000)))
    struct.pack_into("<I", wav, 40, size)
    assert len(load(bytes(wav))) == 1000


def test_a_whole_opus_file_that_libsndfile_refuses_half_way_is_not_called_damaged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As libsndfile 1.2.2 does where ESC-50's clips end in silence; libav decodes them to their end."""
    content = encoded(noise(96_000), 48_000, "ogg", "libopus")
    read = soundfile.SoundFile.read

    def refuse(sound: soundfile.SoundFile, *args: object, **options: object) -> np.ndarray:
        if sound.tell() > 48_000:
            raise soundfile.LibsndfileError(3)
        return read(sound, *args, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", refuse)
    stream = Stream(content, 48_000)
    assert sum(len(block) for block in stream) == pytest.approx(96_000, abs=960)
    assert stream.warning is None


def test_damage_in_the_middle_leaves_the_rest() -> None:
    adts = bytearray(COMPRESSED["aac"](noise(320000), 32000))
    adts[20000:20200] = b"\x55" * 200
    with pytest.warns(AudioWarning, match="is damaged"):
        assert len(load(bytes(adts))) > 300000


@pytest.mark.slow
def test_whole_files_give_no_warning() -> None:
    for make in COMPRESSED.values():
        load(make(noise(96000), 48000))  # warnings are errors here


WAV_FIELDS = {
    "channels": (22, "<H"),
    "rate": (24, "<I"),
    "block align": (32, "<H"),
    "bits": (34, "<H"),
    "fmt size": (16, "<I"),
}


@pytest.mark.parametrize("field", WAV_FIELDS)
@pytest.mark.parametrize("value", [0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1])
def test_absurd_wav_headers_are_refused_or_read(field: str, value: int) -> None:
    offset, code = WAV_FIELDS[field]
    wav = bytearray(written(noise(1000)))
    struct.pack_into(code, wav, offset, value % 2 ** (8 * struct.calcsize(code)))
    check_outcome(bytes(wav))


def test_header_of_billions_of_samples_allocates_little() -> None:
    wav = bytearray(written(noise(1000)))
    struct.pack_into("<I", wav, 40, 2**32 - 8)
    flac = bytearray(written(noise(1000), kind="FLAC"))
    flac[21] |= 0x0F
    flac[22:26] = b"\xff" * 4
    tracemalloc.start()
    for content in (wav, flac):
        assert len(quietly(bytes(content))) == 1000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6


# ---- windows


def cut(samples: np.ndarray, lengths: list[int]) -> list[np.ndarray]:
    return np.split(samples, np.cumsum(lengths)[np.cumsum(lengths) < len(samples)])


@pytest.mark.parametrize(
    ("total", "starts"),
    [(1, [0]), (10, [0]), (11, [0, 1]), (14, [0, 4]), (15, [0, 4, 5]), (22, [0, 4, 8, 12])],
)
def test_windows_start_where_the_rule_says(total: int, starts: list[int]) -> None:
    got = list(windows([np.arange(total)], 10, 4))
    assert [start for start, _ in got] == starts
    for start, window in got:
        assert window.tolist() == list(range(start, min(start + 10, total)))


@given(
    st.integers(0, 60),
    st.integers(1, 12),
    st.integers(1, 12),
    st.lists(st.integers(0, 9), min_size=1, max_size=60),
)
@settings(max_examples=100, deadline=None)
def test_windows_do_not_depend_on_the_blocks(total: int, size: int, other: int, lengths: list[int]) -> None:
    hop, size = sorted((size, other))
    samples = np.arange(total)
    whole = [(start, window.tolist()) for start, window in windows([samples], size, hop)]
    assert [(start, window.tolist()) for start, window in windows(cut(samples, lengths), size, hop)] == whole
    assert {value for _, window in whole for value in window} == set(range(total))


@pytest.mark.parametrize(("size", "hop"), [(10, 0), (10, 11), (0, 0)])
def test_windows_that_would_skip_samples_are_refused(size: int, hop: int) -> None:
    with pytest.raises(ValueError, match=f"hop={hop} is not allowed"):
        list(windows([np.zeros(99)], size, hop))


# ---- any bytes


@cache
def small_files() -> dict[str, bytes]:
    sound = noise(3000)
    files = {kind: written(sound, 32000, kind) for kind in ("WAV", "FLAC", "OGG", "MP3")}
    return files | {"m4a": encoded(sound, 32000, "ipod", "aac")}


MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(("flip", "delete", "insert", "truncate")),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=6,
)


def mutated(content: bytes, mutations: list[tuple[str, float, bytes]]) -> bytes:
    data = bytearray(content)
    for action, place, new in mutations:
        at = int(place**3 * len(data))  # mostly near the header
        if action == "flip":
            data[at : at + len(new)] = bytes(a ^ b for a, b in zip(data[at:], new, strict=False))
        elif action == "delete":
            del data[at : at + len(new)]
        elif action == "insert":
            data[at:at] = new
        elif place > 0.5:
            del data[at:]
    return bytes(data)


@given(st.sampled_from(("WAV", "FLAC", "OGG", "MP3", "m4a")), MUTATIONS)
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_samples_or_a_named_refusal(
    kind: str, mutations: list[tuple[str, float, bytes]]
) -> None:
    check_outcome(mutated(small_files()[kind], mutations))

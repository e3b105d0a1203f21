"""What unlabelled sounds are like, from a sample of them: how many hours, how loud every band; what follows
from it.
"""

import contextlib
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import soundfile
import torch

from patchout.audio.mel import MelConfig, log_mel
from patchout.audio.statistics import FrameStatistics, frame_statistics
from patchout.audio.stream import AudioError
from patchout.checkpoint import zoo
from patchout.checkpoint.download import DownloadError
from patchout.data.augment import fit, keyed
from patchout.data.clips import ClipSet, DataError
from patchout.data.sets import scan_sounds
from patchout.training.masked.config import PretrainConfig
from patchout.training.masked.recipes import MASKSPEC

MOST_CLIPS, MOST_S = 400, 7200.0  # that are listened to; either ends it
CLIP_S = 10.0  # of a clip, for the statistics
LEAST_S = 60.0  # of sound that anything can be learnt from
SCRATCH_HOURS = 100.0
SEEKABLE = (".aif", ".aiff", ".au", ".caf", ".flac", ".wav")  # read from any place, to the sample


class Survey(NamedTuple):
    """A sample of the clips, and what follows from it for all."""

    hours: float  # of all clips
    statistics: FrameStatistics
    problems: tuple[str, ...]  # what cannot be read, and silence


def sounds_of(config: PretrainConfig) -> ClipSet:
    """What is listened to; a split that only the recipe leaves out need not be there."""
    sounds = scan_sounds(config.data)
    folds = {*sounds.column("fold").tolist()}
    excluded = (name for name in config.exclude if name in folds or name not in MASKSPEC.exclude)
    training = sounds.without(*excluded)
    if not len(training):
        raise DataError(f"{config.data}: all {len(sounds)} clips are excluded ({', '.join(config.exclude)})")
    return training


def survey(clips: ClipSet, mel: MelConfig, *, per_band: bool, floor: float) -> Survey:
    """Statistics of a random sample of the clips; `mel` is a front end without any.

    DataError: nothing can be read, only silence, or less than a minute of sound in all.
    """
    mels, problems, seconds, silent = list[torch.Tensor](), list[str](), list[float](), 0
    for index in torch.randperm(len(clips), generator=keyed("survey"))[:MOST_CLIPS].tolist():
        stream, parts, is_silent = clips.stream(index, mel.sample_rate), list[np.ndarray](), True
        try:
            for block in stream:  # a length is what was heard: a header may promise any
                if stream.num_samples - len(block) < CLIP_S * mel.sample_rate:
                    parts.append(block)
                is_silent = is_silent and not block.any()
        except (AudioError, OSError) as error:
            problems.append(str(error))
            continue
        seconds.append(stream.num_samples / mel.sample_rate)
        silent += is_silent
        part = torch.from_numpy(np.concatenate(parts))[: round(CLIP_S * mel.sample_rate)]
        mels.append(log_mel(fit(part, max(len(part), mel.min_samples))[None], mel)[0])
        if sum(seconds) > MOST_S:
            break
    if not seconds:
        raise DataError(f"{clips.root}: none of {len(problems)} clips could be read ({problems[0]})")
    total_s = sum(seconds) / len(seconds) * len(clips)
    if total_s < LEAST_S:
        raise DataError(
            f"{clips.root}: {total_s:.0f} s of sound are too little to learn from: bring hours of it"
        )
    if silent == len(seconds):
        raise DataError(f"{clips.root}: {silent} clips, and only silence in them: there is nothing to learn")
    statistics = frame_statistics(mels, floor=floor, per_band=per_band)
    if silent:
        problems.insert(
            0, f"{silent} of the {len(seconds)} clips that were listened to are silent: leave them out"
        )
    return Survey(total_s / 3600, statistics, tuple(problems))


def cut_long(clips: ClipSet, clip_s: float) -> ClipSet:
    """Recordings of four `clip_s` and more as equal stretches of two to three, each a clip of its own.

    So an epoch hears all of a long recording, and decodes little more than it crops. Only of files that can
    be read from any place (WAV, FLAC and the like); what is read from its beginning anyway, and prepared
    sets, stay whole.
    """
    if clips.packed:
        return clips
    names = [name for name in ("start_s", "end_s") if name in clips.table.column_names]
    stated = {name: clips.table[name].to_pylist() for name in names}
    spans = (stated.get(name, [None] * len(clips)) for name in ("start_s", "end_s"))
    edges = [_edges(*span, least_s=2 * clip_s) for span in zip(clips.names(), *spans, strict=True)]
    stretches = [len(times) - 1 for times in edges]
    if max(stretches) == 1:
        return clips
    table = clips.take(np.repeat(np.arange(len(clips)), stretches)).table.drop(names)
    for name, part in (("start_s", slice(None, -1)), ("end_s", slice(1, None))):
        column = pa.array([time for times in edges for time in times[part]], pa.float64())
        table = table.append_column(name, column)
    return replace(clips, table=table)


def _edges(name: str, start_s: float | None, end_s: float | None, *, least_s: float) -> list[float | None]:
    """Where the equal stretches of a recording begin, and where the last one ends."""
    first, stated_s = start_s or 0.0, 0.0
    if name.lower().endswith(SEEKABLE):
        with contextlib.suppress(soundfile.SoundFileError):  # whoever decodes it says what is wrong
            stated_s = soundfile.info(name).duration
    length = min(end_s or stated_s, stated_s) - first
    count = max(1, int(length // least_s))
    if count > 1 and not _reaches(name, first + length):
        return [first, end_s]
    return [*(first + place * length / count for place in range(count)), end_s]


def _reaches(name: str, end_s: float) -> bool:
    """Whether a file's sound goes on until `end_s`: a FLAC from a pipe states no length, or any."""
    with contextlib.suppress(soundfile.SoundFileError), soundfile.SoundFile(name) as sound:
        return (
            sound.seekable()
            and sound.seek(min(round(end_s * sound.samplerate), sound.frames) - 1) > 0
            and bool(len(sound.read(1)))
        )
    return False


def choose_start(init: str, hours: float) -> tuple[str, str]:
    """The start weights that a config asks for, and why: "auto" decides by the hours of sound.

    The published encoder heard 5,500 hours 80 times. Fewer than SCRATCH_HOURS are soon known by heart, and
    weights that have heard more know more; where the line lies exactly was not measured.
    """
    amount = f"about {hours:.1f} hours of sound"
    if init != "auto":
        return init, f"{amount}, start: {init or 'random weights'}"
    if hours >= SCRATCH_HOURS:
        return "", f"{amount}, start: random weights ({SCRATCH_HOURS:g} hours or more)"
    little = f"fewer than {SCRATCH_HOURS:g} hours are soon known by heart"
    try:
        zoo.fetch("maskspec-base")
    except DownloadError as error:
        return "", f"{amount}, start: random weights. We would take the published ones, as {little}: {error}"
    return "maskspec-base", f"{amount}, start: the published weights, as {little}"

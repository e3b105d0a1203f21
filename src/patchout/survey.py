"""What unlabelled sounds are like, from a sample of them: how many hours, how loud every band, how much silence."""

from typing import NamedTuple

import torch

from patchout.augment import fit, keyed
from patchout.clips import ClipSet, DataError
from patchout.mel import MelConfig, log_mel
from patchout.mel_statistics import FrameStatistics, frame_statistics

MOST_CLIPS, MOST_S = 400, 7200.0  # that are listened to; either ends it
CLIP_S = 10.0  # of a clip, for the statistics
LEAST_S = 60.0  # of sound that anything can be learnt from


class Survey(NamedTuple):
    """A sample of the clips, and what follows from it for all."""

    hours: float  # of all clips
    silent: float  # share of clips without any sound
    statistics: FrameStatistics
    problems: tuple[str, ...]


def survey(clips: ClipSet, mel: MelConfig, *, per_band: bool, floor: float) -> Survey:
    """Listen to clips in an order of their own until enough is known; `mel` is a front end without statistics.

    DataError: nothing can be read, only silence, or less than a minute of sound in all.
    """
    mels, problems, seconds, silent = list[torch.Tensor](), list[str](), list[float](), 0
    for index in torch.randperm(len(clips), generator=keyed("survey"))[:MOST_CLIPS].tolist():
        try:
            wave = clips.wave(index, mel.sample_rate)
        except DataError as error:
            problems.append(str(error))
            continue
        seconds.append(len(wave) / mel.sample_rate)
        silent += not wave.any()
        part = wave[: round(CLIP_S * mel.sample_rate)]
        mels.append(log_mel(fit(part, max(len(part), mel.min_samples))[None], mel)[0])
        if sum(seconds) > MOST_S:
            break
    if not seconds:
        raise DataError(f"{clips.root}: none of {len(problems)} clips could be read ({problems[0]})")
    total_s = sum(seconds) / len(seconds) * len(clips)
    if total_s < LEAST_S:
        raise DataError(f"{clips.root}: {total_s:.0f} s of sound are too little to learn from: bring hours of it")
    if silent == len(seconds):
        raise DataError(f"{clips.root}: {silent} clips, and only silence in them: there is nothing to learn")
    found = frame_statistics(mels, floor=floor, per_band=per_band)
    return Survey(total_s / 3600, silent / len(seconds), found, tuple(problems))

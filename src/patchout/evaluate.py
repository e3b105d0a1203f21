"""A model against labelled clips: scores, their confidence and what could not be read."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from patchout import audio, metrics
from patchout.data import ClipSet, DataError
from patchout.device import Precision
from patchout.inference import score
from patchout.passt import Passt


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found."""

    scores: dict[str, float]
    clips: int
    failed: tuple[str, ...]  # clips that could not be read, each with its reason
    accuracy_interval: tuple[float, float] | None = None  # 95 %, multi-class only


def evaluate(
    model: Passt,
    clips: ClipSet,
    *,
    precision: Precision = "fp32",
    batch_size: int = 16,
    on_clip: Callable[[], None] | None = None,
) -> Evaluation:
    """Score every clip as `patchout.tag` does; accuracy where every clip has one class, mean average precision always.

    Labels of the data that the model does not know are a DataError; a clip that cannot be read is left out and named.
    """
    rate = model.config.mel.sample_rate
    targets = clips.targets(model.config.labels)
    streams = (audio.Stream(clip.file, rate, start_s=clip.start_s, end_s=clip.end_s) for clip in clips.clips)
    scored = []
    for one in score(model, streams, precision=precision, batch_size=batch_size):
        scored.append(one)
        if on_clip:
            on_clip()
    good = [index for index, one in enumerate(scored) if one.scores is not None]
    failed = tuple(one.error for one in scored if one.error is not None)
    if not good:
        raise DataError(
            f"{clips.root}: none of {len(scored)} clips could be read ({failed[0] if failed else 'no clips'})"
        )
    predictions = np.stack([one.scores for one in scored if one.scores is not None])
    scores = {"mAP": metrics.mean_average_precision(predictions, targets[good])}
    interval = None
    if model.config.task == "multi_class" and clips.task == "multi_class":
        scores = {"accuracy": metrics.accuracy(predictions, targets[good]), **scores}
        interval = metrics.wilson_interval(scores["accuracy"], len(good))
    return Evaluation(scores, len(good), failed, interval)

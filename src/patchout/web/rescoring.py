"""Scores of kept embeddings by a new last layer: the list is sorted anew before anything is tagged again."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from patchout.inference.events import EventRule
from patchout.inference.tagging import to_tags
from patchout.inference.window_scores import Scored
from patchout.models.tagger import Tagger
from patchout.web.analysis import TOP, margin
from patchout.web.sound_index import Analysis, Sound, SoundIndex, Summary


def adopt(old: SoundIndex, new: SoundIndex, model: Tagger) -> None:
    """Fill the index of a model with provisional scores by the embeddings of one with the same encoder."""
    new.copy_spans(old)
    new.save(_rescored(old, new, model), keep_spans=True)


def _rescored(old: SoundIndex, new: SoundIndex, model: Tagger) -> Iterator[tuple[Sound, Analysis]]:
    config, totals = model.config, dict[str, tuple[np.ndarray, int]]()
    for spans, values in old.embeddings():
        with torch.inference_mode():
            logits = model.classified(torch.from_numpy(values.copy()).to(next(model.parameters()).device))
            scores = logits.softmax(1) if config.task == "multi_class" else logits.sigmoid()
        for (file, _, _), row in zip(spans, scores.cpu().numpy(), strict=True):
            total, count = totals.get(file, (0.0, 0))
            totals[file] = total + row, count + 1
    rule = EventRule()
    for file, (total, count) in totals.items():
        sound, before = new.sounds.get(file), old.sounds.get(file)
        if not sound or not before or not before.summary or sound.summary or before.summary.error:
            continue
        if (sound.size_bytes, sound.modified_s) != (before.size_bytes, before.modified_s):
            continue
        mean = config.decision.calibrated((total / count).astype(np.float32), config.task)
        scored = Scored(file, before.summary.duration_s, mean)
        tags = to_tags(scored, config, top=TOP, rule=rule, events=False)
        summary = Summary(
            duration_s=before.summary.duration_s,
            label=tags.labels[0],
            score=round(tags.scores[0], 4),
            margin=round(margin(mean, config), 5),
            is_passed=bool(tags.passed and tags.passed[0]),
            is_provisional=True,
        )
        analysis = old.analysis(file)
        if analysis is not None:
            details = {**analysis.details, "tags": tags.to_dict()["tags"], "events": [], "track": []}
            nothing = np.zeros((0, 0), np.float16)
            times_s = np.zeros(0, np.float32)
            yield (
                sound,
                replace(analysis, summary=summary, details=details, times_s=times_s, track=nothing, spans=()),
            )

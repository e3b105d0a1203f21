"""A model for each channel of stereo sounds, and their ensemble (MaskSpec, section 3.2)."""

from collections.abc import Callable
from dataclasses import replace

from accelerate import PartialState

from patchout import evaluate, zoo
from patchout.audio import Channel
from patchout.files import finite, write_json
from patchout.repeat import Scores
from patchout.split import choose
from patchout.train_config import TrainConfig

CHANNELS: tuple[Channel, ...] = ("left", "right", "mean")
EVALUATION_BATCH = 16  # windows a forward pass


def each_channel(config: TrainConfig, run: Callable[[TrainConfig], Scores]) -> Scores:
    """Run once a channel, each in a folder of its own; returns the scores of the mean of the three models' logits.

    They are told of the clips that a run reports; a channel's own as `<score>/left`. Writes out/scores.json.
    """
    single = [replace(config, channel=channel, out=config.out / channel) for channel in CHANNELS]
    alone = [run(one) for one in single]
    models = [zoo.load(one.out, one.device) for one in single]
    splits = [choose(one, lambda problem: None) for one in single]
    sets = [split.test if len(split.test) else split.validation for split in splits]
    if not len(sets[0]):
        return {}
    parts = [
        evaluate.predict(model, clips, precision=config.precision, batch_size=EVALUATION_BATCH)
        for model, clips in zip(models, sets, strict=True)
    ]
    first = models[0].config
    both = evaluate.ensemble(parts, evaluate.label_orders([model.config for model in models]))
    scores = evaluate.judge(both, sets[0], labels=first.labels, task=first.task).scores
    for one, own in zip(single, alone, strict=True):
        scores |= {f"{name}/{one.channel}": score for name, score in own.items()}
    if PartialState().is_main_process:
        write_json(config.out / "scores.json", finite(scores))
    return scores

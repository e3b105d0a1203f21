"""A model for each channel of stereo sounds, and their ensemble (MaskSpec, section 3.2)."""

from collections.abc import Callable
from dataclasses import replace

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from patchout.audio.stream import Channel
from patchout.checkpoint import zoo
from patchout.files import finite, write_json
from patchout.inference import evaluate
from patchout.training import loop
from patchout.training.supervised.config import TrainConfig
from patchout.training.supervised.data_split import choose
from patchout.training.supervised.repeats import Scores
from patchout.training.supervised.report import write_report

CHANNELS: tuple[Channel, ...] = ("left", "right", "mean")
EVALUATION_BATCH = 16  # windows a forward pass


def each_channel(config: TrainConfig, run: Callable[[TrainConfig], Scores]) -> Scores:
    """Run once a channel, each in a folder of its own; returns the scores of the mean of the three models'
    logits.

    They are told of the clips that a run reports; a channel's own as `<score>/left`. Writes out/scores.json
    and out/report/. `patchout evaluate out/left out/right out/mean` gives the same ensemble.
    """
    single = [replace(config, channel=channel, out=config.out / channel) for channel in CHANNELS]
    alone = [run(one) for one in single]
    main = PartialState().is_main_process
    scores = broadcast_object_list([loop.agreed(lambda: _ensemble(config, single) if main else {})])[0]
    if scores:
        for one, own in zip(single, alone, strict=True):
            scores |= {f"{name}/{one.channel}": score for name, score in own.items()}
        if main:
            write_json(config.out / "scores.json", finite(scores))
    return scores


def _ensemble(config: TrainConfig, single: list[TrainConfig]) -> Scores:
    """Score the models of these finished runs together, and write the report; nothing without clips held
    out."""
    split = choose(replace(config, channel="mean"), lambda problem: None)
    clips, which = (split.test, "test") if len(split.test) else (split.validation, "validation")
    if not len(clips):
        return {}
    models = [zoo.load(one.out, one.device) for one in single]
    parts = [
        evaluate.predict(model, clips, precision=config.precision, batch_size=EVALUATION_BATCH)
        for model in models
    ]
    first = models[0].config
    both = evaluate.ensemble(parts, evaluate.label_orders([model.config for model in models]))
    weights = f"the mean of the logits of {', '.join(CHANNELS)}, on the {which} clips"
    write_report(config.out, both, clips, labels=first.labels, task=first.task, weights=weights)
    return evaluate.judge(both, clips, labels=first.labels, task=first.task).scores

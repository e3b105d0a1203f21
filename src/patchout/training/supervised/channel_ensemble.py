"""Ensemble of three models, of the left channel, the right one and their mean (MaskSpec, section 3.2)."""

from collections.abc import Callable
from dataclasses import replace

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from patchout.audio.stream import Channel
from patchout.checkpoint import zoo
from patchout.files import finite, write_json
from patchout.inference import evaluate
from patchout.models.decision import NO_DECISION
from patchout.training import loop
from patchout.training.supervised.config import TrainConfig
from patchout.training.supervised.data_split import choose
from patchout.training.supervised.repeats import Scores, refuse_single_run
from patchout.training.supervised.report import write_report

CHANNELS: tuple[Channel, ...] = ("left", "right", "mean")
EVALUATION_BATCH = 16  # windows a forward pass


def each_channel(config: TrainConfig, run: Callable[[TrainConfig], Scores]) -> Scores:
    """Scores of the mean of the three models' logits, each trained by `run` in a folder of its own.

    A channel's own scores are there as `<score>/left`; all on the clips that a run reports. Writes
    out/scores.json and out/report/. `patchout evaluate out/left out/right out/mean` gives the same ensemble.
    A folder that holds a single run is a ValueError.
    """
    refuse_single_run(config.out)
    cache = config.distill_cache
    configs = [
        replace(config, channel=name, out=config.out / name, distill_cache=cache and f"{cache}/{name}")
        for name in CHANNELS
    ]
    single = dict(zip(CHANNELS, map(run, configs), strict=True))
    main = PartialState().is_main_process
    scores = broadcast_object_list([loop.agreed(lambda: _ensemble(config, configs) if main else {})])[0]
    if scores:
        for channel, channel_scores in single.items():
            scores |= {f"{name}/{channel}": score for name, score in channel_scores.items()}
        if main:
            write_json(config.out / "scores.json", finite(scores))
    return scores


def _ensemble(config: TrainConfig, configs: list[TrainConfig]) -> Scores:
    """Scores of these finished runs together, written as a report; none without clips held out."""
    models = [zoo.load(single.out, single.device) for single in configs]
    teacher = models[0].config if config.distill else None
    name, clips = choose(replace(config, channel="mean"), lambda problem: None, teacher).scored
    if not len(clips):
        return {}
    precision, size = config.precision, EVALUATION_BATCH
    parts = [evaluate.predict(model, clips, precision=precision, batch_size=size) for model in models]
    predictions = evaluate.ensemble(parts, evaluate.label_orders([model.config for model in models]))
    shape = replace(models[0].config, decision=NO_DECISION)
    labels, task = shape.labels, shape.task
    weights = f"the mean of the logits of {', '.join(CHANNELS)}, on the {name} clips"
    write_report(config.out, predictions, clips, config=shape, weights=weights)
    return evaluate.judge(predictions, clips, labels=labels, task=task).scores

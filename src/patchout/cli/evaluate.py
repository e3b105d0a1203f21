"""`patchout evaluate`: scores of a model, or of an ensemble, on labelled clips."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from patchout.cli import output
from patchout.cli.command import DONE, FAILED, check_batch_size, device_for, load_model, say

if TYPE_CHECKING:
    from patchout.data.clips import ClipSet


@dataclass(kw_only=True)
class Options:
    """Score a model on labelled clips; several models are an ensemble: the mean of their logits."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional]
    """names from `patchout models`, .safetensors files or run folders"""
    data: str
    """folder of class folders, CSV or JSONL list, prepared set, or hub set (hf://owner/name)"""
    split: str = ""
    """only the clips of this split or fold"""
    by: str = ""
    """column by whose values the first score is also told, e.g. device, and for those other splits lack
    (unseen)"""
    format: Literal["table", "json"] = "table"
    device: str = "auto"
    """cuda, mps or cpu"""
    precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """auto: the faster of fp32 and bf16 on this machine; int8: linear layers, on a CPU"""
    batch_size: int = 16
    """windows a forward pass"""


def main(args: Sequence[str]) -> int:
    """Run `patchout evaluate`."""
    options = tyro.cli(Options, args=args, prog="patchout evaluate")
    if not options.models:
        example = "name one, or several for an ensemble, e.g. `patchout evaluate sounds-tiny`"
        raise ValueError(f"no model given: {example}")
    check_batch_size(options.batch_size)
    from patchout.data.background import as_background
    from patchout.data.sets import scan
    from patchout.inference.evaluate import draws_for, ensemble, group_by, judge, label_orders, predict

    device = device_for(options.device, options.precision)
    models = [load_model(name, device) for name in options.models]
    labels, task, split = models[0].config.labels, models[0].config.task, options.split
    background = models[0].config.decision.background
    data = as_background(scan(options.data, classes=(*labels, *background)), background)
    clips = data.only(split) if split else data
    groups = group_by(clips, options.by, data.without(split) if split else None)
    orders = label_orders([model.config for model in models])
    for name in options.models:
        _tell_known(name, clips)
    clips.targets(labels)  # refuses clips that cannot be scored before hours of work
    of_model = partial(predict, precision=options.precision, batch_size=options.batch_size)
    with output.Bar("clips", len(models) * len(clips), sys.stderr) as advance:
        logits = [of_model(model, clips, on_clip=lambda: advance(1)) for model in models]
        predictions = ensemble(logits, orders)
    draws = draws_for(len(clips), len(labels))
    result = judge(predictions, clips, labels=labels, task=task, groups=groups, draws=draws)
    failed = (*clips.problems, *result.failed)
    for problem in (*failed, *predictions.warnings, *clips.notes):
        say(problem)
    counts = data.info.get("official", {}).items()
    official = {name: count for name, count in counts if split in ("", name) and count["listed"]}
    settings = {"models": options.models, "data": options.data, "split": split or None, "official": official}
    output.print_evaluation(settings, result, options.format, sys.stdout)
    return FAILED if failed else DONE


def _tell_known(name: str, clips: "ClipSet") -> None:
    """Say how many of the clips the run in a folder was trained on."""
    run = Path(name) if Path(name).is_dir() else Path(name).parent
    if not (run / "config.json").exists():
        return
    from patchout.training.supervised.data_split import num_trained_on

    if count := num_trained_on(run, clips):
        reason = f"{name} was trained on {count} of these {len(clips)} clips, which it may know by heart"
        say(f"{reason}: {run / 'scores.json'} and its report are of clips that it did not hear")

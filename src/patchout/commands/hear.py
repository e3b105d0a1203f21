"""`patchout hear`: tasks of the HEAR benchmark."""

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from patchout import output
from patchout.commands import DONE, FAILED, near, say

if TYPE_CHECKING:
    from patchout.embedding import EmbedConfig
    from patchout.hear.subject import Subject


@dataclass(kw_only=True)
class List:
    """Say which tasks are there, whole or damaged, and at which rates."""

    tasks: Path
    """folder of task folders, such as esc50-v2.0.0-full"""
    format: Literal["table", "json"] = "table"

    def run(self) -> list[str]:
        """What is wrong."""
        from patchout.hear.tasks import BOARDS, find_tasks
        from patchout.hear.wavs import inspect

        records = [inspect(folder).record() for folder in find_tasks(self.tasks)]
        if self.format == "json":
            output.line(json.dumps(records, indent=1), sys.stdout)
        else:
            for record in records:
                shown = [f"{key} {record[key]}" for key in ("category", "score", "clips", "rates") if key in record]
                output.line("  ".join([record["task"], record["state"], *shown]), sys.stdout)
        if here := {record.get("board") for record in records} & set(BOARDS):
            say(f"of the {len(BOARDS)} tasks of HEAR, not here: {', '.join(sorted(set(BOARDS) - here)) or 'none'}")
        return [problem for record in records for problem in record["problems"]]


@dataclass(kw_only=True)
class Resample:
    """Write the rate that a model needs, once, into the task folders (the public archive has 48000 Hz only)."""

    tasks: Path
    """folder of task folders"""
    rate: int
    """Hz; what is there already stays"""
    task: tuple[str, ...] = ()
    """only these"""

    def run(self) -> list[str]:
        """What could not be resampled."""
        from patchout.hear.tasks import TaskError, find_tasks, read_task
        from patchout.hear.wavs import resample

        problems = []
        for folder in find_tasks(self.tasks, self.task):
            with output.Bar(folder.name, None, sys.stderr) as advance:
                try:
                    for problem in resample(read_task(folder), self.rate):
                        advance(1)
                        problems += [problem] if problem else []
                except TaskError as error:
                    problems.append(str(error))
        return problems


@dataclass(kw_only=True)
class Run:
    """Judge an embedding: embed the tasks, train the kit's probes, write its scores. The same command goes on."""

    model: Annotated[str, tyro.conf.Positional]
    """a name from `patchout models`, a .safetensors file, or any importable HEAR module, e.g. hear21passt.base"""
    tasks: Path
    """folder of task folders"""
    out: Path
    """folder for OUT/<model and settings>/<task>: embeddings, predictions, test.predicted-scores.json"""
    task: tuple[str, ...] = ()
    """only these"""
    weights: str = ""
    """file that a HEAR module loads"""
    preset: str = ""
    """levels and fields of a published HEAR module, for one of our models, e.g. base2level"""
    levels: tuple[Literal["low", "mid", "high"], ...] = ()
    """log-mel, tokens, class scores of one of our models; high and mid if none is named"""
    fields_ms: tuple[float, ...] = ()
    """receptive fields of a timestamp; 160 if none is given"""
    grid: Literal["full", "fast", "two"] = "full"
    """of the probe: eight points of the kit's, eight of its fast one, or two for a look"""
    seed: int = 0
    """of the probe"""
    device: tuple[str, ...] = ("auto",)
    """cuda, mps or cpu; of several, such as cuda:0 cuda:1, all embed and the first one probes"""

    def run(self) -> Iterator[str]:
        """Which tasks failed, and why."""
        if self.seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {self.seed}")
        from patchout.device import pick_device
        from patchout.errors import InputError
        from patchout.hear.subject import open_subject
        from patchout.hear.tasks import find_tasks

        devices = [str(pick_device(name)) for name in self.device]
        folders = find_tasks(self.tasks, self.task)
        subject = open_subject(self.model, config=self._config(), weights=self.weights)
        for folder in folders:
            try:
                self._judge(subject, folder, devices)
            except InputError as error:
                yield str(error) if folder.name in str(error) else f"{folder.name}: {error}"

    def _judge(self, subject: "Subject", folder: Path, devices: list[str]) -> None:
        """One task."""
        from patchout.hear.embeddings import embed_task
        from patchout.hear.probe import ProbeConfig, grid_points, probe_task
        from patchout.hear.tasks import read_task

        task, start = read_task(folder), time.perf_counter()
        num_clips = sum(map(len, task.annotations.values()))
        out = self.out / self._name()
        with output.Bar(f"{folder.name}: embedding", num_clips, sys.stderr) as advance:
            embedded = embed_task(subject, task, out, devices=devices, on_clips=advance)
        embedding_s = time.perf_counter() - start
        config = ProbeConfig(self.grid, self.seed)
        num_fits = len(grid_points(task, self.grid)) + len(task.partitions()) - 1
        with output.Bar(f"{folder.name}: probes", num_fits, sys.stderr) as advance:
            record = probe_task(
                embedded, out / folder.name, config=config, device=devices[0], embedding_s=embedding_s, on_fit=advance
            )
        output.line(_summary(folder.name, task.evaluation[0], record), sys.stdout)

    def _name(self) -> str:
        """Of the folder: the model and what was asked of it."""
        asked = [
            Path(self.weights).stem,
            self.preset,
            "+".join(self.levels),
            "+".join(f"{ms:g}ms" for ms in self.fields_ms),
        ]
        name = "-".join([self.model.removesuffix(".safetensors"), *filter(None, asked)])
        return re.sub(r"[^\w.+-]+", "-", name).strip("-.")

    def _config(self) -> "EmbedConfig | None":
        """The embedding that was asked for; None if nothing was."""
        from patchout.embedding import EmbedConfig
        from patchout.hear import PRESETS

        if self.preset and self.preset not in PRESETS:
            hint = near(self.preset, list(PRESETS))
            raise ValueError(f"no preset {self.preset!r}{hint}: presets are {', '.join(PRESETS)}")
        if not (self.preset or self.levels or self.fields_ms):
            return None
        config = PRESETS[self.preset].config if self.preset else EmbedConfig()
        if self.levels:
            config = replace(config, levels=self.levels, scene_levels=self.levels)
        return replace(config, fields_ms=self.fields_ms) if self.fields_ms else config


def _summary(task: str, score: str, record: dict[str, Any]) -> str:
    """A line: the score, over how many folds, and the seconds of each stage."""
    tests, means = len(record["patchout"]["seconds"]) - 1, record.get("aggregated_scores", {})
    if means:
        text = f"{means['test_score_mean']:.4f} (mean of {tests} folds, sd {means['test_score_std']:.4f})"
    else:
        text = f"{record['test']['test_score']:.4f}"
    embedding_s, *probe_s = record["patchout"]["seconds"].values()
    return f"{task}  {score} {text}  embedding {embedding_s:.1f} s  probes {sum(probe_s):.1f} s"


@dataclass(kw_only=True)
class MakeMini:
    """Build five small tasks from free sounds: ESC-10, spoken digits, instrument pitch, office-like events, piano."""

    data: Path
    """folder with esc10/, fsdd/ and gm/"""
    out: Path
    """folder for the task folders"""

    def run(self) -> list[str]:
        """What is missing or could not be read."""
        from patchout.hear.mini import make_mini

        with output.Bar("clips", None, sys.stderr) as advance:
            return list(make_mini(self.data, self.out, on_clip=lambda: advance(1)))


@dataclass(kw_only=True)
class Report:
    """Set results of `patchout hear run`, or of the kit, beside the official ones: tables and figures in report.md."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """folders of results, RESULTS/<model>/<task folder>"""
    out: Path
    """folder for report.md, its CSV files and pictures"""
    base: str = ""
    """measured model to compare task by task (the first one)"""
    best: str = ""
    """with this one (that of the highest median)"""

    def run(self) -> list[str]:
        """What could not be used."""
        from patchout.hear.report import write_report

        problems = write_report(self.results, self.out, base=self.base, best=self.best)
        output.line(str(self.out / "report.md"), sys.stdout)
        return problems


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Resample, tyro.conf.subcommand("resample")]
    | Annotated[MakeMini, tyro.conf.subcommand("make-mini")]
    | Annotated[Run, tyro.conf.subcommand("run")]
    | Annotated[Report, tyro.conf.subcommand("report")]
)


def main(args: Sequence[str]) -> int:
    """Run `patchout hear`."""
    command: List | Resample | MakeMini | Run | Report = tyro.cli(Command, args=args, prog="patchout hear")
    code = DONE
    for problem in command.run():
        say(problem)
        code = FAILED
    return code

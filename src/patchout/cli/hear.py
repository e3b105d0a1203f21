"""`patchout hear`: the HEAR benchmark, from its tasks to a report."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from patchout.cli import output
from patchout.cli.command import DONE, FAILED, say

if TYPE_CHECKING:
    from patchout.hear.subject import Subject
    from patchout.hear.tasks import Task

SHOWN = 5  # labels of one message


@dataclass(kw_only=True)
class List:
    """Say which tasks are there, whole or damaged, at which rates, and where the missing ones of HEAR are."""

    tasks: Path | None = None
    """folder of task folders, such as esc50-v2.0.0-full; without it, where those of HEAR are"""
    format: Literal["table", "json"] = "table"

    def run(self) -> list[str]:
        """List the tasks, and those of HEAR that are missing (if one is there); returns the problems."""
        from patchout.hear.sources import ARCHIVE, packed, sources, task_of, unpacking
        from patchout.hear.tasks import BOARD_OF, BOARDS, find_tasks
        from patchout.hear.wavs import inspect

        records = [inspect(folder) for folder in find_tasks(self.tasks)] if self.tasks else []
        keys = ("category", "score", "clips", "rates")
        texts = [json.dumps(records, indent=1)]
        if self.format == "table":
            shown = ([f"{key} {record[key]}" for key in keys if key in record] for record in records)
            rows = zip(records, shown, strict=True)
            texts = ["  ".join([record["task"], record["state"], *cells]) for record, cells in rows]
        for text in texts:
            output.line(text, sys.stdout)
        present = {task_of(record["task"]) for record in records}
        if self.tasks is None or present & BOARD_OF.keys():
            absent = [source for source in sources() if task_of(source.folder) not in present]
            boards = sorted({BOARD_OF[task_of(source.folder)] for source in absent})
            at = f"; as archives at {ARCHIVE}:" if boards else ""
            names = ", ".join(boards) or "none"
            missing = f"of the {len(BOARDS)} tasks of HEAR, not here: {names}{at}"
            todo = f"the {len(BOARDS)} tasks of HEAR are archives at {ARCHIVE}: give yours as --tasks"
            say(missing if self.tasks else todo)
            for source in absent:
                size = f"{source.clips} clips, {source.hours:g} h, {source.size_gb:.2g} GB at 48 kHz"
                output.line(f"  {source.folder}: {size}; {source.licence} ({source.source})", sys.stderr)
        if self.tasks and (tars := packed(self.tasks)):
            names = ", ".join(path.name for path in tars)
            say(f"{self.tasks}: {names} is not unpacked: {unpacking(self.tasks)}")
        return [problem for record in records for problem in record["problems"]]


@dataclass(kw_only=True)
class Resample:
    """Write the rate that a model needs, once, into the task folders (the public archive has 48 kHz only)."""

    tasks: Path
    """folder of task folders"""
    rate: int
    """Hz; what is there already stays"""
    task: tuple[str, ...] = ()
    """only these"""

    def run(self) -> list[str]:
        """Resample the tasks; returns what could not be resampled."""
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
    """Judge an embedding: embed the tasks, train the kit's probes, write scores. The same command goes on."""

    model: Annotated[str, tyro.conf.Positional]
    """one of ours (a name from `patchout models`, a file, a run folder), or any importable HEAR module, e.g.
    hear21passt.base; a+b are modules side by side. Without --tasks: a folder of embeddings, from `run` or the
    kit"""
    tasks: Path | None = None
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
    grid: Literal["full", "two"] = "full"
    """of the probe: eight points of the kit's, or two for a look"""
    seed: int = 0
    """of the probe"""
    device: tuple[str, ...] = ("auto",)
    """cuda, mps or cpu; of several, such as cuda:0 cuda:1, all embed and the first one probes"""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """of our models; auto: that of the embeddings in OUT, else the faster of fp32 and bf16"""

    def run(self) -> Iterator[str]:
        """Embed and probe the tasks; yields the ones that failed, with the reason."""
        if self.seed < 0:
            raise ValueError(f"--seed must be 0 or more, got {self.seed}")
        from patchout.errors import InputError
        from patchout.hear.api import embed_config
        from patchout.hear.embeddings import stored_precision
        from patchout.hear.settings import settings_of
        from patchout.hear.subject import open_subject
        from patchout.hear.tasks import find_tasks
        from patchout.inference.embedding import EmbedConfig
        from patchout.models.device import pick_device, pick_precision

        if files := [Path(part) for part in self.model.split("+") if part.endswith(".py")]:
            parts = files[0].with_suffix("").parts
            can_import = all(map(str.isidentifier, parts))
            todo = f"give {'.'.join(parts)}" if can_import else f"give {parts[-1]}, in its folder"
            raise ValueError(f"{files[0]}: a HEAR module is given by the name that imports it: {todo}")
        devices = [pick_device(name) for name in self.device]
        options = (self.preset, self.levels, self.fields_ms)
        config = embed_config(*options, plain=EmbedConfig()) if any(options) else None
        if self.tasks is None and (config or self.weights or not Path(self.model).is_dir()):
            reason = "only a folder of embeddings, without settings, is judged without it"
            raise ValueError(f"--tasks is missing: {reason}")
        folders = find_tasks(self.tasks or Path(self.model), self.task)
        subject = None
        if self.tasks:
            sys.path.append(str(Path.cwd()))  # a HEAR module may lie here
            load = partial(open_subject, self.model, config=config, preset=self.preset, weights=self.weights)
            stored = stored_precision(self.out / self._name()) if self.precision == "auto" else ""
            precision = stored or pick_precision(self.precision, devices[0])
            with output.download_bar(sys.stderr) as progress:
                subject = load(precision=precision, progress=progress)
            settings = settings_of(subject.model)
            if self.precision not in ("auto", settings.precision if settings else ""):
                reason = f"--precision is for a model by its name, {self.model} is a HEAR module"
                raise ValueError(f"{reason}, which has its own: leave it out")
        for folder in folders:
            try:
                self._judge(subject, folder, [*map(str, devices)])
            except (InputError, OSError) as error:
                yield str(error) if folder.name in str(error) else f"{folder.name}: {error}"

    def _judge(self, subject: "Subject | None", folder: Path, devices: list[str]) -> None:
        """Embed and probe one task, and print its score."""
        from patchout.hear.embeddings import embed_task, newer_wavs, read_embeddings
        from patchout.hear.probe import grid_points, probe_task
        from patchout.hear.tasks import read_task

        out = self.out / self._name()
        if subject is None:
            task = read_embeddings(folder)
        else:
            task = read_task(folder)
            with output.Bar(f"{folder.name}: embedding", task.num_clips, sys.stderr) as advance:
                newer = newer_wavs(task, out / folder.name, subject.rate)
                task = embed_task(subject, task, out, devices=devices, on_clips=advance)
            if newer:
                reason = f"{len(newer)} wavs are newer than their embeddings ({newer[0]} is one)"
                todo = f"if they were changed, move {task.folder} away and run this again"
                say(f"{folder.name}: {reason}: {todo}")
        num_fits = len(grid_points(task, self.grid)) + len(task.partitions()) - 1
        probe = partial(
            probe_task, task, out / folder.name, grid=self.grid, seed=self.seed, device=devices[0]
        )
        with output.Bar(f"{folder.name}: probes", num_fits, sys.stderr) as advance:
            record = probe(on_fit=advance)
        output.line(_summary(task, record), sys.stdout)
        for partition in task.partitions() if task.embedding_type == "scene" else ():
            if absent := task.unheard(partition.test):
                more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
                absence = f"{partition.test} has no example of {', '.join(absent[:SHOWN])}{more}"
                say(f"{folder.name}: {absence}: 0 in mAP, no AUC and d', as in the kit")

    def _name(self) -> str:
        """Folder name of the results: the model and its settings."""
        if self.tasks is None:
            return Path(self.model).resolve().name
        levels, fields = "+".join(self.levels), "+".join(f"{ms:g}ms" for ms in self.fields_ms)
        model, weights = self.model.removesuffix(".safetensors"), Path(self.weights).stem
        parts = (model, weights, self.preset, levels, fields)
        return re.sub(r"[^\w.+-]+", "-", "-".join(filter(None, parts))).strip("-.")


def _summary(task: "Task", record: dict[str, Any]) -> str:
    """Summary of a task in one line: the score, the number of folds, and the seconds of each stage."""
    from patchout.inference.metrics import score_text

    seconds = dict(record["patchout"]["seconds"])
    embedding = f"  embedding {seconds.pop('embedding'):.1f} s" if "embedding" in seconds else ""
    if means := record.get("aggregated_scores"):
        folds = f"mean of {len(task.partitions())} folds, sd {score_text(means['test_score_std'])}"
        score = f"{score_text(means['test_score_mean'])} ({folds})"
    else:
        score = score_text(record["test"]["test_score"])
    probes = f"probes {sum(seconds.values()):.1f} s"
    return f"{task.folder.name}  {task.evaluation[0]} {score}{embedding}  {probes}"


@dataclass(kw_only=True)
class MakeMini:
    """Build five small tasks of free sounds: ESC-10, spoken digits, pitch, office-like events, piano."""

    data: Path
    """folder with esc10/, fsdd/ and gm/"""
    out: Path
    """folder for the task folders"""

    def run(self) -> list[str]:
        """Build the tasks; returns what is missing or could not be read."""
        from patchout.hear.mini import make_mini

        with output.Bar("clips", None, sys.stderr) as advance:
            return list(make_mini(self.data, self.out, on_clip=lambda: advance(1)))


@dataclass(kw_only=True)
class Report:
    """Set results of `patchout hear run`, or of the kit, beside the official ones: tables and figures."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """folders of results, RESULTS/<model>/<task folder>"""
    out: Path
    """folder for report.md, its CSV files and pictures"""
    base: str = ""
    """measured model to compare task by task (the first one)"""
    best: str = ""
    """with this one (that of the highest median)"""

    def run(self) -> list[str]:
        """Write the report; returns the results that could not be used."""
        from patchout.hear.report import write_report

        if not self.results:
            raise ValueError("no results given: name folders that `patchout hear run` has written")
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

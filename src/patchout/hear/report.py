"""A report of HEAR results beside the official ones of the 2021 challenge: Markdown, CSV and figures.

Normalised scores, categories and figures: "Learning General Audio Representations with Large-Scale Training
of Patchout Audio Transformers", section 5. `leaderboard.csv` is the challenge's, with FSD50K as corrected in
July 2022 and as it was before, in the paper's figures.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patchout.files import markdown_table, write_aside
from patchout.hear import figures as plots_hear
from patchout.hear.figures import Line
from patchout.hear.results import Model, read_results
from patchout.hear.sources import read_table
from patchout.hear.tasks import BOARDS, CATEGORY, TABLE
from patchout.inference.embedding import EmbedConfig

SHOWN = ("OpenL3", "wav2vec2", "CVSSP PANNS", "GURA Cat H+w+C", "GURA Fuse Cat H+w+C")  # as in the paper
CATEGORIES = ("music", "speech", "general", "other")
EVENTS = tuple(name for name, row in TABLE.items() if row.embedding_type == "event")
LETTER = {"low": "L", "mid": "M", "high": "H"}
HOP_MS = 10.0  # STFT hop in Figures 4 and 5 of the paper
OFFICIAL = """Medians and numbers in brackets are scores divided by that of the best submission. FSD50K is as
corrected in July 2022; in the figures as before, like (it seems) the paper. What a model lacks is left out,
not counted as 0."""
OPEN = "These scores are as they are: there is no official one to divide them by."

Described = Sequence[tuple[Model, EmbedConfig]]


class Board(NamedTuple):
    """A section of the report: some tasks, and all models that have scores of them."""

    title: str
    stem: str  # of its files
    tasks: dict[str, list[str]]  # category -> tasks
    best: dict[str, float]  # task -> best official score; empty: scores are not normalised
    models: list[Model]

    def panels(self) -> dict[str, list[str]]:
        """Groups of tasks: the categories, and all tasks."""
        return {**self.tasks, "all tasks": [*chain(*self.tasks.values())]}

    def normalised(self, model: Model) -> dict[str, float]:
        """Normalised scores by task, for the tasks that the model has."""
        scores = model.primary()
        return {t: scores[t] / self.best.get(t, 1.0) for t in chain(*self.tasks.values()) if t in scores}

    def ranked(self, models: Iterable[Model]) -> list[Model]:
        """Sort models by their median normalised score, the highest first."""
        return sorted(models, key=lambda model: -np.median(list(self.normalised(model).values())))

    def shown(self) -> list[Model]:
        """Models of the tables and figures by task: the cited ones of the paper, and all measured ones."""
        cited = {model.name: model for model in self.models if model.is_cited}
        return [cited[name] for name in SHOWN if name in cited] + self.measured()

    def measured(self) -> list[Model]:
        """Measured models, in the order of their results."""
        return [model for model in self.models if not model.is_cited]


def write_report(results: Sequence[Path], out: Path, *, base: str = "", best: str = "") -> list[str]:
    """Write `out`/report.md, CSV files and figures for all scores under `results`; returns the problems.

    `base` and `best` are measured models to compare task by task; by default the first one, and that with the
    highest median. ReportError: there is no result that can be used.
    """
    measured, problems, notes = read_results(results)
    names = [model.name for model in measured]
    if unknown := [name for name in (base, best) if name and name not in names]:
        raise ValueError(f"no results of {unknown[0]!r}: there are results of {', '.join(names)}")
    out.mkdir(parents=True, exist_ok=True)
    listed = "".join(f"- **{model.name}**: {model.description}\n" for model in measured)
    source = "Everything *cited* is an official submission to HEAR 2021."
    parts = [f"# HEAR report\n\n**Measured** here:\n\n{listed}\n{source}\n"]
    unlisted = sorted({task for model in measured for task in model.primary()}.difference(BOARDS))
    for title, stem, tasks, cited, cited_before, text in (
        ("Tasks of HEAR", "hear", BOARDS, leaderboard(), leaderboard("fsd50k_before_2022_07"), OFFICIAL),
        ("Tasks without official scores", "open", unlisted, [], [], OPEN),
    ):
        board = _board(title, stem, tasks, [*cited, *measured])
        if board.measured():
            board_before = _board(title, stem, tasks, [*cited_before, *measured])
            figures = _figures(board_before, out, (base, best), notes)
            parts += [f"## {title}\n\n{text}\n", *_tables(board), *figures]
            _write_csv(out / f"{stem}-scores.csv", SCORES_HEAD, _score_rows(board))
            _write_csv(out / f"{stem}-medians.csv", MEDIANS_HEAD, _median_rows(board))
    left_out = "".join(f"- {text}\n" for text in (*problems, *notes))
    with write_aside(out / "report.md") as aside:
        text = "\n".join([*parts, f"## Left out\n\n{left_out or 'Nothing.'}"])
        aside.write_text(text, encoding="utf-8", errors="replace")  # a folder's name may be any bytes
    return problems


def leaderboard(fsd50k: str = "fsd50k") -> list[Model]:
    """Submissions to the challenge with their scores; `fsd50k` is the column of the FSD50K scores."""
    secondary = {row["model"]: row for row in read_table("leaderboard_secondary")}
    models = []
    for row in read_table("leaderboard"):
        if row["in_official_challenge"] == "1":
            texts = {task: row[fsd50k if task == "fsd50k" else task] for task in BOARDS}
            scores = {task: {"score": float(text)} for task, text in texts.items() if text}
            for column, text in secondary[row["model"]].items():
                task, _, name = column.partition(":")
                if task in scores and text:
                    scores[task][name] = float(text)
            models.append(Model(row["model"], scores, is_cited=True))
    return models


def _board(title: str, stem: str, tasks: Sequence[str], models: Sequence[Model]) -> Board:
    """Make a section of the models that have one of its tasks; the best cited scores normalise."""
    names = {
        task: task if task in CATEGORY else task.partition(" (")[0] for task in tasks
    }  # without the mode
    by_category: dict[str, list[str]] = {category: [] for category in CATEGORIES}
    for task, name in names.items():
        by_category[CATEGORY.get(name, "other")].append(task)
    scored = [model for model in models if not model.primary().keys().isdisjoint(tasks)]
    cited = [model.primary() for model in scored if model.is_cited]
    best = {task: max(scores.get(task, 0.0) for scores in cited) for task in tasks if cited}
    return Board(title, stem, {name: group for name, group in by_category.items() if group}, best, scored)


SCORES_HEAD = ("model", "source", "task", "score", "value", "normalised")
MEDIANS_HEAD = ("model", "source", "category", "first_quartile", "median", "third_quartile", "tasks")


def _score_rows(board: Board) -> Iterator[Sequence[object]]:
    for model in board.models:
        normalised = board.normalised(model) if board.best else {}
        for task in board.panels()["all tasks"]:
            for name, value in model.scores.get(task, {}).items():
                cells = ("primary", value, normalised.get(task, "")) if name == "score" else (name, value, "")
                yield (model.name, model.source, task, *cells)


def _median_rows(board: Board) -> Iterator[Sequence[object]]:
    for model in board.ranked(board.models):
        normalised = board.normalised(model)
        for category, tasks in board.panels().items():
            if values := [normalised[task] for task in tasks if task in normalised]:
                quartiles = np.percentile(values, (25, 50, 75)).tolist()
                yield (model.name, model.source, category, *quartiles, len(values))


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with write_aside(path) as aside, aside.open("w", newline="", encoding="utf-8", errors="replace") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])


def _tables(board: Board) -> Iterator[str]:
    """Markdown tables: medians of all models, and the scores of the shown ones by category."""
    ranked, panels = board.ranked(board.models), board.panels()
    rows = [[_median(board, model, tasks) for tasks in panels.values()] for model in ranked]
    yield "### Medians\n\n" + _table(ranked, list(panels), rows)
    for category, tasks in board.tasks.items():
        rows = [[_score(board, model, task) for task in tasks] for model in board.shown()]
        yield f"### {category.capitalize()}\n\n" + _table(board.shown(), tasks, rows)


def _table(models: Sequence[Model], columns: Sequence[str], scores: Sequence[Sequence[str]]) -> str:
    """A row a model; measured ones in bold letters."""
    rows = []
    for model, row in zip(models, scores, strict=True):
        bold = "" if model.is_cited else "**"
        rows.append((f"{bold}{model.name}{bold}", f"{bold}{model.source}{bold}", *row))
    return markdown_table(("model", "source", *columns), rows)


def _median(board: Board, model: Model, tasks: Sequence[str]) -> str:
    values = [score for task, score in board.normalised(model).items() if task in tasks]
    number = f"{np.median(values):.3f}" if values else "-"
    return number if len(values) == len(tasks) else f"{number} ({len(values)} of {len(tasks)})"


def _score(board: Board, model: Model, task: str) -> str:
    normalised = board.normalised(model).get(task)
    if normalised is None:
        return "-"
    return f"{model.primary()[task]:.3f}" + (f" ({normalised:.2f})" if board.best else "")


def _figures(board: Board, out: Path, compared: tuple[str, str], notes: list[str]) -> Iterator[str]:
    """Draw the figures that the results suffice for; yields their Markdown, notes which are missing."""
    tasks = board.panels()["all tasks"]
    events = [task for task in tasks if task.startswith(EVENTS)]
    shown = [_line(board, model) for model in board.shown()]
    cited = [line for line in shown if line.is_cited]
    ranked = [_line(board, model) for model in board.ranked(board.models)]

    def drawn(name: str, caption: str, draw: Callable[..., None], *values: Any) -> str:
        score = "score / best official score" if board.best else "score"
        draw(out / f"{board.stem}-{name}.png", *values, title=f"{board.title}: {caption}", score=score)
        return f"![{caption}]({board.stem}-{name}.png)\n"

    by_category = drawn("categories", "by category and model", plots_hear.rows, shown, board.tasks)
    yield f"### Figures\n\n{by_category}"
    yield drawn("medians", "all models by median", plots_hear.rows, ranked, {"all tasks": tasks})
    timed = [model for model in board.measured() if not set(events).isdisjoint(model.primary())]
    panels = {task: [task] for task in events}
    for name, caption, choose in (
        ("levels", "timestamps by level", _by_level),
        ("fields", "timestamps by receptive field", _by_field),
    ):
        left_out = {model.name: _settings(model) for model in timed}
        for hop_ms, described in _by_hop(timed):
            chosen = [model for model, _ in choose(described)]
            if lines := [_line(board, model, f": {left_out.pop(model.name)}") for model in chosen]:
                at = f", log-mel frames every {hop_ms:g} ms" if hop_ms else ""
                stem = name if hop_ms in (None, HOP_MS) else f"{name}-{hop_ms:g}ms"
                yield drawn(stem, caption + at, plots_hear.rows, [*cited, *lines], panels)
        if left_out:
            models = ", ".join(f"{name} ({settings})" for name, settings in left_out.items())
            notes.append(f"{board.title}: {caption}: without {models}, for want of others to compare with")
        elif not timed:
            notes.append(f"{board.title}: {caption}: no measured model has a task with timestamps")
    if two := _pair(board, *compared):
        names = f"{two[0].name} and {two[1].name}"
        yield drawn("pair", names, plots_hear.pair, [_line(board, model) for model in two], cited, tasks)
    else:
        notes.append(f"{board.title}: there are no two measured models to compare")


def _line(board: Board, model: Model, suffix: str = "") -> Line:
    return Line(model.name + suffix, board.normalised(model), model.is_cited)


def _settings(model: Model) -> str:
    """Short form of a model's settings: levels, receptive fields, the STFT hop unless it is the paper's."""
    if model.settings is None:
        return "settings not known"
    config, hop_ms = model.settings.config, model.settings.mel_hop_ms
    levels = "+".join(letter for level, letter in LETTER.items() if level in config.levels)
    fields = "" if levels == "L" else f", {' + '.join(f'{ms:g}' for ms in config.fields_ms)} ms"
    return levels + fields + (f", hop {hop_ms:g} ms" if hop_ms not in (None, HOP_MS) else "")


def _by_hop(models: Sequence[Model]) -> list[tuple[float | None, Described]]:
    """Group models with known settings by their STFT hop, the paper's first."""
    groups: defaultdict[float | None, list[tuple[Model, EmbedConfig]]] = defaultdict(list)
    for model in models:
        if model.settings:
            groups[model.settings.mel_hop_ms].append((model, model.settings.config))
    return sorted(groups.items(), key=lambda group: (group[0] != HOP_MS, -(group[0] or 0.0)))


def _by_level(models: Described) -> Described:
    """Choose models that differ in levels, of the most common single receptive field (log-mel has none)."""
    configs = [config for _, config in models if config.levels != ("low",)]
    fields = Counter(config.fields_ms for config in configs if len(config.fields_ms) == 1)
    common = min(fields, key=lambda ms: (-fields[ms], ms), default=())
    chosen = [pair for pair in models if pair[1].fields_ms == common or pair[1].levels == ("low",)]
    chosen.sort(key=lambda pair: len(pair[1].levels))
    return chosen if len({frozenset(config.levels) for _, config in chosen}) > 1 else []


def _by_field(models: Described) -> Described:
    """Choose models whose levels occur with several receptive fields."""
    settings = {(frozenset(config.levels), config.fields_ms) for _, config in models}
    count = Counter(levels for levels, _ in settings if levels != {"low"})
    return [(model, config) for model, config in models if count[frozenset(config.levels)] > 1]


def _pair(board: Board, base: str, best: str) -> tuple[Model, Model] | None:
    """The two models to compare: the first and that of the highest median, unless they are named."""
    measured = board.measured()
    firsts = [model for model in measured if model.name == base or (not base and model.name != best)]
    seconds = [model for model in measured if model not in firsts[:1] and best in ("", model.name)]
    return (firsts[0], board.ranked(seconds)[0]) if firsts and seconds else None

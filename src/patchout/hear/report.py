"""Results of HEAR tasks beside the official ones of the 2021 challenge, as Markdown, CSV and pictures.

Normalised scores, categories and figures: "Learning General Audio Representations with Large-Scale Training of Patchout
Audio Transformers", section 5. `leaderboard.csv` is the challenge's, with FSD50K in two versions: as corrected in July
2022, and as it was before, which the paper's figures show.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patchout.files import write_aside
from patchout.hear import figures as plots_hear
from patchout.hear.figures import Line
from patchout.hear.results import Model, read_results
from patchout.hear.tasks import BOARDS, CATEGORY, TABLE
from patchout.inference.embedding import EmbedConfig

SHOWN = (
    "OpenL3",
    "wav2vec2",
    "CVSSP PANNS",
    "GURA Cat H+w+C",
    "GURA Fuse Cat H+w+C",
)  # everywhere, as in the paper
CATEGORIES = ("music", "speech", "general", "other")
EVENTS = tuple(name for name, row in TABLE.items() if row.embedding_type == "event")
LETTER = {"low": "L", "mid": "M", "high": "H"}
HOP_MS = 10.0  # between log-mel frames, in Figures 4 and 5 of the paper
OFFICIAL = """Medians and numbers in brackets are scores divided by that of the best submission. FSD50K is as corrected
in July 2022; in the figures as before, like (it seems) the paper. What a model lacks is left out, not counted as 0."""
OPEN = "These scores are as they are: there is no official one to divide them by."

Described = Sequence[tuple[Model, EmbedConfig]]


class Board(NamedTuple):
    """Tasks that are shown together."""

    title: str
    stem: str  # of its files
    tasks: dict[str, list[str]]  # category -> tasks
    best: dict[str, float]  # task -> best official score; empty: scores stay as they are
    models: list[Model]

    def panels(self) -> dict[str, list[str]]:
        """The categories, and all tasks."""
        return {**self.tasks, "all tasks": [task for tasks in self.tasks.values() for task in tasks]}

    def shares(self, model: Model) -> dict[str, float]:
        """Task -> normalised score, of the tasks that the model has."""
        scores = model.primary()
        return {
            task: scores[task] / self.best.get(task, 1.0)
            for task in self.panels()["all tasks"]
            if task in scores
        }

    def ranked(self, models: Iterable[Model]) -> list[Model]:
        """The highest median first."""
        return sorted(models, key=lambda model: -np.median(list(self.shares(model).values())))

    def shown(self) -> list[Model]:
        """The cited models of every table and figure, and the measured ones."""
        cited = {model.name: model for model in self.models if model.is_cited}
        return [cited[name] for name in SHOWN if name in cited] + self.measured()

    def measured(self) -> list[Model]:
        """In the order of their results."""
        return [model for model in self.models if not model.is_cited]


def write_report(results: Sequence[Path], out: Path, *, base: str = "", best: str = "") -> list[str]:
    """Write `out`/report.md with tables (CSV too) and pictures of every scores file under `results`; the problems.

    `base` and `best` are measured models to compare task by task: without a name the first one, and the one with the
    highest median. ReportError: there is no result that can be used.
    """
    measured, problems, notes = read_results(results)
    names = [model.name for model in measured]
    if unknown := [name for name in (base, best) if name and name not in names]:
        raise ValueError(f"no results of {unknown[0]!r}: there are results of {', '.join(names)}")
    out.mkdir(parents=True, exist_ok=True)
    about = "".join(f"- **{model.name}**: {model.about}\n" for model in measured)
    parts = [
        f"# HEAR report\n\n**Measured** here:\n\n{about}\nEverything *cited* is an official submission to HEAR 2021.\n"
    ]
    others = sorted({task for model in measured for task in model.primary()}.difference(BOARDS))
    for title, stem, tasks, cited, cited_then, text in (
        ("Tasks of HEAR", "hear", BOARDS, leaderboard(), leaderboard("fsd50k_before_2022_07"), OFFICIAL),
        ("Tasks without official scores", "open", others, [], [], OPEN),
    ):
        board, board_then = (
            _board(title, stem, tasks, [*models, *measured]) for models in (cited, cited_then)
        )
        if board.measured():
            pictures = _pictures(board_then, out, (base, best), notes)
            parts += [f"## {title}\n\n{text}\n", *_tables(board), *pictures]
            _write_csv(out / f"{stem}-scores.csv", SCORES_HEAD, _score_rows(board))
            _write_csv(out / f"{stem}-medians.csv", MEDIANS_HEAD, _median_rows(board))
    left_out = "".join(f"- {text}\n" for text in (*problems, *notes))
    with write_aside(out / "report.md") as aside:
        text = "\n".join([*parts, f"## Left out\n\n{left_out or 'Nothing.'}"])
        aside.write_text(text, encoding="utf-8", errors="replace")  # a folder's name may be any bytes
    return problems


# -- what is compared -------------------------------------------------------------------------------------------------


def leaderboard(fsd50k: str = "fsd50k") -> list[Model]:
    """The submissions to the challenge, with the FSD50K scores of this column; a task that one lacks is left out."""
    others = {row["model"]: row for row in _csv("leaderboard_secondary")}
    models = []
    for row in _csv("leaderboard"):
        if row["in_official_challenge"] == "1":
            texts = {task: row[fsd50k if task == "fsd50k" else task] for task in BOARDS}
            scores = {task: {"score": float(text)} for task, text in texts.items() if text}
            for column, text in others[row["model"]].items():
                task, _, name = column.partition(":")
                if task in scores and text:
                    scores[task][name] = float(text)
            models.append(Model(row["model"], scores, is_cited=True))
    return models


def _csv(name: str) -> list[dict[str, str]]:
    text = (resources.files("patchout") / "hear" / f"{name}.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _board(title: str, stem: str, tasks: Sequence[str], models: Sequence[Model]) -> Board:
    """With the models that have one of its tasks, normalised by the best cited one."""
    by_category = {name: [task for task in tasks if _category(task) == name] for name in CATEGORIES}
    there = [model for model in models if not model.primary().keys().isdisjoint(tasks)]
    cited = [model.primary() for model in there if model.is_cited]
    best = {task: max(scores.get(task, 0.0) for scores in cited) for task in tasks if cited}
    return Board(title, stem, {name: each for name, each in by_category.items() if each}, best, there)


def _category(task: str) -> str:
    """Of a task by its name, whatever its mode."""
    return CATEGORY.get(task, CATEGORY.get(task.partition(" (")[0], "other"))


# -- tables -----------------------------------------------------------------------------------------------------------

SCORES_HEAD = ("model", "source", "task", "score", "value", "normalised")
MEDIANS_HEAD = ("model", "source", "category", "first_quartile", "median", "third_quartile", "tasks")


def _score_rows(board: Board) -> Iterator[Sequence[object]]:
    for model in board.models:
        shares = board.shares(model) if board.best else {}
        for task in board.panels()["all tasks"]:
            for name, value in model.scores.get(task, {}).items():
                own = ("primary", value, shares.get(task, "")) if name == "score" else (name, value, "")
                yield (model.name, model.source, task, *own)


def _median_rows(board: Board) -> Iterator[Sequence[object]]:
    for model in board.ranked(board.models):
        shares = board.shares(model)
        for category, tasks in board.panels().items():
            if values := [shares[task] for task in tasks if task in shares]:
                yield (
                    model.name,
                    model.source,
                    category,
                    *np.percentile(values, (25, 50, 75)).tolist(),
                    len(values),
                )


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with write_aside(path) as aside, aside.open("w", newline="", encoding="utf-8", errors="replace") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *rows])


def _tables(board: Board) -> Iterator[str]:
    """Medians of all models, and scores by category of those that are shown."""
    rows = [
        [_median(board, model, tasks) for tasks in board.panels().values()]
        for model in board.ranked(board.models)
    ]
    yield "### Medians\n\n" + _table(board.ranked(board.models), list(board.panels()), rows)
    for category, tasks in board.tasks.items():
        rows = [[_score(board, model, task) for task in tasks] for model in board.shown()]
        yield f"### {category.capitalize()}\n\n" + _table(board.shown(), tasks, rows)


def _table(models: Sequence[Model], columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Measured models in bold letters."""
    lines = [("model", "source", *columns), ("---",) * (len(columns) + 2)]
    for model, row in zip(models, rows, strict=True):
        name, bold = model.name.replace("|", "\\|"), "" if model.is_cited else "**"
        lines.append((f"{bold}{name}{bold}", f"{bold}{model.source}{bold}", *row))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _median(board: Board, model: Model, tasks: Sequence[str]) -> str:
    values = [share for task, share in board.shares(model).items() if task in tasks]
    number = _number(float(np.median(values)) if values else None)
    return number if len(values) == len(tasks) else f"{number} ({len(values)} of {len(tasks)})"


def _score(board: Board, model: Model, task: str) -> str:
    share = board.shares(model).get(task)
    return _number(model.primary().get(task)) + (
        f" ({share:.2f})" if board.best and share is not None else ""
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# -- figures ----------------------------------------------------------------------------------------------------------


def _pictures(board: Board, out: Path, compared: tuple[str, str], notes: list[str]) -> Iterator[str]:
    """Draw what the results suffice for, each as its Markdown; the rest goes to the notes."""
    tasks = board.panels()["all tasks"]
    events = [task for task in tasks if task.startswith(EVENTS)]
    shown = [_line(board, model) for model in board.shown()]
    cited = [line for line in shown if line.is_cited]
    ranked = [_line(board, model) for model in board.ranked(board.models)]

    def drawn(name: str, caption: str, draw: Callable[..., None], *what: Any) -> str:
        score = "score / best official score" if board.best else "score"
        draw(out / f"{board.stem}-{name}.png", *what, title=f"{board.title}: {caption}", score=score)
        return f"![{caption}]({board.stem}-{name}.png)\n"

    yield "### Figures\n\n" + drawn(
        "categories", "by category and model", plots_hear.rows, shown, board.tasks
    )
    yield drawn("medians", "all models by median", plots_hear.rows, ranked, {"all tasks": tasks})
    timed = [model for model in board.measured() if not set(events).isdisjoint(model.primary())]
    for name, caption, choose in (
        ("levels", "timestamps by level", _by_level),
        ("fields", "timestamps by receptive field", _by_field),
    ):
        left_out = {model.name: _settings(model) for model in timed}
        for hop_ms, described in _by_hop(timed):
            at, stem = (
                (f", log-mel frames every {hop_ms:g} ms", f"{name}-{hop_ms:g}ms") if hop_ms else ("", name)
            )
            picked = choose(described)
            lines = [_line(board, model, f": {left_out.pop(model.name)}") for model, _ in picked]
            if lines:
                panels = {task: [task] for task in events}
                yield drawn(
                    name if hop_ms == HOP_MS else stem,
                    caption + at,
                    plots_hear.rows,
                    [*cited, *lines],
                    panels,
                )
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


def _line(board: Board, model: Model, more: str = "") -> Line:
    return Line(model.name + more, board.shares(model), model.is_cited)


def _settings(model: Model) -> str:
    """Levels, fields, and the hop unless it is the paper's."""
    if model.settings is None:
        return "settings not known"
    config, hop_ms = model.settings.config, model.settings.mel_hop_ms
    levels = "+".join(letter for level, letter in LETTER.items() if level in config.levels)
    fields = "" if levels == "L" else f", {' + '.join(f'{ms:g}' for ms in config.fields_ms)} ms"
    return levels + fields + (f", hop {hop_ms:g} ms" if hop_ms not in (None, HOP_MS) else "")


def _by_hop(models: Sequence[Model]) -> list[tuple[float | None, Described]]:
    """Models whose settings are known, by the hop of their log-mel; the paper's first."""
    groups: defaultdict[float | None, list[tuple[Model, EmbedConfig]]] = defaultdict(list)
    for model in models:
        if model.settings:
            groups[model.settings.mel_hop_ms].append((model, model.settings.config))
    return sorted(groups.items(), key=lambda group: (group[0] != HOP_MS, -(group[0] or 0.0)))


def _by_level(models: Described) -> Described:
    """Those with one receptive field, that of most of them (the log-mel has none), if their levels differ."""
    fields = Counter(
        config.fields_ms for _, config in models if config.levels != ("low",) and len(config.fields_ms) == 1
    )
    common = min(fields, key=lambda ms: (-fields[ms], ms), default=())
    picked = [
        (model, config) for model, config in models if config.fields_ms == common or config.levels == ("low",)
    ]
    picked.sort(key=lambda pair: len(pair[1].levels))
    return picked if len({frozenset(config.levels) for _, config in picked}) > 1 else []


def _by_field(models: Described) -> Described:
    """Those whose levels are there with other receptive fields too."""
    there = {
        (frozenset(config.levels), config.fields_ms) for _, config in models if config.levels != ("low",)
    }
    count = Counter(levels for levels, _ in there)
    return [(model, config) for model, config in models if count[frozenset(config.levels)] > 1]


def _pair(board: Board, base: str, best: str) -> tuple[Model, Model] | None:
    """The first measured model and the one of the highest median, unless they are named."""
    measured = board.measured()
    first = next(
        (model for model in measured if model.name == base or (not base and model.name != best)), None
    )
    others = [model for model in measured if model is not first and best in ("", model.name)]
    return (first, board.ranked(others)[0]) if first and others else None

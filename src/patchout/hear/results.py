"""Results of HEAR tasks, ours or the kit's: `<model>/<task folder>/test.predicted-scores.json` at any depth."""

import ast
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from patchout.embedding import EmbedConfig
from patchout.errors import InputError
from patchout.hear.scores import EVENT_SCORES, SCENE_SCORES
from patchout.hear.tasks import BOARDS, TABLE, TVT

SCORES_FILE = "test.predicted-scores.json"
NAMES = ("score", *SCENE_SCORES, *EVENT_SCORES)  # "score" is the primary one
IDENTITY = ("model", "detail", "weights_sha256")
BOARD_OF = {
    (name, mode): board
    for name, row in TABLE.items()
    for mode in row.modes
    for board in BOARDS
    if board in (name, f"{name}_{mode}", name.rpartition("_fold")[0])
}
FOLDERS = Counter(BOARD_OF.values())  # Beehive has two
Scores = dict[str, float]


class ReportError(InputError):
    """Results that cannot be used: `<file or folder>: <what is wrong>; <what to do>`."""


class Model(NamedTuple):
    """A model and what it reached."""

    name: str
    scores: dict[str, Scores]  # task -> name -> mean over the test splits
    is_cited: bool = False
    config: EmbedConfig | None = None  # of one of ours
    about: str = ""  # whose embeddings, and how they were probed

    @property
    def source(self) -> str:
        """What its scores are: never mix the two."""
        return "cited" if self.is_cited else "measured"

    def primary(self) -> Scores:
        """Task -> its primary score."""
        return {task: scores["score"] for task, scores in self.scores.items() if "score" in scores}


class _Found(NamedTuple):
    """The results that have one model's name."""

    whose: dict[str, Any]
    folders: dict[str, Scores]  # of tasks
    grids: set[str]

    def text(self) -> str:
        """For people."""
        parts = [self.whose["model"] or "model not known", self.whose["detail"]]
        return f"{', '.join(filter(None, parts))}; grid of the probe: {', '.join(sorted(self.grids))}"


def read_results(results: Sequence[Path]) -> tuple[list[Model], list[str], list[str]]:
    """Models in the order of their files, what could not be used, and tasks that are not complete.

    ReportError: there is nothing that can be used.
    """
    found: dict[str, _Found] = {}
    problems: list[str] = []
    for results_folder in results:
        paths = sorted(results_folder.resolve().rglob(SCORES_FILE))
        problems += [] if paths else [f"{results_folder}: has no {SCORES_FILE} at any depth"]
        for path in paths:
            name, task = path.parts[-3:-1]
            try:
                scores, about = _read(path)
                whose = {key: about.get(key) for key in IDENTITY}
                model = found.setdefault(name, _Found(whose, {}, set()))
                if task in model.folders:
                    raise ReportError(f"{path}: {name} has a result of this task already; rename one of the models")
                if model.whose != whose:
                    raise ReportError(f"{path}: another model made other results of {name}; give each its own folder")
                model.folders[task] = scores
                model.grids.add(str(about.get("grid", "not known")))
            except ReportError as error:
                problems.append(str(error))
    notes: list[str] = []
    models = [
        Model(name, _by_task(name, one.folders, notes), config=_config(one.whose), about=one.text())
        for name, one in found.items()
    ]
    if not any(model.primary() for model in models):
        raise ReportError("; ".join(["there is nothing to report, give folders of results", *problems, *notes]))
    return models, problems, notes


def task_of(name: str, mode: str) -> str:
    """The leaderboard's name of a task, or another one for what is not on it."""
    return BOARD_OF.get((name, mode)) or (name if mode in ("full", "mini", name) else f"{name} ({mode})")


def _read(path: Path) -> tuple[Scores, dict[str, Any]]:
    """Means over the test splits, and whose they are as far as the file says it (the kit's does not).

    As on the leaderboard, a score of events is 0 where none was found (NaN in the kit).
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        splits = [value for value in record.values() if isinstance(value, dict) and "test_score" in value]
        columns = {name: [split[f"test_{name}"] for split in splits] for name in NAMES if f"test_{name}" in splits[0]}
        table = {name: np.array(values, np.float64) for name, values in columns.items()}
        about = dict(record.get("patchout", {}))
    except (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ReportError(
            f"{path}: is no file of scores ({type(error).__name__}: {error}); run this task again"
        ) from None
    row = TABLE.get(path.parent.name.partition("-")[0])
    wanted = len(splits) if row is None else 1 if row.split_mode == TVT else row.num_splits
    if len(splits) != wanted:
        raise ReportError(f"{path}: has scores of {len(splits)} test splits, not of {wanted}; run this task again")
    has_events = any(name in EVENT_SCORES for name in table)
    scores = {
        name: float(np.nan_to_num(each, nan=0.0 if has_events else np.nan).mean()) for name, each in table.items()
    }
    if not np.isfinite(scores["score"]) or (row is not None and not 0 <= scores["score"] <= 1):
        raise ReportError(f"{path}: test_score is no number from 0 to 1; run this task again")
    if record.get("score_mode") == "min":  # an error among scores would turn every order round
        del scores["score"]
    return scores, about


def _config(about: dict[str, Any]) -> EmbedConfig | None:
    """The settings that `Subject.detail` shows of one of our models."""
    try:
        call = ast.parse(about["detail"] or "", mode="eval").body
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "EmbedConfig":
            return EmbedConfig(**{word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg})
    except (SyntaxError, TypeError, ValueError):
        return None  # of another version, or a module's own words
    return None


def _by_task(model: str, folders: dict[str, Scores], notes: list[str]) -> dict[str, Scores]:
    """Scores of whole tasks: those of both folds of Beehive are averaged, one fold alone is left out."""
    parts: defaultdict[str, list[Scores]] = defaultdict(list)
    for folder, scores in folders.items():
        parts[task_of(folder.partition("-")[0], folder.rpartition("-")[2])].append(scores)
    whole = {task: each for task, each in parts.items() if len(each) == max(FOLDERS[task], 1)}
    notes += [f"{model}: {task}, of which not every folder has results" for task in parts if task not in whole]
    return {
        task: {name: float(np.mean([one[name] for one in each])) for name in each[0]} for task, each in whole.items()
    }

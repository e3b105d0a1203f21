"""Results of HEAR tasks, ours or the kit's: `<model>/<task folder>/test.predicted-scores.json` at any depth."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from patchout.errors import InputError
from patchout.hear.scores import EVENT_SCORES, MINIMIZED, SCENE_SCORES
from patchout.hear.settings import Settings, current, stored_settings
from patchout.hear.sources import task_of
from patchout.hear.tasks import BOARD_OF, TABLE, TVT

SCORES_FILE = "test.predicted-scores.json"
NAMES = ("score", *SCENE_SCORES, *EVENT_SCORES)  # "score" is the primary one
FOLDERS = Counter(BOARD_OF.values())  # Beehive has two
Scores = dict[str, float]


class ReportError(InputError):
    """Results that cannot be used: `<file or folder>: <what is wrong>; <what to do>`."""


class Model(NamedTuple):
    """A model and what it reached."""

    name: str
    scores: dict[str, Scores]  # task -> name -> mean over the test splits
    is_cited: bool = False
    settings: Settings | None = None  # of one of ours
    about: str = ""  # whose embeddings, and how they were probed

    @property
    def source(self) -> str:
        """What its scores are: never mix the two."""
        return "cited" if self.is_cited else "measured"

    def primary(self) -> Scores:
        """Task -> its primary score."""
        return {task: scores["score"] for task, scores in self.scores.items() if "score" in scores}


class _Result(NamedTuple):
    """One file of scores."""

    scores: Scores
    model: tuple[str, str, str, Settings | None]  # name, file of weights, their hash, settings
    grid: str


def read_results(results: Sequence[Path]) -> tuple[list[Model], list[str], list[str]]:
    """Models in the order of their files, what could not be used, and tasks that are not complete.

    ReportError: there is nothing that can be used.
    """
    found: defaultdict[str, dict[str, _Result]] = defaultdict(dict)  # model -> task folder
    problems: list[str] = []
    for folder in results:
        paths = sorted(folder.resolve().rglob(SCORES_FILE))
        problems += [] if paths else [f"{folder}: has no {SCORES_FILE} at any depth"]
        for path in paths:
            name, task = path.parts[-3:-1]
            try:
                result = _read(path)
                if task in found[name]:
                    raise ReportError(
                        f"{path}: {name} has a result of this task already; rename one of the models"
                    )
                if any(other.model != result.model for other in found[name].values()):
                    raise ReportError(
                        f"{path}: another model made other results of {name}; give each its own folder"
                    )
                found[name][task] = result
            except ReportError as error:
                problems.append(str(error))
    notes: list[str] = []
    models = [_model(name, of_task, notes) for name, of_task in found.items() if of_task]
    if not any(model.primary() for model in models):
        raise ReportError(
            "; ".join(["there is nothing to report, give folders of results", *problems, *notes])
        )
    return models, problems, notes


def _read(path: Path) -> _Result:
    """Means over the test splits, and whose they are as far as the file says it (the kit's does not).

    As on the leaderboard, a score of events is 0 where none was found (NaN in the kit).
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        splits = [value for value in record.values() if isinstance(value, dict) and "test_score" in value]
        names = [name for key in splits[0] if (name := key.removeprefix("test_")) in NAMES]
        table = {name: np.array([split[f"test_{name}"] for split in splits], np.float64) for name in names}
        about = current(record.get("patchout", {}))
        settings = stored_settings(about, path.parts[-3])
    except (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        reason = f"is no file of scores ({type(error).__name__}: {error})"
        raise ReportError(f"{path}: {reason}; run this task again") from None
    row = TABLE.get(path.parent.name.partition("-")[0])
    wanted = len(splits) if row is None else 1 if row.split_mode == TVT else row.num_splits
    if len(splits) != wanted:
        raise ReportError(
            f"{path}: has scores of {len(splits)} test splits, not of {wanted}; run this task again"
        )
    has_events = any(name in EVENT_SCORES for name in names)
    with np.errstate(invalid="ignore"):  # d_prime may be infinite
        scores = {
            name: float(np.where(np.isnan(each) & has_events, 0, each).mean()) for name, each in table.items()
        }
    if not np.isfinite(scores["score"]) or (row is not None and not 0 <= scores["score"] <= 1):
        raise ReportError(f"{path}: test_score is no number from 0 to 1; run this task again")
    if not MINIMIZED.isdisjoint(
        names[1:2]
    ):  # the primary score is an error, which would turn every order round
        del scores["score"]
    name, weights, sha256, grid = (
        str(about.get(key, "")) for key in ("model", "detail", "weights_sha256", "grid")
    )
    return _Result(scores, (name, weights, sha256, settings), grid or "not known")


def _model(name: str, results: Mapping[str, _Result], notes: list[str]) -> Model:
    """Scores of whole tasks: those of both folds of Beehive are averaged, one fold alone is left out and noted."""
    parts: defaultdict[str, list[Scores]] = defaultdict(list)
    for folder, result in results.items():
        parts[_task_of(*task_of(folder))].append(result.scores)
    whole = {task: each for task, each in parts.items() if len(each) == max(FOLDERS[task], 1)}
    notes += [f"{name}: {task}, of which not every folder has results" for task in parts if task not in whole]
    scores = {
        task: {key: float(np.mean([one.get(key, np.nan) for one in each])) for key in each[0]}
        for task, each in whole.items()
    }
    model, detail, _, settings = next(iter(results.values())).model
    grids = ", ".join(sorted({result.grid for result in results.values()}))
    words = filter(None, (model or "model not known", detail, settings.describe() if settings else ""))
    return Model(name, scores, settings=settings, about=f"{', '.join(words)}; grid of the probe: {grids}")


def _task_of(name: str, mode: str) -> str:
    """The leaderboard's name of a task, or another one for what is not on it."""
    return BOARD_OF.get((name, mode)) or (name if mode in ("full", "mini", name) else f"{name} ({mode})")

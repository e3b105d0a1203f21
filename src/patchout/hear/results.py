"""Reader of HEAR results, ours or the kit's: `<model>/<task folder>/test.predicted-scores.json`."""

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
FOLDERS = Counter(BOARD_OF.values())  # of a task: two for Beehive
Scores = dict[str, float]


class ReportError(InputError):
    """Results that cannot be used: `<file or folder>: <what is wrong>; <what to do>`."""


class Model(NamedTuple):
    """A model and its scores on all tasks."""

    name: str
    scores: dict[str, Scores]  # task -> name -> mean over the test splits
    is_cited: bool = False
    settings: Settings | None = None  # of one of ours
    description: str = ""  # of the embeddings and the probes

    @property
    def source(self) -> str:
        """Origin of the scores."""
        return "cited" if self.is_cited else "measured"

    def primary(self) -> Scores:
        """Primary scores by task."""
        return {task: scores["score"] for task, scores in self.scores.items() if "score" in scores}


class _Result(NamedTuple):
    """The content of one file of scores."""

    scores: Scores
    model: tuple[str, str, str, Settings | None]  # name, file of weights, their hash, settings
    grid: str


def read_results(results: Sequence[Path]) -> tuple[list[Model], list[str], list[str]]:
    """Read folders of results: models in the order of their files, problems, and notes on incomplete tasks.

    ReportError: there is no result that can be used.
    """
    by_model: defaultdict[str, dict[str, _Result]] = defaultdict(dict)  # name -> task folder
    problems: list[str] = []
    for folder in results:
        paths = sorted(folder.resolve().rglob(SCORES_FILE))
        problems += [] if paths else [f"{folder}: has no {SCORES_FILE} at any depth"]
        for path in paths:
            name, task = path.parts[-3:-1]
            try:
                result, of_model = _read(path), by_model[name]
            except ReportError as error:
                problems.append(str(error))
                continue
            if task in of_model:
                problems.append(f"{path}: {name} has a result of this task already; rename one of the models")
            elif any(other.model != result.model for other in of_model.values()):
                reason = f"another model made other results of {name}; give each its own folder"
                problems.append(f"{path}: {reason}")
            else:
                of_model[task] = result
    notes: list[str] = []
    models = [_model(name, of_model, notes) for name, of_model in by_model.items() if of_model]
    if not any(model.primary() for model in models):
        reasons = ["there is nothing to report, give folders of results", *problems, *notes]
        raise ReportError("; ".join(reasons))
    return models, problems, notes


def _read(path: Path) -> _Result:
    """Read one file: means over the test splits, and the model if the file names it (the kit's does not).

    As on the leaderboard, a score of events is 0 where none was predicted (NaN in the kit).
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        splits = [value for value in record.values() if isinstance(value, dict) and "test_score" in value]
        names = [name for key in splits[0] if (name := key.removeprefix("test_")) in NAMES]
        table = {name: np.array([split[f"test_{name}"] for split in splits], np.float64) for name in names}
        identity = current(record.get("patchout", {}))
        settings = stored_settings(identity, path.parts[-3])
    except (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        reason = f"is no file of scores ({type(error).__name__}: {error})"
        raise ReportError(f"{path}: {reason}; run this task again") from None
    row = TABLE.get(path.parent.name.partition("-")[0])
    num_tests = len(splits) if row is None else 1 if row.split_mode == TVT else row.num_splits
    if len(splits) != num_tests:
        counts = f"{len(splits)} test splits, not of {num_tests}"
        raise ReportError(f"{path}: has scores of {counts}; run this task again")
    has_events = any(name in EVENT_SCORES for name in names)
    with np.errstate(invalid="ignore"):  # d_prime may be infinite
        scores = {name: float(np.where(np.isnan(x) & has_events, 0, x).mean()) for name, x in table.items()}
    if not np.isfinite(scores["score"]) or (row is not None and not 0 <= scores["score"] <= 1):
        raise ReportError(f"{path}: test_score is no number from 0 to 1; run this task again")
    if not MINIMIZED.isdisjoint(names[1:2]):  # an error as primary score would reverse every order
        del scores["score"]
    keys = ("model", "detail", "weights_sha256", "grid")
    name, weights, sha256, grid = (str(identity.get(key, "")) for key in keys)
    return _Result(scores, (name, weights, sha256, settings), grid or "not known")


def _model(name: str, results: Mapping[str, _Result], notes: list[str]) -> Model:
    """Average the scores of both folds of Beehive; a task without all its folders is left out and noted."""
    parts: defaultdict[str, list[Scores]] = defaultdict(list)
    for folder, result in results.items():
        task, mode = task_of(folder)
        unlisted = task if mode in ("full", "mini", task) else f"{task} ({mode})"
        parts[BOARD_OF.get((task, mode), unlisted)].append(result.scores)
    scores: dict[str, Scores] = {}
    for task, folds in parts.items():
        if len(folds) == max(FOLDERS[task], 1):
            scores[task] = {
                key: float(np.mean([fold.get(key, np.nan) for fold in folds])) for key in folds[0]
            }
        else:
            notes.append(f"{name}: {task}, of which not every folder has results")
    model, detail, _, settings = next(iter(results.values())).model
    grids = ", ".join(sorted({result.grid for result in results.values()}))
    words = filter(None, (model or "model not known", detail, settings.describe() if settings else ""))
    return Model(name, scores, False, settings, f"{', '.join(words)}; grid of the probe: {grids}")

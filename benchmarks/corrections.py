"""From nothing to a model by corrections: labels given in the page of `patchout web` against its score.

python benchmarks/corrections.py ESC50 CACHE [--classes cat cow] [--seeds 3] [--out curve.png] [--all]

ESC50 is the data set in its official layout. Two classes that the built-in model does not know are wanted;
the recordings are all 1,600 clips of folds 1 to 4, unlabelled. A user finds three clips of each class and six
of others, presses Learn, labels the next clips of the list (a class, or background), and learns again, each
time from the last model, until CLIPS have a label. Learn is the page's own command; clips are listed least
certain first as the page does (`margin`), or at random. The score is the mean average
precision of the two classes on fold 5, which the user never hears. CACHE keeps embeddings and runs.
--all: only the score of one Learn on all 1,600 labels.
"""

import argparse
import csv
import io
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

import patchout
from patchout.checkpoint.zoo_list import BUILT_IN
from patchout.cli.main import run_command
from patchout.data.clips import ClipSet
from patchout.data.sets import scan
from patchout.figures import picture
from patchout.inference.metrics import ranking
from patchout.models.tagger import Tagger
from patchout.training.supervised.frozen import embed_clips
from patchout.web.analysis import margin
from patchout.web.learner import Learner

CLIPS = (12, 24, 48, 96, 192)  # that have a label when the user presses Learn
FIRST = 3  # of each class at the start, and as many others as of both
ORDERS = ("least certain first", "random")
BACKGROUND = "background"
TEST = "5"  # fold

Scores = Float[np.ndarray, "clip class"]


@dataclass
class Study:
    """The clips of ESC-50 with their embeddings, and what a user wants of them."""

    clips: ClipSet
    values: torch.Tensor  # (clip, value)
    wanted: tuple[str, ...]
    work: Path
    pool: np.ndarray = field(init=False)  # clips that can be labelled
    labels: np.ndarray = field(init=False)  # of every clip, as the user would give it

    def __post_init__(self) -> None:
        """Divide the clips by folds."""
        names = np.array([self.clips.labels(clip)[0] for clip in range(len(self.clips))])
        self.labels = np.where(np.isin(names, self.wanted), names, BACKGROUND)
        self.pool = np.flatnonzero(self.clips.column("fold") != TEST)

    def learn(self, labelled: np.ndarray, init: str) -> str:
        """Press Learn: the file of the new model."""
        path = self.work / "labels.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            rows = ((self.clips.name(clip), self.labels[clip]) for clip in labelled.tolist())
            csv.writer(file).writerows([("file", "labels"), *rows])
        learner = Learner(path, self.work, lambda run, has_same_encoder: None)
        words, messages = learner.arguments(init, all_layers=False), io.StringIO()
        with redirect_stdout(messages), redirect_stderr(messages):
            if run_command(words):
                raise SystemExit(messages.getvalue())
        return str(Path(words[words.index("--out") + 1]) / "model.safetensors")

    def scores(self, model: Tagger) -> Scores:
        """Calibrated scores of all clips by their embeddings, as the page has them right after learning."""
        config = model.config
        with torch.inference_mode():
            scores = model.classified(self.values).sigmoid().numpy()
        scores = config.decision.calibrated(scores, config.task)
        return scores[:, [config.labels.index(name) for name in self.wanted]]

    def precision(self, model: Tagger) -> float:
        """Mean average precision on the test fold."""
        test = np.setdiff1d(np.arange(len(self.clips)), self.pool)
        targets = (self.labels[test, None] == np.array(self.wanted)).astype(np.float32)
        return float(ranking(self.scores(model)[test], targets).precision.mean())

    def first(self, rng: np.random.Generator) -> np.ndarray:
        """The clips that are found by listening."""
        counts = {**dict.fromkeys(self.wanted, FIRST), BACKGROUND: FIRST * len(self.wanted)}
        parts = [
            rng.choice(self.pool[self.labels[self.pool] == name], n, False) for name, n in counts.items()
        ]
        return np.concatenate(parts)

    def next(self, order: str, model: Tagger, labelled: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The clips without a label in an order of the list."""
        open_clips = rng.permutation(np.setdiff1d(self.pool, labelled))
        if order == "random":
            return open_clips
        scores = self.scores(model)[open_clips]
        margins = np.array([margin(row, model.config) for row in scores])
        return open_clips[np.argsort(margins, kind="stable")]


def curves(study: Study, seed: int) -> dict[str, list[tuple[float, int]]]:
    """For every order the score at each of CLIPS, and how many clips of the wanted classes had been found."""
    rng = np.random.default_rng(seed)
    start = study.first(rng)
    first_model = study.learn(start, BUILT_IN)
    points: dict[str, list[tuple[float, int]]] = {}
    for order in ORDERS:
        labelled, path, rng = start, first_model, np.random.default_rng((seed, ORDERS.index(order)))
        for count in CLIPS:
            if count > len(labelled):
                more = study.next(order, patchout.load(path, "cpu"), labelled, rng)
                labelled = np.concatenate([labelled, more[: count - len(labelled)]])
                path = study.learn(labelled, path)
            found = int((study.labels[labelled] != BACKGROUND).sum())
            points.setdefault(order, []).append((study.precision(patchout.load(path, "cpu")), found))
    return points


def prepared(folder: Path, cache: Path, wanted: tuple[str, ...]) -> Study:
    """Embed all clips once, into the cache that the trainings read."""
    listed, work = cache / "esc50.csv", cache / "page"
    shutil.rmtree(work / "runs", ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    rows = csv.DictReader((folder / "meta" / "esc50.csv").open(encoding="utf-8"))
    lines = ((folder.resolve() / "audio" / row["filename"], row["category"], row["fold"]) for row in rows)
    with listed.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file", "label", "fold"), *lines])
    clips = scan(listed)
    if missing := {*wanted} - {*clips.classes}:
        raise SystemExit(f"no classes {', '.join(sorted(missing))}: it has {', '.join(clips.classes)}")
    embedded = embed_clips(patchout.load(BUILT_IN, "cpu"), clips, "fp32", str(work / "embeddings"))
    return Study(clips, embedded.values, wanted, work)


def draw(path: Path, tables: dict[str, np.ndarray], title: str) -> None:
    """Draw score against labels: the mean of the seeds, between the lowest and the highest of them."""
    with picture(path, (7, 4.2), title=title) as figure:
        axes = figure.subplots()
        for order, colour in zip(ORDERS, ("#2b6c99", "#c0603a"), strict=True):
            values = tables[order]
            axes.plot(CLIPS, values.mean(axis=0), marker="o", markersize=4, color=colour, label=order)
            axes.fill_between(CLIPS, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, lw=0)
        axes.set_xscale("log", base=2)
        axes.set_xticks(CLIPS, [str(count) for count in CLIPS])
        axes.set_xlabel("labels given")
        axes.set_ylabel("mean average precision, fold 5")
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, loc="upper left")


def main() -> None:
    """Print the table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--classes", nargs=2, default=("cat", "cow"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--all", action="store_true")
    args = parser.parse_args()
    study = prepared(args.data, args.cache, tuple(args.classes))
    if args.all:
        model = patchout.load(study.learn(study.pool, BUILT_IN), "cpu")
        print(f"all {len(study.pool)} labelled: {study.precision(model):.3f}")
        return
    seeds = [curves(study, seed) for seed in range(args.seeds)]
    scores = {
        order: np.array([[point[0] for point in points[order]] for points in seeds]) for order in ORDERS
    }
    print(f"ESC-50 at 16 kHz, {' and '.join(study.wanted)}, {args.seeds} seeds; mean (lowest - highest)")
    print("| labels | " + " | ".join(f"{order}, clips found" for order in ORDERS) + " |")
    print("| --- " * (1 + len(ORDERS)) + "|")
    for place, count in enumerate(CLIPS):
        cells = []
        for order in ORDERS:
            column, found = scores[order][:, place], [points[order][place][1] for points in seeds]
            cells.append(
                f"{column.mean():.3f} ({column.min():.3f} - {column.max():.3f}), {np.mean(found):.0f}"
            )
        print(f"| {count} | {' | '.join(cells)} |")
    if args.out:
        title = f"ESC-50 at 16 kHz: {' and '.join(study.wanted)}, {args.seeds} seeds"
        draw(args.out, scores, title)


if __name__ == "__main__":
    main()

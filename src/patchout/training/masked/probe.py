"""Does an encoder tell labelled classes apart as it is, without training it? Nearest neighbours, a linear
model. scikit-learn is imported where it is used: a run without a probe need not wait a second for it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from patchout.audio.stream import AudioError
from patchout.data.clips import ClipSet, DataError
from patchout.inference.embedding import Embedder, mid_level
from patchout.inference.metrics import wilson_interval
from patchout.models.device import Precision
from patchout.models.tagger import Tagger

MAX_FOLDS = 5
NEIGHBOURS = 5
CHANCE = 0.05  # below it a difference is told as one
PROBE_RATE = 32_000  # Hz, at which the clips are tried


class Subject(NamedTuple):
    """An encoder's answers to the probe: right or wrong, clip by clip."""

    name: str
    neighbours: Bool[np.ndarray, "clip"]
    linear: Bool[np.ndarray, "clip"]


class Probe:
    """A labelled set with one class a clip; what an encoder hears in it is judged by cross-validation.

    Whole folds are held out where the set has some, else whole groups, else clips. `problems`: the clips that
    cannot be read, which are left out.
    """

    def __init__(self, clips: ClipSet) -> None:
        problems = [_problem(clips, clip) for clip in range(len(clips))]
        self.problems = tuple(f"probe: {problem}; it is left out" for problem in problems if problem)
        clips = clips.take([clip for clip, problem in enumerate(problems) if not problem])
        if clips.task != "multi_class" or len(clips.classes) < 2:
            raise DataError(f"{clips.root}: a probe needs two classes or more, and one a clip")
        fold, group = clips.column("fold"), clips.column("group")
        groups = fold if len({*fold.tolist()}) > 1 else group
        self.groups = np.where(groups == "", np.array(clips.names()), groups)
        self.classes = clips.targets().argmax(axis=1)
        pairs = {*zip(self.classes.tolist(), self.groups.tolist(), strict=True)}
        fewest = min(np.bincount([index for index, _ in pairs], minlength=len(clips.classes)))
        if fewest < 2:  # a class would be heard in training alone, or in the test alone
            where = "in two folds or groups if it has any"
            raise DataError(f"{clips.root}: a probe needs two clips of every class, {where}")
        self.splits = min(MAX_FOLDS, len({*self.groups.tolist()}), int(clips.class_counts().min()))
        self.clips = clips

    def features(self, model: Tagger, precision: Precision) -> Float[np.ndarray, "clip width"]:
        """The scene embedding of every clip, as `patchout embed` gives it."""
        rate = model.config.mel.sample_rate
        embedder = Embedder(model, mid_level(model.config), precision=precision)
        return np.stack([embedder.scene_of(self.clips.stream(clip, rate)) for clip in range(len(self.clips))])

    def neighbours(self, features: Float[np.ndarray, "clip width"]) -> Bool[np.ndarray, "clip"]:
        """Whether the nearest clips of the other folds have the clip's class."""
        from sklearn.neighbors import KNeighborsClassifier

        count = min(NEIGHBOURS, len(self.classes) // self.splits)
        return self._right(KNeighborsClassifier(count, metric="cosine"), features)

    def is_lost(self, now: float, *, best: float) -> bool:
        """Whether a share of right neighbours has fallen to less than half of the best, and by more than
        chance.
        """
        error = (2 * max(best * (1 - best), now * (1 - now)) / len(self.classes)) ** 0.5
        return now < best / 2 and best - now > 3 * error

    def judge(self, name: str, model: Tagger, precision: Precision) -> Subject:
        """Both classifiers on what a model hears."""
        from sklearn.linear_model import LogisticRegression

        features = self.features(model, precision)
        linear = self._right(LogisticRegression(max_iter=3000), features)
        return Subject(name, self.neighbours(features), linear)

    def _right(self, classifier: object, features: np.ndarray) -> Bool[np.ndarray, "clip"]:
        from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        folds = StratifiedGroupKFold(self.splits)
        scaled = make_pipeline(StandardScaler(), classifier)
        predictions = cross_val_predict(scaled, features, self.classes, groups=self.groups, cv=folds)
        return np.asarray(predictions == self.classes)


def _problem(clips: ClipSet, clip: int) -> str:
    """Why a clip cannot be read, "" if it can."""
    try:
        for _ in clips.stream(clip, PROBE_RATE):
            pass
    except (AudioError, OSError) as error:
        return str(error)
    return ""


def gain(before: Subject, after: Subject) -> tuple[int, int, float]:
    """Clips that the linear model names only after, only before, and McNemar's exact p of such a split."""
    from scipy.stats import binomtest

    better, worse = int((after.linear & ~before.linear).sum()), int((before.linear & ~after.linear).sum())
    return better, worse, float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def table(subjects: Sequence[Subject]) -> str:
    """A line an encoder, and whether the last one is better than the one before it, by McNemar's test."""
    count = len(subjects[0].linear)
    lines = [
        f"accuracy of frozen embeddings on {count} clips (95 % interval): nearest neighbours, linear model"
    ]
    for name, *answers in subjects:
        shares = [float(right.mean()) for right in answers]
        intervals = [(share, *wilson_interval(share, count)) for share in shares]
        cells = [f"{share:.3f} ({low:.3f} - {high:.3f})" for share, low, high in intervals]
        lines.append(f"  {name:<18}" + "   ".join(cells))
    better, worse, chance = gain(subjects[-2], subjects[-1])
    helped = "it helped" if better > worse else "it did harm"
    verdict = helped if chance < CHANCE else f"{count} clips cannot tell a difference"
    points = f"{100 * (better - worse) / count:+.1f} points"
    points += f" ({better} clips better, {worse} worse, p = {chance:.2g})"
    return "\n".join([*lines, f"{subjects[-1].name} against {subjects[-2].name}: {points}: {verdict}"])

"""Does an encoder tell labelled classes apart as it is, without training it? Nearest neighbours, a linear model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from patchout.audio.stream import AudioError
from patchout.data.clips import ClipSet, DataError
from patchout.inference.embedding import MID, Embedder
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

    Whole folds are held out where the set has some, else whole groups, else clips. `problems`: the clips that cannot be
    read, which are left out.
    """

    def __init__(self, clips: ClipSet) -> None:
        found = [(clip, _problem(clips, clip)) for clip in range(len(clips))]
        self.problems = tuple(f"probe: {problem}; it is left out" for _, problem in found if problem)
        clips = clips.take([clip for clip, problem in found if not problem])
        if clips.task != "multi_class" or len(clips.classes) < 2:
            raise DataError(f"{clips.root}: a probe needs two classes or more, and one a clip")
        fold, group = clips.column("fold"), clips.column("group")
        one = fold if len({*fold.tolist()}) > 1 else group
        self.groups = np.where(one == "", np.array(clips.names()), one)
        self.splits = min(MAX_FOLDS, len({*self.groups.tolist()}), int(clips.class_counts().min()))
        if self.splits < 2:
            raise DataError(
                f"{clips.root}: a probe needs two clips of every class, in two folds if it has folds"
            )
        self.clips = clips
        self.classes = clips.targets().argmax(axis=1)

    def features(self, model: Tagger, precision: Precision) -> Float[np.ndarray, "clip width"]:
        """The scene embedding of every clip, as `patchout embed` gives it."""
        embedder, rate = Embedder(model, MID, precision=precision), model.config.mel.sample_rate
        return np.stack([embedder.scene_of(self.clips.stream(clip, rate)) for clip in range(len(self.clips))])

    def neighbours(self, features: Float[np.ndarray, "clip width"]) -> Bool[np.ndarray, "clip"]:
        """Whether the nearest clips of the other folds have the clip's class."""
        count = min(NEIGHBOURS, len(self.classes) // self.splits)
        return self._right(KNeighborsClassifier(count, metric="cosine"), features)

    def judge(self, name: str, model: Tagger, precision: Precision) -> Subject:
        """Both classifiers on what a model hears."""
        features = self.features(model, precision)
        return Subject(
            name, self.neighbours(features), self._right(LogisticRegression(max_iter=3000), features)
        )

    def _right(self, classifier: object, features: np.ndarray) -> Bool[np.ndarray, "clip"]:
        folds = StratifiedGroupKFold(self.splits)
        both = make_pipeline(StandardScaler(), classifier)
        found = cross_val_predict(both, features, self.classes, groups=self.groups, cv=folds)
        return np.asarray(found == self.classes)


def _problem(clips: ClipSet, clip: int) -> str:
    """Why a clip cannot be read, "" if it can."""
    try:
        for _ in clips.stream(clip, PROBE_RATE):
            pass
    except (AudioError, OSError) as error:
        return str(error)
    return ""


def gain(before: Subject, after: Subject) -> tuple[int, int, float]:
    """Clips that the linear model names only after, only before, and McNemar's exact p of so uneven a split."""
    better, worse = int((after.linear & ~before.linear).sum()), int((before.linear & ~after.linear).sum())
    return better, worse, float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def table(subjects: Sequence[Subject]) -> str:
    """A line an encoder, and whether the last one is better than the one before it, as far as the clips can tell."""
    count = len(subjects[0].linear)
    lines = [
        f"accuracy of frozen embeddings on {count} clips (95 % interval): nearest neighbours, linear model"
    ]
    for name, *answers in subjects:
        told = [(right.mean(), *wilson_interval(float(right.mean()), count)) for right in answers]
        lines.append(
            f"  {name:<18}" + "   ".join(f"{one:.3f} ({low:.3f} - {high:.3f})" for one, low, high in told)
        )
    better, worse, chance = gain(subjects[-2], subjects[-1])
    helped = "it helped" if better > worse else "it did harm"
    verdict = helped if chance < CHANCE else f"{count} clips cannot tell a difference"
    points = f"{100 * (better - worse) / count:+.1f} points ({better} clips better, {worse} worse, p = {chance:.2g})"
    return "\n".join([*lines, f"{subjects[-1].name} against {subjects[-2].name}: {points}: {verdict}"])

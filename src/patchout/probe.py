"""Does an encoder tell labelled classes apart as it is, without training it? Nearest neighbours, a linear model."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from patchout.audio import AudioError
from patchout.clips import ClipSet, DataError
from patchout.device import Precision
from patchout.embedding import EmbedConfig, Embedder
from patchout.metrics import Interval, wilson_interval
from patchout.tagger import Tagger

MAX_FOLDS = 5
NEIGHBOURS = 5
SCENES = EmbedConfig(levels=("mid",), scene_levels=("mid",))


class Subject(NamedTuple):
    """An encoder's answers to the probe: right or wrong, clip by clip."""

    name: str
    neighbours: Bool[np.ndarray, "clip"]
    linear: Bool[np.ndarray, "clip"]


class Probe:
    """A labelled set with one class a clip; what an encoder hears in it is judged by cross-validation.

    Whole folds are held out where the set has some, else whole groups, else clips.
    """

    def __init__(self, clips: ClipSet) -> None:
        if clips.task != "multi_class" or len(clips.classes) < 2:
            raise DataError(f"{clips.root}: a probe needs two classes or more, and one a clip")
        fold, group = clips.column("fold"), clips.column("group")
        one = fold if len({*fold.tolist()}) > 1 else group
        self.groups = np.where(one == "", np.array(clips.names()), one)
        self.splits = min(MAX_FOLDS, len({*self.groups.tolist()}), int(clips.class_counts().min()))
        if self.splits < 2:
            raise DataError(f"{clips.root}: a probe needs two clips of every class, in two folds if it has folds")
        self.clips = clips
        self.classes = clips.targets().argmax(axis=1)

    def features(self, model: Tagger, precision: Precision) -> Float[np.ndarray, "clip width"]:
        """The scene embedding of every clip, as `patchout embed` gives it; DataError names one that cannot be read."""
        embedder, rate = Embedder(model, SCENES, precision=precision), model.config.mel.sample_rate
        try:
            return np.stack([embedder.scene_of(self.clips.stream(clip, rate)) for clip in range(len(self.clips))])
        except (AudioError, OSError) as error:
            raise DataError(f"probe: {error}: repair it or take it out of the set") from error

    def neighbours(self, features: Float[np.ndarray, "clip width"]) -> Bool[np.ndarray, "clip"]:
        """Whether the nearest clips of the other folds have the clip's class."""
        count = min(NEIGHBOURS, len(self.classes) // self.splits)
        return self._right(KNeighborsClassifier(count, metric="cosine"), features)

    def judge(self, name: str, model: Tagger, precision: Precision) -> Subject:
        """Both classifiers on what a model hears."""
        features = self.features(model, precision)
        return Subject(name, self.neighbours(features), self._right(LogisticRegression(max_iter=3000), features))

    def _right(self, classifier: object, features: np.ndarray) -> Bool[np.ndarray, "clip"]:
        folds = StratifiedGroupKFold(self.splits)
        both = make_pipeline(StandardScaler(), classifier)
        found = cross_val_predict(both, features, self.classes, groups=self.groups, cv=folds)
        return np.asarray(found == self.classes)


def gain(before: Subject, after: Subject) -> tuple[float, Interval]:
    """How much larger the linear model's accuracy is, and its 95 % interval over the clips that both were asked."""
    change = after.linear.astype(float) - before.linear
    reach = 1.96 * float(change.std(ddof=1)) / len(change) ** 0.5
    return float(change.mean()), (float(change.mean()) - reach, float(change.mean()) + reach)


def table(subjects: Sequence[Subject]) -> str:
    """A line an encoder, and whether the last one is better than the one before it, as far as the clips can tell."""
    count = len(subjects[0].linear)
    lines = [f"accuracy of frozen embeddings on {count} clips (95 % interval): nearest neighbours, linear model"]
    for name, *answers in subjects:
        told = [(right.mean(), *wilson_interval(float(right.mean()), count)) for right in answers]
        lines.append(f"  {name:<18}" + "   ".join(f"{one:.3f} ({low:.3f} - {high:.3f})" for one, low, high in told))
    change, (low, high) = gain(subjects[-2], subjects[-1])
    verdict = "it helped" if low > 0 else "it did harm" if high < 0 else f"{count} clips cannot tell a difference"
    points = f"{100 * change:+.1f} points ({100 * low:+.1f} ... {100 * high:+.1f})"
    return "\n".join([*lines, f"{subjects[-1].name} against {subjects[-2].name}: {points}: {verdict}"])

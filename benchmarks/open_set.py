"""What a model says to sounds of its classes, and whether it is silent on others.

python benchmarks/open_set.py MODEL DATA

ESC-10, fold 5: the share of clips whose highest of the ten classes is theirs. ESC-50 at 16 kHz, classes that
the model has no output for: the share of clips without a label that reaches its threshold. Spoken digits
(takes 0-4) and the narrations of `free/harbour`: the share named speech. All with 95 % intervals.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import patchout
from patchout.inference.metrics import wilson_interval
from patchout.models.tagger import Tagger

KNOWN = {  # classes of ESC-50 that have an output by another name
    "door_wood_knock": "door",
    "door_wood_creaks": "door",
    "thunderstorm": "thunder",
    "church_bells": "bell",
    "pouring_water": "water",
    "water_drops": "water",
    "toilet_flush": "water",
}


class Share(NamedTuple):
    """Share of clips, with its 95 % interval, and the number of clips."""

    value: float
    interval: tuple[float, float]
    clips: int

    @classmethod
    def of(cls, hits: Sequence[bool]) -> "Share":
        """The share of hits."""
        value = sum(hits) / len(hits)
        return cls(value, wilson_interval(value, len(hits)), len(hits))


def scores_of(model: Tagger, paths: Sequence[Path]) -> list[tuple[dict[str, float], list[str]]]:
    """For each file the score of every class, and the labels that reach their thresholds."""
    tags = list(patchout.tag_many(model, [str(path) for path in paths], top=len(model.config.labels)))
    passed = [
        [label for label, is_passed in zip(tag.labels, tag.passed, strict=True) if is_passed] for tag in tags
    ]
    return [
        (dict(zip(tag.labels, tag.scores, strict=True)), labels)
        for tag, labels in zip(tags, passed, strict=True)
    ]


def fold_5(model: Tagger, data: Path) -> dict[str, Share]:
    """Its ten classes alone compared, and with the threshold of each."""
    rows = [row for row in csv.DictReader((data / "esc10" / "esc10.csv").open()) if row["fold"] == "5"]
    truth = [row["category"] for row in rows]
    audio = {path.name: path for path in (data / "esc10").rglob("*.ogg")}
    scored = scores_of(model, [audio[row["filename"]] for row in rows])
    ten = sorted(set(truth))
    best = [max(ten, key=lambda name: scores[name]) for scores, _ in scored]
    return {
        "ESC-10 fold 5, best of its ten classes": Share.of(
            [a == b for a, b in zip(best, truth, strict=True)]
        ),
        "ESC-10 fold 5, named by its threshold": Share.of(
            [label in labels for label, (_, labels) in zip(truth, scored, strict=True)]
        ),
    }


def silence(model: Tagger, data: Path) -> dict[str, Share]:
    """On the classes of ESC-50 that it has no output for; prints which are named, and what."""
    outputs = set(model.config.labels)
    rows = list(csv.DictReader((data / "esc50" / "meta" / "esc50.csv").open()))
    rows = [row for row in rows if KNOWN.get(row["category"], row["category"]) not in outputs]
    scored = scores_of(model, [data / "esc50" / "audio" / row["filename"] for row in rows])
    print("given as:", Counter(label for _, labels in scored for label in labels).most_common(12))
    named = Counter(row["category"] for row, (_, labels) in zip(rows, scored, strict=True) if labels)
    print("of 40 clips a class are given a label:", named.most_common(12))
    classes = len({row["category"] for row in rows})
    return {
        f"{classes} other classes of ESC-50 at 16 kHz, silent": Share.of([not labels for _, labels in scored])
    }


def speech(model: Tagger, data: Path) -> dict[str, Share]:
    """On digits of the test takes and on narrations."""
    takes = sorted((data / "fsdd" / "recordings").glob("*_[0-4].wav"))
    talks = sorted((data / "free" / "harbour").glob("*voice*"))
    return {
        f"{name}, named speech": Share.of(["speech" in labels for _, labels in scores_of(model, paths)])
        for name, paths in (("spoken digits", takes), ("narrations", talks))
    }


def shares(model: Tagger, data: Path) -> dict[str, Share]:
    """All of them."""
    return fold_5(model, data) | silence(model, data) | speech(model, data)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    args = parser.parse_args()
    for name, share in shares(patchout.load(args.model), args.data).items():
        low, high = share.interval
        print(f"{name}: {share.value:.3f} ({low:.3f} - {high:.3f}) of {share.clips}")


if __name__ == "__main__":
    main()

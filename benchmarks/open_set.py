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


def share(hits: Sequence[bool]) -> str:
    """Share of hits with its interval."""
    mean = sum(hits) / len(hits)
    low, high = wilson_interval(mean, len(hits))
    return f"{mean:.3f} ({low:.3f} - {high:.3f}) of {len(hits)}"


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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    args = parser.parse_args()
    model, data = patchout.load(args.model), args.data

    rows = [row for row in csv.DictReader((data / "esc10" / "esc10.csv").open()) if row["fold"] == "5"]
    truth = [row["category"].replace("_", " ") for row in rows]
    audio = {path.name: path for path in (data / "esc10").rglob("*.ogg")}
    scored = scores_of(model, [audio[row["filename"]] for row in rows])
    ten = sorted(set(truth))
    names = [max(ten, key=lambda name: scores[name]) for scores, _ in scored]
    print(
        "ESC-10 fold 5, best of its ten classes:", share([a == b for a, b in zip(names, truth, strict=True)])
    )
    named = [label in labels for label, (_, labels) in zip(truth, scored, strict=True)]
    print("ESC-10 fold 5, its class reaches its threshold:", share(named))

    outputs = set(model.config.labels)
    rows = list(csv.DictReader((data / "esc50" / "meta" / "esc50.csv").open()))
    is_known = {
        name: KNOWN.get(name, name.replace("_", " ")) in outputs for row in rows for name in [row["category"]]
    }
    others = [row for row in rows if not is_known[row["category"]]]
    scored = scores_of(model, [data / "esc50" / "audio" / row["filename"] for row in others])
    print("ESC-50 at 16 kHz, other classes, silent:", share([not labels for _, labels in scored]))
    print("  named:", Counter(label for _, labels in scored for label in labels).most_common(12))
    loud = Counter(row["category"] for row, (_, labels) in zip(others, scored, strict=True) if labels)
    print("  of 40 clips of each class:", loud.most_common(12))

    takes = [path for path in sorted((data / "fsdd" / "recordings").glob("*.wav")) if int(path.stem[-1]) < 5]
    digits = [path for path in takes if path.stem.split("_")[2] in "01234"]
    talks = sorted((data / "free" / "harbour").glob("*voice*"))
    for name, paths in (("spoken digits", digits), ("narrations", talks)):
        print(f"{name}, named speech:", share(["speech" in labels for _, labels in scores_of(model, paths)]))


if __name__ == "__main__":
    main()

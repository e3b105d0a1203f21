"""OUT/: the numbers and their rules (JSON), a record of every file (CSV), and a report with pictures."""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from patchout.checkpoint.zoo import load
from patchout.figures import Spectrogram
from patchout.files import markdown_table, write_aside, write_json
from patchout.inference.tagging import overview
from patchout.judge import figures
from patchout.judge.measures import FileRecord
from patchout.judge.metrics import Estimate
from patchout.judge.run import Judgement

COMPARED = "compare.png"
MAX_PICTURES = 5  # of the worst pairs
MAX_ROWS = 20


def write_report(out: Path, judgements: Sequence[Judgement]) -> Path:
    """Write judge.json, files.csv and report.md with pictures into a folder; returns report.md."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "judge.json", [each.to_dict() for each in judgements])
    for picture in (out / COMPARED, *out.glob("worst-[0-9].png")):
        picture.unlink(missing_ok=True)  # of a judgement that was here before
    best = max(judgements, key=lambda each: len(each.values))
    records = sorted(best.files(), key=_badness, reverse=True)
    _write_files(out / "files.csv", records)
    sets = " judged by ".join(each.name for each in best.sets)
    parts = [f"# {sets}\n\n{numbers(judgements)}"]
    if len(judgements) > 1:
        figures.compared(out / COMPARED, by_metric(judgements), title="one pair of sets, several protocols")
        parts.append(f"![the numbers of every protocol]({COMPARED})\n")
    warnings = dict.fromkeys(text for each in judgements for text in each.warnings)
    parts.append("## What to know of these numbers\n\n" + "".join(f"- {text}\n" for text in warnings))
    parts.append(f"## Worst files by {best.protocol.name}\n\n{_worst(records)}")
    parts += [f"![spectrograms and classes]({name})\n" for name in _pictures(out, best, records)]
    rules = "".join(f"```json\n{json.dumps(each.protocol.rules(), indent=1)}\n```\n" for each in judgements)
    parts.append(f"## Rules\n\n{rules}")
    with write_aside(out / "report.md") as aside:
        aside.write_text("\n".join(parts), encoding="utf-8", errors="replace")
    return out / "report.md"


def by_metric(judgements: Iterable[Judgement]) -> dict[str, dict[str, Estimate]]:
    """Metric -> protocol -> number."""
    rows: dict[str, dict[str, Estimate]] = {}
    for each in judgements:
        for metric, value in each.values.items():
            rows.setdefault(metric, {})[each.protocol.name] = value
    return rows


def numbers(judgements: Sequence[Judgement]) -> str:
    """A Markdown table of all numbers, and why others are missing."""
    rows = [
        (each.protocol.name, metric, f"{value.value:.6g}", f"{value.low:.4g} to {value.high:.4g}")
        for each in judgements
        for metric, value in each.values.items()
    ]
    missing = [
        f"\n{each.protocol.name} has no {metric}: {reason}\n"
        for each in judgements
        for metric, reason in each.left_out.items()
    ]
    return markdown_table(("protocol", "metric", "value", "95 % within"), rows) + "".join(missing)


def _badness(record: FileRecord) -> tuple[float, float]:
    """Larger is worse: the divergence of the pair, else the distance from the nearest of the reference."""
    kl, distance = (-math.inf if math.isnan(value) else value for value in (record.kl, record.distance))
    return kl, distance


def _write_files(path: Path, records: Sequence[FileRecord]) -> None:
    with write_aside(path) as aside, aside.open("w", newline="", encoding="utf-8", errors="replace") as file:
        table = csv.writer(file)
        table.writerow(FileRecord._fields)
        for record in records:
            cells = ("" if isinstance(cell, float) and math.isnan(cell) else cell for cell in record[:-1])
            table.writerow((*cells, _classes(record)))


def _classes(record: FileRecord) -> str:
    return "; ".join(f"{name} {p:.3f}/{q:.3f}" for name, p, q in record.classes[:3])


def _worst(records: Sequence[FileRecord]) -> str:
    rows = [
        (record.file or record.id, record.pair, _number(record.kl), record.nearest, _number(record.distance),
         _classes(record))
        for record in records[:MAX_ROWS]
    ]  # fmt: skip
    head = ("file", "pair", "KL", "nearest of the reference", "distance", "classes (generated/reference)")
    return markdown_table(head, rows)


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _pictures(out: Path, judgement: Judgement, records: Sequence[FileRecord]) -> Iterator[str]:
    """Draw the worst pairs whose files are here."""
    config = load(judgement.model, "cpu").config if judgement.model else None
    chosen = [record for record in records if record.classes and Path(record.file).is_file()]
    for number, record in enumerate(chosen[:MAX_PICTURES] if config else (), 1):
        files = {"generated": record.file, "reference": record.pair}
        if not Path(record.pair).is_file() or config is None:
            continue
        sounds = {}
        for side, file in files.items():
            mel, frame_s = overview(file, config, duration_s=60.0)
            sounds[f"{side}: {Path(file).name}"] = Spectrogram(mel, config.mel.band_hz, frame_s)
        name = f"worst-{number}.png"
        figures.pair(out / name, sounds, record.classes, title=f"KL {record.kl:.3f}")
        yield name

"""Text of `patchout bench`: single rows, and the papers' three tables; measured values beside the cited."""

from collections.abc import Mapping, Sequence

from patchout.bench.measure import Arithmetic, Row
from patchout.bench.rows import LETTERS, TABLES, TASKS, TableName

LABELS = {  # of rows in the tables
    "Baseline": "Baseline (AudioSet paper)",
    "CNN14": "PANNs CNN14",
    "AST-1212": "AST",
    "AST": "AST, authors' run",
    "AST-N": "AST-N, authors' run",
    "RF-CNN": "RF-CNN, authors' run",
    **{letter: f"PaSST-{letter}" for letter in LETTERS},
}
HOPS = {"hop320": "10 ms", "hop160": "5 ms", "hop100": "3 ms"}
_HERE = "here: random weights on this machine"
NOTES: dict[TableName, str] = {
    "1": "cited: PaSST, Table 1: AudioSet, one consumer GPU. "
    "Baseline, AST of 1212 tokens and RF-CNN are cited only."
    f"\n{_HERE}; GB a clip are the activations that autograd keeps for one more clip.",
    "2": "cited: PaSST, Table 2, means of three runs; x B is training speed over that of B. Best before: "
    + ", ".join(f"{column.title.partition(' ')[0]} {column.best[0]}" for column in TASKS.values())
    + f".\n{_HERE}, with the clips and the Patchout of our recipes.",
    "hear": f"cited: HEAR paper, Table 2, one Titan RTX. P: with Patchout. {_HERE}.\n"
    "The cited sequences of 5 and 3 ms leave out C and D, ours count them.",
}

Group = tuple[str, tuple[str, ...]]  # a heading and its columns
_BOTH = ("here", "cited")


def _line(name: str, measured: Sequence[str], cited: Sequence[str]) -> str:
    parts = ("".join(f"{cell:>9}" for cell in cells) for cells in (measured, cited))
    return f"{name:<9}{'  |'.join(parts)}"


HEADER = _line(  # "infer": the column before it, in inference
    "",
    ("tokens", "M param", "GFLOP", "infer", "clips/s", "infer", "MB/clip", "peak GB", "% peak"),
    ("cited mAP", "tokens", "clips/s", "infer", "GB/clip"),
)


def arithmetics(speeds: Sequence[Arithmetic]) -> str:
    """The table of `measure.arithmetics`: speed and share of the peak of each arithmetic."""
    heads = ("", "peak TFLOP/s", "PaSST-S clips/s", "% peak")
    cells = [
        (
            speed.precision,
            f"{speed.peak_tflops:.2f}",
            f"{speed.clips_per_s:.2f}",
            f"{100 * speed.utilisation:.0f}",
        )
        for speed in speeds
    ]
    lines = (
        "".join((f"{name:<9}", *(f"{value:>17}" for value in values))) for name, *values in (heads, *cells)
    )
    return "\n".join(("inference, waveform to logits", *lines))


def text(row: Row) -> str:
    """The row under `HEADER`."""
    ours, theirs = row.measured, row.cited
    score, memory = _number(theirs.mAP, ".3f"), _number(theirs.training_gb, ".3f")
    speeds = (_number(theirs.training_clips_per_s, ".1f"), _number(theirs.inference_clips_per_s, ".1f"))
    cited = (score, _number(theirs.tokens, "d"), *speeds, memory)
    if ours is None:
        return _line(row.name, [f"{row.problem:<81}"], cited)
    measured = (
        *(_number(ours.tokens or None, "d"), f"{ours.parameters / 1e6:.1f}"),
        *(f"{ours.training_gflop:.1f}", f"{ours.inference_gflop:.1f}"),
        *(f"{ours.training_clips_per_s:.2f}", f"{ours.inference_clips_per_s:.2f}"),
        *(f"{1e3 * ours.activation_gb:.0f}", _number(ours.peak_gb, ".1f"), f"{100 * ours.utilisation:.0f}"),
    )
    return _line(row.name, measured, cited)


def _number(value: float | int | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def table(name: TableName, rows: Sequence[Row]) -> str:
    """One of the papers' tables, from all rows that `TABLES` lists for it; `-` is an unknown value."""
    make = {"1": _table_1, "2": _table_2, "hear": _table_hear}[name]
    groups, lines = make({row.name: row for row in rows})
    problems = [f"{row.name}: {row.problem}" for row in rows if row.problem]
    return "\n".join([*_aligned(groups, lines), NOTES[name], *problems])


def _table_1(rows: Mapping[str, Row]) -> tuple[list[Group], list[list[str]]]:
    titles = ("clips/s", "x AST", "GB a clip", "sequence")
    lines = []
    for name in TABLES["1"]:
        row, cited = rows[name], rows[name].cited
        speed = (_ours(row, "training_clips_per_s", ".2f"), _number(cited.training_clips_per_s, ".1f"))
        memory = (_ours(row, "activation_gb", ".3f"), _number(cited.training_gb, "g"))
        tokens = (_ours(row, "tokens", "d"), _number(cited.tokens, "d"))
        speed_up = (_speed_up(row, rows["AST"]), _number(cited.speed_up, "g"))
        lines.append([LABELS[name], _number(cited.mAP, ".3f"), *speed, *speed_up, *memory, *tokens])
    return [("", ("model",)), ("mAP", ("cited",)), *((title, _BOTH) for title in titles)], lines


def _table_2(rows: Mapping[str, Row]) -> tuple[list[Group], list[list[str]]]:
    groups = [
        ("", ("model",)),
        *((column.title, ("cited", "x B here", "cited")) for column in TASKS.values()),
    ]
    labels = {"Baseline": "Baseline", "best": "best before", **{letter: LABELS[letter] for letter in LETTERS}}
    lines = []
    for letter, label in labels.items():
        cells = [label]
        for task, column in TASKS.items():
            row = rows[f"{task}-{letter.lower()}"]
            score = _number(row.cited.score, ".3f" if column.baseline < 1 else ".1f")
            cells += [score, _speed_up(row, rows[f"{task}-b"]), _number(row.cited.speed_up, "g")]
        lines.append(cells)
    return groups, lines


def _table_hear(rows: Mapping[str, Row]) -> tuple[list[Group], list[list[str]]]:
    titles = ("sequence / P", "training clips/s / P", "P speed-up", "inference clips/s")
    lines = []
    for name, hop in HOPS.items():
        pair = plain, dropped = rows[name], rows[f"{name}-S"]
        cells = [
            " / ".join(_ours(row, "tokens", "d") for row in pair),
            " / ".join(_number(row.cited.tokens, "d") for row in pair),
            " / ".join(_ours(row, "training_clips_per_s", ".2f") for row in pair),
            " / ".join(_number(row.cited.training_clips_per_s, "g") for row in pair),
            *(_speed_up(dropped, plain), _number(dropped.cited.speed_up, "g")),
            *(_ours(plain, "inference_clips_per_s", ".2f"), _number(plain.cited.inference_clips_per_s, "g")),
            _number(dropped.cited.mAP, ".3f"),
        ]
        lines.append([hop, *cells])
    return [("", ("hop",)), *((title, _BOTH) for title in titles), ("mAP", ("cited",))], lines


def _ours(row: Row, field: str, form: str) -> str:
    """A measured value; "-" if it was not measured or does not exist (tokens of a CNN)."""
    return _number(getattr(row.measured, field, None) or None, form)


def _speed_up(row: Row, base: Row) -> str:
    """Training speed as a multiple of another row's."""
    if row.measured is None or base.measured is None:
        return "-"
    return f"{row.measured.training_clips_per_s / base.measured.training_clips_per_s:.1f}"


def _aligned(groups: Sequence[Group], lines: Sequence[Sequence[str]]) -> list[str]:
    """Align two lines of headings and the rows: names left, numbers right, a bar between groups."""
    columns = list(zip([head for _, heads in groups for head in heads], *lines, strict=True))
    widths = [max(map(len, column)) for column in columns]
    spans: list[list[int]] = []
    for title, heads in groups:
        first = sum(map(len, spans))
        spans.append(list(range(first, first + len(heads))))
        widths[first] += max(0, len(title) - sum(widths[column] + 2 for column in spans[-1]) + 2)
    sizes = [sum(widths[column] + 2 for column in span) - 2 for span in spans]
    rows = [[title.ljust(size) for (title, _), size in zip(groups, sizes, strict=True)]]
    for first, *numbers in zip(*columns, strict=True):
        cells = [first.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])]
        rows.append(["  ".join(cells[column] for column in span) for span in spans])
    return [" | ".join(parts).rstrip() for parts in rows]

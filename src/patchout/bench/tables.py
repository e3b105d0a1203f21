"""What `patchout bench` prints: rows as they are measured, the papers' three tables whole; ours beside the cited."""

from collections.abc import Mapping, Sequence

from patchout.bench.measure import Row
from patchout.bench.rows import LETTERS, TABLES, TASKS, TableName

LABELS = {  # of rows in the tables, where a row's name does not say it
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
    "1": "cited: PaSST, Table 1: AudioSet, one consumer GPU. Baseline, AST of 1212 tokens and RF-CNN are cited only."
    f"\n{_HERE}; GB a clip are the activations that autograd keeps for one more clip.",
    "2": "cited: PaSST, Table 2, means of three runs; x B is training speed over that of B. Best before: "
    + ", ".join(f"{column.title.partition(' ')[0]} {column.best[0]}" for column in TASKS.values())
    + f".\n{_HERE}, with the clips and the Patchout of our recipes.",
    "hear": f"cited: HEAR paper, Table 2, one Titan RTX. P: with Patchout. {_HERE}.\n"
    "The cited sequences of 5 and 3 ms leave out C and D, ours count them.",
}

Group = tuple[str, tuple[str, ...]]  # a heading over columns


# -- a row at a time --------------------------------------------------------------------------------------------------


def _line(name: str, measured: Sequence[str], cited: Sequence[str]) -> str:
    left, right = ("".join(f"{cell:>9}" for cell in cells) for cells in (measured, cited))
    return f"{name:<9}{left}  |{right}"


HEADER = _line(  # "infer": the column before it, in inference
    "",
    ("tokens", "M param", "GFLOP", "infer", "clips/s", "infer", "MB/clip", "peak GB", "% peak"),
    ("cited mAP", "tokens", "clips/s", "infer", "GB/clip"),
)


def text(row: Row) -> str:
    """The row under `HEADER`."""
    got, said = row.measured, row.cited
    speeds = (_number(said.training_clips_per_s, ".1f"), _number(said.inference_clips_per_s, ".1f"))
    cited = (_number(said.mAP, ".3f"), _number(said.tokens, "d"), *speeds, _number(said.training_gb, ".3f"))
    if got is None:
        return _line(row.name, [f"{row.problem:<81}"], cited)
    measured = (
        *(f"{got.tokens}" if got.tokens else "-", f"{got.parameters / 1e6:.1f}"),
        *(f"{got.training_gflop:.1f}", f"{got.inference_gflop:.1f}"),
        *(f"{got.training_clips_per_s:.2f}", f"{got.inference_clips_per_s:.2f}"),
        *(f"{1e3 * got.activation_gb:.0f}", _number(got.peak_gb, ".1f"), f"{100 * got.utilisation:.0f}"),
    )
    return _line(row.name, measured, cited)


def _number(value: float | int | None, form: str) -> str:
    return "-" if value is None else format(value, form)


# -- whole tables -----------------------------------------------------------------------------------------------------


def table(name: TableName, rows: Sequence[Row]) -> str:
    """One of the papers' tables, of all the rows that `TABLES` lists for it; `-` is what nobody knows."""
    by_name = {row.name: row for row in rows}
    make = {"1": _table_1, "2": _table_2, "hear": _table_hear}[name]
    groups, lines = make(by_name)
    problems = [f"{row.name}: {row.problem}" for row in rows if row.problem]
    return "\n".join([*_aligned(groups, lines), NOTES[name], *problems])


def _table_1(rows: Mapping[str, Row]) -> tuple[list[Group], list[list[str]]]:
    both = ("here", "cited")
    groups = [
        ("mAP", ("cited",)),
        ("clips/s", both),
        ("x AST", both),
        ("GB a clip", both),
        ("sequence", both),
    ]
    lines = []
    for name in TABLES["1"]:
        row, cited = rows[name], rows[name].cited
        speed, memory, tokens = "-", "-", "-"
        if got := row.measured:
            speed, memory = f"{got.training_clips_per_s:.2f}", f"{got.activation_gb:.3f}"
            tokens = f"{got.tokens}" if got.tokens else "-"
        cells = [
            *(_number(cited.mAP, ".3f"), speed, _number(cited.training_clips_per_s, ".1f")),
            *(_speed_up(row, rows["AST"]), _number(cited.speed_up, "g")),
            *(memory, _number(cited.training_gb, "g"), tokens, _number(cited.tokens, "d")),
        ]
        lines.append([LABELS[name], *cells])
    return [("", ("model",)), *groups], lines


def _table_2(rows: Mapping[str, Row]) -> tuple[list[Group], list[list[str]]]:
    groups = [
        ("", ("model",)),
        *((column.title, ("cited", "x B here", "cited")) for column in TASKS.values()),
    ]
    lines = []
    for letter in ("Baseline", "best", *LETTERS):
        cells = [{"best": "best before"}.get(letter, LABELS[letter] if letter in LETTERS else letter)]
        for task, column in TASKS.items():
            row = rows[f"{task}-{letter.lower()}"]
            score = _number(row.cited.score, ".3f" if column.baseline < 1 else ".1f")
            cells += [score, _speed_up(row, rows[f"{task}-b"]), _number(row.cited.speed_up, "g")]
        lines.append(cells)
    return groups, lines


def _table_hear(rows: Mapping[str, Row]) -> tuple[list[Group], list[list[str]]]:
    both = ("here", "cited")
    titles = ("sequence / P", "training clips/s / P", "P speed-up", "inference clips/s")
    lines = []
    for name, hop in HOPS.items():
        pair = plain, dropped = rows[name], rows[f"{name}-S"]
        cells = [
            " / ".join(f"{row.measured.tokens}" if row.measured else "-" for row in pair),
            " / ".join(_number(row.cited.tokens, "d") for row in pair),
            " / ".join(f"{row.measured.training_clips_per_s:.2f}" if row.measured else "-" for row in pair),
            " / ".join(_number(row.cited.training_clips_per_s, "g") for row in pair),
            *(_speed_up(dropped, plain), _number(dropped.cited.speed_up, "g")),
            f"{plain.measured.inference_clips_per_s:.2f}" if plain.measured else "-",
            *(_number(plain.cited.inference_clips_per_s, "g"), _number(dropped.cited.mAP, ".3f")),
        ]
        lines.append([hop, *cells])
    return [("", ("hop",)), *((title, both) for title in titles), ("mAP", ("cited",))], lines


def _speed_up(row: Row, base: Row) -> str:
    """How many times as fast training is."""
    if row.measured is None or base.measured is None:
        return "-"
    return f"{row.measured.training_clips_per_s / base.measured.training_clips_per_s:.1f}"


def _aligned(groups: Sequence[Group], lines: Sequence[Sequence[str]]) -> list[str]:
    """Two lines of headings and the rows, in columns: names to the left, numbers to the right, a bar between groups."""
    columns = list(zip([head for _, heads in groups for head in heads], *lines, strict=True))
    widths = [max(map(len, column)) for column in columns]
    spans: list[list[int]] = []
    for title, heads in groups:
        first = sum(map(len, spans))
        spans.append(list(range(first, first + len(heads))))
        widths[first] += max(0, len(title) - sum(widths[column] + 2 for column in spans[-1]) + 2)
    bars = [
        [
            title.ljust(sum(widths[column] + 2 for column in span) - 2)
            for (title, _), span in zip(groups, spans, strict=True)
        ]
    ]
    for line in zip(*columns, strict=True):
        cells = [
            text.rjust(width) if column else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        bars.append(["  ".join(cells[column] for column in span) for span in spans])
    return [" | ".join(parts).rstrip() for parts in bars]

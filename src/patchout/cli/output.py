"""Output of the commands: tables, JSON, CSV, Audacity labels, progress bars."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from patchout.files import finite

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn, TaskID

    from patchout.checkpoint.zoo import Row
    from patchout.inference.evaluate import Evaluation
    from patchout.inference.tagging import Tags
    from patchout.training.loop import Progress

Format = Literal["table", "json", "csv", "audacity", "raven", "scores"]
CSV_COLUMNS = ("file", "duration_s", "label", "score", "start_s", "end_s", "warning", "error", "passed")
CSV_HEADER = ",".join(CSV_COLUMNS)
ENDS = ("start_s", "end_s")
BLANKS = dict.fromkeys(map(ord, "\t\r\n"), " ")  # that would end a cell of a table
RAVEN_COLUMNS = (
    *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"),
    *("Label", "Confidence", "Begin Path", "File Offset (s)"),
)


def line(text: str, out: TextIO) -> None:
    """Print one line; characters that the terminal cannot show are replaced."""
    encoding = out.encoding or "utf-8"
    out.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    out.flush()


@contextmanager
def writer(format: Format, out: TextIO, *, events: bool = False) -> "Iterator[Callable[[Tags], object]]":
    """Yield a function that prints the tags of one file; the output is well-formed however the block ends.

    `events`: a label track holds these alone.
    """
    if format == "json":
        separators = chain(["[\n"], repeat(",\n"))
        try:
            yield lambda tags: out.write(next(separators) + _json(tags.to_dict(), out))
        finally:
            line("[]" if next(separators) == "[\n" else "\n]", out)
        return
    if format == "csv":
        line(CSV_HEADER, out)
    texts: dict[str, Callable[[Tags], str]] = {"table": table_text, "csv": csv_text}
    texts["audacity"] = partial(audacity_text, events=events)
    text = texts[format]

    def write_text(tags: "Tags") -> None:
        if lines := text(tags):  # empty for the label track of a file that failed
            line(lines, out)

    yield write_text


def table_text(tags: "Tags") -> str:
    """Tags of a file as text: a heading, a line a label with a bar, a line an event."""
    record = tags.to_dict()
    if tags.error is not None:
        return f"{tags.file}\n  failed: {tags.error}\n"
    lines = [f"{tags.file}  ({' - '.join(map(clock, tags.segment_s or (tags.duration_s,)))})"]
    width = max(len(row["label"]) for row in (*record["tags"], *record["events"]))
    if tags.thresholds and not any(tags.passed):
        lines.append("  nothing it knows: no score reaches its threshold")
    for row in record["tags"]:
        bar = "#" * round(20 * row["score"])
        below = f"below {row['threshold']:.3f}" if row["passed"] is False else ""
        lines.append(f"  {row['label']:<{width}}  {row['score']:.3f}  {bar:<20}  {below}".rstrip())
    lines += ["  events:"] if tags.events else []
    for event in record["events"]:
        span = f"{clock(event['start_s'])} - {clock(event['end_s'])}"
        lines.append(f"  {event['label']:<{width}}  {event['score']:.3f}  {span}")
    return "\n".join(lines) + "\n"


def clock(seconds: float) -> str:
    """Format a time: 4.25 s, 12:05.2, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{int(minutes)}:{seconds:04.1f}"
    return f"{int(minutes // 60)}:{int(minutes % 60):02d}:{int(seconds):02d}"


def csv_text(tags: "Tags") -> str:
    """Tags of a file as CSV: a row a label (start and end are a segment's), a row an event, or its error."""
    record = tags.to_dict()
    of_file = {key: record[key] for key in CSV_COLUMNS if key in record}
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, CSV_COLUMNS, lineterminator="\n", extrasaction="ignore")
    table.writerows(of_file | row for row in [*record["tags"], *record["events"]] or [{}])
    return buffer.getvalue().rstrip("\n")


def audacity_text(tags: "Tags", *, events: bool) -> str:
    """Events of a file, or else its tags, as an Audacity label track: start, end, label, separated by tabs.

    A label over the whole file would lie on top of every event. Tags below their thresholds are left out.
    """
    record = tags.to_dict()
    passed = (row for row in record["tags"] if row["passed"] is not False)
    span = {"start_s": 0.0, "end_s": record["duration_s"]} | {k: record[k] for k in ENDS if k in record}
    of_file = [span | row for row in passed]
    rows = record["events"] if events else of_file
    return "\n".join(f"{row['start_s']:.3f}\t{row['end_s']:.3f}\t{row['label']}" for row in rows)


def raven_text(segments: "Sequence[Tags]", band_hz: tuple[float, float]) -> str:
    """Events of a file's segments as a selection table of Raven, over the band that the model hears."""
    low, high = (f"{edge:.1f}" for edge in band_hz)
    path = str(Path(segments[0].file).absolute())
    rows = [RAVEN_COLUMNS]
    for number, event in enumerate((event for tags in segments for event in tags.events), start=1):
        start, end = f"{event.start_s:.3f}", f"{event.end_s:.3f}"
        box = (str(number), "Spectrogram 1", "1", start, end, low, high)
        rows.append((*box, event.label, f"{event.score:.4f}", path, start))
    return "\n".join("\t".join(cell.translate(BLANKS) for cell in row) for row in rows)


def print_models(rows: "Sequence[Row]", format: Literal["table", "json"], out: TextIO) -> None:
    """Print the models of the zoo."""
    if format == "json":
        line(json.dumps([row._asdict() for row in rows], indent=1), out)
        return
    cells = [("name", "score", "licence", "here", "")]
    for row in rows:
        size = f"{row.size_bytes / 1e6:.0f} MB" if row.size_bytes is not None else "-"
        cells.append((row.name, row.score, row.licence, size, row.note))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for texts in cells:
        line("  ".join(map(str.ljust, texts, widths)).rstrip(), out)


def print_evaluation(
    settings: dict[str, Any], result: "Evaluation", format: Literal["table", "json"], out: TextIO
) -> None:
    """Print scores with their confidence intervals; JSON has null where they are not finite."""
    from patchout.inference.metrics import score_text

    if format == "json":
        intervals = {name: [finite(end) for end in ends] for name, ends in result.intervals.items()}
        record = {"clips": result.clips, "ids_sha256": result.ids_sha256, "draws": result.draws}
        record |= {"absent": list(result.absent), **finite(result.scores)}
        line(json.dumps({**settings, **record, "intervals": intervals, "failed": list(result.failed)}), out)
        return
    width = max(map(len, result.scores))
    for name, value in result.scores.items():
        low, high = map(score_text, result.intervals[name])
        line(f"{name:<{width}}  {score_text(value)}  95 % within {low} and {high}", out)
    line(f"{result.clips} clips (sha256 {result.ids_sha256[:12]})", out)
    if result.absent:
        line(result.unscored, out)
    for split, count in settings["official"].items():
        share = f"{count['present'] / count['listed']:.1%}"
        line(
            f"{split}: {count['present']} of the {count['listed']} clips on the official list ({share})", out
        )
    line(f"intervals: Wilson's for accuracy, bootstrap of {result.draws} draws for other scores", out)


def scores_text(scores: dict[str, float]) -> str:
    """Scores on one line."""
    from patchout.inference.metrics import score_text

    return "  ".join(f"{name} {score_text(value)}" for name, value in scores.items())


def _json(record: dict[str, Any], out: TextIO) -> str:
    """One line of JSON, unescaped where `out` is UTF-8 and can hold it (a file name may be any bytes)."""
    if (out.encoding or "").lower().replace("-", "") == "utf8":
        text = json.dumps(record, ensure_ascii=False)
        with suppress(UnicodeEncodeError):
            text.encode()
            return text
    return json.dumps(record)


class Bar:
    """A progress bar with rate and time left on a terminal, nothing elsewhere."""

    def __init__(self, unit: str, total: int | None, out: TextIO) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn(unit), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        self._progress = _progress(out, *columns, TimeRemainingColumn())
        self._task: TaskID = self._progress.add_task(unit, total=total, rate="")
        self._audio_s = 0.0

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def __call__(self, steps: int) -> None:
        """Advance by some steps."""
        self._progress.advance(self._task, steps)

    def sounds(self, items: int, audio_s: float) -> None:
        """Advance by some items, and show the seconds of sound per second."""
        task = self._progress.tasks[0]
        self._audio_s += audio_s
        rate = f"{self._audio_s / task.elapsed:.0f} s of sound/s" if task.elapsed and self._audio_s else ""
        self._progress.update(self._task, advance=items, rate=rate)

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the bar off the terminal while something else is printed there."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    def training(self, state: "Progress") -> None:
        """Show step, speed and loss of a training run."""
        loss = f", loss {state.loss:.4f}" if state.loss is not None else ""
        rate = f"{state.clips_per_s:.1f} clips/s{loss}"
        self._progress.update(self._task, total=state.steps, completed=state.step, rate=rate)


def _progress(out: TextIO, *columns: "ProgressColumn") -> "RichProgress":
    """A progress display that vanishes when it ends, and is silent unless `out` is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=out)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def download_bar(out: TextIO) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a progress function for a download; the bar appears with its first call."""
    with _progress(out) as progress:

        def update(completed: int, total: int | None) -> None:
            if not progress.tasks:
                progress.add_task("downloading", total=total)
            progress.update(progress.task_ids[0], completed=completed, total=total)

        yield update

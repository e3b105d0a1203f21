"""What the command prints: tables, JSON, CSV, Audacity labels, progress bars."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, TextIO

from patchout.files import finite

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from patchout.checkpoint.zoo import Row
    from patchout.inference.evaluate import Evaluation
    from patchout.inference.tagging import Tags
    from patchout.training.loop import Progress

Format = Literal["table", "json", "csv", "audacity"]
CSV_COLUMNS = ("file", "duration_s", "label", "score", "start_s", "end_s", "warning", "error")


def line(text: str, out: TextIO) -> None:
    """Print one line; characters that the terminal cannot show are replaced."""
    encoding = out.encoding or "utf-8"
    out.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    out.flush()


@contextmanager
def writer(format: Format, out: TextIO) -> "Iterator[Callable[[Tags], None]]":
    """Give a function that prints one file's tags as soon as they are there; the output is whole however it ends."""
    if format == "json":
        count = 0

        def write_json(tags: "Tags") -> None:
            nonlocal count
            out.write("[\n" if count == 0 else ",\n")
            out.write(_json(tags.to_dict(), out))
            count += 1

        try:
            yield write_json
        finally:
            line("\n]" if count else "[]", out)
        return
    if format == "csv":
        line(",".join(CSV_COLUMNS), out)
    text = {"table": table_text, "csv": csv_text, "audacity": audacity_text}[format]

    def write_text(tags: "Tags") -> None:
        if found := text(tags):  # a label track of a file that failed has none
            line(found, out)

    yield write_text


def table_text(tags: "Tags") -> str:
    """A heading, a line a label with a bar, a line an event."""
    record = tags.to_dict()
    if tags.error is not None:
        return f"{tags.file}\n  failed: {tags.error}\n"
    lines = [f"{tags.file}  ({' - '.join(map(clock, tags.segment_s or (tags.duration_s,)))})"]
    width = max([len(label) for label in tags.labels] + [len(event.label) for event in tags.events])
    for row in record["tags"]:
        lines.append(
            f"  {row['label']:<{width}}  {row['score']:.3f}  {'#' * round(20 * row['score'])}".rstrip()
        )
    if tags.events:
        lines.append("  events:")
    for event in record["events"]:
        span = f"{clock(event['start_s'])} - {clock(event['end_s'])}"
        lines.append(f"  {event['label']:<{width}}  {event['score']:.3f}  {span}")
    return "\n".join(lines) + "\n"


def clock(seconds: float) -> str:
    """Seconds as people read them: 4.25 s, 12:05.2, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{int(minutes)}:{rest:04.1f}"
    return f"{int(minutes // 60)}:{int(minutes % 60):02d}:{int(rest):02d}"


def csv_text(tags: "Tags") -> str:
    """A row a label (start and end are a segment's), then a row an event; a failed file is one row with its reason."""
    record = tags.to_dict()
    rows = [*record["tags"], *record["events"]] or [{}]
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, CSV_COLUMNS, lineterminator="\n")
    for row in rows:
        table.writerow({key: record[key] for key in CSV_COLUMNS if key in record} | row)
    return buffer.getvalue().rstrip("\n")


def audacity_text(tags: "Tags") -> str:
    """A label track: start, end and label, separated by tabs; the labels of the whole file, then its events."""
    record = tags.to_dict()
    whole = [{"start_s": 0.0, "end_s": record["duration_s"], **row} for row in record["tags"]]
    rows = [*whole, *record["events"]]
    return "\n".join(f"{row['start_s']:.3f}\t{row['end_s']:.3f}\t{row['label']}" for row in rows)


def print_models(rows: "Sequence[Row]", format: Literal["table", "json"], out: TextIO) -> None:
    """The zoo."""
    if format == "json":
        line(json.dumps([row._asdict() for row in rows], indent=1), out)
        return
    cells = [("name", "score", "licence", "here", "")]
    for row in rows:
        here = f"{row.size_bytes / 1e6:.0f} MB" if row.size_bytes is not None else "-"
        cells.append((row.name, row.score, row.licence, here, row.note))
    widths = [max(len(cell[column]) for cell in cells) for column in range(5)]
    for cell in cells:
        line("  ".join(text.ljust(width) for text, width in zip(cell, widths, strict=True)).rstrip(), out)


def print_evaluation(
    about: dict[str, Any], result: "Evaluation", format: Literal["table", "json"], out: TextIO
) -> None:
    """Scores of one evaluation with their intervals, and on what they stand; JSON has null for what is not finite."""
    from patchout.inference.metrics import score_text

    if format == "json":
        intervals = {name: [finite(end) for end in ends] for name, ends in result.intervals.items()}
        behind = {"clips": result.clips, "ids_sha256": result.ids_sha256, "draws": result.draws}
        behind |= {"absent": list(result.absent), **finite(result.scores)}
        line(json.dumps({**about, **behind, "intervals": intervals, "failed": list(result.failed)}), out)
        return
    width = max(map(len, result.scores))
    for name, value in result.scores.items():
        low, high = map(score_text, result.intervals[name])
        line(f"{name:<{width}}  {score_text(value)}  95 % within {low} and {high}", out)
    line(f"{result.clips} clips (sha256 {result.ids_sha256[:12]})", out)
    if result.absent:
        line(result.unscored, out)
    for split, count in about["official"].items():
        share = count["present"] / count["listed"]
        line(
            f"{split}: {count['present']} of the {count['listed']} clips on the official list ({share:.1%})",
            out,
        )
    line(f"intervals: Wilson's for accuracy, bootstrap of {result.draws} draws for other scores", out)


def scores_text(scores: dict[str, float]) -> str:
    """Scores on one line."""
    from patchout.inference.metrics import score_text

    return "  ".join(f"{name} {score_text(value)}" for name, value in scores.items())


def _json(record: dict[str, Any], out: TextIO) -> str:
    """One line of JSON; letters stay where `out` is UTF-8 and can hold them (a file name may be any bytes)."""
    if (out.encoding or "").lower().replace("-", "") == "utf8":
        text = json.dumps(record, ensure_ascii=False)
        with suppress(UnicodeEncodeError):
            text.encode()
            return text
    return json.dumps(record)


# -- progress ---------------------------------------------------------------------------------------------------------


class Bar:
    """A progress bar with rate and time left on a terminal, nothing elsewhere."""

    def __init__(self, what: str, total: int | None, out: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(file=out)
        columns = (
            *(TextColumn(what), BarColumn(), MofNCompleteColumn()),
            *(TextColumn("{task.fields[rate]}"), TimeRemainingColumn()),
        )
        self._progress: RichProgress = Progress(
            *columns, console=console, transient=True, disable=not console.is_terminal
        )
        self._task: TaskID = self._progress.add_task(what, total=total, rate="")
        self._audio_s = 0.0

    def __enter__(self) -> "Bar":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def __call__(self, steps: int) -> None:
        """Go on by so many."""
        self._progress.advance(self._task, steps)

    def sounds(self, items: int, audio_s: float) -> None:
        """Go on by so many items, and show how much sound is done a second."""
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

    def training(self, at: "Progress") -> None:
        """Where a training run is."""
        loss = f", loss {at.loss:.4f}" if at.loss is not None else ""
        rate = f"{at.clips_per_s:.1f} clips/s{loss}"
        self._progress.update(self._task, total=at.steps, completed=at.step, rate=rate)


@contextmanager
def download_bar(out: TextIO) -> Iterator[Callable[[int, int | None], None]]:
    """Give a progress function for a download; the bar appears with its first call."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=out)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: list[TaskID] = []

        def update(done: int, total: int | None) -> None:
            if not tasks:
                tasks.append(progress.add_task("downloading", total=total))
            progress.update(tasks[0], completed=done, total=total)

        yield update

"""The two sets of a judgement: what the arguments lead to, its embeddings, and the pairs between them."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np

from patchout.data import lists
from patchout.data.columns import COLUMNS, folded, text_of
from patchout.data.folders import at_home
from patchout.data.items import Item, items_hash, read_items
from patchout.errors import InputError
from patchout.files import cache_folder, file_state
from patchout.inference.bulk.folder import read_tables, shard_name
from patchout.inference.bulk.run import Engine, run, run_here
from patchout.judge.caches import Judged
from patchout.judge.embed import JudgeJob, Key, Rows, read

GENERATED = ("generated", "generated_file", "generated_path")
REFERENCE = ("reference", "reference_file", "reference_path")


class Settings(NamedTuple):
    """Where a judgement runs, and whom it tells."""

    device: str = "auto"
    engine: Engine = run_here
    embeddings: Path | None = None  # where those of the generated clips stay; None: they do not
    on_note: Callable[[str], None] = lambda note: None
    on_progress: Callable[[int, float], None] = lambda clips, seconds: None


class Sounds(NamedTuple):
    """Sounds to embed, by the ids that pair them."""

    name: str
    items: list[Item]
    ids: tuple[str, ...]


def sounds_of(name: str, on_note: Callable[[str], None]) -> Sounds:
    """Those of a file, folder, pattern or list, sorted by stem, which is the id."""
    items = read_items([name], on_note, on_note)
    if len(items) == 1 and file_state(items[0].file).size_bytes is None:
        raise InputError(f"{name}: is not there; check the path")
    items.sort(key=lambda item: Path(item.file).stem)
    absolute = [item._replace(file=str(Path(item.file).absolute()) if item.file else "") for item in items]
    return Sounds(name, absolute, tuple(Path(item.file).stem for item in items))


def pairs_in(name: str, on_note: Callable[[str], None]) -> tuple[Sounds, Sounds]:
    """The sounds in the two columns of a list; the number of the row is their id.

    Files are compared whole: `on_note` gets columns that look like their segments.
    """
    path = Path(name).expanduser()
    if path.suffix.lower() not in lists.SUFFIXES or not path.is_file():
        hint = "give a second set to judge it by, or a list with the columns generated and reference"
        raise InputError(f"{name}: {hint}")
    table = lists.open_list(path)
    names = {folded(column): column for column in table.header}
    columns = [next((names[word] for word in words if word in names), "") for words in (GENERATED, REFERENCE)]
    if not all(columns):
        have = ", ".join(table.header)
        raise InputError(f"{name}: a list of pairs has the columns generated and reference; it has {have}")
    all_rows = [*table]
    if unreadable := next((row for row in all_rows if row.reason), None):
        raise InputError(f"{table.place(unreadable)}: {unreadable.reason}")
    if times := [names[word] for word in (*COLUMNS["start"], *COLUMNS["end"]) if word in names]:
        on_note(f"{path.name}: columns that are not used: {', '.join(times)}: pairs are files as a whole")
    rows = {table.place(row): [text_of(row.cells.get(column)) for column in columns] for row in all_rows}
    if empty := [place for place, cells in rows.items() if not all(cells)]:
        raise InputError(f"{empty[0]}: a row without a pair: fill both columns")
    if not rows:
        raise InputError(f"{name}: a list without rows: write the names of sound files into it")
    folder = path.parent.absolute()
    sides = ([Item(str(folder / at_home(cells[side]))) for cells in rows.values()] for side in (0, 1))
    generated, reference = (
        Sounds(f"{name} ({column})", items, tuple(rows)) for column, items in zip(columns, sides, strict=True)
    )
    return generated, reference


def embedded(
    sounds: Sounds, job: JudgeJob, keys: Sequence[Key], settings: Settings, *, is_reference: bool
) -> Judged:
    """A set after its job, which goes on where a killed one stopped.

    The embeddings of a reference stay in the cache, under a hash of the job and its items.
    """
    name, items, ids = sounds
    digest = hashlib.sha256(f"{job.hash} {items_hash(items)}".encode()).hexdigest()[:16]
    stays = cache_folder() / "judge" / digest if is_reference else settings.embeddings
    turn = _turn(stays, settings.on_note) if is_reference and stays else nullcontext()
    with turn, tempfile.TemporaryDirectory() as temporary:
        out = str(stays or temporary)
        summary = run(
            items, job, out, device=settings.device, on_progress=settings.on_progress, engine=settings.engine
        )
        for note in (*summary.notes, *summary.failed):
            settings.on_note(note)
        shards = map(shard_name, range(job.sized(len(items)).num_shards(len(items))))
        reading = read(read_tables(out, shards), job, keys)
    if len(reading.failed) == len(items):
        raise InputError(f"{name}: none of {len(items)} files can be read ({reading.failed[0]})")
    files = tuple(item.file for item in items)
    return Judged(
        name, ids, reading.tables, files, reading.remarks, reading.durations_s, reading.failed,
        model_sha256=job.model_sha256,
    )  # fmt: skip


@contextmanager
def _turn(folder: Path, on_note: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other judgement embeds the same reference into the cache."""
    from filelock import FileLock, Timeout

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        on_note("waiting for another process that embeds the same reference")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


class Pairs(NamedTuple):
    """Rows of both sets that belong together, and how many clips have no partner."""

    generated: np.ndarray
    reference: np.ndarray
    lone_generated: int
    lone_reference: int


def pairs_of(sets: tuple[Judged, Judged], rows: tuple[Rows, Rows]) -> Pairs:
    """Pairs by id, windows by their order; a single clip pairs with a single one, whatever their names.

    InputError: an id stands twice in a set, or no id stands in both.
    """
    ids = [each.ids for each in sets]
    if all(len(names) == 1 for names in ids):
        ids[1] = ids[0]
    for each, names in zip(sets, ids, strict=True):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise InputError(
                f"{each.name}: {len(twice)} names stand twice ({twice[0]} is one), so pairs are not clear: "
                "give one list with the columns generated and reference"
            )
    generated, reference = (_by_name(names, each.clips) for names, each in zip(ids, rows, strict=True))
    shared = [name for name in generated if name in reference]
    if not shared:
        firsts = " and ".join(names[0] if names else "none" for names in ids)
        raise InputError(
            f"no clip of {sets[0].name} has the name of one of {sets[1].name} (the first: {firsts}): "
            "pairs share a name but for its ending, or stand in one list (columns generated, reference)"
        )
    names_of = [{name for name, _ in each} for each in (generated, reference)]
    places = [np.array([each[name] for name in shared]) for each in (generated, reference)]
    return Pairs(places[0], places[1], len(names_of[0] - names_of[1]), len(names_of[1] - names_of[0]))


def _by_name(names: Sequence[str], clips: np.ndarray) -> dict[tuple[str, int], int]:
    """Row by the clip's name and the number of the window in it."""
    counts: Counter[int] = Counter()
    rows = {}
    for row, clip in enumerate(clips.tolist()):
        rows[names[clip], counts[clip]] = row
        counts[clip] += 1
    return rows

"""Changed files of a finished job: which items are computed again, and how their rows are replaced."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from patchout.data.items import Item
from patchout.data.job_folder import Folder
from patchout.files import file_state
from patchout.inference.bulk import folder
from patchout.inference.bulk.ahead import decode_ahead, open_stream

RATE = 32_000  # Hz at which failed items are tried
AHEAD_ITEMS = 8  # of them that are decoded at a time
GROUP_BYTES = 2**24  # of a row group in a merged shard


class Stale(NamedTuple):
    """The items of a finished job that are computed again, and how many are in which state."""

    places: dict[int, list[int]]  # shard -> its items to compute again, counted from 0
    damaged: set[int]  # shards that cannot be read as rows of their items: computed whole
    counts: Counter[
        str
    ]  # items: same, changed, gone, unknown (no state is stored), failed, retried (read now)

    @property
    def notes(self) -> list[str]:
        """The states that a user should know of, a sentence each."""
        earlier = "read by an earlier version, which kept neither their size nor their time"
        todo = "(whether they have changed since cannot be seen; a new --out reads them anew)"
        sentences = {
            "changed": "files that have changed since they were read, now read anew",
            "retried": "files that had failed and can be read now",
            "gone": "files that are not there any more, whose rows are kept",
            "unknown": f"files {earlier} {todo}",
        }
        return [f"{text}: {self.counts[kind]}" for kind, text in sentences.items() if self.counts[kind]]


def find_stale(shards: Iterable[tuple[int, Sequence[Item], Iterable[pa.Table]]]) -> Stale:
    """Compare each shard's rows (at least STATES) with its items' files, and decode again what had failed.

    A file is changed when its size or time of modification is another.
    """
    places, damaged, counts = defaultdict[int, list[int]](list), set[int](), Counter[str]()
    failed: list[tuple[int, int, Item, str]] = []  # shard, place, item, reason
    for shard, items, tables in shards:
        try:
            records = [*_records(tables)]
        except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:
            if getattr(error, "errno", None) is not None:
                raise  # of the disk; those of a damaged file have no number
            records = []
        if len(records) != len(items):
            damaged.add(shard)
            continue
        for place, (item, record) in enumerate(zip(items, records, strict=True)):
            state = _compared(record, item)
            counts[state] += 1
            if record.reason is not None:
                failed.append((shard, place, item, record.reason))
            elif state == "changed":
                places[shard].append(place)
    for shard, place, is_readable in _changed_reasons(failed):
        places[shard].append(place)
        counts["retried"] += is_readable
    return Stale({shard: sorted(numbers) for shard, numbers in places.items()}, damaged, counts)


class _Record(NamedTuple):
    """The stored state of one item."""

    reason: str | None  # why it failed
    size_bytes: int | None
    modified_s: float | None


def _compared(record: _Record, item: Item) -> str:
    """An item's state: its file as stored against its file as it is."""
    if record.reason is not None:
        return "failed"
    if record.size_bytes is None:
        return "unknown"
    now = file_state(item.file)
    if now.size_bytes is None:
        return "gone"
    return "same" if now == (record.size_bytes, record.modified_s) else "changed"


def _changed_reasons(failed: Sequence[tuple[int, int, Item, str]]) -> Iterator[tuple[int, int, bool]]:
    """Shard and place of each failed item that does not fail as before, and whether it can be read."""
    if not failed:
        return
    items = (item for _, _, item, _ in failed)
    opener = partial(open_stream, rate=RATE, channel="mean")
    with ThreadPoolExecutor() as pool, closing(decode_ahead(items, opener, pool, AHEAD_ITEMS)) as sounds:
        for (shard, place, _, reason), sound in zip(failed, sounds, strict=True):
            if folder.storable(sound.error) != reason:
                yield shard, place, sound.error is None


def _records(tables: Iterable[pa.Table]) -> Iterator[_Record]:
    """The stored state of every item."""
    record, last = None, -1
    for numbers, table in folder.numbered(tables):
        is_first = np.diff(numbers, prepend=last) > 0
        is_failed = table["duration_s"].is_null().to_numpy()
        chosen = np.flatnonzero(is_first | is_failed)
        names = [name for name in ("error", "size_bytes", "modified_s") if name in table.column_names]
        rows = table.select(names).take(pa.array(chosen)).to_pylist()
        for row, begins, fails in zip(rows, is_first[chosen], is_failed[chosen], strict=True):
            if begins and record:
                yield record
            state = row.get("size_bytes"), row.get("modified_s")
            record = _Record((row["error"] or "") if fails else None, *state)
        last = numbers[-1]
    if record:
        yield record


def update_name(shard: int) -> str:
    """File of a shard's new rows before they are merged; its point hides it from readers."""
    return f".{folder.shard_name(shard).removesuffix('.parquet')}.again.parquet"


def merge(out: str, shard: int, places: Sequence[int], schema: pa.Schema) -> None:
    """Replace the rows of a shard's items at `places` by those of `update_name(shard)`.

    The shard is written aside and renamed: there are the old rows or the new ones, never none.
    """
    replaced = frozenset(places)
    names = folder.shard_name(shard), update_name(shard)
    before, update = (folder.by_items(folder.read_tables(out, [name])) for name in names)
    old = ((item, table) for item, table in before if item not in replaced)
    new = ((places[item], table) for item, table in update)
    rows = (folder.conform(table, schema) for _, table in heapq.merge(old, new, key=itemgetter(0)))
    with folder.table_writer(out, names[0], schema) as writer:
        for table in folder.gathered(rows, GROUP_BYTES):
            writer.write_table(table)
    Folder(out).remove(names[1])

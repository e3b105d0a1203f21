"""A finished job against its files as they are now: what is embedded again, and new rows among old ones."""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from patchout.data.items import Item
from patchout.files import file_state
from patchout.inference.bulk.ahead import decode_ahead
from patchout.inference.bulk.folder import (
    by_items,
    conform,
    gathered,
    numbered,
    read_tables,
    shard_name,
    storable,
    table_writer,
)
from patchout.job_folder import Folder

RATE = 32_000  # Hz at which failed items are tried
AHEAD_ITEMS = 8  # of them that are decoded at a time
GROUP_BYTES = 2**24  # of a row group in a merged shard


class Stale(NamedTuple):
    """What of a finished job does not hold any more."""

    places: dict[int, list[int]]  # shard -> its items to embed again, counted from 0
    damaged: set[int]  # shards that cannot be read as rows of their items: embedded whole
    counts: Counter[
        str
    ]  # items: same, changed, gone, unknown (no state is stored), failed, retried (read now)

    @property
    def notes(self) -> list[str]:
        """What a user should hear, a sentence each."""
        sentences = {
            "changed": "files that have changed since they were embedded, now embedded anew",
            "retried": "files that had failed and can be read now, embedded",
            "gone": "files that are not there any more, whose embeddings are kept",
            "unknown": "files embedded by an earlier version, which kept neither their size nor their time "
            "(whether they have changed since cannot be seen; a new --out embeds them anew)",
        }
        return [f"{text}: {self.counts[kind]}" for kind, text in sentences.items() if self.counts[kind]]


def find(shards: Iterable[tuple[int, Sequence[Item], Iterable[pa.Table]]]) -> Stale:
    """Compare each shard's rows (at least STATES) with its items' files, and decode again what had failed.

    A file is changed when its size or time of modification is another. What fails as before stays as it is.
    """
    places, damaged, counts = defaultdict[int, list[int]](list), set[int](), Counter[str]()
    failed: list[tuple[int, int, Item, str]] = []  # shard, place, item, reason
    for shard, items, tables in shards:
        try:
            records = [*_records(tables)]
        except pa.ArrowException:
            records = []
        if len(records) != len(items):
            damaged.add(shard)
            continue
        for place, (item, record) in enumerate(zip(items, records, strict=True)):
            if record.reason is not None:
                failed.append((shard, place, item, record.reason))
                counts["failed"] += 1
                continue
            kind = _compared(record, item)
            counts[kind] += 1
            if kind == "changed":
                places[shard].append(place)
    for shard, place, is_readable in _changed_reasons(failed):
        places[shard].append(place)
        counts["retried"] += is_readable
    return Stale({shard: sorted(those) for shard, those in places.items()}, damaged, counts)


class _Record(NamedTuple):
    """What the rows of one item say."""

    reason: str | None  # why it failed
    size_bytes: int | None
    modified_s: float | None


def _compared(record: _Record, item: Item) -> str:
    """Whether an embedded item's file is the same."""
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
    with ThreadPoolExecutor() as pool, closing(decode_ahead(items, RATE, pool, AHEAD_ITEMS)) as sounds:
        for (shard, place, _, reason), sound in zip(failed, sounds, strict=True):
            if storable(sound.error) != reason:
                yield shard, place, sound.error is None


def _records(tables: Iterable[pa.Table]) -> Iterator[_Record]:
    """One for each item."""
    record, last = None, -1
    for numbers, table in numbered(tables):
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


# -- new rows among old ones ------------------------------------------------------------------------------------------


def again_name(shard: int) -> str:
    """File of the new rows of a shard, before they are merged; its point hides it from readers."""
    return f".{shard_name(shard).removesuffix('.parquet')}.again.parquet"


def merge(out: str, shard: int, places: Sequence[int], schema: pa.Schema) -> None:
    """Put the rows of `again_name(shard)`, those of the items at `places`, in the place of their old rows.

    The shard is written aside and renamed: there are the old rows or the new ones, never none.
    """
    replaced = frozenset(places)
    before, again = (by_items(read_tables(out, [name])) for name in (shard_name(shard), again_name(shard)))
    old = ((item, table) for item, table in before if item not in replaced)
    new = ((places[item], table) for item, table in again)
    rows = (conform(table, schema) for _, table in heapq.merge(old, new, key=itemgetter(0)))
    with table_writer(out, shard_name(shard), schema) as writer:
        for table in gathered(rows, GROUP_BYTES):
            writer.write_table(table)
    Folder(out).remove(again_name(shard))

"""Collapsed embeddings: different sounds with one embedding, or a value that is the same for all of them."""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, UInt64

from patchout.audio.stream import Channel
from patchout.data.items import Item
from patchout.inference.bulk.ahead import open_stream
from patchout.inference.bulk.folder import embeddings, numbered

LEAST_SOUNDS = 8  # with embeddings of their own, before a value that never moves says anything
STILL = 1e-5  # of a value's magnitude: rounding moves it that far
RATE = 32_000  # Hz at which sounds are compared
SIDES: tuple[Channel, ...] = ("left", "right")  # a model may hear one alone
MOST_PAIRS = 20  # of sounds that are compared


def alarms(tables: Iterable[pa.Table], items: Sequence[Item]) -> list[str]:
    """What looks wrong with the embeddings of a finished job, a sentence each; memory holds a number an item.

    Two embeddings are the same if they are so in half precision; of timestamps all of a sound's. Copies of one
    sound may share theirs, and so may silence.
    """
    digests, present = np.zeros(len(items), np.uint64), np.zeros(len(items), bool)
    low, high = np.full(1, np.inf, np.float32), np.full(1, -np.inf, np.float32)
    for numbers, table in numbered(tables):
        is_valid = table["embedding"].is_valid().to_numpy()
        owners = numbers[is_valid]
        if not len(owners) or owners[-1] >= len(items):
            continue
        values = embeddings(table)[is_valid]
        low, high = np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
        row_digests = _digests(values)
        if "time_ms" in table.column_names:
            row_digests *= 2 * table["time_ms"].to_numpy()[is_valid].round().astype(np.uint64) + np.uint64(1)
        np.add.at(digests, owners, row_digests)
        present[owners] = True
    is_enough = len(np.unique(digests[present])) >= LEAST_SOUNDS
    return [*_shared(digests, present, items), *(_still(low, high) if is_enough else ())]


def _digests(values: Float[np.ndarray, "row value"]) -> UInt64[np.ndarray, "row"]:
    """A number that, almost surely, only equal rows share: a random sum of the values in half precision."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16).view(np.uint16).astype(np.uint64)
    factors = np.random.default_rng(0).integers(0, 2**64, values.shape[1], np.uint64)
    return halves @ factors


def _shared(
    digests: UInt64[np.ndarray, "item"], present: Bool[np.ndarray, "item"], items: Sequence[Item]
) -> list[str]:
    """That different sounds share an embedding, with two of them."""
    place = np.flatnonzero(present)
    order = place[np.argsort(digests[place], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(digests[order])) + 1) if len(order) else []
    shared = sorted((group for group in groups if len(group) > 1), key=len, reverse=True)
    pairs = ((items[group[0]], items[other]) for group in shared for other in group[1:4])
    for first, second in islice((pair for pair in pairs if pair[0] != pair[1]), MOST_PAIRS):
        if all(_sound_digest(first, side) != _sound_digest(second, side) for side in SIDES):
            count = sum(map(len, shared))
            return [
                f"{count} of {len(place)} files share their embedding with others, also different sounds "
                f"({_told(first)} and {_told(second)}): look at the model and at these sounds"
            ]
    return []


def _told(item: Item) -> str:
    return f"{item.file} from {item.start_s:g} s" if item.start_s else item.file


def _sound_digest(item: Item, side: Channel) -> bytes:
    """Of what is heard, equal for copies in any lossless format; empty for silence and what cannot be read."""
    digest, is_silent = hashlib.blake2b(digest_size=16), True
    try:
        for block in open_stream(item, RATE, channel=side):
            digest.update(block.data)
            is_silent = is_silent and not block.any()
    except (OSError, ValueError):
        return b""
    return b"" if is_silent else digest.digest()


def _still(low: Float[np.ndarray, "value"], high: Float[np.ndarray, "value"]) -> list[str]:
    """That values do not move, with the first of them."""
    still = np.flatnonzero(high - low <= STILL * np.maximum(np.abs(low), np.abs(high)))
    if not len(still):
        return []
    which = f"value {still[0]} is {low[still[0]]:.3g} in every row"
    return [f"{len(still)} of {len(low)} values of the embeddings never move ({which}): look at the model"]

"""Detection of collapsed embeddings: one embedding for different sounds, or a value that never varies."""

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

MIN_SOUNDS = 8  # of different embeddings, for a constant value to mean anything
TOLERANCE = 1e-5  # of a constant value, relative: rounding
RATE = 32_000  # Hz at which sounds are compared
SIDES: tuple[Channel, ...] = ("left", "right")  # a model may hear one alone
MAX_PAIRS = 20  # of sounds that are compared


def collapse_warnings(tables: Iterable[pa.Table], items: Sequence[Item]) -> list[str]:
    """Warnings about the embeddings of a finished job, a sentence each; memory holds a number an item.

    They are compared in half precision, the timestamps of a sound together; copies and silence may share
    theirs.
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
    is_enough = len(np.unique(digests[present])) >= MIN_SOUNDS
    return [*_shared(digests, present, items), *(_constant(low, high) if is_enough else ())]


def _digests(values: Float[np.ndarray, "row value"]) -> UInt64[np.ndarray, "row"]:
    """A hash of every row's values in half precision: their sum with random factors, modulo 2^64."""
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16).view(np.uint16).astype(np.uint64)
    factors = np.random.default_rng(0).integers(0, 2**64, values.shape[1], np.uint64)
    return halves @ factors


def _shared(
    digests: UInt64[np.ndarray, "item"], present: Bool[np.ndarray, "item"], items: Sequence[Item]
) -> list[str]:
    """A warning that different sounds share an embedding, with two of them, or none."""
    place = np.flatnonzero(present)
    order = place[np.argsort(digests[place], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(digests[order])) + 1) if len(order) else []
    shared = sorted((group for group in groups if len(group) > 1), key=len, reverse=True)
    pairs = ((items[group[0]], items[other]) for group in shared for other in group[1:4])
    for pair in islice((pair for pair in pairs if pair[0] != pair[1]), MAX_PAIRS):
        if all(_sound_digest(pair[0], side) != _sound_digest(pair[1], side) for side in SIDES):
            count = f"{sum(map(len, shared))} of {len(place)} files"
            names = [f"{item.file} from {item.start_s:g} s" if item.start_s else item.file for item in pair]
            example = f"share their embedding with others, also different sounds ({' and '.join(names)})"
            return [f"{count} {example}: look at the model and at these sounds"]
    return []


def _sound_digest(item: Item, side: Channel) -> bytes:
    """A hash of the samples, equal for lossless copies; empty for silence and unreadable files."""
    digest, is_silent = hashlib.blake2b(digest_size=16), True
    try:
        for block in open_stream(item, RATE, channel=side):
            digest.update(block.data)
            is_silent = is_silent and not block.any()
    except (OSError, ValueError):
        return b""
    return b"" if is_silent else digest.digest()


def _constant(low: Float[np.ndarray, "value"], high: Float[np.ndarray, "value"]) -> list[str]:
    """A warning about values that are the same in every row, with the first of them, or none."""
    places = np.flatnonzero(high - low <= TOLERANCE * np.maximum(np.abs(low), np.abs(high)))
    if not len(places):
        return []
    example = f"value {places[0]} is {low[places[0]]:.3g} in every row"
    return [f"{len(places)} of {len(low)} values of the embeddings never move ({example}): look at the model"]

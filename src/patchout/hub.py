"""Sets of the Hugging Face hub, as they lie in its cache: `datasets` would decode their sounds, and is not asked to."""

from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from patchout.clips import OWN_COLUMNS, ClipSet, DataError, Packed, by_name, rows_of, task_of

HUB = "hf:"
ID_COLUMNS = ("id", "filename", "file", "path")
LABEL_COLUMNS = ("category", "label", "labels")


def load(source: str) -> ClipSet:
    """The clips of "hf://owner/name[:split]", downloaded if need be; without a split all of them, which are the folds.

    Labels are a column of classes, else names in a column category, label or labels. Raises DataError.
    """
    import datasets

    name, _, split = source.removeprefix(HUB).strip("/").partition(":")
    try:
        parts = datasets.load_dataset(name)
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: cannot be loaded from the hub ({error})") from None
    if split and split not in parts:
        raise DataError(f"{source}: no split {split}: it has {', '.join(parts)}")
    kinds = {key: getattr(kind, "feature", kind) for key, kind in next(iter(parts.values())).features.items()}
    sound = next((key for key, kind in kinds.items() if isinstance(kind, datasets.Audio)), "audio")
    classed = [key for key, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
    label = next((key for key in (*classed, *LABEL_COLUMNS) if key in kinds), "")
    if sound not in kinds or not label:
        wanted = f"a column of sounds, and one of classes or called {', '.join(LABEL_COLUMNS)}"
        raise DataError(f"{source}: needs {wanted}, its columns are {', '.join(kinds)}")
    files = {part: [file["filename"] for file in parts[part].cache_files] for part in ([split] if split else parts)}
    every = tuple(chain.from_iterable(files.values()))
    folds = np.repeat(list(files), [len(parts[part]) for part in files])
    table = _columns(rows_of(every), label, folds, pa.int32() if classed else pa.string())
    labelled = table.filter(pc.is_valid(table["labels"])).combine_chunks()
    problems = (f"{len(table) - len(labelled)} clips have no label",) if len(labelled) < len(table) else ()
    clips = ClipSet(Path(name), (), "multi_class", labelled, packed=Packed(every, sound), problems=problems)
    if not classed:
        return by_name(clips)
    return replace(clips, classes=tuple(kinds[label].names), task=task_of(labelled["labels"].combine_chunks()))


def _columns(rows: pa.Table, label: str, folds: np.ndarray, kind: pa.DataType) -> pa.Table:
    """The columns of a ClipSet; of a set with one split alone, a column fold goes before it."""
    simple = [
        field.name for field in rows.schema if pa.types.is_primitive(field.type) or pa.types.is_string(field.type)
    ]
    kept = {name: rows[name] for name in simple if name not in (label, *OWN_COLUMNS)}
    ids = next((name for name in ID_COLUMNS if name in simple), "row")
    own_folds = "fold" in simple and len(set(folds.tolist())) == 1
    labels = rows[label].combine_chunks()
    if not pa.types.is_list(labels.type):
        unknown = pc.equal(labels, -1) if pa.types.is_integer(kind) else pc.is_null(labels)
        single = pa.ListArray.from_arrays(pa.array(np.arange(len(rows) + 1, dtype=np.int32)), labels)
        labels = pc.if_else(pc.fill_null(unknown, True), None, single)
    return pa.table(
        {
            **kept,
            "id": rows[ids].cast(pa.string()),
            "labels": labels.cast(pa.list_(kind)),
            "fold": rows["fold"].cast(pa.string()) if own_folds else pa.array(folds),
            "row": rows["row"],
        }
    )

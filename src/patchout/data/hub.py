"""Data sets of the Hugging Face hub, read undecoded from the Arrow files in the cache of `datasets`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from patchout.data.clips import ClipSet, DataError, class_indices
from patchout.data.columns import COLUMNS, Columns, LabelSplitter, clip_row, columns_of, in_columns, is_small
from patchout.data.folders import composed
from patchout.data.packed import Packed, mapped_rows

if TYPE_CHECKING:
    from datasets import DatasetBuilder, DatasetDict, Features

HUB = "hf:"
ID_COLUMNS = ("id", "filename", "file", "path")
SOUND_FILES = "audiofolder"  # what `datasets` calls a set of sound files with a list beside them


def name_of(source: str) -> tuple[str, str]:
    """Name and split of "hf://owner/name[:split]"."""
    name, _, split = source.removeprefix(HUB).strip("/").partition(":")
    return name, split


def folder_of(source: str) -> Path | None:
    """The folder of a set of sound files and lists, downloaded if need be; None for other sets."""
    from huggingface_hub import snapshot_download

    name, _ = name_of(source)
    if _builder(source).name != SOUND_FILES:
        return None
    return Path(name) if Path(name).is_dir() else Path(snapshot_download(name, repo_type="dataset"))


def load(source: str, classes: Sequence[str] = ()) -> ClipSet:
    """The clips of "hf://owner/name[:split]", downloaded if need be; without a split all, splits as folds.

    Labels are a column category, label or labels, else the only column of classes; text is not split within
    `classes`. Raises DataError.
    """
    (name, split), parts = name_of(source), _parts(source)
    if split and split not in parts:
        raise DataError(f"{source}: no split {split}: it has {', '.join(parts)}")
    sound, columns, names = _columns(source, next(iter(parts.values())).features)
    chosen = [split] if split else [*parts]
    files = tuple(file["filename"] for part in chosen for file in parts[part].cache_files)
    folds = [part for part in chosen for _ in range(len(parts[part]))]
    table = mapped_rows(files)
    if len(chosen) == 1 and columns.used.keys() & {"split", "fold"}:
        folds = [""] * len(table)  # the rows say it
    label, problems = columns.used["label"], list[str]()
    is_text = pa.types.is_string(table.schema.field(label).type)
    texts = pc.unique(table[label].drop_null()).to_pylist() if is_text else ()
    ids = _ids(table, folds, has_segments="start" in columns.used)
    rows = _rows(table, columns, LabelSplitter.of(label, texts, classes), names, problems)
    clips = in_columns(
        row | {"id": ids[row["row"]], "fold": folds[row["row"]] or row["fold"]} for row in rows
    )
    if not len(clips):
        raise DataError(f"{source}: no clips ({problems[0] if problems else 'it is empty'})")
    clip_set = ClipSet(
        Path(name), (), "multi_class", clips, packed=Packed(files, sound), columns=columns.used
    )
    return class_indices(replace(clip_set, problems=tuple(problems), notes=columns.notes), names)


def _builder(source: str) -> "DatasetBuilder":
    """What `datasets` knows of the set before it is downloaded."""
    import datasets

    try:
        return datasets.load_dataset_builder(name_of(source)[0])
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{source}: cannot be loaded from the hub ({error})") from None


def _parts(source: str) -> "DatasetDict":
    """The splits, downloaded and written to the cache."""
    import datasets

    builder = _builder(source)
    try:
        builder.download_and_prepare()
        return builder.as_dataset()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{source}: cannot be loaded from the hub ({error.__cause__ or error})") from None


def _columns(source: str, features: "Features") -> tuple[str, Columns, list[str]]:
    """The column of sounds, the others by their meaning, and the names of the classes if the set has them."""
    import datasets

    kinds = {key: getattr(kind, "feature", kind) for key, kind in features.items()}
    sound = next((key for key, kind in kinds.items() if isinstance(kind, datasets.Audio)), "audio")
    columns = columns_of([key for key in kinds if key != sound])
    classed = [key for key, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)]
    label = columns.used.get("label") or (classed[0] if len(classed) == 1 else "")
    if sound not in kinds or not label:
        needed = (
            f"a column of sounds, and one called {', '.join(COLUMNS['label'])} or a single one of classes"
        )
        several = f"{len(classed)} of classes: {', '.join(classed)}: rename one of them to label"
        header = f"{', '.join(kinds)}{f' ({several})' if classed else ''}"
        raise DataError(f"{source}: needs {needed}, its columns are {header}")
    more = {name: column for name, column in columns.more.items() if column != label}
    classes = [composed(name.strip()) for name in kinds[label].names] if label in classed else []
    return sound, replace(columns, used=columns.used | {"label": label}, more=more), classes


def _rows(
    table: pa.Table, columns: Columns, splitter: LabelSplitter, names: Sequence[str], problems: list[str]
) -> Iterator[dict[str, Any]]:
    """The clips without their ids; unusable rows go to `problems`, those without a label by their number."""
    small, label, unlabelled = [f.name for f in table.schema if is_small(f.type)], columns.used["label"], 0
    chunks = table.select(list(dict.fromkeys(small))).to_batches(max_chunksize=4096)
    for row, cells in enumerate(chain.from_iterable(chunk.to_pylist() for chunk in chunks)):
        if names:
            indices = cells[label] if isinstance(cells[label], list) else [cells[label]]
            cells[label] = [names[index] for index in indices if index is not None and index >= 0]
        if not splitter(cells[label]):
            unlabelled += 1
            continue
        try:
            yield clip_row("its sound", cells, columns, splitter) | {"row": row}
        except ValueError as error:
            problems.append(f"row {row + 1}: {error}")
    if unlabelled:
        problems.append(f"{unlabelled} clips have no label")


def _ids(table: pa.Table, folds: Sequence[str], *, has_segments: bool) -> list[str]:
    """The rows' ids: a column, with the split in front where the splits number their clips anew."""
    small = {field.name for field in table.schema if is_small(field.type)}
    column = next(filter(small.__contains__, ID_COLUMNS), "row")
    ids = table[column].cast(pa.string()).to_pylist()
    is_unique = has_segments or len(set(ids)) == len(ids)
    return ids if is_unique else [f"{fold}/{id}" for fold, id in zip(folds, ids, strict=True)]

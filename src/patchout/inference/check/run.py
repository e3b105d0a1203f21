"""The check of a data set: what its lists say, then every sound, decoded and embedded once."""

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from patchout.checkpoint.zoo import load
from patchout.data.clips import ClipSet, DataError
from patchout.data.sets import scan, scan_sounds
from patchout.inference.bulk.folder import read_tables, shard_name
from patchout.inference.bulk.run import run
from patchout.inference.check import classes, neighbours, sounds
from patchout.inference.check.findings import Finding, in_order
from patchout.inference.embedding import mid_level


class Check(NamedTuple):
    """A data set, its findings, the worst first, what could not be looked at, and mean log-mels."""

    clips: ClipSet
    findings: list[Finding]
    notes: list[str]
    spectra: Float[np.ndarray, "clip mel"]


def check(
    data: str,
    *,
    model: str,
    pattern: str = "",
    device: str = "auto",
    out: Path | None = None,
    on_progress: Callable[[int, float], None] = lambda clips, seconds: None,
) -> Check:
    """Check the data set `data` with the embeddings of a model, which stay in `out` for a job that goes on.

    `pattern` is that of `recordings.by_name`. Sounds without labels have no findings on them.
    DataError: there are no sounds.
    """
    clips, notes = _scanned(data)
    findings = classes.findings(clips, pattern=pattern)
    config = load(model, "cpu").config
    embedding = replace(mid_level(config), scene_levels=("low", "mid"))
    items = sounds.items_of(clips)
    rows = dict(zip(items, clips.table["row"].to_pylist(), strict=True)) if clips.packed else {}
    job = sounds.CheckJob(model=model, config=embedding, packed=clips.packed, packed_rows=rows).sized(
        len(items)
    )
    with nullcontext(str(out)) if out else tempfile.TemporaryDirectory() as folder:
        summary = run(items, job, folder, device=device, on_progress=on_progress)
        names = map(shard_name, range(job.num_shards(len(items))))
        heard = sounds.read(read_tables(folder, names), items)
    notes += () if clips.packed else summary.notes
    labels, groups = classes.label_texts(clips), classes.recordings_of(clips, pattern)
    compared = neighbours.Clips(np.arange(len(clips)), items, labels, clips.column("fold"), groups)
    opened = partial(job.open, config=config)
    findings += heard.findings
    findings += neighbours.findings(compared, heard, opened, config.mel, notes.append)
    return Check(clips, in_order(findings), notes, heard.values[:, : config.mel.n_mels])


def _scanned(data: str) -> tuple[ClipSet, list[str]]:
    """The clips with their labels, or the sounds alone and why."""
    try:
        clips = scan(data)
    except DataError as error:
        clips = scan_sounds(data)  # raises where there are no sounds either
        return clips, [f"{error}: checked without labels"]
    return clips, [*clips.notes]

"""The sounds of a data set, decoded and embedded once by the engine of bulk jobs -> their faults."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float

from patchout.audio.levels import SILENT_PEAK, Levels, Meter, odd_rates
from patchout.audio.pcm import CANCEL
from patchout.audio.remarks import Remark, RemarkedStream
from patchout.audio.stream import Stream
from patchout.data.clips import ClipSet
from patchout.data.items import Item
from patchout.data.packed import Packed
from patchout.files import states_sha256
from patchout.inference.bulk.embed import EmbedJob
from patchout.inference.bulk.folder import embeddings, numbered
from patchout.inference.check.findings import Finding
from patchout.models.tagger import TaggerConfig

CLIPPED = 5e-4  # share of the samples
OFFSET = 0.005  # of full scale
CANCELLED = 0.05  # of the channels' power that their mean keeps
DROP_DB = 30.0  # at an edge above which nothing is
RATES = (8000, 11025, 12000, 16000, 22050, 24000)  # Hz, from which sounds are brought to higher ones
LOWEST_HZ = 3200.0  # of an edge: telephones have 3400, and tones end where they like
LOW_PASS_HZ = 13_000.0  # from here on an edge may be that of a lossy codec
AUDIBLE = 0.92  # of the Nyquist frequency: an edge above it is that of any converter
LOSSY = (".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma", ".mp4", ".webm")
SLACK_S = 0.1  # that a segment may end behind its file


@dataclass(frozen=True, kw_only=True)
class CheckJob(EmbedJob):
    """A bulk job whose scenes come with a `Remark` and levels; it opens the sounds of a packed set too."""

    packed: Packed | None = None
    packed_rows: Mapping[Item, int] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """Those of the embeddings, that levels are with them, and the states of a packed set's shards."""
        settings = EmbedJob.settings(replace(self, packed=None, packed_rows={}))
        settings |= {"shards_sha256": states_sha256(self.packed.files)} if self.packed else {}
        return settings | {"levels": len(Levels._fields)}

    def open(self, item: Item, config: TaggerConfig) -> Stream:
        """The sound of an item with its levels."""
        source = self.packed.source(self.packed_rows[item], item.file) if self.packed else item.file
        rate, channel = config.mel.sample_rate, config.channel
        stream = RemarkedStream(source, rate, start_s=item.start_s, end_s=item.end_s, channel=channel)
        stream.meter = Meter()
        return stream


def items_of(clips: ClipSet) -> list[Item]:
    """An item a clip."""
    columns = clips.table.column_names
    spans = (
        clips.table[name].to_pylist() if name in columns else [None] * len(clips)
        for name in ("start_s", "end_s")
    )
    return [
        Item(name, start_s or 0.0, end_s) for name, start_s, end_s in zip(clips.names(), *spans, strict=True)
    ]


def span_of(item: Item) -> tuple[float | None, float | None]:
    """Start and end of a segment in seconds, nothing of a whole file."""
    return (item.start_s, item.end_s) if item.start_s or item.end_s is not None else (None, None)


class Sounds(NamedTuple):
    """What is known of every clip after its job."""

    values: Float[np.ndarray, "clip value"]  # NaN where it cannot be read
    digests: np.ndarray  # of its samples; "" where it is silent or cannot be read
    rates: np.ndarray  # Hz; 0 where it cannot be read
    findings: list[Finding]

    @property
    def is_heard(self) -> Bool[np.ndarray, "clip"]:
        """Whether a clip can be read and is not silent."""
        return self.digests != ""


def read(tables: Iterable[pa.Table], items: list[Item]) -> Sounds:
    """The embeddings and faults of a finished job."""
    values = np.zeros((0, 0), np.float32)
    digests, rates = np.full(len(items), "", "U16"), np.zeros(len(items), np.int64)
    findings: list[Finding] = []
    for numbers, table in numbered(tables):
        if not len(values):
            values = np.full((len(items), table["embedding"].type.list_size), np.nan, np.float32)
        values[numbers] = embeddings(table)
        states = table.select(["duration_s", "error"]).to_pylist()
        for clip, state in zip(numbers.tolist(), states, strict=True):
            item = items[clip]
            start_s, end_s = span_of(item)
            if state["duration_s"] is None:
                reason = state["error"].removeprefix(f"{item.file}: ")
                findings.append(Finding("unreadable", item.file, reason, start_s, end_s, clip))
                continue
            remark = Remark.read(state["error"])
            rates[clip] = remark.rate
            faults = dict(_faults(remark, item, state["duration_s"]))
            digests[clip] = "" if remark.is_silent or "silent" in faults else remark.digest
            findings += (
                Finding(kind, item.file, detail, start_s, end_s, clip) for kind, detail in faults.items()
            )
    return Sounds(values, digests, rates, [*findings, *_of_rates(rates, items)])


def _faults(remark: Remark, item: Item, duration_s: float) -> Iterator[tuple[str, str]]:
    """Kind and detail of what is wrong with one sound."""
    levels, warning = remark.levels, remark.warning.removeprefix(f"{item.file}: ")
    if "cut short" in warning:
        yield "cut short", warning
    elif item.end_s is not None and duration_s < item.end_s - item.start_s - SLACK_S:
        yield (
            "cut short",
            f"the list ends it at {item.end_s:g} s, the file at {item.start_s + duration_s:.2f} s",
        )
    elif warning and CANCEL not in warning:
        yield "damaged", warning
    if levels.cancelled < CANCELLED:
        yield "cancelling channels", f"their mean keeps {levels.cancelled:.1%} of their power"
    elif remark.is_silent or levels.peak < SILENT_PEAK:
        yield "silent", f"its peak is {levels.peak:.0e} of full scale"
        return
    if levels.clipped >= CLIPPED:
        yield (
            "clipped",
            f"{levels.clipped:.2%} of the samples are cut, the peak is {levels.peak:.2f} of full scale",
        )
    if levels.offset >= OFFSET:
        yield "offset", f"the mean is {levels.offset:.3f} of full scale"
    if levels.drop_db >= DROP_DB:
        yield from _of_edge(levels.edge_hz, remark.rate, PurePath(item.file).suffix.lower() in LOSSY)


def _of_edge(edge_hz: float, rate: int, is_lossy: bool) -> Iterator[tuple[str, str]]:
    """An old Nyquist frequency; above LOW_PASS_HZ the low-pass of a codec, which a lossy file has anyway."""
    text = f"nothing above {edge_hz / 1000:.1f} kHz in a file of {rate} Hz"
    if not LOWEST_HZ <= edge_hz < AUDIBLE * rate / 2:
        return
    if edge_hz < LOW_PASS_HZ:
        old = next((old for old in RATES if edge_hz <= 0.51 * old), RATES[-1])
        coded = ", or a low bit rate" if is_lossy else ""
        yield "upsampled", f"{text}: as from {old} Hz{coded}"
    elif not is_lossy:
        yield "low-pass", f"{text}: as from an MP3{' or 32000 Hz' if edge_hz < 16_100 else ''}"


def _of_rates(rates: np.ndarray, items: list[Item]) -> Iterator[Finding]:
    readable = np.flatnonzero(rates)
    if not len(readable):
        return
    odd = {int(readable[place]): remark for place, remark in odd_rates(rates[readable]).items()}
    for clip, remark in odd.items():
        yield Finding("unusual rate", items[clip].file, remark, clip=clip)
    counts = Counter(rates[[clip for clip in readable.tolist() if clip not in odd]].tolist())
    if len(counts) > 1:
        texts = (f"{rate} Hz ({count} clips)" for rate, count in counts.most_common())
        yield Finding("mixed rates", "", ", ".join(texts))

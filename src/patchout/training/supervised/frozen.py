"""Training of the head alone: a frozen encoder embeds every clip once, as `patchout tag` hears it."""

import hashlib
import json
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from patchout.audio.read_ahead import read_ahead
from patchout.audio.stream import AudioError
from patchout.data.batches import Batch, Item, Key, silent
from patchout.data.clips import ClipSet, DataError
from patchout.files import file_state, write_aside
from patchout.inference.embedding import Embedder, mid_level
from patchout.models.device import InferencePrecision
from patchout.models.tagger import Tagger
from patchout.training.step import Place
from patchout.training.supervised.loss import StepLoss

CLIPS = 64  # of one window or less, that are embedded at a time
NOTE = (
    "the encoder is frozen and hears each clip once: "
    "augmentation, mixup and Patchout, which it would have to hear anew, do not apply"
)

Embeddings = Float[Tensor, "clip width"]


class HeadLoss(StepLoss):
    """Cross entropy of a model's head on embeddings; no randomness."""

    def __call__(self, model: nn.Module, batch: Batch, place: Place) -> Tensor:
        """Mean over the clips; those that could not be read have weight 0."""
        assert isinstance(model, Tagger)
        return self.compare(model.classified(batch.wave), batch.target, batch.weight)


@dataclass(eq=False)
class EmbeddedClips(Dataset[Item]):
    """(epoch, index) -> the embedding of a clip, the same in every epoch; of a broken one zeros."""

    clips: ClipSet
    values: Embeddings
    problems: dict[int, str] = field(default_factory=dict)  # clip -> why it cannot be read
    remarks: dict[int, str] = field(default_factory=dict)  # clip -> what is missing or odd in it

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def clip_bytes(self) -> int:
        """Memory of a clip in a batch."""
        return 4 * self.values.shape[1]

    def __getitem__(self, key: Key) -> Item:
        _, index = key
        if index in self.problems:
            return silent(self.values[index], self.clips, index, DataError(self.problems[index]))
        weight = self.clips.known(index) * self.clips.weight(index)
        remarks = (self.remarks[index],) if index in self.remarks else ()
        return Item(self.values[index], self.clips.target(index), weight, index, "", remarks)


class Embedded(NamedTuple):
    """A clip's embedding, zeros with the reason where it cannot be read."""

    clip: int
    value: Float[np.ndarray, "width"]
    problem: str = ""
    remark: str = ""  # what is missing or odd in its sound


def embed_clips(model: Tagger, clips: ClipSet, precision: InferencePrecision, cache: str) -> EmbeddedClips:
    """The clips with their embeddings, those in the folder `cache` ("": none) as they are kept there.

    Clips with a problem or a remark are embedded, and told of, in every run.
    """
    path = Path(cache).expanduser() / f"{encoder_hash(model, precision)}.npz" if cache else None
    rows, names, is_training = _kept(path), _names(clips), model.training
    new = [index for index, name in enumerate(names) if name not in rows]
    table = np.zeros((len(clips), model.config.width), np.float32)
    embedded = EmbeddedClips(clips, torch.from_numpy(table))
    for index in {*range(len(clips))}.difference(new):
        table[index] = rows[names[index]]
    for clip in _embedded(model.eval(), clips, new, precision):
        table[clip.clip] = clip.value
        if clip.problem:
            embedded.problems[clip.clip] = clip.problem
        elif clip.remark:
            embedded.remarks[clip.clip] = clip.remark
        else:
            rows[names[clip.clip]] = clip.value
    model.train(is_training)
    if path and new:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_aside(path) as aside:
            np.savez(aside, names=np.array([*rows]), values=np.array([*rows.values()]))
    return embedded


def encoder_hash(model: Tagger, precision: InferencePrecision) -> str:
    """Sixteen digits that change with the weights below the head, the front end, padding and precision."""
    config = model.config
    parts = {"mel": asdict(config.mel), "pad_s": config.pad_s, "channel": config.channel, "in": precision}
    digest = hashlib.sha256(json.dumps(parts).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("head."):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _kept(path: Path | None) -> dict[str, np.ndarray]:
    if path is None or not path.is_file():
        return {}
    try:
        with path.open("rb") as file, np.load(file) as stored:
            return dict(zip(stored["names"].tolist(), stored["values"], strict=True))
    except (ValueError, OSError, KeyError, EOFError, zipfile.BadZipFile):  # damaged: it is written again
        return {}


def _names(clips: ClipSet) -> list[str]:
    """Of every clip its file, or its shard and id, their size and time, and the segment."""
    files = clips.files_on_disk()
    states = {file: file_state(file) for file in dict.fromkeys(files)}
    columns = [name for name in ("row", "start_s", "end_s") if name in clips.table.column_names]
    rows = clips.table.select(columns).to_pylist()
    return [
        json.dumps([file, name, *states[file], *row.values()])
        for file, name, row in zip(files, clips.names(), rows, strict=True)
    ]


def _embedded(
    model: Tagger, clips: ClipSet, chosen: list[int], precision: InferencePrecision
) -> Iterator[Embedded]:
    """The chosen clips with their embeddings: of a long one the mean over windows, as it is decoded."""
    config = model.config
    rate, embedder = config.mel.sample_rate, Embedder(model, mid_level(config), precision=precision)
    shortest = min(round(config.pad_s * rate), config.max_samples)
    waves, remarks = dict[int, np.ndarray](), dict[int, str]()

    def together() -> Iterator[Embedded]:
        values = embedder.scenes_of_each([*waves.values()]) if waves else []
        for index, value in zip(waves, values, strict=True):
            yield Embedded(index, value, remark=remarks[index])
        waves.clear()

    for index, stream in zip(chosen, read_ahead(clips.stream(index, rate) for index in chosen), strict=True):
        blocks, length, reader = list[np.ndarray](), 0, iter(stream)
        try:
            while length <= embedder.scene_window and (block := next(reader, None)) is not None:
                blocks.append(block)
                length += len(block)
            if length > embedder.scene_window:
                scene = embedder.scene_of(chain(blocks, reader))
                yield Embedded(index, scene, remark=stream.warning or "")
                continue
        except (AudioError, OSError) as error:
            yield Embedded(index, np.zeros(config.width, np.float32), problem=str(error))
            continue
        waves[index] = np.pad(np.concatenate(blocks), (0, max(0, shortest - length)))
        remarks[index] = stream.warning or ""
        if len(waves) == CLIPS:
            yield from together()
    yield from together()

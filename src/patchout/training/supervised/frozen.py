"""Training of the head alone: a frozen encoder embeds every clip once, as `patchout tag` hears it."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

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

CLIPS = 64  # that are decoded and embedded at a time
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
    problems: dict[int, str]  # clip -> why it cannot be read

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
        return Item(self.values[index], self.clips.target(index), weight, index, "")


def embed_clips(model: Tagger, clips: ClipSet, precision: InferencePrecision, cache: str) -> EmbeddedClips:
    """The clips with their embeddings, those in the folder `cache` ("": none) as they are kept there."""
    path = Path(cache).expanduser() / f"{encoder_hash(model)}.npz" if cache else None
    rows, problems = _kept(path), dict[int, str]()
    names = [_name(clips, index) for index in range(len(clips))]
    new, is_training = [index for index, name in enumerate(names) if name not in rows], model.training
    for index, value in _embedded(model.eval(), clips, new, precision):
        if isinstance(value, str):
            problems[index] = value
        else:
            rows[names[index]] = value
    model.train(is_training)
    if path and new:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_aside(path) as aside:
            np.savez(aside, names=np.array([*rows]), values=np.array([*rows.values()]))
    zeros = np.zeros(model.config.width, np.float32)
    table = torch.from_numpy(np.array([rows.get(name, zeros) for name in names], np.float32))
    return EmbeddedClips(clips, table, problems)


def encoder_hash(model: Tagger) -> str:
    """Sixteen digits that change with the weights below the head, the front end and the padding."""
    config = model.config
    parts = {"mel": asdict(config.mel), "pad_s": config.pad_s, "channel": config.channel}
    digest = hashlib.sha256(json.dumps(parts).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith("head."):
            digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _kept(path: Path | None) -> dict[str, np.ndarray]:
    if path is None or not path.is_file():
        return {}
    try:
        with np.load(path) as stored:
            return dict(zip(stored["names"].tolist(), stored["values"], strict=True))
    except (ValueError, OSError, KeyError, EOFError):  # damaged: it is written again
        return {}


def _name(clips: ClipSet, index: int) -> str:
    """The file, its size and time, and the segment."""
    file, row = clips.name(index), clips.table.slice(index, 1).to_pylist()[0]
    return json.dumps([file, *file_state(file), row.get("row"), row.get("start_s"), row.get("end_s")])


def _embedded(
    model: Tagger, clips: ClipSet, chosen: list[int], precision: InferencePrecision
) -> Iterator[tuple[int, np.ndarray | str]]:
    """Clips with their embeddings, or why they cannot be read: of a long one the mean over windows."""
    config = model.config
    rate, places = config.mel.sample_rate, iter(chosen)
    embedder = Embedder(model, mid_level(config), precision=precision)
    shortest = min(round(config.pad_s * rate), config.max_samples)
    while group := list(islice(places, CLIPS)):
        waves: dict[int, np.ndarray] = {}
        streams = read_ahead([clips.stream(index, rate) for index in group])
        for index, stream in zip(group, streams, strict=True):
            try:
                wave = np.concatenate(list(stream))
            except (AudioError, OSError) as error:
                yield index, str(error)
            else:
                waves[index] = np.pad(wave, (0, max(0, shortest - len(wave))))
        if waves:
            yield from zip(waves, embedder.scenes_of_each([*waves.values()]), strict=True)

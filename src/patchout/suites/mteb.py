"""Encoder and model metadata for mteb, whose audio benchmark is MAEB (arXiv 2602.16008)."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch.utils.data import DataLoader, get_worker_info

from patchout.audio.stream import Source, Stream
from patchout.checkpoint.zoo_list import BUILT_IN, MODELS
from patchout.hear.api import HearModel
from patchout.hear.subject import Subject, batch_size, open_subject, scenes
from patchout.inference.embedding import Embedder
from patchout.models.device import pick_device
from patchout.models.tagger import hear

try:
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
    from mteb.types import Licenses
except ModuleNotFoundError as error:
    raise ImportError("mteb is not installed: pip install 'patchout[mteb]' (Python 3.11 or newer)") from error
if TYPE_CHECKING:
    from mteb import TaskMetadata
    from mteb.types import PromptType

AUDIOSET = {"AudioSet", "AudioSetMini"}  # tasks of mteb
DATA_SETS = {"ESC": "ESC50", "FSD50K": "FSD50K"}  # first word of a score in our zoo -> task of mteb


class Encoder(AbsEncoder):
    """An audio encoder as mteb calls it: scene embeddings of one of our models or of any HEAR module.

    The embeddings are those of `patchout.embed`, or of the HEAR module as they are. Sounds are resampled as
    there (soxr); one longer than a pass of the model is embedded over windows, alone. `model`, `preset` and
    `weights` are those of `patchout hear run`; without a `model`, the name is one.
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        model: str = "",
        preset: str = "",
        weights: str = "",
        **fields: Any,
    ) -> None:
        """Load the model and describe it; `fields` replace those of the ModelMeta.

        ValueError: a name that is not OWNER/NAME, or a model whose hash is not the `revision`.
        """
        name = model_name if model else _public_name(model_name)
        self.subject = open_subject(model or model_name, preset=preset, weights=weights)
        self.device = pick_device(device or "auto")
        self.subject.model.to(self.device).eval()
        arguments = {"model": model or model_name, "preset": preset, "weights": weights}
        self.mteb_model_meta = ModelMeta(**_metadata(self.subject, name, arguments) | fields)
        if revision not in (None, self.mteb_model_meta.revision):
            actual = f"{model or model_name} has the revision {self.mteb_model_meta.revision}, not {revision}"
            raise ValueError(f"{actual}: weights or settings have changed, describe the model anew")

    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: "TaskMetadata",
        hf_split: str,
        hf_subset: str,
        prompt_type: "PromptType | None" = None,
        **kwargs: Any,
    ) -> Float[np.ndarray, "sound value"]:
        """Scene embeddings of all sounds of a task's split, in their order."""
        inputs.collate_fn = _sounds
        return np.concatenate([scene_embeddings(self.subject, map(_source, batch)) for batch in inputs])


def scene_embeddings(subject: Subject, sources: Iterable[Source]) -> Float[np.ndarray, "sound value"]:
    """Scene embeddings of sounds of any rates and lengths; those that fit one pass run together."""
    if isinstance(subject.model, HearModel):
        return _embedded(subject.model.embedder, sources)
    waves = [np.concatenate([*Stream(source, subject.rate)]) for source in sources]
    device = next(subject.model.parameters(), torch.empty(0)).device
    rows: dict[int, np.ndarray] = {}
    by_length: dict[int, list[int]] = {}
    for place, wave in enumerate(waves):
        by_length.setdefault(len(wave), []).append(place)
    for length, places in by_length.items():
        step = batch_size(length / subject.rate, subject.rate)
        for first in range(0, len(places), step):
            group = places[first : first + step]
            batch = torch.from_numpy(np.stack([waves[place] for place in group])).to(device)
            with torch.no_grad():
                rows |= zip(group, scenes(subject, batch).numpy(), strict=True)
    return np.stack([rows[place] for place in range(len(waves))])


def _embedded(embedder: Embedder, sources: Iterable[Source]) -> Float[np.ndarray, "sound value"]:
    """Scene embeddings of one of our models; sounds longer than a window are streamed, one by one."""
    rows: dict[int, np.ndarray] = {}
    short: dict[int, np.ndarray] = {}
    for place, source in enumerate(sources):
        stream, blocks = iter(hear(embedder.model.config, source)), list[np.ndarray]()
        while sum(map(len, blocks)) <= embedder.scene_window and (block := next(stream, None)) is not None:
            blocks.append(block)
        if sum(map(len, blocks)) > embedder.scene_window:
            rows[place] = embedder.scene_of(chain(blocks, stream))
        else:
            short[place] = np.concatenate(blocks)
    rows |= zip(short, embedder.scenes_of_each([*short.values()]), strict=True)
    return np.stack([rows[place] for place in range(len(rows))])


def _sounds(rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The sounds of some rows, decoded only when they are asked for, unless this is another process."""
    sounds = [row["audio"] for row in rows]
    if get_worker_info() is None:
        return sounds
    return [{key: sound[key] for key in ("array", "sampling_rate")} for sound in sounds]


def _source(sound: Any) -> Source:
    """The samples (sample,) or (channel, sample) of a row with their rate, as the decoder takes them."""
    return np.asarray(sound["array"], np.float32), int(sound["sampling_rate"])


def _public_name(name: str) -> str:
    """OWNER/NAME of a model: a hub id, a HEAR module, or one of our zoo."""
    if Path(name).exists() or name.count("/") > 1:
        raise ValueError(f"mteb names a model OWNER/NAME: Encoder('OWNER/NAME', model={name!r})")
    if "/" in name:
        return name
    return name.replace(".", "/", 1) if "." in name else f"patchout/{name}"


def _metadata(subject: Subject, name: str, arguments: Mapping[str, str]) -> dict[str, Any]:
    """Fields of a ModelMeta, None where nothing is known; the revision is a hash of weights and settings."""
    identity = {key: value for key, value in subject.identity().items() if key not in ("model", "detail")}
    revision = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:40]
    sizes = [(weight.numel(), weight.element_size()) for weight in subject.model.parameters()]
    config = subject.model.model.config if isinstance(subject.model, HearModel) else None
    entry = MODELS.get(config.provenance.get("name", "")) if config else None
    return {
        "loader": Encoder,
        "loader_kwargs": dict(arguments),
        "name": name,
        "revision": revision,
        "n_parameters": sum(count for count, _ in sizes),
        "n_embedding_parameters": 0,
        "memory_usage_mb": round(sum(count * size for count, size in sizes) / 2**20, 1),
        "embed_dim": subject.model.scene_embedding_size,
        "license": _licence(config.licence) if config else None,
        "open_weights": True if entry else None,
        "training_datasets": _training_tasks(entry.name, entry.score) if entry else None,
        "framework": ["PyTorch"],
        "modalities": ["audio"],
        "similarity_fn_name": "cosine",
        "use_instructions": False,
        "languages": ["eng-Latn"],
        **dict.fromkeys(("release_date", "max_tokens", "public_training_code", "public_training_data")),
    }


def _licence(text: str) -> str | None:
    """A licence by mteb's name for it; "multiple" if the text names another one beside it."""
    folded = text.lower().replace(" ", "-")
    names = [name for name in get_args(Licenses) if name in folded]
    return folded if folded in names else "multiple" if names else "not specified" if folded else None


def _training_tasks(name: str, score: str) -> set[str]:
    """The tasks of mteb whose sounds a model of our zoo was trained on; all but the built-in saw AudioSet."""
    tasks = {task for word, task in DATA_SETS.items() if score.startswith(word)}
    return tasks if name == BUILT_IN else tasks | AUDIOSET

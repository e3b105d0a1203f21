"""Code of a user who checks types: `mypy --strict` accepts it, and sees the one mistake in it."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import patchout
from patchout import audio
from patchout.checkpoint import save
from patchout.judge import frechet


def use() -> float:
    """The ways in: load, tag, embed, events, save, judge."""
    model = patchout.load("sounds-tiny")
    tags: patchout.Tags = patchout.tag(model, Path("dog.ogg"), top=3, events=patchout.EventRule(on=0.5))
    longest_s: float = max((event.end_s - event.start_s for event in tags.events), default=0.0)
    wave = audio.load("dog.ogg", rate=32_000)
    embedding: patchout.Embedding = patchout.embed(
        model, (wave, 32_000), config=patchout.EmbedConfig(hop_ms=100)
    )
    save(model, Path("copy.safetensors"))
    return longest_s + embedding.scene.size + frechet(np.zeros((4, 2)), np.ones((4, 2)))


if TYPE_CHECKING:
    patchout.load(3)  # type: ignore[arg-type]  # were the types not seen, --strict would call this unused

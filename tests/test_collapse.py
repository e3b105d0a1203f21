"""What is said of embeddings that are the same for different sounds, or in one value for all."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, noise, tiny_config, write_wav

from patchout.checkpoint.own import save
from patchout.data.items import Item
from patchout.inference.bulk.embed import EmbedJob
from patchout.inference.bulk.run import run
from patchout.models.passt import Passt

Notes = Callable[..., tuple[str, ...]]


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Eight short sounds."""
    return [Item(str(write_wav(tmp_path / f"{index}.wav", noise(0.1, index)))) for index in range(8)]


@pytest.fixture
def notes_of(tmp_path: Path) -> Notes:
    """What a job says whose model is changed before."""

    def call(
        items: list[Item], change: Callable[[Passt], object] = lambda model: None, kind: str = "scene"
    ) -> tuple[str, ...]:
        model = Passt(tiny_config(), rng=torch.Generator().manual_seed(0))
        with torch.no_grad():
            change(model)
        save(model, tmp_path / "tiny.safetensors")
        job = EmbedJob(model=str(tmp_path / "tiny.safetensors"), kind=kind)  # type: ignore[arg-type]
        return run(items, job, str(tmp_path / "out"), device="cpu").notes

    return call


def test_sound_embeddings_raise_no_alarm(notes_of: Notes, items: list[Item]) -> None:
    assert notes_of(items) == ()


@pytest.mark.parametrize("kind", ["scene", "timestamp"])
def test_different_sounds_with_one_embedding_are_told(notes_of: Notes, items: list[Item], kind: str) -> None:
    def collapse(model: Passt) -> None:
        model.encoder.norm.weight.zero_()

    (note,) = notes_of(items, collapse, kind)
    assert note.startswith("8 of 8 files share their embedding with others, also different sounds (")
    assert f"{items[0].file} and {items[1].file}" in note


def test_a_value_that_never_moves_is_told(notes_of: Notes, items: list[Item]) -> None:
    def still(model: Passt) -> None:
        model.encoder.norm.weight[5] = 0.0
        model.encoder.norm.bias[5] = 0.25

    (note,) = notes_of(items, still)
    assert note.startswith("1 of 35 values of the embeddings never move (value 8 is 0.25 in every row)")


def test_copies_in_any_format_and_silence_may_share_an_embedding(
    notes_of: Notes, items: list[Item], tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "copy.flac", soundfile.read(items[0].file)[0], RATE)
    silences = [write_wav(tmp_path / f"silent {length}.wav", np.zeros(length)) for length in (3200, 3201)]
    assert (
        notes_of([*items, Item(str(tmp_path / "copy.flac")), *(Item(str(path)) for path in silences)]) == ()
    )

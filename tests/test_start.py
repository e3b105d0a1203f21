"""What training starts from: every kind of start, what is kept, what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import LABELS, tiny_config
from test_imagenet import image_file

from patchout.audio.mel import MelConfig
from patchout.checkpoint import imagenet, zoo
from patchout.checkpoint.own import export_passt, save
from patchout.models.decision import Decision
from patchout.models.passt import Passt, PasstConfig
from patchout.training.supervised.initial_weights import find, start

CPU = torch.device("cpu")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def begin(config: PasstConfig, init: str | Path = "", seed: int = 0) -> Passt:
    model = start(config, find(str(init)), rng=rng(seed), device=CPU)
    assert isinstance(model, Passt)
    return model


def same(first: Passt, second: Passt, prefix: str = "") -> bool:
    one, other = first.state_dict(), second.state_dict()
    return all(torch.equal(one[name], other[name]) for name in one if name.startswith(prefix))


def saved(folder: Path, **changes: object) -> tuple[Passt, Path]:
    """A random model and its file; the head's LayerNorm is not that of a new one."""
    model = Passt(tiny_config(**changes), rng=rng(7))
    torch.nn.init.normal_(model.head[0].weight, generator=rng(8))
    save(model, folder / "model.safetensors")
    return model, folder / "model.safetensors"


# -- what a start may be -------------------------------------------------------------------------------------


def test_nothing_is_random_weights_from_the_generator() -> None:
    assert same(begin(tiny_config(), seed=3), Passt(tiny_config(), rng=rng(3)))
    assert not same(begin(tiny_config(), seed=3), begin(tiny_config(), seed=4))


def test_a_file_and_a_run_folder(tmp_path: Path) -> None:
    model, path = saved(tmp_path)
    assert same(begin(model.config, path), model)
    assert same(begin(model.config, tmp_path), model)


@pytest.mark.slow
def test_a_zoo_name() -> None:
    built_in = zoo.load("sounds-tiny", "cpu")
    shape = replace(built_in.config, labels=("hum", "beep"), decision=Decision())
    model = start(shape, find("sounds-tiny"), rng=rng(), device=CPU)
    weights = built_in.state_dict()
    assert all(torch.equal(weights[n], w) for n, w in model.state_dict().items() if not n.startswith("head."))
    assert model.head.weight.shape == (2, 192)


def test_public_weights(tmp_path: Path) -> None:
    config = tiny_config(width=64, heads=1, labels=("class 0", "class 1"))
    model = Passt(config, rng=rng(7))
    torch.save(export_passt(model), tmp_path / "passt.pt")
    assert same(begin(config, tmp_path / "passt.pt"), model)


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_file_for_images_is_known_by_its_names(tokens: int, tmp_path: Path) -> None:
    image = image_file(tokens=tokens)
    torch.save({"model": image}, tmp_path / "image.pth")
    model = begin(tiny_config(width=64, heads=1), tmp_path / "image.pth")
    assert torch.equal(model.tokens[-1], image["cls_token" if tokens == 1 else "dist_token"][0, 0])


def test_a_name_for_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    image = image_file(14, width=192, depth=3)
    (tmp_path / "patchout").mkdir()
    torch.save({"model": image}, tmp_path / "patchout" / imagenet.FILES["deit-tiny"])
    model = begin(tiny_config(width=192, heads=3, depth=3), "deit-tiny")
    assert torch.equal(model.encoder.norm.weight, image["norm.weight"])


def test_an_unknown_name_lists_the_names_for_images() -> None:
    with pytest.raises(
        zoo.UnknownModelError, match=r"'diet-tiny'.*weights for images are deit-base-384, deit-small"
    ):
        begin(tiny_config(), "diet-tiny")


# -- what is kept --------------------------------------------------------------------------------------------


def test_the_same_labels_keep_the_whole_head(tmp_path: Path) -> None:
    model, path = saved(tmp_path)
    assert same(begin(tiny_config(task="multi_label"), path), model, "head.")


def test_other_labels_keep_the_norm_of_the_head_and_get_a_new_last_layer(tmp_path: Path) -> None:
    model, path = saved(tmp_path)
    config = tiny_config(labels=("cat", *LABELS))
    found = begin(config, path, seed=5)
    assert same(found, model, "encoder.")
    assert same(found, model, "head.0.")
    assert same(found, Passt(config, rng=rng(5)), "head.1.")


def test_the_config_is_the_one_asked_for(tmp_path: Path) -> None:
    config = tiny_config(labels=("cat", "cow"), columns=5, licence="CC0")
    assert begin(config, saved(tmp_path)[1]).config == config


@pytest.mark.parametrize("positions", ["separate", "grid"])
def test_a_shorter_clip_takes_the_first_columns(positions: str, tmp_path: Path) -> None:
    model, path = saved(tmp_path, positions=positions)
    short = begin(tiny_config(columns=5, positions=positions), path)
    mel = torch.randn(1, 128, 56, generator=rng())  # five columns
    torch.testing.assert_close(short(mel).logits, model(mel).logits)


def test_fewer_blocks_are_every_other_one(tmp_path: Path) -> None:
    model, path = saved(tmp_path, depth=5)
    found = begin(tiny_config(depth=4), path)  # 0, 1, 3, 4
    assert torch.equal(found.encoder.blocks[2].mlp.fc1.weight, model.encoder.blocks[3].mlp.fc1.weight)  # type: ignore[union-attr, arg-type]


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"stride": (16, 16)},
            r"stride \(10, 10\) \(asked for: \(16, 16\)\): choose what it has, or another start",
        ),
        ({"width": 64, "heads": 4}, r"width 32 \(asked for: 64\), heads 2 \(asked for: 4\)"),
        ({"distilled": False}, r"distilled True \(asked for: False\)"),
        ({"positions": "grid"}, r"positions 'separate' \(asked for: 'grid'\)"),
        ({"mel": MelConfig(hop_length=160)}, r"mel hop_length 320 \(asked for: 160\)"),
        ({"mel": MelConfig(f_max=14_000.0)}, r"mel f_max 15000.0 \(asked for: 14000.0\)"),
        (
            {"mel": MelConfig(mean=(0.5,) * 128, std=(1.0,) * 128)},
            r"mel mean None \(asked for: \(0.5, 0.5, 0.5, 0.5, 0.5, 0.5, \.\.\.\)\)",
        ),
        ({"columns": 19}, r"9 time positions, 1.05 s \(asked for: 19, 2.05 s\)"),
        ({"depth": 3}, "2 blocks do not become 3: set depth to 2"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, object], text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=text):
        begin(tiny_config(**changes), saved(tmp_path)[1])

"""The model: variants, invariants, limits."""

import subprocess
import sys

import pytest
import torch
from conftest import LABELS, tiny_config

from patchout.audio.mel import MelConfig
from patchout.models.passt import SIZES, Passt, PasstConfig, cut_depth, keep_blocks
from patchout.models.patches import Patchout
from patchout.models.transformer import every_other_block


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mel(frames: int = 96, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 128, frames, generator=rng())


def test_output_shapes(tiny: Passt) -> None:
    out = tiny(mel())
    assert out.logits.shape == (2, 3)
    assert out.embedding.shape == (2, 32)
    assert out.tokens.shape == (2, 2 + 12 * 9, 32)
    torch.testing.assert_close(out.embedding, out.tokens[:, :2].mean(1))


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"stride": (10, 10)}, 12),
        ({"stride": (12, 12)}, 10),
        ({"stride": (14, 14)}, 9),
        ({"stride": (16, 16)}, 8),
        ({"stride": (10, 16)}, 12),
        ({"depth": 7}, 12),
        ({"distilled": False}, 12),
        ({"positions": "grid"}, 12),
        ({"labels": tuple(map(str, range(50)))}, 12),
        ({"mel": MelConfig(hop_length=160), "columns": 20}, 12),
    ],
)
def test_variants_run(changes: dict[str, object], rows: int) -> None:
    config = tiny_config(**changes)
    out = Passt(config, rng=rng())(mel(config.max_frames))
    assert config.rows == rows
    assert out.tokens.shape[1] == rows * config.columns + (2 if config.distilled else 1)
    assert out.logits.shape == (2, len(config.labels))


@pytest.mark.parametrize(("size", "width", "heads"), [("tiny", 192, 3), ("small", 384, 6), ("base", 768, 12)])
def test_sizes_have_heads_of_64(size: str, width: int, heads: int) -> None:
    assert SIZES[size] == (width, heads)
    assert width // heads == 64


@pytest.mark.parametrize(
    ("columns", "stride", "hop", "samples"),
    [(99, 10, 320, 321_600), (200, 10, 160, 322_400), (320, 10, 100, 321_500)],
)
def test_longest_input_is_the_published_one(columns: int, stride: int, hop: int, samples: int) -> None:
    config = PasstConfig(
        labels=("a",), columns=columns, stride=(stride, stride), mel=MelConfig(hop_length=hop)
    )
    assert config.max_samples == samples


@pytest.mark.parametrize(("hop", "samples"), [(320, 4801), (160, 2401), (100, 1501)])
def test_shortest_input_is_one_patch(hop: int, samples: int) -> None:
    assert tiny_config(mel=MelConfig(hop_length=hop)).min_samples == samples


def test_frames_beyond_the_last_patch_do_not_matter(tiny: Passt) -> None:
    clip = mel(105)
    torch.testing.assert_close(tiny(clip).logits, tiny(clip[..., :96]).logits)


def test_a_clip_does_not_depend_on_its_batch(tiny: Passt) -> None:
    clips = mel(batch=3)
    torch.testing.assert_close(tiny(clips).logits[1:2], tiny(clips[1:2]).logits, atol=1e-6, rtol=1e-5)


def test_patchout_is_an_argument_not_a_mode(tiny: Passt) -> None:
    clips = mel()
    assert torch.equal(tiny.train()(clips).logits, tiny.eval()(clips).logits)
    dropped = tiny.eval()(clips, patchout=Patchout(freq=2, time=3), rng=rng())
    assert dropped.tokens.shape[1] == 2 + 10 * 6


def test_a_patchout_of_nothing_changes_nothing(tiny: Passt) -> None:
    clips = mel()
    torch.testing.assert_close(tiny(clips, patchout=Patchout(), rng=rng()).logits, tiny(clips).logits)


def test_time_offset_moves_the_positions(tiny: Passt) -> None:
    clips = mel(46)
    assert not torch.allclose(tiny(clips, time_offset=5).logits, tiny(clips).logits)
    with pytest.raises(ValueError, match="from column 6 on"):
        tiny(clips, time_offset=6)


def test_too_long_says_to_window_it(tiny: Passt) -> None:
    with pytest.raises(
        ValueError, match=r"at most 105 frames \(1.05 s\), got 106: cut the clip into windows"
    ):
        tiny(mel(106))


def test_too_short_says_how_long(tiny: Passt) -> None:
    with pytest.raises(ValueError, match="15 frames holds no patch of 16: pad it to 4801 samples"):
        tiny(mel(15))


def test_other_mels_are_refused(tiny: Passt) -> None:
    with pytest.raises(ValueError, match=r"\(batch, 128, frames\), got \(2, 64, 96\)"):
        tiny(mel()[:, :64])


def test_every_parameter_gets_a_gradient(tiny: Passt) -> None:
    tiny(mel()).logits.square().sum().backward()
    assert [
        name
        for name, parameter in tiny.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ] == []


def test_random_weights_come_from_the_generator() -> None:
    first, again, other = (Passt(tiny_config(), rng=rng(seed)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed.proj.weight"], other["embed.proj.weight"])


def test_the_papers_rule_keeps_every_other_block() -> None:
    assert every_other_block(12) == (0, 1, 3, 5, 7, 9, 11)
    assert every_other_block(3) == (0, 1, 2)
    with pytest.raises(ValueError, match="3 blocks or more"):
        every_other_block(2)


def test_keep_blocks_takes_their_weights() -> None:
    deep = Passt(tiny_config(depth=5), rng=rng()).eval()
    thin = keep_blocks(deep, (0, 1, 3))
    assert thin.config.depth == 3
    assert torch.equal(thin.encoder.blocks[2].mlp.fc1.weight, deep.encoder.blocks[3].mlp.fc1.weight)  # type: ignore[union-attr, arg-type]
    assert torch.equal(thin.head[1].weight, deep.head[1].weight)
    with pytest.raises(ValueError, match=r"ascend within 0 \.\.\. 4"):
        keep_blocks(deep, (3, 1))


@pytest.mark.parametrize(("depth", "kept"), [(5, (0, 1, 2, 3, 4)), (4, (0, 1, 3, 4))])
def test_depth_is_cut_to_every_other_block(depth: int, kept: tuple[int, ...]) -> None:
    deep = Passt(tiny_config(depth=5), rng=rng())
    own, all_blocks = cut_depth(deep, depth).state_dict(), deep.state_dict()
    for index, block in enumerate(kept):
        name = "encoder.blocks.{}.mlp.fc1.weight"
        assert torch.equal(own[name.format(index)], all_blocks[name.format(block)])


@pytest.mark.parametrize(("has", "asked", "fits"), [(5, 3, "5 or 4"), (5, 6, "5 or 4"), (2, 1, "2")])
def test_other_depths_are_refused(has: int, asked: int, fits: str) -> None:
    with pytest.raises(ValueError, match=f"{has} blocks do not become {asked}: set depth to {fits} "):
        cut_depth(Passt(tiny_config(depth=has), rng=rng()), asked)


def test_a_position_per_patch_gets_a_gradient_everywhere() -> None:
    model = Passt(tiny_config(positions="grid"), rng=rng())
    model(mel()).logits.square().sum().backward()
    grad = model.embed.grid_position.grad
    assert grad is not None
    assert grad.abs().sum(2).all()


COMPILE = """
import torch
from patchout.models.maskspec import MaskSpec, MaskSpecConfig
from patchout.models.passt import Passt, PasstConfig

def compiled(model):
    return torch.compile(model, fullgraph=True, backend="aot_eager")

model = Passt(PasstConfig(labels=("a", "b"), width=32, depth=2, heads=2, columns=9)).eval()
mel, noise = torch.randn(2, 128, 96), torch.rand(2, 48)
torch.testing.assert_close(compiled(model)(mel).logits, model(mel).logits)
decoder = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
model = MaskSpec(MaskSpecConfig(width=32, depth=2, heads=2, columns=6, **decoder)).eval()
torch.testing.assert_close(compiled(model)(mel, 0.75, noise).loss, model(mel, 0.75, noise).loss)
"""


@pytest.mark.slow
def test_it_and_maskspec_compile_without_a_graph_break() -> None:
    """In one process: its imports take seconds. It is without the shape-checking hook."""
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"labels": ("a", "b", "a")}, "'a' stands twice"),
        ({"columns": 0}, "at least 1"),
        ({"patch": 129}, "129 mels does not fit into 128"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        tiny_config(**changes)


def test_width_must_divide_into_heads() -> None:
    with pytest.raises(ValueError, match="width 32 does not divide into 3 heads"):
        Passt(tiny_config(heads=3))


def test_labels_are_the_classes(tiny: Passt) -> None:
    assert tiny.config.labels == LABELS


def test_a_prediction_is_the_logits_and_embedding_of_a_forward_pass() -> None:
    """Although its last block computes the class tokens alone."""
    rng = torch.Generator().manual_seed(0)
    tiny = Passt(tiny_config(heads=2), rng=rng).eval()
    mel = torch.randn(3, 128, 96, generator=rng)
    for block in tiny.encoder.blocks:  # scores that differ, and biases that are not zero
        torch.nn.init.normal_(block.get_parameter("attn.qkv.weight"), std=0.3, generator=rng)
        torch.nn.init.normal_(block.get_parameter("attn.qkv.bias"), generator=rng)
    with torch.inference_mode():
        output, prediction = tiny(mel), tiny.predict(mel)
        count = len(tiny.tokens)
        seen: list[int] = []
        last = tiny.get_submodule("encoder.blocks.1.mlp")
        last.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
        tiny.predict(mel)
    torch.testing.assert_close(prediction.logits, output.logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(prediction.embedding, output.embedding, atol=1e-6, rtol=0)
    assert seen == [count]

"""Our numbers against those of the public implementation (golden/passt.npz):
full-size models, float32 on a CPU.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import give_memory_back
from golden_recipe import golden_wave, golden_weights
from mel_reference import hold

from patchout.audio.mel import MelConfig, log_mel
from patchout.checkpoint.own import export_passt, import_passt
from patchout.hear import PRESETS, HearModel, get_scene_embeddings, get_timestamp_embeddings
from patchout.inference.embedding import Mode
from patchout.models.family import Prediction
from patchout.models.fill import undrawn
from patchout.models.int8 import quantised
from patchout.models.passt import Passt, PasstConfig

GOLDEN = np.load(Path(__file__).parent / "golden" / "passt.npz")
HEAR_NET = "net:10x10:998:12:320:2"
NETS = sorted(  # cases of a model follow each other: that of int8 and bf16 first, that of embeddings last
    (
        name.removesuffix("/logits")
        for name in GOLDEN.files
        if name.startswith("net:") and name.endswith("/logits")
    ),
    key=lambda name: (name.rpartition(":")[0] == HEAR_NET.rpartition(":")[0], name),
)


@pytest.mark.parametrize("name", [name for name in GOLDEN.files if name.startswith("mel:")])
def test_log_mel_equals_the_public_one(name: str) -> None:
    _, hop, seconds = name.split(":")
    wave, config = golden_wave(float(seconds)), MelConfig(hop_length=int(hop))
    hold(wave, config)
    np.testing.assert_allclose(log_mel(wave, config).numpy(), GOLDEN[name], rtol=0, atol=3e-4)


IMPORTED: dict[tuple[str, ...], Passt] = {}


@pytest.fixture(autouse=True, scope="module")
def forget_models() -> Iterator[None]:
    """The last one too: other tests need its memory."""
    yield
    IMPORTED.clear()
    PREDICTED.clear()


def imported(geometry: tuple[str, ...]) -> Passt:
    """The model of (stride, frames, depth, hop): imported from golden weights under public names."""
    if geometry not in IMPORTED:
        IMPORTED.clear()  # one full size at a time
        give_memory_back()
        IMPORTED[geometry] = import_golden(geometry)
    return IMPORTED[geometry]


def import_golden(geometry: tuple[str, ...]) -> Passt:
    stride, frames, depth, hop = geometry
    frequency, time = map(int, stride.split("x"))
    mel, columns = MelConfig(hop_length=int(hop)), int(frames) // time
    labels = tuple(map(str, range(527)))
    config = PasstConfig(labels=labels, mel=mel, depth=int(depth), stride=(frequency, time), columns=columns)
    with undrawn():  # shapes without values
        shapes = {key: tuple(tensor.shape) for key, tensor in export_passt(Passt(config)).items()}
    public = golden_weights(shapes | {"head_dist.weight": (527, 768), "head_dist.bias": (527,)})
    return import_passt(public, mel=mel, stride=(frequency, time))


def golden_model(name: str) -> Passt:
    """The model of a case."""
    return imported(tuple(name.split(":")[1:-1]))


@pytest.mark.slow
def test_bf16_stays_within_a_twentieth_of_the_public_logits() -> None:
    model = golden_model(NETS[0])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        logits = model(log_mel(golden_wave(float(NETS[0].rpartition(":")[2])), model.config.mel)).logits
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits.numpy(), GOLDEN[f"{NETS[0]}/logits"], rtol=0, atol=0.05)


@pytest.mark.slow
def test_int8_stays_near_the_public_logits() -> None:
    """By less than a tenth of how much they spread: weights and activations are rounded to 8 bits."""
    model, expected = golden_model(NETS[0]), GOLDEN[f"{NETS[0]}/logits"]
    with torch.inference_mode():
        logits = quantised(model)(
            log_mel(golden_wave(float(NETS[0].rpartition(":")[2])), model.config.mel)
        ).logits
    assert np.abs(logits.numpy() - expected).max() < 0.1 * expected.std()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_logits_and_features_equal_the_public_ones(name: str) -> None:
    model = golden_model(name)
    with torch.inference_mode():
        out = model(log_mel(golden_wave(float(name.rpartition(":")[2])), model.config.mel))
    np.testing.assert_allclose(out.logits.numpy(), GOLDEN[f"{name}/logits"], rtol=0, atol=2e-4)
    np.testing.assert_allclose(out.embedding.numpy(), GOLDEN[f"{name}/features"], rtol=0, atol=2e-4)


@pytest.mark.slow
def test_parameters_of_passt_s_and_l_are_counted_as_published() -> None:
    def count(**sizes: int) -> int:
        with torch.device("meta"):
            model = Passt(PasstConfig(labels=tuple(map(str, range(527))), **sizes))  # type: ignore[arg-type]
        return (
            sum(parameter.numel() for parameter in model.parameters()) + 527 * 769
        )  # the unused head_dist is not kept

    assert count() == 86_153_758
    assert count(depth=7) == 50_714_398


# -- embeddings: key of the case, module, mode ---------------------------------------------------------------

SCENES: tuple[tuple[str, Mode], ...] = (
    ("scene:5:all", "all"),
    ("scene:5:embed_only", "embed_only"),
    ("scene:15:all", "all"),  # the mean of seven windows of 10 s
)
TIMESTAMPS = (  # and clips: long windows of both are seconds
    ("timestamp:1:all", "base", slice(2)),
    ("base2level:1", "base2level", slice(1)),
    ("base2levelmel:1", "base2levelmel", slice(1, 2)),
)


PREDICTED: dict[tuple[tuple[int, ...], bytes], Prediction] = {}


@pytest.fixture
def each_window_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cases share windows: what the network says of the same log-mels is computed once."""
    predict = Passt.predict

    def remembered(model: Passt, mel: torch.Tensor) -> Prediction:
        key = tuple(mel.shape), mel.numpy().tobytes()
        if key not in PREDICTED:
            PREDICTED[key] = predict(model, mel)
        return PREDICTED[key]

    monkeypatch.setattr(Passt, "predict", remembered)


def hear_model(preset: str, mode: Mode = "all") -> HearModel:
    """A HEAR module with golden weights."""
    return HearModel(golden_model(HEAR_NET), PRESETS[preset].config.in_mode(mode))


@pytest.mark.slow
@pytest.mark.usefixtures("each_window_once")
@pytest.mark.parametrize(("name", "mode"), SCENES)
def test_scene_embeddings_equal_the_public_ones(name: str, mode: Mode) -> None:
    seconds = float(name.split(":")[1])
    clips = 2 if seconds < 10 else 1  # seven windows of one are enough of what is the slowest test of all
    ours = get_scene_embeddings(torch.from_numpy(golden_wave(seconds)[:clips]), hear_model("base", mode))
    np.testing.assert_allclose(ours.numpy(), GOLDEN[name][:clips], rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("each_window_once")
@pytest.mark.parametrize(("name", "preset", "clips"), TIMESTAMPS)
def test_timestamp_embeddings_equal_the_public_ones(name: str, preset: str, clips: slice) -> None:
    wave = torch.from_numpy(golden_wave(1.0))[clips]
    ours, times_ms = get_timestamp_embeddings(wave, hear_model(preset))
    np.testing.assert_allclose(ours.numpy(), GOLDEN[name][clips], rtol=0, atol=2e-4)
    np.testing.assert_array_equal(times_ms.numpy(), GOLDEN[f"{name}/ms"][clips])


def test_every_stored_embedding_is_compared() -> None:
    stored = {
        name for name in GOLDEN.files if not name.startswith(("mel:", "net:")) and not name.endswith("/ms")
    }
    assert stored == {name for name, *_ in (*SCENES, *TIMESTAMPS)}

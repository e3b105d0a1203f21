"""What a GPU must not wait for, and that it gives the CPU's numbers.

Tests marked gpu need a CUDA device (`pytest -m gpu`). The others show on a CPU what can be shown there: on
the meta device a tensor has no values, so that reading one is an error, and copies to it can be watched.
"""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LABELS, RATE, noise, tiny_config
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import patchout
from patchout.audio.mel import log_mel
from patchout.data import augment
from patchout.data.batches import Batch
from patchout.hear import probe_network
from patchout.hear.probe_network import Check, Data, Point, Probe, predict, train_group
from patchout.inference.embedding import EmbedConfig, Embedder
from patchout.inference.window_scores import score
from patchout.models import maskspec_classifier, patches
from patchout.models.device import HostCopy, Precision, Upload, to_device
from patchout.models.kernels import attend
from patchout.models.maskspec import MaskSpec, MaskSpecConfig
from patchout.models.maskspec_classifier import MaskSpecClassifier, MaskSpecClassifierConfig
from patchout.models.passt import Passt
from patchout.models.tagger import Tagger
from patchout.training import loop, optim
from patchout.training.masked import objective as masked
from patchout.training.masked.config import PretrainConfig
from patchout.training.masked.objectives.pixels import Pixels
from patchout.training.step import Place, Stepper, Work
from patchout.training.supervised import loss as supervised
from patchout.training.supervised import run as train
from patchout.training.supervised.config import TrainConfig
from patchout.training.supervised.loss import StepLoss

cudnn_sdp_enabled: Callable[[], bool] = torch.backends.cuda.cudnn_sdp_enabled
CUDA, META, CPU = torch.device("cuda"), torch.device("meta"), torch.device("cpu")
CLIPS = 4
Loss = Callable[[nn.Module, Batch, Place], Tensor]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def supervised_loss(model: Tagger, precision: Precision = "fp32", **changes: Any) -> StepLoss:
    """The loss with everything that is drawn in it."""
    config = TrainConfig(
        recipe="test", clip_s=1.0, patchout_freq=1, patchout_time=2, mask_time=20, precision=precision
    )
    return StepLoss(replace(config, mel_jitter=True, **changes), model.config, torch.ones(len(LABELS)))


def batch_on(target: torch.device, clips: int = CLIPS) -> Batch:
    wave = torch.from_numpy(np.stack([noise(1.0, seed) for seed in range(clips)]))
    label = F.one_hot(torch.arange(clips) % len(LABELS), len(LABELS)).float()
    ones = torch.ones_like(label)
    return Batch(wave.to(target), label.to(target), ones.to(target), torch.arange(clips), ())


def place(clips: int = CLIPS, step: int = 0) -> Place:
    return Place(step, 0, 0, clips, lambda rows: rows)


def passt() -> Tagger:
    return Passt(tiny_config(columns=12), rng=rng())


def classifier() -> Tagger:
    sizes = {"width": 32, "depth": 2, "heads": 2, "columns": 6}
    return MaskSpecClassifier(MaskSpecClassifierConfig(labels=LABELS, **sizes), rng=rng())  # type: ignore[arg-type]


def maskspec() -> MaskSpec:
    sizes = {"width": 32, "depth": 2, "heads": 2, "columns": 6}
    decoder = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    return MaskSpec(MaskSpecConfig(**sizes, **decoder), rng=rng())  # type: ignore[arg-type]


MODELS: dict[str, Callable[[], nn.Module]] = {"passt": passt, "classifier": classifier, "maskspec": maskspec}


def masked_loss(model: MaskSpec, precision: Precision = "fp32") -> Pixels:
    config = PretrainConfig(recipe="test", clip_s=1.0, precision=precision, mel_jitter=True)
    return Pixels(config, model)


# -- on a CPU ------------------------------------------------------------------------------------------------


class Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the copies from the CPU to the meta device that do not go through `to_device`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_allowed = False
        self.waits: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        target = kwargs.get("device")
        sources = [value for value in args if isinstance(value, Tensor) and value.device.type == "cpu"]
        if target is not None and torch.device(target).type == "meta" and sources and not self.is_allowed:
            self.waits.append(f"{func} of {[tuple(source.shape) for source in sources]}")
        return func(*args, **kwargs)

    def to_device(self, tensor: Tensor, target: torch.device) -> Tensor:
        self.is_allowed = True
        copy = tensor.to(target)
        self.is_allowed = False
        return copy


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[Copies]:
    """A meta device that passes for a GPU; the constants of the front end are on it before."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    mode = Copies()
    for module in (supervised, masked, augment, patches, maskspec_classifier):
        monkeypatch.setattr(module, "to_device", mode.to_device)
    log_mel(torch.zeros(1, RATE, device=META), tiny_config().mel)
    with mode:
        yield mode


@pytest.mark.parametrize("model_of", [passt, classifier])
@pytest.mark.parametrize("shared", [True, False])
def test_a_supervised_step_waits_for_no_copy(
    model_of: Callable[[], Tagger], shared: bool, copies: Copies
) -> None:
    drop_path = 0.1 if model_of is classifier else 0.0
    model, batch = model_of().to(META), batch_on(META)
    loss = supervised_loss(model, drop_path=drop_path, mask_shared=shared, patchout_per_clip=not shared)
    loss(model, batch, place())  # the class weights move once
    copies.waits.clear()
    torch.autograd.backward(loss(model, batch, place(step=1)))
    assert copies.waits == []


def test_a_masked_step_waits_for_no_copy(copies: Copies) -> None:
    model, batch = maskspec().to(META), batch_on(META)
    loss = masked_loss(model)
    copies.waits.clear()
    torch.autograd.backward(loss(model, batch, place()))
    assert copies.waits == []


def test_a_copy_that_is_waited_for_is_seen(copies: Copies) -> None:
    torch.ones(3).to(META)
    assert len(copies.waits) == 1


def test_class_weights_move_once() -> None:
    loss, weights = supervised_loss(passt()), []
    for _ in range(2):
        loss.compare(torch.zeros(2, 3, device=META), *torch.zeros(2, 2, 3, device=META))
        weights.append(loss.class_weight)
    assert weights[0].device == META
    assert weights[1] is weights[0]


def test_attention_without_gradients_leaves_cudnn_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(cudnn_sdp_enabled())
        return q

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    with FakeTensorMode():
        q = torch.empty(1, 2, 3, 8, device="cuda", dtype=torch.bfloat16)
        with torch.no_grad():
            attend(q, q, q)
        attend(q, q, q)
    assert seen == [False, True]
    assert cudnn_sdp_enabled()


def test_a_copy_to_a_gpu_goes_through_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def pin(tensor: Tensor) -> Tensor:
        calls.append("pinned")
        return tensor

    def move(tensor: Tensor, target: torch.device, **options: bool) -> Tensor:
        calls.append((target, options))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", move)
    to_device(torch.ones(2), CUDA)
    to_device(torch.ones(2), CPU)
    assert calls == ["pinned", (CUDA, {"non_blocking": True}), (CPU, {"non_blocking": False})]


def test_a_batch_is_copied_beside_the_work_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stream of its own, which later work waits for; its memory is not given away before that."""
    calls: list[str] = []

    class Stream:
        def __init__(self, *_: object) -> None:
            self.name = f"stream {calls.count('stream')}"
            calls.append("stream")

        def wait_stream(self, other: "Stream") -> None:
            calls.append(f"{self.name} waits for {other.name}")

    def move(tensor: Tensor, target: torch.device, **options: bool) -> Tensor:
        calls.append(f"copy {options}")
        return tensor

    @contextlib.contextmanager
    def inside(stream: Stream) -> Iterator[None]:
        calls.append(f"on {stream.name}")
        yield
        calls.append("off")

    work = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", inside)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: work)
    monkeypatch.setattr(Tensor, "to", move)
    monkeypatch.setattr(
        Tensor, "record_stream", lambda tensor, stream: calls.append(f"held by {stream.name}")
    )
    Upload(CUDA)(torch.ones(2))
    copied = ["on stream 1", "copy {'non_blocking': True}", "off"]
    assert calls[2:] == [*copied, "stream 0 waits for stream 1", "held by stream 0"]


def test_a_tensor_on_the_cpu_is_read_as_it_is() -> None:
    tensor = torch.tensor([1.0, 2.0])
    assert HostCopy(tensor).read() is tensor


def test_results_are_copied_before_the_next_step_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading waits for the event behind the copy, not for the device."""
    order: list[str] = []

    class Event:
        def record(self) -> None:
            order.append("recorded")

        def synchronize(self) -> None:
            order.append("waited")

    class OnGpu(Tensor):
        is_cuda = True

    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory, **options: empty(*size, **options))
    copy = HostCopy(torch.tensor([3.0]).as_subclass(OnGpu))
    assert order == ["recorded"]
    assert copy.read().tolist() == [3.0]
    assert order == ["recorded", "waited"]


@pytest.mark.parametrize(("levels", "means"), [(("mid",), 0), (("low", "mid"), 3)])
def test_the_mean_of_a_log_mel_is_taken_only_for_low(
    levels: Any, means: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch a clip."""
    shapes, mean = [], Tensor.mean

    def noted(tensor: Tensor, *args: Any, **options: Any) -> Tensor:
        shapes.append(tensor.shape)
        return mean(tensor, *args, **options)

    monkeypatch.setattr(Tensor, "mean", noted)
    embedder = Embedder(passt().eval(), EmbedConfig(levels=levels, scene_levels=levels))
    embedder.scenes_of_each([noise(1.0, seed) for seed in range(3)])
    assert len([shape for shape in shapes if shape[0] == tiny_config().mel.n_mels]) == means
    shapes.clear()
    embedder.timestamps_of_each([noise(1.0)])
    assert len([shape for shape in shapes if shape[1] == tiny_config().mel.n_mels]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("model_of", [passt, classifier])
def test_an_exported_model_takes_any_batch(model_of: Callable[[], Tagger]) -> None:
    model = model_of().eval()
    mels = torch.randn(5, 128, 96, generator=rng())
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (mels[:2],), dynamic_shapes=({0: batch},), strict=False)
    torch.testing.assert_close(exported.module()(mels).logits, model(mels).logits)


COMPILE = """
import copy, torch
from patchout.models.passt import Passt, PasstConfig
from patchout.models.patches import Patchout
from patchout.models.transformer import compile_transformer

graphs = []
def backend(graph, inputs):
    graphs.append(graph)
    return graph.forward

original = torch.compile
torch.compile = lambda call, **options: original(call, backend=backend, **options)
model = Passt(PasstConfig(labels=("a", "b"), width=32, depth=2, heads=2, columns=9))
compiled = copy.deepcopy(model)
compile_transformer(compiled)
mel, losses = torch.randn(2, 128, 96), []
for step in range(3):
    for each in (model, compiled):
        out = each(mel, patchout=Patchout(1, 2), rng=torch.Generator().manual_seed(step))
        out.logits.square().sum().backward()
assert len(graphs) == 1, len(graphs)
assert model.state_dict().keys() == compiled.state_dict().keys()
for one, other in zip(model.parameters(), compiled.parameters(), strict=True):
    torch.testing.assert_close(one.grad, other.grad)
with torch.compiler.set_stance("force_eager"):
    compiled(torch.randn(3, 128, 64))
assert len(graphs) == 1, len(graphs)
"""


@pytest.mark.slow
def test_a_compiled_encoder_is_one_graph_with_the_same_gradients() -> None:
    """The draws of Patchout stay outside; validation runs eagerly."""
    subprocess.run([sys.executable, "-c", COMPILE], check=True)  # without the shape-checking hook


# -- on a GPU ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def no_waits() -> Iterator[None]:
    """A wait for the device is an error in this block."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def stepper_of(model: nn.Module, loss: Loss, tmp_path: Any, **changes: Any) -> Stepper:
    groups = [{"params": list(model.parameters()), "scale": 1.0, "weight_decay": 0.0}]
    values: dict[str, Any] = {
        "model": model,
        "optimizer": optim.adamw(groups, 1e-4),
        "loss": loss,
        "rate": lambda step: 1.0,
        "batch": CLIPS,
        "clips": CLIPS,
        "clip_name": str,
        "clip_norm": 1.0,
    }
    accelerator = loop.engine(next(model.parameters()).device, tmp_path)
    return Stepper(Work(**(values | changes)), accelerator, lambda problem: None)


def pinned(batch: Batch) -> Batch:
    wave, target, weight = (part.pin_memory() for part in batch[:3])
    return batch._replace(wave=wave, target=target, weight=weight)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["passt", "classifier", "maskspec"])
def test_no_step_waits_for_the_gpu(kind: str, precision: Precision, tmp_path: Any) -> None:
    model: Any = {"passt": passt, "classifier": classifier, "maskspec": maskspec}[kind]().to(CUDA)
    loss: Any = masked_loss(model, precision) if kind == "maskspec" else supervised_loss(model, precision)
    stepper, batch = stepper_of(model, loss, tmp_path), pinned(batch_on(CPU))
    for _ in range(3):  # allocate, and move what moves once
        stepper.train([batch], 0)
    with no_waits():
        for _ in range(3):
            stepper.train([batch], 0)
    stepper.check()
    assert len(stepper.losses) == 6


@pytest.mark.gpu
def test_a_batch_arrives_while_the_gpu_works() -> None:
    upload, batch = Upload(CUDA), torch.rand(2**22).pin_memory()
    upload(batch)  # allocate
    torch.cuda.synchronize()
    torch.cuda._sleep(2**31)  # type: ignore[no-untyped-call]  # cycles: about a second of work
    busy = torch.cuda.Event()  # type: ignore[no-untyped-call]
    busy.record()
    with no_waits():
        (copy,) = upload(batch)
    assert upload._stream is not None
    upload._stream.synchronize()
    assert not busy.query()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(copy.cpu(), batch)


@pytest.mark.gpu
def test_fp16_finds_its_loss_scale(tmp_path: Any) -> None:
    model = passt().to(CUDA)
    stepper = stepper_of(model, supervised_loss(model, "fp16"), tmp_path, precision="fp16")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(30):
        stepper.train([pinned(batch_on(CPU))], 0)
    stepper.check()
    assert all(np.isfinite(stepper.losses))
    assert any(not torch.equal(x, y) for x, y in zip(before, model.parameters(), strict=True))


@pytest.mark.gpu
def test_an_interrupted_run_ends_near_a_whole_one(class_folder: Path, tmp_path: Path) -> None:
    """Not with the same bits, as on a CPU: attention's gradients are added in no fixed order."""

    def interrupt(progress: loop.Progress) -> None:
        if progress.step == 1:
            raise KeyboardInterrupt

    sizes: dict[str, Any] = {
        "size": "tiny",
        "depth": 1,
        "stride": (16, 16),
        "clip_s": 1.0,
        "patchout_freq": 2,
    }
    steps: dict[str, Any] = {"epochs": 2, "batch": 6, "warm_up_epochs": 0.5, "patchout_time": 1}
    config = TrainConfig(
        recipe="test", data=str(class_folder), device="cuda", precision="fp32", **sizes, **steps
    )
    whole, stopped = replace(config, out=tmp_path / "whole"), replace(config, out=tmp_path / "stopped")
    train.run(whole)
    with pytest.raises(KeyboardInterrupt):
        train.run(stopped, train.Listener(on_progress=interrupt))
    train.run(stopped)
    weights = [load_file(run.out / "model.safetensors") for run in (whole, stopped)]
    torch.testing.assert_close(*weights, atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.slow
def test_a_compiled_step_is_the_eager_one(tmp_path: Any) -> None:
    losses = []
    for compiled in (False, True):
        model = passt().to(CUDA)
        stepper = stepper_of(model, supervised_loss(model), tmp_path, compile=compiled)
        for _ in range(4):
            stepper.train([pinned(batch_on(CPU))], 0)
        stepper.check()
        losses.append(stepper.losses)
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["passt", "classifier", "maskspec"])
def test_loss_and_gradients_are_those_of_the_cpu(kind: str) -> None:
    values = []
    for target in (CPU, CUDA):
        model: Any = MODELS[kind]().to(target)
        loss: Any = masked_loss(model) if kind == "maskspec" else supervised_loss(model)
        value = loss(model, batch_on(target), place())
        torch.autograd.backward(value)
        gradient = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
        values.append((value.detach().cpu(), gradient))
    torch.testing.assert_close(values[1], values[0], atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
def test_log_mels_are_those_of_the_cpu() -> None:
    wave = torch.from_numpy(noise(2.0))[None]
    mel = tiny_config().mel
    torch.testing.assert_close(log_mel(wave.to(CUDA), mel).cpu(), log_mel(wave, mel), atol=1e-3, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 2e-4), ("bf16", 0.05)])
def test_tags_of_any_lengths_are_those_of_the_cpu(precision: Precision, bound: float) -> None:
    waves = [(noise(seconds, seed), RATE) for seed, seconds in enumerate([1.0, 0.4, 3.3, 1.0, 0.7])]
    results = []
    for target, name in ((CPU, "fp32"), (CUDA, precision)):
        model = passt().to(target).eval()
        streams = [patchout.audio.Stream(wave) for wave in waves]
        results.append([scored.scores for scored in score(model, streams, precision=name, batch_size=2)])  # type: ignore[arg-type]
    for on_cpu, on_gpu in zip(*results, strict=True):
        assert on_gpu == pytest.approx(on_cpu, abs=bound)


@pytest.mark.gpu
def test_embeddings_of_any_lengths_are_those_of_the_cpu() -> None:
    waves = [noise(seconds, seed) for seed, seconds in enumerate([1.0, 0.4, 3.3, 1.0])]
    config = EmbedConfig(levels=("low", "mid", "high"), scene_levels=("low", "mid"))
    results = []
    for target in (CPU, CUDA):
        embedder = Embedder(passt().to(target).eval(), config)
        tracks = [values for values, _ in embedder.timestamps_of_each(waves)]
        results.append([*embedder.scenes_of_each(waves), *tracks, embedder.scene_of(iter([waves[2]]))])
    for on_cpu, on_gpu in zip(*results, strict=True):
        assert on_gpu == pytest.approx(on_cpu, abs=1e-3)


@pytest.mark.gpu
def test_a_group_of_probes_learns_on_a_gpu_what_each_learns_on_a_cpu() -> None:
    """In float64: in float32, Adam makes whole steps of the rounding of gradients that are nothing."""
    values = torch.randn(40, 5, generator=rng(), dtype=torch.float64)
    target = F.one_hot(values[:, :3].argmax(1), 3).double()
    points = [Point(8, 2, 0.0, 6, layers, "xavier_normal_", 1e-2, 8, 9) for layers in (1, 2, 2)]
    outputs: list[list[Tensor]] = []
    torch.set_default_dtype(torch.float64)
    try:
        for device in (CPU, CUDA):
            data = Data(values.to(device), target.to(device), one_label=True)
            probes = [Probe(point, data, rng(seed)) for seed, point in enumerate(points)]
            for group in [[probe] for probe in probes] if device == CPU else [probes]:
                draw = torch.Generator(device).manual_seed(0)
                train_group(group, data, data.values, lambda logits: Check(float(logits.abs().mean())), draw)
            outputs.append([predict(probe, data.values) for probe in probes])
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-6, rtol=1e-6)


@pytest.mark.gpu
def test_probes_wait_for_the_gpu_only_where_they_are_judged() -> None:
    data = Data(torch.randn(40, 5, device=CUDA), torch.eye(5, device=CUDA).repeat(8, 1), one_label=True)
    points = [Point(8, 1, 0.1, 6, layers, "xavier_normal_", 1e-2, 9, 9) for layers in (2, 2, 1)]
    probes, draw = [Probe(point, data, rng()) for point in points], torch.Generator(CUDA).manual_seed(0)
    group = probe_network._Group(probes)
    optimizer = torch.optim.Adam([value for probe in probes for value in probe.parameters()], fused=True)
    probe_network._train_epochs(group, data, 1, optimizer, draw)  # allocate
    with no_waits():
        probe_network._train_epochs(group, data, 2, optimizer, draw)

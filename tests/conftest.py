"""What the tests share: shape checks on every signature, a tiny model, sounds from formulas."""

import ctypes
import gc
import importlib.util
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from ranks import Ranks, serving
from type_checks import install_type_checks

# The same on every machine, also in processes that tests start: one thread (threads of models this small wait
# for each other), and kernels that are not measured.
torch.set_num_threads(1)
os.environ |= {"OMP_NUM_THREADS": "1", "PATCHOUT_UNMEASURED": "1"}
# Kernels of few shapes are kept, half a megabyte each: those of a thousand are never asked for again.
os.environ |= {"LRU_CACHE_CAPACITY": "64", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
# Bytecode is kept even where the environment forbids it: else every process compiles the package anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
install_type_checks()  # before the first import of the package
gc.disable()  # nothing that is imported is garbage: until all is collected

from patchout.audio.mel import log_mel  # noqa: E402
from patchout.data.clips import ClipSet  # noqa: E402
from patchout.inference.evaluate import Evaluation, Predictions, judge  # noqa: E402
from patchout.models.passt import Passt, PasstConfig  # noqa: E402

RATE = 32_000
LABELS = ("bell", "dog", "rain")
DATA = Path(os.environ.get("PATCHOUT_DATA", "")) if os.environ.get("PATCHOUT_DATA") else None
needs_data = pytest.mark.skipif(
    DATA is None, reason="real sounds: set PATCHOUT_DATA to the folder that holds esc10/"
)


def give_memory_back() -> None:
    """Leave the gigabytes of full-size models to what comes next: glibc would keep them."""
    gc.collect()
    gc.freeze()  # what is left are imports: the next look is a short one
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: None)(0)


def pytest_configure(config: pytest.Config) -> None:
    """Hide a GPU from tests that are not about it: they state what a CPU gives."""
    if "gpu" not in config.getoption("-m").replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and `pytest -m gpu`")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: a float WAV holds its time, which is another in every worker."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_finish() -> None:
    """Keep the garbage collector from what is imported, a third of a second a look; measure small steps."""
    gc.freeze()
    gc.enable()
    if plan := sys.modules.get("patchout.training.plan"):
        # a measured step else costs as much as all that a test trains
        vars(plan).update(FEW=2, REPEATS=1)


@pytest.fixture(autouse=True, scope="module")
def memory_of_a_file() -> Iterator[None]:
    """Given back at its end."""
    yield
    give_memory_back()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """One for all files: its imports take seconds."""
    with serving(tmp_path_factory.mktemp("ranks")) as started:
        yield started


@pytest.fixture
def ranks(server: Ranks) -> Iterator[Ranks]:
    """Processes as torchrun starts them."""
    yield server
    if server.pids:  # of a test that failed
        server.signal(signal.SIGKILL)
        server.end()


def tone(seconds: float, hz: float = 440.0, *, rate: int = RATE) -> np.ndarray:
    """A sine (samples,) at a fifth of full scale."""
    return (0.2 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """White noise (samples,) at 32 kHz."""
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def write_wav(path: Path, wave: np.ndarray, rate: int = RATE) -> Path:
    """Write a 16-bit wav, folders and all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate)
    return path


def muxed(
    container: str,
    codec: str,
    stamps_s: list[float],
    *,
    picture_s: float = 0.0,
    num_streams: int = 1,
    rate: int = 8000,
) -> bytes:
    """Quarter seconds of mono noise at these times, perhaps beside a picture of so many seconds, or twice."""
    import av  # here alone: what has no need of it runs where it is not installed

    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        streams = [output.add_stream(codec, rate=rate) for _ in range(num_streams)]
        for stream in streams:
            stream.layout = "mono"
        if picture_s:
            video = output.add_stream("mpeg4", rate=4)
            video.width, video.height, video.pix_fmt = 16, 16, "yuv420p"
            for number in range(round(4 * picture_s)):
                picture = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
                picture.pts = number
                output.mux(video.encode(picture))
            output.mux(video.encode(None))
        for seed, stamp_s in enumerate(stamps_s):
            for stream in streams:
                pcm = (3276.7 * np.random.default_rng(seed).standard_normal(rate // 4)).astype(np.int16)[None]
                frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
                frame.sample_rate, frame.pts = rate, round(stamp_s * rate)
                output.mux(stream.encode(frame))
        for stream in streams:
            output.mux(stream.encode(None))
    return file.getvalue()


def tiny_config(**changes: object) -> PasstConfig:
    """Two blocks of width 32 on one second: 12 x 9 patches."""
    sizes: dict[str, object] = {
        "width": 32,
        "depth": 2,
        "heads": 2,
        "columns": 9,
        "labels": LABELS,
        "task": "multi_class",
    }
    return PasstConfig(**(sizes | changes))  # type: ignore[arg-type]


def undrawn_report(run: Path, predictions: Predictions, clips: ClipSet, **options: Any) -> Evaluation:
    """The scores of `write_report` without the report: a second of drawing."""
    config = options["config"]
    return judge(predictions, clips, labels=config.labels, task=config.task)


@pytest.fixture
def tiny() -> Passt:
    """A tiny model with fixed random weights, in evaluation mode."""
    return Passt(tiny_config(), rng=torch.Generator().manual_seed(0)).eval()


@pytest.fixture
def decisive(tiny: Passt) -> Passt:
    """The tiny model, sure of a bell in noise and of rain in a tone: their events begin and end."""
    mels = torch.cat([log_mel(torch.from_numpy(wave)[None], tiny.config.mel) for wave in (noise(1), tone(1))])
    with torch.no_grad():
        middle = tiny.predict(mels[..., : tiny.config.max_frames]).logits.mean(dim=0)
        last = [module for module in tiny.head.modules() if isinstance(module, torch.nn.Linear)][-1]
        last.bias.copy_(200 * (last.bias - middle))
        last.weight.mul_(200)
    return tiny


@pytest.fixture
def class_folder(tmp_path: Path) -> Path:
    """Three classes of four one-second sounds that anyone can tell apart, one folder a class."""
    for index in range(4):
        write_wav(tmp_path / "sounds" / "bell" / f"{index}.wav", tone(1.0, 800 + 20 * index))
        write_wav(tmp_path / "sounds" / "dog" / f"{index}.wav", tone(1.0, 150 + 5 * index))
        write_wav(tmp_path / "sounds" / "rain" / f"{index}.wav", noise(1.0, index))
    return tmp_path / "sounds"


def module_of(file: str) -> ModuleType:
    """A Python file outside the package, by its path in the project, as a module."""
    path = Path(__file__).parent.parent / file
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

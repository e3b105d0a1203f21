"""The cost of a training run, measured before it starts: tokens, memory, time; and a batch that fits."""

import math
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from patchout.data.augment import keyed
from patchout.data.batches import Batch, share
from patchout.training.step import Place

TRIAL = {"cuda": 64}  # clips of the measured step, where they fit: a GPU is faster with many
FEW = 8  # clips of it elsewhere
REPEATS = 3  # of it: the fastest counts
LARGEST_BATCH = 32
MEMORY, AVAILABLE = Path("/proc/meminfo"), re.compile(r"^MemAvailable:\s*(\d+) kB", re.MULTILINE)
SHARE = 0.5  # of the free memory that a run may plan with


@dataclass(frozen=True)
class Trial:
    """Measured cost of a training step, for one clip."""

    activation_bytes: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """Size and estimated cost of a run, before it starts."""

    clips: int
    classes: int
    task: str
    tokens: int  # of a clip without Patchout, C and D included
    training_tokens: int  # of those, in a training step
    parameters: int
    batch: int  # clips a step, over all processes
    parts: int  # that a step is computed in, one after the other
    processes: int  # that share each part
    lr: float  # peak
    published: str  # batch and rate of the recipe where they differ, in words
    steps: int
    class_clips: tuple[int, int, int]  # clips of the smallest, the middle and the largest class
    state_bytes: int  # weights, gradients, optimizer, averages
    trial: Trial
    origin: str = ""  # the columns that were read, and the classes
    is_finished: bool = False  # the folder has the result of a run of so many steps

    def __post_init__(self) -> None:
        """Refuse processes without a clip."""
        share(self.batch // self.parts, 0, self.processes)

    @property
    def at_a_time(self) -> int:
        """Clips that a process computes at a time, at most."""
        return len(share(self.batch // self.parts, self.processes - 1, self.processes))

    @property
    def memory_bytes(self) -> int:
        """Memory of a process: the state and the activations of one part."""
        return self.state_bytes + self.trial.activation_bytes * self.at_a_time

    @property
    def seconds(self) -> float:
        """Time of the whole run, without validation."""
        return self.trial.seconds * self.at_a_time * self.parts * self.steps

    def describe(self) -> str:
        """Two lines for people, and one about the data; nothing is planned for a run that is finished."""
        if self.is_finished:
            return f"the run is finished, all {self.steps} steps are done: --restart begins anew"
        kind = "one class a clip" if self.task == "multi_class" else "any number of classes a clip"
        few, middle, many = self.class_clips
        sizes = f"{self.classes} classes of {few} to {many} clips (middle: {middle})"
        unlabelled = f"no labels, {self.classes} classes of the teachers" if self.classes else "no labels"
        labels = f"{sizes}, {kind}" if many else unlabelled
        batches = f"batches of {self.batch}"
        if self.processes > 1:
            least, most = (len(share(self.batch, rank, self.processes)) for rank in (0, self.processes - 1))
            each = f"{most}" if least == most else f"{least} or {most}"
            batches += f" ({each} on each of {self.processes} processes)"
        rate = f"peak learning rate {self.lr:.3g}"
        rate += f" (the recipe: {self.published})" if self.published else ""
        minutes = f"{self.seconds / 60:.0f} min" if self.seconds >= 90 else f"{self.seconds:.0f} s"
        memory, state = (size / 2**30 for size in (self.memory_bytes, self.state_bytes))
        return (
            f"{self.clips} clips, {labels}; {batches}, {self.steps} steps, {rate}\n"
            f"{self.parameters / 1e6:.1f} M parameters, {self.training_tokens} of {self.tokens} tokens a "
            f"clip; about {memory:.2f} GiB ({state:.2f} of it weights, gradients, optimizer and averages) "
            f"and {minutes} on this machine, without validation"
        ) + (f"\n{self.origin}" if self.origin else "")


def measure(
    model: nn.Module, loss: Callable[[nn.Module, Batch, Place], Tensor], *, num_samples: int, num_classes: int
) -> Trial:
    """Cost of a clip of noise in `loss` and its backward pass, the fastest repeat; no gradient is left."""
    device, classes = next(model.parameters()).device, max(1, num_classes)
    most = TRIAL.get(device.type, FEW)
    wave = torch.randn(most, num_samples, generator=keyed("plan")).to(device)
    target = torch.eye(classes, device=device)[torch.arange(most) % classes, :num_classes]

    def forward(clips: int) -> Tensor:
        few = target[:clips]
        batch = Batch(wave[:clips].clone(), few, torch.ones_like(few), torch.arange(clips), ())
        return loss(model, batch, Place(0, 0, 0, clips, lambda tensor: tensor))

    bytes_a_clip, seconds = activation_bytes(forward), math.inf
    fitting = SHARE * free_bytes(device) // max(1, bytes_a_clip)
    clips = int(min(most, max(FEW, fitting)))
    for _ in range(REPEATS):
        started = time.perf_counter()
        torch.autograd.backward(forward(clips))
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds = min(seconds, time.perf_counter() - started)
    model.zero_grad(set_to_none=True)
    return Trial(bytes_a_clip, seconds / clips)


def activation_bytes(forward: Callable[[int], Tensor]) -> int:
    """Activation memory of a clip: bytes that autograd saves in `forward(2)` less those of `forward(1)`.

    Every storage counts once; what does not grow with the clips (weights, their casts) falls out.
    """
    sizes = []
    for clips in (1, 2):
        storages: dict[int, int] = {}

        def save(tensor: Tensor, storages: dict[int, int] = storages) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # an output that keeps its own graph would never be freed

        with saved_tensors_hooks(save, lambda tensor: tensor):
            forward(clips)
        sizes.append(sum(storages.values()))
    return sizes[1] - sizes[0]


def fitting_batch(
    trial: Trial,
    state_bytes: int,
    device: torch.device,
    clips: int,
    *,
    largest: int = LARGEST_BATCH,
    share: int = 1,
) -> int:
    """A power of two, up to `largest` and a quarter of the clips, that fits into the free memory.

    Of several processes (`share`) each takes an equal part; the batch is a multiple of it, the same for all.
    """
    room = SHARE * free_bytes(device) - state_bytes
    few, fit = max(min(2, clips), clips // 4), int(room / max(1, trial.activation_bytes))
    most = min(max(1, largest // share), few // share, fit)
    return share * int(broadcast_object_list([2 ** (max(1, most).bit_length() - 1)])[0])


def free_bytes(device: torch.device) -> int:
    """Free memory of the GPU, else of the machine: on Linux with the cache of files, which gives way."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError):
        if available := AVAILABLE.search(MEMORY.read_text(encoding="utf-8")):
            return int(available[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # systems that do not tell
        return 4 * 2**30

"""Knowledge distillation: the mean of several teachers' scores as targets, beside the labels or alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from patchout.audio.mel import MelConfig
from patchout.checkpoint import zoo
from patchout.checkpoint.download import file_sha256
from patchout.inference.evaluate import label_orders
from patchout.models.device import Precision, autocast
from patchout.models.tagger import Tagger, TaggerConfig, check_labels


class Teacher(NamedTuple):
    """A trained model, and the SHA-256 of its file."""

    name: str
    model: Tagger
    sha256: str


def load_teachers(names: Sequence[str], device: torch.device) -> tuple[Teacher, ...]:
    """Load teachers, of one task and with the same labels in any order; else a ValueError.

    A name is what `patchout.load` takes.
    """
    teachers = []
    for name in names:
        path = zoo.locate(name)
        model = zoo.load(path, str(device)).requires_grad_(False)
        check_labels(model.config)
        teachers.append(Teacher(name, model, file_sha256(path)))
        first = teachers[0]
        if strange := sorted({*model.config.labels} ^ {*first.model.config.labels}):
            lacking = f"{first.name} and {name} do not both know {', '.join(strange[:5])}"
            raise ValueError(f"teachers need the same labels: {lacking}: choose others")
        if model.config.task != first.model.config.task:
            tasks = f"{first.name} is {first.model.config.task}, {name} {model.config.task}"
            raise ValueError(f"teachers need one task: {tasks}: choose others")
    return tuple(teachers)


def check_hearing(teachers: Sequence[Teacher], student: TaggerConfig, clip_s: float) -> None:
    """Refuse teachers that cannot hear a step's clips: of another sample rate, or of a shorter window."""
    rate, todo = student.mel.sample_rate, "let it hear whole clips once (distill_cache)"
    for name, model, _ in teachers:
        config = model.config
        if config.mel.sample_rate != rate:
            rates = f"{config.mel.sample_rate} Hz, the student {rate} Hz"
            raise ValueError(f"the teacher {name} hears {rates}: choose another, or {todo}")
        columns = config.num_columns(config.mel.num_frames(round(clip_s * rate)))
        if not 1 <= columns <= config.columns:
            shortest, longest = (size / rate for size in (config.min_samples, config.max_samples))
            window = f"the teacher {name} hears {shortest:.2f} to {longest:.2f} s at a time"
            raise ValueError(f"{window}, clip_s is {clip_s:g}: change clip_s, choose another, or {todo}")


@dataclass(frozen=True)
class Distillation:
    """The teachers' part of a loss.

    `teachers` hear every step; there are none where the clips bring scores that were computed before.
    """

    weight: float  # of the loss with the scores; the one with the labels has the rest
    student: TaggerConfig
    teachers: tuple[Teacher, ...] = ()

    def widened(
        self, target: Float[Tensor, "batch before"], weight: Float[Tensor, "batch before"]
    ) -> tuple[Float[Tensor, "batch after"], Float[Tensor, "batch after"]]:
        """Targets and weights with the teachers' behind the labels'; a clip weighs as its heaviest label."""
        if not self.teachers:
            return target, weight
        scored = weight.amax(dim=1, keepdim=True).expand_as(weight)
        return torch.cat([target, torch.zeros_like(target)], dim=1), torch.cat([weight, scored], dim=1)

    @cached_property
    def orders(self) -> list[Int[Tensor, "class"]]:
        """The places of the student's labels among each teacher's, on the teacher's device."""
        models = [teacher.model for teacher in self.teachers]
        orders = label_orders([self.student, *(model.config for model in models)])[1:]
        return [
            torch.from_numpy(order).to(next(model.parameters()).device)
            for order, model in zip(orders, models, strict=True)
        ]

    @torch.no_grad()
    def scores(
        self, heard: Callable[[MelConfig], Float[Tensor, "batch mel frame"]], precision: Precision
    ) -> Float[Tensor, "batch class"]:
        """The teachers' mean scores in the order of the student's labels, float32.

        `heard` gives the step's log-mels of a front end; each front end is computed once.
        """
        front_ends = dict.fromkeys(teacher.model.config.mel for teacher in self.teachers)
        mels = {front_end: heard(front_end) for front_end in front_ends}
        rows = []
        for teacher, order in zip(self.teachers, self.orders, strict=True):
            mel = mels[teacher.model.config.mel]
            with autocast(mel.device, precision):
                logits = teacher.model(mel).logits.float()
            decision = teacher.model.config.decision
            scaled = decision.slope * logits + decision.bias  # calibrated, as `patchout tag` gives them
            is_softmax = self.student.task == "multi_class"
            rows.append((scaled.softmax(1) if is_softmax else scaled.sigmoid())[:, order])
        return torch.stack(rows).mean(dim=0)

"""A cache of the teachers' scores of whole clips: 8 bits a score, memory-mapped, resumable.

Scores are computed once, in blocks of clips; a block is computed anew when a file of its clips has changed.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from jaxtyping import Float, UInt8
from torch import Tensor

from patchout.data.clips import ClipSet
from patchout.data.job_folder import differences, only_writer
from patchout.errors import InputError
from patchout.files import states_sha256, write_aside, write_json
from patchout.inference.evaluate import label_orders
from patchout.inference.window_scores import score
from patchout.models.device import Precision
from patchout.models.tagger import TaggerConfig
from patchout.training import loop
from patchout.training.run import Host
from patchout.training.supervised.distillation import Teacher

ABOUT, SCORES = "about.json", "scores.npy"
BLOCK = 512  # clips a file while scores are computed: what an interruption loses
BATCH = 16  # windows a forward pass
TODO = "name another distill_cache, or delete this one"
MAX_NAMES = 20  # of clips without scores that are told


@dataclass(frozen=True)
class ScoreCache:
    """Clip -> mean scores of the teachers, and whether there are any.

    The scores are those of the whole clip (`patchout.tag`), whichever part of it a step hears. A score p is
    stored as round(255 sqrt(p)), at least 1: an error of at most .004, of .0001 around .001. A row of zeros
    is a clip that could not be read, or of which a teacher's scores are not finite.
    """

    folder: Path
    student: TaggerConfig
    num_clips: int

    def __call__(self, clip: int) -> tuple[Float[Tensor, "class"], bool]:
        """Scores of a clip; of one class a clip they have the sum 1."""
        row = np.load(self.folder / SCORES, mmap_mode="r")[clip]
        scores = torch.from_numpy((row.astype(np.float32) / 255) ** 2)
        if self.student.task == "multi_class":
            scores = scores / scores.sum().clamp(min=1e-6)
        return scores, bool(row.any())

    def bind(self, clips: ClipSet, teachers: Sequence[Teacher]) -> str:
        """Bind a new cache to teachers, clips and classes; one of others is an InputError that says which.

        Returns what `fill` will do, in words; "" where nothing is left to do.
        """
        path, student = self.folder / ABOUT, self.student
        identity = {"teachers": [teacher.sha256 for teacher in teachers], "clips": clips.ids_sha256()}
        identity |= {"channel": clips.channel, "labels": list(student.labels), "task": student.task}
        if path.exists():
            if changes := ", ".join(differences(self._about(), identity)):
                raise InputError(f"{self.folder}: keeps scores of another run (other {changes}): {TODO}")
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder}: holds files, but no scores: {TODO}")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, identity)
        if not (self.folder / SCORES).exists():
            return f"{len(teachers)} teachers score {len(clips)} clips once, into {self.folder}"
        count = sum(len(clips_of(number, len(clips))) for number in self._missing(clips))
        what = f"{len(teachers)} teachers score {count} of {len(clips)} clips anew, into {self.folder}"
        reason = "sounds among them have changed, or were scored by a version that kept no times"
        return f"{what}: {reason}" if count else ""

    def fill(self, clips: ClipSet, teachers: Sequence[Teacher], host: Host, precision: Precision) -> None:
        """Compute the scores that are missing or of changed sounds, every process its blocks, and join them.

        Tells which clips have none. One run at a time writes a folder: InputError for another.
        """
        main = host.world.is_main_process
        if all(gather_object([(self.folder / SCORES).exists()])):  # the same answer for all
            loop.agreed(self._check)
        states = loop.agreed(lambda: self._missing(clips) if main else {})
        states = broadcast_object_list([states])[0]  # of the files, as one process saw them
        blocks = {number: self.folder / f"block-{number:06}-{state}.npy" for number, state in states.items()}
        if blocks:
            lock = only_writer(self.folder, halves=(".*.npy",))
            with ExitStack() as stack:
                loop.agreed(lambda: stack.enter_context(lock) if main else None)
                loop.agreed(lambda: self._compute(blocks, clips, teachers, host, precision))
                loop.agreed(lambda: self._join(blocks, states) if main else None)
        if main:
            rows = np.load(self.folder / SCORES, mmap_mode="r")
            lost = np.flatnonzero(~rows.any(axis=1)).tolist()
            names = ", ".join(map(clips.name, lost[:MAX_NAMES])) + (" ..." if len(lost) > MAX_NAMES else "")
            reason = "they cannot be read, or the scores are not finite"
            if lost:
                host.listener.on_problem(
                    f"{len(lost)} of {len(clips)} clips have no scores ({reason}): {names}"
                )

    def _compute(
        self,
        blocks: Mapping[int, Path],
        clips: ClipSet,
        teachers: Sequence[Teacher],
        host: Host,
        precision: Precision,
    ) -> None:
        """Write the blocks of this process that are not there yet."""
        orders = label_orders([self.student, *(teacher.model.config for teacher in teachers)])[1:]
        mine = list(blocks)[host.world.process_index :: host.world.num_processes]
        for number in (number for number in mine if not blocks[number].exists()):
            block = clips.take(clips_of(number, len(clips)))
            total, is_scored = np.zeros((len(block), len(self.student.labels))), np.ones(len(block), bool)
            for teacher, order in zip(teachers, orders, strict=True):
                model = teacher.model.to(host.device)
                streams = (block.stream(clip, model.config.mel.sample_rate) for clip in range(len(block)))
                for clip, scored in enumerate(score(model, streams, precision=precision, batch_size=BATCH)):
                    if scored.scores is None or not np.isfinite(scored.scores).all():
                        is_scored[clip] = False
                    else:
                        total[clip] += scored.scores[order]
            rows = quantised(total / len(teachers)) * is_scored[:, None]
            with write_aside(blocks[number]) as aside:
                np.save(aside, rows.astype(np.uint8))
        for teacher in teachers:
            teacher.model.cpu()

    def _join(self, blocks: Mapping[int, Path], states: Mapping[int, str]) -> None:
        """One file of the new blocks, which are then deleted, and of the old scores of all others."""
        path, count = self.folder / SCORES, self.num_clips
        rows = np.load(path) if path.exists() else np.zeros((count, len(self.student.labels)), np.uint8)
        for number, block in blocks.items():
            rows[clips_of(number, count)] = np.load(block)
        with write_aside(path) as aside:
            np.save(aside, rows)
        identity = self._about()
        scored = identity.get("blocks", {}) | {str(number): state for number, state in states.items()}
        write_json(self.folder / ABOUT, identity | {"blocks": scored})
        for block in self.folder.glob("block-*.npy"):  # also of files in earlier states
            block.unlink()

    def _missing(self, clips: ClipSet) -> dict[int, str]:
        """The blocks without scores of their files as they are, each with the state of these files."""
        scored = self._about().get("blocks", {}) if (self.folder / SCORES).exists() else {}
        files = clips.files_on_disk()
        parts = (files[first : first + BLOCK] for first in range(0, len(files), BLOCK))
        states = {number: states_sha256(part)[:16] for number, part in enumerate(parts)}
        return {number: state for number, state in states.items() if scored.get(str(number)) != state}

    def _about(self) -> dict[str, Any]:
        path = self.folder / ABOUT
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path}: is damaged ({error}): {TODO}") from None

    def _check(self) -> None:
        """Refuse scores that are damaged, or of another number of clips."""
        path, shape = self.folder / SCORES, (self.num_clips, len(self.student.labels))
        todo = f"delete {self.folder}, the scores are then computed anew"
        try:
            rows = np.load(path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise InputError(f"{path}: is damaged ({error}): {todo}") from None
        if rows.shape != shape or rows.dtype != np.uint8:
            raise InputError(f"{path}: holds {rows.dtype} {rows.shape}, not uint8 {shape}: {todo}")


def clips_of(block: int, count: int) -> range:
    """The clips of a block, of so many clips."""
    return range(block * BLOCK, min((block + 1) * BLOCK, count))


def quantised(scores: Float[np.ndarray, "clip class"]) -> UInt8[np.ndarray, "clip class"]:
    """8-bit scores, finer where they are low: most scores of a clip are far below 1/255."""
    return np.clip(np.round(255 * np.sqrt(np.clip(scores, 0, 1))), 1, 255).astype(np.uint8)

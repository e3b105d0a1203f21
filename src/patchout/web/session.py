"""One page's folder: its sounds, labels, model, background tagging and training."""

import getpass
import hashlib
import json
import os
import threading
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patchout.checkpoint.zoo_list import BUILT_IN
from patchout.data.negatives import is_negative
from patchout.errors import InputError
from patchout.files import cache_folder, write_json
from patchout.models.tagger import Tagger
from patchout.web.labels import Labels, LabelsError, Segment
from patchout.web.learner import RUNS, Learner
from patchout.web.sound_index import SoundIndex, ordered
from patchout.web.worker import Worker

WORK = ".patchout"  # in the folder: results, runs, what was chosen
CHOSEN = "page.json"
MAX_ORDERS = 8  # of the list that are remembered


def work_folder(folder: Path) -> Path:
    """Where results are kept: in the folder, or in the cache where it cannot be written."""
    if os.access(folder, os.W_OK):
        return folder / WORK
    return cache_folder() / "web" / hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def last_model(work: Path) -> str:
    """The model that the page learnt last, else the built-in one."""
    try:
        model = str(json.loads((work / CHOSEN).read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return BUILT_IN
    return model if Path(model).is_file() else BUILT_IN


@dataclass
class Session:
    """What the server answers from. Lists keep their order while they are paged through."""

    folder: Path
    model_name: str
    device: str = "auto"
    labels: Labels = field(init=False)
    index: SoundIndex = field(init=False)
    worker: Worker = field(init=False)
    learner: Learner = field(init=False)
    generation: int = 0  # changes with the model
    _orders: "OrderedDict[str, list[str]]" = field(default_factory=OrderedDict)
    _number: int = 0  # of the next order
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        """Scan the folder; nothing is loaded yet."""
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: no such folder: give one with sounds")
        self.work = work_folder(self.folder)
        self.model_name = self.model_name or last_model(self.work)
        self.user = getpass.getuser()
        self.labels = Labels(self.folder)
        self.learner = Learner(self.labels.path, self.work, self._learnt)
        self.index, self.worker = self._opened(self.model_name)

    def _opened(self, model: str) -> tuple[SoundIndex, Worker]:
        from patchout.checkpoint.download import file_sha256
        from patchout.checkpoint.zoo import load, locate

        digest = file_sha256(locate(model))[:16]

        def loaded() -> Tagger:
            return load(model, self.device)

        index = SoundIndex(self.folder, self.work / f"{digest}.sqlite")
        index.scan()
        return index, Worker(index, loaded)

    def start(self) -> None:
        """Begin to tag."""
        if os.access(self.folder, os.W_OK):
            self.labels.remove_halves()
        self.worker.start()

    def close(self) -> None:
        """End what runs."""
        self.learner.stop()
        self.worker.stop()
        self.index.close()

    def model(self) -> Tagger:
        """The model, loaded once by the worker; InputError until then."""
        if self.worker.model is None:
            raise InputError(self.worker.error or "the model is being loaded: try again in a moment")
        return self.worker.model

    def _learnt(self, run: Path, has_same_encoder: bool) -> None:
        """Take over a model that was trained here; where that fails, the page goes on with the one it has."""
        from patchout.web.rescoring import adopt

        name = str(run / "model.safetensors")
        index, worker = self._opened(name)
        with ExitStack() as on_failure:
            on_failure.callback(index.close)
            worker.model = worker.load()
            if has_same_encoder:
                adopt(self.index, index, worker.model)
            write_json(self.work / CHOSEN, {"model": name})
            on_failure.pop_all()
        old = self.worker, self.index
        with self._lock:
            self.index, self.worker, self.model_name = index, worker, name
            self.generation += 1
            self._orders.clear()
        worker.start()
        old[0].stop()
        old[1].close()

    def page(self, *, sort: str, search: str, first: int, count: int, order: str) -> dict[str, Any]:
        """Rows of the list, and the name of its order; that of a former page keeps every row in its place."""
        labels, labels_error = self._by_file()
        with self._lock:
            if order not in self._orders:
                names = {file: [name for row in rows for name in row.labels] for file, rows in labels.items()}
                self._number += 1
                order = f"{sort}.{self._number}"
                self._orders[order] = ordered([*self.index.sounds.values()], names, sort, search)
                while len(self._orders) > MAX_ORDERS:
                    self._orders.popitem(last=False)
            self._orders.move_to_end(order)
            files = self._orders[order]
        rows = [self.row(file, labels.get(file, [])) for file in files[first : first + count]]
        return {"order": order, "total": len(files), "first": first, "rows": rows, "error": labels_error}

    def row(self, file: str, labels: list[Segment]) -> dict[str, Any]:
        """A row of the list."""
        sound = self.index.sounds.get(file)
        row: dict[str, Any] = {"file": file, "labels": [name for part in labels for name in part.labels]}
        if sound is None:
            return {**row, "error": "is gone"}
        if (summary := sound.summary) is None:
            return row
        values = {"duration": summary.duration_s, "label": summary.label, "score": summary.score}
        return {
            **row,
            **values,
            "passed": summary.is_passed,
            "events": summary.events,
            "error": summary.error,
        }

    def _by_file(self) -> tuple[dict[str, list[Segment]], str]:
        """The labels by file, and why they cannot be read."""
        rows: dict[str, list[Segment]] = {}
        try:
            for segment in self.labels.segments():
                rows.setdefault(segment.file, []).append(segment)
        except (LabelsError, OSError) as error:
            return {}, str(error)
        return rows, ""

    def state(self) -> dict[str, Any]:
        """What the page shows of everything that runs."""
        labels, error = self._by_file()
        sounds = list(self.index.sounds.values())
        worker, model = self.worker, self.worker.model
        names = {name for rows in labels.values() for row in rows for name in row.labels}
        names = {name for name in names if not is_negative(name)}
        problems = [text for text in (*self.index.problems, worker.error, error) if text]
        if not os.access(self.folder, os.W_OK):
            problems.append(f"no permission to write into {self.folder}: labels cannot be kept")
        return {
            "folder": str(self.folder),
            "model": self.model_name,
            "classes": list(model.config.labels) if model else [],
            "names": sorted(names),
            "total": len(sounds),
            "tagged": sum(sound.summary is not None for sound in sounds),
            "failed": sum(sound.summary is not None and bool(sound.summary.error) for sound in sounds),
            "labelled": len(labels),
            "current": worker.current,
            "seconds": round(worker.seconds, 1),
            "problems": problems,
            "generation": self.generation,
            "learning": self.learner.state(self.model_name),
            "runs": f"{WORK}/{RUNS}",
        }

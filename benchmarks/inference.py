"""Speed of PaSST against its peers, all measured in one run: python benchmarks/inference.py --threads 1

Random weights, clips of 10 s, on the CPU, from waveform to logits. The peers: the plain baseline
(`baseline.py`: float32, explicit attention, one clip at a time); Hugging Face's AST with fused attention and
as many tokens, from its log-mel on, if transformers is installed; ONNX Runtime on our exported PaSST, if the
extra `onnx` is. Every round times each case once, so that a slow minute of the machine hits all of them, and
the best round of each counts. Run it on an otherwise idle machine.
"""

import argparse
import importlib
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import baseline
import torch
from torch import Tensor

from patchout.audio.mel import MelConfig, log_mel
from patchout.bench.measure import auto
from patchout.models.autotune import processor
from patchout.models.device import InferencePrecision, autocast
from patchout.models.int8 import at_precision
from patchout.models.passt import Passt, PasstConfig

CLIP_S = 10
LABELS = tuple(f"class {index}" for index in range(527))
CPU = torch.device("cpu")
BASELINE, AST = "baseline fp32", "AST fp32"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to time: `call` works on `batch` clips."""

    what: str
    batch: int
    call: Callable[[], object]
    repeats: int = 1


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One row of the result."""

    what: str
    batch: int
    clips_per_s: float


def cases_of(waves: Tensor, batches: Sequence[int], folder: Path) -> Iterator[Case]:
    """Every subject at every batch size that it takes; waves (clips, samples)."""
    yield Case(what="baseline log-mel", batch=1, call=partial(baseline.log_mel, waves[:1]), repeats=10)
    for batch in batches:
        yield Case(what="log-mel", batch=batch, call=partial(log_mel, waves[:batch], MelConfig()), repeats=10)
    plain = baseline.Baseline().eval()
    yield Case(what=BASELINE, batch=1, call=partial(baseline.clip_seconds, plain, waves[:1]))
    yield from ast_cases(batches)
    model = Passt(PasstConfig(labels=LABELS)).eval()
    small = Passt(PasstConfig(labels=LABELS, stride=(16, 16), columns=62)).eval()
    yield from onnx_cases(model, waves, batches, folder)
    subjects: list[tuple[str, Passt, InferencePrecision]] = [
        *(("PaSST-S", model, name) for name in ("fp32", "bf16", "auto", "int8")),
        *(("PaSST-S-N", small, name) for name in ("fp32", "int8")),
    ]
    for name, tagger, precision in subjects:
        infer = infer_at(tagger, precision)
        for batch in batches:
            yield Case(what=f"{name} {precision}", batch=batch, call=partial(infer, waves[:batch]))


def infer_at(model: Passt, precision: InferencePrecision) -> Callable[[Tensor], Tensor]:
    """The whole model at a precision: waves (clips, samples) -> logits."""
    tagger, inside = at_precision(model, precision)

    def infer(waves: Tensor) -> Tensor:
        with torch.inference_mode(), autocast(CPU, inside):
            return tagger.predict(log_mel(waves, model.config.mel)).logits

    return infer


def ast_cases(batches: Sequence[int]) -> Iterator[Case]:
    """Hugging Face's AST: Base size, stride 10, 998 frames of 128 bands, as many tokens as PaSST-S."""
    if importlib.util.find_spec("transformers") is None:
        return
    transformers = importlib.import_module("transformers")
    config = transformers.ASTConfig(max_length=998, num_labels=len(LABELS), attn_implementation="sdpa")
    model = transformers.ASTForAudioClassification(config).eval()

    def infer(mel: Tensor) -> Tensor:
        with torch.inference_mode():
            return model(input_values=mel).logits

    for batch in batches:
        yield Case(what=AST, batch=batch, call=partial(infer, torch.randn(batch, 998, 128)))


def onnx_cases(model: Passt, waves: Tensor, batches: Sequence[int], folder: Path) -> Iterator[Case]:
    """ONNX Runtime on the exported model, with as many threads as torch."""
    if importlib.util.find_spec("onnxruntime") is None:
        return
    import onnxruntime

    from patchout.export.write import export

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    for precision in ("fp32", "int8"):
        path = folder / f"{precision}.onnx"
        export(model, path, precision=precision, seconds=CLIP_S)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        for batch in batches:
            feed = {name: waves[:batch].numpy()}
            yield Case(what=f"ONNX {precision}", batch=batch, call=partial(session.run, None, feed))


def seconds_per_clip(cases: list[Case], rounds: int) -> list[float]:
    """Best time of each case over `rounds`, each after a call not counted: memory and caches are its own."""
    best = [float("inf")] * len(cases)
    for _ in range(rounds):
        for index, case in enumerate(cases):
            case.call()
            start = time.perf_counter()
            for _ in range(case.repeats):
                case.call()
            spent = (time.perf_counter() - start) / (case.repeats * case.batch)
            best[index] = min(best[index], spent)
    return best


def report(rows: list[Speed], batches: Sequence[int]) -> Iterator[str]:
    """The table, a line a subject: clips/s at every batch, and ratios to the peers."""
    speeds: dict[str, dict[int, float]] = {}
    for row in rows:
        speeds.setdefault(row.what, {})[row.batch] = row.clips_per_s
    heads = [f"batch {batch}" for batch in batches] + ["x baseline", f"x AST at {batches[0]}", "x AST best"]
    yield f"{'clips/s':<20}" + "".join(f"{head:>12}" for head in heads)
    for name, by_batch in speeds.items():
        cells = [f"{by_batch[batch]:.2f}" if batch in by_batch else "" for batch in batches]
        is_mel = "log-mel" in name
        best, base = max(by_batch.values()), speeds["baseline log-mel" if is_mel else BASELINE][1]
        cells.append(f"{best / base:.2f}")
        if AST in speeds and not is_mel:
            peer = speeds[AST]
            cells += [f"{by_batch[batches[0]] / peer[batches[0]]:.2f}", f"{best / max(peer.values()):.2f}"]
        yield f"{name:<20}" + "".join(f"{cell:>12}" for cell in cells)
    for batch in batches:
        better = max(speeds[f"PaSST-S {name}"][batch] for name in ("fp32", "bf16"))
        share = speeds["PaSST-S auto"][batch] / better
        yield f"auto at batch {batch}: {share:.2f} x the better of fp32 and bf16"


def main() -> None:
    """Measure, print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description="Speed of PaSST on 10 s clips against its peers (CPU).")
    parser.add_argument("--rounds", type=int, default=3, help="times each case is timed; the best counts")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8], help="clips at a time")
    parser.add_argument("--threads", type=int, default=0, help="cores to use (default: all)")
    parser.add_argument("--json", type=Path, help="file to write the same numbers to")
    options = parser.parse_args()
    if options.rounds < 1 or min(options.batches) < 1:
        parser.error(f"--rounds and --batches count from 1, got {options.rounds} and {options.batches}")
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = {"torch": torch.__version__, "cpu": processor(), "threads": torch.get_num_threads()}
    print("  ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    print(f"auto: {auto(CPU)}", flush=True)
    torch.manual_seed(0)
    waves = 0.1 * torch.randn(max(options.batches), CLIP_S * MelConfig().sample_rate)
    with tempfile.TemporaryDirectory() as folder:
        cases = list(cases_of(waves, options.batches, Path(folder)))
        spent = seconds_per_clip(cases, options.rounds)
    rows = [
        Speed(what=case.what, batch=case.batch, clips_per_s=1 / seconds)
        for case, seconds in zip(cases, spent, strict=True)
    ]
    print("\n".join(report(rows, options.batches)))
    if options.json:
        record = {
            **machine,
            "rounds": options.rounds,
            "clip_s": CLIP_S,
            "rows": [asdict(row) for row in rows],
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

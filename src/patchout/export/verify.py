"""Parity of an ONNX file with its PyTorch model, on sounds from formulas; and the self-test of a file."""

import importlib.util
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from patchout.audio.mel import log_mel
from patchout.errors import InputError
from patchout.models.tagger import Tagger

Precision = Literal["fp32", "fp16", "int8"]
FORMAT = "patchout-onnx-1"
OPSET, IR = 18, 8
OLDEST_RUNTIME = (1, 14)  # of ONNX Runtime, that knows both
EXTRA = ("onnx", "onnxscript", "onnxruntime")
LOGIT_LIMIT = 1e-4  # of fp32
SPREAD_LIMITS = {
    "fp16": 0.01,
    "int8": 0.1,
}  # of the distance from the lowest logit of the reference to its highest
SELF_TEST = "0.5 * sin(pi * 0.45 * sample ** 2 / samples)"  # a sweep from 0 to 0.45 of the sample rate
MEL_SELF_TEST = "30 * sin(0.37 * band) * sin(0.011 * frame) - 30"


class Agreement(NamedTuple):
    """How near two sets of logits (clip, class) are."""

    clips: int
    same_top: int  # clips whose best class is the same
    difference: float  # the largest between two logits
    spread: float  # from the lowest logit of the reference to its highest

    def __str__(self) -> str:
        """One line for people."""
        share = self.difference / self.spread if self.spread else 0.0
        return (
            f"logits differ by at most {self.difference:.2g} ({share:.2%} of their spread), "
            f"best class the same in {self.same_top} of {self.clips} clips"
        )

    def holds(self, precision: Precision) -> bool:
        """Whether this is as near as a precision allows; NaN is not."""
        limit = LOGIT_LIMIT if precision == "fp32" else SPREAD_LIMITS[precision] * self.spread
        return self.difference <= limit


def check_extra() -> None:
    """Refuse to go on without the packages of the extra `onnx`, or with an ONNX Runtime that is too old."""
    if missing := [name for name in EXTRA if importlib.util.find_spec(name) is None]:
        raise InputError(f"ONNX files need {', '.join(missing)}: pip install 'patchout[onnx]'")
    import onnxruntime

    numbers = tuple(map(int, re.findall(r"\d+", onnxruntime.__version__)[:2]))
    if numbers < OLDEST_RUNTIME:
        oldest = ".".join(map(str, OLDEST_RUNTIME))
        raise InputError(
            f"onnxruntime {onnxruntime.__version__} does not know opset {OPSET}: it takes {oldest} or newer, "
            "pip install -U onnxruntime"
        )


def open_session(path: str | os.PathLike[str]) -> Any:
    """A session of ONNX Runtime on the CPU; InputError for a file that it cannot run."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    refused = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoModel)
    try:
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    except (*refused, state.NotImplemented, state.RuntimeException) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"{path}: onnxruntime {onnxruntime.__version__} cannot run it ({reason}): export it again"
        ) from None


def logits_of(session: Any, values: np.ndarray) -> Float[np.ndarray, "clip class"]:
    """What a file says of its input."""
    return session.run(["logits"], {session.get_inputs()[0].name: values})[0]


def compare(expected: Float[np.ndarray, "clip class"], logits: Float[np.ndarray, "clip class"]) -> Agreement:
    """How near logits are to those that are expected."""
    same = int((expected.argmax(axis=1) == logits.argmax(axis=1)).sum())
    return Agreement(len(expected), same, float(np.abs(expected - logits).max()), float(np.ptp(expected)))


# -- parity with PyTorch -------------------------------------------------------------------------------------


def clips(samples: int) -> Float[np.ndarray, "3 sample"]:
    """A sweep 10 dB above noise, noise, and a sweep so quiet that most of a log-mel is floor.

    Without noise the bands beside a loud sweep hold little but rounding errors, and every FFT has its own.
    """
    sweep = _sweep(samples)
    noise = 0.1 * np.random.default_rng(samples).standard_normal(samples)
    return np.stack([sweep + noise, noise, 1e-3 * sweep]).astype(np.float32)


def parity(session: Any, model: Tagger, lengths: list[int], *, is_mel: bool) -> Agreement:
    """How near a file is to its model, over clips of these lengths in samples."""
    expected, logits = [], []
    plain = replace(model.config.mel, mean=None, std=None)
    for samples in lengths:
        waves = clips(samples)
        with torch.inference_mode():
            expected.append(model(log_mel(waves, model.config.mel)).logits.numpy())
        logits.append(logits_of(session, log_mel(waves, plain).numpy() if is_mel else waves))
    return compare(np.concatenate(expected), np.concatenate(logits))


# -- a file's own test ---------------------------------------------------------------------------------------


def _sweep(samples: int) -> Float[np.ndarray, "sample"]:
    """`SELF_TEST` in the file's words."""
    return 0.5 * np.sin(np.pi * 0.45 * np.arange(samples) ** 2 / samples)


def self_test_input(bands: int, size: int) -> np.ndarray:
    """The input of `SELF_TEST`, (1, samples), or with `bands` that of `MEL_SELF_TEST`, (1, bands, frames)."""
    if not bands:
        return _sweep(size)[None].astype(np.float32)
    band, frame = np.arange(bands)[:, None], np.arange(size)
    return (30 * np.sin(0.37 * band) * np.sin(0.011 * frame) - 30)[None].astype(np.float32)


def self_test(session: Any, precision: Precision, *, bands: int, size: int) -> str:
    """The self-test on `size` samples or frames, as JSON: formula of the input, logits, tolerance."""
    (logits,) = logits_of(session, self_test_input(bands, size))
    tolerance = 10 * LOGIT_LIMIT if precision == "fp32" else SPREAD_LIMITS[precision] * float(np.ptp(logits))
    test = {
        "input": MEL_SELF_TEST if bands else SELF_TEST,
        "bands": bands,
        "size": size,
        "logits": [round(float(value), 5) for value in logits],
        "tolerance": round(tolerance, 5),
    }
    return json.dumps(test)


def verify(path: Path) -> tuple[dict[str, str], Agreement]:
    """Metadata of an exported file and its agreement with its self-test; a failed one is an InputError."""
    check_extra()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(path)
    except DecodeError:
        raise InputError(f"{path}: is no ONNX file, or damaged: export it again") from None
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path}: no {FORMAT!r} in its metadata: give a file of `patchout export`")
    opset = max(entry.version for entry in proto.opset_import if not entry.domain)
    if opset < OPSET:
        raise InputError(f"{path}: is of opset {opset}, this patchout writes {OPSET}: export it again")
    session = open_session(path)
    test = json.loads(metadata["self_test"])
    logits = logits_of(session, self_test_input(test["bands"], test["size"]))
    agreement = compare(np.array([test["logits"]], np.float32), logits)
    if not agreement.difference <= test["tolerance"]:  # NaN too
        raise InputError(
            f"{path}: fails its self-test ({agreement}; {test['tolerance']:.2g} is allowed): "
            "export it again, or use another onnxruntime"
        )
    return metadata, agreement

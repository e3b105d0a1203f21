"""Export of a tagger to an ONNX file with labels, front end and self-test; named only after parity."""

import json
import logging
import re
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

import patchout
from patchout.errors import InputError
from patchout.export.graph import MelScores, WaveformScores
from patchout.export.sherpa import check_sherpa
from patchout.export.verify import (
    FORMAT,
    IR,
    OPSET,
    Agreement,
    Precision,
    check_extra,
    open_session,
    parity,
    self_test,
)
from patchout.files import write_aside
from patchout.models.tagger import Tagger, TaggerConfig, check_labels

FrontEnd = Literal["waveform", "sherpa"]
MAX_BYTES = 2**31 - 2**20  # of a protobuf message, with room for what is no weight


class Lengths(NamedTuple):
    """Samples that a file takes."""

    shortest: int
    longest: int

    @property
    def tried(self) -> list[int]:
        """The lengths whose parity is looked at."""
        return sorted({self.shortest, (self.shortest + self.longest) // 2, self.longest})


def lengths_of(config: TaggerConfig, seconds: float | None) -> Lengths:
    """What a file of `seconds` takes: that alone, or with None all that the model takes."""
    if seconds is None:
        return Lengths(config.min_samples, config.max_samples)
    rate = config.mel.sample_rate
    samples = round(seconds * rate)
    if not config.min_samples <= samples <= config.max_samples:
        raise ValueError(
            f"--seconds {seconds:g} is not what this model takes: its table of positions is for "
            f"{config.min_samples / rate:.2f} to {config.max_samples / rate:.2f} s; longer sounds: any"
        )
    return Lengths(samples, samples)


def check(model: Tagger, precision: Precision, seconds: float | None, front_end: FrontEnd) -> Lengths:
    """Refuse what no file can be made of, in a moment; returns the lengths that the file takes."""
    check_extra()
    check_labels(model.config)
    if front_end == "sherpa":
        check_sherpa(model.config, seconds)
    size = sum(weight.numel() for weight in model.state_dict().values()) * (2 if precision == "fp16" else 4)
    if size > MAX_BYTES:  # what protobuf cannot hold, also on the way to int8
        holds = f"one ONNX file holds {MAX_BYTES / 1e9:.1f}"
        raise InputError(f"the weights take {size / 1e9:.1f} GB, {holds}: try --precision fp16")
    return lengths_of(model.config, seconds)


def export(
    model: Tagger,
    path: Path,
    *,
    precision: Precision = "fp32",
    seconds: float | None = None,
    front_end: FrontEnd = "waveform",
) -> Agreement:
    """Write a model on the CPU as ONNX, and say how near the file is to it.

    `seconds` fixes the length; None takes every length that the model takes. "sherpa" takes what sherpa-onnx
    feeds to a CED: the log-mel of a model with `sherpa.MEL`. Renamed to `path` after parity with PyTorch.
    Raises ValueError for a wrong request, InputError for a model that cannot be exported, OSError.
    """
    lengths, is_mel = check(model, precision, seconds, front_end), front_end == "sherpa"
    with write_aside(path) as aside, _quiet():
        _write(_proto(model, lengths, is_mel=is_mel, half=precision == "fp16"), aside, precision)
        agreement = parity(open_session(aside), model, lengths.tried, is_mel=is_mel)
        if not agreement.holds(precision):
            raise InputError(f"{path}: not written, too far from PyTorch in {precision}: {agreement}")
        _describe(aside, model, precision, lengths, is_mel=is_mel)
    return agreement


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporter and quantiser talk about themselves."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


# -- graph ---------------------------------------------------------------------------------------------------


def _proto(model: Tagger, lengths: Lengths, *, is_mel: bool, half: bool) -> Any:
    """The graph as an `onnx.ModelProto`."""
    config, dims = model.config, {0: "batch"}
    if is_mel:
        module: WaveformScores = MelScores(model, half=half)
        example = torch.zeros(2, config.mel.n_mels, 2 * config.max_frames)
        dims[2] = "frames"
    else:
        module = WaveformScores(model, half=half)
        example = torch.zeros(2, (lengths.shortest + 3 * lengths.longest) // 4)
        if lengths.shortest < lengths.longest:
            dims[1] = "samples"
    # no ranges: one patch column has other strides than two, which to the exporter is another program
    shapes = dict.fromkeys(dims, torch.export.Dim.DYNAMIC)
    try:
        program = torch.export.export(module.eval(), (example,), dynamic_shapes=(shapes,), strict=False)
        graph = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    except (RuntimeError, ValueError, TypeError) as error:
        raise InputError(f"{_part(error, module)} cannot be exported: {_reason(error)}") from error
    assert graph is not None
    graph.model.graph.inputs[0].name = "log_mel" if is_mel else "waveform"
    for value, name in zip(graph.model.graph.outputs, ("scores", "logits"), strict=True):
        value.name = name
    proto = graph.model_proto
    for axis, name in dims.items():
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    for value in proto.graph.output:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return proto


def _part(error: BaseException | None, module: nn.Module) -> str:
    """The part of a model in which the exporter failed: the innermost one whose code was running."""
    names = {id(part): name for name, part in module.named_modules() if name}
    part = ""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            part = names.get(id(frame.f_locals.get("self")), part)
        error = error.__cause__ or error.__context__
    return f"the part {part.removeprefix('model.')!r} of the model" if part else "this model"


def _reason(error: BaseException) -> str:
    """The first line of what failed, and the operation that has no ONNX form."""
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    operation = re.search(r"target=torch\.ops\.([\w.]+)", text)
    return f"no ONNX for {operation[1]}" if operation else text.strip().partition("\n")[0]


def _write(proto: Any, path: Path, precision: Precision) -> None:
    """Store the graph; int8 quantises the weights of its matrix products, with a scale per output channel."""
    import onnx

    for node in proto.graph.node:  # where in this machine's files each line of the model stands
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    proto.ClearField("metadata_props")
    proto.ir_version = IR
    proto.producer_name, proto.producer_version = "patchout", patchout.__version__
    if precision != "int8":
        onnx.save(proto, path)
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        proto,
        path,
        op_types_to_quantize=["MatMul"],
        nodes_to_exclude=[
            f"{node.name}_MatMul" for node in proto.graph.node if node.op_type == "Gemm"
        ],  # the head
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=True,  # 7 bits of weight: processors without VNNI add two products in 16 bits
        extra_options={"MatMulConstBOnly": True},
    )
    if "MatMulInteger" not in {node.op_type for node in onnx.load(path).graph.node}:
        raise InputError("this model has no matrix product that int8 could speed up: try --precision fp16")


# -- metadata ------------------------------------------------------------------------------------------------


def _describe(path: Path, model: Tagger, precision: Precision, lengths: Lengths, *, is_mel: bool) -> None:
    """Write into a file what it takes, what it knows, and its self-test."""
    import onnx

    config, mel = model.config, model.config.mel
    size = config.max_frames if is_mel else lengths.longest
    metadata = {
        "format": FORMAT,
        "patchout": patchout.__version__,
        "model": config.title,
        "input": "log-mel" if is_mel else "waveform",
        "labels": json.dumps(config.labels),
        "task": config.task,
        "sample_rate": str(mel.sample_rate),
        "channel": config.channel,
        "min_samples": str(lengths.shortest),
        "pad_samples": str(round(config.pad_s * mel.sample_rate)),
        "window_samples": str(lengths.longest),
        "front_end": json.dumps(asdict(mel)),
        "precision": precision,
        "licence": config.licence,
        "provenance": json.dumps(config.provenance),
        "self_test": self_test(open_session(path), precision, bands=mel.n_mels if is_mel else 0, size=size),
    }
    if config.decision.calibrates:
        metadata["calibration"] = json.dumps([config.decision.slope, config.decision.bias])
    if (thresholds := config.decision.thresholds) is not None:
        metadata["thresholds"] = json.dumps(thresholds.tolist())
    proto = onnx.load(path)
    onnx.helper.set_model_props(proto, metadata)
    onnx.save(proto, path)

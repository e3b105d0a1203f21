"""Exports within tests: the exporter traces with symbols as sizes, which the shape checks refuse."""

from collections.abc import Iterator
from contextlib import contextmanager

import jaxtyping
import pytest

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="the extra onnx")


@contextmanager
def no_shape_checks() -> Iterator[None]:
    """Signatures are not checked."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)

"""The checks that all tests rely on: a wrong type or shape is refused, in arguments and in results."""

from typing import Any

import numpy as np
import pytest
from jaxtyping import Float
from type_checks import checked

from patchout.inference.metrics import accuracy, score_text

Table = Float[np.ndarray, "clip class"]


def widened(table: Table, columns: int) -> Table | None:
    return np.zeros((len(table), table.shape[1] + columns))


def test_an_argument_of_another_type_or_shape_is_refused() -> None:
    with pytest.raises(TypeError, match="not instance of float"):
        score_text("a")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="size of dimension class is 4"):
        accuracy(np.zeros((3, 2)), np.zeros((3, 4)))


def test_a_result_of_another_shape_is_refused() -> None:
    function: Any = checked(widened, typechecker=None)
    assert function(np.zeros((3, 2)), 0).shape == (3, 2)
    with pytest.raises(TypeError, match="return"):
        function(np.zeros((3, 2)), 1)


def test_sizes_are_those_of_one_call() -> None:
    assert accuracy(np.eye(2), np.eye(2)) == accuracy(np.eye(3), np.eye(3)) == 1.0

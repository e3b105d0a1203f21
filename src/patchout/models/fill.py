"""Loading a state dict into a model, with checks of names, shapes and finite values."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from patchout.errors import CheckpointError


def check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that hold NaN or infinity."""
    # a sum costs a tenth of the check of every number, and may only overflow
    broken = [name for name, x in weights.items() if not x.sum().isfinite() and not x.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{source}: {broken[0]} holds NaN or infinity ({len(broken)} of {len(weights)} tensors do): the "
            "training that wrote it diverged, or the file is damaged: give another checkpoint"
        )


def check_names(names: Iterable[str], expected: Iterable[str], source: str) -> None:
    """Refuse weights under other names than the model's."""
    missing, unknown = sorted({*expected} - {*names}), sorted({*names} - {*expected})
    if missing or unknown:
        raise CheckpointError(f"{source}: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")


def check_fit(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights under other names, or of other shapes, than the model's."""
    check_names(weights, expected, source)
    for name, tensor in weights.items():
        shape, model_shape = tuple(tensor.shape), tuple(expected[name].shape)
        if shape != model_shape:
            raise CheckpointError(f"{source}: {name} is {shape}, the model has {model_shape}")


def undrawn() -> torch.device:
    """A context in which a model is built without memory and first weights, for `fill` to give it both.

    To draw those of Base takes as long as to read its file.
    """
    return torch.device("meta")


def fill(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a model and put it in evaluation mode; every name and shape must match."""
    expected = model.state_dict()
    check_fit(weights, expected, source)
    if bare := any(tensor.is_meta for tensor in expected.values()):  # tensors of a file share its memory
        form = torch.contiguous_format
        weights = {
            name: tensor.to(expected[name].dtype, copy=True, memory_format=form)
            for name, tensor in weights.items()
        }
    model.load_state_dict(dict(weights), assign=bare)
    model.eval()

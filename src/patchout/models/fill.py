"""Weights into a model: every name and shape checked, every number finite."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from patchout.errors import CheckpointError


def check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that hold NaN or infinity."""
    broken = [  # a sum costs a tenth of asking every number, and may only overflow
        name
        for name, tensor in weights.items()
        if not tensor.sum().isfinite() and not tensor.isfinite().all()
    ]
    if broken:
        raise CheckpointError(
            f"{source}: {broken[0]} holds NaN or infinity ({len(broken)} of {len(weights)} tensors do): the training "
            "that wrote it diverged, or the file is damaged: give another checkpoint"
        )


def check_names(given: Iterable[str], wanted: Iterable[str], source: str) -> None:
    """Refuse weights that have not exactly the wanted names."""
    missing, unknown = sorted({*wanted} - {*given}), sorted({*given} - {*wanted})
    if missing or unknown:
        raise CheckpointError(f"{source}: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}")


def check_fit(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that have not exactly the wanted names and shapes."""
    check_names(weights, wanted, source)
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            given, own = tuple(tensor.shape), tuple(wanted[name].shape)
            raise CheckpointError(f"{source}: {name} is {given}, the model has {own}")


def fill(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into the model, in evaluation mode then; every name and shape must match."""
    check_fit(weights, model.state_dict(), source)
    model.load_state_dict(dict(weights))
    model.eval()

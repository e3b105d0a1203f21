"""Recipes: one data set a module, its variants as one-line differences; `VARIANTS` maps each name to its config."""

import importlib
import pkgutil
from dataclasses import replace
from typing import NamedTuple

from patchout.errors import near
from patchout.training.supervised.config import TrainConfig


class Recipe(NamedTuple):
    """A config by name, and what its module says about command, hardware, cost and score."""

    config: TrainConfig
    about: str


def names() -> tuple[str, ...]:
    """Every recipe, variants after the module's own name."""
    return tuple(name for module in _modules() for name in importlib.import_module(module).VARIANTS)


def recipe(name: str) -> Recipe:
    """The recipe of that name; an unknown one is a ValueError with the nearest and all data sets."""
    for path in _modules():
        module = importlib.import_module(path)
        if name in module.VARIANTS:
            return Recipe(replace(module.VARIANTS[name], recipe=name), (module.__doc__ or "").strip())
    sets = ", ".join(path.rpartition(".")[2] for path in _modules())
    meant = near(name, names())
    raise ValueError(
        f"unknown recipe {name!r}{meant}: recipes are {sets}; `patchout train --help` lists variants"
    )


def _modules() -> list[str]:
    return [f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)]

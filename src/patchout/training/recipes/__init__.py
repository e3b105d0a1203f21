"""Recipes: a module for each data set, whose `VARIANTS` maps each name to a config, most of one line."""

import importlib
import pkgutil
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from patchout.errors import near
from patchout.training.supervised.config import TrainConfig


class Recipe(NamedTuple):
    """A config by name, and what its module says about command, hardware, cost and score."""

    config: TrainConfig
    description: str


def names() -> tuple[str, ...]:
    """Every recipe, variants after the module's own name."""
    return tuple(_all())


def recipe(name: str) -> Recipe:
    """The recipe of that name; an unknown one is a ValueError with the nearest and all data sets."""
    recipes = _all()
    if name not in recipes:
        sets = ", ".join(module.name for module in pkgutil.iter_modules(__path__))
        lists = f"recipes are {sets}; `patchout train --help` lists variants"
        raise ValueError(f"unknown recipe {name!r}{near(name, recipes)}: {lists}")
    return recipes[name]


@cache  # each of a hundred configs checks its values
def _all() -> dict[str, Recipe]:
    paths = (f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__))
    return {
        name: Recipe(replace(config, recipe=name), (module.__doc__ or "").strip())
        for module in map(importlib.import_module, paths)
        for name, config in module.VARIANTS.items()
    }

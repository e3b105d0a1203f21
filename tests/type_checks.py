"""Checks of types and shapes at every call into the package: jaxtyping's import hook at less cost."""

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

BY_JAXTYPING = jaxtyping.jaxtyped
CONF = BeartypeConf(violation_type=TypeError)


def install_type_checks() -> None:
    """Let jaxtyping's import hook put `checked` before every function of the package."""
    vars(jaxtyping)["jaxtyped"] = lambda typechecker: functools.partial(checked, typechecker=typechecker)
    jaxtyping.install_import_hook("patchout", "beartype.beartype")


def checked(thing: Any, *, typechecker: Any) -> Any:
    """A function that checks its arguments and its result once; sizes are bound where they are named.

    jaxtyping binds the arguments of every function, and checks them twice.
    """
    if not inspect.isfunction(thing):  # a class, a property
        return BY_JAXTYPING(thing, typechecker=typechecker)
    thing.__annotations__ = {name: resolved(hint, thing) for name, hint in thing.__annotations__.items()}
    plain = beartype(conf=CONF)(thing)
    sized = any(map(is_sized, thing.__annotations__.values()))
    careful: Callable[..., Any] = BY_JAXTYPING(plain, typechecker=None) if sized else plain

    @functools.wraps(thing)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        return (thing if jaxtyping.config.jaxtyping_disable else careful)(*args, **kwargs)

    return wrapped


def resolved(hint: Any, function: Callable[..., Any]) -> Any:
    """A type that is written as text, or anything where only a type checker imports it."""
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, function.__globals__)
    except NameError:
        return Any


def is_sized(hint: Any) -> bool:
    """Whether a type is that of an array, or is made of such types."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(is_sized, typing.get_args(hint)))

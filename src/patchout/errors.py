"""Errors for files and data sets that cannot be used; the hint at a similar name."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """A file or data set that cannot be used, although the request is valid (exit code 1, not 2)."""


class DataError(InputError):
    """A data set that cannot be used."""


class AudioError(InputError):
    """A source without usable sound; the message is `<name>: <reason>[; what to do]`."""


class CheckpointError(InputError):
    """Model weights that are damaged, incomplete or of another format."""


class CutError(Exception):
    """Decoding stopped before the end of the sound; the blocks before it are valid."""


def near(word: str, names: Iterable[str]) -> str:
    """The hint (did you mean NAME?) at the most similar of `names`, empty if none is similar."""
    return "".join(f" (did you mean {name}?)" for name in get_close_matches(word, [*names], n=1))

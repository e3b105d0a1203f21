"""Errors about what a user's files hold, and the hint at a name that was probably meant."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """A file or data set that cannot be used as it is, although the request itself makes sense (exit code 1, not 2)."""


class DataError(InputError):
    """A data set that cannot be used as it is."""


class AudioError(InputError):
    """A source without usable sound; the message is `<name>: <reason>[; what to do]`."""


class CheckpointError(InputError):
    """A file that is not a whole checkpoint, or not one of ours."""


class CutError(Exception):
    """Decoding ended before the sound did; what came before is good."""


def near(word: str, known: Iterable[str]) -> str:
    """(did you mean ...?), or nothing."""
    return "".join(f" (did you mean {name}?)" for name in get_close_matches(word, [*known], n=1))

"""The one base class of errors about what a user's files hold."""


class InputError(ValueError):
    """A file or data set that cannot be used as it is, although the request itself makes sense (exit code 1, not 2)."""

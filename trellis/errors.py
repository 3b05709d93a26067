"""The one exception type for input a person can correct."""


class InputError(ValueError):
    """Something the caller supplied cannot be used.

    The message is a sentence for the person who supplied it: what was expected, what came, what to do.
    """

"""The two ways in which a run ends without a result."""

from __future__ import annotations


class RequestError(ValueError):
    """The request is wrong and no work was begun.

    The message is one line that says what is wrong, where (the configuration key and its value) and what would be
    right. The command prints it and ends with status 2.
    """


class RunFailedError(RuntimeError):
    """The request was fine, but the run could not be finished. The command prints the reason and ends with status 1."""

"""The ways in which a run ends without a result, and how any error is worded. The messages hold no credentials."""

from __future__ import annotations

from datainf_ray.common.redaction import redacted


def one_line(error: object) -> str:
    """An exception's message without credentials, its line breaks and indents folded into single spaces."""
    text = redacted(" ".join(str(error).split()))
    return text or type(error).__name__


class RequestError(ValueError):
    """The request is wrong and no work was begun.

    The message is one line that says what is wrong, where (the configuration key and its value) and what would be
    right. The command prints it and ends with status 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class RunFailedError(RuntimeError):
    """The request was fine, but the run could not be finished. The command prints the reason and ends with status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class StoppedError(RunFailedError):
    """Somebody has asked the run to end (`Run.stop`). What it has computed is kept, and the same request takes it up.

    The command ends with status 130, as it does when it is interrupted.
    """

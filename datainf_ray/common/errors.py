"""The errors that end a run without a result, and the wording of any error. No message holds credentials."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from datainf_ray.common.redaction import redacted, redacted_tree
from datainf_ray.common.words import escaped

_MOST = {"key": 120, "value": 200, "problem": 600, "remedy": 300}  # characters on the line; the fields are whole

if TYPE_CHECKING:
    from pydantic import ValidationError


def one_line(error: object) -> str:
    """An exception's message without credentials, its line breaks and indents folded into single spaces."""
    text = redacted(" ".join(str(error).split()))
    return text or type(error).__name__


def misfit(error: ValidationError) -> str:
    """The first thing that is wrong with a document, FIELD: PROBLEM, on one line."""
    first = error.errors(include_url=False)[0]
    message = one_line(first["msg"]).removeprefix("Value error, ")
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {message[0].lower()}{message[1:]}" if field else message


class RequestError(ValueError):
    """The request is wrong and no work was begun.

    Its text is one line, KEY: VALUE: PROBLEM; REMEDY, without credentials, on which control characters are escaped and
    long values are cut. The command prints it and ends with
    status 2. A program reads the fields:

        try:
            attribute("config.yaml")
        except RequestError as error:
            assert error.key == "model.adapter"
    """

    key: str  #: the configuration's key ("model.adapter") or the command's argument ("run", "--set")
    value: Any  #: what was given there; None where no value is to be shown, a YAML null is "null"
    problem: str  #: what is wrong with it
    remedy: str | None  #: what would be right
    source: str | None  #: the configuration file that the key is in; the line begins with it

    def __init__(
        self, key: str, value: Any, problem: str, remedy: str | None = None, source: str | None = None
    ) -> None:
        if isinstance(value, Path):
            value = str(value)
        # As they come, so that they can be pickled: Ray takes what a worker raises to the driver.
        super().__init__(*redacted_tree((key, value, problem, remedy, source)))
        self.key, self.value, self.problem, self.remedy, self.source = self.args

    def __str__(self) -> str:
        value = None if self.value is None else str(self.value) or "''"
        parts = {"source": self.source, "key": self.key, "value": value, "problem": self.problem}
        line = ": ".join(escaped(part, _MOST.get(name)) for name, part in parts.items() if part is not None)
        return line if self.remedy is None else f"{line}; {escaped(self.remedy, _MOST['remedy'])}"

    @classmethod
    def of_line(cls, line: str) -> RequestError:
        """The error whose text is `line`, where no more than that is left of it. Only its key is told apart."""
        key, _, problem = line.partition(": ")
        return cls(key, None, problem)


class RunFailedError(RuntimeError):
    """The request was fine, but the run could not be finished. The command prints the reason and ends with status 1."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


class ClusterLostError(RunFailedError):
    """Ray, or the machine's part of it, has ended under the run. Its results so far are kept, and the same request
    continues it.
    """


class StoppedError(RunFailedError):
    """The run was ended on request (`Run.stop`). Its results so far are kept, and the same request continues it.

    The command ends with status 130, as it does when it is interrupted.
    """


class DamagedError(RunFailedError):
    """A file that a run has written is not as it was written: damaged, gone, or another one in its place."""

    path: str  #: the file's
    problem: str  #: what is wrong with it
    remedy: str  #: what to do about it

    def __init__(
        self, path: str, problem: str, remedy: str = "remove it, and run the same configuration again"
    ) -> None:
        self.path, self.problem, self.remedy = redacted_tree((path, problem, remedy))
        super().__init__(f"{self.path}: {self.problem}; {self.remedy}")

    def __reduce__(self) -> tuple[type[DamagedError], tuple[str, str, str]]:
        return DamagedError, (self.path, self.problem, self.remedy)  # Ray takes what a worker raises to the driver

"""Storage: the options that it is opened with, and what becomes of calls that fail.

What passes is tried again, with growing pauses; what lasts is told at once.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import tenacity
from fsspec.config import conf

from datainf_ray.redaction import keep_secret

SECONDS = 120.0  #: for which one operation is tried again
AT_FIRST = 15.0  #: the same before anything is started: somebody waits, and the address may be wrong

_PAUSE, _LONGEST = 0.2, 15.0  # seconds; drawn at random below a limit that doubles
_PASSING = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EIO,
    errno.EINTR,
    errno.EPIPE,
    errno.ETIMEDOUT,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.EHOSTUNREACH,
    getattr(errno, "EREMOTEIO", errno.EIO),  # Linux; s3fs means a 500 by it
}
_STATUS = {408, 409, 425, 429, 500, 502, 503, 504}  # of HTTP
_CLIENTS = (
    "aiohttp",
    "aiobotocore",
    "azure",
    "botocore",
    "gcsfs",
    "google",
    "httpcore",
    "httpx",
    "requests",
    "urllib3",
)
_TROUBLE = ("timeout", "timedout", "connect", "disconnect", "payload", "requesterror", "responseerror", "incomplete")

Result = TypeVar("Result")
_patience: ContextVar[float] = ContextVar("patience", default=SECONDS)


Options = Mapping[str, Mapping[str, Any]]  # by protocol: what fsspec's filesystem of that name is made with


def configure(options: Options) -> None:
    """From now on, and in the whole process, filesystems are opened with these options beside fsspec's own settings."""
    keep_secret(options)
    for protocol, given in options.items():
        conf[protocol] = {**conf.get(protocol, {}), **given}


@contextmanager
def configured(options: Options) -> Iterator[None]:
    """The same within the block. Filesystems that were opened there keep their options."""
    before = dict(conf)
    configure(options)
    try:
        yield
    finally:
        conf.clear()
        conf.update(before)


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Within it, and in this thread, an operation is tried again for so long."""
    before = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(before)


def is_passing(error: BaseException) -> bool:
    """Whether an operation that failed so may well succeed a moment later.

    A server that is slow, overloaded or out of reach, and S3's 409 (two requests at the same time). Not what is
    missing, forbidden, full, read-only, or there already.
    """
    status = next(
        (s for name in ("status_code", "status", "code") if isinstance(s := getattr(error, name, None), int)), 0
    )
    if status in _STATUS:
        return True
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return False
    if isinstance(error, TimeoutError | ConnectionError) or (isinstance(error, OSError) and error.errno in _PASSING):
        return True
    of_client = type(error).__module__.partition(".")[0] in _CLIENTS and not status
    return of_client and any(word in type(error).__name__.lower() for word in _TROUBLE)


def persistently(operation: Callable[[], Result]) -> Result:
    """What `operation` gives, tried again while it fails in a way that passes, for `SECONDS` at most (see `patience`).

    It may have had its effect although it failed: only operations that may be repeated are for this.
    """
    trying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_passing),
        wait=tenacity.wait_random_exponential(_PAUSE, max=_LONGEST),
        stop=tenacity.stop_after_delay(_patience.get()),
        reraise=True,
    )
    return trying(operation)

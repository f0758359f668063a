"""Storage: the options that it is opened with, and what becomes of calls that fail.

What passes is tried again, with growing pauses; what lasts is told at once.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import fsspec
import tenacity
from fsspec import AbstractFileSystem
from fsspec.config import conf

from datainf_ray.common.errors import RequestError, one_line
from datainf_ray.common.redaction import keep_secret

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
_TROUBLE = (
    "timeout",
    "timedout",
    "connect",
    "disconnect",
    "payload",
    "requesterror",
    "responseerror",
    "incomplete",
    "oserror",  # aiohttp's ClientOSError: the connection was reset
    "proxyerror",  # gcsfs means a 502 by it
    "transporterror",  # google.auth's: its server was out of reach when a token was to be renewed
)
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}

for _name in ("gcsfs", "adlfs", "azure", "s3fs"):
    # They log a traceback for what they also raise, and where nobody has set logging up Python prints it.
    logging.getLogger(_name).addHandler(logging.NullHandler())

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


def open_store(url: str, where: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a path or fsspec URL, and the path in it. Raises `RequestError`, whose line begins `where`."""
    protocols = re.findall(r"([\w.+-]+)://", url)  # several where URLs are chained: simplecache::s3://b/rows
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        extra = next((_EXTRAS[p] for p in protocols if p in _EXTRAS), None)
        remedy = f"pip install 'datainf-ray[{extra}]'" if extra else one_line(error)
        raise RequestError(f"{where} needs a package that is not installed: {remedy}") from None
    except Exception as error:  # a bad address, or credentials that are no credentials: each library has its own errors
        if not set(protocols) <= set(fsspec.available_protocols()):
            raise RequestError(f"{where} is neither a path nor an fsspec URL: {reason(error)}") from None
        given = f"storage_options.{protocols[-1]}" if protocols else "storage_options"
        raise RequestError(
            f"{where} cannot be opened: {reason(error)}; credentials: {given} or the environment"
        ) from None
    return fs, path


def reason(error: BaseException) -> str:
    """Why a store did not do what it was asked, on one line."""
    text = one_line(error).partition(" RequestId:")[0]  # Azure's server goes on with the time and its answer's XML
    if isinstance(error, FileNotFoundError) and error.strerror is None:  # gcsfs says no more than what it asked for
        return f"no such bucket or file: {text}"
    return f"{type(error).__name__} {text}" if isinstance(error, KeyError) else text


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

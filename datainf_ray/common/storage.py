"""Storage: the options that it is opened with, and what becomes of calls that fail.

A call that fails with a transient error is made again, with growing pauses; a permanent error is raised at once.
"""

from __future__ import annotations

import errno
import logging
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import fsspec
import tenacity
from fsspec import AbstractFileSystem
from fsspec.config import apply_config
from fsspec.utils import get_protocol

from datainf_ray.common.errors import RequestError, RunFailedError, one_line
from datainf_ray.common.redaction import keep_secret
from datainf_ray.common.regular import nameable

SECONDS = 120.0  #: for which one operation is tried again
AT_FIRST = 15.0  #: the same before anything is started: somebody waits, and the address may be wrong

_PAUSE, _LONGEST = 0.2, 15.0  # seconds; drawn at random below a limit that doubles
_TRANSIENT = {
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
#: The libraries of stores, and the protocol whose `storage_options` have their credentials.
_PROTOCOLS = {
    "aiohttp": "https",
    "aiobotocore": "s3",
    "azure": "az",
    "botocore": "s3",
    "gcsfs": "gs",
    "google": "gs",
    "httpcore": "https",
    "httpx": "https",
    "requests": "https",
    "urllib3": "https",
}
_CLIENTS = tuple(_PROTOCOLS)
#: What their errors, or the codes in them, are called where credentials are missing or refused.
_REFUSED = (
    "credential",
    "authenticat",
    "unauthorized",
    "forbidden",
    "accessdenied",
    "invalidaccesskeyid",
    "signaturedoesnotmatch",
    "expiredtoken",
    "invalidtoken",
    "refresherror",
)
_TRUST = ("certificate", "ssl")  # a server that is not trusted now is not a moment later
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


_AWAY = "the server cannot be reached: "


class StoreError(OSError):
    """A storage library's own error that is no `OSError`, such as botocore's NoCredentialsError, on one line."""


def store_of(url: str, options: Options) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a path or fsspec URL, opened with `options` beside fsspec's own settings, and the path in it.

    Of the options, those of the URL's protocols are taken (`simplecache::s3://b/rows` has two), by whichever of its
    names a protocol is called there: s3 or s3a, az or abfs. What the URL itself says, such as an account, comes first.
    Nothing is kept in this process but the credentials' redaction. Raises what fsspec and its libraries raise.
    """
    keep_secret(options)
    given: dict[str, dict[str, Any]] = {}
    rest = url if options else ""
    while rest:
        part, _, rest = rest.partition("::")
        protocol = part if "://" not in part and part in fsspec.available_protocols() else get_protocol(part)
        kind = fsspec.get_filesystem_class(protocol)
        said = kind._get_kwargs_from_urls(part)
        given[protocol] = {name: value for name, value in apply_config(kind, {}, options).items() if name not in said}
    fs, path = fsspec.core.url_to_fs(url, **given)
    if type(fs).__module__ == "fsspec.implementations.http":
        from datainf_ray.common.web import Web  # here: it needs aiohttp

        fs = Web(**fs.storage_options)
    return fs, path


def open_store(url: str, key: str, options: Options) -> tuple[AbstractFileSystem, str]:
    """The same as `store_of`. Raises `RequestError` that names `key`, under which the URL was given."""
    nameable(url, key)
    protocols = re.findall(r"([\w.+-]+)://", url)  # several where URLs are chained: simplecache::s3://b/rows
    try:
        fs, path = store_of(url, options)
    except ImportError as error:
        extra = next((_EXTRAS[p] for p in protocols if p in _EXTRAS), None)
        missing = "needs a package that is not installed"
        if extra is None:
            raise RequestError(key, url, f"{missing}: {one_line(error)}") from None
        raise RequestError(key, url, missing, f"pip install 'datainf-ray[{extra}]'") from None
    except Exception as error:  # a bad address, or credentials that are no credentials: each library has its own errors
        if not set(protocols) <= set(fsspec.available_protocols()):
            raise RequestError(key, url, f"is neither a path nor an fsspec URL: {reason(error)}") from None
        given = f"storage_options.{protocols[-1]}" if protocols else "storage_options"
        raise RequestError(
            key, url, f"cannot be opened: {reason(error)}", f"credentials: {given} or the environment"
        ) from None
    return fs, path


def reason(error: BaseException) -> str:
    """Why a store did not do what it was asked, on one line."""
    if isinstance(error, StoreError):  # it was made here
        return one_line(error)
    text = one_line(error).partition(" RequestId:")[0]  # Azure's server goes on with the time and its answer's XML
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        text = "its name is too long"  # and stands before already
    if isinstance(error, FileNotFoundError) and error.strerror is None:  # gcsfs says no more than what it asked for
        return f"no such bucket or file: {text}"
    if (protocol := _denied(error)) is not None:
        return f"authentication failed: {text} (credentials come from storage_options.{protocol} or the environment)"
    if _out_of_reach(error):
        return f"{_AWAY}{text}"
    return f"{type(error).__name__} {text}" if isinstance(error, KeyError) else text


def unreachable(error: BaseException) -> str:
    """That a place cannot be reached, and why."""
    return f"cannot be reached: {reason(error).removeprefix(_AWAY)}"


def _denied(error: BaseException) -> str | None:
    """The protocol whose credentials were missing or refused; None where that is not what went wrong."""
    for one in _chain(error):
        library = _library(one)
        response = getattr(one, "response", None)  # botocore's
        told = response if isinstance(response, dict) else {}
        code = str(told.get("Error", {}).get("Code", ""))
        status = _status(one) or told.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if library is not None and (
            status in (401, 403) or any(word in f"{type(one).__name__}{code}".lower() for word in _REFUSED)
        ):
            return _PROTOCOLS[library]
    return None


def _out_of_reach(error: BaseException) -> bool:
    """Whether nobody answered at a server's address."""
    return any(
        isinstance(one, ConnectionError | TimeoutError | socket.gaierror)
        or (_library(one) is not None and not _status(one) and _names(one, ("connect", "timeout")))
        for one in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes."""
    one: BaseException | None = error
    for _ in range(5):  # a library's, under what it raised in its place
        if one is None:
            return
        yield one
        one = one.__cause__


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Within it, and in this thread, an operation is tried again for so long."""
    before = _patience.set(seconds)
    try:
        yield
    finally:
        _patience.reset(before)


def is_transient(error: BaseException) -> bool:
    """Whether an operation that failed so may well succeed a moment later.

    A server that is slow, overloaded or out of reach, and S3's 409 (two requests at the same time). Not what is
    missing, forbidden, full, read-only, or there already.
    """
    if isinstance(error, StoreError) and error.__cause__ is not None:
        return is_transient(error.__cause__)
    status = _status(error)
    if status in _STATUS:
        return True
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return False
    if isinstance(error, TimeoutError | ConnectionError) or (isinstance(error, OSError) and error.errno in _TRANSIENT):
        return True
    return _of_client(error) and not status and _names(error, _TROUBLE) and not _names(error, _TRUST)


def persistently(operation: Callable[[], Result]) -> Result:
    """What `operation` gives, tried again after transient errors, for `SECONDS` at most (see `patience`).

    It may have had its effect although it failed: only operations that may be repeated are for this. What it raises at
    last is an `OSError` whatever the storage library.
    """
    trying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(_PAUSE, max=_LONGEST),
        stop=tenacity.stop_after_delay(_patience.get()),
        reraise=True,
    )
    try:
        return trying(operation)
    except Exception as error:
        if isinstance(error, OSError) or not _of_client(error):
            raise
        raise StoreError(reason(error)) from error


@contextmanager
def failing(what: str = "") -> Iterator[None]:
    """What files and stores raise within it becomes a `RunFailedError` of one line, which begins `what`."""
    try:
        yield
    except BrokenPipeError:  # whoever reads our output has left; a store's is another class, or is tried again
        raise
    except OSError as error:
        raise RunFailedError(f"{what}{type(error).__name__}: {one_line(error)[:500]}") from error


def _of_client(error: BaseException) -> bool:
    """Whether an error is a storage library's own."""
    return _library(error) is not None


def _library(error: BaseException) -> str | None:
    """The storage library whose own an error is."""
    tops = (kind.__module__.partition(".")[0] for kind in type(error).__mro__)
    return next((top for top in tops if top in _CLIENTS), None)


def _status(error: BaseException) -> int:
    """HTTP's, 0 where there is none."""
    found = (getattr(error, name, None) for name in ("status_code", "status", "code"))
    return next((status for status in found if isinstance(status, int)), 0)


def _names(error: BaseException, words: Sequence[str]) -> bool:
    return any(word in type(error).__name__.lower() for word in words)

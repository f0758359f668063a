"""Local paths that can be used: files and directories alone, since a pipe waits for a writer and a device may have no
end; and names that all libraries take.
"""

from __future__ import annotations

import os
import stat

import fsspec

from datainf_ray.common.errors import RequestError

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_REMEDY = "save what it gives to a file"


def local_path(reference: str) -> str | None:
    """The path on this machine that a path or a URL, chained or not, is read from; None for another store's."""
    inner = reference.rpartition("::")[2]
    for scheme in ("file://", "local://"):
        inner = inner.removeprefix(scheme)
    return None if "://" in inner else os.path.expanduser(inner)


def sought(reference: str) -> str | None:
    """Where a relative path of this machine was looked for, in a sentence; None for an absolute one, or a store's.

    With `ray job submit` that is a folder of the cluster, not the one that the command was typed in.
    """
    path = local_path(reference)
    return None if path is None or os.path.isabs(path) else f"it was looked for in {os.getcwd()}"


def regular(path: str, key: str) -> None:
    """Raises `RequestError` naming `key` where a local path is, or leads to, neither a file nor a directory.

    What is not there is for whoever opens it to tell.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return
    what = next((name for test, name in _KINDS if test(mode)), None)
    if what is not None:
        raise RequestError(key, path, f"is {what}, not a file", _REMEDY)


def nameable(url: str, key: str) -> None:
    """Raises `RequestError` naming `key` where a path or URL has a name that not every library can take.

    Bytes that are not UTF-8, which Python has as halves of surrogate pairs, stand in no table. And `::` in a path joins
    URLs for fsspec, which would read and write at the path before it.
    """
    if "\0" in url:
        raise RequestError(key, url, "has a NUL in it, which no path has")
    try:
        url.encode()
    except UnicodeEncodeError:
        shown = url.encode(errors="backslashreplace").decode()
        raise RequestError(key, shown, "has a name that is not UTF-8", "rename it") from None
    *outer, _ = url.split("::")
    if any("://" not in part and part not in fsspec.available_protocols() for part in outer):
        raise RequestError(key, url, "has '::' in a path, which joins URLs", "rename it")

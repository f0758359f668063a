"""Local paths that are opened only where they are files: a pipe waits for a writer, a device may have no end."""

from __future__ import annotations

import os
import stat

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

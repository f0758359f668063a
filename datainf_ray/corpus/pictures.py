"""What stands in a row for a picture: its bytes, what `datasets` writes, or the name of a file beside the rows."""

from __future__ import annotations

import os
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from datainf_ray.common.storage import store_of
from datainf_ray.common.words import byte_size, escaped
from datainf_ray.corpus.files import SourceFile

PICTURE = "picture"  #: the type of a role that has one
MOST_BYTES = 256 * 2**20  #: of a picture's file


def picture_bytes(value: Any, file: SourceFile) -> bytes:
    """The bytes of the picture that `value` is, in a row of `file`: bytes, {bytes, path}, or a path.

    A path is that of a file in the same folder, or below it: rows may be anybody's, and are not to read other files.
    Raises ValueError, to stand behind the role's name, where there is none; and OSError where a store fails.
    """
    if isinstance(value, dict) and {*value} & {"bytes", "path"}:
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, str):
        return _beside(value, file)
    if not isinstance(value, bytes):
        raise ValueError(f"is a {type(value).__name__}, and neither bytes nor the name of a file")
    return value


def _beside(name: str, file: SourceFile) -> bytes:
    shown = escaped(name, 120)
    parts = name.replace("\\", "/").split("/")
    if not name or "://" in name or name.startswith(("/", "~")) or ".." in parts or ":" in parts[0]:
        raise ValueError(f"is {shown}, and only files in the folder of {file.name} are read")
    fs, path = store_of(file.path, file.options)
    there = f"{fs._parent(path).rstrip('/')}/{name}"
    if isinstance(fs, LocalFileSystem) and os.path.exists(there) and not os.path.isfile(there):
        raise ValueError(f"is {shown}, which is no file")
    try:
        size = fs.info(there).get("size") or 0
        if size > MOST_BYTES:
            raise ValueError(f"is {shown}, of {byte_size(size)}: {byte_size(MOST_BYTES)} is the most")
        data: bytes = fs.cat_file(there)
    except FileNotFoundError:
        raise ValueError(f"is {shown}, and there is no such file") from None
    return data

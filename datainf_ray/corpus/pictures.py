"""Pictures among rows: what stands in a row for one, and a folder of pictures with captions as rows.

A row has a picture's bytes, what `datasets` writes ({bytes, path}), or the name of a file beside the rows. In a folder
of pictures each is a row, whose `text` is that of the .txt (or .caption) file of its name, as trainers have it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from datainf_ray.common.storage import Options, store_of
from datainf_ray.common.words import byte_size, escaped
from datainf_ray.corpus.files import FOLDER, SourceFile, below, changed
from datainf_ray.corpus.folders import hidden
from datainf_ray.corpus.records import Parsed

PICTURE = "picture"  #: the type of a role that has one
COLUMNS = ("file_name", "image", "text")  #: of a folder of pictures
MOST_BYTES = 256 * 2**20  #: of a picture's file

#: Those that are no PNG, JPEG or WebP are rows all the same: they get a status, and are not passed over in silence.
_SUFFIXES = frozenset((
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".jxl",
))  # fmt: skip
_CAPTIONS = (".txt", ".caption")
_LONGEST = 2**16  # bytes of a caption
#: What is said of names that no file can have: below a file, too long, of links that lead to themselves.
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
_HASHED = 64 * 2**20  # bytes; a local folder up to this size is known by its files' content


class PictureBytes(bytes):
    """A picture's file, and what it is called; None where nothing says so."""

    name: str | None = None


@dataclass(frozen=True)
class Made:
    """Where the pictures lie that were made for rows that have none: the row's number is a picture's name."""

    folder: str  #: path or fsspec URL
    options: Options = field(default_factory=dict, repr=False, compare=False)  #: what its store is opened with

    def read(self, row: int) -> PictureBytes:
        """The picture of a row. Raises ValueError, to stand behind the role's name, where there is none."""
        fs, path = store_of(f"{self.folder}/{made_name(row)}", self.options)
        fs.invalidate_cache()  # another worker may have made it since
        return PictureBytes(_read(fs, path, f"made of its prompt, {made_name(row)}", MOST_BYTES))


def made_name(row: int) -> str:
    """What the picture that was made of a row is called.

    >>> made_name(7)
    'query-000007.png'
    """
    return f"query-{row:06d}.png"


def picture_bytes(value: Any, file: SourceFile) -> PictureBytes:
    """The bytes of the picture that `value` is, in a row of `file`: bytes, {bytes, path}, or a path.

    A path is that of a file in the same folder, or below it: rows may be anybody's, and are not to read other files.
    Raises ValueError, to stand behind the role's name, where there is none; and OSError where a store fails.
    """
    name = place_in(value)
    if isinstance(value, dict) and {*value} & {"bytes", "path"}:
        name = value["path"] if isinstance(value.get("path"), str) else None
        value = value.get("bytes")
    if not isinstance(value, bytes) and name is None:
        raise ValueError(f"is of type {type(value).__name__}, and neither bytes nor the name of a file")
    made = PictureBytes(value if isinstance(value, bytes) else read_beside(name or "", file))
    made.name = name
    return made


def place_in(value: Any) -> str | None:
    """The name of the file beside the rows that `value` stands for; None where it has the picture itself, or none."""
    if isinstance(value, dict):
        value = value.get("path") if value.get("bytes") is None else None
    return value if isinstance(value, str) else None


def read_beside(name: str, file: SourceFile) -> bytes:
    """The content of a file of this name beside a file of rows, or in a folder. Raises as `picture_bytes` does."""
    shown = escaped(name, 120)
    path = path_beside(name, file)
    if path is None:
        raise ValueError(f"is {shown}, and only files in the folder of {file.name or 'the rows'} are read")
    fs, root = store_of(file.path, file.options)
    return _read(fs, f"{folder_of(fs, root, file)}/{path}", shown, MOST_BYTES)


def folder_of(fs: AbstractFileSystem, path: str, file: SourceFile) -> str:
    """The folder in which the pictures of a file's rows are; `path` is the file's in its store."""
    return (path if file.format == FOLDER else str(fs._parent(path))).rstrip("/")


def _read(fs: AbstractFileSystem, path: str, shown: str, most: int) -> bytes:
    if isinstance(fs, LocalFileSystem) and os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"is {shown}, which is no file")  # a pipe would be waited for
    try:
        size = int(fs.info(path).get("size") or 0)
        if size > most:
            raise ValueError(f"is {shown}, of {byte_size(size)}: {byte_size(most)} is the most")
        data: bytes = fs.cat_file(path)
    except OSError as error:
        if error.errno not in _NO_FILE and not isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"is {shown}, and there is no such file") from None
    return data


def folder_of_pictures(fs: AbstractFileSystem, path: str) -> dict[str, Any] | None:
    """What a `SourceFile` is to know of a folder of pictures: rows, size and identity; None where it has none. With
    the pictures' `names`.
    """
    found = _listed(fs, path)
    names = [name for name in found if is_picture(name)]
    if not names:
        return None
    identity = hashlib.sha256(b"".join(_marked(fs, found))).hexdigest()
    return {"names": names, "rows": len(names), "columns": COLUMNS, "size": _size(found), "identity": identity}


def marks_of(fs: AbstractFileSystem, path: str, below_it: Collection[str]) -> list[bytes]:
    """A line of each of these files that are in the folder, or below it: what changes when its content does."""
    found: dict[str, Mapping[str, Any]] = {}
    wanted = {posixpath.normpath(name) for name in below_it}
    fs.invalidate_cache()  # a listing that an earlier request of this process left
    for folder in sorted({posixpath.dirname(name) for name in wanted}):
        try:
            infos = fs.ls(f"{path}/{folder}" if folder else path, detail=True)
        except OSError as error:
            if error.errno not in _NO_FILE and not isinstance(error, FileNotFoundError):
                raise
            continue  # its rows will say that there is no such file
        found |= {below(str(info["name"]).rstrip("/"), path): info for info in infos if info["type"] != "directory"}
    there = sorted(wanted & found.keys())
    if isinstance(fs, LocalFileSystem):
        there = [name for name in there if os.path.isfile(found[name]["name"])]
    return _marked(fs, {name: found[name] for name in there})


def path_beside(name: str, file: SourceFile) -> str | None:
    """Where the file of this name is below the folder of a file of rows, or in a folder; None where it is elsewhere.

    Rows may name it as Windows does, as `datasets` takes it; in a folder of pictures names are its files' own.
    """
    path = name if file.format == FOLDER else name.replace("\\", "/")
    first, *_ = parts = path.split("/")
    if not path or "\0" in path or path.startswith("/") or ".." in parts:  # no filesystem takes a \0
        return None
    if file.format != FOLDER and ("://" in path or path.startswith("~") or ":" in first):
        return None
    return path


def _marked(fs: AbstractFileSystem, found: Mapping[str, Mapping[str, Any]]) -> list[bytes]:
    """Of each file its name, size and, where they are local and not large, content; else the store's mark, or time."""
    hashed = isinstance(fs, LocalFileSystem) and _size(found) <= _HASHED
    lines = []
    for name, info in found.items():
        if hashed:
            mark = hashlib.sha256(fs.cat_file(info["name"])).hexdigest()
        else:
            mark = str(next((info[key] for key in ("ETag", "etag", "md5Hash", "mtime") if info.get(key)), ""))
        lines.append(f"{name} {info.get('size')} {mark}\n".encode("utf-8", "surrogateescape"))
    return lines


def _size(found: Mapping[str, Mapping[str, Any]]) -> int:
    return sum(int(info.get("size") or 0) for info in found.values())


def _listed(fs: AbstractFileSystem, path: str) -> dict[str, Mapping[str, Any]]:
    """The pictures and captions below a folder, by their names there, in order."""
    found = {below(p, path): info for p, info in fs.find(path, detail=True).items() if info.get("type") != "directory"}
    kept = {name: info for name, info in found.items() if not hidden(name)}
    if isinstance(fs, LocalFileSystem):
        kept = {name: info for name, info in kept.items() if os.path.isfile(info["name"])}
    return {name: kept[name] for name in sorted(kept) if is_picture(name) or name.lower().endswith(_CAPTIONS)}


def is_picture(name: str) -> bool:
    """Whether a file of this name is a picture's, by its suffix."""
    return PurePosixPath(name.lower()).suffix in _SUFFIXES


class PictureSource:
    """The rows of a folder of pictures: the name of each, and its caption."""

    def __init__(self, file: SourceFile) -> None:
        self._fs, self._path = store_of(file.path, file.options)
        self._found = _listed(self._fs, self._path)
        self.names = [name for name in self._found if is_picture(name)]  #: of the pictures, in order
        #: By the stem: capitals come before other letters, and .txt counts before .caption.
        self._captions = {
            name[: -len(suffix)]: name
            for suffix in reversed(_CAPTIONS)
            for name in self._found
            if name.lower().endswith(suffix)
        }
        if len(self.names) != file.rows:
            raise changed(file, f"{len(self.names)} pictures instead of {file.rows}")

    def read(self, start: int, stop: int) -> Iterator[Parsed]:
        """Rows start..stop-1; one without a caption says so."""
        for name in self.names[start:stop]:
            values = {"file_name": name, "image": name}
            try:
                yield Parsed({**values, "text": self._caption(name)})
            except ValueError as error:
                yield Parsed(values, f"its caption {error}")

    def close(self) -> None:
        self._found = {}

    def caption_of(self, name: str) -> str | None:
        """The name of a picture's caption; None where it has none."""
        return self._captions.get(name.rpartition(".")[0])

    def _caption(self, name: str) -> str:
        caption = self.caption_of(name)
        if caption is None:
            raise ValueError(f"is not there: no {escaped(PurePosixPath(name).stem, 60)}.txt")
        data = _read(self._fs, f"{self._path.rstrip('/')}/{caption}", escaped(caption, 120), _LONGEST)
        try:
            return data.decode("utf-8-sig").strip()
        except UnicodeDecodeError:
            raise ValueError("is not UTF-8") from None

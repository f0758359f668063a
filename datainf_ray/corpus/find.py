"""Which files a request means, and what they are called in row ids.

Paths are local paths or any URL that fsspec opens; an entry is a file, a glob or a directory.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.utils import glob_translate

from datainf_ray.common.errors import RequestError
from datainf_ray.common.redaction import redacted
from datainf_ray.common.regular import local_path, nameable, regular, sought
from datainf_ray.common.storage import Options, open_store, persistently, reason, store_of
from datainf_ray.corpus.files import FOLDER, SourceFile, below, kind_of, known_kinds
from datainf_ray.corpus.folders import (
    ask_for_one,
    hidden,
    linked_folder,
    partition_of,
    parts_of,
    rows_among,
    rows_in,
    splits_of_pictures,
)
from datainf_ray.corpus.pictures import folder_of_pictures, is_picture

_MAGIC = "*?["
_LINK = "is a link to a folder, which is not followed"
_HASHED = 8 << 20  # bytes up to which a local file is known by its content rather than by its time


def find_files(
    entries: Sequence[str], key: str, options: Options | None = None, pictures: bool = False
) -> tuple[SourceFile, ...]:
    """The files that `entries` name, in order of first mention, sorted by path within a glob or directory.

    Their stores are opened with `options`, now and whenever one of the files is. With `pictures` a folder that has no
    data file, but pictures, is one source of rows.

    A file that is named twice is taken once. A file's name is its path below the entry's directory; files whose
    names would be the same are called by their full path. Raises `RequestError` naming `key` where nothing matches,
    a suffix is unknown or the store cannot be listed.
    """
    found: dict[str, SourceFile] = {}
    for entry in entries:

        def listed(entry: str = entry) -> list[SourceFile]:
            return list(_expand(entry, key, options or {}, pictures))

        try:
            files = persistently(listed)
        except RequestError:
            raise
        except Exception as error:  # every store raises errors of its own
            raise RequestError(key, entry, f"cannot be listed: {reason(error)}") from None
        if not files:
            also = "; or pictures, with a .txt file of each one's name" if pictures else ""
            raise RequestError(key, entry, "no data file there", f"known are {known_kinds()}{also}")
        for file in files:
            found.setdefault(file.path, file)
    uses = Counter(file.name for file in found.values())
    return tuple(file if uses[file.name] == 1 else replace(file, name=redacted(file.path)) for file in found.values())


def _expand(entry: str, key: str, options: Options, pictures: bool = False) -> Iterator[SourceFile]:
    nameable(entry, key)  # before its path on this machine is looked at
    if (local := local_path(entry)) is not None:
        regular(local, key)  # before the store is opened: an archive's is by looking into it
    fs, path = open_store(entry, key, options)
    fs.invalidate_cache()  # a listing that an earlier request of this process left
    path = path.rstrip("/") or path
    try:
        info = fs.info(path)  # first as it stands: a name may well hold a bracket
    except FileNotFoundError:
        info = None
    if info is not None and info["type"] == "directory":
        infos, directory = _in_folder(fs, path, entry, key, options), path
        if pictures and not infos and (known := folder_of_pictures(fs, path)) is not None:
            if parts := splits_of_pictures(known.pop("names")):
                raise ask_for_one(parts, key, entry, lambda name: _url(entry, fs, f"{path}/{name}", options))
            yield SourceFile(_url(entry, fs, path, options), "", FOLDER, None, options=options, **known)
    elif info is not None:
        infos, directory = {path: info}, fs._parent(path)
    elif any(c in path for c in _MAGIC):
        infos, directory = _matching(fs, path, entry, key)
    else:
        raise RequestError(key, entry, "no such file or directory", sought(entry))
    for p in sorted(infos):
        if isinstance(fs, LocalFileSystem):
            nameable(p, key)
            regular(p, key)
        kind = kind_of(fs, p)
        if kind is None:
            also = "; or name the folder of the pictures" if pictures and is_picture(p) else ""
            raise RequestError(key, p, "unknown kind of file", f"known are {known_kinds()}{also}")
        size = int(infos[p].get("size") or 0)
        name = redacted(below(p, directory))  # it stands in tables, and an address may be signed
        url, identity = _url(entry, fs, p, options), _identity(fs, p, size, infos[p])
        yield SourceFile(url, name, *kind, size, identity, partition=partition_of(fs, p), options=options)


def _in_folder(fs: AbstractFileSystem, path: str, entry: str, key: str, options: Options) -> dict[str, Any]:
    """{path: info} of the files of rows below a folder."""
    found = {p: info for p, info in fs.find(path, detail=True).items() if not hidden(below(p, path))}
    infos = rows_in(fs, found, key)
    parts = parts_of(fs, path, found, sorted(infos))
    if parts:
        raise ask_for_one(parts, key, entry, lambda name: _url(entry, fs, f"{path}/{name}", options))
    link = linked_folder(fs, path, lambda p: kind_of(fs, p) is not None and not hidden(below(p, path)))
    if link is not None:
        raise RequestError(key, link, _LINK, f'name both, as in path: ["{entry}", "{link}"]')
    return infos


def _matching(fs: AbstractFileSystem, path: str, entry: str, key: str) -> tuple[dict[str, Any], str]:
    """{path: info} of the files that a pattern matches, and the directory before its first wildcard."""
    pattern, directory = glob_of(fs, path)
    within = below(path, directory)
    found = fs.glob(pattern, detail=True)
    matched = {p: info for p, info in found.items() if not hidden(below(p, directory), within)}
    infos = {p: info for p, info in matched.items() if info.get("type") != "directory"}
    for p in matched.keys() - infos.keys():  # as Spark makes them
        if kind_of(fs, p) is not None and not any(other.startswith(f"{p.rstrip('/')}/") for other in infos):
            raise RequestError(key, p, "is a directory with a file's name", "add /* to the pattern to read its files")
    infos = rows_among(fs, infos, within)
    match, depth = re.compile(glob_translate(pattern)).match, None if "**" in within else within.count("/")
    link = (
        linked_folder(fs, directory, lambda p: bool(match(p)) and not hidden(below(p, directory), within), depth)
        if depth != 0
        else None
    )
    if link is not None:
        raise RequestError(key, link, _LINK, "name the folder that it leads to, too")
    if not infos:
        raise RequestError(key, entry, "it matches only directories" if matched else "no file matches", sought(entry))
    return infos, directory


def _identity(fs: AbstractFileSystem, path: str, size: int, info: dict[str, Any]) -> str:
    if isinstance(fs, LocalFileSystem | MemoryFileSystem) and size <= _HASHED:
        return hashlib.sha256(fs.cat_file(path)).hexdigest()
    for key in ("md5Hash", "crc32c", "checksum", "ETag", "etag", "LastModified", "last_modified"):
        if info.get(key):
            return f"{key} {info[key]}"
    return f"changed {info.get('mtime') or info.get('created') or ''}"


def _url(entry: str, fs: AbstractFileSystem, path: str, options: Options) -> str:
    """The address under which a worker finds `path`, whatever its working directory."""
    outer, chained, inner = entry.partition("::")
    if chained and "://" in outer:  # zip://*.jsonl::s3://b/rows.zip
        return f"{outer.partition('://')[0]}://{path.lstrip('/')}::{inner}"
    if chained:  # simplecache::s3://b/rows/*.jsonl
        inner_fs, _ = store_of(inner, options)
        return f"{outer}::{_url(inner, inner_fs, path, options)}"
    if isinstance(fs, LocalFileSystem):
        return path
    protocol, _, rest = entry.partition("://")
    container, _, below = path.partition("/")
    host = rest.partition("/")[0]
    if host == container or host.startswith(f"{container}@"):
        # As the user has it: adlfs calls everything abfs://, and its paths don't tell the account that stands in
        # abfss://container@account.dfs.core.windows.net/rows
        return f"{protocol}://{host}/{below}"
    return str(fs.unstrip_protocol(path))


def glob_of(fs: AbstractFileSystem, path: str) -> tuple[str, str]:
    """A glob as fsspec takes it, and the directory that stands before its first part with a wildcard.

    On this machine a directory that is there by a name with a wildcard, such as `[v2]`, is meant as it stands.
    """
    parts = path.split("/")
    for k, part in enumerate(parts):
        if any(c in part for c in _MAGIC):
            directory = "/".join(parts[:k])
            if not (isinstance(fs, LocalFileSystem) and k < len(parts) - 1 and fs.isdir(f"{directory}/{part}")):
                return "/".join([*(re.sub(r"([*?[])", r"[\1]", part) for part in parts[:k]), *parts[k:]]), directory
    return path, "/".join(parts[:-1])

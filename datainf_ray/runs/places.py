"""Places, by whichever name they are given, and what may not be written there: over, around or inside what is read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from datainf_ray.common.errors import RequestError
from datainf_ray.common.storage import Options, open_store
from datainf_ray.corpus.files import SourceFile
from datainf_ray.corpus.find import glob_of
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.index import claimed
from datainf_ray.runs.record import RUN_FILE, read_record

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Place:
    """A file or a folder, by whichever name it is given."""

    key: str  #: the configuration's key, or the command's argument
    url: str  #: as it was given
    store: str  #: the protocol, by one of its names; "file" for this machine's
    path: str  #: in the store, without a slash at its end; of a local one without links

    def holds(self, other: Place) -> bool:
        """Whether the other is this very place, or lies inside it."""
        return self.store == other.store and f"{other.path}/".startswith(f"{self.path}/")


def place_of(url: str, key: str, options: Options) -> Place:
    """The place that a path or an fsspec URL means; of a chained one the innermost, where the bytes are."""
    fs, path = open_store(url.rpartition("::")[2], key, options)
    if isinstance(fs, LocalFileSystem):
        return Place(key, url, "file", os.path.realpath(path).rstrip("/"))
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    account = getattr(fs, "account_name", None)  # Azure's containers have the same names in many
    return Place(key, url, f"{protocol}:{account or ''}", str(path).rstrip("/"))


def apart(place: Place, folder: Place) -> None:
    """Raises `RequestError` where a place that is written is, holds or lies inside a folder that is read."""
    remedy = f"use another {place.key}"
    if place.holds(folder):
        how = "is" if place.path == folder.path else "holds"
        raise RequestError(place.key, place.url, f"{how} what the request reads as {folder.key}: {folder.url}", remedy)
    if folder.holds(place):
        raise RequestError(place.key, place.url, f"lies inside {folder.key}: {folder.url}", remedy)


def clear_of_rows(
    place: Place,
    key: str,
    entries: Sequence[str],
    files: Sequence[SourceFile],
    options: Options,
    written: Sequence[str],
) -> None:
    """No row is read at or below a place that is written, now or later, when the same `entries` are looked up again.

    `written` are names of files, as they will be below the place; "" is the place itself. Raises `RequestError`.
    """
    places = [place_of(file.path, key, options) for file in files]
    for file in places:
        if place.holds(file):
            how = f"holds rows that the request reads as {key}: {file.url}"
            raise RequestError(place.key, place.url, how, f"use another {place.key}")
    single = {(file.store, file.path) for file in places}
    for entry in entries:
        where = place_of(entry, key, options)
        if (where.store, where.path) in single:
            continue
        fs, _ = open_store(entry.rpartition("::")[2], key, options)
        if not _MAGIC.search(where.path) or (where.store == "file" and os.path.isdir(where.path)):
            apart(place, where)
        elif where.store == place.store:
            pattern = re.compile(glob_translate(glob_of(fs, where.path)[0]))
            if any(pattern.match(f"{place.path}/{name}".rstrip("/")) for name in written):
                how = f"its files would be taken for rows: {key} is {entry}"
                raise RequestError(place.key, place.url, how, f"use another {place.key}, or a narrower pattern")


def not_inside_another(directory: RunDirectory, own: RunDirectory | None) -> None:
    """Raises `RequestError` where a folder that the place lies in, but for its own run's, is a run's or an index'."""
    for url in _above(directory.url):
        folder = RunDirectory(url, directory.key, directory.options)
        if own is not None and folder.url == own.url:
            return
        if _is_ours(folder):
            problem = f"lies inside another run or gradient index: {folder.url}"
            raise RequestError(directory.key, directory.url, problem, f"use another {directory.key}")


def _above(url: str) -> Iterator[str]:
    """The folders that a place lies in, the nearest first; in a store up to the bucket."""
    protocol, separator, path = url.rpartition("://")
    parts: Iterable[PurePosixPath] = PurePosixPath(path).parents
    for part in parts:
        if str(part) not in (".", "/"):
            yield f"{protocol}{separator}{part}"


def _is_ours(folder: RunDirectory) -> bool:
    """Whether a run or an index is there. A folder that we may not look into is not taken for one."""
    try:
        if folder.exists(RUN_FILE):
            read_record(folder)
            return True
        return claimed(folder) is not None
    except (RequestError, OSError):
        return False

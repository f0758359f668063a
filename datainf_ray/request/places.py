"""What a request reads, and where it writes: no place of the one may be, hold or lie inside a place of the other.

A run writes into its output and into its gradient index, and takes away there what it does not need any more. So both
are new, empty, or its own; hidden files of others are left alone, and do not count.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath

from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.utils import glob_translate

from datainf_ray.common.errors import RequestError
from datainf_ray.common.storage import Options, open_store
from datainf_ray.config import ModelConfig
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.corpus.find import glob_of
from datainf_ray.model.files import is_remote
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.index import INDEX, claimed
from datainf_ray.runs.record import RUN_FILE, read_record

_MAGIC = re.compile(r"[*?\[]")
#: Files that a run may come to have, of every kind and depth, to see whether a pattern takes them for rows.
_WRITTEN = (
    "run.json", "top.parquet", "queries.parquet", "blocks.parquet", "examples/part-000000.parquet",
    "events/20260101T000000Z-0000-00000.jsonl", "checkpoints/ihvp.json", "checkpoints/sums/curvature-1.json",
    "checkpoints/scores/chunk-000000.parquet", "index.json", "index/index.json", "part-000000.parquet",
    "index/part-000000.parquet",
)  # fmt: skip
#: Names in an output that are the run's own, so that no index can be there.
_TAKEN = ("examples", "events", "checkpoints")


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


def model_places(model: ModelConfig, options: Options) -> list[Place]:
    """Where base and adapter are, those that are not the hub's."""
    adapters = model.adapter if isinstance(model.adapter, tuple) else (model.adapter,)
    given = [("model.base", model.base), *(("model.adapter", adapter) for adapter in adapters)]
    return [
        place_of(reference, key, options)
        for key, reference in given
        if reference is not None
        and (is_remote(reference) or os.path.exists(os.path.expanduser(reference.removeprefix("file://"))))
    ]


def check_places(
    output: RunDirectory,
    index: RunDirectory | None,
    folders: Sequence[Place],
    corpora: Mapping[str, tuple[Sequence[str], Corpus]],
    within: RunDirectory | None = None,
) -> None:
    """Raises `RequestError` where a place that is written is in the way of one that is read, or is not the run's own.

    `index` is where a gradient index is written; `folders` are what is read besides rows. `corpora` has, by the name of
    its part of the configuration, the entries of a corpus' path and the corpus that they mean. The output may lie
    `within` the run that it is made for.
    """
    options = output.options
    for directory in (output, *([index] if index is not None else [])):
        if isinstance(directory.fs, MemoryFileSystem):
            problem = "lies in the memory of one process, and workers are others"
            raise RequestError(directory.key, directory.url, problem, "use a path or a store's URL")
    written = [place_of(output.url, output.key, options)]
    if index is not None:
        written.append(place_of(index.url, index.key, options))
        _check_index(*written)
    for place in written:
        for folder in folders:
            _apart(place, folder)
        for name, (entries, corpus) in corpora.items():
            _check_rows(place, f"{name}.path", entries, corpus, options)
    _not_inside_another(output, within)
    _ours_or_empty(output, RUN_FILE, "run")
    if index is not None:
        _not_inside_another(index, output)
        _ours_or_empty(index, INDEX, "gradient index")


def _check_index(output: Place, index: Place) -> None:
    """An index lies beside the run's own files, or outside the output."""
    if index.holds(output):
        how = "is the output itself" if index.path == output.path else "holds the output"
        raise RequestError(index.key, index.url, how, "use index: true, or a folder of its own")
    if output.holds(index):
        first = index.path[len(output.path) :].strip("/").partition("/")[0]
        if first in _TAKEN or PurePosixPath(first).suffix or first.startswith("."):
            problem = f"is among the run's own files, in {output.url}"
            raise RequestError(index.key, index.url, problem, "use index: true, or a folder of its own")


def _apart(place: Place, folder: Place) -> None:
    remedy = f"use another {place.key}"
    if place.holds(folder):
        how = "is" if place.path == folder.path else "holds"
        raise RequestError(place.key, place.url, f"{how} what the request reads as {folder.key}: {folder.url}", remedy)
    if folder.holds(place):
        raise RequestError(place.key, place.url, f"lies inside {folder.key}: {folder.url}", remedy)


def _check_rows(place: Place, key: str, entries: Sequence[str], corpus: Corpus, options: Options) -> None:
    """No row is read below a place that is written, now or when the run is taken up again."""
    files = [place_of(file.path, key, options) for file in corpus.files]
    for file in files:
        if place.holds(file):
            how = f"holds rows that the request reads as {key}: {file.url}"
            raise RequestError(place.key, place.url, how, f"use another {place.key}")
    single = {(file.store, file.path) for file in files}
    for entry in entries:
        where = place_of(entry, key, options)
        if (where.store, where.path) in single:
            continue
        fs, _ = open_store(entry.rpartition("::")[2], key, options)
        if not _MAGIC.search(where.path) or (where.store == "file" and os.path.isdir(where.path)):
            _apart(place, where)
        elif where.store == place.store:
            pattern = re.compile(glob_translate(glob_of(fs, where.path)[0]))
            if any(pattern.match(f"{place.path}/{name}") for name in _WRITTEN):
                how = f"its files would be taken for rows: {key} is {entry}"
                raise RequestError(place.key, place.url, how, f"use another {place.key}, or a narrower pattern")


def _ours_or_empty(directory: RunDirectory, mark: str, what: str) -> None:
    """What lies there is a run (an index) of ours, or nothing but hidden files."""
    there: list[str] = []
    with directory.reached(), suppress(NotADirectoryError):  # which cannot be written either: told when it is tried
        there = [] if directory.exists(mark) else directory.entries()
    others = [name for name in there if not name.startswith(".")]
    if others:
        named = ", ".join(others[:3]) + (" …" if len(others) > 3 else "")
        problem = f"is not empty and holds no {what} (no {mark}): {named}"
        raise RequestError(directory.key, directory.url, problem, "use a new or an empty place")


def _not_inside_another(directory: RunDirectory, own: RunDirectory | None) -> None:
    """No folder that the place lies in, but for its own run's, is another run's or its gradient index."""
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

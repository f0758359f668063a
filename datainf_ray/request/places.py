"""What a request reads, and where it writes: no place of the one may be, hold or lie inside a place of the other.

A run writes into its output and into its gradient index, and takes away there what it does not need any more. So both
are new, empty, or its own; hidden files of others are left alone, and do not count.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import PurePosixPath

from fsspec.implementations.memory import MemoryFileSystem

from datainf_ray.common.errors import RequestError
from datainf_ray.common.storage import Options
from datainf_ray.config import ModelConfig
from datainf_ray.corpus.chunks import Corpus
from datainf_ray.model.files import is_remote
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.index import INDEX
from datainf_ray.runs.places import Place, apart, clear_of_rows, not_inside_another, place_of
from datainf_ray.runs.record import RUN_FILE

#: Files that a run may come to have, of every kind and depth, to see whether a pattern takes them for rows.
_WRITTEN = (
    "run.json", "top.parquet", "queries.parquet", "blocks.parquet", "texts.parquet", "pictures.parquet",
    "examples/part-000000.parquet",
    "events/20260101T000000Z-0000-00000.jsonl", "checkpoints/ihvp.json", "checkpoints/sums/curvature-1.json",
    "checkpoints/scores/chunk-000000.parquet", "index.json", "index/index.json", "part-000000.parquet",
    "index/part-000000.parquet",
)  # fmt: skip
#: Names in an output that are the run's own, so that no index can be there.
_TAKEN = ("examples", "events", "checkpoints")


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
            apart(place, folder)
        for name, (entries, corpus) in corpora.items():
            clear_of_rows(place, f"{name}.path", entries, corpus.files, options, _WRITTEN)
    not_inside_another(output, within)
    _ours_or_empty(output, RUN_FILE, "run")
    if index is not None:
        not_inside_another(index, output)
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

"""The tables of a run, read and compared with what run.json says that they held when they were written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa

from datainf_ray.common.errors import DamagedError, RequestError, one_line
from datainf_ray.runs.checksums import stored
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.index import open_index
from datainf_ray.runs.parts import PARTS, check_part, names_of, read_rows
from datainf_ray.runs.pictures import PICTURES, pictures_schema
from datainf_ray.runs.record import RunRecord
from datainf_ray.runs.schemas import blocks_schema, queries_schema, read_parquet, tokens_schema, top_schema
from datainf_ray.runs.texts import TEXTS, texts_schema

#: The small tables of a run that is done.
TABLES: dict[str, Callable[[], pa.Schema]] = {
    "queries.parquet": queries_schema,
    "blocks.parquet": blocks_schema,
    "top.parquet": top_schema,
    TEXTS: texts_schema,
}
_ADDED = frozenset({TEXTS})  # those that earlier versions did not write
#: Those that a run has only where its rows have what they hold.
IF_ANY: dict[str, Callable[[], pa.Schema]] = {PICTURES: pictures_schema}
#: Those that a run has only where this key of `results` asks for it.
ASKED_FOR: dict[str, tuple[str, Callable[[], pa.Schema]]] = {"tokens.parquet": ("tokens", tokens_schema)}

_AGAIN = "run the same configuration again"
_WHOLE = 10**9  # bytes of examples/ that are read whole to see whether they are as they were written


@contextmanager
def telling_damage() -> Iterator[None]:
    """A `DamagedError` within it becomes a `RequestError` about the run that was asked for."""
    try:
        yield
    except DamagedError as error:
        raise RequestError("run", error.path, error.problem, error.remedy) from None


def tables_of(record: RunRecord) -> list[str]:
    """The names of the small tables that a run has."""
    asked = [name for name, (key, _) in ASKED_FOR.items() if record.config["results"].get(key)]
    return [*TABLES, *asked, *(name for name in IF_ANY if name in record.files)]


def table_of(directory: RunDirectory, record: RunRecord, name: str) -> pa.Table:
    """One of `tables_of` the run; an empty one where an earlier version did not write it, or it would have no rows.

    Raises `DamagedError` where it is not the one that the run wrote.
    """
    path, known = directory.path(name), record.files.get(name)
    schema = TABLES[name] if name in TABLES else IF_ANY[name] if name in IF_ANY else ASKED_FOR[name][1]
    if known is None and (name in IF_ANY or (name in _ADDED and not directory.exists(name))):
        return schema().empty_table()
    try:
        data = directory.read(name)
    except FileNotFoundError:
        raise DamagedError(directory.url, f"is done, but {name} is missing from it", _AGAIN) from None
    except OSError as error:  # a directory, or something else that is no file
        raise DamagedError(path, f"cannot be read: {one_line(error)}") from None
    if known is not None and stored(data) != known:
        raise DamagedError(path, "is not the file that the run wrote: it is damaged, or another one")
    try:
        return read_parquet(data, schema())
    except ValueError as error:
        raise DamagedError(path, one_line(error)) from None


def part_files(directory: RunDirectory, record: RunRecord) -> list[str]:
    """The names of the parts of examples/, by number. Raises `DamagedError` where a run is done and has none."""
    written = [name for name in record.files if name.startswith(PARTS)]
    names = written or names_of(directory, PARTS)  # older runs do not say which there are
    if record.state == "done" and not names:
        raise DamagedError(directory.path("examples"), "is gone", _AGAIN)
    return names


def rows_of(
    directory: RunDirectory,
    record: RunRecord,
    name: str,
    schema: pa.Schema,
    columns: list[str] | None = None,
    share: float = 1.0,
    first: int = 0,
) -> Iterator[pa.Table]:
    """The rows of a part, or of a chunk's file, as `read_rows` has them. Raises `DamagedError` as that does.

    Where the run is not done, it may become done meanwhile: then a file that is not there is a `FileNotFoundError`.
    """
    try:
        yield from read_rows(directory, name, schema, columns, share, record.files.get(name), first)
    except FileNotFoundError:
        if record.state != "done":
            raise
        raise DamagedError(directory.path(name), "is gone", _AGAIN) from None


def damage(directory: RunDirectory, record: RunRecord, index: RunDirectory | None) -> str | None:
    """What is wrong with the files of a run that is done, in a line; None where they are as they were written.

    The tables are read whole, and so are the parts of examples/ where they take 1 GB in all; of larger ones sizes and
    footers are compared. Of the run's gradient `index` it is seen that all parts are there.
    """
    try:
        for name in tables_of(record):
            table_of(directory, record, name)
        parts = {name: known for name, known in record.files.items() if name.startswith(PARTS)}
        whole = sum(known.bytes for known in parts.values()) <= _WHOLE
        for name in part_files(directory, record):
            if name in parts:
                check_part(directory, name, parts[name], whole)
        for name, known_picture in record.pictures.items():
            if not directory.exists(name) or stored(directory.read(name)) != known_picture:
                return f"{directory.path(name)}: is gone, or not the picture that the run had made"
        if index is not None and record.sizes is not None:
            open_index(index, record.sizes.chunk_rows)
    except DamagedError as error:
        return f"{error.path}: {error.problem}"
    except RequestError as error:
        return str(error)
    return None

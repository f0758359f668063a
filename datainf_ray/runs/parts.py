"""The rows of examples/ on their way: a file per chunk while the run goes on, parts of a sensible size when it is done.

A chunk is committed as soon as it is computed, so its file is small, and a large corpus has a hundred thousand of them.
`plan_parts` says which chunks make each part, `consolidate` writes one. Both follow from the plan and from what the
chunks hold, so the same run gives the same parts, whoever writes them and however often.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa

from datainf_ray.common.arrow import of_content
from datainf_ray.common.errors import DamagedError, one_line
from datainf_ray.common.storage import persistently
from datainf_ray.runs.checkpoints import CHECKPOINTS
from datainf_ray.runs.checksums import Stored, measured, read_checked, stored_part
from datainf_ray.runs.directory import RunDirectory
from datainf_ray.runs.schemas import (
    ACROSS,
    LATER,
    conform,
    group_rows,
    open_parquet,
    parquet_writer,
    schema_now,
    sized,
    with_later,
)

#: What the names of the chunks' files begin with.
CHUNKS = f"{CHECKPOINTS}/scores/chunk-"
#: What the names of the parts begin with.
PARTS = "examples/part-"
#: The least size of a part, as planned; a run that has less has one part.
PART_BYTES = 128 * 2**20

# A row without influences, compressed: 11 bytes were seen where ids are <file>#<row>, 30 where they are random.
_ROW_BYTES = 20
_ACROSS_BYTES = 4 * len(ACROSS)
_AHEAD = 8  # requests to a store at a time, each for a small file
_AHEAD_BYTES = 16 * 2**20
_PORTION = 65_536  # rows

Result = TypeVar("Result")


def chunk_name(number: int) -> str:
    """The file to which a chunk's rows are committed: the columns of examples/, and metadata for the run's own use."""
    return f"{CHUNKS}{number:06d}.parquet"


def part_name(number: int) -> str:
    """The file that holds a part of the rows when the run is done."""
    return f"{PARTS}{number:06d}.parquet"


def names_of(directory: RunDirectory, beginning: str) -> list[str]:
    """The files there are of those that begin with `CHUNKS` or `PARTS`, by number."""
    names = (name for name in directory.list(beginning) if name.endswith(".parquet"))
    return sorted(names, key=lambda name: (len(name), name))  # after 999999 the names grow


def row_bytes(queries: int, scores: bool = True, blocks: int = 0, selves: bool = False) -> int:
    """What a row of examples/ takes in a file, about; `blocks` is 0 where there is no block_influence."""
    return _ROW_BYTES + _ACROSS_BYTES + (4 * queries * (1 + blocks) if scores else 0) + (8 if selves else 0)


def plan_parts(chunk_rows: Sequence[int], row_bytes: int) -> list[range]:
    """Which chunks make each part, by the rows of every chunk and the bytes of a row.

    Parts are as equal as chunks allow and of 128 to 256 MB, or less where there is but one; a chunk that is larger than
    that is a part of its own.
    """
    starts = list(itertools.accumulate((rows * row_bytes for rows in chunk_rows), initial=0))
    total = max(1, starts.pop())
    parts = max(1, total // PART_BYTES)
    numbers = [start * parts // total for start in starts]
    edges = [k for k, number in enumerate(numbers) if k == 0 or number != numbers[k - 1]]
    return [range(*edge) for edge in itertools.pairwise([*edges, len(numbers)])]


def consolidate(directory: RunDirectory, part_number: int, chunks: range, owner: str) -> Stored:
    """Write a part from its chunks' files, whole or not at all; again, if it is there, with the same bytes.

    Takes memory for a few row groups, and for the part twice where its upload to a store does. Raises `DamagedError`
    if a chunk's file is not there, or is not as the run `owner` wrote it.
    """
    tables = _chunk_tables(directory, chunks, owner)
    first = next(tables)
    return write_part(directory, part_number, first.schema, itertools.chain([first], tables))


def write_part(directory: RunDirectory, part_number: int, schema: pa.Schema, tables: Iterable[pa.Table]) -> Stored:
    """Write a part from its rows, whole or not at all; the same rows give the same bytes, however they are cut.

    `tables` hold the rows in order, and lists of fixed size as `plain` has them; `schema` is theirs.
    """
    step = group_rows(schema)
    with directory.writing(part_name(part_number)) as stream:
        with parquet_writer(stream, schema) as writer:
            for group in _regrouped(tables, step):
                writer.write_table(group)
        stream.flush()
        with open(stream.name, "rb") as written:
            return stored_part(written)


def read_rows(
    directory: RunDirectory,
    name: str,
    schema: pa.Schema,
    columns: list[str] | None = None,
    share: float = 1.0,
    known: Stored | None = None,
    first: int = 0,
) -> Iterator[pa.Table]:
    """The rows of a chunk's file or of a part, in order and in portions of bounded size; all columns, or those named.

    With `share` < 1 only about that share of them, as row groups that are evenly spaced, at least one. The `first` rows
    of those are passed over. Raises `DamagedError` where the file has not the columns of `schema`, cannot be decoded,
    or is not the one that is `known`; `FileNotFoundError` where it is not there.
    """
    path = directory.path(name)
    wanted_schema = schema if columns is None else pa.schema([schema.field(column) for column in columns])
    with persistently(lambda: directory.fs.open(f"{directory.root}/{name}", "rb")) as file:
        if known is not None and persistently(lambda: measured(file)) != (known.bytes, known.footer):
            raise DamagedError(path, "is not the file that the run wrote")
        parquet = _decoded(path, lambda: open_parquet(file))
        there = parquet.schema_arrow.names
        if missing := sorted(set(wanted_schema.names).difference(there, LATER)):
            raise DamagedError(path, f"has no column {', '.join(missing)}")
        names = [column for column in wanted_schema.names if column in there]
        groups = parquet.num_row_groups
        wanted = min(groups, max(1, round(share * groups)))
        for number in [n * groups // wanted for n in range(wanted)]:
            rows = parquet.metadata.row_group(number).num_rows
            if rows <= first:
                first -= rows
                continue
            read = functools.partial(parquet.read_row_group, number, names, use_threads=False)
            group = _decoded(path, read).replace_schema_metadata().slice(first)  # a chunk's own metadata, not ours
            first = 0
            for start in range(0, len(group), _PORTION):
                portion = _decoded(path, functools.partial(sized, group.slice(start, _PORTION)))
                portion = with_later(portion, wanted_schema)
                _decoded(path, functools.partial(conform, portion, wanted_schema))
                yield portion


def count_rows(directory: RunDirectory, name: str) -> int:
    """How many rows a part has, as its footer says. Raises `DamagedError` where it is gone, or is no Parquet file."""
    path = directory.path(name)
    try:
        with persistently(lambda: directory.fs.open(f"{directory.root}/{name}", "rb")) as file:
            return int(_decoded(path, lambda: open_parquet(file)).metadata.num_rows)
    except FileNotFoundError:
        raise DamagedError(path, "is gone") from None


def check_part(directory: RunDirectory, name: str, known: Stored, whole: bool) -> None:
    """Raises `DamagedError` where a part is gone, or is not the `known` one: by its footer, or as a `whole`."""
    path = directory.path(name)
    try:
        with persistently(lambda: directory.fs.open(f"{directory.root}/{name}", "rb")) as file:
            same = persistently(
                lambda: stored_part(file) == known if whole else measured(file) == (known.bytes, known.footer)
            )
    except FileNotFoundError:
        raise DamagedError(path, "is gone") from None
    if not same:
        raise DamagedError(path, "is not the file that the run wrote: it is damaged, or another one")


def _decoded(path: str, operation: Callable[[], Result]) -> Result:
    """What `operation` reads of a Parquet file. Raises `DamagedError` where that is not what it should be."""
    try:
        return persistently(operation)
    except Exception as error:
        if not of_content(error):
            raise
        raise DamagedError(path, f"cannot be read as Parquet: {one_line(error)[:200]}") from None


def _chunk_tables(directory: RunDirectory, chunks: range, owner: str) -> Iterator[pa.Table]:
    """The rows of the chunks as the files have them, in portions of at most a row group."""
    for data in _chunk_files(directory, chunks, owner):
        parquet = open_parquet(data)
        empty, now = parquet.schema_arrow.empty_table(), schema_now(parquet.schema_arrow)
        batches = parquet.iter_batches(group_rows(parquet.schema_arrow), use_threads=False)
        for table in itertools.chain([empty], (pa.Table.from_batches([batch]) for batch in batches)):
            table = with_later(table, now)  # an earlier version may have begun the run
            yield table.replace_schema_metadata()  # it says something about the chunk


def _chunk_files(directory: RunDirectory, chunks: range, owner: str) -> Iterator[bytes]:
    """The chunks' files in order; of small ones some at a time, because every request to a store takes its while."""

    def read(name: str) -> bytes:
        try:
            return read_checked(directory, name, owner)
        except FileNotFoundError:
            raise DamagedError(directory.path(name), "is gone", "run the same configuration again") from None

    with ThreadPoolExecutor(_AHEAD) as pool:
        ahead = 1
        while chunks:
            names = [chunk_name(number) for number in chunks[:ahead]]
            chunks = chunks[ahead:]
            files = list(pool.map(read, names))
            ahead = max(1, min(4 * _AHEAD, _AHEAD_BYTES // max(map(len, files))))
            yield from files


def _regrouped(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows, `rows` at a time (the last may be fewer), each in one piece whatever pieces they came in."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += len(table)
        while count >= rows:
            whole = pa.concat_tables(held)
            yield whole.slice(0, rows).combine_chunks()
            held, count = [whole.slice(rows)], count - rows
    if count:
        yield pa.concat_tables(held).combine_chunks()

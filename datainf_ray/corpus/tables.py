"""The record batches of Parquet and Arrow files: how many rows, which columns, and the rows themselves."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datainf_ray.common.arrow import of_content
from datainf_ray.corpus.arrow_values import check_batch, parse_batch
from datainf_ray.corpus.files import SourceFile, changed, open_seekable
from datainf_ray.corpus.lookup import DEEPEST, Path, add_paths
from datainf_ray.corpus.records import Parsed

_BATCH_BYTES = 64 << 20  # decoded at a time; a smaller row group stays whole
_FILE_MAGIC = b"ARROW1"


def survey_table(file: SourceFile) -> SourceFile:
    """`file` with its rows, columns and groups: from a Parquet file's footer, from an Arrow file's batch headers.

    Raises what pyarrow raises where the file is damaged.
    """
    with open_seekable(file) as source:
        if file.format == "parquet":
            parquet = pq.ParquetFile(source)
            meta, schema = parquet.metadata, parquet.schema_arrow
            sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        elif is_ipc_file(source):
            reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=[0]))
            schema = pa.ipc.open_file(source).schema
            sizes = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
        else:
            stream = pa.ipc.open_stream(source)
            schema = stream.schema
            sizes = [sum(batch.num_rows for batch in stream)]  # one group: a stream is read from front to back
    groups = tuple(itertools.accumulate(sizes, initial=0))
    nested: dict[Path, None] = {}
    add_paths(nested, _paths(schema))
    return replace(file, rows=groups[-1], columns=tuple(schema.names), nested=tuple(nested), groups=groups[:-1])


class TableSource:
    """The rows of one Parquet or Arrow file. Keeps one decoded batch, and reads on from it where it can.

    `paths` are the columns to read, and of which only a part is needed, the way to it. The bytes of columns `raw` are
    no text.
    """

    def __init__(self, file: SourceFile, paths: Sequence[Path], raw: Collection[str] = ()) -> None:
        self._raw = raw
        self._file, self._leaves = file, [".".join(path) for path in paths]
        self._columns = list(dict.fromkeys(path[0] for path in paths))
        self._source = open_seekable(file)
        self._reader = self._open()
        self._group = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._first = 0  # the row at which the batch begins

    def read(self, start: int, stop: int) -> Iterator[Parsed]:
        """Rows start..stop-1; the rows of a group that cannot be decoded each say so."""
        for rows, piece in self.pieces(start, stop):
            if isinstance(piece, Exception):
                yield from (Parsed({}, f"cannot be decoded: {piece}") for _ in rows)
            else:
                yield from parse_batch(piece.select(self._columns), self._raw)

    def pieces(self, start: int, stop: int) -> Iterator[tuple[range, pa.RecordBatch | Exception]]:
        """Rows start..stop-1 in pieces of batches; or why those of a group cannot be decoded."""
        while start < stop:
            group = bisect.bisect_right(self._file.groups, start) - 1
            end = min(stop, self._group_end(group))
            try:
                batch = self._batch_at(group, start)
            except Exception as error:
                self._group = -1
                if not of_content(error):
                    raise
                yield range(start, end), error
                start = end
                continue
            piece = batch.slice(start - self._first, end - start)
            yield range(start, start + piece.num_rows), piece
            start += piece.num_rows

    def schema(self) -> pa.Schema:
        """That of the whole file."""
        if self._file.format == "parquet":
            return self._reader.schema_arrow
        self._source.seek(0)
        opened = pa.ipc.open_file if is_ipc_file(self._source) else pa.ipc.open_stream
        return opened(self._source).schema

    @property
    def far(self) -> bool:
        """Whether a column's parts cannot be read alone: those of an Arrow file in a store."""
        return self._file.format == "arrow" and not isinstance(self._source, pa.MemoryMappedFile)

    def nulls(self, row: int, path: Path) -> int | None:
        """How many nulls the group that begins at a row has in a leaf; None where nobody says, as Parquet files may."""
        if self._file.format != "parquet":
            return None
        told = self._reader.metadata.row_group(bisect.bisect_right(self._file.groups, row) - 1)
        leaf = ".".join(path)
        found = (told.column(k) for k in range(told.num_columns) if told.column(k).path_in_schema == leaf)
        return next((c.statistics.null_count for c in found if c.is_stats_set and c.statistics.has_null_count), None)

    def close(self) -> None:
        self._batch, self._batches = None, iter(())
        self._source.close()

    def _open(self) -> Any:
        if self._file.format == "parquet":
            return pq.ParquetFile(self._source, pre_buffer=True)
        if is_ipc_file(self._source):
            names = pa.ipc.open_file(self._source).schema.names
            wanted = [names.index(column) for column in self._columns]
            return pa.ipc.open_file(self._source, options=pa.ipc.IpcReadOptions(included_fields=wanted))
        return None  # a stream is opened where it is read

    def _group_end(self, group: int) -> int:
        groups = self._file.groups
        return groups[group + 1] if group + 1 < len(groups) else self._file.rows

    def _batch_at(self, group: int, row: int) -> pa.RecordBatch:
        """The batch that holds `row`, decoded from the group's beginning only where it lies behind."""
        if group != self._group or row < self._first:
            self._batches, self._batch = self._decode(group), None
            self._group, self._first = group, self._file.groups[group]
        while self._batch is None or row >= self._first + self._batch.num_rows:
            self._first += 0 if self._batch is None else self._batch.num_rows
            self._batch = next(self._batches, None)
            if self._batch is None:
                raise changed(self._file, f"ends before row {row}")
            if self._file.format == "arrow":
                check_batch(self._batch.select(self._columns))
        return self._batch

    def _decode(self, group: int) -> Iterator[pa.RecordBatch]:
        if self._file.format == "parquet":
            size = self._reader.metadata.row_group(group)
            rows = max(1, min(size.num_rows, size.num_rows * _BATCH_BYTES // max(1, size.total_byte_size)))
            return self._reader.iter_batches(rows, row_groups=[group], columns=self._leaves, use_threads=False)
        if self._reader is not None:
            return iter((self._reader.get_batch(group),))
        self._source.seek(0)
        return iter(pa.ipc.open_stream(self._source))


def _paths(fields: Iterable[pa.Field], prefix: Path = ()) -> Iterator[Path]:
    """The paths to what is nested in columns: the fields of structs."""
    for field in fields:
        if prefix:
            yield (*prefix, field.name)
        if pa.types.is_struct(field.type) and len(prefix) < DEEPEST:
            yield from _paths(field.type, (*prefix, field.name))


def is_ipc_file(source: pa.NativeFile) -> bool:
    """Whether this is Arrow's file format rather than its stream format."""
    magic = source.read(len(_FILE_MAGIC))
    source.seek(0)
    return bool(magic == _FILE_MAGIC)

"""Parquet and Arrow files written again, some rows left out or columns added: schema, metadata and codecs stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from datainf_ray.corpus.files import SourceFile, changed
from datainf_ray.corpus.tables import is_ipc_file
from datainf_ray.curate.extra import Extra
from datainf_ray.curate.lines import Stays

_BATCH_BYTES = 64 << 20  # decoded at a time
_LOOKED = 1 << 16  # bytes of a batch's body that show its codec
#: How each compressed buffer begins, behind eight bytes that tell its size.
_CODECS = {b"\x04\x22\x4d\x18": "lz4", b"\x28\xb5\x2f\xfd": "zstd"}


def copy_table(source: pa.NativeFile, file: SourceFile, out: IO[bytes], stays: Stays, extra: Extra | None) -> None:
    """Write the rows of a Parquet or Arrow file that stay, with more columns where there are `extra` ones.

    Raises what pyarrow raises where the file is damaged, OSError where it has not the rows that it was planned with.
    """
    if file.format == "parquet":
        _copy_parquet(source, file, out, stays, extra)
    else:
        _copy_arrow(source, file, out, stays, extra)


def _copy_parquet(source: pa.NativeFile, file: SourceFile, out: IO[bytes], stays: Stays, extra: Extra | None) -> None:
    """Row group by row group; a group of more than 64 MiB becomes several."""
    parquet = pq.ParquetFile(source, pre_buffer=True)
    meta = parquet.metadata
    codecs = {}
    if meta.num_row_groups:
        group = meta.row_group(0)
        chunks = [group.column(number) for number in range(group.num_columns)]
        codecs = {chunk.path_in_schema: _codec(chunk.compression) for chunk in chunks}
    one = set(codecs.values())
    schema = _widened(parquet.schema_arrow, extra)
    codec = one.pop() if len(one) == 1 else {**codecs, **dict.fromkeys(extra.names if extra else (), "zstd")}
    with pq.ParquetWriter(out, schema, compression=codec or "snappy") as writer:
        row = 0
        for number in range(meta.num_row_groups):
            size = meta.row_group(number)
            rows = max(1, min(size.num_rows, size.num_rows * _BATCH_BYTES // max(1, size.total_byte_size)))
            for batch in parquet.iter_batches(rows, row_groups=[number], use_threads=False):
                kept = _kept(batch, row, file, stays, extra, schema)
                row += batch.num_rows
                if len(kept):
                    writer.write_table(kept)
    _complete(row, file)


def _copy_arrow(source: pa.NativeFile, file: SourceFile, out: IO[bytes], stays: Stays, extra: Extra | None) -> None:
    """Batch by batch, as a file or a stream, whichever it was."""
    framed = is_ipc_file(source)
    codec = _ipc_codec(source, framed)
    reader = pa.ipc.open_file(source) if framed else pa.ipc.open_stream(source)
    schema = _widened(reader.schema, extra)
    options = pa.ipc.IpcWriteOptions(compression=codec, emit_dictionary_deltas=True)
    make = pa.ipc.new_file if framed else pa.ipc.new_stream
    with make(out, schema, options=options) as writer:
        row = 0
        for batch in _batches(reader, framed):
            kept = _kept(batch, row, file, stays, extra, schema)
            row += batch.num_rows
            for piece in kept.to_batches():
                if piece.num_rows:
                    writer.write_batch(piece)
    _complete(row, file)


def _batches(reader: pa.RecordBatchReader, framed: bool) -> Iterator[pa.RecordBatch]:
    if framed:
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        yield from reader


def _kept(
    batch: pa.RecordBatch, row: int, file: SourceFile, stays: Stays, extra: Extra | None, schema: pa.Schema
) -> pa.Table:
    if row + batch.num_rows > file.rows:
        raise changed(file, f"has more than {file.rows} rows")
    table = pa.Table.from_batches([batch])
    if extra is not None:
        for name, column in zip(extra.names, extra.take(batch.num_rows).columns, strict=True):
            table = table.append_column(name, column)
    mask = stays(row, row + batch.num_rows)
    table = table.replace_schema_metadata(schema.metadata)
    return table if mask.all() else table.filter(pa.array(mask))


def _widened(schema: pa.Schema, extra: Extra | None) -> pa.Schema:
    """The schema with the columns that are added."""
    if extra is None:
        return schema
    for name, field in zip(extra.names, extra.schema, strict=True):
        schema = schema.append(field.with_name(name))
    return schema


def _codec(name: str) -> str:
    return "NONE" if name == "UNCOMPRESSED" else name


def _ipc_codec(source: pa.NativeFile, framed: bool) -> str | None:
    """The codec of an Arrow file's buffers, as the first batch of any size shows it. It ends at the file's start."""
    source.seek(8 if framed else 0)
    found = None
    try:
        for _ in range(8):
            body = pa.ipc.read_message(source).body
            head = body[:_LOOKED].to_pybytes() if body is not None else b""
            starts = (head[at + 8 : at + 12] for at in range(0, len(head) - 12, 8))
            found = next((_CODECS[start] for start in starts if start in _CODECS), None)
            if found:
                break
    except (EOFError, pa.ArrowInvalid):  # there is no other message
        pass
    source.seek(0)
    return found


def _complete(rows: int, file: SourceFile) -> None:
    if rows != file.rows:
        raise changed(file, f"has {rows} rows instead of {file.rows}")

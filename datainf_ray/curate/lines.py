"""Text files written again, some rows left out or columns added: the bytes of what stays are those that were there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, BinaryIO

import numpy as np
import pyarrow as pa

from datainf_ray.corpus.arrays import raw_elements
from datainf_ray.corpus.files import SourceFile, changed
from datainf_ray.corpus.records import split_records
from datainf_ray.corpus.regions import regions
from datainf_ray.curate.extra import Extra, as_csv, as_json

_BOM = b"\xef\xbb\xbf"
_AHEAD = 1024  # rows whose added columns are made at a time

Stays = Callable[[int, int], np.ndarray]  #: whether each of rows start..stop-1 of the file is to be written


def copy_text(stream: BinaryIO, file: SourceFile, out: IO[bytes], stays: Stays, extra: Extra | None) -> None:
    """Write the rows of a text file that stay, in its own format, with more columns where there are `extra` ones.

    Raises OSError where the file has not the rows that it was planned with.
    """
    if file.format == "csv":
        _copy_csv(stream, file, out, stays, extra)
    elif file.format == "json":
        _copy_array(stream, file, out, stays, extra)
    elif extra is None:
        _copy_lines(stream, file, out, stays)
    else:
        _widen_lines(stream, file, out, stays, extra)


def _copy_lines(stream: BinaryIO, file: SourceFile, out: IO[bytes], stays: Stays) -> None:
    """JSON lines, without looking at more of them than where they end. Blank lines stay."""
    row = 0
    for region in regions(stream):
        kept = ~region.is_row
        kept[region.is_row] = _asked(stays, row, int(region.is_row.sum()), file)
        if row == 0 and not kept[0] and region.data.startswith(_BOM):
            out.write(_BOM)  # it is the file's, not the row's
        row += int(region.is_row.sum())
        if kept.all():
            out.write(region.data)
            continue
        view = memoryview(region.data)
        edges = np.flatnonzero(np.diff(kept, prepend=False, append=False))
        for begin, end in edges.reshape(-1, 2).tolist():
            out.write(view[region.starts[begin] : region.ends[end - 1]])
    _complete(row, file)


def _widen_lines(stream: BinaryIO, file: SourceFile, out: IO[bytes], stays: Stays, extra: Extra) -> None:
    """The rows of JSON lines that stay, with more keys."""
    row = 0
    for region in regions(stream):
        rows = int(region.is_row.sum())
        kept = _asked(stays, row, rows, file)
        row += rows
        table = extra.take(rows)
        if not kept.any():
            continue
        starts, ends = (places[region.is_row][kept].tolist() for places in (region.starts, region.ends))
        for start, end, more in zip(starts, ends, as_json(table.filter(pa.array(kept))), strict=True):
            record = region.data[start:end]
            line = record.rstrip()
            out.write(_with(line, more) + (record[len(line) :] or b"\n"))
    _complete(row, file)


def _copy_array(stream: BinaryIO, file: SourceFile, out: IO[bytes], stays: Stays, extra: Extra | None) -> None:
    """A JSON array: the elements that stay, with the space around them."""
    rows = _Widened(file, stays, extra, as_json)
    divider, tail = b"[", b""
    for element in raw_elements(stream):
        more = rows.next()
        content = element.rstrip()
        tail = element[len(content) :]
        if more is not None:
            out.write(divider + (_with(content, more) if more else content))
            divider = b","
    out.write((b"[" if divider == b"[" else b"") + tail + b"]\n")
    _complete(rows.row, file)


def _copy_csv(stream: BinaryIO, file: SourceFile, out: IO[bytes], stays: Stays, extra: Extra | None) -> None:
    """CSV: a record may be several lines. The header stays."""
    tee = _Tee(stream)
    records = split_records(tee, file, 0)  # type: ignore[arg-type]
    next(records)
    quoted = file.quoting == "standard"
    header = tee.taken()
    if extra is not None:
        names = extra.schema.empty_table().rename_columns(list(extra.names)).column_names
        line = header.rstrip(b"\r\n")
        header = line + _named(names, file.delimiter, quoted) + (header[len(line) :] or b"\n")
    out.write(header)
    rows = _Widened(file, stays, extra, lambda table: as_csv(table, file.delimiter, quoted))
    for _ in records:
        raw, more = tee.taken(), rows.next()
        if more is None:
            continue
        if more:
            line = raw.rstrip(b"\r\n")
            raw = line + more + (raw[len(line) :] or b"\n")
        out.write(raw)
    _complete(rows.row, file)


def _named(names: list[str], delimiter: str, quoted: bool) -> bytes:
    return as_csv(pa.table({name: [name] for name in names}), delimiter, quoted)[0]


class _Tee:
    """A stream's lines, which are remembered until they are taken."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._lines = stream, list[bytes]()

    def readline(self) -> bytes:
        line = self._stream.readline()
        self._lines.append(line)
        return line

    def taken(self) -> bytes:
        lines, self._lines = self._lines, []
        return b"".join(lines)


class _Widened:
    """What is added to each row of a file, asked for row by row: None where the row does not stay."""

    def __init__(
        self, file: SourceFile, stays: Stays, extra: Extra | None, written: Callable[..., list[bytes]]
    ) -> None:
        self.row = 0
        self._file, self._stays, self._extra, self._written = file, stays, extra, written
        self._ahead: Iterator[bytes | None] = iter(())

    def next(self) -> bytes | None:
        """Of the next row. b"" where nothing is added. Raises OSError where the file was to have no more."""
        self.row += 1
        while True:
            for one in self._ahead:
                return one
            self._ahead = iter(self._more(self.row - 1))

    def _more(self, row: int) -> list[bytes | None]:
        if row >= self._file.rows:
            raise changed(self._file, f"has more than {self._file.rows} rows")
        stop = min(self._file.rows, row + _AHEAD)
        stays = self._stays(row, stop)
        if self._extra is None:
            return [b"" if one else None for one in stays]
        table = self._extra.take(stop - row)
        some = iter(self._written(table.filter(stays)) if stays.any() else [])
        return [next(some) if one else None for one in stays]


def _with(record: bytes, more: bytes) -> bytes:
    """A JSON object with more keys behind its own; as it is where it is none."""
    if not record.endswith(b"}"):
        return record
    inside = record[:-1].rstrip()
    divider = b"" if inside.lstrip(b" \t\r\n" + _BOM) == b"{" else b", "
    return inside + divider + more + b"}"


def _asked(stays: Stays, row: int, rows: int, file: SourceFile) -> np.ndarray:
    if row + rows > file.rows:
        raise changed(file, f"has more than {file.rows} rows")
    return stays(row, row + rows)


def _complete(rows: int, file: SourceFile) -> None:
    if rows != file.rows:
        raise changed(file, f"has {rows} rows instead of {file.rows}")
